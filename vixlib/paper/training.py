"""Training runs: one or many, from wherever they were left, each into its record."""

import math
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from functools import partial
from itertools import takewhile
from multiprocessing import get_context, parent_process
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor

from vixlib import data, measure
from vixlib.errors import BadInput, CheckpointError, Diverged, checked
from vixlib.paper.provenance import origin
from vixlib.paper.records import STATUS, USUAL, files, fingerprint, load, packed, write
from vixlib.paper.runs import Run
from vixlib.train import FIRST, Checkpoint, autocast, compile_blocks, fit, judged
from vixlib.weights import save


@checked
def perform(
    run: Run,
    *,
    folder: str | Path | None = None,
    device: str | None = None,
    compiled: bool | None = None,
    dirty: bool = False,
    deadline: float = math.inf,
    report: Callable[[dict], None] = lambda row: None,
) -> dict | None:
    """Train a run (or go on with it) and write its record; None where the deadline came first.

    `folder` holds the dataset. Blocks are compiled on a GPU, unless `compiled` says otherwise. The
    trained weights stay in build/<profile>/weights/. A run that diverges has a record, too, its
    `status` "diverged": the curve until then, where, no accuracy. Records that are kept, those of
    every profile but quick, are of committed code, unless `dirty` allows another.
    """
    device, losses, s = data.resolve_device(device), [], run.settings
    compiled = device.type == "cuda" if compiled is None else compiled
    model, dataset, watched, options = _prepared(run, folder, device, compiled)
    made_by = origin(clean=run.profile != "quick" and not dirty)
    identity = f"{run.name} {sorted(s.items())} {made_by['code']}"
    checkpoint = Checkpoint(files(run).checkpoint, identity, fingerprint(run))
    options |= {"checkpoint": checkpoint, "deadline": deadline, "report": report}
    try:
        curve = fit(model, watched, losses=losses, **options)
        if curve is None:
            return None
        hits = judged(model, dataset, precision=s["precision"]).cpu().double()
        if hits.isnan().any():
            steps = math.ceil(len(dataset.train_images) / s["batch"])
            raise Diverged(s["epochs"], steps, s["lr"], curve=curve)
        top1, top5 = (100 * hits.mean(0)).tolist()
        known = {"top1": round(top1, 4), "top5": round(top5, 4), "right": packed(hits[:, 0])}
    except Diverged as error:
        curve, known = error.curve, dict.fromkeys(("top1", "top5", "right"))
        known["status"] = "diverged"
        known |= {"diverged_epoch": error.epoch, "diverged_step": error.step}
    record = _identity(run, dataset) | made_by | _costs(run, dataset, device)
    record |= {"compiled": compiled, "load": round(os.getloadavg()[0], 1)} | known
    record |= {"first_losses": _finite(losses)}
    record |= _of_curve(curve, "status" in known, s["best_on_test"])
    _write(run, record, model, dataset.classes)
    if "status" not in record:  # else the checkpoint stays, the last good state
        checkpoint.delete()
    return record


def _prepared(
    run: Run, folder: str | Path | None, device: torch.device, compiled: bool
) -> tuple[torch.nn.Module, data.Dataset, data.Dataset, dict]:
    """A run's untrained model, its data, what training sees of them, and options of fit.

    Where images are held out for validation, training sees them as its test images.
    """
    s, model = run.settings, run.build().to(device)
    if compiled:
        compile_blocks(model)
    dataset = data.load(s["dataset"], folder=folder, size=s["image_size"], device=str(device))
    held = s["validation_images"]
    watched = data.held_out(dataset, held) if held else dataset
    watched = data.subset(watched, train=s["train_images"], seed=run.seed)
    tested = {part: getattr(dataset, part) for part in ("test_images", "test_labels")}
    names = "epochs", "batch", "lr", "weight_decay", "warm_up", "cosine", "augmented", "precision"
    options = {name: s[name] for name in names}
    options |= {"seed": run.seed, "watch": s["watch_images"]}
    return model, replace(watched, **tested), watched, options


def replay(
    run: Run, *, folder: str | Path | None = None, device: str | None = None, whole: bool = False
) -> tuple[list[float], list[dict]]:
    """Losses of a run's FIRST steps, trained again, or of its `whole` first epoch, with its row."""
    device, losses = data.resolve_device(device), []
    model, _, watched, options = _prepared(run, folder, device, device.type == "cuda")
    options |= {"epochs": 1} if whole else {"steps": FIRST}
    try:
        curve = fit(model, watched, losses=losses, **options)
    except Diverged as error:
        curve = error.curve
    return _finite(losses), curve or []


def _finite(losses: list[Tensor]) -> list[float]:
    """Losses as exact numbers, those before the first that is none."""
    return [*takewhile(math.isfinite, map(float, losses))]


def _identity(run: Run, dataset: data.Dataset) -> dict:
    """Columns of a record: which run it is."""
    changed = {"overrides": ",".join(f"{key}={value}" for key, value in run.overrides)}
    sizes = {part: len(getattr(dataset, part)) for part in ("train_images", "test_images")}
    known = asdict(run) | {"name": run.name, "tokens": run.tokens}
    known |= {"fingerprint": [round(value, 5) for value in fingerprint(run).tolist()]}
    versions = f"torch {torch.__version__}, python {platform.python_version()}"
    return known | changed | run.settings | sizes | {"versions": versions}


def _costs(run: Run, dataset: data.Dataset, device: torch.device) -> dict:
    """Columns of a record: what its model costs, and where."""
    model = run.build()
    name = measure.device_name(device)
    if device.type == "cpu":
        units = torch.backends.cpu.get_cpu_capability()  # which products it has
        name = f"CPU, {torch.get_num_threads()} thread(s): {name}, {units}"
    return {
        "parameters": measure.parameters(model),
        "flops": measure.flops(run.build, (1, 3, *model.size)),
        "peak_memory_mb": round(_training_memory(run, dataset, device), 1),
        "device": name,
    }


def _of_curve(curve: list[dict], diverged: bool, best_on_test: bool) -> dict:
    """Columns of a record: how the training went; of one that diverged, no last epoch."""
    last = {} if diverged else curve[-1]
    best = max(curve, key=lambda row: row["top1"]) if best_on_test and last else {}
    seconds, cpu = ([row[name] for row in curve] for name in ("seconds", "cpu_seconds"))
    return {
        "top1_best": best.get("top1"),
        "epoch_best": best.get("epoch"),
        "train_accuracy": last.get("train_accuracy"),
        "loss": last.get("loss"),
        "seconds_per_epoch": round(statistics.median(seconds), 2) if seconds else None,
        "cpu_seconds": round(sum(cpu), 1),
        "curve": [{k: v for k, v in row.items() if "seconds" not in k} for row in curve],
    }


def _write(run: Run, record: dict, model: torch.nn.Module, classes: tuple[str, ...]) -> None:
    """The weights, then the record; of a run that diverged no weights, not earlier ones either."""
    weights, path = files(run).weights, files(run).record
    if "status" in record:
        weights.unlink(missing_ok=True)
    else:
        save(model, weights, classes=classes)
    write(path, record)


@checked
def read(
    wanted: Iterable[Run],
    *,
    train: bool = False,
    folder: str | Path | None = None,
    dirty: bool = False,
) -> pd.DataFrame:
    """The records of some runs, a row each; `status` is one of STATUS.

    With `train`, what is missing or stale is trained here and now, one line an epoch. Without it,
    a missing record is a row without numbers; `command` says how to make it.
    """
    rows = []
    for run in wanted:
        record = load(run)
        if train and (record is None or record["status"] == "stale"):
            record = {"status": "trained"}
            record |= perform(run, folder=folder, dirty=dirty, report=partial(tell, run))
        known = record or {**asdict(run), "name": run.name, **run.settings, "status": "missing"}
        rows.append(known | {"command": run.command})
    frame = pd.DataFrame(rows)
    counts = {status: int((frame["status"] == status).sum()) for status in STATUS}
    told = {status: n for status, n in counts.items() if n or status in USUAL}
    print(", ".join(f"{count} {status}" for status, count in told.items()))
    return frame


def say(run: Run, record: dict | None, more: str = "") -> None:
    """Prints in a line what became of a run."""
    if record is None:
        end = "out of time; the same command goes on"
    elif record["top1"] is None:
        kept = files(run).checkpoint if files(run).checkpoint.exists() else None
        where = record["diverged_epoch"], record["diverged_step"], record["lr"]
        end = f"{Diverged(*where, kept)}; recorded in {files(run).record}"
    else:
        end = f"top-1 {record['top1']:.2f} %, recorded in {files(run).record}"
    print(f"{run.name}: {end}{more}", flush=True)


@checked
def perform_all(
    wanted: list[Run],
    *,
    workers: int = 1,
    deadline: float = math.inf,
    done: Callable[[Run, dict | None], None] = say,
    **options,
) -> None:
    """Train many runs, `workers` processes of one thread each; `done` hears of each run's end.

    A single worker is this process, with a progress bar at a terminal. `options` are perform's.
    """
    if workers == 1:
        torch.set_num_threads(1)
        for run in wanted:
            if time.monotonic() < deadline:
                done(run, perform(run, deadline=deadline, report=partial(tell, run), **options))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = {pool.submit(_in_worker, run, deadline=deadline, **options): run for run in wanted}
        try:
            for job in as_completed(jobs):
                done(jobs[job], job.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _in_worker(run: Run, **options) -> dict | None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TQDM_DISABLE"] = "1"  # bars of several processes would overwrite each other
    return perform(run, report=partial(tell, run), **options)


def _end_with_parent() -> None:
    """A worker whose parent was killed would train on, unseen."""
    parent_process().join()
    os._exit(1)


def tell(run: Run, row: dict) -> None:
    """Prints the line of an epoch."""
    epoch = f"epoch {row['epoch']}/{run.settings['epochs']}, loss {row['loss']:.3f}"
    accuracy = f"train {row['train_accuracy']:.1f} %, test {row['top1']:.1f} %"
    print(f"{run.name}: {epoch}, {accuracy}, {row['seconds']:.0f} s", flush=True)


@checked
def trained(run: Run) -> torch.nn.Module:
    """The model of a run with the weights that its training left on this machine."""
    if not files(run).weights.exists():
        raise BadInput(f"no weights in {files(run).weights}; train them: {run.command}")
    model = run.build()
    try:
        model.load_state_dict(load_file(files(run).weights))
    except Exception as error:
        raise CheckpointError(f"unreadable weights {files(run).weights}; delete them") from error
    return model.eval()


def _training_memory(run: Run, dataset: data.Dataset, device: torch.device) -> float:
    some = slice(0, run.settings["batch"])
    images, labels = data.normalise(dataset.train_images[some]), dataset.train_labels[some]
    with autocast(device, run.settings["precision"]):
        return measure.training_memory(run.build().to(device), images, labels)
