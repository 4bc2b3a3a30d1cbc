"""Trials of precision: what mechanisms and systems give in a dtype, beside float64.

Free of pytest: `test_precision.py` runs the quick ones, `proof.py` the large ones. Inputs and
parameters are rounded to the dtype first, then given to both, so that only arithmetic differs.
"""

import contextlib
import copy
import math
from functools import partial

import torch
from small import sizes_of
from torch import Tensor, nn

from vixlib import build
from vixlib.attention import Grid, Mechanism
from vixlib.fused import Linformer, Nystrom, Performer, Softmax

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
# near: where one weight is nearly all, more is lost. A system rounds after each of its layers;
# its gradient jumps where a rounding crosses the kink of a ReLU or the choice of a max-pool, which
# happens as often as the root of a rounding is large: in ResNet-56 to 0.44 in bfloat16, 0.17 in
# float16.
OUTPUT, GRADIENT, FUSED_GRADIENT = 2, 4, 16
SCORES, SYSTEM_GRADIENT = 8, 10  # in roundings, and in roots of a rounding


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
    gradients = [x[3], *(exact[name] for name in exact if name != "out")]
    largest = max(gradient.abs().max().item() for gradient in gradients)
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


def mechanism_trials(mechanism: str, form: str, tokens: int, **options) -> dict:
    """`mechanism_trial` at every scale."""
    return {
        str(scale): mechanism_trial(mechanism, form, scale, tokens, **options) for scale in SCALES
    }


def all_hold(seen: dict) -> bool:
    return all(map(mechanism_holds, seen.values()))


def performer_ends(heads: int = 64, tokens: int = 64) -> dict:
    """Single heads of Performer in float32: how far from float64, and whether queries differ.

    As norms grow, all features choose the keys of least norm, by the lemma itself: outputs become
    one, and gradients differences of nearly equal numbers.
    """
    seen, grid, width = {}, GRIDS[tokens], 32
    for scale in SCALES:
        errors, gradients, spreads = [], [], []
        for seed in range(heads):
            torch.manual_seed(seed)
            made = Performer(1, width, grid, grid)
            x = [scale * torch.randn(1, 1, tokens, width) for _ in range(3)]
            x.append(torch.randn(1, 1, tokens, width))
            got = _gradients(made, x)
            exact = _gradients(copy.deepcopy(made).double(), [t.double() for t in x])
            errors.append(far(got["out"], exact["out"]))
            gradients.append(max(far(got[name], exact[name]) for name in "qkv"))
            spreads.append(spread(exact["out"]))
        seen[str(scale)] = {
            "heads": heads,
            "worst_output": max(errors),
            "median_gradient": sorted(gradients)[heads // 2],
            "wrong_gradients": sum(not error < 1e-3 for error in gradients),
            "constant": sum(one < 0.1 for one in spreads),
            "median_spread": sorted(spreads)[heads // 2],
        }
    return seen


def performer_holds(seen: dict) -> bool:
    """Outputs always follow float64; gradients do, and queries differ, at scales 1 and 4."""
    wrong = sum(seen[scale]["wrong_gradients"] + seen[scale]["constant"] for scale in ("1", "4"))
    return wrong == 0 and all(s["worst_output"] < 1e-4 for s in seen.values())


def _gradients(made: Mechanism, x: list[Tensor], context=None) -> dict[str, Tensor]:
    q, k, v, back = x
    wanted = {"q": q, "k": k} if made.shared else {"q": q, "k": k, "v": v}
    wanted = {name: t.clone().requires_grad_() for name, t in wanted.items()}
    with context or contextlib.nullcontext():
        out = made(wanted["q"], wanted["k"], wanted.get("v", wanted["k"]))
    wanted |= {name: p for name, p in made.named_parameters() if p.numel()}
    grads = torch.autograd.grad(out, list(wanted.values()), back)
    return {"out": out.detach(), **dict(zip(wanted, grads, strict=True))}


def system_trial(name: str, form: str, *, batch: int = 8, **sizes) -> dict:
    """A system's scores in evaluation and its parameters' gradient in training, beside float64.

    Sizes are the small ones of the tests unless said.
    """
    torch.manual_seed(0)
    dtype, autocast = FORMATS[form]
    model = build(name, **(sizes or sizes_of(name)))
    images = torch.randn(batch, 3, *model.size)
    with torch.no_grad():
        for parameter in model.parameters():  # LeViT's branches start at zero
            parameter.add_(0.01 * torch.randn_like(parameter))
        model(images)  # BatchNorms have seen a batch
    model = model if autocast else model.to(dtype)
    images = images.to(dtype)
    exact = _scores(copy.deepcopy(model).double(), images.double())
    context = torch.autocast("cpu", dtype) if autocast else contextlib.nullcontext()
    seen = _scores(model, images.float() if autocast else images, context)
    errors = {part: far(seen[part], exact[part]) for part in exact}
    return {
        "finite": all(t.isfinite().all().item() for t in seen.values()),
        "autocast": autocast,
        "roundings": {part: error / rounding(dtype) for part, error in errors.items()},
        "gradient_in_roots": errors["gradient"] / rounding(dtype) ** 0.5,
    }


def system_trials(name: str) -> dict:
    """`system_trial` at the paper's size in every format."""
    return {form: system_trial(name, form, batch=4, image_size=32) for form in FORMATS}


def all_systems_hold(seen: dict) -> bool:
    return all(map(system_holds, seen.values()))


def system_holds(seen: dict) -> bool:
    """Whether scores followed float64, and under autocast the gradient, too."""
    near = seen["roundings"]["scores"] < SCORES
    if seen["autocast"]:  # nobody trains in half precision alone
        near = near and seen["gradient_in_roots"] < SYSTEM_GRADIENT
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


def report(
    mechanisms: dict[str, dict], ends: dict[str, dict], halves: dict[str, dict]
) -> list[str]:
    """Lines for the page: the worst of each mechanism, in roundings; where Performer ends."""
    lines = []
    if mechanisms:
        lines += ["", "## Half precision", ""]
        lines += ["Errors in roundings of the format (2^-11 for float16, 2^-8 for bfloat16): the"]
        lines += ["worst over tokens, scales and formats; spread says how much the outputs of"]
        lines += ["different queries differ, relative to their size (0: a constant).", ""]
        lines += ["| mechanism | output | gradients | allowed | least spread |"]
        lines += ["|---|---:|---:|---:|---:|"]
        for name in MECHANISMS:
            seen = [
                s
                for trial, result in mechanisms.items()
                for s in result["seen"].values()
                if trial.split("/")[2] == name and isinstance(s, dict)
            ]
            if seen:
                out = max(s["roundings"]["out"] for s in seen)
                rest = max(v for s in seen for k, v in s["roundings"].items() if k != "out")
                allowed = f"{OUTPUT}, {max(s['allowed'] for s in seen)}"
                least = min(s["spread"] for s in seen)
                lines.append(f"| {name} | {out:.2f} | {rest:.1f} | {allowed} | {least:.2f} |")
    scores = [
        (s["roundings"]["scores"], name.split("/")[1])
        for name, result in halves.items()
        for s in result["seen"].values()
        if isinstance(s, dict)
    ]
    if scores:
        worst, name = max(scores)
        lines += [
            "",
            f"Systems: scores at most {worst:.1f} roundings away ({name}); {SCORES} allowed.",
        ]
    for result in ends.values():
        lines += ["", "Where Performer ends (float32, single heads, 64 tokens):", ""]
        lines += ["| inputs | worst output | median gradient | gradients off by 1e-3 | constant |"]
        lines += ["|---|---:|---:|---:|---:|"]
        for scale, s in result["seen"].items():
            if isinstance(s, dict):
                lines.append(
                    f"| x {scale} | {s['worst_output']:.0e} | {s['median_gradient']:.0e} | "
                    f"{s['wrong_gradients']} of {s['heads']} | {s['constant']} of {s['heads']} |"
                )
    return lines
