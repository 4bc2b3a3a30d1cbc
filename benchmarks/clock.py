"""Time and memory, measured the same way for everyone, and what such a number depends on."""

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

LEAST_MS = 10  # a shorter call is repeated within a round until it takes this long
THRESHOLDS = "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"

Call = Callable[[], object]


class Clock:
    """Milliseconds a call: CUDA events, or CPU time of the process with one thread, or wall time.

    CPU time is what a busy machine disturbs least; with more threads it would count all of them.
    """

    def __init__(self, device: torch.device, threads: int):
        self.device = device
        self.name = "CUDA events" if device.type == "cuda" else "wall time"
        self.read = time.perf_counter
        if device.type == "cpu" and threads == 1:
            self.name, self.read = "process CPU time", time.process_time

    def __call__(self, call: Call, times: int = 1) -> float:
        if self.device.type == "cuda":
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            for _ in range(times):
                call()
            ended.record()
            torch.cuda.synchronize()
            return began.elapsed_time(ended) / times
        began = self.read()
        for _ in range(times):
            call()
        return 1e3 * (self.read() - began) / times

    def interleaved(self, calls: dict[str, Call], rounds: int) -> dict[str, list[float]]:
        """Milliseconds of each call in each round: A B C, B C A, ... so that no one goes first."""
        times = {}
        for name, call in calls.items():
            once = self(call)  # compiles, allocates, fills caches
            if once < 1000:
                once = min(self(call) for _ in range(2))
            times[name] = max(1, math.ceil(LEAST_MS / max(once, 1e-3)))
        names, seen = list(calls), {name: [] for name in calls}
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                seen[name].append(self(calls[name], times[name]))
        return seen


def spread(values: Iterable[float], name: str) -> dict[str, float]:
    """Median and quartiles, as columns."""
    q25, median, q75 = statistics.quantiles(values, n=4, method="inclusive")
    named = {"median": median, "q25": q25, "q75": q75}
    return {f"{name}_{which}": round(value, 3) for which, value in named.items()}


def allocator(device: torch.device) -> str:
    """Whose memory it is, and what the environment says of it."""
    if device.type == "cuda":
        return os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or "torch"
    preloaded = Path(os.environ.get("LD_PRELOAD", "")).name
    said = [f"{name}={os.environ[name]}" for name in THRESHOLDS if name in os.environ]
    return " ".join([preloaded or platform.libc_ver()[0] or platform.system(), *said])


def versions(*packages: str) -> str:
    """Python, torch and the named packages."""
    known = [f"python {platform.python_version()}", f"torch {torch.__version__}"]
    for package in filter(None, packages):
        try:
            known.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(known)
