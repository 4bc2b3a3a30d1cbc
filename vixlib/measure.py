"""What a model costs: parameters, FLOPs, peak memory; and what the benchmarks' records say."""

import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vixlib import ROOT
from vixlib.attention import Grid, Mechanism, construct
from vixlib.data import check_labels
from vixlib.errors import checked, held, one_of
from vixlib.models.zoo import build
from vixlib.train import descend

TABLES = "layers", "models", "pipeline", "scaling", "small", "systems", "fits"  # of the benchmarks
QUANTITIES = {  # of targets: the column, and whether more is better
    "times faster": ("ratio_median", True),
    "times less memory": ("memory", True),
    "exponent": ("exponent_median", False),
}
COLUMNS = [  # that a table of benchmarks has, measured or not
    *("machine", "cell", "mechanism", "peer", "tokens", "batch", "direction", "note"),
    *("ratio_median", "ratio_q25", "ratio_q75", "ours_ms", "peer_ms"),
    *("ours_peak_mb", "peer_peak_mb", "exponent_median", "exponent_q25", "exponent_q75"),
    *("microseconds_an_image", "model", "quantity", "budget_gb", "largest", "side"),
    *("counted_mb", "measured_mb", "device", "clock", "precision", "compiled", "threads"),
    *("allocator", "versions"),
]


@checked
def parameters(model: nn.Module) -> int:
    """How many numbers training changes: all parameters, wherever they are kept."""
    return sum(p.numel() for p in model.parameters())


@checked
def flops(make: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> int:
    """Floating-point operations of one forward pass, 2 for each multiply-add.

    Counted on the meta device, where nothing is computed and torch's counter sees fused attention
    (on a CPU it counts that as none). Softmax, norms and Fourier transforms are not counted.
    """
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = make()
        held("made model", model, nn.Module)
        model.eval()(*(torch.empty(shape) for shape in shapes))
    return counter.get_total_flops()


@checked
def mechanism_flops(
    mechanism: Callable[..., Mechanism], tokens: int, *, heads: int = 4, dim_head: int = 32
) -> int:
    """FLOPs of a mechanism alone on one image of `tokens` tokens in a row."""
    grid, shape = Grid(1, tokens), (1, heads, tokens, dim_head)
    return flops(lambda: construct(mechanism, heads, dim_head, grid, grid), shape, shape, shape)


@checked
def sizes(names: Iterable[str], **settings) -> pd.DataFrame:
    """Parameters and millions of FLOPs an image of each system, at the settings of `build`."""
    rows = []
    for name in names:
        with torch.device("meta"):
            model = build(name, **settings)
        shape = (1, 3, *model.size)
        rows.append((name, parameters(model), flops(lambda m=model: m, shape) / 1e6))
    return pd.DataFrame(rows, columns=["system", "parameters", "mflops"])


@checked
def training_memory(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Peak MB that one training step holds beyond model and batch: activations, gradients, Adam.

    From CUDA's allocator, or on a CPU from the profiler's record of every allocation. The model
    takes that step: measure a copy.
    """
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        scores = model(images)
        check_labels(labels, *scores.shape)  # on a GPU a wrong one ends the process
        descend(optimizer, scores, labels)

    return peak_memory(step, images.device)


def peak_memory(call: Callable[[], object], device: torch.device) -> float:
    """Most MB that torch held during a call, beyond what it held before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with _silence(), torch.autograd.profiler.profile(profile_memory=True) as profile:
        call()
    now = peak = 0
    for event in profile.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak / 1e6


def device_name(device: torch.device) -> str:
    """Such as "NVIDIA H200" or "AMD EPYC"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1] if found else platform.machine()


@checked
def benchmark(table: str, kind: str | None = None) -> pd.DataFrame:
    """A table of benchmarks/records: all machines, or the first of a kind ("cpu", "cuda").

    A machine is a device with its settings. `package`: the peer is an installed package that
    computes what ours does, not a plain form or another mechanism; `memory`: how many times less
    ours holds. Empty where nothing was measured.
    """
    one_of("table", table, TABLES)
    files = sorted((ROOT / "benchmarks" / "records").glob(f"*/{table}.json"))
    rows = [row for file in files for row in json.loads(file.read_text())]
    for row in rows:
        threads = f"{row['threads']} thread" + "s" * (row["threads"] != 1)
        parts = [row["device"], row["precision"], "compiled" * row["compiled"]]
        parts += [threads] * (row["clock"] != "CUDA events")
        parts += [row["allocator"]] * (row["allocator"] not in ("glibc", "torch"))
        row["machine"] = ", ".join(filter(None, parts))
    frame = pd.DataFrame(rows).reindex(columns=COLUMNS)
    frame["memory"] = frame["peer_peak_mb"] / frame["ours_peak_mb"]
    text = frame[["peer", "versions"]].astype(object).fillna("-")
    named = text.itertuples(index=False)
    frame["package"] = pd.Series([peer in versions for peer, versions in named], dtype=bool)
    if kind is not None:
        cuda = one_of("kind", kind, ("cpu", "cuda")) == "cuda"
        frame = frame[(frame["clock"] == "CUDA events") == cuda]
        frame = frame[frame["machine"] == min(frame["machine"], default="")]
    return frame.reset_index(drop=True)


def best_peers(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each cell and direction the row of the fastest package."""
    timed = rows[rows["package"]].dropna(subset=["ratio_median"])
    fastest = timed.groupby(["cell", "direction"], sort=False)["ratio_median"].idxmin()
    return timed.loc[fastest]


@checked
def targets(kind: str = "cpu") -> pd.DataFrame:
    """benchmarks/targets.csv, and what was seen: a row of text for each.

    Where a row names several numbers of tokens or directions, the worst of what was seen has to
    keep what was asked. A peer "package" is the fastest one.
    """
    names = "table", "mechanism", "tokens", "direction", "peer", "quantity", "asked", "stretch"
    file = ROOT / "benchmarks" / "targets.csv"
    asked = pd.read_csv(file, dtype=str, keep_default_na=False) if file.exists() else None
    asked = pd.DataFrame(columns=names) if asked is None else asked
    measured = {table: benchmark(table, kind) for table in set(asked["table"])}
    found = [_seen(row, measured[row["table"]]) for row in asked.to_dict("records")]
    return asked.assign(**{n: [row[n] for row in found] for n in ("seen", "verdict")})


def _seen(target: dict, rows: pd.DataFrame) -> dict:
    column, more = QUANTITIES[one_of("quantity", target["quantity"], QUANTITIES)]
    if target["peer"] == "package":
        rows = best_peers(rows)
    elif target["peer"]:
        rows = rows[rows["peer"] == target["peer"]]
    rows = rows[(rows["mechanism"] == target["mechanism"]) & rows[column].notna()]
    tokens, ways = target["tokens"].split() or [""], target["direction"].split(", ")
    values = []
    for n in tokens:
        for way in ways:
            here = rows[(rows["direction"] == way) & ((rows["tokens"] == float(n)) if n else True)]
            values += here[column].tolist()[:1]
    verdict = "not measured"
    if len(values) == len(tokens) * len(ways):
        bounds = [float(target[name]) for name in ("asked", "stretch") if target[name]]
        kept = [min(values) >= x if more else max(values) <= x for x in bounds]
        verdict = ("missed", "reached", "stretch reached")[sum(kept)]
    return {"seen": " · ".join(f"{value:.2f}" for value in values), "verdict": verdict}


@contextmanager
def _silence() -> Iterator[None]:
    """Keeps the profiler's own debug lines out of standard error, where no setting does."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
