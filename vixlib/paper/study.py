"""The registered study: what is claimed before it is run, and what its records decide.

A row of figures/study.csv compares what runs of figures/study.toml give: an effect of the factorial
that a part is, such as "position: rotary" or "position x embedding: rotary x convolution", or a sum
of arms, such as "+ ViN:epochs=4 - ViT:epochs=4", seed by seed.
"""

import math
import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import pandas as pd

from vixlib import paths
from vixlib.errors import BadInput, checked, one_of
from vixlib.paper.records import KNOWN
from vixlib.paper.runs import Run, arm, queue, registered
from vixlib.paper.statistics import Effect, contrast, decides, holm, p_value, stands
from vixlib.systems import system

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
        "position": "rotary" if "RoPE" in kind else "learned",
        "embedding": "convolution" if "hybrid" in kind else "patch",
        "mechanism": system(name).mixer,
    }


@checked
def effect(row: Mapping, records: pd.DataFrame) -> Effect | None:
    """What a hypothesis compares, in points of accuracy; None while no seed is whole.

    Of whole seeds alone, fewer than the register has, it is a value without an interval.
    """
    known = records[records["status"].isin(KNOWN)].reindex(columns=["name", RESPONSE]).dropna()
    own, weighted = known.set_index("name")[RESPONSE].to_dict(), arms(row)
    wanted = [run for _, runs in weighted for run in runs]
    lacking = {run.seed for run in wanted if _name(run) not in own}
    seeds = {run.seed for run in wanted} - lacking
    if not seeds:
        return None
    frame = pd.DataFrame(
        {"arm": _arm(run), "seed": run.seed, RESPONSE: own[_name(run)]}
        for run in dict.fromkeys([*registered()[row["part"]], *wanted])
        if run.seed in seeds and _name(run) in own
    )
    # all arms of the part that have every seed tell how far runs spread
    whole = frame.groupby("arm")["seed"].transform("size") == len(seeds)
    weights = Counter()
    for weight, runs in weighted:
        weights[_arm(runs[0])] += weight
    found = contrast(frame[whole], RESPONSE, weights, "arm", "seed")
    return found._replace(half=math.nan, p=math.nan) if lacking else found


_name = cache(Run.name.fget)


@cache
def _arm(run: Run) -> str:
    """The name that the runs of all seeds share."""
    return replace(run, seed=0).name


def arms(row: Mapping) -> list[tuple[float, list[Run]]]:
    """What a hypothesis weighs: of each arm its weight and a run a seed, all registered."""
    return _arms(row["hypothesis"], row["part"], row["compares"], row["seeds"])


@cache
def _arms(hypothesis: str, part: str, compares: str, seeds: int) -> list[tuple[float, list[Run]]]:
    known = registered()[one_of("part", part, registered())]
    if not compares.startswith("+"):
        return _factorial(compares, known)
    how, signs = (known[0].profile, known[0].recipe), []
    for sign, text in re.findall(r"([+-]) (\S+)", compares):
        signs.append((int(f"{sign}1"), [arm(text, *how, seed) for seed in range(seeds)]))
    for run in {run for _, runs in signs for run in runs}.difference(queue("study")):
        raise BadInput(f"{hypothesis}: {run.name} is not registered")
    return signs


def _factorial(effect: str, part: list[Run]) -> list[tuple[float, list[Run]]]:
    """The arms of a factorial (Yates, 1937), weighted for a main effect or an interaction.

    "position: rotary" is the mean of the arms with rotary positions minus that of those that have
    ViT's, learned ones; "position x embedding: rotary x convolution" a difference of such.
    """
    term, _, label = effect.partition(": ")
    chosen = dict(zip(term.split(" x "), label.split(" x "), strict=True))
    cells, vit = {run.system: levels(run.system) for run in part}, levels("ViT")
    for factor, level in chosen.items():
        one_of("level", level, {cell[one_of("factor", factor, vit)] for cell in cells.values()})
    signs = {
        name: math.prod((cell[of] == level) - (cell[of] == vit[of]) for of, level in chosen.items())
        for name, cell in cells.items()
    }
    each = sum(map(abs, signs.values())) / 2 ** len(chosen)  # arms of a mean
    return [(signs[name] / each, [run for run in part if run.system == name]) for name in cells]


@checked
def verdicts(records: pd.DataFrame) -> pd.DataFrame:
    """The register with each effect, its interval and p, adjusted over all of them, and verdict.

    `overall` is the verdict at all budgets, rows that compare the same in different parts, or how
    many seeds are there; `scope` is what was trained.
    """
    table = register()
    rows = table.to_dict("records")
    seen = [effect(row, records) or NOTHING for row in rows]
    asked = [(e, row["test"], row["margin"]) for e, row in zip(seen, rows, strict=True)]
    table["p"] = [p_value(*claim) for claim in asked]
    table["adjusted"] = holm(table["p"])
    table[["effect", "half"]] = [(e.value, e.half) for e in seen]
    table[["agreeing", "pairs"]] = [(e.agreeing, e.pairs) for e in seen]
    table["scope"] = [scope(row) for row in rows]
    decided = zip(asked, table["seeds"], table["adjusted"], strict=True)
    table["verdict"] = [decides(*claim, *rest) for claim, *rest in decided]
    budgets = table.groupby(["compares", "test", "margin"])["verdict"]
    table["overall"] = budgets.transform(lambda words: stands(words.to_dict()))
    begun = table["pairs"].between(1, table["seeds"] - 1)
    of_all = table["pairs"].astype(str) + " of " + table["seeds"].astype(str) + " seeds"
    table.loc[begun, "overall"] += " (" + of_all[begun] + ")"
    return table


def scope(row: Mapping) -> str:
    """What a hypothesis was tried on: systems, tokens, epochs, seeds."""
    wanted = [run for _, runs in arms(row) for run in runs]
    systems = [*dict.fromkeys(run.system for run in wanted)]
    few = ", ".join(systems) if len(systems) < 3 else f"{len(systems)} systems"
    epochs = "/".join(map(str, sorted({run.settings["epochs"] for run in wanted})))
    tokens = wanted[-1].tokens  # as many for all; a ResNet, which has none, is named first
    return f"{few}, {tokens:,} tokens, {epochs} epochs, {row['seeds']} seeds"


@checked
def told(judged: pd.DataFrame) -> pd.DataFrame:
    """Verdicts as a reader sees them: claim, effect, interval, verdict, scope."""
    value, half = judged["effect"], judged["half"]
    low, high = (value - half).map(points), (value + half).map(points)
    between = (low + " to " + high).where(half.notna(), "")
    table = {"effect": value.map(points), "95 % interval": between, "verdict": judged["overall"]}
    table = pd.DataFrame(table | {"scope": judged["scope"]}).set_axis(judged["says"])
    return table.rename_axis(None, columns="claim")


def points(value: float) -> str:
    """Points of accuracy with their sign; empty for NaN."""
    return "" if math.isnan(value) else f"{round(value, 1) + 0.0:+.1f}".replace("-", "−")


def sentence(row: Mapping) -> str:
    """A row of verdicts in words; they change with the records."""
    seen = f"{row['overall'].capitalize()}: {points(row['effect'])}"
    if math.isnan(row["half"]):
        so_far = f"{seen} points so far" if row["pairs"] else "Not tested yet"
        return f"{row['says']} {so_far} ({row['scope']}; `vix train --queue study`)."
    seen += f" ± {row['half']:.1f} points"
    agree = f"of this sign in {row['agreeing']} of {row['pairs']} seeds"
    kept = f"; kept means within {row['margin']:g} points" if row["test"] == "keeps" else ""
    return f"{row['says']} {seen}, {agree} ({row['scope']}{kept})."


@checked
def costs(records: pd.DataFrame) -> pd.DataFrame:
    """Runs and core-hours of each part: those that are there, those that were registered."""
    parts = tomllib.loads(paths.shipped("study.toml").read_text())
    known, rows = records[records["status"].isin(KNOWN)], []
    for part, runs in registered().items():
        there = known[known["name"].isin([run.name for run in runs])]
        hours = there.reindex(columns=["cpu_seconds"]).sum().item() / 3600
        rows.append([f"{len(there)} of {len(runs)}", round(hours, 1), parts[part]["hours"]])
    columns = ["runs", "core-hours", "estimated for all"]
    return pd.DataFrame(rows, [*parts], columns).rename_axis(columns="part")


@checked
def rates(records: pd.DataFrame) -> pd.DataFrame:
    """Part 0: the last validation accuracy of each system, a column a learning rate."""
    names = [run.name for run in registered()["0"]]
    own = records[records["name"].isin(names) & records["status"].isin(KNOWN)]
    last = [curve[-1]["top1"] for curve in own.reindex(columns=["curve"])["curve"]]
    table = own.assign(last=last).pivot_table("last", "system", "lr", sort=False)
    return table.sort_index(axis=1).rename_axis(index=None)


@checked
def chosen_rate(table: pd.DataFrame, usual: float = 0.001, near: float = 0.1) -> float | None:
    """The rule of part 0: the highest mean of `rates`, the usual one within `near` of it.

    None while a run is missing.
    """
    wanted = registered()["0"]
    if table.count().sum() < len(wanted):
        return None
    means = table.mean()
    return usual if means[usual] >= means.max() - near else means.idxmax()
