"""The registry: every token mixer and every family of systems has one row here, and `build`.

A new mechanism is a class and a row of MIXERS: it joins every family whose row leaves the letter
open. A new host is a file in models/ and a row of FAMILIES. All else derives from these: lists,
tables, the queue, colours and markers, the sizes that tests and notebooks build.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

from torch import nn

from vixlib.attention import LinearAttention, Mechanism
from vixlib.errors import BadInput, one_of, renamed
from vixlib.fused import Fourier, Linformer, Nystrom, Performer, Softmax
from vixlib.layers import ConvolutionalEmbedding, TokenMLP
from vixlib.models.baselines import ConvMixer, ResNet
from vixlib.models.cct import CCX
from vixlib.models.cvt import CvX
from vixlib.models.host import FEWEST_TOKENS, TokenMixer
from vixlib.models.levit import LeViX
from vixlib.models.vix import ViX
from vixlib.released import StdNorm, compact_start


class Mixer(NamedTuple):
    """What mixes tokens: how it is written and drawn; a mechanism has a letter in names."""

    title: str
    color: str
    letter: str = ""
    mechanism: Callable[..., Mechanism] | None = None
    note: str = ""  # "ours": a guest, not one of the paper's


MIXERS = {  # Okabe and Ito's colours, told apart by colour-blind readers; the baseline is black
    "softmax": Mixer("softmax", "#000000", "T", Softmax),
    "linformer": Mixer("Linformer", "#E69F00", "L", Linformer),
    "performer": Mixer("Performer", "#009E73", "P", Performer),
    "nystrom": Mixer("Nyström", "#0072B2", "N", Nystrom),
    "elu": Mixer("ELU kernel", "#882255", "E", LinearAttention, note="ours"),
    "fourier": Mixer("Fourier", "#CC79A7"),
    "tokenmlp": Mixer("token MLP", "#D55E00"),
    "convolution": Mixer("convolution", "#999999"),
}
MECHANISMS = {name: row.mechanism for name, row in MIXERS.items() if row.letter}


class Family(NamedTuple):
    """A row: systems that differ by their mechanism alone, whose letter goes where `name` has {}.

    `table` is that of the results, in the order of `letters`; those that it leaves out follow,
    unless the row is as released: then they are the authors' only. `ours` are letters of which the
    paper says nothing, `own` what differs from a mechanism's defaults, by letter. `tiny` is what
    the authors' models for Tiny ImageNet have instead, so that 64 pixels are 1,024 tokens, too.
    Recipes that follow the released code take `released` for settings, where it does not train as
    the others, and `start`, which draws fresh weights, where it does not as torch.
    """

    name: str
    host: Callable[..., nn.Module]
    options: dict
    table: str
    kind: str
    mixer: str = ""
    letters: str = "TLPN"
    ours: str = ""
    own: Mapping[str, Callable[..., Mechanism]] = MappingProxyType({})
    tiny: Mapping[str, object] = MappingProxyType({})
    released: Mapping[str, float] = MappingProxyType({})
    start: Callable[[nn.Module], None] | None = None


AS_RELEASED, BASELINE = "as released", "baseline"
# what a family is in figures: marker, then line
KINDS = {"plain": "o-", "RoPE": "^--", "hybrid": "s-.", "hybrid + RoPE": "D:"}
KINDS |= {"LeViT": "v-", "CCT": "P--", "CvT": "X-.", AS_RELEASED: "<:", BASELINE: "p-"}
# the notebook of each table of results: of the ViX, of hosts, of neither
NOTEBOOKS = {"vix": "03_vix", "hybrid": "04_hybrid_vix"}
NOTEBOOKS |= {"rope": "05_rope", "hybrid-rope": "05_rope"}
NOTEBOOKS |= {"levit": "06_levit", "cct": "07_cct", "cvt": "08_cvt"}
NOTEBOOKS |= {"mixers": "09_fnet_mixer", "baselines": "11_paper_tables"}

HYBRID = {"embedding": ConvolutionalEmbedding}
ROPE = {"positions": False, "rotary": True}
FNET = {"mixer": Fourier}
MLP_MIXER = {"mixer": TokenMLP, "positions": False, "cls": False, "mlp_ratio": 1}
# the authors' simplified hosts: of LeViT the convolutions alone are left, of CvT the embeddings
LEVIT_RELEASED = HYBRID | {"positions": False, "cls": False, "norm": nn.Identity}
CVT_RELEASED = {"convolutional": False, "cls": False, "mlp_ratio": 2, "strides": (1, 1, 1)}
CVT_RELEASED |= {"widths": (128,) * 3, "heads": (4,) * 3, "norm": StdNorm}
CCX_RELEASED = {"tiny": {"stem": (2, 1, 1)}, "released": {"std": 0.2}, "start": compact_start}
# as released, values are the keys in every Linformer, and plain ViL has one head of them
SHARED = {"L": partial(Linformer, shared=True)}
ONE_HEAD = {"L": partial(Linformer, shared=True, kv_heads=1)}
# images of 64 pixels as 1,024 tokens, too
_stem, _patch, _strides = {"stem": (2, 1, 1)}, {"patch_size": 2}, {"strides": (2, 1, 1)}
FAMILIES = (
    Family("Vi{}", ViX, {}, "vix", "plain", own=ONE_HEAD),
    Family("Vi{}-RoPE", ViX, ROPE, "rope", "RoPE", own=SHARED),
    Family("HybridVi{}", ViX, HYBRID, "hybrid", "hybrid", own=SHARED),
    Family("HybridVi{}-RoPE", ViX, HYBRID | ROPE, "hybrid-rope", "hybrid + RoPE", own=SHARED),
    Family("FNet", ViX, FNET, "mixers", "plain", "fourier"),
    Family("HybridFNet", ViX, FNET | HYBRID, "mixers", "hybrid", "fourier"),
    Family("MLPMixer", ViX, MLP_MIXER, "mixers", "plain", "tokenmlp"),
    Family("HybridMLPMixer", ViX, MLP_MIXER | HYBRID, "mixers", "hybrid", "tokenmlp"),
    Family("LeVi{}", LeViX, {}, "levit", "LeViT", letters="TNPL", ours="L", tiny=_stem),
    Family("CC{}", CCX, {}, "cct", "CCT", letters="TNPL", ours="L", **CCX_RELEASED),
    Family("Cv{}", CvX, {}, "cvt", "CvT", letters="TNPL", ours="L", tiny=_strides),
    Family("LeVi{}-released", ViX, LEVIT_RELEASED, "levit", AS_RELEASED, letters="NP", tiny=_patch),
    Family("Cv{}-released", CvX, CVT_RELEASED, "cvt", AS_RELEASED, letters="NP", tiny=_strides),
    Family("ResNet-20", ResNet, {"pairs": 3}, "baselines", BASELINE, "convolution"),
    Family("ResNet-56", ResNet, {"pairs": 9}, "baselines", BASELINE, "convolution"),
    Family("ConvMixer-256/8", ConvMixer, {}, "baselines", BASELINE, "convolution"),
)


class System(NamedTuple):
    """A member of a family; `note` says what is not the paper's own."""

    name: str
    family: Family
    mixer: str
    mechanism: Callable[..., Mechanism] | None = None
    note: str = ""


def _members(family: Family) -> list[System]:
    """The members of a family in the order of MIXERS."""
    told = family.kind if family.kind in (AS_RELEASED, BASELINE) else ""
    if family.mixer:
        return [System(family.name, family, family.mixer, note=told)]
    members = []
    for mixer, row in MIXERS.items():
        letter = row.letter
        if letter and (letter in family.letters or told != AS_RELEASED):
            note = told or ("ours" if letter in family.ours else row.note)
            mechanism = family.own.get(letter, row.mechanism)
            members.append(System(family.name.format(letter), family, mixer, mechanism, note))
    return members


SYSTEMS = {row.name: row for family in FAMILIES for row in _members(family)}


TABLES: dict[str, list[str]] = {table: [] for table in NOTEBOOKS}  # of results
for _family in FAMILIES:
    _order = (*_family.letters, *(row.letter for row in MIXERS.values()))
    _named = sorted(_members(_family), key=lambda row: _order.index(MIXERS[row.mixer].letter))
    TABLES[_family.table].extend(row.name for row in _named)
RESULTS = [name for table in TABLES.values() for name in table]  # every system, in their order


def list_systems(table: str | None = None, *, guests: bool = True) -> list[str]:
    """The names of all systems in the paper's spelling, or of those of a table of results.

    Without `guests` those are left out whose mechanism is not one of the paper's.
    """
    names = list(SYSTEMS) if table is None else TABLES[one_of("table", table, TABLES)]
    return [name for name in names if guests or not MIXERS[SYSTEMS[name].mixer].note]


def system(name: str) -> System:
    """The row of a system; BadInput lists the legal names."""
    return SYSTEMS[one_of("system", name, SYSTEMS)]


@partial(renamed, classes="num_classes")
def build(
    name: str,
    *,
    attention: str | Callable[..., Mechanism] | None = None,
    mixer: TokenMixer | None = None,
    few_tokens: str | None = None,
    num_classes: int = 10,
    **sizes,
) -> nn.Module:
    """A fresh model of a named system; defaults are the paper's CIFAR-10 setting.

    `attention` swaps the mechanism: a name of MECHANISMS ("softmax", "linformer", ...) gives the
    sibling row, so `build("ViT", attention="nystrom")` is `build("ViN")`; a class or a partial has
    its own defaults. Where every layer is over fewer than 64 tokens, softmax is kept with a
    warning, and a class or a partial refused; `few_tokens="softmax"` accepts that in silence.
    `mixer` takes the place of attention: any mixer(dim, grid), such as Fourier.
    `sizes` are the host's: image_size (an int or (height, width)), and for the ViX patch_size, dim,
    depth, dim_head (32 unless said), ... The model's `system` and `asked` say how it was called.
    """
    row, sizes = system(name), {"num_classes": num_classes, **sizes}
    one_of("few_tokens", few_tokens or "softmax", ["softmax"])
    chosen = {} if mixer is None else {"mixer": mixer}
    mechanism = row.mechanism if attention is None else attention
    if attention is not None and mixer is not None:
        raise BadInput("attention or mixer: a mixer takes the place of attention")
    if attention is not None and row.mechanism is None:
        with_attention = [r.name for r in SYSTEMS.values() if r.mechanism is not None]
        raise BadInput(f"{name} has no attention to replace; {', '.join(with_attention)} have")
    if isinstance(attention, str):
        sibling = MIXERS[one_of("attention", attention, MECHANISMS)]
        mechanism = row.family.own.get(sibling.letter, sibling.mechanism)
    if mechanism is not None and mixer is None:
        chosen["mechanism"] = mechanism
    try:
        model = row.family.host(**{**row.family.options, **chosen, **sizes})
    except RuntimeError as error:  # no memory for it
        raise BadInput(f"{name} with {sizes}: {str(error).splitlines()[0]}") from error
    model.system, model.asked = name, {"attention": attention, "mixer": mixer, **sizes}
    made = [each for each in model.modules() if isinstance(each, Mechanism)]
    few = all(max(m.queries.tokens, m.keys.tokens) < FEWEST_TOKENS for m in made)
    asked = getattr(mechanism, "func", mechanism)
    if made and few and asked not in Softmax.__mro__ and few_tokens is None:
        said = f"{name}: softmax is kept, over fewer than {FEWEST_TOKENS} tokens in every layer"
        if callable(attention):
            raise BadInput(f'{said}; few_tokens="softmax" accepts that')
        warnings.warn(said, stacklevel=3)
    return model
