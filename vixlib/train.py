"""The only training loop: seeded, resumable at any step, one curve out."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from tqdm import tqdm

from vixlib.attention import Grid
from vixlib.checkpoint import Checkpoint, stopping
from vixlib.data import Dataset, Pairs, augment, batches, dataset, normalise
from vixlib.distributed import Share, Team, recompute_blocks
from vixlib.errors import BadInput, Diverged, checked, enough_memory, number, one_of
from vixlib.layers import Residual

PRECISIONS = "float32", "bfloat16"
MIXES = {"mixup": "MixUp", "cutmix": "CutMix"}  # in torchvision.transforms.v2
EVALUATION_BATCH = 250
LOOK = 50  # steps between two looks for divergence, each of which waits for the device
FIRST = 20  # steps of a training whose losses are kept


class TimeUp(Exception):
    """The deadline has come; what was done is worth a checkpoint."""


@checked
def fit(
    model: nn.Module,
    data: Dataset | Pairs | tuple | Path,
    *,
    epochs: int,
    batch: int = 128,
    lr: float = 1e-3,
    weight_decay: float = 0.01,
    warm_up: float = 0.0,
    cosine: bool = False,
    augmented: bool = False,
    mix: str | None = None,
    label_smoothing: float = 0.0,
    class_weights: str | Tensor | None = None,
    best: bool = False,
    patience: int | None = None,
    precision: str = "float32",
    accumulate: int = 1,
    recompute: bool = False,
    seed: int = 0,
    watch: int | None = None,
    checkpoint: Checkpoint | None = None,
    deadline: float = math.inf,
    report: Callable[[dict], None] = lambda row: None,
    losses: list | None = None,
    steps: int | None = None,
) -> list[dict] | None:
    """Train a model in place with AdamW; return its curve, a row an epoch.

    `data` are a Dataset or what `data.dataset` makes one of. The rate rises over the share
    `warm_up` of all steps, is `lr`, and with `cosine` falls to 0.

    `mix`: "mixup" (Zhang et al. 2018) or "cutmix" (Yun et al. 2019) of the images of a batch.
    `label_smoothing`: the share of a label that all classes get alike (Szegedy et al. 2016).
    `class_weights`: of each class in the loss; "balanced" for n / (classes x its images).
    `best`: the model ends with the weights of the first epoch of the highest top-1.
    `patience`: training ends after so many epochs without a higher top-1.
    `accumulate`: a batch passes in so many pieces, one after another: the same step in less memory.
    `recompute`: what each block keeps for the backward pass is computed again there: less memory.
    Parameters that require no gradient stay as they are, free of weight decay, too. Where a model
    normalises over a batch, a last image that would be one alone joins the batch before it.

    Each epoch ends with an evaluation on the first `watch` test images (None: all), a row for
    `report` and a checkpoint. All that is random in a step is seeded by (seed, epoch, step): a run
    that was stopped goes on as if it had not been, and so does one of several processes
    (distributed.py), which each call this. Past `deadline` (in time.monotonic()) the state
    is saved if there is one, None returned; so, too, where checkpoint.stopping is set, and after so
    many `steps` of the whole training. A list `losses` gets the loss of each of the FIRST steps, on
    the device. OSError, before the first step, where the checkpoint has no room; OutOfMemory says
    what to lower; Diverged names the first step whose loss, weights or evaluation are not finite:
    the checkpoint then stays the last good one.
    """
    device = next(model.parameters()).device
    data = dataset(data, size=getattr(model, "size", None), device=device)
    if not any(p.requires_grad for p in model.parameters()):
        raise BadInput("model: expected a parameter that learns, got none that requires a gradient")
    number("warm_up", warm_up, below=1)
    count, team = len(data.train_images), Team(accumulate)
    normalises = any(isinstance(each, _BatchNorm) for each in model.modules())
    if normalises and (accumulate > 1 or min(batch, count) == 1):
        said = f"{type(model).__name__} normalises over a batch"
        few = f"batch: {said}: expected at least 2 images, got 1"
        raise BadInput(few if accumulate == 1 else f"accumulate: {said}, which pieces would change")
    if recompute:
        recompute_blocks(model)
    an_epoch = math.ceil((count - normalises) / batch)  # one image alone has no variance
    mixer = None if mix is None else mixed(mix, len(data.classes))
    how = augmented, precision, cross_entropy(data, class_weights, label_smoothing), mixer
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=weight_decay, fused=True)
    state = {"epoch": 0, "step": 0, "curve": [], "sums": torch.zeros(2), "losses": []}
    state |= {"seconds": 0.0, "cpu_seconds": 0.0}
    if checkpoint is not None:
        state |= checkpoint.load(model, optimizer) or {}
        checkpoint.check_room(model)
    saved = checkpoint is not None and team.rank == 0
    begun = torch.tensor(state["epoch"] * an_epoch + state["step"])
    if team.sum(begun.clone()) != team.size * begun:
        raise BadInput("processes: they do not see the same checkpoint; use one folder for all")
    if losses is not None:
        losses[:] = state["losses"]
        state["losses"] = losses
    state["sums"] = state["sums"].to(device)
    finite = torch.zeros((), dtype=torch.int64, device=device)  # an epoch's first steps that were

    def look(score: float = 0.0) -> None:
        sound = torch.stack([p.isfinite().all() for p in model.parameters()]).all()
        if finite < state["step"] or not sound or math.isnan(score):
            kept = checkpoint.path if checkpoint and checkpoint.path.exists() else None
            step = min(int(finite) + 1, state["step"])
            raise Diverged(state["epoch"] + 1, step, lr, kept, state["curve"])

    @enough_memory(batch, tokens_of(model))
    def train_epoch() -> None:
        model.train()
        epoch_seed = 10_000 * seed + state["epoch"]
        order = torch.randperm(count, generator=torch.Generator().manual_seed(epoch_seed))
        edges = [*range(batch, an_epoch * batch, batch)]
        chosen = order.to(device).tensor_split(edges)[state["step"] :]
        own = [some[team.share(len(some))] for some in chosen]
        some = batches(data.train_images, data.train_labels, own)
        finite.fill_(state["step"])
        epoch = f"epoch {state['epoch'] + 1}/{epochs}"
        # at a terminal only; in a log, `report` writes its line an epoch
        remaining = range(state["step"], an_epoch)
        shown = {"disable": None if team.rank == 0 else True, "leave": False, "mininterval": 1}
        for step in tqdm(remaining, epoch, **shown):
            stop_at(deadline)
            taken = state["epoch"] * an_epoch + step
            if taken == steps:
                raise TimeUp
            for group in optimizer.param_groups:
                group["lr"] = lr * share_of_rate(taken, epochs * an_epoch, warm_up, cosine)
            torch.manual_seed(100_000 * epoch_seed + step)
            images, labels = next(some)
            total = len(chosen[step - remaining.start])
            loss, correct = learn(model, optimizer, data, images, labels, *how, team, total)
            if len(state["losses"]) == taken < FIRST:
                state["losses"].append(loss)
            state["sums"] += torch.stack([loss * total, correct])
            finite.add_(loss.isfinite() & (finite == step))
            state["step"] = step + 1
            if state["step"] % LOOK == 0:
                look()

    try:
        while state["epoch"] < epochs and since_best(state["curve"]) < (patience or math.inf):
            began, cpu = time.monotonic(), time.process_time()
            try:
                train_epoch()
            finally:
                loss, accuracy = (state["sums"] / count).tolist()  # waits for the device, too
                state["seconds"] += time.monotonic() - began
                state["cpu_seconds"] += time.process_time() - cpu
                look()
            top1, _ = evaluate(model, data, watch, precision=precision, deadline=deadline)
            look(top1)
            row = {"epoch": state["epoch"] + 1, "loss": loss, "train_accuracy": 100 * accuracy}
            row |= {"top1": top1} | {name: state[name] for name in ("seconds", "cpu_seconds")}
            state["curve"].append({name: round(value, 4) for name, value in row.items()})
            state |= {"epoch": row["epoch"], "step": 0, "seconds": 0.0, "cpu_seconds": 0.0}
            state["sums"].zero_()
            if best and since_best(state["curve"]) == 0:
                state["best"] = deepcopy(model.state_dict())
            if team.rank == 0:
                report(state["curve"][-1])
            if saved:
                checkpoint.save(model, optimizer, state)
    except TimeUp:
        if saved and state["epoch"] + state["step"]:
            checkpoint.save(model, optimizer, state)
        return None
    if best:
        model.load_state_dict(state["best"])
    return state["curve"]


def since_best(curve: list[dict]) -> int:
    """How many epochs ago the highest top-1 was first seen."""
    seen = [row["top1"] for row in curve]
    return len(seen) - 1 - seen.index(max(seen)) if seen else 0


def cross_entropy(data: Dataset, weights: str | Tensor | None, smoothing: float) -> nn.Module:
    """The loss of some classes, with `class_weights` and `label_smoothing` as `fit` has them."""
    number("label_smoothing", smoothing, below=1)
    count, labels = len(data.classes), data.train_labels
    if isinstance(weights, str):
        one_of("class_weights", weights, ["balanced"])
        weights = len(labels) / (count * labels.bincount(minlength=count).clamp(min=1))
    if weights is not None:
        weights = weights.to(labels.device, torch.float32)
        if weights.shape != (count,) or not (weights.isfinite() & (weights >= 0)).all():
            seen = f"{tuple(weights.shape)} from {weights.min():g} to {weights.max():g}"
            raise BadInput(f"class_weights: expected {count} numbers of at least 0, got {seen}")
    return nn.CrossEntropyLoss(weights, label_smoothing=smoothing)


def share_of_rate(step: int, steps: int, warm_up: float, cosine: bool) -> float:
    """The share of the learning rate in a step from 0: a linear rise, then 1 or half a cosine.

    Loshchilov and Hutter 2017, equation 5, without restarts; Goyal et al. 2017 for the rise.
    """
    rise = math.ceil(warm_up * steps)
    if step < rise:
        return (step + 1) / rise
    return (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2 if cosine else 1.0


def learn(
    model: nn.Module,
    optimizer: Optimizer,
    data: Dataset,
    images: Tensor,
    labels: Tensor,
    augmented: bool,
    precision: str,
    loss_of: Callable = F.cross_entropy,
    mixer: nn.Module | None = None,
    team: Team | None = None,
    total: int = 0,
) -> tuple[Tensor, Tensor]:
    """One step on uint8 images: their mean loss, and how many were right. Waits for nothing.

    All of it stays on the device of the images. Of mixed images the larger share is right. A `team`
    of more than one takes its step on a batch of `total`, of which the images are the own share.
    """
    with Share(team.share(total), total, team) if team else nullcontext():
        images = normalise(augment(images) if augmented else images)
    if mixer is not None:
        images, labels = mixer(images, labels)
    if team:
        ask = partial(logits_of, model, data=data, precision=precision)
        return team.step(model, optimizer, images, labels, total, ask, loss_of)
    logits = logits_of(model, images, data, precision)
    loss = descend(optimizer, logits, labels, loss_of)
    truth = labels if mixer is None else labels.argmax(1)
    return loss, (logits.detach().argmax(1) == truth).sum()


def mixed(name: str, classes: int) -> nn.Module:
    """What mixes each image of a batch, and its label, with those of the one before."""
    from torchvision.transforms import v2  # here: its import takes seconds

    return getattr(v2, MIXES[one_of("mix", name, MIXES)])(num_classes=classes)


def descend(
    optimizer: Optimizer, logits: Tensor, labels: Tensor, loss_of: Callable = F.cross_entropy
) -> Tensor:
    """One step down the loss of logits (b classes) with their gradients; its mean."""
    wide = torch.promote_types(logits.dtype, torch.float32)  # half precision would round the loss
    loss = loss_of(logits.to(wide), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def compile_blocks(model: nn.Module, **options) -> None:
    """Compile each block of a model in place, by torch.compile without a break in its graph.

    Blocks of one shape share what was compiled. A model without blocks is compiled whole. What was
    compiled before is forgotten: torch keeps few forms of a function, and models share theirs.
    """
    torch.compiler.reset()
    # each kind of block in training and in evaluation, for a whole and a last batch
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    blocks = [module for module in model.modules() if isinstance(module, Residual)]
    for block in blocks or [model]:
        block.compile(fullgraph=True, dynamic=False, **options)


def evaluate(
    model: nn.Module,
    data: Dataset,
    first: int | None = None,
    *,
    precision: str = "float32",
    deadline: float = math.inf,
) -> tuple[float, float]:
    """Top-1 and top-5 accuracy in percent on the (first) test images, in evaluation mode.

    Both are NaN where a logit is not finite: it would count as some class.
    """
    hits = judged(model, data, first, precision=precision, deadline=deadline)
    top1, top5 = (100 * hits.sum(0) / len(hits)).tolist()
    return round(top1, 4), round(top5, 4)


@checked
@torch.no_grad()
def judged(
    model: nn.Module,
    data: Dataset,
    first: int | None = None,
    *,
    precision: str = "float32",
    deadline: float = math.inf,
) -> Tensor:
    """Of each (first) test image 1 where its class came first, and among the first five: (n 2).

    NaN for a batch with a logit that is not finite.
    """
    was_training = model.training
    model.eval()
    images, labels = data.test_images[:first], data.test_labels[:first]
    places, team = torch.arange(len(labels), device=labels.device).split(EVALUATION_BATCH), Team()
    places = [some[team.rank :: team.size] for some in places]
    hits = torch.zeros(len(labels), 2, device=labels.device)
    try:
        for own, (some, truth) in zip(places, batches(images, labels, places), strict=True):
            stop_at(deadline)
            if not len(own):
                continue
            logits = logits_of(model, normalise(some), data, precision)
            best = logits.topk(min(5, logits.shape[1])).indices == truth[:, None]
            right = torch.stack([best[:, 0], best.any(1)], 1)
            hits[own] = torch.where(logits.isfinite().all(), right.float(), math.nan)
    finally:
        model.train(was_training)
    return team.sum(hits)


def logits_of(model: nn.Module, images: Tensor, data: Dataset, precision: str) -> Tensor:
    """What a model says of normalised images (b 3 h w): (b classes); BadInput if it is not that."""
    with autocast(images.device, precision):
        logits = model(images)
    wanted = len(images), len(data.classes)
    if logits.shape != wanted:
        raise BadInput(f"model: expected logits {wanted}, got {tuple(logits.shape)}")
    return logits


def tokens_of(model: nn.Module) -> int:
    """Places of an image where tokens first mix; 0 for a network without tokens, or another's."""
    grid = getattr(model, "grid", None)
    return grid.rows * grid.columns if isinstance(grid, Grid) else 0


def stop_at(deadline: float) -> None:
    """Raise TimeUp past the deadline, of one process in all of them."""
    if Team().any(time.monotonic() > deadline or stopping.is_set()):
        raise TimeUp


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context that runs a model at a precision."""
    one_of("precision", precision, PRECISIONS)
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
