"""What a model costs: parameters, FLOPs, peak memory."""

import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vixlib.attention import Grid, Maker, construct
from vixlib.data import check_labels
from vixlib.errors import checked, held
from vixlib.train import descend


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
    with torch.device("meta"):
        model, inputs = make(), [torch.empty(shape) for shape in shapes]
    held("made model", model, nn.Module)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(*inputs)
    return counter.get_total_flops()


@checked
def mechanism_flops(mechanism: Maker, tokens: int, *, heads: int = 4, dim_head: int = 32) -> int:
    """FLOPs of a mechanism alone on one image of `tokens` tokens in a row."""
    grid, shape = Grid(1, tokens), (1, heads, tokens, dim_head)
    return flops(lambda: construct(mechanism, heads, dim_head, grid, grid), shape, shape, shape)


@checked
def training_memory(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Peak MB that one training step holds beyond model and batch: activations, gradients, Adam.

    From CUDA's allocator, or on a CPU from the profiler's record of every allocation. The model
    takes that step: measure a copy.
    """
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        logits = model(images)
        check_labels(labels, *logits.shape)  # on a GPU a wrong one ends the process
        descend(optimizer, logits, labels)

    return peak_memory(step, images.device)


def peak_memory(call: Callable[[], object], device: torch.device) -> float:
    """Most MB that torch held during a call, beyond what it held before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    with _silence(), torch.autograd.profiler.profile(profile_memory=True) as profile:
        call()
    events = profile.kineto_results.events()
    changes = (event.nbytes() for event in events if event.name() == "[memory]")
    return max(accumulate(changes, initial=0)) / 1e6


def device_name(device: torch.device) -> str:
    """Such as "NVIDIA H200" or "AMD EPYC"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1] if found else platform.machine()


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
