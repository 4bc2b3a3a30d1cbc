"""Tables of records and benchmarks as a reader sees them: plain DataFrames of text."""

import os
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial

import numpy as np
import pandas as pd
import torch

from vixlib import paths
from vixlib.data import SOURCES
from vixlib.errors import checked, one_of
from vixlib.paper.runs import PROFILES, counted, published
from vixlib.paper.statistics import interval
from vixlib.systems import build

_labels = tomllib.loads((paths.PACKAGE / "paper" / "labels.toml").read_text())
LABELS, COST_LABELS = _labels["records"], _labels["costs"]  # of columns, with units


def title(dataset: str) -> str:
    """A dataset as readers know it: ours by its title, somebody's own by its name."""
    return SOURCES[dataset].title if dataset in SOURCES else dataset


def machine(profile: str) -> pd.DataFrame:
    """This machine, and what the profile means."""
    p = PROFILES[one_of("profile", profile, PROFILES)]
    cuda = torch.cuda.is_available()
    size = f"{p.image_size} × {p.image_size}"
    some = "all" if p.train_images is None else f"{p.train_images:,}"
    rows = {
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {os.cpu_count()} cores",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "profile": profile,
        "images": f"{title(p.dataset)}, {some} for training, {size}",
        "training": f"{p.epochs} epochs unless the plan says otherwise",
    }
    return pd.DataFrame({"": rows})


@checked
def plan(runs: Iterable) -> pd.DataFrame:
    """The runs before any training, a row each."""
    names = "system", "dataset", "tokens", "epochs", "batch", "recipe", "seed"
    runs = [*runs]
    rows = [asdict(run) | run.settings | {"tokens": f"{run.tokens:,}"} for run in runs]
    table = pd.DataFrame(rows, [run.name for run in runs], names).rename_axis(columns="run")
    return table.assign(dataset=table["dataset"].map(title))


@checked
def results(
    records: pd.DataFrame, quantity: str = "top1_best", paper_dataset: str = "cifar10"
) -> pd.DataFrame:
    """Logged by the authors, ours (last epoch), the cost: a row a system."""
    one_of("quantity", quantity, published()["quantity"].unique())
    logged = published().query("dataset == @paper_dataset and quantity == @quantity")
    logged = pd.to_numeric(logged.set_index("system")["value"])
    # as released, the best epoch on the test set stands beside the last
    best = [quantity] if quantity in records and records[quantity].notna().any() else []
    rows = {}
    for name, own in having(records).groupby("system", sort=False):
        theirs = logged.get(name) if paper_dataset in set(own["dataset"]) else None
        costs = own["parameters"], own["flops"] / 1e6, own["peak_memory_mb"]
        stale = ["stale"] if "stale" in set(own["status"]) else []
        missing = own.loc[own["status"] == "missing", "command"]
        ours = [_spread(own, column) for column in ("top1", *best)]
        row = [_number(theirs, 2), *ours, *(_number(cost.mean()) for cost in costs)]
        rows[name] = [*row, "; ".join([*stale, *missing[:1]])]
    source = "published" if quantity == "top1_published" else "logged"
    names = [source, "ours", *["ours best" for _ in best], "parameters", "MFLOPs", "peak MB"]
    table = pd.DataFrame.from_dict(rows, "index", columns=[*names, "status"])
    return table.rename_axis(columns="system")


@checked
def measured(
    rows: pd.DataFrame,
    value: str = "ratio",
    index: Sequence[str] = ("mechanism", "peer"),
    columns: str = "tokens",
) -> pd.DataFrame:
    """A value of benchmarks as text, its median with quartiles where it has them."""
    names = [f"{value}_{part}" for part in ("median", "q25", "q75")]
    names = names if names[0] in rows else [value]
    have = rows.dropna(subset=names)
    form = "{:.2f} ({:.2f}–{:.2f})" if len(names) > 1 else "{:.2f}"
    text = [form.format(*numbers) for numbers in have[names].itertuples(index=False)]
    table = have.assign(text=pd.Series(text, have.index, str))
    return table.pivot_table("text", [*index], columns, "first", sort=False).fillna("")


@checked
def crossovers(rows: pd.DataFrame, quantity: str, against: dict[str, str]) -> pd.DataFrame:
    """Over which tokens each mechanism is below those of `against`: a column by their titles."""
    table = rows.pivot_table(quantity, "tokens", "mechanism", sort=False)
    table = table.reindex(columns=[*dict.fromkeys([*table, *against])]).sort_index()
    others = [name for name in table if name not in against]
    said = {to: table[others].apply(cheaper, against=table[one]) for one, to in against.items()}
    return pd.DataFrame(said, others)


@checked
def sizes(names: Iterable[str], **settings) -> pd.DataFrame:
    """Parameters and millions of FLOPs an image of each system, at the settings of `build`."""
    found = [(name, counted(partial(build, name, **settings))) for name in names]
    rows = [(name, own["parameters"], own["flops"] / 1e6) for name, own in found]
    return pd.DataFrame(rows, columns=["system", "parameters", "mflops"])


def _spread(own: pd.DataFrame, quantity: str) -> str:
    values = own[quantity].dropna()
    text = _number(values.mean(), 1)
    text += f" ± {interval(values):.1f} ({len(values)})" if len(values) > 1 else ""
    lost = own["diverged_step"].count()
    number = f"{lost} " if lost > 1 or text else ""
    return ", ".join(filter(None, [text, f"{number}diverged" if lost else ""]))


def _number(value: float | None, digits: int = 0) -> str:
    return "" if pd.isna(value) else f"{value:,.{digits}f}"


def crossings(one: pd.Series, other: pd.Series) -> list[tuple[float, float]]:
    """Where two lines over the same x cross, straight on logarithmic axes between their points."""
    x, y = (np.log(np.asarray(values, float)) for values in (one.index, one))
    gap = np.log(np.asarray(other, float)) - y
    gap[gap == 0] = np.finfo(float).tiny  # touching at a point counts once, where a line goes on
    (i,) = np.nonzero(gap[:-1] * gap[1:] < 0)
    share = gap[i] / (gap[i] - gap[i + 1])
    at, heights = (np.exp(v[i] + share * (v[i + 1] - v[i])).tolist() for v in (x, y))
    return [*zip(at, heights, strict=True)]


def cheaper(line: pd.Series, against: pd.Series) -> str:
    """Over which x a line lies below another, in words; both have their x as index."""
    both = pd.DataFrame({"line": line, "against": against}).dropna()
    if both.empty:
        return "not measured"
    inner = [float(f"{x:.3g}") for x, _ in crossings(both["against"], both["line"])]
    edges = [f"{x:,.0f}" for x in (both.index[0], *inner, both.index[-1])]
    first = int(both["line"].iloc[0] >= both["against"].iloc[0])
    ranges = zip(edges[first::2], edges[first + 1 :: 2], strict=False)
    return " and ".join(map(" to ".join, ranges)) or f"nowhere to {edges[-1]}"


def having(records: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Records that have these columns; every column read here is there, be it empty."""
    if len(records):
        one_of("column", "system", records)
    known = "system", "status", "command", "curve", "diverged_step", *LABELS
    return records.reindex(columns=[*dict.fromkeys([*records, *known])]).dropna(subset=[*columns])


def lost(records: pd.DataFrame) -> str:
    """Which systems have a run that diverged; empty without one."""
    names = dict.fromkeys(having(records, "diverged_step")["system"])
    return f"diverged: {', '.join(names)}" if names else ""
