"""Every system is wired as its papers say: scores and all gradients, held from outside.

`plain.py` reads the papers a second time; where a package has the same wiring, it is asked, too.
Everything is drawn anew, in float64, for images whose sides differ.
"""

from collections.abc import Callable
from functools import partial

import plain
import pytest
import torch
from small import images, random, randomise
from torch import Tensor, nn
from torch.autograd import grad

from vixlib import attention, build, fused, layers, list_systems
from vixlib.attention import Grid
from vixlib.models.baselines import ResidualPair

TOLERANCE = 1e-9
WIDE = 32, 48


@pytest.fixture(autouse=True)
def _float64():
    """Tables of angles are made in double precision, too."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def hold(seen: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal, in parts of the largest entry; of a gradient near zero, of the largest of all."""
    assert seen.keys() == expected.keys()
    most = max(t.abs().max() for name, t in expected.items() if name.startswith("d "))
    far = {}
    for name, value in expected.items():
        assert seen[name].shape == value.shape, name
        least = most / 1000 if name.startswith("d ") else 1e-9
        far[name] = ((seen[name] - value).abs().max() / max(value.abs().max(), least)).item()
    assert max(far.values()) < TOLERANCE, {n: f"{x:.0e}" for n, x in far.items() if x > TOLERANCE}


def backward(out: Tensor, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """An output and its gradients in one direction."""
    torch.manual_seed(2)
    towards = torch.randn_like(out)
    grads = torch.autograd.grad(out, list(wanted.values()), towards, materialize_grads=True)
    return {"out": out, **{f"d {name}": g for name, g in zip(wanted, grads, strict=True)}}


def outcome(model: nn.Module, x: Tensor, training: bool = False) -> dict[str, Tensor]:
    """What a model gives, all its gradients, and the statistics that it keeps then."""
    x = x.clone().requires_grad_()
    wanted = {"x": x, **{name: p for name, p in model.named_parameters() if p.numel()}}
    torch.manual_seed(1)  # of stochastic depth
    seen = backward(model.train(training)(x), wanted)
    return seen | {n: b.clone() for n, b in model.named_buffers() if "running" in n}


def read(function: Callable, model: nn.Module, x: Tensor, training: bool = False, **options):
    """The same of a plain function of the model's tensors, which has to ask for each of them."""
    x = x.clone().requires_grad_()
    parameters = {
        name: p.detach().clone().requires_grad_()
        for name, p in model.named_parameters()
        if p.numel()
    }
    tensors = {name: buffer.clone() for name, buffer in model.named_buffers()}
    w = plain.Weights({**tensors, **parameters}, training)
    torch.manual_seed(1)
    expected = backward(function(w, x, **options), {"x": x, **parameters})
    assert parameters.keys() <= w.asked
    statistics = {name: t for name, t in tensors.items() if "running" in name}
    return expected | statistics | w.after


def compare(function: Callable, model: nn.Module, x: Tensor, training: bool = False, **options):
    randomise(model)
    expected = read(function, model, x, training, **options)
    hold(outcome(model, x, training), expected)


# --- every system --------------------------------------------------------------------------------

PYRAMID = {"widths": (32, 48, 64), "heads": (2, 3, 4), "depths": (1, 1, 2)}


def reading(name: str) -> tuple[Callable, dict, dict]:
    """The plain function of a system, its options by the name alone, and sizes of ours."""
    if name.startswith("ResNet"):
        return plain.resnet, {"pairs": (int(name[7:]) - 2) // 6}, {"widths": (4, 6, 9)}
    if name.startswith("ConvMixer"):
        sizes = {"dim": 12, "depth": 2}
        return plain.convmixer, {"patch": 2, "depth": 2, "kernel": 5}, sizes
    released = name.endswith("-released")
    letter = name.removesuffix("-released").removesuffix("-RoPE")[-1]
    if name.startswith("CC"):
        sizes = {"stem": (2, 2, 1), "depth": 3, "drop_path": 0.6}
        return plain.cct, {**sizes, "pool": 1, "heads": 2, "mixer": letter}, sizes | {"dim": 64}
    if name.startswith("Cv"):
        sizes = PYRAMID | ({"widths": (32,) * 3, "heads": (2,) * 3} if released else {})
        sizes |= {"strides": (4, 1, 1)}
        options = sizes | {"mixer": letter, "kernels": (3, 3, 3), "released": released}
        del options["widths"]
        return plain.cvt, options, sizes
    if name.startswith("LeVi") and not released:
        sizes = PYRAMID | {"stem": (2, 2, 1)}
        return plain.levit, {**sizes, "mixer": letter, "d": 16}, sizes
    kind = name.removeprefix("Hybrid")
    mixer = {"FNet": "fourier", "MLPMixer": "tokenmlp"}.get(kind, letter)
    options = {"patch": 4, "heads": 2, "depth": 2, "mixer": mixer}
    hybrid, rope = kind != name or released, name.endswith("RoPE")
    options |= {"hybrid": hybrid, "rope": rope, "positions": not rope}
    options |= {"shared": letter == "L", "one_head": name == "ViL"}
    if mixer == "tokenmlp" or released:
        options |= {"positions": False, "cls": False, "norm": not released}
    return plain.vix, options, {"patch_size": 4, "dim": 64, "depth": 2}


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", list_systems())
def test_every_system_is_wired_as_its_paper_says(name, training):
    function, options, sizes = reading(name)
    model = build(name, image_size=WIDE, num_classes=5, **sizes).double()
    compare(function, model, images(*WIDE), training, **options)


VARIANTS = {  # what both are told otherwise than above
    "ViT, no CLS": ("ViT", WIDE, {"cls": False}, {}),
    "ViP-RoPE, no CLS": ("ViP-RoPE", WIDE, {"cls": False}, {}),
    "HybridViL, patches of 2": ("HybridViL", (16, 20), {"patch_size": 2}, {"patch": 2}),
    "LeViL, odd sides": ("LeViL", (22, 34), {"stem": (2, 1, 1)}, {}),
    "LeViN, taller than wide": ("LeViN", (64, 32), {"stem": (2, 1, 1)}, {}),
    "CCN, pooled": ("CCN", WIDE, {"pool": 2, "stem": (2, 1)}, {}),
    "CCT, one block": ("CCT", (16, 12), {"depth": 1, "stem": (1, 2)}, {}),
    "CvN, its own strides": ("CvN", (48, 80), {"strides": (4, 2, 1), "kernels": (7, 3, 3)}, {}),
    "CvL, odd sides": ("CvL", (26, 22), {"strides": (2, 1, 1)}, {}),
    "CvN, keys at every place": ("CvN", WIDE, {"kv_stride": 1}, {}),
    "CvT, keys at every third": ("CvT", (26, 22), {"kv_stride": 3, "strides": (2, 1, 1)}, {}),
    "ResNet, odd sides": ("ResNet-20", (13, 9), {}, {}),
    "ConvMixer, odd sides": ("ConvMixer-256/8", (15, 9), {"patch_size": 3}, {"patch": 3}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_other_sizes_are_wired_alike(variant):
    name, size, sizes, others = VARIANTS[variant]
    function, options, usual = reading(name)
    options |= {k: v for k, v in sizes.items() if k != "patch_size"} | others
    model = build(name, image_size=size, num_classes=5, **{**usual, **sizes}).double()
    compare(function, model, images(*size), training=True, **options)


# --- a mechanism in its layer --------------------------------------------------------------------

GRIDS = {17: (4, 4, 1), 65: (8, 8, 1), 96: (8, 12, 0), 197: (14, 14, 1), 1025: (32, 32, 1)}
MODULES = {"textbook": (attention, layers.MultiHead), "fused": (fused, fused.MultiHead)}
DIM, HEADS = 16, 2


def layer(form: str, name: str, grid: tuple, dim: int = DIM, heads: int = HEADS, **options):
    """A mechanism between linear maps, in one of its forms, whatever the number of tokens."""
    module, around = MODULES[form]
    made = getattr(module, name)(heads, dim // heads, Grid(*grid), Grid(*grid), **options)
    kv = dim // heads * (made.kv_heads or heads)
    q, k, v = (nn.Linear(dim, width, bias=made.qkv_bias) for width in (dim, kv, kv))
    return around(made, q, k, None if made.shared else v, nn.Linear(dim, dim)).double()


LAYERS = {
    "softmax": ("Softmax", plain.softmax, {}, {}),
    "linformer": ("Linformer", plain.linformer, {}, {}),
    "linformer, one key head": (
        "Linformer",
        plain.linformer,
        {"kv_heads": 1, "shared": True},
        {"one_head": True, "shared": True},
    ),
    "performer": ("Performer", plain.performer, {}, {}),
    "nystrom": ("Nystrom", plain.nystrom, {}, {}),
}


@pytest.mark.parametrize("tokens", GRIDS)
@pytest.mark.parametrize("form", MODULES)
@pytest.mark.parametrize("name", LAYERS)
def test_each_mechanism_in_its_layer(name, form, tokens):
    """Also for a single sample, where a mean over the batch would be seen by none."""
    kind, mix, options, plain_options = LAYERS[name]
    made, grid = layer(form, kind, GRIDS[tokens], **options), GRIDS[tokens]

    def function(w: plain.Weights, x: Tensor) -> Tensor:
        kept = tokens // 16
        return plain.self_attention(x, w, grid, HEADS, mix, kept, **plain_options)

    compare(function, made, random(1 if tokens > 65 else 2, tokens, DIM))


CROSSED = {  # queries, keys
    "as many tokens on other grids": ((4, 16, 0), (8, 8, 0)),
    "as many tokens, one of them CLS": ((8, 8, 0), (9, 7, 1)),
    "one grid, CLS a key only": ((8, 9, 0), (8, 9, 1)),
    "rows for columns": ((6, 12, 0), (12, 6, 0)),
    "one grid": ((8, 9, 0), (8, 9, 0)),
    "one grid and CLS": ((8, 9, 1), (8, 9, 1)),
    "fewer queries": ((4, 6, 0), (8, 12, 0)),
    "fewer keys": ((8, 12, 1), (4, 6, 1)),
}


@pytest.mark.parametrize("crossing", CROSSED)
@pytest.mark.parametrize("form", MODULES)
@pytest.mark.parametrize("kind", ["Softmax", "Linformer", "Performer", "Nystrom"])
def test_queries_and_keys_on_two_grids(kind, form, crossing):
    """Nyström's convolution is there where both grids are one, not where tokens are as many."""
    grids = CROSSED[crossing]
    n, m = map(plain.tokens_of, grids)
    made = getattr(MODULES[form][0], kind)(HEADS, 4, *(Grid(*grid) for grid in grids)).double()
    randomise(made)
    qkv = dict(zip("qkv", (random(2, HEADS, *s) for s in ((n, 4), (m, 4), (m, 6))), strict=True))
    for tensor in qkv.values():
        tensor.requires_grad_()
    held = {name: p for name, p in made.named_parameters() if p.numel()}
    seen = backward(made(*qkv.values()), {**qkv, **held})
    w = plain.Weights({**dict(made.named_buffers()), **held})
    mix, kept = getattr(plain, kind.lower()), max(n, m) // 16
    parts = [mix(w, i, *(t[:, i] for t in qkv.values()), grids, kept) for i in range(HEADS)]
    assert held.keys() <= w.asked
    hold(seen, backward(torch.stack(parts, 1), {**qkv, **held}))


# --- packages ------------------------------------------------------------------------------------

Of = Callable[[Tensor], Tensor | None]
Named = dict[str, Tensor]


def package(name: str, extra: str = "twins") -> object:
    return pytest.importorskip(name, reason=f"{name}: pip install '.[{extra}]'")


def own(of: Of, modules: dict[str, nn.Module]) -> Named:
    """Weights, biases and statistics of modules, after a name of ours for each."""
    return {
        f"{name}.{key}": of(tensor)
        for name, module in modules.items()
        for key, tensor in (*module.named_parameters(), *module.named_buffers())
        if tensor.ndim
    }


def beside(
    ours: nn.Module,
    twin: nn.Module,
    named: Callable[[nn.Module, Of], Named],
    x: Tensor,
    training: bool = False,
) -> None:
    """Our weights are poured into a twin's; then scores, gradients and statistics are the same."""
    randomise(ours)
    held, twin = dict(ours.named_parameters()) | dict(ours.named_buffers()), twin.train(training)
    places = named(twin, lambda tensor: tensor.detach())
    assert {name for name, p in ours.named_parameters() if p.numel()} <= places.keys()
    for name, place in places.items():
        place.copy_(held[name].detach())
    seen, x = outcome(ours, x, training), x.clone().requires_grad_()
    torch.manual_seed(2)
    out = twin(x)
    out.backward(torch.randn_like(out))
    expected = {"out": out, "d x": x.grad}
    for name, tensor in named(twin, lambda t: t.grad if isinstance(t, nn.Parameter) else t).items():
        kind = "" if "running" in name else "d "
        expected |= {} if name.endswith("directions") else {kind + name: tensor}
    hold(seen, expected)


def linear_maps(of: Of, qkv: nn.Linear, name: str = "") -> Named:
    """Queries, keys and values that are one matrix."""
    return {
        f"{name}{part}.weight": w for part, w in zip("qkv", of(qkv.weight).chunk(3), strict=True)
    }


def of_positions(table: Tensor, rows: int, columns: int) -> Named:
    """Of tokens, CLS first; ours are an image."""
    image = table[1:].T.unflatten(1, (rows, columns))
    return {"positions.prefix": table[:1], "positions.table": image}


def vit_pytorch(size: tuple[int, int], patch: int) -> nn.Module:
    """Without its norms of patches, which the paper has not."""
    vit = package("vit_pytorch").ViT
    sizes = {"image_size": size, "patch_size": patch, "num_classes": 5, "dim": 24, "depth": 2}
    twin = vit(**sizes, heads=3, dim_head=8, mlp_dim=48)
    twin.to_patch_embedding[1] = twin.to_patch_embedding[3] = nn.Identity()
    return twin


def from_vit_pytorch(twin: nn.Module, of: Of, grid: tuple[int, int]) -> Named:
    patches, body, p = twin.to_patch_embedding[2], twin.transformer, twin.patch_size
    named = {"cls": of(twin.cls_token), **of_positions(of(twin.pos_embedding), *grid)}
    named["embedding.weight"] = of(patches.weight).unflatten(1, (*p, 3)).permute(0, 3, 1, 2)
    named["embedding.bias"] = of(patches.bias)
    for i, (first, second) in enumerate(body.layers):
        one, two = f"blocks.{2 * i}", f"blocks.{2 * i + 1}"
        named |= linear_maps(of, first.to_qkv, f"{one}.1.")
        named |= own(of, {f"{one}.0": first.norm, f"{one}.1.out": first.to_out[0]})
        named |= own(of, {f"{two}.0": second.net[0], f"{two}.1.0": second.net[1]})
        named |= own(of, {f"{two}.1.2": second.net[4]})
    return named | own(of, {"head.0": body.norm, "head.1": twin.mlp_head})


def timm_vit(size: tuple[int, int], patch: int) -> nn.Module:
    vit = package("timm.models.vision_transformer").VisionTransformer
    sizes = {"img_size": size, "patch_size": patch, "num_classes": 5, "embed_dim": 24, "depth": 2}
    return vit(**sizes, num_heads=3, mlp_ratio=2, qkv_bias=False, norm_layer=nn.LayerNorm)


def from_timm_vit(twin: nn.Module, of: Of, grid: tuple[int, int]) -> Named:
    named = {"cls": of(twin.cls_token)[0], **of_positions(of(twin.pos_embed)[0], *grid)}
    named |= own(of, {"embedding": twin.patch_embed.proj})
    for i, block in enumerate(twin.blocks):
        one, two = f"blocks.{2 * i}", f"blocks.{2 * i + 1}"
        named |= linear_maps(of, block.attn.qkv, f"{one}.1.")
        named |= own(of, {f"{one}.0": block.norm1, f"{one}.1.out": block.attn.proj})
        named |= own(of, {f"{two}.0": block.norm2, f"{two}.1.0": block.mlp.fc1})
        named |= own(of, {f"{two}.1.2": block.mlp.fc2})
    return named | own(of, {"head.0": twin.norm, "head.1": twin.head})


VITS = {"vit-pytorch": (vit_pytorch, from_vit_pytorch), "timm": (timm_vit, from_timm_vit)}


@pytest.mark.parametrize(("size", "patch"), [((16, 16), 2), (WIDE, 4), ((24, 8), 8), ((3, 5), 1)])
@pytest.mark.parametrize("twin", VITS)
def test_vit_is_that_of_the_packages(twin, size, patch):
    make, named = VITS[twin]
    ours = build(
        "ViT", image_size=size, patch_size=patch, num_classes=5, dim=24, depth=2, dim_head=8
    )
    grid = size[0] // patch, size[1] // patch
    beside(ours.double(), make(size, patch).double(), partial(named, grid=grid), images(*size))


@pytest.mark.parametrize("tokens", [5, 96])
def test_a_block_of_mlp_mixer_is_timms(tokens):
    mixer, dim = package("timm.models.mlp_mixer"), 12
    twin = mixer.MixerBlock(dim, tokens, mlp_ratio=(tokens / dim, 1), norm_layer=nn.LayerNorm)
    made = build("MLPMixer", image_size=(1, tokens), dim=dim, depth=1).blocks.double()

    def named(twin: nn.Module, of: Of) -> Named:
        parts = {"0.0": twin.norm1, "0.1.mlp.0": twin.mlp_tokens.fc1, "1.0": twin.norm2}
        parts |= {"0.1.mlp.2": twin.mlp_tokens.fc2, "1.1.0": twin.mlp_channels.fc1}
        return own(of, parts | {"1.1.2": twin.mlp_channels.fc2})

    beside(made, twin, named, random(2, tokens, dim))


@pytest.mark.parametrize("form", [layers.Fourier, fused.Fourier], ids=["textbook", "fused"])
@pytest.mark.parametrize("shape", [(3, 17, 8), (2, 96, 5), (1, 65, 6)])
def test_fnet_mixes_as_transformers_does(form, shape):
    """The mixing alone: in transformers, norms come after each half of a block."""
    modeling, config = package("transformers.models.fnet.modeling_fnet"), package("transformers")
    theirs = modeling.FNetBasicFourierTransform(config.FNetConfig())
    x, towards = random(*shape, requires_grad=True), random(*shape)
    outs = form(shape[2], Grid(1, shape[1]))(x), theirs(x)[0]
    seen, expected = ({"out": out, "d x": grad(out, x, towards)[0]} for out in outs)
    hold(seen, expected)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_convmixer_is_timms(training):
    twin = package("timm.models.convmixer").ConvMixer(12, 2, 5, 2, num_classes=5).double()
    ours = build("ConvMixer-256/8", image_size=WIDE, num_classes=5, dim=12, depth=2).double()

    def named(twin: nn.Module, of: Of) -> Named:
        parts = {"0": twin.stem[0], "2": twin.stem[2], "9": twin.head}
        for i, (around, *pointwise) in enumerate(twin.blocks):
            depthwise, at = around.fn, 3 + 2 * i
            parts |= {f"{at}.0": depthwise[0], f"{at}.2": depthwise[2]}
            parts |= {f"{at + 1}.0": pointwise[0], f"{at + 1}.2": pointwise[2]}
        return own(of, {f"layers.{name}": part for name, part in parts.items()})

    beside(ours, twin, named, images(*WIDE), training)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize(("before", "dim", "stride"), [(6, 9, 2), (6, 6, 1), (4, 7, 1)])
def test_a_pair_of_a_resnet_is_torchvisions(before, dim, stride, training):
    """Around a shortcut written here: torchvision has that of option B."""

    def option_a(x: Tensor) -> Tensor:
        few = x[:, :, ::stride, ::stride]
        return torch.cat([few, torch.zeros(len(x), dim - before, *few.shape[2:])], 1)

    ours = ResidualPair(before, dim, stride).double()
    resnet = package("torchvision.models.resnet")
    twin = resnet.BasicBlock(before, dim, stride, downsample=option_a).double()

    def named(twin: nn.Module, of: Of) -> Named:
        parts = {"0": twin.conv1, "1": twin.bn1, "3": twin.conv2, "4": twin.bn2}
        return own(of, {f"layers.{name}": part for name, part in parts.items()})

    beside(ours, twin, named, random(3, before, 7, 10), training)


# --- packages that only `make bench` brings: the plain functions above stand in where they are not


RELEASED = "vision_xformer.vision_performer"  # the authors' own


def square(tokens: int) -> tuple[int, int, int]:
    side = int(tokens**0.5)
    return side, side, tokens - side * side


@pytest.mark.parametrize("tokens", [17, 65, 197, 1025])
@pytest.mark.parametrize("form", MODULES)
@pytest.mark.parametrize("options", [{}, {"one_kv_head": True}, {"share_kv": True}], ids=str)
def test_linformer_is_the_packages(options, form, tokens):
    """With one projection of keys and values on both sides; theirs has a second one."""
    rank = max(1, tokens // 16)
    twin = package("linformer", "benchmarks").LinformerSelfAttention(
        DIM, tokens, k=rank, heads=HEADS, dim_head=DIM // HEADS, **options
    )
    twin.proj_v = twin.proj_k
    own_options = {
        "shared": "share_kv" in options,
        "kv_heads": 1 if "one_kv_head" in options else None,
    }
    grid = square(tokens)
    ours = layer(form, "Linformer", grid, rank=rank, **own_options)

    def named(twin: nn.Module, of: Of) -> Named:
        prefix, image = of(twin.proj_k).T.split([grid[2], grid[0] * grid[1]], 1)
        parts = {"q": twin.to_q, "k": twin.to_k, "out": twin.to_out}
        parts |= {} if own_options["shared"] else {"v": twin.to_v}
        places = {"mechanism.projection": image.unflatten(1, grid[:2])}
        return own(of, parts) | places | {"mechanism.projection_prefix": prefix}

    beside(ours, twin.double(), named, random(1, tokens, DIM))


@pytest.mark.parametrize("tokens", [17, 65, 197, 1025])
@pytest.mark.parametrize("form", MODULES)
@pytest.mark.parametrize("peer", ["performer_pytorch.performer_pytorch", RELEASED])
def test_performer_is_the_packages(peer, form, tokens, monkeypatch):
    """As released: a constant, and one maximum of all keys, through which gradients pass, too.

    performer-pytorch has a maximum for each head and lets none pass: equal without the constant.
    """
    module, released = package(peer, "benchmarks"), peer == RELEASED
    if not released:
        monkeypatch.setitem(module.softmax_kernel.__kwdefaults__, "eps", 0.0)
    sizes = {"heads": HEADS, "dim_head": DIM // HEADS, "qkv_bias": True}
    twin = module.SelfAttention(DIM, **sizes).double()
    ours = layer(form, "Performer", square(tokens), batch_wide=released)

    def named(twin: nn.Module, of: Of) -> Named:
        directions = twin.fast_attention.projection_matrix
        parts = {name: getattr(twin, f"to_{name}") for name in ("q", "k", "v", "out")}
        return own(of, parts) | {"mechanism.directions": of(directions)}

    beside(ours, twin, named, random(2 if released else 1, tokens, DIM))


@pytest.mark.parametrize(
    ("tokens", "landmarks"), [(17, 17), (65, 5), (65, 13), (197, 1), (1025, 41)]
)
@pytest.mark.parametrize("form", MODULES)
@pytest.mark.parametrize("heads", [1, 2])
def test_nystrom_is_the_packages(heads, form, tokens, landmarks):
    """Where tokens are a multiple of landmarks; else theirs pads with zeros, and ours does not.

    Theirs scales the pseudo-inverse by maxima over heads and batch: ours with `batch_wide`, or
    where there is one of each.
    """
    package_of = package("nystrom_attention", "benchmarks").NystromAttention
    sizes = {"dim_head": DIM // heads, "heads": heads, "num_landmarks": landmarks}
    twin = package_of(DIM, **sizes).double()
    options = {"landmarks": landmarks, "batch_wide": heads > 1}
    ours = layer(form, "Nystrom", square(tokens), heads=heads, **options)

    def named(twin: nn.Module, of: Of) -> Named:
        named = linear_maps(of, twin.to_qkv) | own(of, {"out": twin.to_out[0]})
        return named | {"mechanism.residual.weight": of(twin.res_conv.weight)}

    beside(ours, twin, named, random(1, tokens, DIM))


# --- how models begin ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["LeViT", "LeViL", "LeViP", "LeViN"])
def test_levits_norms_begin_at_zero_where_a_branch_is_added(name):
    """All others at one, also those of attention that shrinks. Graham et al. 2021, section 4.4."""
    model = build(name, image_size=WIDE, **reading(name)[2])
    attention = ["0.0", "4.0", "8.0", "10.0"]  # of a block of each stage, of two in the last
    mlps = ["1", "3", "5", "7", "9", "11"]  # 2 and 6 shrink
    closed = {f"blocks.{i}.out.1.1.weight" for i in attention}
    closed |= {f"blocks.{i}.2.1.weight" for i in mlps}
    gains = {n: p for n, p in model.named_parameters() if n.endswith("weight") and p.ndim == 1}
    assert closed < gains.keys()
    assert {n: p.unique().tolist() for n, p in gains.items()} == {
        n: [float(n not in closed)] for n in gains
    }


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_stochastic_depth_grows_linearly(depth):
    model = build("CCT", image_size=8, depth=depth, drop_path=0.4, dim=32)
    rates = [block.drop_path for block in model.blocks if isinstance(block, layers.Residual)]
    expected = [0.4 * i / max(depth - 1, 1) for i in range(depth) for _ in range(2)]
    assert rates == pytest.approx(expected)
