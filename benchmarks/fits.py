"""What fits in a memory: the bytes of a training step, counted without holding them."""

import math
import weakref
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.pairs import DEPTH, DIM
from vixlib import attention, build
from vixlib.fused import Linformer, Nystrom
from vixlib.measure import peak_memory
from vixlib.train import autocast, descend

SIDE = 32  # of CIFAR-10's images, where the batch is what grows
GIGABYTES = 2, 4, 8, 16
CHECKS = (1, 32), (4, 32), (1, 48)  # batch and side of steps that are also really taken
LINE = 8, (8, 16, 32, 64, 128)  # batch and sides of memory against tokens
_vit = partial(build, "ViT", dim=DIM, depth=DEPTH)
_rank = partial(Linformer, rank=64, shared=True, kv_heads=1)  # ViL, but for the rank
MODELS = {  # a name says its host and, after a comma, what is not that of `build`
    "ViT, naive softmax": partial(_vit, attention=attention.Softmax),
    "ViT": _vit,
    "ViL": partial(_vit, attention="linformer"),
    "ViL, rank 64": partial(_vit, attention=_rank),
    "ViP": partial(_vit, attention="performer"),
    "ViN": partial(_vit, attention="nystrom"),
    "ViN, 64 landmarks": partial(_vit, attention=partial(Nystrom, landmarks=64)),
    "FNet": partial(build, "FNet", dim=DIM, depth=DEPTH),
}


class Live(TorchDispatchMode):
    """Bytes of all storages that operations made and something still holds; `peak`: the most."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        out = function(*arguments, **(options or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.meet(tensor.untyped_storage())
        return out

    def meet(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.part, storage._cdata, storage.nbytes())

    def part(self, key: int, size: int) -> None:
        self.known.remove(key)
        self.now -= size


def train(
    make: Callable[..., nn.Module], batch: int, side: int, device: torch.device, precision: str
) -> None:
    """A model made, and trained for two steps of AdamW: at the second, all its states are held."""
    with device:
        model = make(image_size=side)
        images = torch.zeros(batch, 3, side, side)
        labels = torch.zeros(batch, dtype=torch.long)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for _ in range(2):
        with autocast(device, precision):
            logits = model(images)
        descend(optimizer, logits, labels)
        del logits  # or the next step's activations would lie beside it


def counted(*step) -> float:
    """MB of `train` at its peak, everything counted: weights, gradients, Adam, images, the rest.

    On fake tensors, which have shapes and no numbers: any size, in seconds.
    """
    with FakeTensorMode(), Live() as live:
        train(*step)
    return live.peak / 1e6


def measured(*step) -> float:
    """The same, measured."""
    return peak_memory(lambda: train(*step), step[3])


def of_batch(count: Callable[[int], float], batch: int) -> float:
    """A peak that is counted to 32 images; then each costs what one costs from 16 to 32.

    Performer takes sequences a few at a time, in a loop that is long for a large batch.
    """
    if batch <= 32:
        return count(batch)
    return count(32) + (batch - 32) * (count(32) - count(16)) / 16


def largest(peak: Callable[[int], float], most: float, low: int) -> int:
    """The largest size whose peak is at most `most`; `low` is known to fit."""
    high = 2 * low
    while peak(high) <= most:
        low, high = high, 2 * high
    while high - low > 1:  # a peak grows as some power of the size
        share = math.log(most / peak(low)) / math.log(peak(high) / peak(low))
        guess = round(low * (high / low) ** share)
        middle = min(max(guess, low + 1), high - 1)
        low, high = (middle, high) if peak(middle) <= most else (low, middle)
    return low


def rows(name: str, device: torch.device, precision: str, quick: bool) -> list[dict]:
    """Counted beside measured at small sizes; against tokens; then the largest that fits.

    What fits: the largest batch at 32 x 32, and the largest side of one square image.
    """
    make, found = MODELS[name], []
    for batch, side in CHECKS[:1] if quick else CHECKS:
        step = make, batch, side, device, precision
        row = {"model": name, "quantity": "check", "batch": batch, "side": side}
        row |= {"counted_mb": counted(*step), "measured_mb": measured(*step)}
        found.append(row)
    batch, sides = LINE
    for side in sides[:2] if quick else sides:
        row = {"model": name, "quantity": "line", "batch": batch, "side": side}
        found.append(row | {"counted_mb": counted(make, batch, side, device, precision)})
    peaks = {
        "batch": partial(of_batch, cache(lambda b: counted(make, b, SIDE, device, precision))),
        "side": cache(lambda side: counted(make, 1, side, device, precision)),
    }
    for quantity, peak in peaks.items():
        for budget in (0.2,) if quick else GIGABYTES:
            size = largest(peak, 1e3 * budget, {"batch": 1, "side": SIDE}[quantity])
            batch, side = (size, SIDE) if quantity == "batch" else (1, size)
            row = {"model": name, "quantity": quantity, "budget_gb": budget, "largest": size}
            row |= {"batch": batch, "side": side, "counted_mb": peak(size)}
            found.append(row)
    for row in found:
        row["tokens"] = row["side"] ** 2 + 1
        row |= {mb: round(row[mb], 2) for mb in ("counted_mb", "measured_mb") if mb in row}
    return found
