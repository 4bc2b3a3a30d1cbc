"""Every system that the paper names, one row each, and `build`."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from torch import nn

from vixlib.attention import Linformer, Mechanism, Nystrom, Performer, Softmax
from vixlib.errors import BadInput, one_of
from vixlib.layers import ConvolutionalEmbedding, Fourier, TokenMLP, self_attention
from vixlib.models.cct import CCX
from vixlib.models.cvt import CvX
from vixlib.models.levit import LeViX
from vixlib.models.vix import AttentionViX, ViX
from vixlib.models.yardsticks import ConvMixer, ResNet

MECHANISMS = {
    "softmax": Softmax,
    "linformer": Linformer,
    "performer": Performer,
    "nystrom": Nystrom,
}
LETTERS = dict(zip("TLPN", MECHANISMS, strict=True))

HYBRID = {"embedding": ConvolutionalEmbedding}
ROPE = {"positions": False, "rotary": True}
MIXER = {"mixer": TokenMLP, "positions": False, "cls": False, "mlp_ratio": 1}
# the authors' simplified hosts: of LeViT the convolutions alone are left, of CvT the embeddings
LEVIT_RELEASED = HYBRID | {"positions": False, "cls": False, "norm": nn.Identity}
CVT_RELEASED = {
    "mixer": self_attention,
    "strides": (1, 1, 1),
    "widths": (128,) * 3,
    "heads": (4,) * 3,
    "mlp_ratio": 2,
    "cls": False,
}


class System(NamedTuple):
    """One row: how a named system is made. `family` has {} where the mechanism's letter goes.

    `note` says what is not the paper's own: "ours", "as released", "yardstick".
    """

    name: str
    family: str
    token_mixer: str
    host: Callable[..., nn.Module]
    options: dict
    mechanism: Callable[..., Mechanism] | None = None
    note: str = ""


def _family(
    family: str,
    host: Callable[..., nn.Module],
    options: dict,
    *,
    letters: Iterable[str] = LETTERS,
    notes: dict[str, str] | None = None,
    **own: Callable[..., Mechanism],
) -> list[System]:
    """The members of a family; `own` says where it differs from a mechanism's defaults."""
    rows = []
    for letter in letters:
        name, mixer = family.format(letter), LETTERS[letter]
        mechanism = own.get(mixer, MECHANISMS[mixer])
        note = (notes or {}).get(letter, "")
        rows.append(System(name, family, mixer, host, options, mechanism, note))
    return rows


# As released, values are the keys in every Linformer, and plain ViL has one head of them.
_shared = partial(Linformer, shared=True)
_ours = {"L": "ours"}
_released = {"letters": "PN", "notes": dict.fromkeys("PN", "as released")}
_rows = [
    *_family("Vi{}", AttentionViX, {}, linformer=partial(_shared, kv_heads=1)),
    *_family("Vi{}-RoPE", AttentionViX, ROPE, linformer=_shared),
    *_family("HybridVi{}", AttentionViX, HYBRID, linformer=_shared),
    *_family("HybridVi{}-RoPE", AttentionViX, HYBRID | ROPE, linformer=_shared),
    System("FNet", "FNet", "fourier", ViX, {"mixer": Fourier}),
    System("HybridFNet", "HybridFNet", "fourier", ViX, {"mixer": Fourier, **HYBRID}),
    System("MLPMixer", "MLPMixer", "tokenmlp", ViX, MIXER),
    System("HybridMLPMixer", "HybridMLPMixer", "tokenmlp", ViX, MIXER | HYBRID),
    *_family("LeVi{}", LeViX, {}, notes=_ours),
    *_family("CC{}", CCX, {}, notes=_ours),
    *_family("Cv{}", CvX, {}, notes=_ours),
    *_family("LeVi{}-released", AttentionViX, LEVIT_RELEASED, **_released),
    *_family("Cv{}-released", CvX, CVT_RELEASED, **_released),
    System("ResNet-20", "ResNet", "convolution", ResNet, {"pairs": 3}, note="yardstick"),
    System("ResNet-56", "ResNet", "convolution", ResNet, {"pairs": 9}, note="yardstick"),
    System("ConvMixer-256/8", "ConvMixer", "convolution", ConvMixer, {}, note="yardstick"),
]
SYSTEMS = {row.name: row for row in _rows}


def systems() -> list[str]:
    """The names of all systems, in the paper's spelling."""
    return list(SYSTEMS)


def system(name: str) -> System:
    """The row of a system; BadInput lists the legal names."""
    return SYSTEMS[one_of("system", name, SYSTEMS)]


def build(
    name: str, *, attention: str | Callable[..., Mechanism] | None = None, **sizes
) -> nn.Module:
    """A fresh model of a named system; defaults are the paper's CIFAR-10 setting.

    `attention` swaps the mechanism: a name ("softmax", "linformer", "performer", "nystrom") gives
    the sibling row, so `build("ViT", attention="nystrom")` is `build("ViN")`; a class or a partial
    gives its own defaults. `sizes` are the host's: image_size (an int or (height, width)),
    classes, and for the ViX patch_size, dim, depth, dim_head (32 unless said), ...
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
            siblings = {
                r.token_mixer: r.mechanism for r in SYSTEMS.values() if r.family == row.family
            }
            mechanism = siblings.get(attention, MECHANISMS[attention])
    chosen = {} if mechanism is None else {"mechanism": mechanism}
    try:
        return row.host(**{**row.options, **chosen, **sizes})
    except RuntimeError as error:  # no memory for it
        raise BadInput(f"{name} with {sizes}: {str(error).splitlines()[0]}") from error
