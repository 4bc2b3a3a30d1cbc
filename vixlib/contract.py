"""What every mechanism must keep, ours or a student's: the tests use this very function."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from vixlib.attention import Grid, Maker, construct
from vixlib.errors import checked
from vixlib.maps import attention_map

GRID, BATCH, HEADS, WIDTH = Grid(8, 8, 1), 3, 2, 16


class Property(NamedTuple):
    """One row of a report: what was tried, whether it holds, what was seen."""

    property: str
    holds: bool
    seen: str


@checked
def check_mechanism(mechanism: Maker) -> list[Property]:
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


def _made(mechanism: Maker, queries: Grid = GRID, width: int = WIDTH) -> tuple:
    """The mechanism in float64, and noise for q, k and v."""
    made = construct(mechanism, HEADS, WIDTH, queries, GRID).double()
    kv, n, m = made.kv_heads or HEADS, queries.tokens, GRID.tokens
    shapes = (HEADS, n, WIDTH), (kv, m, WIDTH), (kv, m, width)
    return made, *(torch.randn(BATCH, *shape, dtype=torch.float64) for shape in shapes)


def _close(got: Tensor, wanted: Tensor, limit: float) -> tuple[bool, str]:
    far = ((got - wanted).abs().max() / wanted.abs().max()).item()
    seen = f"below {limit:.0e}" if far < limit else f"{far:.0e}"
    return far < limit, f"relative difference {seen}"


def _shapes(mechanism, queries=GRID, width=WIDTH):
    made, *qkv = _made(mechanism, queries, width)
    got, want = tuple(made(*qkv).shape), (BATCH, HEADS, queries.tokens, width)
    return got == want, f"{got}" if got == want else f"expected {want}, got {got}"


def _finite(mechanism):
    made, *qkv = _made(mechanism)
    q, k, v = (t.float() for t in qkv)
    outs = [made.float()(scale * q, scale * k, v).isfinite().all().item() for scale in (0, 1, 16)]
    return all(outs), "at scales 0, 1 and 16"


def _alone(mechanism):
    made, *qkv = _made(mechanism)
    alone, beside = [], []
    for i in range(BATCH):
        others = torch.full((BATCH, 1, 1, 1), 1e3)
        others[i] = 1
        loud = [t * others for t in qkv]
        alone += 2 * [made(*(t[i : i + 1] for t in qkv))]
        beside += [made(*some)[i : i + 1] for some in (qkv, loud)]
    return _close(torch.cat(beside), torch.cat(alone), 1e-10)


def _linear(mechanism):
    made, q, k, v = _made(mechanism)
    return _close(attention_map(made, q, k) @ v, made(q, k, v), 1e-9)


def _gradients(mechanism):
    made, q, k, v = _made(mechanism)
    out = made(q, k, v.requires_grad_())
    wanted = {"v": v, **{name: p for name, p in made.named_parameters() if p.numel()}}
    got = torch.autograd.grad(out.square().sum(), list(wanted.values()), allow_unused=True)
    reached = [g is not None and g.isfinite().all() and g.any() for g in got]
    without = [name for name, there in zip(wanted, reached, strict=True) if not there]
    return not without, f"none for {', '.join(without)}" if without else ", ".join(wanted)


def _saved(mechanism):
    (made, *qkv), (other, *_) = _made(mechanism), _made(mechanism)
    other.load_state_dict(made.state_dict())
    return torch.equal(made(*qkv), other(*qkv)), "a loaded copy gives equal output"


_PROPERTIES = {
    "shapes": _shapes,
    "fewer queries than keys, as LeViT has": partial(_shapes, queries=Grid(4, 4)),
    "values wider than keys, as LeViT has": partial(_shapes, width=24),
    "finite": _finite,
    "no sample sees another": _alone,
    "linear in v: map @ v is the output": _linear,
    "gradients reach values and parameters": _gradients,
    "all of it is in the state dict": _saved,
}
