"""Half precision follows float64 as far as its rounding allows, also for large norms."""

import pytest
import torch
from small import VARIED
from trials_precision import (
    FORMATS,
    MECHANISMS,
    SCALES,
    mechanism_holds,
    mechanism_trial,
    system_holds,
    system_trial,
)

from vixlib import list_systems
from vixlib.attention import Grid, segment_means
from vixlib.fused import Softmax
from vixlib.layers import OffsetBias, Rotary


@pytest.mark.parametrize("tokens", [64, 65, 256])  # more in `make proof`
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_mechanism_follows_float64(mechanism, form, tokens):
    seen = {scale: mechanism_trial(mechanism, form, scale, tokens) for scale in SCALES}
    assert all(map(mechanism_holds, seen.values())), seen


HALF = [(name, "autocast to bfloat16") for name in list_systems()]
HALF += [(name, "bfloat16") for name in VARIED]


@pytest.mark.parametrize(("name", "form"), HALF)  # the others in `make proof`
def test_a_system_follows_float64(name, form):
    seen = system_trial(name, form)
    assert system_holds(seen), seen


def test_sums_that_half_precision_would_lose():
    """The judge itself: keys rounded before the scores, as Linformer once did, do not pass."""

    class Rounded(Softmax):
        def mix(self, q, k, v):
            k = k + 2**-9 * k * torch.ones_like(k).bernoulli_().mul_(2).sub_(1)
            return super().mix(q, k, v)

    MECHANISMS["rounded"] = Rounded
    try:
        assert not mechanism_holds(mechanism_trial("rounded", "bfloat16", 16, 65))
    finally:
        del MECHANISMS["rounded"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_places_and_rotations_survive_half_precision(dtype):
    grid = Grid(64, 64)
    bias = OffsetBias(2, grid, grid)
    with torch.no_grad():
        bias.table.copy_(torch.arange(bias.table.numel()).view_as(bias.table) % 127)
    means = {"of_k": lambda x: segment_means(x, 49)}  # landmarks between places
    expected = bias(), bias(**means)
    bias.to(dtype)
    assert torch.equal(bias().float(), expected[0])
    assert torch.equal(bias(**means).float(), expected[1])
    rotary = Rotary(32, grid)
    x = torch.randn(1, 1, grid.tokens, 32).to(dtype)
    expected = rotary(x.float())
    error = (rotary.to(dtype)(x) - expected).norm() / expected.norm()
    assert error < 2 * torch.finfo(dtype).eps
