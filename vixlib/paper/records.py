"""What became of runs: where their files lie, and their records as a table."""

import base64
import json
import math
import platform
import zlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from vixlib import paths
from vixlib.errors import RecordError, checked, held, number, one_of
from vixlib.paper.provenance import code
from vixlib.paper.runs import PROFILES, Run

UNKEPT = "quick", "own"  # profiles whose records are not for keeping
USUAL = "read", "trained", "missing", "stale"
STATUS = *USUAL, "unverified", "diverged"  # of a record
KNOWN = "read", "trained", "unverified"  # of those whose numbers count
RESULTS = EQUAL, ROUNDED, DIFFERENT = "equal", "equal to rounding", "different"  # of a replay
# what may differ between the records of two equal runs
VOLATILE = {"seconds_per_epoch", "cpu_seconds", "load", "peak_memory_mb", "device", "compiled"}
VOLATILE |= {"versions", "commit"}
ENDS = {"read": ["top1"], "diverged": ["diverged_epoch", "diverged_step", "lr"]}  # by status
BOUNDS = {  # what numbers in a record are below, where they are known
    "top1 top5 top1_best train_accuracy": 100.001,
    "parameters flops tokens epochs batch lr loss": math.inf,
}


class Files(NamedTuple):
    """Of a run: its record; the weights, not committed; the last good state of one unfinished."""

    record: Path
    weights: Path
    checkpoint: Path


def files(run: Run) -> Files:
    """Where a run is kept."""
    build = paths.root() / "build" / run.profile
    return Files(
        records_folder(run.profile) / f"{run.name}.json",
        build / "weights" / f"{run.name}.safetensors",
        build / "checkpoints" / f"{run.name}.pt",
    )


def records_folder(profile: str) -> Path:
    """Where records of a profile lie."""
    one_of("profile", profile, PROFILES)
    kept = f"build/{profile}/records" if profile in UNKEPT else f"figures/records/{profile}"
    return paths.root() / kept


def figures(profile: str) -> Path:
    """Where the notebooks draw, made if missing: only laptop's figures are the committed ones."""
    one_of("profile", profile, PROFILES)
    folder = paths.root() / ("figures" if profile == "laptop" else f"build/{profile}/figures")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


fingerprint = cache(Run.fingerprint)


def versions() -> str:
    """What computes here."""
    return f"torch {torch.__version__}, python {platform.python_version()}"


@checked
def load(run: Run) -> dict | None:
    """The record of a run with its `status`; None where there is none.

    "stale": today's code builds another model than the one that was trained, or trains it in
    another way, as `vix verify` saw; "diverged"; "unverified": the code is another, and nothing
    says that its outcome is; "read". RecordError names a file that cannot be read.
    """
    path = files(run).record
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        _check(record)
        then = torch.tensor(record["fingerprint"])
        status = record.get("status", "read")
        whose = record["name"], record["system"], record["seed"]
        differs = record.get("verified", {}).get("result") == DIFFERENT
        known = None not in [record[name] for name in ENDS[status]]
        if whose != (run.name, run.system, run.seed) or not known:
            raise ValueError("it belongs to another run")
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RecordError(f"unreadable record {path} ({error}); delete it to train anew") from error
    # by the same code, torch and settings it is that model, and none is built to see it
    made_by = record.get("code"), record.get("versions")
    same = made_by == (code(), versions()) and not unlike(run, record)
    now = then if same else fingerprint(run)
    if differs or now.shape != then.shape or not torch.allclose(now, then, atol=1e-3):
        status = "stale"
    elif status == "read" and record.get("code") != code():
        status = "unverified"
    return record | {"status": status}


def unlike(run: Run, record: dict) -> dict:
    """Settings of a run that its record has otherwise; younger ones, and None for all, apart."""
    today = json.loads(json.dumps(run.settings))
    return {n: value for n, value in today.items() if value not in (None, record.get(n, value))}


def _check(record: dict) -> None:
    """BadInput where a record holds what no training leaves; None is for what is not known."""
    for names, below in BOUNDS.items():
        for name in names.split():
            if record.get(name) is not None:
                number(name, record[name], below)
    held("fingerprint", record["fingerprint"], list[object])
    held("curve", record.get("curve", []), list[dict])


def packed(bits: torch.Tensor) -> str:
    """Zeros and ones (n), such as which test images were right, as text."""
    return base64.b85encode(zlib.compress(np.packbits(bits.numpy() > 0).tobytes(), 9)).decode()


def unpacked(text: str, count: int) -> np.ndarray:
    """The first `count` of what was packed, as zeros and ones."""
    octets = np.frombuffer(zlib.decompress(base64.b85decode(text)), np.uint8)
    return np.unpackbits(octets, count=count)


def write(path: Path, record: dict) -> None:
    """A record into its file."""
    text = json.dumps(record, indent=1, default=str) + "\n"
    paths.atomic_write(path, lambda path: path.write_text(text))


@checked
def unfinished(wanted: Iterable[Run]) -> list[Run]:
    """Those that have no record, or one of other code."""
    return [run for run in wanted if (load(run) or {"status": "stale"})["status"] == "stale"]
