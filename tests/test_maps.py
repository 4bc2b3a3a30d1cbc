"""Attention maps of every mechanism in every host: exact, at the image's size, and rolled out."""

import pytest
import torch
from small import images, small

from vixlib import list_systems
from vixlib.attention import Grid, Mechanism
from vixlib.errors import BadInput
from vixlib.fused import MultiHead
from vixlib.maps import AttentionMap, attention_maps, moved, rollout
from vixlib.systems import SYSTEMS

ATTENDING = [name for name, row in SYSTEMS.items() if row.mechanism is not None]


@pytest.mark.parametrize("name", ATTENDING)
def test_a_map_times_values_is_what_its_mechanism_gave(name):
    model, seen = small(name, image_size=(16, 24)).double().eval(), []
    with torch.no_grad():
        for parameter in model.parameters():  # LeViT's biases start at zero
            parameter += 0.05 * torch.randn_like(parameter)
    for module in model.modules():
        if isinstance(module, Mechanism):
            module.register_forward_hook(lambda m, qkv, out: seen.append((qkv[2], out)))
    x, early = images(16, 24, batch=2), {}
    for module in model.modules():  # so that values of all tokens are seen
        if isinstance(module, MultiHead):
            early[module], module.early = module.early, False
    with torch.no_grad():
        model(x)
    for module, chosen in early.items():
        module.early = chosen
    asked, seen[:] = seen[:], []
    maps = attention_maps(model, x)
    assert len(maps) == len(asked)
    for layer, (v, out) in zip(maps, asked, strict=True):
        assert layer.weights.shape[2:] == (layer.queries.tokens, layer.keys.tokens)
        assert torch.allclose(layer.weights @ v, out, atol=1e-9 * out.abs().max().item())


@pytest.mark.parametrize("name", ATTENDING)
def test_images_and_rollout_have_the_size_of_the_image(name):
    model = small(name, image_size=(16, 24)).eval()
    maps = attention_maps(model, images(16, 24, batch=2, dtype=torch.float32))
    for layer in maps:
        assert layer.image(query=(15, 23), head=0).shape == (2, 16, 24)
    share = rollout(maps)
    assert share.shape == (2, 16, 24)
    assert (share >= 0).all()
    assert torch.allclose(share.sum((1, 2)), torch.ones(2))


def test_what_has_no_attention_has_no_map():
    for name in list_systems():
        if name not in ATTENDING:
            assert attention_maps(small(name), images(dtype=torch.float32)) == []
    with pytest.raises(BadInput, match="got none"):
        rollout([])


def layer(weights, queries, keys=None, size=(8, 12)):
    return AttentionMap(weights, queries, keys or queries, size)


def test_an_image_is_the_row_of_its_query():
    grid = Grid(4, 6, 1)
    weights = torch.rand(2, 3, 25, 25)
    made = layer(weights, grid)
    picture = made.image(query=(5, 3), head=1)  # place (2, 1) of 4 x 6
    assert torch.equal(picture[:, ::2, ::2], weights[:, 1, 1 + 2 * 6 + 1, 1:].view(2, 4, 6))
    assert torch.equal(picture[:, 1::2, 1::2], picture[:, ::2, ::2])
    cls = made.image(query="cls")
    assert torch.allclose(cls[:, ::2, ::2], weights[:, :, 0, 1:].mean(1).view(2, 4, 6))
    assert torch.allclose(made.image()[:, ::2, ::2], weights.mean((1, 2))[:, 1:].view(2, 4, 6))


def test_rollout_is_the_product_of_the_formula():
    grid = Grid(4, 6, 1)
    layers = [layer(torch.rand(1, 2, 25, 25).softmax(-1), grid) for _ in range(3)]
    product = torch.eye(25)
    for made in layers:
        product = (made.weights[0].mean(0) + torch.eye(25)) / 2 @ product
    expected = product[0, 1:].view(4, 6)
    seen = rollout(layers, "cls")[0, ::2, ::2]
    assert torch.allclose(seen / seen.sum(), expected / expected.sum(), atol=1e-6)


def test_rollout_crosses_grids():
    fine, coarse = Grid(4, 6), Grid(2, 3)
    # LeViT's subsampling: two by three queries, each looking at the four places under it
    down = torch.zeros(2, 3, 4, 6)
    for y in range(2):
        for x in range(3):
            down[y, x, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2] = 0.25
    down = down.view(1, 1, 6, 24)
    same = torch.eye(24)[None, None]
    maps = [layer(same, fine), layer(down, coarse, fine), layer(torch.eye(6)[None, None], coarse)]
    seen = rollout(maps, query=(0, 11))[0]
    expected = torch.zeros(8, 12)
    expected[:4, 8:] = 1 / 16
    assert torch.allclose(seen, expected)
    # CvT: a query looks at itself by the residual, and at strided keys
    strided = torch.zeros(1, 1, 24, 6)
    strided[..., 0] = 1
    seen = rollout([layer(strided, fine, coarse)], query=(7, 11))[0]
    assert torch.allclose(seen[6:, 10:], torch.tensor(1 / 8))
    assert torch.allclose(seen[:4, :4], torch.tensor(1 / 32))
    assert seen.sum() == pytest.approx(1)


def test_negative_weights_do_not_cancel():
    weights = torch.tensor([[1.0, -1.0], [0.5, 0.5]])[None, None]
    share = rollout([layer(weights, Grid(1, 2), size=(1, 2))], query=(0, 0))
    assert torch.allclose(share, torch.tensor([[[0.75, 0.25]]]))


def test_shares_move_with_their_place():
    share = torch.rand(2, 1, 25)
    there = moved(share, Grid(4, 6, 1), Grid(8, 12))
    assert torch.allclose(there.sum(-1), share[..., 1:].sum(-1))  # CLS was not there before
    assert torch.allclose(moved(there, Grid(8, 12), Grid(4, 6)), share[..., 1:])
    fewer = share[..., 1:].unflatten(-1, (2, 2, 3, 2)).sum((-3, -1)).flatten(-2)
    assert torch.allclose(moved(share[..., 1:], Grid(4, 6), Grid(2, 3)), fewer)


def test_fewer_queries_are_no_places_of_their_own():
    """LeViT shrinks without a shortcut: what a query drew stays where it was, nothing beside."""
    drawn = torch.zeros(1, 1, 6, 24)
    drawn[..., 2 * 6 + 5] = 1  # place (2, 5) of 4 x 6
    seen = rollout([layer(drawn, Grid(2, 3), Grid(4, 6))], query=(0, 0))[0]
    expected = torch.zeros(8, 12)
    expected[4:6, 10:] = 1 / 4
    assert torch.allclose(seen, expected)


def test_what_is_beyond_a_hundred_is_no_pixel():
    model, x = small("ViT"), torch.full((1, 3, 16, 16), 100.0)
    assert len(attention_maps(model, x)) == 2
    for far in (x + 0.5, -x - 0.5):
        with pytest.raises(BadInput, match="normalised floats"):
            attention_maps(model, far)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"query": (8, 0)}, r"pixel \(row, column\) of 8 x 12, got \(8, 0\)"),
        ({"query": (-1, 0)}, "got"),
        ({"query": "CLS"}, "got 'CLS'"),
        ({"query": "cls"}, "expected a pixel"),
        ({"query": 3}, "got 3"),
        ({"head": 2}, "head: expected 0 to 1, got 2"),
    ],
)
def test_what_is_not_there_is_named(asked, message):
    with pytest.raises(BadInput, match=message):
        layer(torch.rand(1, 2, 24, 24), Grid(4, 6)).image(**asked)
