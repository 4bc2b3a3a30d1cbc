"""Every system that the paper names, one row each, and `build`."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import nn

from vixlib.attention import Linformer, Mechanism, Nystrom, Performer, Softmax
from vixlib.errors import BadInput, one_of
from vixlib.layers import ConvolutionalEmbedding, Fourier, TokenMLP, self_attention
from vixlib.models.vix import ViX

MECHANISMS = {
    "softmax": Softmax,
    "linformer": Linformer,
    "performer": Performer,
    "nystrom": Nystrom,
}
LETTERS = dict(zip("TLPN", MECHANISMS, strict=True))

HYBRID = {"embedding": ConvolutionalEmbedding}
MIXER = {"positions": False, "cls": False, "mlp_ratio": 1}


class System(NamedTuple):
    """One row: how a named system is made. `family` has {} where the mechanism's letter goes."""

    name: str
    family: str
    token_mixer: str
    host: Callable[..., nn.Module]
    options: dict
    mixer: Callable[..., nn.Module]
    mechanism: Callable[..., Mechanism] | None = None


def _vix(family: str, options: dict, *, rotary: bool = False, **own: Callable) -> list[System]:
    """The four members of a family; `own` says where it differs from a mechanism's defaults."""
    mixer = partial(self_attention, rotary=rotary)
    options = options | {"positions": not rotary}
    return [
        System(
            family.format(letter), family, name, ViX, options, mixer, {**MECHANISMS, **own}[name]
        )
        for letter, name in LETTERS.items()
    ]


def _mixer(name: str, token_mixer: type[nn.Module], options: dict) -> System:
    return System(name, name, token_mixer.__name__.lower(), ViX, options, token_mixer)


# As released, values are the keys in every Linformer, and plain ViL has one head of them.
_shared = partial(Linformer, shared=True)
_rows = [
    *_vix("Vi{}", {}, linformer=partial(_shared, kv_heads=1)),
    *_vix("Vi{}-RoPE", {}, linformer=_shared, rotary=True),
    *_vix("HybridVi{}", HYBRID, linformer=_shared),
    *_vix("HybridVi{}-RoPE", HYBRID, linformer=_shared, rotary=True),
    _mixer("FNet", Fourier, {}),
    _mixer("HybridFNet", Fourier, HYBRID),
    _mixer("MLPMixer", TokenMLP, MIXER),
    _mixer("HybridMLPMixer", TokenMLP, MIXER | HYBRID),
]
SYSTEMS = {row.name: row for row in _rows}


def systems() -> list[str]:
    """The names of all systems, in the paper's spelling."""
    return list(SYSTEMS)


def system(name: str) -> System:
    """The row of a system; BadInput lists the legal names."""
    return SYSTEMS[one_of("system", name, SYSTEMS)]


def build(
    name: str,
    *,
    attention: str | Callable[..., Mechanism] | None = None,
    dim_head: int | None = None,
    **sizes,
) -> nn.Module:
    """A fresh model of a named system; defaults are the paper's CIFAR-10 setting.

    `attention` swaps the mechanism: a name ("softmax", "linformer", "performer", "nystrom") gives
    the sibling row, so `build("ViT", attention="nystrom")` is `build("ViN")`; a class or a partial
    gives its own defaults. `sizes` are the host's: image_size (an int or (height, width)),
    patch_size, classes, dim, depth, ... Heads are dim / dim_head of them, 32 wide unless said.
    """
    row = system(name)
    mechanism = row.mechanism
    if attention is not None:
        if mechanism is None:
            with_attention = [r.name for r in SYSTEMS.values() if r.mechanism is not None]
            raise BadInput(f"{name} has no attention to replace; {', '.join(with_attention)} have")
        mechanism = attention
        if isinstance(attention, str):
            one_of("attention", attention, MECHANISMS)
            siblings = (r for r in SYSTEMS.values() if r.family == row.family)
            mechanism = next(r.mechanism for r in siblings if r.token_mixer == attention)
    mixer = row.mixer
    if mechanism is not None:
        mixer = partial(mixer, mechanism=mechanism, **({"dim_head": dim_head} if dim_head else {}))
    return row.host(mixer=mixer, **{**row.options, **sizes})
