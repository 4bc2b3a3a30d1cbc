"""The registered study: what is claimed before it is run, and what its records decide.

A row of figures/study.csv compares what runs of figures/study.toml give: an effect of the factorial
that a part is, such as "position: rotary" or "position x embedding: rotary x convolution", or a sum
of arms, such as "+ ViN:epochs=4 - ViT:epochs=4", seed by seed.
"""

import math
import re
from collections.abc import Mapping

import pandas as pd

from vixlib import paths
from vixlib.errors import BadInput, checked, one_of
from vixlib.paper.records import KNOWN
from vixlib.paper.runs import Run, arm, registered
from vixlib.paper.statistics import Effect, decides, factorial, holm, p_value, paired, stands
from vixlib.systems import system

FACTORS = {  # of a ViX; the reference first
    "position": ["learned", "rotary"],
    "embedding": ["patch", "convolution"],
    "mechanism": ["softmax", "linformer", "performer", "nystrom"],
}
RESPONSE = "top1"
NOTHING = Effect(math.nan, math.nan, math.nan, 0, 0, 0)  # of what was not run


def register() -> pd.DataFrame:
    """Every hypothesis, a row each: figures/study.csv."""
    file = paths.shipped("study.csv")
    return pd.read_csv(file, keep_default_na=False, dtype={"margin": float})


def levels(name: str) -> dict[str, str]:
    """What a ViX has of each factor."""
    kind = system(name).family.kind
    return {
        "position": FACTORS["position"]["RoPE" in kind],
        "embedding": FACTORS["embedding"]["hybrid" in kind],
        "mechanism": system(name).mixer,
    }


@checked
def effect(row: Mapping, records: pd.DataFrame) -> Effect | None:
    """What a hypothesis compares, in points of accuracy; None while a run is missing."""
    known = records[records["status"].isin(KNOWN)].dropna(subset=[RESPONSE])
    own, signs = known.set_index("name")[RESPONSE], arms(row)
    if any(run.name not in own for _, runs in signs for run in runs):
        return None
    if row["compares"].startswith("+"):
        values = [sign * own[[run.name for run in runs]].to_numpy() for sign, runs in signs]
        total = pd.Series(sum(values))
        return paired(total, 0 * total)
    ((_, runs),) = signs
    frame = pd.DataFrame([{"seed": run.seed, **levels(run.system)} for run in runs])
    frame[RESPONSE] = [own[run.name] for run in runs]
    there = {name: [x for x in known if x in set(frame[name])] for name, known in FACTORS.items()}
    factors = {name: known for name, known in there.items() if len(known) > 1}
    terms = factorial(frame, RESPONSE, factors, "seed")
    term, _, label = row["compares"].partition(": ")
    effects = terms[one_of("term", term, terms)].effects
    return effects[one_of("effect", label, effects)]


def arms(row: Mapping) -> list[tuple[int, list[Run]]]:
    """The runs that a hypothesis needs: of each arm its sign and a run a seed, all registered."""
    part = registered()[one_of("part", row["part"], registered())]
    if not row["compares"].startswith("+"):
        return [(1, part)]
    known, signs = {run.name for runs in registered().values() for run in runs}, []
    for sign, text in re.findall(r"([+-]) (\S+)", row["compares"]):
        how = part[0].profile, part[0].recipe
        runs = [arm(text, *how, seed) for seed in range(row["seeds"])]
        for run in runs:
            if run.name not in known:
                raise BadInput(f"{row['hypothesis']}: {run.name} is not registered")
        signs.append((1 if sign == "+" else -1, runs))
    return signs


@checked
def verdicts(records: pd.DataFrame) -> pd.DataFrame:
    """The register with each effect, its interval and p, adjusted over all of them, and verdict.

    `overall` is the verdict at all budgets: rows that compare the same in different parts.
    """
    table = register()
    rows = table.to_dict("records")
    seen = [effect(row, records) or NOTHING for row in rows]
    asked = [(e, row["test"], row["margin"]) for e, row in zip(seen, rows, strict=True)]
    table["p"] = [p_value(*claim) for claim in asked]
    table["adjusted"] = holm(table["p"])
    table[["effect", "half"]] = [(e.value, e.half) for e in seen]
    table["agreeing"] = [e.agreeing for e in seen]
    decided = zip(asked, table["seeds"], table["adjusted"], strict=True)
    table["verdict"] = [decides(*claim, *rest) for claim, *rest in decided]
    budgets = table.groupby(["compares", "test", "margin"])["verdict"]
    table["overall"] = budgets.transform(
        lambda words: stands(words.to_dict()) if len(words) > 1 else words.iloc[0]
    )
    return table
