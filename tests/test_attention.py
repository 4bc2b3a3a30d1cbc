"""Every mechanism keeps one contract and is exact where the maths says so, in both its forms."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from small import random
from torch import nn

from vixlib import attention, build, fused
from vixlib.attention import (
    Grid,
    Mechanism,
    orthogonal_gaussian,
    pseudo_inverse,
    segment_means,
)
from vixlib.contract import check_mechanism
from vixlib.errors import BadInput
from vixlib.fused import Linformer, Nystrom, Performer, Softmax, pseudo_inverse_times, reflected
from vixlib.layers import OffsetBias
from vixlib.maps import attention_map
from vixlib.models.host import mechanism_for
from vixlib.systems import MECHANISMS

HEADS, WIDTH = 4, 32
GRID = Grid(8, 8, 1)


def tensors(n, m=None, e=WIDTH, scale=1.0, heads=HEADS, batch=2):
    """q, k, v in float64."""
    m = m or n
    shapes = (n, WIDTH), (m, WIDTH), (m, e)
    return [scale * torch.randn(batch, heads, *shape, dtype=torch.float64) for shape in shapes]


def textbook(q, k, v):
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v


def inverted(a, iterations):
    """Nyströmformer, equation 14, its start scaled for each matrix alone."""
    i = torch.eye(a.shape[-1], dtype=a.dtype)
    z = a.mT / (a.sum(-1).amax(-1) * a.sum(-2).amax(-1))[..., None, None]
    for _ in range(iterations):
        z = z @ (13 * i - a @ z @ (15 * i - a @ z @ (7 * i - a @ z))) / 4
    return z


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def each(name):
    """Both forms of a mechanism or function: as its paper writes it, and as models use it."""
    return pytest.mark.parametrize(
        "form", [getattr(attention, name), getattr(fused, name)], ids=["textbook", "fused"]
    )


def report(mechanism):
    return {row.property: row.holds for row in check_mechanism(mechanism)}


def failing(mechanism):
    return [name for name, holds in report(mechanism).items() if not holds]


@pytest.mark.parametrize("forms", [attention, fused], ids=["textbook", "fused"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Softmax", {}),
        ("Linformer", {}),
        ("Linformer", {"kv_heads": 1, "shared": True}),
        ("Performer", {}),
        ("Nystrom", {}),
        ("Nystrom", {"kernel": 5}),
    ],
)
def test_contract(name, options, forms):
    """Performer's textbook form underflows for large norms: the reason for the other one."""
    gaps = ["finite"] if (name, forms) == ("Performer", attention) else []
    assert failing(partial(getattr(forms, name), **options)) == gaps


def test_a_report_names_what_a_gradient_reaches():
    seen = {row.property: row.seen for row in check_mechanism(attention.Linformer)}
    told = seen["gradients reach values and parameters"]
    assert told == "v, projection, projection_prefix"


class XCA(Mechanism):
    """Channels mixed, not tokens: softmax over (d d). El-Nouby et al. 2021, equation 2."""

    def mix(self, q, k, v):
        return v @ (F.normalize(k, dim=-2).mT @ F.normalize(q, dim=-2)).softmax(-2)


class Square(Softmax):
    """Each query adds the value of its own token."""

    def mix(self, q, k, v):
        return super().mix(q, k, v) + v


class Leaky(Performer):
    def mix(self, q, k, v):
        return super().mix(q / (1 + q.abs().amax()), k, v)


class Bent(Softmax):
    def mix(self, q, k, v):
        return super().mix(q, k, v).sigmoid()


class Narrow(Softmax):
    def mix(self, q, k, v):
        return super().mix(q, k, v[..., : k.shape[-1]])


class Transposed(Softmax):
    def mix(self, q, k, v):
        return super().mix(q, k, v).mT


class Overflowing(Softmax):
    def mix(self, q, k, v):
        weights = (q @ k.mT).exp()
        return weights @ v / weights.sum(-1, keepdim=True)


class Idle(Softmax):
    def __init__(self, heads: int, dim_head: int, queries: Grid, keys: Grid):
        super().__init__(heads, dim_head, queries, keys)
        self.gain = nn.Parameter(torch.ones(dim_head))


class Forgetful(Performer):
    def state_dict(self, *args, **kwargs):
        return {}

    def load_state_dict(self, state):
        pass


FEWER, WIDER = "fewer queries than keys, as LeViT has", "values wider than keys, as LeViT has"
LINEAR = "linear in v: map @ v is the output"
BROKEN = {  # what each lacks, and nothing else
    XCA: [FEWER, WIDER, LINEAR],
    Square: [FEWER],
    Narrow: [WIDER, LINEAR],
    Bent: [LINEAR],
    Leaky: ["no sample sees another"],
    Overflowing: ["finite"],
    Idle: ["gradients reach values and parameters"],
    Forgetful: ["all of it is in the state dict"],
    # whose shapes are wrong has nothing else to show; 16 queries of 16 channels are a square
    Transposed: [name for name in report(Transposed) if name != FEWER],
}


@pytest.mark.parametrize("mechanism", BROKEN)
def test_contract_notices_what_is_wrong(mechanism):
    assert failing(mechanism) == BROKEN[mechanism]


def test_every_property_is_tried_by_a_mechanism_that_lacks_it():
    names = [*report(Softmax)]
    assert len(names) == 8
    assert "shapes" in failing(Transposed)
    assert {name for lacking in BROKEN.values() for name in lacking} == set(names)


@pytest.mark.parametrize("mechanism", [XCA, Square])
@pytest.mark.parametrize("name", ["LeViT", "CvT"])
def test_hosts_refuse_what_they_would_break(mechanism, name):
    """In one line, when the model is built, not when it first runs."""
    asked = (
        rf"{mechanism.__name__} cannot mix \d+ keys into \d+ queries, keys \d+ and values \d+ wide"
    )
    with pytest.raises(BadInput, match=asked) as caught:
        build(name, attention=mechanism)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mechanism", [XCA, Square])
@pytest.mark.parametrize("name", ["ViT", "CCT"])
def test_other_hosts_take_what_they_can(mechanism, name):
    model = build(name, attention=mechanism, image_size=8)
    assert {type(m) for m in model.modules() if isinstance(m, Mechanism)} == {mechanism}
    assert model(torch.randn(2, 3, 8, 8)).isfinite().all()


@each("Softmax")
def test_softmax_is_the_formula(form):
    q, k, v = tensors(65)
    assert relative(form(HEADS, WIDTH, GRID, GRID)(q, k, v), textbook(q, k, v)) < 1e-12


@each("Linformer")
def test_linformer_with_the_identity_is_softmax(form):
    for queries, keys in ((GRID, GRID), (Grid(4, 4), Grid(8, 8)), (GRID, Grid(4, 4, 1))):
        q, k, v = tensors(queries.tokens, keys.tokens)
        linformer = form(HEADS, WIDTH, queries, keys, rank=keys.tokens).double()
        prefix, places = torch.eye(keys.tokens).split([keys.prefix_tokens, keys[0] * keys[1]], 1)
        with torch.no_grad():
            linformer.projection_prefix.copy_(prefix)
            linformer.projection.copy_(places.view_as(linformer.projection))
        assert relative(linformer(q, k, v), textbook(q, k, v)) < 1e-12


def test_linformers_projection_is_drawn_between_the_roots_of_its_rank():
    linformer = Linformer(HEADS, WIDTH, Grid(16, 16, 4), Grid(16, 16, 4), rank=16)
    for part in (linformer.projection, linformer.projection_prefix):
        assert 0.2 < part.abs().max() <= 0.25
        assert part.std().item() == pytest.approx(0.25 / math.sqrt(3), rel=0.15)


@each("Linformer")
def test_linformer_projects_tokens_as_the_formula_says(form):
    q, k, v = tensors(65)
    linformer = form(HEADS, WIDTH, GRID, GRID, rank=7).double()
    e = torch.cat([linformer.projection_prefix, linformer.projection.flatten(1)], 1)
    assert relative(linformer(q, k, v), textbook(q, e @ k, e @ v)) < 1e-12


@each("Nystrom")
@pytest.mark.parametrize(("queries", "keys"), [(GRID, GRID), (Grid(5, 7), Grid(5, 7))])
def test_nystrom_with_all_landmarks_is_softmax(queries, keys, form):
    q, k, v = tensors(queries.tokens, keys.tokens)
    build = partial(form, HEADS, WIDTH, queries, keys, landmarks=queries.tokens, kernel=None)
    assert relative(build(iterations=24)(q, k, v), textbook(q, k, v)) < 1e-9
    assert 1e-4 < relative(build(iterations=6)(q, k, v), textbook(q, k, v)) < 0.1


@each("Nystrom")
def test_nystrom_is_the_formula(form):
    q, k, v = tensors(65)
    nystrom = form(HEADS, WIDTH, GRID, GRID, landmarks=8).double()
    q_mean, k_mean = segment_means(q, 8), segment_means(k, 8)
    between = textbook(q_mean, k_mean, torch.eye(8, dtype=torch.float64))
    left = textbook(q, k_mean, torch.eye(8, dtype=torch.float64))
    weight = nystrom.residual.weight
    residual = F.conv2d(v, weight, padding=(16, 0), groups=HEADS)
    expected = left @ inverted(between, 6) @ textbook(q_mean, k, v) + residual
    assert relative(nystrom(q, k, v), expected) < 1e-12


@each("Nystrom")
@pytest.mark.parametrize(("queries", "stride"), [(Grid(8, 8), 1), (Grid(4, 4), 2)])
def test_nystrom_takes_the_bias_of_its_landmarks(queries, stride, form):
    keys, heads, mean = Grid(8, 8), 2, partial(segment_means, segments=5)
    bias = OffsetBias(heads, queries, keys, stride).double()
    with torch.no_grad():
        bias.table.normal_()
    q, k, v = tensors(queries.tokens, keys.tokens, heads=heads)

    def softmax(q, k, **of):
        return (q @ k.mT / math.sqrt(WIDTH) + bias(**of)).softmax(-1)

    left = softmax(q, mean(k), of_k=mean)
    between = softmax(mean(q), mean(k), of_q=mean, of_k=mean)
    expected = left @ inverted(between, 6) @ softmax(mean(q), k, of_q=mean) @ v
    made = form(heads, WIDTH, queries, keys, landmarks=5, kernel=None)
    assert relative(made(q, k, v, bias=bias), expected) < 1e-12
    if queries == keys:
        made = form(heads, WIDTH, queries, keys, landmarks=64, iterations=24, kernel=None)
        assert relative(made(q, k, v, bias=bias), softmax(q, k) @ v) < 1e-9


def test_one_iteration_of_the_pseudo_inverse_is_the_formula():
    a = random(5, 5).softmax(-1)
    z, i = a.mT / (a.sum(0).max() * a.sum(1).max()), torch.eye(5, dtype=torch.float64)
    once = z @ (13 * i - a @ z @ (15 * i - a @ z @ (7 * i - a @ z))) / 4
    assert relative(pseudo_inverse(a[None], 1)[0], once) < 1e-12
    w = random(5, 3)
    assert relative(pseudo_inverse_times(a[None], w[None], 1)[0], once @ w) < 1e-12


@pytest.mark.parametrize("iterations", [0, 1, 2, 6])
@pytest.mark.parametrize("size", [1, 2, 6, 17])
def test_pseudo_inverse_applied_is_the_one_formed(size, iterations):
    a, w = random(3, 2, size, size).softmax(-1), random(3, 2, size, 5)
    expected = inverted(a, iterations)
    assert relative(pseudo_inverse(a, iterations), expected) < 1e-12
    assert relative(pseudo_inverse_times(a, w, iterations), expected @ w) < 1e-12


def applied(a, iterations, **options):
    return pseudo_inverse_times(a, torch.eye(a.shape[-1]).to(a).expand_as(a), iterations, **options)


@pytest.mark.parametrize("inverse", [pseudo_inverse, applied])
def test_pseudo_inverse_of_each_matrix_alone(inverse):
    a = torch.rand(3, 2, 6, 6, dtype=torch.float64).softmax(-1)
    assert torch.allclose(inverse(a, 40), torch.linalg.pinv(a), atol=1e-8)
    alone = torch.cat([inverse(one, 6) for one in a.split(1)])
    assert torch.equal(inverse(a, 6), alone)


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


@each("Performer")
def test_performer_error_falls_with_the_root_of_features(form):
    q, k, v = tensors(65, scale=0.5)
    v = v + 1  # else exact attention averages v to nearly nothing
    exact = textbook(q, k, v)

    def error(features):
        make = partial(form, HEADS, WIDTH, GRID, GRID, features=features)
        return sum(relative(make().double()(q, k, v), exact) for _ in range(8)) / 8

    errors = [error(features) for features in (64, 256, 1024, 4096)]
    slope = math.log(errors[0] / errors[-1]) / math.log(64)
    assert 0.4 < slope < 0.6, errors


@each("Performer")
def test_performer_features_are_those_of_the_lemma(form):
    q, k, v = tensors(65)
    performer = form(HEADS, WIDTH, GRID, GRID).double()
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


@pytest.mark.parametrize("forms", [attention, fused], ids=["textbook", "fused"])
def test_batch_wide_is_as_released(forms):
    """The released code's own formulas, written out; there, a sample sees its neighbours."""
    q, k, v = tensors(65)
    performer = forms.Performer(HEADS, WIDTH, GRID, GRID, batch_wide=True).double()

    def features(x, largest):
        dash = x * WIDTH**-0.25 @ performer.directions.T
        diagonal = x.square().sum(-1, keepdim=True) / 2 * WIDTH**-0.5
        return (dash - diagonal - largest(dash)).exp() + 1e-4

    phi_q, phi_k = features(q, lambda dash: dash.amax(-1, keepdim=True)), features(k, torch.max)
    expected = phi_q @ (phi_k.mT @ v) / (phi_q @ phi_k.sum(-2)[..., None])
    assert relative(performer(q, k, v), expected) < 1e-12

    a = torch.rand(2, 3, 6, 6, dtype=torch.float64).softmax(-1)
    start = a.mT / (a.sum(-1).max() * a.sum(-2).max())
    for inverse in (pseudo_inverse, applied):
        assert relative(inverse(a, 0, batch_wide=True), start) < 1e-12

    for mechanism in (forms.Performer, forms.Nystrom):
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


def test_directions_are_drawn_anew_for_each_layer():
    one, other = (Performer(HEADS, WIDTH, GRID, GRID).directions for _ in range(2))
    assert not one.isclose(other).any()
    assert not one.norm(dim=1).isclose(other.norm(dim=1)).any()


def test_few_tokens_keep_softmax():
    few, enough = Grid(7, 9), Grid(8, 8)
    for mechanism in MECHANISMS.values():
        assert type(mechanism_for(mechanism, HEADS, WIDTH, few, few)) is Softmax
        assert type(mechanism_for(mechanism, HEADS, WIDTH, enough, enough)) is mechanism
        assert type(mechanism_for(mechanism, HEADS, WIDTH, few, enough)) is mechanism


def test_a_sixteenth_of_the_tokens_unless_said():
    for tokens, kept in ((Grid(32, 32, 1), 64), (Grid(16, 16), 16), (Grid(8, 8, 1), 4)):
        assert Linformer(HEADS, WIDTH, tokens, tokens).kept == kept
        assert Nystrom(HEADS, WIDTH, tokens, tokens).kept == kept


def test_refusals_name_the_largest_legal_value():
    for mechanism in (partial(Nystrom, landmarks=65), partial(Linformer, rank=65)):
        with pytest.raises(BadInput, match="65 queries and 65 keys: at most 64"):
            mechanism_for(mechanism, HEADS, WIDTH, GRID, GRID)
    with pytest.raises(BadInput, match="landmarks=66"):
        Nystrom(HEADS, WIDTH, GRID, GRID, landmarks=66)
    with pytest.raises(BadInput, match="at least 1, got 0"):
        Nystrom(HEADS, WIDTH, GRID, GRID, landmarks=0)
    with pytest.raises(TypeError, match="whole number"):
        Performer(HEADS, WIDTH, GRID, GRID, features=2.5)


def test_a_mechanism_that_mixes_to_another_shape_is_named():
    q, k, v = tensors(65)
    with pytest.raises(BadInput, match=r"Transposed: expected to mix to \(2, 4, 65, 32\), got \(2"):
        Transposed(HEADS, WIDTH, GRID, GRID)(q, k, v)


def test_tokens_may_come_compressed():
    """By a host that did so before it projected them; their number tells."""
    q, k, v = tensors(65)
    for form in (attention.Linformer, Linformer):
        made = form(HEADS, WIDTH, GRID, GRID, rank=7).double()
        few = made.compress(k), made.compress(v)
        assert torch.equal(made(q, *few), made(q, k, v))
        assert relative(attention_map(made, q, few[0]), attention_map(made, q, k)) < 1e-12
    for mechanism in (Softmax, Performer, Nystrom):
        assert mechanism.compress is None
        with pytest.raises(BadInput, match="65 keys and values"):
            mechanism(HEADS, WIDTH, GRID, GRID)(q, k[:, :, :7], v[:, :, :7])


def test_wrong_shapes_are_named():
    q, k, v = tensors(65)
    for mechanism in MECHANISMS.values():
        with pytest.raises(BadInput, match=r"65, 32.*got q \(2, 4, 64, 32\)"):
            mechanism(HEADS, WIDTH, GRID, GRID)(q[:, :, :64], k, v)


def test_the_map_of_a_mechanism_is_what_multiplies_values():
    q, k, v = tensors(65, e=7)
    both = {*MECHANISMS.values(), *(getattr(attention, m.__name__) for m in MECHANISMS.values())}
    for mechanism in both:
        made = mechanism(HEADS, WIDTH, GRID, GRID).double()
        assert relative(attention_map(made, q, k) @ v, made(q, k, v)) < 1e-9


def test_half_precision_is_computed_in_float32():
    q, k, v = tensors(65)
    textbooks = attention.Performer, attention.Nystrom, attention.LinearAttention
    for mechanism in (Performer, Nystrom, *textbooks):
        made = mechanism(HEADS, WIDTH, GRID, GRID)
        exact = made.double()(q, k, v)
        half = made.bfloat16()(q.bfloat16(), k.bfloat16(), v.bfloat16())
        assert half.dtype == torch.bfloat16
        assert relative(half.double(), exact) < 0.05


@pytest.mark.parametrize("form", [attention.Nystrom, Nystrom])
def test_padded_nystrom_is_the_released_one(form):
    """17 tokens and 4 landmarks: three zeros in front that take part."""
    grid = Grid(4, 4, 1)
    made = form(2, WIDTH, grid, grid, landmarks=4, padded=True, batch_wide=True).double()
    q, k, v = tensors(17, heads=2)
    zeros = torch.zeros(2, 2, 3, WIDTH, dtype=torch.float64)
    q_, k_, v_ = (torch.cat([zeros, t], 2) for t in (q, k, v))
    of_q, of_k = (t.view(2, 2, 4, 5, WIDTH).mean(3) for t in (q_, k_))
    left, middle, right = (
        torch.softmax(a @ b.mT / WIDTH**0.5, -1) for a, b in ((q_, of_k), (of_q, of_k), (of_q, k_))
    )
    z = middle.mT / (middle.sum(-1).max() * middle.sum(-2).max())
    for _ in range(6):
        x, one = middle @ z, torch.eye(4, dtype=torch.float64)
        z = z @ (13 * one - x @ (15 * one - x @ (7 * one - x))) / 4
    kernel = made.residual.weight.repeat_interleave(WIDTH, 0)
    rows = v_.mT.reshape(2, 2 * WIDTH, 20, 1)
    mixed = F.conv2d(rows, kernel, padding=(16, 0), groups=2 * WIDTH)
    wanted = left @ z @ right @ v_ + mixed.view(2, 2, WIDTH, 20).mT
    assert relative(made(q, k, v), wanted[:, :, 3:]) < 1e-12


def test_linear_attention_is_the_sum_of_its_paper():
    """Katharopoulos et al. 2020, equation 5, a query and a key at a time."""

    def feature(x):  # of one number
        return x + 1 if x > 0 else math.exp(x)

    q, k, v = tensors(5, 9, e=3, heads=2, batch=1)
    got = attention.LinearAttention(2, WIDTH, Grid(1, 5), Grid(3, 3))(q, k, v)
    for h in range(2):
        for i in range(5):
            similar = [
                sum(feature(a) * feature(b) for a, b in zip(q[0, h, i].tolist(), key, strict=True))
                for key in k[0, h].tolist()
            ]
            wanted = sum(s * v[0, h, j] for j, s in enumerate(similar)) / sum(similar)
            assert torch.allclose(got[0, h, i], wanted, rtol=1e-12)


def test_a_new_mechanism_needs_only_mix():
    class Mean(Mechanism):
        def mix(self, q, k, v):
            return v.mean(-2, keepdim=True).expand(-1, -1, q.shape[-2], -1)

    assert isinstance(mechanism_for(Mean, HEADS, WIDTH, GRID, GRID), nn.Module)
    assert not failing(Mean)
