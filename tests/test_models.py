"""Every named system has its exact size, one swap, and no sample that sees another."""

from functools import partial

import pytest
import torch
from small import SMALL, images, sizes_of, small

from vixlib import build, list_systems, measure
from vixlib.attention import Grid, Mechanism
from vixlib.errors import BadInput
from vixlib.fused import Fourier, Nystrom, Performer, Softmax
from vixlib.layers import MultiHead, Rotary
from vixlib.maps import attention_maps
from vixlib.models.host import FEWEST_TOKENS
from vixlib.paper.runs import published
from vixlib.systems import MIXERS, SYSTEMS, TABLES

SIZES = {  # the released code's, less the position tables that it never uses
    "ViT": 661_770,
    "ViL": 809_482,
    "ViP": 663_306,
    "ViN": 662_298,
    "ViE": 661_770,
    "ViT-RoPE": 530_570,
    "ViL-RoPE": 727_434,
    "ViP-RoPE": 532_106,
    "ViN-RoPE": 531_098,
    "ViE-RoPE": 530_570,
    "HybridViT": 754_506,
    "HybridViL": 951_370,
    "HybridViP": 756_042,
    "HybridViN": 755_034,
    "HybridViE": 754_506,
    "HybridViT-RoPE": 623_306,
    "HybridViL-RoPE": 820_170,
    "HybridViP-RoPE": 624_842,
    "HybridViN-RoPE": 623_834,
    "HybridViE-RoPE": 623_306,
    "FNet": 399_114,
    "HybridFNet": 491_850,
    "MLPMixer": 8_533_002,
    "HybridMLPMixer": 8_625_738,
    # three hosts at 1,024 tokens; CCT, CCN and CCP are the released code's with a first stride of 1
    "LeViT": 719_386,
    "LeViL": 917_018,
    "LeViP": 707_610,
    "LeViN": 719_980,
    "LeViE": 707_610,
    "CCT": 1_036_619,
    "CCL": 1_298_763,
    "CCP": 1_038_155,
    "CCN": 1_037_147,
    "CCE": 1_036_619,
    "CvT": 742_250,
    "CvL": 777_098,
    "CvP": 742_250,
    "CvN": 742_250,
    "CvE": 742_250,
    "LeViP-released": 622_410,
    "LeViN-released": 621_402,
    "CvP-released": 830_730,
    "CvN-released": 829_722,
    "ResNet-20": 269_722,
    "ResNet-56": 853_018,
    "ConvMixer-256/8": 594_186,
}
TINY_IMAGENET = {  # the released code's at 64 x 64 and 200 classes
    "CCT": 1_061_129,
    "CCN": 1_061_657,
    "CCP": 1_062_665,
    "LeViN-released": 645_912,
    "LeViP-released": 646_920,
    "CvN-released": 854_232,
    "CvP-released": 855_240,
}
LETTERS = {row.letter: name for name, row in MIXERS.items() if row.letter}
UNUSED_TABLE = {"ViT-RoPE", "ViL-RoPE", "HybridViT-RoPE", "HybridViL-RoPE"}


def meta(name, **settings):
    with torch.device("meta"):
        return build(name, **settings)


@pytest.mark.parametrize("name", SIZES)
def test_exact_size(name):
    assert measure.parameters(meta(name)) == SIZES[name]


def test_all_are_tested():
    assert list(SIZES) == list_systems()


def test_every_system_is_in_one_table_of_results():
    listed = [name for table in TABLES for name in list_systems(table)]
    assert sorted(listed) == sorted(list_systems())
    assert list_systems("vix") == ["ViT", "ViL", "ViP", "ViN", "ViE"]
    assert list_systems("vix", guests=False) == ["ViT", "ViL", "ViP", "ViN"]
    assert len(list_systems()) - len(list_systems(guests=False)) == 7
    with pytest.raises(BadInput, match=r"unknown table 'vit'.*legal: vix, hybrid"):
        list_systems("vit")


@pytest.mark.parametrize(("name", "size"), TINY_IMAGENET.items())
def test_exact_size_at_tiny_imagenet(name, size):
    settings = SYSTEMS[name].family.tiny
    assert measure.parameters(meta(name, image_size=64, num_classes=200, **settings)) == size
    rows = published().query(
        "dataset == 'tiny-imagenet' and system == @name and quantity == 'parameters_released'"
    )
    assert int(rows["value"].iloc[0]) == size


def test_sizes_are_the_released_ones():
    rows = published().query("dataset == 'cifar10' and quantity == 'parameters_released'")
    released = rows.set_index("system")["value"].astype(int)
    assert len(released.index.intersection(list(SIZES))) == 18  # all but the mixers
    for name in released.index.intersection(list(SIZES)):
        assert SIZES[name] == released[name] - (131_200 if name in UNUSED_TABLE else 0)


DEPTH, HEADS, FEATURES = 4, 4, 110  # of a ViP


@pytest.mark.parametrize("name", ["ViT", "ViP", "HybridViT", "FNet", "HybridFNet"])
def test_flops_are_those_of_the_released_code(name):
    rows = published().query("system == @name and quantity == 'mmacs_released'")
    flops = measure.flops(partial(build, name), (1, 3, 32, 32))
    if name == "ViP":  # sums over keys, by a column of ones: released as sums, which do not count
        flops -= 2 * DEPTH * HEADS * 1025 * FEATURES
    assert flops / 2e6 == pytest.approx(float(rows["value"].iloc[0]), abs=0.01)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("gain", [1, 2])
def test_no_sample_sees_another(name, gain):
    model = small(name).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= gain
        x = images()
        alone = model(x[:1])
        beside = [model(x)[:1], model(torch.cat([x[:1], 1e3 * x[1:]]))[:1]]
    for scores in beside:
        assert ((scores - alone).abs().max() / alone.abs().max()).item() < 1e-10


@pytest.mark.parametrize("name", SIZES)
def test_no_sample_sees_another_in_float32(name):
    model, x = small(name).eval(), images(dtype=torch.float32)
    with torch.no_grad():
        assert ((model(x)[:1] - model(x[:1])).abs().max() / model(x).abs().max()).item() < 1e-5


@pytest.mark.parametrize("name", SIZES)
def test_every_parameter_learns(name):
    model, x = small(name).train(), images(dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    model(x).square().sum().backward()
    optimizer.step()  # LeViT's branches start at zero: what is before them learns from now on
    optimizer.zero_grad()
    model(x).square().sum().backward()
    used = {n: p for n, p in model.named_parameters() if p.numel()}
    without = [n for n, p in used.items() if p.grad is None or not p.grad.any()]
    # of a CvT's last block only CLS is read, and CLS goes around the convolution of queries
    assert [n for n in without if not n.startswith("stages.2.0.1.q.depthwise")] == []


@pytest.mark.parametrize("name", SIZES)
def test_rectangles_other_patches_and_classes(name):
    for size in ((16, 32), (26, 22)):
        model = small(name, image_size=size, num_classes=7)
        assert model(images(*size, dtype=torch.float32)).shape == (4, 7)


def test_one_argument_swaps_the_attention():
    for row in SYSTEMS.values():
        if row.mechanism is None:
            continue
        for letter, mechanism in LETTERS.items():
            sibling = row.family.name.format(letter)
            if sibling not in SYSTEMS:  # the authors released no such one
                assert build(row.name, attention=mechanism, **sizes_of(row.name))
                continue
            models = []
            for made in (
                partial(build, row.name, attention=mechanism),
                partial(build, sibling),
            ):
                torch.manual_seed(0)
                models.append(made(**sizes_of(row.name)))
            a, b = (model.state_dict() for model in models)
            assert list(a) == list(b)
            assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", ["ViT", "HybridViT", "CCT", "CvT", "CvN-released", "LeViT"])
def test_any_mixer_takes_the_place_of_attention(name):
    model, x = small(name, mixer=Fourier), images(dtype=torch.float32)
    assert model(x).shape == (4, 10)
    assert any(isinstance(module, Fourier) for module in model.modules())
    made = [module for module in model.modules() if isinstance(module, MultiHead)]
    assert len(made) == (2 if name == "LeViT" else 0)  # LeViT's grid shrinks by attention
    model(x).square().sum().backward()


def test_a_vit_whose_mixer_is_fourier_is_fnet():
    assert measure.parameters(meta("ViT", mixer=Fourier)) == SIZES["FNet"]
    assert measure.parameters(meta("HybridViT", mixer=Fourier)) == SIZES["HybridFNet"]


def test_a_class_or_a_partial_gives_its_own_defaults():
    class Mean(Mechanism):
        def mix(self, q, k, v):
            return v.mean(-2, keepdim=True).expand(-1, -1, q.shape[-2], -1)

    x = images(dtype=torch.float32)
    for name in list_systems():
        if SYSTEMS[name].mechanism is None:
            with pytest.raises(BadInput, match="no attention to replace"):
                build(name, attention=Mean)
            continue
        for mechanism in (Mean, Performer, partial(Nystrom, landmarks=7)):
            model = small(name, attention=mechanism)
            kind = getattr(mechanism, "func", mechanism)
            made = [m for m in model.modules() if isinstance(m, Mechanism)]
            few = [m for m in made if max(m.queries.tokens, m.keys.tokens) < FEWEST_TOKENS]
            assert {type(m) for m in made if m not in few} == {kind}
            assert {type(m) for m in few} <= {Softmax}
            assert made[0].kept == (7 if kind is Nystrom else None)
            assert model(x).shape == (4, 10)


def test_defaults_are_the_papers_setting():
    model = build("ViN")
    mechanisms = [m for m in model.modules() if isinstance(m, Mechanism)]
    assert len(mechanisms) == 4
    assert {(m.heads, m.dim_head, m.kept, m.queries.tokens) for m in mechanisms} == {
        (4, 32, 64, 1025)
    }
    small = build("ViN", image_size=28, patch_size=4, dim=64, depth=1)
    assert [type(m) for m in small.modules() if isinstance(m, Mechanism)] == [Softmax]


def test_rotary_keeps_lengths_and_sees_only_distances():
    rotary = Rotary(32, Grid(8, 8, 1)).double()
    q, k = torch.randn(2, 1, 1, 1, 32, dtype=torch.float64).expand(2, 1, 1, 65, 32)
    assert torch.allclose(rotary(q).norm(dim=-1), q.norm(dim=-1))
    scores = (rotary(q) @ rotary(k).mT)[0, 0]
    for distance in (-7, 0, 3):
        diagonal = scores.diagonal(distance)
        assert torch.allclose(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4)


def test_rotary_turns_queries_and_keys_only():
    model = build("ViL-RoPE", **SMALL)
    seen = []
    for module in model.modules():
        if isinstance(module, MultiHead):
            x = torch.randn(2, 65, 64)
            module.mechanism.register_forward_pre_hook(lambda m, qkv: seen.append(qkv))
            module(x)
            k = module.k(x).unflatten(-1, (2, 32)).transpose(1, 2)
            assert torch.equal(seen[-1][2], k)
            assert not torch.allclose(seen[-1][1], k)
    assert len(seen) == 2


def test_attention_maps_of_a_model():
    x = images(dtype=torch.float32)
    for name in ("ViT", "HybridViL", "ViP-RoPE", "ViN"):
        maps = attention_maps(build(name, **SMALL), x)
        assert [m.weights.shape for m in maps] == [(4, 2, 65, 65)] * 2
    rows = attention_maps(build("ViT", **SMALL), x)[0].weights.sum(-1)
    assert torch.allclose(rows, torch.ones_like(rows), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ViX", {}, "unknown system 'ViX'.*legal: ViT, ViL"),
        ("VIN", {}, r"did you mean"),
        ("ViT", {"image_size": 33, "patch_size": 2}, "33 is not divisible by patch_size 2"),
        ("ViT", {"image_size": (32, 33), "patch_size": 2}, "not divisible"),
        ("ViT", {"num_classes": 0}, "num_classes: expected at least 1, got 0"),
        ("ViT", {"depth": 0}, "depth: expected at least 1"),
        ("ViT", {"dim": 100}, "multiple of the head width 32, got 100"),
        ("ViT", {"patch_size": 0}, "patch_size: expected at least 1"),
        ("ViT", {"image_size": -32}, "image_size: expected at least 1"),
        ("ViT", {"attention": "nyström"}, "legal: softmax, linformer, performer, nystrom"),
        ("ViT", {"attention": partial(Nystrom, landmarks=1025)}, "at most 1024"),
        ("HybridViT", {"patch_size": 16}, "expected 1, 2, 4 or 8 with convolutions, got 16"),
        ("ViT", {"heads": 3}, "unknown option of ViX .heads.*legal: mechanism, mixer, embedding"),
        ("FNet", {"attention": "softmax"}, "FNet has no attention to replace"),
        ("ViT", {"attention": "nystrom", "mixer": Fourier}, "attention or mixer"),
        ("ViT-RoPE", {"mixer": Fourier}, "rotary: it turns queries and keys of attention"),
        ("ViT", {"mixer": "fourier"}, "mixer: expected Callable, got 'fourier'"),
        ("ResNet-20", {"mixer": Fourier}, "unknown option of ResNet 'mixer'"),
    ],
)
def test_bad_input_is_one_clear_line(name, settings, message):
    with pytest.raises(BadInput, match=message) as caught:
        build(name, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings", [{"num_classes": 2.5}, {"patch_size": "2"}, {"image_size": None}, {"rotary": "yes"}]
)
def test_wrong_types_are_type_errors(settings):
    with pytest.raises(TypeError):
        build("ViT", **settings)


def test_wrong_images_are_named():
    model = build("MLPMixer", **SMALL)
    with pytest.raises(BadInput, match=r"\(batch, 3, 16, 16\), got \(4, 3, 32, 32\)"):
        model(images(32, 32, dtype=torch.float32))
