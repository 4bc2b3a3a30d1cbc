"""Trials of precision: what mechanisms and systems give in a dtype, beside float64.

Free of pytest: `test_precision.py` runs the quick ones, `proof.py` the large ones. Inputs and
parameters are rounded to the dtype first, then given to both, so that only arithmetic differs.
"""

import contextlib
import copy
import math
from functools import partial

import torch
from test_models import sizes_of
from torch import Tensor, nn

from vixlib import build
from vixlib.attention import Grid, Linformer, Mechanism, Nystrom, Performer, Softmax

MECHANISMS = {
    "softmax": Softmax,
    "linformer": Linformer,
    "linformer, shared": partial(Linformer, kv_heads=1, shared=True),
    "performer": Performer,
    "nystrom": Nystrom,
    "nystrom, no convolution": partial(Nystrom, kernel=None),
}
FORMATS = {  # name: dtype, whether by autocast
    "float16": (torch.float16, False),
    "bfloat16": (torch.bfloat16, False),
    "autocast to float16": (torch.float16, True),
    "autocast to bfloat16": (torch.bfloat16, True),
}
SCALES = 1, 4, 16
GRIDS = {  # tokens: grid
    64: Grid(8, 8),
    65: Grid(8, 8, 1),
    256: Grid(16, 16),
    1024: Grid(32, 32),
    4096: Grid(64, 64),
    16384: Grid(128, 128),
}
LARGEST = 2.0**10  # a gradient scaler keeps float16's gradients well below its end at 2^16
# Errors are counted in roundings of the dtype. A mechanism that sums in float32 rounds what it
# returns, once. Torch's softmax rounds its output before its gradient subtracts it from something
# near: where one weight is nearly all, more is lost. A system rounds after each of its layers.
OUTPUT, GRADIENT, FUSED_GRADIENT = 2, 4, 16
SCORES, SYSTEM_GRADIENT = 8, 128


def rounding(dtype: torch.dtype) -> float:
    """The largest relative error of one rounding: 2^-11 for float16, 2^-8 for bfloat16."""
    return torch.finfo(dtype).eps / 2


def far(seen: Tensor, exact: Tensor) -> float:
    """The norm of the difference relative to that of the exact."""
    return ((seen.double() - exact).norm() / exact.norm()).item()


def spread(out: Tensor) -> float:
    """How much outputs of different queries differ, relative to their size: 0 for a constant."""
    out = out.double()
    return ((out - out.mean(-2, keepdim=True)).norm() / out.norm()).item()


def mechanism_trial(
    mechanism: str, form: str, scale: float, tokens: int, *, heads: int = 4, seed: int = 0
) -> dict:
    """A mechanism's output and gradients in a format: roundings away from float64, and spreads.

    The gradient that comes back is scaled as a gradient scaler would do for float16.
    """
    torch.manual_seed(seed)
    grid, width = GRIDS[tokens], 32
    dtype, autocast = FORMATS[form]
    made = MECHANISMS[mechanism](heads, width, grid, grid)
    kv = made.kv_heads or heads
    shapes = [(1, h, tokens, width) for h in (heads, kv, kv, heads)]
    x = [torch.randn(shape) for shape in shapes]
    x = [t.to(dtype) for t in (scale * x[0], scale * x[1], scale * x[2], x[3])]
    made = made if autocast else made.to(dtype)
    exact = _gradients(copy.deepcopy(made).double(), [t.double() for t in x])
    largest = max(exact[name].abs().max().item() for name in exact if name != "out")
    x[3] *= (scaler := 2.0 ** math.floor(math.log2(LARGEST / largest)))
    context = torch.autocast("cpu", dtype) if autocast else contextlib.nullcontext()
    seen = _gradients(made, x, context)
    seen |= {name: seen[name].double() / scaler for name in exact if name != "out"}
    return {
        "finite": all(t.isfinite().all().item() for t in seen.values()),
        "dtype": seen["out"].dtype == dtype,
        "roundings": {name: far(seen[name], exact[name]) / rounding(dtype) for name in exact},
        "allowed": GRADIENT if made.precise else FUSED_GRADIENT,
        "spread": spread(seen["out"]),
        "spread64": spread(exact["out"]),
    }


def mechanism_holds(seen: dict) -> bool:
    """Whether a mechanism followed float64 and told its queries apart."""
    near = seen["roundings"]["out"] < OUTPUT and max(seen["roundings"].values()) < seen["allowed"]
    same = abs(seen["spread"] / seen["spread64"] - 1) < 0.02
    return seen["finite"] and seen["dtype"] and near and same and seen["spread"] > 0.1


def _gradients(made: Mechanism, x: list[Tensor], context=None) -> dict[str, Tensor]:
    q, k, v, back = x
    wanted = {"q": q, "k": k} if made.shared else {"q": q, "k": k, "v": v}
    wanted = {name: t.clone().requires_grad_() for name, t in wanted.items()}
    with context or contextlib.nullcontext():
        out = made(wanted["q"], wanted["k"], wanted.get("v", wanted["k"]))
    wanted |= {name: p for name, p in made.named_parameters() if p.numel()}
    grads = torch.autograd.grad(out, list(wanted.values()), back)
    return {"out": out.detach(), **dict(zip(wanted, grads, strict=True))}


def system_trial(name: str, form: str, *, gain: float = 1.0, **sizes) -> dict:
    """A system's scores in evaluation and its parameters' gradient in training, beside float64.

    Sizes are the small ones of the tests unless said. `gain` multiplies every parameter.
    """
    torch.manual_seed(0)
    dtype, autocast = FORMATS[form]
    model = build(name, **(sizes or sizes_of(name)))
    images = torch.randn(8, 3, *model.size)
    with torch.no_grad():
        for parameter in model.parameters():  # LeViT's branches start at zero
            parameter.add_(0.01 * torch.randn_like(parameter)).mul_(gain)
        model(images)  # BatchNorms have seen a batch
    model = model if autocast else model.to(dtype)
    images = images.to(dtype)
    exact = _scores(copy.deepcopy(model).double(), images.double())
    context = torch.autocast("cpu", dtype) if autocast else contextlib.nullcontext()
    seen = _scores(model, images.float() if autocast else images, context)
    return {
        "finite": all(t.isfinite().all().item() for t in seen.values()),
        "autocast": autocast,
        "roundings": {part: far(seen[part], exact[part]) / rounding(dtype) for part in exact},
    }


def system_holds(seen: dict) -> bool:
    """Whether scores followed float64, and under autocast the gradient, too."""
    near = seen["roundings"]["scores"] < SCORES
    if seen["autocast"]:  # nobody trains in half precision alone
        near = near and seen["roundings"]["gradient"] < SYSTEM_GRADIENT
    return seen["finite"] and near


def _scores(model: nn.Module, images: Tensor, context=None) -> dict[str, Tensor]:
    torch.manual_seed(0)  # stochastic depth drops the same
    with context or contextlib.nullcontext():
        with torch.no_grad():
            scores = model.eval()(images)
        out = model.train()(images)
    back = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    parameters = [p for p in model.parameters() if p.numel()]
    grads = torch.autograd.grad(out, parameters, back, allow_unused=True)
    return {"scores": scores, "gradient": torch.cat([g.flatten() for g in grads if g is not None])}
