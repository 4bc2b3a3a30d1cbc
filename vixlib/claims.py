"""The claims ledger: what the paper's abstracts assert, and the rule by which records judge it.

A row of figures/claims.csv names systems in pairs (the first `better` with the first `worse`, and
so on), a quantity, a test and a margin. Every pair has to pass; where the test begins with "any",
one is enough. `dataset` may carry the overrides of its runs behind a space.
"""

import math
from collections.abc import Iterable, Mapping

import pandas as pd
import torch

from vixlib import ROOT, measure
from vixlib.errors import BadInput, one_of
from vixlib.experiments import PROFILES, Run
from vixlib.models.zoo import system
from vixlib.show import DATASETS, ONE_SEED, interval

COLUMNS = (
    *("claim", "says", "source", "profile", "dataset", "quantity"),
    *("better", "worse", "test", "margin", "seeds", "why"),
)
EXACT = {  # counted from the model alone, without any record
    "parameters": lambda run: measure.parameters(run.build()),
    "flops": lambda run: measure.flops(run.build, (1, 3, *run.build().size)),
}
QUANTITIES = "top1", "peak_memory_mb", *EXACT
TESTS = "difference > margin", "|difference| <= margin", "ratio <= margin"
VERDICTS = HOLDS, FAILS, OPEN, UNTESTED = "holds", "does not hold", "not resolved", "not tested yet"


def ledger() -> pd.DataFrame:
    """Every claim with its test, a row each: figures/claims.csv."""
    path = ROOT / "figures" / "claims.csv"
    return check(pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records"))


def check(rows: Iterable[Mapping]) -> pd.DataFrame:
    """These rows as a ledger; BadInput names the first that cannot be judged."""
    rows, names = [dict(row) for row in rows], []
    for number, row in enumerate(rows, 1):
        try:
            _check(row)
            if row["claim"] in names:
                raise BadInput("its name is taken")
        except (ValueError, TypeError) as error:
            raise BadInput(f"claims, row {number} ({row.get('claim', '?')}): {error}") from error
        names.append(row["claim"])
    return pd.DataFrame(rows, columns=COLUMNS)


def _check(row: dict) -> None:
    empty = [key for key in COLUMNS if not str(row.get(key, "")).strip()]
    if empty or len(row) > len(COLUMNS):
        raise BadInput(f"expected {', '.join(COLUMNS)}; empty: {', '.join(empty) or 'none'}")
    row |= {"margin": float(row["margin"]), "seeds": int(row["seeds"])}
    one_of("profile", row["profile"], PROFILES)
    one_of("dataset", row["dataset"].split(" ")[0], DATASETS)
    one_of("quantity", row["quantity"], QUANTITIES)
    test = one_of("test", row["test"].removeprefix("any "), TESTS)
    for name in (*row["better"].split(), *row["worse"].split()):
        system(name)
    if len(row["better"].split()) != len(row["worse"].split()):
        raise BadInput("better and worse differ in length: they are pairs")
    if not math.isfinite(row["margin"]) or row["seeds"] < 1:
        raise BadInput("expected a finite margin and at least one seed")
    if test.startswith("ratio") and row["quantity"] == "top1":
        raise BadInput("accuracies are compared by their difference")


def verdict(row: Mapping, records: pd.DataFrame) -> tuple[str, str]:
    """One of VERDICTS, and the numbers behind it.

    Accuracies: the 95 % interval of the difference decides against the margin; where the row asks
    for one seed, ONE_SEED stands for it. Stale records count as missing.
    """
    names = dict.fromkeys(f"{row['better']} {row['worse']}".split())
    values = {name: _values(row, name, records) for name in names}
    short = [name for name in names if len(values[name]) < row["seeds"]]
    if short and row["quantity"] not in EXACT:
        return UNTESTED, f"seeds: {row['seeds']} asked of each, too few of {', '.join(short)}"
    pairs = list(zip(row["better"].split(), row["worse"].split(), strict=True))
    judged = [_pair(row, values[a], values[b]) for a, b in pairs]
    words = [word for word, _ in judged]
    enough, dead = (HOLDS, FAILS) if row["test"].startswith("any ") else (FAILS, HOLDS)
    word = enough if enough in words else OPEN if OPEN in words else dead
    sign = "/" if "ratio" in row["test"] else "−"
    said = [f"{a} {sign} {b}: {text}" for (a, b), (_, text) in zip(pairs, judged, strict=True)]
    return word, "; ".join(said)


def _values(row: Mapping, name: str, records: pd.DataFrame) -> pd.Series:
    if row["quantity"] in EXACT:
        with torch.device("meta"):
            return pd.Series([EXACT[row["quantity"]](Run(name, row["profile"]))])
    dataset, _, overrides = row["dataset"].partition(" ")
    wanted = {"system": name, "profile": row["profile"], "recipe": "fair", "dataset": dataset}
    own = records.reindex(columns=[*wanted, "overrides", "status", row["quantity"]])
    own = own[own["status"].isin(["read", "trained"]) & (own["overrides"] == overrides)]
    return own.loc[(own[[*wanted]] == pd.Series(wanted)).all(axis=1), row["quantity"]].dropna()


def _pair(row: Mapping, better: pd.Series, worse: pd.Series) -> tuple[str, str]:
    """The verdict on one pair, and its number."""
    one, other, margin, half = better.mean(), worse.mean(), row["margin"], 0.0
    if "ratio" in row["test"]:
        value, text = one / other, f"{one / other:.3f}"
    else:
        value, text = one - other, f"{one - other:+,.1f}"
        if row["quantity"] == "top1":
            half = ONE_SEED if row["seeds"] == 1 else math.hypot(interval(better), interval(worse))
            text += f" ± {half:.1f}"
    if "|" in row["test"]:
        value = abs(value)
    above, below = value - half > margin, value + half <= margin
    passed, failed = (above, below) if ">" in row["test"] else (below, above)
    return HOLDS if passed else FAILS if failed else OPEN, text.replace("-", "−")
