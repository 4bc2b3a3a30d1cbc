"""Each property of the contract is tried so that whoever lacks it, and nothing else, is told so.

A mechanism here is softmax with one flaw, often a small one, just beyond what is allowed: a limit
that is loosened, a scale, sample or head that is no longer tried lets it pass.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vixlib.attention import Grid, Mechanism
from vixlib.contract import check_mechanism
from vixlib.fused import Softmax

SHAPES, FEWER, WIDER = (
    "shapes",
    "fewer queries than keys, as LeViT has",
    "values wider than keys, as LeViT has",
)
FINITE, ALONE, LINEAR, GRADIENTS, SAVED = (
    "finite",
    "no sample sees another",
    "linear in v: map @ v is the output",
    "gradients reach values and parameters",
    "all of it is in the state dict",
)
ALL = [SHAPES, FEWER, WIDER, FINITE, ALONE, LINEAR, GRADIENTS, SAVED]
OF_A_SAMPLE = {"dim": (1, 2, 3), "keepdim": True}

Flaw = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def softmax(flaw: Flaw) -> type[Mechanism]:
    """Softmax whose output is changed: flaw(out, q, k, v)."""

    class Flawed(Softmax):
        def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return flaw(super().mix(q, k, v), q, k, v)

    return Flawed


def gained(gain: Callable[[Tensor], Tensor], **parameters: Tensor) -> type[Mechanism]:
    """Softmax times a function of a parameter `gain`, a one; other parameters are there, too."""

    class Gained(Softmax):
        def __init__(self, heads: int, dim_head: int, queries: Grid, keys: Grid):
            super().__init__(heads, dim_head, queries, keys)
            self.gain = nn.Parameter(torch.ones(1))
            for name, tensor in parameters.items():
                self.register_parameter(name, nn.Parameter(tensor))

        def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return gain(self.gain) * super().mix(q, k, v)

    return Gained


def drawing(amount: float, saved: bool) -> type[Mechanism]:
    """Softmax times 1 + a fresh number, of a size, that the state dict has or not."""

    class Drawing(Softmax):
        def __init__(self, heads: int, dim_head: int, queries: Grid, keys: Grid):
            super().__init__(heads, dim_head, queries, keys)
            self.register_buffer("drawn", amount * torch.rand(1).double(), persistent=saved)

        def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return (1 + self.drawn.to(q.dtype)) * super().mix(q, k, v)

    return Drawing


class Mapped(Softmax):
    """Of the precision that its inputs have, and no other."""

    def __init__(self, heads: int, dim_head: int, queries: Grid, keys: Grid):
        super().__init__(heads, dim_head, queries, keys)
        self.map = nn.Linear(dim_head, dim_head)

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().mix(q, self.map(k), v)


class Shy(Softmax):
    """One query short when it is first asked, where nothing else is asked for."""

    asked = False

    def forward(self, q, k, v):
        out, plain = super().forward(q, k, v), self.queries == self.keys and not v.requires_grad
        plain = plain and len(q) > 1 and q.dtype == torch.float64 and v.shape[-1] == q.shape[-1]
        first, self.asked = not self.asked, True
        return out[:, :, 1:] if first and plain else out


def refuses(when: Callable[[Tensor, Tensor, Tensor], bool]) -> type[Mechanism]:
    def flaw(out, q, k, v):
        if when(q, k, v):
            raise ValueError("not that")
        return out

    return softmax(flaw)


def last(out: Tensor, factor: Tensor | float, channels: int = 1) -> Tensor:
    """The last channels of the last query of the last head times a factor."""
    factors = torch.ones_like(out)
    factors[:, -1, -1, -channels:] = torch.as_tensor(factor, dtype=out.dtype)
    return out * factors


def overflowing(x: Tensor) -> Tensor:
    """1, or not a number where a sample has an entry beyond 25: scaled by 16, all have."""
    return 1 + 0 * torch.where(x.abs().amax(**OF_A_SAMPLE) > 25, torch.inf, 1.0)


def vanishing(x: Tensor) -> Tensor:
    """1, or not a number where all of a sample is zero."""
    most = x.abs().amax(**OF_A_SAMPLE)
    return most / most


def at_one(x: Tensor) -> Tensor:
    """1, or not a number for noise of scale 1 in single precision."""
    met = x.dtype == torch.float32 and 1 < x.abs().max() < 10
    return torch.tensor(torch.nan if met else 1.0, dtype=x.dtype)


def loud(x: Tensor) -> bool:
    """Whether a sample is among others a thousand times as large."""
    return bool(len(x) > 1 and x.abs().max() > 1e3)


def sees(sample: int) -> Flaw:
    def flaw(out, q, k, v):
        factors = torch.ones_like(out)
        if len(q) > 1:
            factors[sample] += 1e-6
        return factors * out

    return flaw


FLAWS = {  # what each lacks
    "one query short": (SHAPES, Shy),
    "adds each query's own value": (FEWER, softmax(lambda out, q, k, v: out + v)),
    "refuses fewer queries": (FEWER, refuses(lambda q, k, v: q.shape[2] < k.shape[2])),
    "refuses wider values": (WIDER, refuses(lambda q, k, v: v.shape[-1] == 24)),
    "nan for queries of zero": (FINITE, softmax(lambda out, q, k, v: out * vanishing(q))),
    "nan for keys of zero": (FINITE, softmax(lambda out, q, k, v: out * vanishing(k))),
    "nan for queries of scale one": (FINITE, softmax(lambda out, q, k, v: out * at_one(q))),
    "nan for keys of scale one": (FINITE, softmax(lambda out, q, k, v: out * at_one(k))),
    "nan for large queries": (FINITE, softmax(lambda out, q, k, v: out * overflowing(q))),
    "nan for large keys": (FINITE, softmax(lambda out, q, k, v: out * overflowing(k))),
    "a single nan": (FINITE, softmax(lambda out, q, k, v: last(out, overflowing(q)[..., 0, 0]))),
    "another scale in a batch": (
        ALONE,
        softmax(lambda out, q, k, v: out * (1 + 2e-10 * (len(q) > 1))),
    ),
    "another scale beside small ones": (
        ALONE,
        softmax(lambda out, q, k, v: out * (1 + 1e-6 * (len(q) > 1 and not loud(q)))),
    ),
    **{
        f"another scale beside large {name}": (
            ALONE,
            softmax(lambda out, *qkv, i=i: out * (1 + 1e-6 * loud(qkv[i]))),
        )
        for i, name in enumerate(("queries", "keys", "values"))
    },
    "nan beside large keys": (
        ALONE,
        softmax(lambda out, q, k, v: out * (torch.nan if loud(k) else 1)),
    ),
    "a query of another scale in a batch": (
        ALONE,
        softmax(lambda out, q, k, v: last(out, 1 + 1e-2 * (len(q) > 1), v.shape[-1])),
    ),
    **{f"sample {i} sees others": (ALONE, softmax(sees(i))) for i in range(3)},
    "another scale for narrow values": (
        LINEAR,
        softmax(lambda out, q, k, v: out * (1 + 2e-9 * (v.shape[-1] == 16))),
    ),
    "an entry of another scale for narrow values": (
        LINEAR,
        softmax(lambda out, q, k, v: last(out, 1 + 1e-2 * (v.shape[-1] == 16))),
    ),
    "a constant": (LINEAR, softmax(lambda out, q, k, v: out + 1e-3)),
    "bent": (LINEAR, softmax(lambda out, q, k, v: out.tanh())),
    "values without gradient": (GRADIENTS, softmax(lambda out, q, k, v: out.detach())),
    "idle": (GRADIENTS, gained(lambda gain: gain, idle=torch.ones(2))),
    "gain that is detached": (GRADIENTS, gained(lambda gain: gain.detach())),
    "gain without effect": (GRADIENTS, gained(lambda gain: 1 + 0 * gain)),
    "gain with an infinite slope": (GRADIENTS, gained(lambda gain: 1 + (gain - 1).sqrt())),
    "a number that is not saved": (SAVED, drawing(1.0, saved=False)),
    "a small number that is not saved": (SAVED, drawing(1e-12, saved=False)),
}
SOUND = {
    "softmax": Softmax,
    "in a batch, a scale that is allowed": softmax(
        lambda out, q, k, v: out * (1 + 5e-11 * (len(q) > 1))
    ),
    "for narrow values, a scale that is allowed": softmax(
        lambda out, q, k, v: out * (1 + 5e-10 * (v.shape[-1] == 16))
    ),
    "a gain": gained(lambda gain: gain),
    "a gain, and a parameter without entries": gained(lambda gain: gain, none=torch.ones(0)),
    "a linear map of its own": Mapped,
    "a number that is saved": drawing(1.0, saved=True),
}


def failing(mechanism: Callable[..., Mechanism]) -> list[str]:
    return [row.property for row in check_mechanism(mechanism) if not row.holds]


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_flaw_is_told_and_nothing_else(flaw):
    lacking, mechanism = FLAWS[flaw]
    assert failing(mechanism) == [lacking]


@pytest.mark.parametrize("name", SOUND)
def test_what_is_allowed_is_not_told(name):
    assert failing(SOUND[name]) == []


def test_every_property_has_a_flaw_of_its_own():
    assert [row.property for row in check_mechanism(Softmax)] == ALL
    assert {lacking for lacking, _ in FLAWS.values()} == set(ALL)


def test_linearity_is_tried_on_every_sample():
    """Bent where an entry of a sample's values is negative: of three, one or more in 7 of 8."""

    def bent(channel: int, token: int) -> type[Mechanism]:
        def flaw(out, q, k, v):
            negative = (v[:, :1, token : token + 1, channel : channel + 1] < 0) & (v.shape[-1] < 65)
            return torch.where(negative, 1.001, 1.0) * out

        return softmax(flaw)

    told = [failing(bent(channel, token)) for channel in range(16) for token in range(2)]
    assert told.count([LINEAR]) + told.count([]) == 32
    assert told.count([LINEAR]) >= 24


def test_one_head_of_keys_is_asked_where_a_mechanism_wants_one():
    class OneHead(Softmax):
        kv_heads = 1

        def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            assert k.shape[1] == v.shape[1] == 1 < q.shape[1]
            return super().mix(q, k, v)

    assert failing(OneHead) == []


def test_what_was_seen_is_told():
    seen = {row.property: row.seen for row in check_mechanism(Softmax)}
    assert list(seen.values()) == [
        "(3, 2, 65, 16)",
        "(3, 2, 16, 16)",
        "(3, 2, 65, 24)",
        "at scales 0, 1 and 16",
        "relative difference below 1e-10",
        "relative difference below 1e-09",
        "v",
        "a loaded copy gives equal output",
    ]

    def told(flaw: str) -> str:
        lacking, mechanism = FLAWS[flaw]
        return {row.property: row.seen for row in check_mechanism(mechanism)}[lacking]

    assert told("one query short") == "expected (3, 2, 65, 16), got (3, 2, 64, 16)"
    assert told("refuses wider values") == "ValueError: not that"
    assert told("another scale in a batch") == "relative difference 2e-10"
    assert told("another scale for narrow values") == "relative difference 2e-09"
    assert told("idle") == "none for idle"
    assert told("nan beside large keys") == "relative difference nan"


def test_all_that_gradients_reach_is_named():
    seen = {row.property: row.seen for row in check_mechanism(SOUND["a gain"])}
    assert seen["gradients reach values and parameters"] == "v, gain"


def test_a_report_repeats():
    """It draws the same whenever it is asked."""
    drawn = []

    def record(out, q, k, v):
        drawn.append(float(q.sum()))
        return out

    for _ in range(2):
        torch.rand(1)
        assert failing(softmax(record)) == []
    assert drawn[: len(drawn) // 2] == drawn[len(drawn) // 2 :]
