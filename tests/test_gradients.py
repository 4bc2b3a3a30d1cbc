"""Every gradient is that of the formula: against differences in float64, and in float32."""

from functools import partial

import pytest
import torch
from small import random
from torch import nn
from torch.autograd import gradcheck

from vixlib import self_attention
from vixlib.attention import Grid, TokenConvolution, segment_means
from vixlib.fused import (
    Fourier,
    Linformer,
    MultiHead,
    Nystrom,
    Performer,
    Softmax,
    pseudo_inverse_times,
)
from vixlib.layers import (
    LinearNorm,
    OffsetBias,
    Positions,
    Residual,
    Rotary,
    Subsample,
    TokenMLP,
    TokenNorm,
)
from vixlib.models.cvt import ConvolutionalProjection, convolutional_attention

HEADS, WIDTH = 2, 4
GRID, FEWER = Grid(3, 4, 1), Grid(2, 3)
MECHANISMS = {
    "softmax": Softmax,
    "linformer": partial(Linformer, rank=3),
    "linformer, one key head": partial(Linformer, rank=3, kv_heads=1),
    "performer": partial(Performer, features=5),
    "nystrom": partial(Nystrom, landmarks=5, kernel=5),  # 13 tokens: runs of three and of two
    "nystrom, whole runs": partial(Nystrom, landmarks=1, kernel=None),
}
GRIDS = {"n = m": (GRID, GRID), "n < m": (FEWER, GRID), "n > m": (GRID, FEWER)}


random = partial(random, requires_grad=True)


def check(module: nn.Module, *inputs, fast: bool = False, **options) -> None:
    """gradcheck with respect to the inputs and to every parameter of a module in float64.

    `fast` is along random directions, not number by number.
    """
    parameters = {name: p for name, p in module.named_parameters() if p.numel()}

    def function(*tensors):
        values = dict(zip(parameters, tensors[len(inputs) :], strict=True))
        return torch.func.functional_call(module, values, tensors[: len(inputs)], options)

    assert gradcheck(function, (*inputs, *parameters.values()), fast_mode=fast)


def tokens(made, width=3):
    """q, k, v for a mechanism; values wider or narrower than keys."""
    kv = made.kv_heads or made.heads
    n, m = made.queries.tokens, made.keys.tokens
    return (
        random(2, made.heads, n, made.dim_head),
        random(2, kv, m, made.dim_head),
        random(2, kv, m, width),
    )


@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize("name", MECHANISMS)
def test_mechanisms(name, grids):
    made = MECHANISMS[name](HEADS, WIDTH, *GRIDS[grids]).double()
    check(made, *tokens(made), fast=grids == "n > m" or name == "nystrom, whole runs")


@pytest.mark.parametrize("grids", GRIDS)
def test_linformer_whose_values_are_its_keys(grids):
    build = partial(Linformer, rank=3, kv_heads=1, shared=True)
    made = build(HEADS, WIDTH, *GRIDS[grids]).double()
    q, k, _ = tokens(made)

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.made = made

        def forward(self, q, k):
            return self.made(q, k, k)

    check(Shared(), q, k)


@pytest.mark.parametrize("name", ["softmax", "nystrom"])
@pytest.mark.parametrize("queries", [Grid(3, 4), Grid(2, 2)])
def test_mechanisms_with_a_bias(name, queries):
    keys, stride = Grid(3, 4), 1 if queries.rows == 3 else 2
    build = {"softmax": Softmax, "nystrom": partial(Nystrom, landmarks=3, kernel=3)}[name]

    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.made = build(HEADS, WIDTH, queries, keys)
            self.bias = OffsetBias(HEADS, queries, keys, stride)

        def forward(self, q, k, v):
            return self.made(q, k, v, bias=self.bias)

    made = Biased().double()
    with torch.no_grad():
        made.bias.table.normal_()
    check(made, *tokens(made.made), fast=queries == keys)


def test_performers_maximum_needs_no_gradient():
    """It is detached, since the output does not depend on it: also where it is large."""
    made = Performer(HEADS, WIDTH, GRID, GRID, features=5).double()
    q, k, v = tokens(made)
    q, k = ((3 * t).detach().requires_grad_() for t in (q, k))
    check(made, q, k, v)


def test_parts_of_nystrom():
    x = random(2, 2, 13, 3)
    assert gradcheck(partial(segment_means, segments=5), (x,))
    inverse = partial(pseudo_inverse_times, iterations=6)
    assert gradcheck(inverse, (random(2, 4, 4), random(2, 4, 3)))
    check(TokenConvolution(2, 5).double(), x)


LAYERS = {
    "Fourier": lambda: Fourier(4, GRID),
    "TokenMLP": lambda: TokenMLP(4, GRID),
    "Positions": lambda: Positions(4, GRID),
    "Residual": lambda: Residual(nn.LayerNorm(4), nn.Linear(4, 4)),
    "TokenNorm": lambda: TokenNorm(4),
    "LinearNorm": lambda: LinearNorm(4, 3, gain=0.5),
    "ConvolutionalProjection": lambda: ConvolutionalProjection(4, GRID),
    "ConvolutionalProjection, strided": lambda: ConvolutionalProjection(4, GRID, 2),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, training):
    layer = LAYERS[name]().double().train(training)
    check(layer, random(2, GRID.tokens, 4))


def test_rotary_and_subsample():
    check(Rotary(WIDTH, GRID).double(), random(2, HEADS, GRID.tokens, WIDTH))
    check(Subsample(Grid(3, 4), 2), random(2, 12, 4))


def test_stochastic_depth():
    layer = Residual(nn.Linear(3, 3), drop_path=0.5).double()

    class Seeded(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            torch.manual_seed(3)
            return self.layer(x)

    check(Seeded(), random(6, 5, 3))


GRID64 = Grid(8, 8)  # under 64 tokens all would be softmax
SMALL = {
    Softmax: {},
    Linformer: {"rank": 2},
    Performer: {"features": 3},
    Nystrom: {"landmarks": 3},
}


@pytest.mark.parametrize("mechanism", SMALL)
@pytest.mark.parametrize("host", ["rotary", "convolutional", "biased"])
def test_multihead(host, mechanism):
    mechanism = partial(mechanism, **SMALL[mechanism])
    if host == "rotary":
        made = self_attention(4, GRID64, mechanism=mechanism, dim_head=2, rotary=True)
    elif host == "convolutional":
        made = convolutional_attention(4, GRID64, mechanism=mechanism, dim_head=2)
    else:
        inner, q = mechanism(2, 2, Grid(4, 4), GRID64), nn.Sequential(Subsample(GRID64, 2))
        bias = OffsetBias(2, Grid(4, 4), GRID64, 2)
        made = MultiHead(inner, q.append(nn.Linear(4, 4)), nn.Linear(4, 4), None, nn.Identity())
        made.bias = bias if inner.takes_bias else None
    made = made.double()
    x = random(1, 64, 4)
    # in one random direction: the whole of it was seen part by part
    parameters = {name: p for name, p in made.named_parameters() if p.numel()}

    def function(x, *values):
        return torch.func.functional_call(made, dict(zip(parameters, values, strict=True)), (x,))

    assert gradcheck(function, (x, *parameters.values()), fast_mode=True)


@pytest.mark.parametrize("tokens", [*range(33, 80), 256, 257, 1024, 4096])
def test_float32_gradients_of_the_convolution_at_every_length(tokens):
    """oneDNN's own is wrong by percents where the length is 1 more than a multiple of 15."""
    made = TokenConvolution(1, 33)
    v, back = torch.randn(2, 1, 1, tokens, 16)
    (seen,) = torch.autograd.grad(made(v), made.weight, back)
    made.double()
    (exact,) = torch.autograd.grad(made(v.double()), made.weight, back.double())
    assert (seen - exact).norm() < 1e-5 * exact.norm()
