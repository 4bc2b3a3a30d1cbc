"""Training runs: one or many, from wherever they were left, each into its record."""

import glob
import json
import math
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import islice, takewhile
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path

import pandas as pd
import torch
from filelock import FileLock, Timeout
from pebble import ProcessExpired, ProcessPool
from pebble.pool.process import WORKERS_NAME
from torch import Tensor

from vixlib import data, measure, weights
from vixlib.checkpoint import check_room, stoppable, stopping
from vixlib.distributed import Team, recompute_blocks
from vixlib.errors import (
    BadInput,
    CheckpointError,
    Diverged,
    RunError,
    checked,
    enough_memory,
    refused,
)
from vixlib.models.host import resized
from vixlib.paper.provenance import origin
from vixlib.paper.records import (
    STATUS,
    UNKEPT,
    USUAL,
    files,
    fingerprint,
    load,
    packed,
    unfinished,
    versions,
    write,
)
from vixlib.paper.runs import Run, counted
from vixlib.train import FIRST, Checkpoint, TimeUp, autocast, compile_blocks, fit, judged

DONE, FAILED, LEFT, REFUSED = "done", "failed", "left", "refused"  # of runs of a queue


@checked
def perform(
    run: Run,
    *,
    folder: str | Path | None = None,
    images: data.Dataset | None = None,
    start: Path | None = None,
    device: str | None = None,
    compiled: bool | None = None,
    accumulate: int = 1,
    recompute: bool = False,
    dirty: bool = False,
    deadline: float = math.inf,
    report: Callable[[dict], None] = lambda row: None,
) -> dict | None:
    """Train a run (or go on with it) and write its record; None where the deadline came first.

    `folder` holds the dataset, or it is `images`. Weights of the file `start` are gone on from, the
    last layer fresh where classes differ. Blocks are compiled on a GPU, unless `compiled` says
    otherwise, several processes train, or `accumulate` or `recompute`, which are fit's, are asked
    for. The trained weights stay in build/<profile>/weights/. A run that diverges has a record,
    too, its `status` "diverged": the curve until then, where, no accuracy. Records that are kept
    are of committed code, unless `dirty` allows another. OSError where the disk has no room.
    """
    device, losses, s = data.resolve_device(device), [], run.settings
    spared, team = {"accumulate": accumulate, "recompute": recompute}, Team(accumulate)
    plain = not team and not recompute
    compiled = device.type == "cuda" and plain if compiled is None else compiled
    if compiled and not plain:
        raise BadInput("compile: not with several processes, pieces or recomputed blocks")
    dataset, watched, options = _prepared(run, folder, device, images)
    model = (run.build() if start is None else _started(run, start)).to(device)
    if compiled:
        compile_blocks(model)
    made_by = origin(clean=run.profile not in UNKEPT and not dirty)
    seen = f"{start} {dataset.classes} {len(dataset.train_labels)}"
    identity = f"{run.name} {sorted(s.items())} {seen} {made_by['code']}"
    checkpoint = Checkpoint(files(run).checkpoint, identity, fingerprint(run))
    options |= {"checkpoint": checkpoint, "deadline": deadline, "report": report} | spared
    try:
        curve = fit(model, watched, losses=losses, **options)
        if curve is None:
            return None
        hits = judged(model, dataset, precision=s["precision"], deadline=deadline)
        hits = hits.cpu().double()
        if hits.isnan().any():
            steps = math.ceil(len(dataset.train_images) / s["batch"])
            raise Diverged(s["epochs"], steps, s["lr"], curve=curve)
        top1, top5 = (100 * hits.mean(0)).tolist()
        known = {"top1": round(top1, 4), "top5": round(top5, 4), "right": packed(hits[:, 0])}
    except TimeUp:  # in the last look; the checkpoint has all before it
        return None
    except Diverged as error:
        curve, known = error.curve, dict.fromkeys(("top1", "top5", "right"))
        known["status"] = "diverged"
        known |= {"diverged_epoch": error.epoch, "diverged_step": error.step}
    if team.rank:  # one process writes
        return known | {"lr": s["lr"]}
    record = _identity(run, dataset) | made_by | _costs(run, dataset, device, **spared)
    record |= {"compiled": compiled, "load": round(os.getloadavg()[0], 1)} | known
    record |= (spared | {"processes": team.size}) if team or recompute else {}
    record |= {"first_losses": _finite(losses)}
    record |= _of_curve(curve, "status" in known, s["best_on_test"])
    _write(run, record, model, dataset.classes)
    if "status" not in record:  # else the checkpoint stays, the last good state
        checkpoint.delete()
    return record


def _prepared(
    run: Run, folder: str | Path | None, device: torch.device, images: data.Dataset | None = None
) -> tuple[data.Dataset, data.Dataset, dict]:
    """A run's data, what training sees of them, and options of fit.

    Where images are held out for validation, training sees them as its test images.
    """
    s = run.settings
    of_name = {"folder": folder, "size": s["image_size"], "device": str(device)}
    dataset = images or data.load(s["dataset"], **of_name)
    held = s["validation_images"]
    watched = data.held_out(dataset, held) if held else dataset
    watched = data.subset(watched, train=s["train_images"], seed=run.seed)
    tested = {part: getattr(dataset, part) for part in ("test_images", "test_labels")}
    return replace(watched, **tested), watched, run.training | {"watch": s["watch_images"]}


def _started(run: Run, start: Path) -> torch.nn.Module:
    """The model of some weights, for a run's classes and size."""
    with refused(BadInput, "--start", CheckpointError):
        model = weights.load(start, num_classes=run.num_classes)
    if model.system != run.system:
        raise BadInput(f"--start: expected weights of {run.system}, got those of {model.system}")
    for name in sorted({*model.asked} & {*run.sizes} - {"image_size"}):
        own, wanted = (f"{name}={json.dumps(of[name])}" for of in (model.asked, run.settings))
        if own != wanted:
            raise BadInput(f"--start: expected weights of {wanted}, got those of {own}")
    return resized(model, run.settings["image_size"])


def replay(run: Run, *, folder: str | Path | None = None, device: str | None = None) -> list[float]:
    """Losses of a run's FIRST steps, trained again."""
    device, losses = data.resolve_device(device), []
    _, watched, options = _prepared(run, folder, device)
    model = run.build().to(device)
    if device.type == "cuda":
        compile_blocks(model)
    with suppress(Diverged):
        fit(model, watched, losses=losses, steps=FIRST, **options)
    return _finite(losses)


def _finite(losses: list[Tensor]) -> list[float]:
    """Losses as exact numbers, those before the first that is none."""
    return [*takewhile(math.isfinite, map(float, losses))]


def _identity(run: Run, dataset: data.Dataset) -> dict:
    """Columns of a record: which run it is."""
    changed = {"overrides": ",".join(f"{key}={value}" for key, value in run.overrides)}
    sizes = {part: len(getattr(dataset, part)) for part in ("train_images", "test_images")}
    known = asdict(run) | {"name": run.name, "tokens": run.tokens}
    known |= {"fingerprint": [round(value, 5) for value in fingerprint(run).tolist()]}
    return known | changed | run.settings | sizes | {"versions": versions()}


def _costs(run: Run, dataset: data.Dataset, device: torch.device, **spared) -> dict:
    """Columns of a record: what its model costs, and where."""
    name = measure.device_name(device)
    if device.type == "cpu":
        units = torch.backends.cpu.get_cpu_capability()  # which products it has
        name = f"CPU, {torch.get_num_threads()} thread(s): {name}, {units}"
    memory = round(_training_memory(run, dataset, device, **spared), 1)
    return counted(run.build) | {"peak_memory_mb": memory, "device": name}


def _of_curve(curve: list[dict], diverged: bool, best_on_test: bool) -> dict:
    """Columns of a record: how the training went; of one that diverged, no last epoch."""
    last = {} if diverged else curve[-1]
    best = max(curve, key=lambda row: row["top1"]) if best_on_test and last else {}
    found = {"top1_best": best.get("top1"), "epoch_best": best.get("epoch")}
    found |= {name: last.get(name) for name in ("train_accuracy", "loss")}
    seconds = [row["seconds"] for row in curve]
    found["seconds_per_epoch"] = round(statistics.median(seconds), 2) if seconds else None
    found["cpu_seconds"] = round(sum(row["cpu_seconds"] for row in curve), 1)
    rows = [{k: v for k, v in row.items() if "seconds" not in k} for row in curve]
    return found | {"curve": rows}


def _write(run: Run, record: dict, model: torch.nn.Module, classes: tuple[str, ...]) -> None:
    """The weights, then the record; of a run that diverged no weights, not earlier ones either."""
    if "status" in record:
        files(run).weights.unlink(missing_ok=True)
    else:
        weights.save(model, files(run).weights, classes=classes)
    write(files(run).record, record)
    for path in files(run):  # what a process left that was killed while it wrote
        for part in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
            part.unlink(missing_ok=True)


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
    wanted = [*wanted]
    todo = unfinished(wanted) if train else []
    perform_all(todo, folder=folder, dirty=dirty)
    frame = known(wanted)
    done = frame["name"].isin([run.name for run in todo]) & (frame["status"] == "read")
    frame.loc[done, "status"] = "trained"
    count = frame["status"].tolist().count
    told = (f"{count(status)} {status}" for status in STATUS if count(status) or status in USUAL)
    print(", ".join(told))
    return frame


def known(wanted: Iterable[Run]) -> pd.DataFrame:
    """What `read` finds, without a word."""
    rows = []
    for run in wanted:
        record = load(run) or asdict(run) | run.settings | {"name": run.name, "status": "missing"}
        rows.append(record | {"command": run.command})
    return pd.DataFrame(rows)


def note(text: str) -> None:
    """Prints a line with the time; where nobody can read it any more, trainings go on."""
    try:
        print(time.strftime("%H:%M:%S"), text, flush=True)
    except OSError:  # a closed pipe, a terminal that is gone, a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def ended(run: Run, record: dict | None) -> str:
    """In words what became of a run."""
    path, trained, checkpoint = files(run)
    if record is None:
        return "stopped; the same command goes on"
    if record["top1"] is not None:
        kept = f", weights in {trained}" if trained.exists() else ""
        kept += "; unverified: `vix verify`" * (record.get("status") == "unverified")
        return f"top-1 {record['top1']:.2f} %, recorded in {path}{kept}"
    where = record["diverged_epoch"], record["diverged_step"], record["lr"]
    return f"{Diverged(*where, checkpoint if checkpoint.exists() else None)}; recorded in {path}"


@checked
def perform_all(
    wanted: list[Run],
    *,
    workers: int = 1,
    deadline: float = math.inf,
    again: bool = False,
    **options,
) -> tuple[int, int]:
    """Train many runs, `workers` processes of one thread each: how many failed, how many are left.

    A single worker is this process, with a progress bar at a terminal, or all that torchrun has
    started, which train each run together, and end together. A run that another process
    trains is left to it; one that has a record by its turn is not trained, unless `again`. One that
    fails or diverges is reported and the others go on; other bad input ends them all, and so does
    OSError, before the first, where no record could be written. A signal to stop leaves a
    checkpoint of what runs, begins no other, and ends in KeyboardInterrupt. `options` are
    perform's.
    """
    for folder in {path.parent: 0 for run in wanted for path in files(run)}:
        check_room(folder)
    if workers > 1 and Team().size > 1:
        raise BadInput(f"--workers: torchrun has started the processes, got {workers} more of each")
    places = [f"run {i} of {len(wanted)}, {run.name}" for i, run in enumerate(wanted, 1)]
    states = dict.fromkeys(places, LEFT)
    asked = zip(wanted, places, strict=True)
    turns = takewhile(lambda _: not stopping.is_set() and time.monotonic() <= deadline, asked)
    attempt = partial(_attempt, again=again, deadline=deadline, **options)
    if workers == 1:
        torch.set_num_threads(1)
        outcomes = ((place, attempt(run, place)) for run, place in turns)
    else:
        outcomes = _side_by_side(turns, workers, attempt)
    with stoppable(), closing(outcomes):
        for place, (states[place], said) in outcomes:
            if states[place] == REFUSED:
                raise said
            if said and Team().rank == 0:
                note(f"{place}: {said}; {[*states.values()].count(LEFT)} left")
    return [*states.values()].count(FAILED), [*states.values()].count(LEFT)


def _attempt(run: Run, place: str, *, again: bool, **options) -> tuple[str, str | BadInput]:
    """Train a run: what became of it, and in words; none where another process trains it.

    What was asked for cannot be: the error, for the process that asked.
    """
    try:
        with _claim(run), enough_memory(run.settings["batch"], run.tokens):
            record = None if again else load(run)
            known = record is not None and record["status"] != "stale"
            known = not Team().any(not known)  # all of them ask, whatever each has found
            if not known:
                report = partial(tell, place, run.settings["epochs"])
                record = perform(run, report=report, **options)
    except Timeout:
        return LEFT, ""
    except Exception as error:
        if Team().size > 1:  # the others wait for this one
            raise
        if isinstance(error, BadInput) and not isinstance(error, RunError):
            return REFUSED, error
        kind = "" if isinstance(error, RunError | OSError) else f"{type(error).__name__}: "
        return FAILED, f"failed: {kind}{' '.join(str(error).split()):.300}"
    state = LEFT if record is None else FAILED if record["top1"] is None else DONE
    return state, ended(run, record) + "; --again trains it anew" * known


@contextmanager
def _claim(run: Run) -> Iterator[None]:
    """What one process at a time, or team, holds, else Timeout; that of a dead one is free."""
    path = files(run).checkpoint.parents[1] / "claims" / f"{run.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, team = FileLock(path, timeout=0), Team()
    with suppress(Timeout):
        if team.rank == 0:
            lock.acquire()
    if team.any(team.rank == 0 and not lock.is_locked):
        raise Timeout(str(path))
    try:
        yield
    finally:
        if lock.is_locked:
            path.unlink(missing_ok=True)
            lock.release()


def _side_by_side(turns: Iterator, workers: int, attempt: Callable) -> Iterator[tuple]:
    """Each run's place and outcome; of a process that dies the run that it had fails."""
    os.environ["TQDM_DISABLE"] = "1"  # bars of several processes would overwrite each other
    busy, pool = {}, ProcessPool(workers, initializer=_in_worker, context=get_context("spawn"))
    try:
        while True:
            for run, place in islice(turns, workers - len(busy)):
                busy[pool.schedule(attempt, (run, place))] = run, place
            if not busy:
                return
            for worker in _crew() if stopping.is_set() else ():
                worker.terminate()
            for future in wait(busy, 0.2, FIRST_COMPLETED).done:
                run, place = busy.pop(future)
                try:
                    yield place, future.result()
                except (ProcessExpired, BrokenProcessPool) as error:
                    yield place, _died(run, getattr(error, "exitcode", error))
    finally:
        pool.stop()
        for worker in _crew():
            worker.kill()
        pool.join()


def _crew() -> list[BaseProcess]:
    return [child for child in active_children() if child.name == WORKERS_NAME]


def _died(run: Run, code: object) -> tuple[str, str]:
    """The outcome of a run whose process is no more."""
    size = f"batch {run.settings['batch']}, {run.tokens} tokens an image"
    why = f"died ({code}), perhaps out of memory at {size}: lower --workers"
    return (LEFT, "") if stopping.is_set() else (FAILED, f"failed: its process {why}")


def _in_worker() -> None:
    """SIGTERM asks a worker to stop what it trains; the terminal is its parent's."""
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(getattr(signal, "SIGHUP", signal.SIGINT), signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    """A worker whose parent was killed would train on, unseen."""
    parent_process().join()
    os._exit(1)


def tell(place: str, epochs: int, row: dict) -> None:
    """Prints the line of an epoch."""
    epoch = f"epoch {row['epoch']}/{epochs}, loss {row['loss']:.3f}"
    accuracy = f"train {row['train_accuracy']:.1f} %, unseen {row['top1']:.1f} %"
    note(f"{place}: {epoch}, {accuracy}, {row['seconds']:.0f} s")


@checked
def trained(run: Run) -> torch.nn.Module:
    """The model of a run with the weights that its training left on this machine."""
    return weights.load(weights_of(run))


def weights_of(run: Run) -> Path:
    """The file of a run's weights; BadInput says how to make them."""
    path = files(run).weights
    if not path.exists():
        raise BadInput(f"no weights in {path}; train them: {run.command}")
    return path


def _training_memory(
    run: Run,
    dataset: data.Dataset,
    device: torch.device,
    accumulate: int = 1,
    recompute: bool = False,
) -> float:
    """Peak MB of what one process computes at once of a step."""
    count = math.ceil(run.settings["batch"] / accumulate / Team().size)
    some = torch.arange(min(count, len(dataset.train_labels)), device=device)
    ((images, labels),) = data.batches(dataset.train_images, dataset.train_labels, [some])
    images = data.normalise(images)
    model = run.build().to(device)
    if recompute:
        recompute_blocks(model)
    with autocast(device, run.settings["precision"]):
        return measure.training_memory(model, images, labels)
