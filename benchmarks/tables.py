"""The tables: which cells there are, and what is measured in each. Every row is flat.

`ratio_*` is how many times faster ours is: the peer's time by ours in the same round, median and
quartiles. `equal_to` is the largest relative difference of output and gradients in float64, given
equal weights, without what `note` names; `as_released` is with it. Nothing is timed before that.
"""

import math
import statistics
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import clock, fits, images, pairs, pipeline, scale
from benchmarks.pairs import LAYERS, MODELS, SMALL, Contest, Peer, Size
from vixlib import data
from vixlib.errors import BadInput
from vixlib.measure import device_name, peak_memory, training_memory
from vixlib.paper.runs import Run
from vixlib.systems import RESULTS
from vixlib.train import autocast, compile_blocks, descend, learn

TOKENS = 64, 256, 1024, 4096, 16384
LINE = *TOKENS[:3], 2048, 4096, 8192, 16384  # for the growth of time with tokens
FIT_FROM = 1024
BATCH = {4096: 2, 16384: 1}  # else 8
DIRECTIONS = "forward", "training"


class Settings(NamedTuple):
    """How everything is measured; `quick` is for small sizes, to see that all works.

    `rounds` of 0: 20, fewer from 4,096 tokens on, 2 if quick.
    """

    device: torch.device = torch.device("cpu")
    threads: int = 1
    precision: str = "float32"
    compiled: bool = False
    quick: bool = False
    rounds: int = 0

    @property
    def clock(self) -> clock.Clock:
        return clock.Clock(self.device, self.threads)

    def rounds_at(self, tokens: int) -> int:
        return self.rounds or (2 if self.quick else {4096: 10, 16384: 5}.get(tokens, 20))

    def columns(self) -> dict:
        """What a number depends on beside its cell."""
        return {
            "precision": self.precision,
            "compiled": self.compiled,
            "device": device_name(self.device),
            "clock": self.clock.name,
            "threads": self.threads,
            "allocator": clock.allocator(self.device),
        }


class Cell(NamedTuple):
    """A part of a table that is measured, and recorded, at once."""

    name: str
    measure: Callable[[], list[dict]]


def layers(settings: Settings, contests: tuple[Contest, ...] = LAYERS) -> Iterator[Cell]:
    """Each mechanism between its projections, forward and training, beside its peers."""
    for contest in contests:
        agree = cache(partial(_agreements, settings, contest, 256 if settings.quick else 1024))
        for tokens in TOKENS[:2] if settings.quick else TOKENS:
            yield Cell(
                f"{contest.name}/{tokens}", partial(_layer, settings, contest, tokens, agree)
            )


def small(settings: Settings) -> Iterator[Cell]:
    """Each mechanism at 64 tokens, with its own compression, beside its plain form."""
    for contest in SMALL:
        agree = cache(partial(_agreements, settings, contest, 256 if settings.quick else 1024))
        yield Cell(f"{contest.name}/64", partial(_layer, settings, contest, 64, agree))


def models(settings: Settings) -> Iterator[Cell]:
    """A training step of each model beside the released one, on CIFAR-10's 1,025 tokens."""
    for contest in MODELS[:4:3] if settings.quick else MODELS:
        # with CLS as many tokens as divide by all landmarks: no peer pads
        size = (15, 17) if settings.quick else (31, 33)
        agree = cache(partial(_agreements, settings, contest, size))
        yield Cell(contest.name, partial(_model, settings, contest, agree))


def input_pipeline(settings: Settings) -> Iterator[Cell]:
    """A batch cropped, flipped and normalised beside a DataLoader with torchvision's transforms."""
    yield Cell("crop, flip, normalise", partial(_pipeline, settings))


def scaling(settings: Settings) -> Iterator[Cell]:
    """Time of one sequence against its length, and the exponent that fits it."""
    naive = Contest("naive softmax", nn.Module, pairs.NAIVE.make, (pairs.NAIVE,))
    for contest in (*LAYERS, naive)[:: 4 if settings.quick else 1]:
        most = pairs.NAIVE.most if contest is naive else LINE[-1]
        line = [n for n in LINE if n <= (256 if settings.quick else most)]
        yield Cell(contest.name, partial(_scaling, settings, contest, line))


def every_system(settings: Settings) -> Iterator[Cell]:
    """A training step of each system at the paper's size: 128 images on a GPU, 8 on a CPU."""
    for name in RESULTS[::13] if settings.quick else RESULTS:
        yield Cell(name, partial(_system, settings, name))


def fitting(settings: Settings) -> Iterator[Cell]:
    """The largest batch and the largest image whose training step fits in 2, 4, 8 and 16 GB."""
    how = settings.device, settings.precision, settings.quick
    for name in list(fits.MODELS)[:: 7 if settings.quick else 1]:
        yield Cell(name, partial(_fits, name, *how))


def many_images(settings: Settings) -> Iterator[Cell]:
    """Training from folders of 10,000 and 100,000 files that are read again: memory and time."""
    for split in images.SPLITS:
        for count in (2_000, 3_000) if settings.quick else (10_000, 100_000):
            how = count, 2, 5 if settings.quick else 50, split
            yield Cell(f"{split}/{count}", partial(_images, *how))


def at_scale(settings: Settings) -> Iterator[Cell]:
    """Each system at 224 x 224, counted; the formula for its time and memory, checked."""
    how = settings.device, settings.precision
    yield Cell("reading", partial(_versioned, scale.reading, settings.clock))
    for name in scale.CHECKED[:1] if settings.quick else scale.CHECKED:
        yield Cell(f"check {name}", partial(_versioned, scale.check, name, settings.clock, *how))
    for name in () if settings.quick else ("ViT", "ViN"):
        yield Cell(f"spared {name}", partial(_versioned, scale.spared, name, *how))
    names = scale.SYSTEMS[:1] if settings.quick else (*scale.SYSTEMS, *scale.FIXED)
    yield Cell("costs", partial(_versioned, scale.costs, names))
    for name in () if settings.quick else dict.fromkeys((*scale.FIRST, *names)):
        yield Cell(f"memory {name}", partial(_versioned, scale.memory, name, *how))


TABLES = {
    "layers": layers,
    "models": models,
    "pipeline": input_pipeline,
    "scaling": scaling,
    "small": small,
    "systems": every_system,
    "fits": fitting,
    "images": many_images,
    "scale": at_scale,
}

# --- what is measured ----------------------------------------------------------------------------


def _agreements(settings: Settings, contest: Contest, size: Size) -> dict[str, dict]:
    """Columns of each peer: how far from ours, or in the note why it takes no part."""
    shape = (1, size, pairs.DIM) if isinstance(size, int) else (1, 3, *size)
    columns = {}
    for peer in contest.peers:
        torch.manual_seed(0)
        x = torch.randn(shape, device=settings.device)
        try:
            columns[peer.name] = pairs.agreement(contest, peer, size, x) | {"note": peer.note}
        except (ImportError, pairs.Unequal) as error:
            columns[peer.name] = {"note": f"not timed: {type(error).__name__}: {error}"}
    return columns


def _layer(settings: Settings, contest: Contest, tokens: int, agree: Callable) -> list[dict]:
    batch = BATCH.get(tokens, 8)
    about = {"mechanism": contest.name, "tokens": tokens, "batch": batch}
    try:
        contestants = {"ours": contest.ours(tokens)}
    except BadInput as error:
        return [about | {"note": f"not timed: {error}"}]
    columns = agree()
    for peer in contest.peers:
        if tokens > peer.most:
            columns = columns | {peer.name: {"note": f"not timed: over {peer.most} tokens"}}
        elif "equal_to" in columns[peer.name]:
            contestants[peer.name] = peer.make(tokens)
    rows = []
    for direction in DIRECTIONS:
        calls = {
            name: _call(settings, module, direction, tokens, batch)
            for name, module in contestants.items()
        }
        timed = _timed(settings, calls, settings.rounds_at(tokens), contest, columns)
        rows += [about | {"direction": direction} | row for row in timed]
    return rows


def _call(
    settings: Settings, module: nn.Module, direction: str, tokens: int, batch: int
) -> clock.Call:
    """Forward without gradients, or forward and backward to input and weights."""
    module = _prepared(settings, module)
    torch.manual_seed(0)
    x, towards = torch.randn(2, batch, tokens, pairs.DIM, device=settings.device)

    def forward() -> Tensor:
        with torch.no_grad(), autocast(settings.device, settings.precision):
            return module(x)

    def training() -> tuple[Tensor, ...]:
        with autocast(settings.device, settings.precision):
            out = module(x)
        return torch.autograd.grad(out, wanted, towards.to(out.dtype))

    if direction == "forward":
        module.eval()
        return forward
    module.train()
    wanted = [x.requires_grad_(), *module.parameters()]
    return training


def _prepared(settings: Settings, module: nn.Module) -> nn.Module:
    module = deepcopy(module).to(settings.device)
    return torch.compile(module) if settings.compiled else module


def _timed(
    settings: Settings, calls: dict, rounds: int, contest: Contest, columns: dict, peaks=None
) -> list[dict]:
    """A row for each peer, timed or not; `peaks` says how memory is measured if not by the call."""
    columns = dict(columns)
    for name, call in list(calls.items()):
        try:
            call()
        except Exception as error:  # a peer that cannot do this costs its own cells only
            if name == "ours":
                raise
            told = str(error).strip().splitlines() or [""]
            columns[name] = {"note": f"not timed: {type(error).__name__}: {told[0]}"}
            del calls[name]
    times = settings.clock.interleaved(calls, rounds)
    peaks = peaks or {name: partial(peak_memory, call) for name, call in calls.items()}
    held = {name: round(peaks[name](settings.device), 2) for name in calls}
    median = {name: round(statistics.median(seen), 3) for name, seen in times.items()}
    rows = []
    for peer in contest.peers:
        row = {"peer": peer.name}
        ours = {"ours_ms": median["ours"], "ours_peak_mb": held["ours"], "rounds": rounds}
        if peer.name in calls:
            pairs_of_times = zip(times[peer.name], times["ours"], strict=True)
            row |= clock.spread([theirs / ours for theirs, ours in pairs_of_times], "ratio")
            ours |= {"peer_ms": median[peer.name], "peer_peak_mb": held[peer.name]}
        row |= ours | columns[peer.name]
        rows.append(row | {"versions": clock.versions("einops", peer.package)})
    return rows


def _model(settings: Settings, contest: Contest, agree: Callable) -> list[dict]:
    size, batch = ((8, 8), 2) if settings.quick else ((32, 32), 8)
    columns = agree()
    made = {"ours": contest.ours(size)}
    made |= {p.name: p.make(size) for p in contest.peers if "equal_to" in columns[p.name]}
    torch.manual_seed(0)
    images = torch.randn(batch, 3, *size, device=settings.device)
    labels = torch.randint(10, (batch,), device=settings.device)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        with autocast(settings.device, settings.precision):
            logits = model(images)
        descend(optimizer, logits, labels)

    def peak(module: nn.Module, device: torch.device) -> float:
        with autocast(device, settings.precision):
            return training_memory(_prepared(settings, module), images, labels)

    calls, peaks = {}, {}
    for name, module in made.items():
        model = _prepared(settings, module).train()
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        calls[name], peaks[name] = partial(step, model, optimizer), partial(peak, module)
    about = {"mechanism": contest.name, "tokens": math.prod(size) + 1, "batch": batch}
    about["direction"] = "training step"
    rounds = settings.rounds_at(about["tokens"])
    return [about | row for row in _timed(settings, calls, rounds, contest, columns, peaks)]


def _system(settings: Settings, name: str) -> list[dict]:
    """The step that `vix train` takes, images cropped and flipped, blocks compiled if anything."""
    profile = "quick" if settings.quick else "paper"
    run, on_gpu = Run(name, profile), settings.device.type == "cuda"
    batch = 128 if on_gpu else 8
    model = run.build().to(settings.device).train()
    if settings.compiled:
        compile_blocks(model)
    torch.manual_seed(0)
    with settings.device:
        pixels = torch.randint(256, (batch, 3, *model.size), dtype=torch.uint8)
        labels = torch.randint(10, (batch,))
    few = data.Dataset(pixels, labels, pixels, labels, data.SOURCES["cifar10"].classes, "noise")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    call = partial(learn, model, optimizer, few, pixels, labels, True, settings.precision)
    rounds = settings.rounds or (20 if on_gpu else 2 if settings.quick else 3)
    ms = statistics.median(settings.clock.interleaved({"ours": call}, rounds)["ours"])
    row = {"mechanism": name, "tokens": run.tokens, "batch": batch, "direction": "training step"}
    row |= {"ours_ms": round(ms, 3), "microseconds_an_image": round(1e3 * ms / batch, 1)}
    row |= {"ours_peak_mb": round(peak_memory(call, settings.device), 2), "rounds": rounds}
    return [row | {"versions": clock.versions("einops")}]


def _pipeline(settings: Settings) -> list[dict]:
    torch.manual_seed(0)
    count = (2 if settings.quick else 10) * pipeline.BATCH
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, device=settings.device)
    peer = Peer("torchvision", pipeline.loader, package="torchvision")
    contest = Contest("crop, flip, normalise", nn.Module, pipeline.ours, (peer,))
    calls = {"ours": partial(pipeline.ours, images)}
    try:
        columns = pipeline.agreement(images[:8])
        loader = peer.make(images)
        calls[peer.name] = lambda: [batch.to(settings.device) for batch in loader]
        columns["note"] = "DataLoader without workers"
    except (ImportError, pairs.Unequal) as error:
        columns = {"note": f"not timed: {type(error).__name__}: {error}"}
    rows = _timed(settings, calls, settings.rounds_at(0), contest, {peer.name: columns})
    batches = count // pipeline.BATCH
    for row in rows:
        row |= {ms: round(row[ms] / batches, 3) for ms in ("ours_ms", "peer_ms") if ms in row}
    about = {"mechanism": contest.name, "batch": pipeline.BATCH, "direction": "one batch"}
    return [about | row for row in rows]


def _fits(name: str, *how) -> list[dict]:
    return _versioned(fits.rows, name, *how)


def _images(*how) -> list[dict]:
    return [row | {"versions": clock.versions("pillow")} for row in images.rows(*how)]


def _versioned(measure: Callable, *how) -> list[dict]:
    return [row | {"versions": clock.versions("einops")} for row in measure(*how)]


def _scaling(settings: Settings, contest: Contest, line: list[int]) -> list[dict]:
    made = {}
    for tokens in line:
        try:
            made[tokens] = contest.ours(tokens)
        except BadInput:  # as many mixtures or landmarks as tokens: only longer ones count
            continue
    rows = []
    for direction in DIRECTIONS:
        calls = {n: _call(settings, module, direction, n, 1) for n, module in made.items()}
        rounds = settings.rounds_at(LINE[-1])
        times = settings.clock.interleaved(calls, rounds)
        fitted = [n for n in calls if n >= (0 if settings.quick else FIT_FROM)]
        exponents = [
            statistics.linear_regression(
                [math.log(n) for n in fitted], [math.log(times[n][i]) for n in fitted]
            ).slope
            for i in range(rounds)
        ]
        columns = clock.spread(exponents, "exponent")
        columns |= {"fitted_tokens": " ".join(map(str, fitted)), "rounds": rounds}
        for n, call in calls.items():
            row = {"mechanism": contest.name, "tokens": n, "batch": 1, "direction": direction}
            row["ours_ms"] = round(statistics.median(times[n]), 3)
            row["ours_peak_mb"] = round(peak_memory(call, settings.device), 2)
            rows.append(row | columns | {"versions": clock.versions("einops")})
    return rows
