"""One training by several processes, or a piece of a batch at a time: what each has of a step.

`torchrun --nproc-per-node=N -m vixlib train ...` starts a process a device. Each has the model, its
share of every batch, and afterwards the sum of all gradients (Li et al. 2020, without overlap: one
all-reduce a step, docs/scale.md has its share of the time). A training is what it would be in one
process, but for the order of sums: what is random is drawn for the whole batch by all, and batch
normalisation sees all of it.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from itertools import pairwise
from types import MethodType

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from vixlib.errors import BadInput, whole
from vixlib.layers import Residual

PATIENCE = timedelta(minutes=30)  # for another process that is busy; one that died is seen at once


def by_torchrun() -> bool:
    """Whether torchrun has started this process, beside others."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def processes(device: str | None = None) -> Iterator[None]:
    """Joins the processes that torchrun has started, each with a GPU of its own; else nothing."""
    if not by_torchrun():
        yield
        return
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            said = "another process of this training has ended; the same command goes on"
            raise BadInput(said) from error
        raise
    finally:
        dist.destroy_process_group()


class Team:
    """The processes of a training, without torchrun one; each has `pieces` of a batch in turn."""

    def __init__(self, pieces: int = 1):
        self.pieces, together = whole("accumulate", pieces), dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)

    def __bool__(self) -> bool:
        return self.size * self.pieces > 1

    def share(self, n: int) -> slice:
        """What this process has of n things; all of them where they are too few for each."""
        edges = [rank * n // self.size for rank in (self.rank, self.rank + 1)]
        return slice(*edges) if n >= self.size else slice(0, n)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of what all processes have, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, wanted: bool) -> bool:
        """Whether one of the processes wants something; said on the CPU: no GPU is waited for."""
        return wanted if self.size == 1 else self.sum(torch.tensor(float(wanted))).item() > 0

    def step(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        images: Tensor,
        labels: Tensor,
        total: int,
        logits_of: Callable[[Tensor], Tensor],
        loss_of: nn.CrossEntropyLoss,
    ) -> tuple[Tensor, Tensor]:
        """One step on this process's share of a batch of `total`: its mean loss, how many right."""
        truth = labels if labels.ndim == 1 else labels.argmax(1)
        weigh = None if labels.ndim > 1 else loss_of.weight  # a mean over a batch is by classes'
        weights = truth.new_ones(len(truth)).double() if weigh is None else weigh[truth].double()
        every = self.sum(weights.sum())
        told = torch.zeros(3, dtype=torch.float64, device=images.device)  # loss, right, seen
        first, devices = self.share(total).start, [images.device] if images.is_cuda else []
        optimizer.zero_grad()
        edges = {piece * len(labels) // self.pieces for piece in range(self.pieces + 1)}
        for begin, end in pairwise(sorted(edges)):
            own, part = slice(first + begin, first + end), slice(begin, end)
            # each piece meets the draws of the whole batch
            with torch.random.fork_rng(devices), Share(own, total, self):
                logits = logits_of(images[part])
                wide = torch.promote_types(logits.dtype, torch.float32)
                share = (weights[part].sum() / every).to(wide)
                loss = loss_of(logits.to(wide), labels[part]) * share
                loss.backward()
            told[0] += loss.detach()
            told[1] += (logits.detach().argmax(1) == truth[part]).sum()
            told[2] += end - begin
        if self.size > 1:
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            flat = self.sum(torch.cat([grad.flatten() for grad in grads]))
            for grad, summed in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                grad.copy_(summed.view_as(grad))
        optimizer.step()
        loss, right, seen = self.sum(told)
        return loss.to(wide), right * total / seen


class Share(TorchFunctionMode):
    """Within it a process, or a piece, has `own` images of a batch of `total`.

    A number drawn for each image is drawn for all, and those of the own are kept. Batch statistics
    are those of all processes.
    """

    active: "Share | None" = None

    def __init__(self, own: slice, total: int, team: Team):
        super().__init__()
        self.own, self.count, self.total, self.team = own, own.stop - own.start, total, team

    def __enter__(self):
        self.before, Share.active = Share.active, self
        return super().__enter__()

    def __exit__(self, *error):
        Share.active = self.before
        return super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.rand and args[0] == self.count:
            return func(self.total, *args[1:], **kwargs)[self.own]
        if func is torch.randint and kwargs.get("size", (0,))[0] == self.count:
            size = self.total, *kwargs["size"][1:]
            return func(*args, **kwargs | {"size": size})[self.own]
        if func is F.batch_norm and self.team.size > 1:
            few = self.total < self.team.size  # all of it for each
            return batch_norm(*args, copies=self.team.size if few else 1, **kwargs)
        return func(*args, **kwargs)


class Summed(torch.autograd.Function):
    """The sum over all processes, whose slope is the sum of theirs."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return Team().sum(x.clone())

    backward = forward


def batch_norm(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    copies: int = 1,
) -> Tensor:
    """F.batch_norm with the statistics of all processes' x (b c ...): Ioffe and Szegedy 2015.

    Each number may be in so many `copies` among them.
    """
    if not training:
        return F.batch_norm(x, mean, var, weight, bias, False, momentum, eps)
    shape, others = [1, -1, *[1] * (x.ndim - 2)], [0, *range(2, x.ndim)]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    count = Summed.apply(wide.new_tensor(wide.numel() / wide.shape[1]))
    centre = Summed.apply(wide.sum(others)) / count
    apart = wide - centre.view(shape)
    spread = Summed.apply(apart.square().sum(others)) / count
    if mean is not None:
        with torch.no_grad():
            mean.lerp_(centre.to(mean), momentum)
            var.lerp_((spread * count / (count - copies)).to(var), momentum)
    out = apart * (spread + eps).rsqrt().view(shape)
    out = out if weight is None else out * weight.view(shape) + bias.view(shape)
    return out.to(x.dtype)


def recompute_blocks(model: nn.Module) -> None:
    """Keep only what enters each block, and compute its inside again in the backward pass.

    Chen et al. 2016; less memory for a third more time.
    """
    blocks = [module for module in model.modules() if isinstance(module, Residual)]
    if not blocks:
        raise BadInput(f"recompute: {type(model).__name__} has no blocks that could be")
    for block in blocks:
        block.forward = MethodType(_recomputed, block)  # a method: that of a copy is the copy's own


def _recomputed(block: Residual, x: Tensor) -> Tensor:
    """A block's own forward pass, of which only `x` is kept."""
    forward = partial(type(block).forward, block)
    contexts = nullcontext(), _again(block, Share.active)
    if not torch.is_grad_enabled():
        return forward(x)
    return checkpoint(forward, x, use_reentrant=False, context_fn=lambda: contexts)


@contextmanager
def _again(block: nn.Module, share: Share | None) -> Iterator[None]:
    """A block's second pass: its running statistics, which followed the first, stay."""
    norms = [each for each in block.modules() if isinstance(each, _BatchNorm)]
    kept = [dict(each.named_buffers()) for each in norms]
    for norm in norms:
        norm._buffers |= {name: buffer.clone() for name, buffer in norm._buffers.items()}
    try:
        # neither autograd's second pass nor a GPU's own thread knows the one that is active
        with nullcontext() if share is None else Share(share.own, share.total, share.team):
            yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers |= buffers
