"""Each fused mechanism and layer is its textbook form, forward and backward."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from small import random
from torch import nn
from torch.autograd import grad

from vixlib import attention, layers, self_attention
from vixlib.attention import Grid
from vixlib.fused import Fourier, Linformer, MultiHead, Nystrom, Performer, Softmax


class WithBias(Linformer):
    qkv_bias = True


class TextbookWithBias(attention.Linformer):
    qkv_bias = True


GRIDS = {"65": Grid(8, 8, 1), "96, no CLS": Grid(8, 12), "1,024": Grid(31, 33, 1)}
FORMS = {
    "softmax": (Softmax, attention.Softmax, {}),
    "linformer": (Linformer, attention.Linformer, {}),
    "linformer, few mixtures": (Linformer, attention.Linformer, {"rank": 4}),
    "linformer, many mixtures": (Linformer, attention.Linformer, {"rank": 60}),
    "linformer, one key head": (Linformer, attention.Linformer, {"kv_heads": 1}),
    "linformer, shared": (Linformer, attention.Linformer, {"shared": True, "kv_heads": 1}),
    "linformer, biases": (WithBias, TextbookWithBias, {}),
    "performer": (Performer, attention.Performer, {}),
    "performer, few features": (Performer, attention.Performer, {"features": 7}),
    "nystrom": (Nystrom, attention.Nystrom, {}),
    "nystrom, many landmarks": (Nystrom, attention.Nystrom, {"landmarks": 60}),
    "nystrom, one step": (Nystrom, attention.Nystrom, {"landmarks": 9, "iterations": 1}),
}


def outcome(layer: nn.Module, x, towards) -> dict[str, torch.Tensor]:
    """The output and every gradient of a layer."""
    x = x.clone().requires_grad_()
    wanted = {"x": x, **{name: p for name, p in layer.named_parameters() if p.numel()}}
    out = layer(x)
    return {"out": out, **dict(zip(wanted, grad(out, list(wanted.values()), towards), strict=True))}


def hold(ours: nn.Module, textbook: nn.Module, *shape: int) -> None:
    """The textbook form in float64 is the reference for ours in float64 and in float32."""
    textbook.load_state_dict(ours.state_dict())
    x, towards = random(*shape), random(*shape)
    expected = outcome(textbook.double(), x, towards)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        seen = outcome(ours.to(dtype), x.to(dtype), towards.to(dtype))
        for name, value in expected.items():
            far = (seen[name] - value).abs().max() / value.abs().max()
            assert far < tolerance, f"{name} in {dtype}: {far:.1e}"


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rotary", [False, True])
def test_a_mechanism_is_its_textbook_form(form, grid, rotary):
    ours, textbook, options = FORMS[form]
    build = partial(self_attention, 64, GRIDS[grid], dim_head=16, rotary=rotary)
    made, other = (build(mechanism=partial(each, **options)) for each in (ours, textbook))
    other.early = False  # the textbook projects all tokens, then mixes
    hold(made, other, 2, GRIDS[grid].tokens, 64)


def unfused(made: MultiHead) -> layers.MultiHead:
    """The textbook layer around copies of the same modules."""
    parts = [deepcopy(getattr(made, name)) for name in ("mechanism", "q", "k", "v", "out")]
    options = {"rotary": made.rotary, "bias": made.bias, "scale": made.scale}
    return layers.MultiHead(*parts, **options)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rotary", [False, True])
def test_a_layer_is_its_textbook_form(form, rotary):
    """Whether tokens are mixed before they are projected or after."""
    ours, _, options = FORMS[form]
    mechanism = partial(ours, **options)
    made = self_attention(64, GRIDS["65"], mechanism=mechanism, dim_head=16, rotary=rotary)
    assert type(unfused(made)) is layers.MultiHead
    hold(made, unfused(made), 2, 65, 64)


@pytest.mark.parametrize("tokens", [1, 2, 64, 65, 1024])
@pytest.mark.parametrize("dim", [1, 2, 3, 64, 65])
def test_fourier_is_one_transform(tokens, dim):
    grid = Grid(1, tokens)
    hold(Fourier(dim, grid), layers.Fourier(dim, grid), 2, tokens, dim)


def test_tokens_are_mixed_first_where_that_is_cheaper():
    """As many products either way, counted for 65 tokens, 64 channels and heads 16 wide."""
    build = partial(self_attention, 64, GRIDS["65"], dim_head=16)
    early = {
        form: build(mechanism=partial(ours, **options)).early
        for form, (ours, _, options) in FORMS.items()
    }
    first = {"linformer", "linformer, few mixtures", "linformer, many mixtures"}
    assert {form for form, chosen in early.items() if chosen} == first | {
        "linformer, one key head",
        "linformer, shared",
    }
    costly = partial(Linformer, rank=60, shared=True, kv_heads=1)
    assert not build(mechanism=costly).early  # 60 x 64 x (65 + 16) > 65 x 16 x (64 + 60)
    assert not build(mechanism=Linformer, rotary=True).early
    assert not build(mechanism=partial(Performer)).early


@pytest.mark.parametrize("shared", [False, True])
def test_mixed_first_or_last_is_the_same_in_half_precision(shared):
    """There tokens are mixed after the projections, in float32."""
    mechanism, x = partial(Linformer, shared=shared), torch.randn(2, 65, 64)
    layer = self_attention(64, GRIDS["65"], dim_head=16, mechanism=mechanism)

    def seen(dtype: torch.dtype) -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, dtype == torch.float32):
            return deepcopy(layer).to(dtype)(x.to(dtype))

    assert layer.early
    early = list(map(seen, (torch.float32, torch.bfloat16)))
    layer.early = False
    assert all(map(torch.equal, map(seen, (torch.float32, torch.bfloat16)), early))


def test_performers_backward_is_in_float32_under_autocast():
    made = Performer(2, 16, GRIDS["65"], GRIDS["65"])
    qkv = [torch.randn(2, 2, 65, 16, requires_grad=True) for _ in range(3)]
    expected = grad(made(*qkv).square().sum(), qkv)
    with torch.autocast("cpu", torch.bfloat16):
        seen = grad(made(*qkv).square().sum(), qkv)
    assert all(map(torch.equal, seen, expected))
