"""A model built for one size runs and learns at another: its tables follow in two dimensions."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import SMALL, images, sizes_of, small

from vixlib import build, list_systems, resized
from vixlib.attention import Grid, Mechanism
from vixlib.errors import BadInput
from vixlib.fused import Linformer, Nystrom, Softmax
from vixlib.layers import OffsetBias, Positions, Rotary
from vixlib.maps import attention_map
from vixlib.systems import SYSTEMS

FIXED = {"MLPMixer", "HybridMLPMixer"}  # their weights are tokens x tokens
FOLLOWING = [name for name in list_systems() if name not in FIXED]
ONE_OF_EACH = ["ViL", "ViN-RoPE", "HybridViP", "FNet", "LeViT", "LeViN", "CCL", "CvN", "CvL"]


@pytest.mark.parametrize("name", list_systems())
def test_the_same_size_is_the_same_model(name):
    model, x = small(name).eval(), images(dtype=torch.float32)
    assert torch.equal(resized(model, 16)(x), model(x))


SIZES = [(name, (32, 20)) for name in FOLLOWING]
SIZES += [(name, size) for name in ONE_OF_EACH for size in ((24, 24), (8, 8))]


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_runs_and_learns_at_another_size(name, size):
    model = small(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    other = resized(model, size)
    mechanisms = [
        [type(m) for m in made.modules() if isinstance(m, Mechanism)] for made in (model, other)
    ]
    assert mechanisms[0] == mechanisms[1]  # also where there are fewer than 64 tokens now
    x, labels = images(*size, dtype=torch.float32), torch.arange(4)
    optimizer = torch.optim.SGD(other.parameters(), 0.01)
    losses = []
    for _ in range(3):
        losses.append(torch.nn.functional.cross_entropy(other(x), labels))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)  # it was a copy


@pytest.mark.parametrize("name", ["ViN-RoPE", "ViL", "LeViN", "CvP"])
def test_a_model_in_float64_stays_one(name):
    other = resized(small(name).double(), (24, 20))
    held = {key: t.dtype for key, t in [*other.named_parameters(), *other.named_buffers()]}
    assert {of for key, of in held.items() if "num_batches" not in key} == {torch.float64}


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_papers_model_at_larger_sizes(name):
    model = build(name).eval()
    for size in ((48, 48), (64, 40)):
        with torch.no_grad():
            scores = resized(model, size)(images(*size, batch=1, dtype=torch.float32))
        assert scores.isfinite().all()


@pytest.mark.parametrize("name", FOLLOWING)
def test_photographs(name):
    sizes = {"stem": (2, 2, 2), "strides": (4, 2, 1), "patch_size": 8}
    sizes = {key: sizes.get(key, value) for key, value in sizes_of(name).items()}
    model = resized(build(name, **sizes | {"image_size": 32}).eval(), 224)
    with torch.no_grad():
        assert model(images(224, 224, batch=1, dtype=torch.float32)).isfinite().all()


@pytest.mark.parametrize("name", sorted(FIXED))
def test_a_mixer_holds_one_number_of_tokens(name):
    with pytest.raises(BadInput, match=r"MLP-Mixer of 64 tokens.*build another for 144"):
        resized(small(name), 24)


even = st.integers(4, 20).map(lambda half: 2 * half)


@pytest.mark.parametrize("name", ONE_OF_EACH)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(size=st.tuples(even, even), other=st.tuples(even, even))
def test_any_rectangle_to_any_other(name, size, other):
    model = build(name, **sizes_of(name) | {"image_size": size}).eval()
    with torch.no_grad():
        moved = resized(model, other)
        scores = moved(images(*other, batch=2, dtype=torch.float32))
        assert scores.shape == (2, 10)
        assert scores.isfinite().all()
        again = resized(moved, size)  # and back: the same grids
        assert again(images(*size, batch=2, dtype=torch.float32)).isfinite().all()
    grids = [(m.queries, m.keys) for m in again.modules() if isinstance(m, Mechanism)]
    assert grids == [(m.queries, m.keys) for m in model.modules() if isinstance(m, Mechanism)]


def test_positions_are_resampled_as_an_image():
    old, new = Positions(5, Grid(6, 4, 1)), Positions(5, Grid(12, 12, 1))
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(4.0), indexing="ij")
    with torch.no_grad():
        old.table.copy_(torch.stack([rows, columns, rows + columns, 0 * rows, 1 + 0 * rows]))
    prefix = old.prefix.detach().clone()
    old.follow(new)
    table = old.table.detach()
    assert torch.equal(old.prefix, prefix)  # CLS has no place
    # inside, straight slopes stay straight: a half of a row a row, a third of a column a column
    assert torch.allclose(table[0, 3:9].diff(dim=0), torch.tensor(0.5), atol=1e-5)
    assert torch.allclose(table[1, :, 4:8].diff(dim=1), torch.tensor(1 / 3), atol=0.02)
    assert torch.allclose(table[0, 3:9, 0], 0.5 * torch.arange(3, 9) - 0.25, atol=1e-5)
    assert torch.allclose(table[4], torch.ones(12, 12))
    assert table[0].std(dim=1).max() < 1e-5  # a row's slope does not leak into columns


def test_linformer_sums_the_same_picture():
    old, new = Grid(8, 8, 1), Grid(16, 12, 1)
    linformer = Linformer(2, 16, old, old, rank=7)
    smooth = torch.nn.functional.interpolate(torch.randn(1, 7, 3, 3), (8, 8), mode="bicubic")[0]
    with torch.no_grad():
        linformer.projection.copy_(smooth)
    flat, prefix = smooth.sum((1, 2)), linformer.projection_prefix.detach().clone()
    linformer.follow(Linformer(2, 16, new, new))
    assert linformer.projection.shape == (7, 16, 12)
    assert torch.equal(linformer.projection_prefix, prefix)
    assert torch.allclose(
        linformer.projection.detach().sum((1, 2)), flat, atol=0.02 * flat.abs().max()
    )
    rows = linformer.projection.detach()[:, 2:14, 5].diff(dim=1).abs().max()
    assert rows < 0.2  # rows follow rows: a transposed or flattened table would jump


def test_rotary_places_stay_where_they_were_trained():
    coarse, fine = Grid(4, 6, 1), Grid(8, 12, 1)
    rotary = Rotary(16, coarse)
    before = rotary.cos[1:].view(4, 6, 8), rotary.sin[1:].view(4, 6, 8)
    cls = rotary.cos[0].clone()
    twin = Rotary(16, fine)
    rotary.follow(twin)
    assert torch.equal(rotary.cos[0], cls)
    angle = torch.atan2(rotary.sin[1:], rotary.cos[1:]).view(8, 12, 8)[..., -1]  # the slowest pair
    old = torch.atan2(before[1], before[0])[..., -1]
    # four fine places lie around each coarse one
    assert torch.allclose(angle.unfold(0, 2, 2).unfold(1, 2, 2).mean((2, 3)), old, atol=1e-5)
    rotary.follow(Rotary(16, coarse))
    assert torch.equal(rotary.cos[1:].view(4, 6, 8), before[0])


def test_bias_keeps_distances_as_shares_of_the_image():
    coarse, fine = Grid(5, 4), Grid(10, 12)
    bias = OffsetBias(2, coarse, coarse)
    with torch.no_grad():
        bias.table.normal_()
    old = bias().view(2, 5, 4, 5, 4)
    bias.move(fine, fine)
    new = bias().view(2, 10, 12, 10, 12)
    assert torch.allclose(new[:, ::2, ::3, ::2, ::3], old, atol=1e-6)
    assert torch.allclose(new[:, 0, 0, 1, 0], old[:, 0, 0, :2, 0].mean(1), atol=1e-6)


def test_landmarks_and_mixtures_stay_as_many():
    for mechanism in (partial(Nystrom, landmarks=7), partial(Linformer, rank=7)):
        model = build("ViN", attention=mechanism, **SMALL)
        kept = [m.kept for m in resized(model, (48, 40)).modules() if isinstance(m, Mechanism)]
        assert kept == [7, 7]
    grid = Grid(4, 4)
    nystrom = Nystrom(2, 16, Grid(8, 8), Grid(8, 8), landmarks=40, iterations=24, kernel=None)
    nystrom.follow(Softmax(2, 16, grid, grid))
    q, k = torch.randn(2, 1, 2, 16, 16, dtype=torch.float64)
    exact = (q @ k.mT / 4).softmax(-1)  # as many landmarks as tokens
    assert torch.allclose(attention_map(nystrom, q, k), exact, atol=1e-6)


def test_wrong_images_name_the_way_out():
    with pytest.raises(BadInput, match=r"expected \(batch, 3, 16, 16\), got .*resized\(model"):
        small("ViT")(images(24, 24, dtype=torch.float32))


def test_every_system_is_in_one_of_the_lists():
    assert {*FOLLOWING, *FIXED} == set(SYSTEMS)
    assert {name for name, row in SYSTEMS.items() if row.mixer == "tokenmlp"} == FIXED
