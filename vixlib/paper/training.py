"""Training runs: one or many, from wherever they were left, each into its record."""

import glob
import math
import os
import platform
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, MutableSequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from itertools import takewhile
from multiprocessing import connection, get_context, parent_process, resource_tracker
from pathlib import Path

import pandas as pd
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file
from torch import Tensor

from vixlib import data, measure
from vixlib.checkpoint import check_room, stoppable, stopping
from vixlib.errors import BadInput, CheckpointError, Diverged, RunError, checked, enough_memory
from vixlib.paper.provenance import origin
from vixlib.paper.records import STATUS, USUAL, files, fingerprint, load, packed, unfinished, write
from vixlib.paper.runs import Run
from vixlib.train import FIRST, Checkpoint, TimeUp, autocast, compile_blocks, fit, judged
from vixlib.weights import save

DONE, FAILED, LEFT = -1, -2, -3  # of a run in a queue; 0: not begun; else the number of its worker


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
    every profile but quick, are of committed code, unless `dirty` allows another. OSError where the
    disk has no room.
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
    rows, wanted = [], [*wanted]
    todo = unfinished(wanted) if train else []
    perform_all(todo, folder=folder, dirty=dirty)
    for run in wanted:
        record = load(run)
        if run in todo and record and record["status"] == "read":
            record["status"] = "trained"
        known = record or {**asdict(run), "name": run.name, **run.settings, "status": "missing"}
        rows.append(known | {"command": run.command})
    frame = pd.DataFrame(rows)
    counts = {status: int((frame["status"] == status).sum()) for status in STATUS}
    told = {status: n for status, n in counts.items() if n or status in USUAL}
    print(", ".join(f"{count} {status}" for status, count in told.items()))
    return frame


def note(text: str) -> None:
    """Prints a line with the time; where nobody can read it any more, trainings go on."""
    try:
        print(time.strftime("%H:%M:%S"), text, flush=True)
    except OSError:  # a closed pipe, a terminal that is gone, a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def ended(run: Run, record: dict | None) -> str:
    """In words what became of a run."""
    if record is None:
        return "stopped; the same command goes on"
    if record["top1"] is not None:
        return f"top-1 {record['top1']:.2f} %, recorded in {files(run).record}"
    kept = files(run).checkpoint if files(run).checkpoint.exists() else None
    where = record["diverged_epoch"], record["diverged_step"], record["lr"]
    return f"{Diverged(*where, kept)}; recorded in {files(run).record}"


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

    A single worker is this process, with a progress bar at a terminal. A run that another process
    trains is left to it; one that has a record by its turn is not trained, unless `again`. One that
    fails or diverges is reported and the others go on; other bad input ends them all, and so does
    OSError, before the first, where no record could be written. A signal to stop leaves a
    checkpoint of what runs, begins no other, and ends in KeyboardInterrupt. `options` are
    perform's.
    """
    for folder in {path.parent: 0 for run in wanted for path in files(run)}:
        check_room(folder)
    options |= {"deadline": deadline}
    with stoppable():
        if workers == 1:
            torch.set_num_threads(1)
            states = [0] * len(wanted)
            _work(wanted, states, 1, again, options)
        else:
            states = _side_by_side(wanted, workers, again, options)
    return sum(state == FAILED for state in states), _left(states)


def _left(states: MutableSequence[int]) -> int:
    return sum(state not in (DONE, FAILED) for state in states)


@contextmanager
def _claim(run: Run) -> Iterator[None]:
    """What one process at a time holds, else Timeout; that of a dead one is free."""
    path = files(run).checkpoint.parents[1] / "claims" / f"{run.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path, timeout=0):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _work(
    todo: list[Run], states: MutableSequence[int], mine: int, again: bool, options: dict
) -> None:
    """Train each run that nobody has begun; all workers of a queue see its `states`."""
    for i, run in enumerate(todo):
        if stopping.is_set() or time.monotonic() > options["deadline"]:
            return
        place = f"run {i + 1} of {len(todo)}, {run.name}"
        try:
            with _claim(run):
                if states[i]:
                    continue
                states[i] = mine
                record = None if again else load(run)
                if record is None or record["status"] == "stale":
                    with enough_memory(run.settings["batch"], run.tokens):
                        record = perform(run, report=partial(tell, run, place), **options)
                said = ended(run, record)
                states[i] = LEFT if record is None else FAILED if record["top1"] is None else DONE
        except Timeout:  # another process trains it
            continue
        except Exception as error:
            if isinstance(error, BadInput) and not isinstance(error, RunError):
                raise
            states[i], kind = FAILED, f"{type(error).__name__}: "
            kind = "" if isinstance(error, RunError | OSError) else kind
            said = f"failed: {kind}{' '.join(str(error).split()):.300}"
        note(f"{place}: {said}; {_left(states)} left")


def _side_by_side(
    todo: list[Run], workers: int, again: bool, options: dict
) -> MutableSequence[int]:
    """Processes that share a list of runs; its states in the end.

    No library's pool would do: they break where a process dies. Here it costs the run that it had.
    """
    context = get_context("spawn")
    states, (refusals, told) = context.RawArray("i", len(todo)), context.Pipe(duplex=False)
    running, number = {}, 0
    os.environ["TQDM_DISABLE"] = "1"  # bars of several processes would overwrite each other
    try:
        while workers:
            while len(running) < workers and not stopping.is_set():
                number += 1
                arguments = told, todo, states, number, again, options
                running[number] = context.Process(target=_in_worker, args=arguments)
                # neither a worker nor Python's tracker of them hears the terminal
                terminal = signal.SIGINT, signal.SIGHUP
                heard = signal.pthread_sigmask(signal.SIG_BLOCK, terminal)
                resource_tracker.ensure_running()  # which unblocks some
                signal.pthread_sigmask(signal.SIG_BLOCK, terminal)
                running[number].start()
                signal.pthread_sigmask(signal.SIG_SETMASK, heard)
            connection.wait([process.sentinel for process in running.values()], timeout=0.2)
            if stopping.is_set():
                for process in running.values():
                    process.terminate()
            for mine in [mine for mine, process in running.items() if not process.is_alive()]:
                code = running.pop(mine).exitcode
                if code == 2:
                    raise BadInput(refusals.recv())
                if code == 0 or stopping.is_set():
                    workers -= 1
                    continue
                began = [i for i, state in enumerate(states) if state == mine]
                for i in (began or [i for i, state in enumerate(states) if not state])[:1]:
                    states[i], run = FAILED, todo[i]
                    size = f"batch {run.settings['batch']}, {run.tokens} tokens an image"
                    why = f"its process died ({code}), perhaps out of memory at {size}"
                    note(f"run {i + 1} of {len(todo)}, {run.name}: failed: {why}: lower --workers")
    finally:
        for process in running.values():
            process.kill()
    return states


def _in_worker(told: connection.Connection, *arguments) -> None:
    """A worker: its parent asks it to stop by SIGTERM, and hears of bad input through `told`."""
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        _work(*arguments)
    except BadInput as error:
        told.send(str(error))
        sys.exit(2)


def _end_with_parent() -> None:
    """A worker whose parent was killed would train on, unseen."""
    parent_process().join()
    os._exit(1)


def tell(run: Run, place: str, row: dict) -> None:
    """Prints the line of an epoch."""
    epoch = f"epoch {row['epoch']}/{run.settings['epochs']}, loss {row['loss']:.3f}"
    accuracy = f"train {row['train_accuracy']:.1f} %, test {row['top1']:.1f} %"
    note(f"{place}: {epoch}, {accuracy}, {row['seconds']:.0f} s")


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
