"""The registered study: what is claimed before it is run, and what its records decide.

A row of figures/study.csv compares what runs of figures/study.toml give: an effect of the factorial
that a part is, such as "position: rotary" or "position x embedding: rotary x convolution", or a sum
of arms, such as "+ ViN:epochs=4 - ViT:epochs=4", seed by seed.
"""

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


def register() -> pd.DataFrame:
    """Every hypothesis, a row each: figures/study.csv."""
    table = pd.read_csv(paths.shipped("study.csv"), keep_default_na=False)
    return table.astype({"margin": float})


def levels(name: str) -> dict[str, str]:
    """What a ViX has of each factor."""
    row = system(name)
    rotary, hybrid = (word in row.family.kind for word in ("RoPE", "hybrid"))
    return {
        "position": FACTORS["position"][rotary],
        "embedding": FACTORS["embedding"][hybrid],
        "mechanism": row.mixer,
    }


@checked
def effect(row: Mapping, records: pd.DataFrame) -> Effect | None:
    """What a hypothesis compares, in points of accuracy; None while a run is missing."""
    own = records[records["status"].isin(KNOWN)]
    own = own.dropna(subset=[RESPONSE]).set_index("name")[RESPONSE]
    signs = arms(row)
    if any(run.name not in own for _, runs in signs for run in runs):
        return None
    if row["compares"].startswith("+"):
        values = [sign * own[[run.name for run in runs]].to_numpy() for sign, runs in signs]
        total = pd.Series(sum(values))
        return paired(total, 0 * total)
    cells = [
        {"seed": run.seed, RESPONSE: own[run.name], **levels(run.system)}
        for _, runs in signs
        for run in runs
    ]
    frame = pd.DataFrame(cells)
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
    seen = [effect(row, records) for row in rows]
    raw = [
        float("nan") if e is None else p_value(e, row["test"], row["margin"])
        for row, e in zip(rows, seen, strict=True)
    ]
    nothing = Effect(*[float("nan")] * 3, 0, 0, 0)
    seen = [nothing if e is None else e for e in seen]
    table = table.assign(p=raw, adjusted=holm(raw), effect=[e.value for e in seen])
    table = table.assign(half=[e.half for e in seen], agreeing=[e.agreeing for e in seen])
    table["verdict"] = [
        decides(e, row["test"], row["margin"], row["seeds"], adjusted)
        for row, e, adjusted in zip(rows, seen, table["adjusted"], strict=True)
    ]
    claim = ["compares", "test", "margin"]
    budgets = {
        key: dict(zip(own["part"], own["verdict"], strict=True))
        for key, own in table.groupby(claim)
    }
    keys = table[claim].itertuples(index=False, name=None)
    table["overall"] = [
        stands(budgets[key]) if len(budgets[key]) > 1 else word
        for key, word in zip(keys, table["verdict"], strict=True)
    ]
    return table
