"""Each layer is its formula, on grids whose rows and columns differ."""

import math

import pytest
import torch
import torch.nn.functional as F
from small import random
from torch import nn

from vixlib import fused, layers, self_attention
from vixlib.attention import Grid, Softmax
from vixlib.layers import (
    FRESH_STD,
    ConvolutionalEmbedding,
    LinearNorm,
    MultiHead,
    OffsetBias,
    Positions,
    Residual,
    Rotary,
    Subsample,
    TokenMLP,
    TokenNorm,
    mlp,
    shrunk,
    tokens_of,
)
from vixlib.models.cct import CCX
from vixlib.models.levit import LeViX
from vixlib.models.vix import ViX

GRID = Grid(3, 5, 1)


def test_tokens_in_raster_order_after_cls():
    image = random(2, 4, 3, 5)
    assert torch.equal(tokens_of(image)[:, 8], image[:, :, 1, 3])
    positions, x = Positions(4, GRID).double(), random(2, 16, 4)
    added = positions(x) - x
    assert torch.allclose(added[:, 0], positions.prefix[0].expand(2, -1))
    assert torch.allclose(added[:, 1 + 8], positions.table[:, 1, 3].expand(2, -1))


def test_fresh_positions_are_small():
    spread = Positions(64, Grid(16, 16)).table.std().item()
    assert FRESH_STD == 0.02
    assert spread == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(("patch", "strides"), [(1, (1, 1, 1)), (2, (2, 1, 1)), (8, (2, 2, 2))])
def test_hybrids_stride_first(patch, strides):
    assert tuple(conv.stride[0] for conv in ConvolutionalEmbedding(8, patch)) == strides


def test_rotary_is_the_formula():
    """Each pair is a complex number that turns by place x 10,000^(-2 i / d)."""
    d, x = 8, random(2, 3, GRID.tokens, 8)
    speeds = 10_000.0 ** (-2 * torch.arange(d // 2, dtype=torch.float64) / d)
    angles = torch.arange(GRID.tokens, dtype=torch.float64)[:, None] * speeds
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(
        torch.ones_like(angles), angles
    )
    expected = torch.view_as_real(turned).flatten(-2)
    assert torch.allclose(Rotary(d, GRID).double()(x), expected, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_bias_is_that_of_each_distance(stride):
    keys = Grid(4, 6)
    queries = shrunk(keys, stride)
    bias = OffsetBias(2, queries, keys, stride)
    with torch.no_grad():
        bias.table.normal_()
    for i in range(queries.tokens):
        row, column = (stride * at for at in divmod(i, queries.columns))
        for j in range(keys.tokens):
            rows, columns = abs(row - j // 6), abs(column - j % 6)
            assert torch.equal(bias()[:, i, j], bias.table[:, rows, columns])


def test_multihead_is_each_head_alone():
    """Head i has the i-th run of widths of queries, keys, values and of what goes out."""
    attention = self_attention(12, GRID, dim_head=4).double()
    x = random(2, GRID.tokens, 12)
    q, k, v = (project(x).split(4, -1) for project in (attention.q, attention.k, attention.v))
    heads = [
        (q[i] @ k[i].mT / math.sqrt(4)).softmax(-1) @ v[i]  # no convenience: the textbook's
        for i in range(3)
    ]
    assert torch.allclose(attention(x), attention.out(torch.cat(heads, -1)))


@pytest.mark.parametrize("form", [layers.MultiHead, fused.MultiHead], ids=["textbook", "fused"])
def test_a_host_may_scale_scores_and_add_a_bias(form):
    grid, x = Grid(3, 5), random(2, 15, 4)
    bias = OffsetBias(2, grid, grid)
    with torch.no_grad():
        bias.table.normal_()
    parts = [nn.Linear(4, 4) for _ in range(4)]
    made = form(Softmax(2, 2, grid, grid), *parts, bias=bias, scale=0.3).double()
    q, k, v = (part(x).unflatten(-1, (2, 2)).transpose(1, 2) for part in parts[:3])
    heads = (0.3 * q @ k.mT / math.sqrt(2) + bias()).softmax(-1) @ v
    assert torch.allclose(made(x), parts[3](heads.transpose(1, 2).flatten(2)))


def test_rotary_turns_queries_and_keys_alike():
    attention, seen = self_attention(8, GRID, dim_head=8, rotary=True), []
    attention.mechanism.register_forward_pre_hook(lambda m, qkv: seen.extend(qkv))
    x = torch.randn(2, GRID.tokens, 8)
    attention(x)
    for got, project in zip(seen, (attention.q, attention.k), strict=False):
        assert torch.equal(got, attention.rotary(project(x)[:, None]))
    assert torch.equal(seen[2], attention.v(x)[:, None])


@pytest.mark.parametrize("form", [layers.Fourier, fused.Fourier], ids=["textbook", "fused"])
def test_fourier_is_the_formula(form):
    x = random(2, 5, 4)
    tokens, channels = (
        torch.polar(torch.ones(n, n, dtype=torch.float64), -2 * math.pi / n * places.outer(places))
        for n, places in ((n, torch.arange(float(n), dtype=torch.float64)) for n in (5, 4))
    )
    expected = (tokens @ x.to(torch.complex128) @ channels).real
    assert torch.allclose(form(4, Grid(1, 5))(x), expected)


def test_token_mlp_and_mlp_are_the_formula():
    mixer, x = TokenMLP(4, Grid(3, 5)).double(), random(2, 15, 4)
    one, _, two = mixer.mlp
    for channel in range(4):
        expected = two(F.gelu(one(x[..., channel])))
        assert torch.allclose(mixer(x)[..., channel], expected)
    assert [type(layer) for layer in mlp(4, 7)] == [nn.Linear, nn.GELU, nn.Linear]


def test_residual_adds_and_drops_whole_samples_in_training():
    x, layer = torch.zeros(4000, 3, 2), nn.Flatten(0, 0)  # an identity
    assert torch.equal(Residual(layer)(x + 1), 2 * (x + 1))
    dropping = Residual(layer, drop_path=0.25)
    branch = dropping(x + 1) - 1
    assert branch.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert all(len(sample.unique()) == 1 for sample in branch)
    assert (branch == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(dropping.eval()(x + 1), 2 * (x + 1))


def test_layers_drop_samples_of_their_own():
    x, layer = torch.ones(1000, 1), nn.Flatten(0, 0)
    one, other = (Residual(layer, drop_path=0.5)(x) for _ in range(2))
    assert 400 < (one == other).sum() < 600


def test_norms_are_over_samples_and_tokens():
    norm, x = TokenNorm(3).double(), 2 + 3 * random(6, 5, 3)
    mean, variance = x.mean((0, 1)), x.var((0, 1), unbiased=False)
    assert torch.allclose(norm(x), (x - mean) / (variance + norm.eps).sqrt())
    assert torch.allclose(norm.running_mean, 0.1 * mean)
    assert LinearNorm(3, 4, gain=0.5)[1].weight.tolist() == [0.5] * 4


def test_subsampling_keeps_every_second_from_the_first():
    x = random(2, 15, 2)
    image = x.unflatten(1, (3, 5))
    kept = Subsample(Grid(3, 5), 2)(x)
    assert torch.equal(kept.unflatten(1, (2, 3)), image[:, [0, 2]][:, :, [0, 2, 4]])
    even = random(2, 24, 2)
    kept = Subsample(Grid(4, 6), 2)(even)
    assert torch.equal(kept.unflatten(1, (2, 3)), even.unflatten(1, (4, 6))[:, ::2, ::2])
    assert shrunk(Grid(3, 4, 1), 2) == Grid(2, 2, 1)
    assert shrunk(Grid(4, 5, 1), 2) == Grid(2, 3, 1)


def test_what_a_host_reads_out():
    """ViX its first token, which is CLS; CCX a weighted mean of all."""
    images = torch.randn(2, 3, 8, 8)
    model, seen = ViX(image_size=8, dim=32, depth=1), []
    model.blocks.register_forward_hook(lambda m, x, out: seen.append((x[0], out)))
    scores = model(images)
    (x, out) = seen[0]
    cls = model.cls + model.positions.prefix
    assert torch.allclose(x[:, 0], cls.expand(2, -1))
    assert torch.equal(scores, model.head(out[:, 0]))

    model, seen = CCX(image_size=8, dim=32, depth=1, drop_path=0.0), []
    model.norm.register_forward_hook(lambda m, x, out: seen.append(out))
    scores = model(images)
    weights = model.importance(seen[0]).exp()
    mean = (weights * seen[0]).sum(1) / weights.sum(1)
    assert torch.allclose(scores, model.head(mean), atol=1e-5)


def test_levits_branches_start_closed_where_they_are_added():
    model = LeViX(image_size=16, stem=(2, 1, 1), widths=(32, 48), heads=(1, 2), depths=(1, 1))
    x = torch.randn(2, 64, 32)
    assert torch.equal(model.blocks[0](x), x)
    attentions = [module for module in model.modules() if isinstance(module, MultiHead)]
    gains = [attention.out[1][1].weight.unique().tolist() for attention in attentions]
    assert gains == [[0.0], [1.0], [0.0]]


@pytest.mark.parametrize("relu", [False, True])
def test_what_stands_between_convolutions_of_the_embedding(relu):
    made, image = ConvolutionalEmbedding(8, 2, relu=relu).double(), random(2, 3, 6, 10)
    first, second, third = (m for m in made if isinstance(m, nn.Conv2d))
    between = torch.relu if relu else torch.positive
    x = between(F.conv2d(image, first.weight, first.bias, stride=2, padding=1))
    x = between(F.conv2d(x, second.weight, second.bias, padding=1))
    assert torch.allclose(made(image), F.conv2d(x, third.weight, third.bias, padding=1))
