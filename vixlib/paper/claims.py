"""The claims ledger: what the paper's abstracts assert, and the rule by which records judge it.

A row of figures/claims.csv names systems in pairs (the first `better` with the first `worse`, and
so on), a quantity, a test and a margin. Every pair has to pass; where the test begins with "any",
one is enough. `dataset` may carry overrides of its runs behind a space; the first `seeds` seeds
are what counts, however many more there are.
"""

import re
from collections.abc import Iterable, Mapping

import pandas as pd

from vixlib import paths
from vixlib.errors import BadInput, checked, held, number, one_of, whole
from vixlib.paper.records import KNOWN
from vixlib.paper.runs import Run, arm, counted
from vixlib.paper.statistics import VERDICTS, noise

COLUMNS = [
    *("claim", "says", "source", "profile", "dataset", "quantity"),
    *("better", "worse", "test", "margin", "seeds", "why"),
]
STEPS = {"step_mb": ["fused"], "step_mb_written_out": ["written out", "fused"]}  # of softmax
EXACT = "parameters", "flops", *STEPS  # counted from the model alone, without any record
JUDGED = "top1", "peak_memory_mb", *EXACT
TESTS = "difference > margin", "|difference| <= margin", "ratio <= margin"
HOLDS, FAILS, OPEN, UNTESTED = VERDICTS


def ledger() -> pd.DataFrame:
    """Every claim with its test, a row each: figures/claims.csv."""
    table = pd.read_csv(paths.shipped("claims.csv"), dtype=str, keep_default_na=False)
    return judgeable(table.fillna("").to_dict("records"))


@checked
def judgeable(rows: Iterable[Mapping]) -> pd.DataFrame:
    """These rows as a ledger; BadInput names the first that cannot be judged."""
    good = {}
    for place, row in enumerate(rows, 1):
        held("claim", row, Mapping)
        name = row.get("claim")
        try:
            if name in good:
                raise BadInput("another row has its name")
            good[name] = _checked(dict(row))
        except (ValueError, TypeError) as error:
            raise BadInput(f"claims, row {place} ({name}): {error}") from error
    return pd.DataFrame(good.values(), columns=COLUMNS)


def _checked(row: dict) -> dict:
    if set(row) != set(COLUMNS) or not all(str(value).strip() for value in row.values()):
        raise BadInput(f"expected a text in each of {', '.join(COLUMNS)}")
    one_of("quantity", row["quantity"], JUDGED)
    if "ratio" in one_of("test", row["test"].removeprefix("any "), TESTS):
        one_of("quantity of a ratio", row["quantity"], JUDGED[1:])
    row |= {"margin": float(row["margin"]), "seeds": whole("seeds", int(row["seeds"]))}
    number("margin", abs(row["margin"]))
    if len(row["better"].split()) != len(row["worse"].split()):
        raise BadInput("better and worse differ in number: they are pairs")
    trained = {run.settings["dataset"] for run in _runs(row)}
    if trained != {row["dataset"].split(" ")[0]}:
        raise BadInput(f"dataset: its profile trains on {', '.join(trained)}")
    return row


@checked
def runs(rows: pd.DataFrame) -> list[Run]:
    """Every run of which these rows need the record, once."""
    asked = (row for row in rows.to_dict("records") if row["quantity"] not in EXACT)
    return list(dict.fromkeys(run for row in asked for run in _runs(row)))


def _runs(row: Mapping) -> list[Run]:
    _, *changes = re.split("[ ,]", row["dataset"])
    names = dict.fromkeys(f"{row['better']} {row['worse']}".split())
    texts, how = [":".join([name, *changes]) for name in names], (row["profile"], "fair")
    return [arm(text, *how, seed) for text in texts for seed in range(row["seeds"])]


def verdict(row: Mapping, records: pd.DataFrame) -> tuple[str, str]:
    """One of VERDICTS, and the numbers behind it.

    For accuracies the 95 % interval of the difference decides against the margin; where the row
    asks for one seed and there is one, ONE_SEED stands for it. Stale records are missing.
    """
    pairs = [*zip(row["better"].split(), row["worse"].split(), strict=True)]
    values = {name: _values(row, name, records) for pair in pairs for name in pair}
    short = [name for name, own in values.items() if len(own) < row["seeds"]]
    if short:
        return UNTESTED, f"{row['seeds']} of each asked, too few of {', '.join(short)}"
    sign = "/" if "ratio" in row["test"] else "−"
    judged = {f"{a} {sign} {b}": _pair(row, values[a], values[b]) for a, b in pairs}
    decisive = min if row["test"].startswith("any ") else max  # the best pair, or the worst
    word = decisive((word for word, _ in judged.values()), key=[HOLDS, OPEN, FAILS].index)
    return word, "; ".join(f"{pair}: {text}" for pair, (_, text) in judged.items())


def _values(row: Mapping, name: str, records: pd.DataFrame) -> pd.Series:
    """The quantity of a system, one number a seed; runs that diverged have none, even of memory."""
    quantity, wanted = row["quantity"], [run for run in _runs(row) if run.system == name]
    if quantity in STEPS:  # as benchmarks/steps.py counted bytes
        table = pd.read_csv(paths.shipped("step_memory.csv"), index_col=["system", "softmax"])
        forms = (form for form in STEPS[quantity] if (name, form) in table.index)
        return table.loc[[(name, next(forms))], "megabytes"]
    if quantity in EXACT:
        return pd.Series([counted(run.build)[quantity] for run in wanted])
    own = records.reindex(columns=["name", "profile", "status", quantity])
    own = own[own["status"].isin(KNOWN) & (own["profile"] == row["profile"])]
    own = own[own["name"].isin([run.name for run in wanted])]
    return own.dropna(subset=[quantity]).drop_duplicates("name")[quantity]


def _pair(row: Mapping, better: pd.Series, worse: pd.Series) -> tuple[str, str]:
    """The verdict on one pair, and its number."""
    one, other = better.mean(), worse.mean()
    half = noise(better, worse) if row["quantity"] == "top1" else 0.0
    value = one / other if "ratio" in row["test"] else one - other
    text = f"{value:.3f}" if "ratio" in row["test"] else f"{value:+,.1f}"
    text += f" ± {half:.1f}" if row["quantity"] == "top1" else ""
    value = abs(value) if "|" in row["test"] else value
    above, below = value - half > row["margin"], value + half <= row["margin"]
    passed, failed = (above, below) if ">" in row["test"] else (below, above)
    return HOLDS if passed else FAILS if failed else OPEN, text.replace("-", "−")
