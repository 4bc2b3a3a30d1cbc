"""What every mechanism must keep, ours or a student's: the tests use this very function."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vixlib.attention import Grid, Mechanism, construct
from vixlib.errors import checked
from vixlib.maps import attention_map

GRID, HEADS, WIDTH = Grid(8, 8, 1), 2, 16


class Property(NamedTuple):
    """One row of a report: what was tried, whether it holds, what was seen."""

    property: str
    holds: bool
    seen: str


@checked
def check_mechanism(mechanism: Callable[..., Mechanism]) -> list[Property]:
    """Build a mechanism on 65 tokens and try it: one row a property, with what was seen.

    A mechanism that raises is reported as not holding, with its error.
    """
    torch.manual_seed(0)
    rows = []
    for name, probe in _PROPERTIES.items():
        try:
            holds, seen = probe(mechanism)
        except Exception as error:
            holds, seen = False, f"{type(error).__name__}: {error}"
        rows.append(Property(name, bool(holds), seen))
    return rows


def _make(mechanism: Callable[..., Mechanism], queries: Grid = GRID) -> Mechanism:
    return construct(mechanism, HEADS, WIDTH, queries, GRID).double()


def _qkv(made: Mechanism, width: int = WIDTH, batch: int = 3) -> list[Tensor]:
    heads, kv = HEADS, made.kv_heads or HEADS
    shapes = (
        (batch, heads, made.queries.tokens, WIDTH),
        (batch, kv, made.keys.tokens, WIDTH),
        (batch, kv, made.keys.tokens, width),
    )
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def _far(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def _close(far: float, limit: float) -> tuple[bool, str]:
    seen = f"below {limit:.0e}" if far < limit else f"{far:.0e}"
    return far < limit, f"relative difference {seen}"


def _shapes(mechanism, queries=GRID, width=WIDTH):
    made = _make(mechanism, queries)
    got, want = tuple(made(*_qkv(made, width)).shape), (3, HEADS, queries.tokens, width)
    return got == want, f"{got}" if got == want else f"expected {want}, got {got}"


def _fewer_queries(mechanism):
    return _shapes(mechanism, queries=Grid(4, 4))


def _wider_values(mechanism):
    return _shapes(mechanism, width=24)


def _finite(mechanism):
    made = _make(mechanism).float()
    q, k, v = (t.float() for t in _qkv(made))
    outs = [made(scale * q, scale * k, v).isfinite().all().item() for scale in (0, 1, 16)]
    return all(outs), "at scales 0, 1 and 16"


def _alone(mechanism):
    made = _make(mechanism)
    q, k, v = _qkv(made)
    alone = made(q[:1], k[:1], v[:1])
    loud = [torch.cat([t[:1], 1e3 * t[1:]]) for t in (q, k, v)]
    return _close(max(_far(made(*some)[:1], alone) for some in ((q, k, v), loud)), 1e-10)


def _linear(mechanism):
    made = _make(mechanism)
    q, k, v = _qkv(made)
    return _close(_far(attention_map(made, q, k) @ v, made(q, k, v)), 1e-9)


def _gradients(mechanism):
    made = _make(mechanism)
    v = _qkv(made)[2].requires_grad_()
    out = made(*_qkv(made)[:2], v)
    wanted = {"v": v, **{name: p for name, p in made.named_parameters() if p.numel()}}
    got = torch.autograd.grad(out.square().sum(), list(wanted.values()), allow_unused=True)
    without = [
        name
        for name, grad in zip(wanted, got, strict=True)
        if grad is None or not grad.isfinite().all() or not grad.any()
    ]
    return not without, f"none for {', '.join(without)}" if without else ", ".join(wanted)


def _saved(mechanism):
    made, other = _make(mechanism), _make(mechanism)
    other.load_state_dict(made.state_dict())
    tensors = _qkv(made)
    return torch.equal(made(*tensors), other(*tensors)), "a loaded copy gives equal output"


_PROPERTIES = {
    "shapes": _shapes,
    "fewer queries than keys, as LeViT has": _fewer_queries,
    "values wider than keys, as LeViT has": _wider_values,
    "finite": _finite,
    "no sample sees another": _alone,
    "linear in v: map @ v is the output": _linear,
    "gradients reach values and parameters": _gradients,
    "all of it is in the state dict": _saved,
}
