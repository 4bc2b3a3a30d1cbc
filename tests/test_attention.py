"""Every mechanism keeps one contract and is exact where the maths says so."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from small import random
from torch import nn

from benchmarks import plain
from vixlib.attention import (
    Grid,
    Linformer,
    Mechanism,
    Nystrom,
    Performer,
    Softmax,
    attend,
    attention_map,
    orthogonal_gaussian,
    pseudo_inverse,
    reflected,
    segment_means,
)
from vixlib.contract import check_mechanism
from vixlib.errors import BadInput
from vixlib.layers import OffsetBias
from vixlib.models.zoo import MECHANISMS

HEADS, WIDTH = 4, 32
GRID = Grid(8, 8, 1)


def tensors(n, m=None, e=WIDTH, scale=1.0, heads=HEADS, batch=2):
    """q, k, v in float64."""
    m = m or n
    shapes = (n, WIDTH), (m, WIDTH), (m, e)
    return [scale * torch.randn(batch, heads, *shape, dtype=torch.float64) for shape in shapes]


def textbook(q, k, v):
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize(
    "mechanism",
    [*MECHANISMS.values(), partial(Linformer, kv_heads=1, shared=True), partial(Nystrom, kernel=5)],
)
def test_contract(mechanism):
    report = check_mechanism(mechanism)
    assert report["holds"].all(), report


def test_contract_notices_what_is_wrong():
    class Leaky(Performer):
        def mix(self, q, k, v):
            return super().mix(q / (1 + q.abs().amax()), k, v)

    class Bent(Softmax):
        def mix(self, q, k, v):
            return super().mix(q, k, v).sigmoid()

    class Narrow(Softmax):
        def mix(self, q, k, v):
            return super().mix(q, k, v[..., : k.shape[-1]])

    class Forgetful(Performer):
        def state_dict(self, *args, **kwargs):
            return {}

        def load_state_dict(self, state):
            pass

    broken = {
        Leaky: "no sample sees another",
        Bent: "linear in v: map @ v is the output",
        Narrow: "shapes",
        Forgetful: "all of it is in the state dict",
    }
    for mechanism, name in broken.items():
        assert name in check_mechanism(mechanism).query("not holds")["property"].tolist()


def test_softmax_is_the_formula():
    q, k, v = tensors(65)
    assert relative(Softmax(HEADS, WIDTH, GRID, GRID)(q, k, v), textbook(q, k, v)) < 1e-12


def test_linformer_with_the_identity_is_softmax():
    for queries, keys in ((GRID, GRID), (Grid(4, 4), Grid(8, 8)), (GRID, Grid(4, 4, 1))):
        q, k, v = tensors(queries.tokens, keys.tokens)
        linformer = Linformer(HEADS, WIDTH, queries, keys, rank=keys.tokens).double()
        identity = torch.eye(keys.tokens, dtype=torch.float64)
        with torch.no_grad():
            linformer.projection_extra.copy_(identity[:, : keys.extra])
            linformer.projection.copy_(identity[:, keys.extra :].view_as(linformer.projection))
        assert relative(linformer(q, k, v), textbook(q, k, v)) < 1e-12


def test_linformers_projection_is_drawn_between_the_roots_of_its_rank():
    linformer = Linformer(HEADS, WIDTH, Grid(16, 16, 4), Grid(16, 16, 4), rank=16)
    for part in (linformer.projection, linformer.projection_extra):
        assert 0.2 < part.abs().max() <= 0.25
        assert part.std().item() == pytest.approx(0.25 / math.sqrt(3), rel=0.15)


def test_linformer_projects_tokens_as_the_formula_says():
    q, k, v = tensors(65)
    linformer = Linformer(HEADS, WIDTH, GRID, GRID, rank=7).double()
    e = torch.cat([linformer.projection_extra, linformer.projection.flatten(1)], 1)
    assert relative(linformer(q, k, v), textbook(q, e @ k, e @ v)) < 1e-12


@pytest.mark.parametrize(("queries", "keys"), [(GRID, GRID), (Grid(5, 7), Grid(5, 7))])
def test_nystrom_with_all_landmarks_is_softmax(queries, keys):
    q, k, v = tensors(queries.tokens, keys.tokens)
    build = partial(Nystrom, HEADS, WIDTH, queries, keys, landmarks=queries.tokens, kernel=None)
    assert relative(build(iterations=24)(q, k, v), textbook(q, k, v)) < 1e-9
    assert 1e-4 < relative(build(iterations=6)(q, k, v), textbook(q, k, v)) < 0.1


def test_nystrom_is_the_formula():
    q, k, v = tensors(65)
    nystrom = Nystrom(HEADS, WIDTH, GRID, GRID, landmarks=8).double()
    q_mean, k_mean = segment_means(q, 8), segment_means(k, 8)
    between = textbook(q_mean, k_mean, torch.eye(8, dtype=torch.float64))
    left = textbook(q, k_mean, torch.eye(8, dtype=torch.float64))
    weight = nystrom.residual.weight
    residual = F.conv2d(v, weight, padding=(16, 0), groups=HEADS)
    expected = left @ plain.pseudo_inverse(between, 6) @ textbook(q_mean, k, v) + residual
    assert relative(nystrom(q, k, v), expected) < 1e-12


@pytest.mark.parametrize(("queries", "stride"), [(Grid(8, 8), 1), (Grid(4, 4), 2)])
def test_nystrom_takes_the_bias_of_its_landmarks(queries, stride):
    keys, heads, mean = Grid(8, 8), 2, partial(segment_means, segments=5)
    bias = OffsetBias(heads, queries, keys, stride).double()
    with torch.no_grad():
        bias.table.normal_()
    q, k, v = tensors(queries.tokens, keys.tokens, heads=heads)

    def softmax(q, k, **of):
        return (q @ k.mT / math.sqrt(WIDTH) + bias(**of)).softmax(-1)

    left = softmax(q, mean(k), of_k=mean)
    between = softmax(mean(q), mean(k), of_q=mean, of_k=mean)
    expected = left @ plain.pseudo_inverse(between, 6) @ softmax(mean(q), k, of_q=mean) @ v
    made = Nystrom(heads, WIDTH, queries, keys, landmarks=5, kernel=None)
    assert relative(made(q, k, v, bias=bias), expected) < 1e-12
    if queries == keys:
        made = Nystrom(heads, WIDTH, queries, keys, landmarks=64, iterations=24, kernel=None)
        assert relative(made(q, k, v, bias=bias), softmax(q, k) @ v) < 1e-9


def test_one_iteration_of_the_pseudo_inverse_is_the_formula():
    a, w = random(5, 5).softmax(-1), random(5, 3)
    z, i = a.mT / (a.sum(0).max() * a.sum(1).max()), torch.eye(5, dtype=torch.float64)
    once = z @ (13 * i - a @ z @ (15 * i - a @ z @ (7 * i - a @ z))) / 4
    assert relative(pseudo_inverse(a[None], w[None], 1)[0], once @ w) < 1e-12


@pytest.mark.parametrize("iterations", [0, 1, 2, 6])
@pytest.mark.parametrize("size", [1, 2, 6, 17])
def test_pseudo_inverse_applied_is_the_one_formed(size, iterations):
    a, w = random(3, 2, size, size).softmax(-1), random(3, 2, size, 5)
    expected = plain.pseudo_inverse(a, iterations) @ w
    assert relative(pseudo_inverse(a, w, iterations), expected) < 1e-12


def test_pseudo_inverse_of_each_matrix_alone():
    a, w = torch.rand(3, 2, 6, 6, dtype=torch.float64).softmax(-1), random(3, 2, 6, 6)
    assert torch.allclose(pseudo_inverse(a, w, 40), torch.linalg.pinv(a) @ w, atol=1e-8)
    alone = torch.cat([pseudo_inverse(*one, 6) for one in zip(a.split(1), w.split(1), strict=True)])
    assert torch.equal(pseudo_inverse(a, w, 6), alone)


def test_reflection_gathers_the_mean_in_the_first_row():
    x = random(2, 7, 3)
    turned = reflected(x)
    assert relative(turned[:, 0], -(7**0.5) * x.mean(1)) < 1e-12
    assert relative(reflected(turned), x) < 1e-12
    assert relative(turned.mT @ turned, x.mT @ x) < 1e-12


@pytest.mark.parametrize(("tokens", "segments"), [(64, 4), (65, 4), (67, 4), (5, 5), (9, 1)])
def test_segment_means_cover_every_token_once(tokens, segments):
    x = torch.randn(2, 3, tokens, 5, dtype=torch.float64)
    runs = [len(run) for run in torch.arange(tokens).tensor_split(segments)]
    expected = torch.stack([run.mean(-2) for run in x.split(runs, -2)], -2)
    assert torch.allclose(segment_means(x, segments), expected)


def test_performer_error_falls_with_the_root_of_features():
    q, k, v = tensors(65, scale=0.5)
    v = v + 1  # else exact attention averages v to nearly nothing
    exact = textbook(q, k, v)

    def error(features):
        make = partial(Performer, HEADS, WIDTH, GRID, GRID, features=features)
        return sum(relative(make().double()(q, k, v), exact) for _ in range(8)) / 8

    errors = [error(features) for features in (64, 256, 1024, 4096)]
    slope = math.log(errors[0] / errors[-1]) / math.log(64)
    assert 0.4 < slope < 0.6, errors


def test_performer_features_are_those_of_the_lemma():
    q, k, v = tensors(65)
    performer = Performer(HEADS, WIDTH, GRID, GRID).double()
    w = performer.directions

    def phi(x):
        x = x * WIDTH**-0.25
        return (x @ w.T - x.square().sum(-1, keepdim=True) / 2).exp()

    matrix = phi(q) @ phi(k).mT
    assert relative(performer(q, k, v), matrix @ v / matrix.sum(-1, keepdim=True)) < 1e-12


@pytest.mark.parametrize("scale", [1, 4, 16])
def test_performer_does_not_underflow_for_large_norms(scale):
    q, k, v = tensors(65, scale=scale)
    performer = Performer(HEADS, WIDTH, GRID, GRID)
    w = performer.directions.double()

    def exponents(x):
        x = x * WIDTH**-0.25
        return x @ w.T - x.square().sum(-1, keepdim=True) / 2

    # the lemma's matrix from logarithms: exact where its exponentials leave every float's range
    logs = (exponents(q)[..., :, None, :] + exponents(k)[..., None, :, :]).logsumexp(-1)
    assert relative(performer(q.float(), k.float(), v.float()), logs.softmax(-1) @ v) < 1e-3


def test_batch_wide_is_as_released():
    """The released code's own formulas, written out; there, a sample sees its neighbours."""
    q, k, v = tensors(65)
    performer = Performer(HEADS, WIDTH, GRID, GRID, batch_wide=True).double()

    def features(x, largest):
        dash = x * WIDTH**-0.25 @ performer.directions.T
        diagonal = x.square().sum(-1, keepdim=True) / 2 * WIDTH**-0.5
        return (dash - diagonal - largest(dash)).exp() + 1e-4

    phi_q, phi_k = features(q, lambda dash: dash.amax(-1, keepdim=True)), features(k, torch.max)
    expected = phi_q @ (phi_k.mT @ v) / (phi_q @ phi_k.sum(-2)[..., None])
    assert relative(performer(q, k, v), expected) < 1e-12

    a = torch.rand(2, 3, 6, 6, dtype=torch.float64).softmax(-1)
    start = a.mT / (a.sum(-1).max() * a.sum(-2).max())
    assert relative(pseudo_inverse(a, a, 0, batch_wide=True), start @ a) < 1e-12

    for mechanism in (Performer, Nystrom):
        made = mechanism(HEADS, WIDTH, GRID, GRID, batch_wide=True).double()
        both, alone = (
            made(q, k, v),
            [made(*x) for x in zip(*(t.split(1) for t in (q, k, v)), strict=True)],
        )
        assert relative(torch.cat(alone), both) > 1e-6


def test_orthogonal_directions():
    w = orthogonal_gaussian(70, 32).double()
    gram = w[:32] @ w[:32].T
    assert (gram - gram.diag().diag()).abs().max() < 1e-4
    assert w.norm(dim=1).mean() == pytest.approx(math.sqrt(32), rel=0.1)
    lengths = orthogonal_gaussian(3200, 32).norm(dim=1)  # those of Gaussian vectors: chi
    assert lengths.std().item() == pytest.approx(math.sqrt(0.5), rel=0.1)


def test_few_tokens_keep_softmax():
    few, enough = Grid(7, 9), Grid(8, 8)
    for mechanism in MECHANISMS.values():
        assert type(attend(mechanism, HEADS, WIDTH, few, few)) is Softmax
        assert type(attend(mechanism, HEADS, WIDTH, enough, enough)) is mechanism
        assert type(attend(mechanism, HEADS, WIDTH, few, enough)) is mechanism


def test_a_sixteenth_of_the_tokens_unless_said():
    for tokens, kept in ((Grid(32, 32, 1), 64), (Grid(16, 16), 16), (Grid(8, 8, 1), 4)):
        assert Linformer(HEADS, WIDTH, tokens, tokens).reduced == kept
        assert Nystrom(HEADS, WIDTH, tokens, tokens).reduced == kept


def test_refusals_name_the_largest_legal_value():
    for mechanism in (partial(Nystrom, landmarks=65), partial(Linformer, rank=65)):
        with pytest.raises(BadInput, match="65 queries and 65 keys: at most 64"):
            attend(mechanism, HEADS, WIDTH, GRID, GRID)
    with pytest.raises(BadInput, match="landmarks=66"):
        Nystrom(HEADS, WIDTH, GRID, GRID, landmarks=66)
    with pytest.raises(BadInput, match="at least 1, got 0"):
        Nystrom(HEADS, WIDTH, GRID, GRID, landmarks=0)
    with pytest.raises(TypeError, match="whole number"):
        Performer(HEADS, WIDTH, GRID, GRID, features=2.5)


def test_wrong_shapes_are_named():
    q, k, v = tensors(65)
    for mechanism in MECHANISMS.values():
        with pytest.raises(BadInput, match=r"65, 32.*got q \(2, 4, 64, 32\)"):
            mechanism(HEADS, WIDTH, GRID, GRID)(q[:, :, :64], k, v)


def test_the_map_of_a_mechanism_is_what_multiplies_values():
    q, k, v = tensors(65, e=7)
    for mechanism in MECHANISMS.values():
        made = mechanism(HEADS, WIDTH, GRID, GRID).double()
        assert relative(attention_map(made, q, k) @ v, made(q, k, v)) < 1e-9


def test_half_precision_is_computed_in_float32():
    q, k, v = tensors(65)
    for mechanism in (Performer, Nystrom):
        made = mechanism(HEADS, WIDTH, GRID, GRID)
        exact = made.double()(q, k, v)
        half = made.bfloat16()(q.bfloat16(), k.bfloat16(), v.bfloat16())
        assert half.dtype == torch.bfloat16
        assert relative(half.double(), exact) < 0.05


def test_a_new_mechanism_needs_only_mix():
    class Mean(Mechanism):
        def mix(self, q, k, v):
            return v.mean(-2, keepdim=True).expand(-1, -1, q.shape[-2], -1)

    assert isinstance(attend(Mean, HEADS, WIDTH, GRID, GRID), nn.Module)
    assert check_mechanism(Mean)["holds"].all()
