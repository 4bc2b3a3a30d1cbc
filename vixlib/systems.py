"""The registry: every token mixer and every family of systems has one row, and `build`.

A new mechanism is a class and a row of `mixers` in systems.toml: it joins every family whose name
leaves the letter open. A new host is a file in models/ and a table of `families`. All else derives
from these: lists, tables, the queue, colours and markers, the sizes that tests and notebooks build.
"""

import tomllib
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pkgutil import resolve_name
from types import MappingProxyType
from typing import NamedTuple

from torch import nn

from vixlib import paths
from vixlib.attention import Maker, Mechanism
from vixlib.errors import BadInput, one_of
from vixlib.fused import Softmax
from vixlib.models.host import FEWEST_TOKENS, TokenMixer


class Mixer(NamedTuple):
    """What mixes tokens: how it is written and drawn; a mechanism has a letter in names."""

    title: str
    color: str
    letter: str = ""
    mechanism: Maker | None = None
    note: str = ""  # "ours": a guest, not one of the paper's


class Family(NamedTuple):
    """A row: systems that differ by their mechanism alone, whose letter goes where `name` has {}.

    `letters` are those of which the paper says something, in the order of its `table` of results;
    all others follow, unless the row is as released. `own` are options of a mechanism that differ
    from its defaults, by letter. `tiny` is what the authors' models for Tiny ImageNet have instead,
    so that 64 pixels are 1,024 tokens, too. Recipes that follow the released code take `released`
    for settings, where it does not train as the others, and `start`, which draws fresh weights,
    where it does not as torch.
    """

    name: str
    host: Callable[..., nn.Module]
    table: str
    kind: str
    options: Mapping[str, object] = MappingProxyType({})
    mixer: str = ""
    letters: str = "TLPN"
    own: Mapping[str, Mapping[str, object]] = MappingProxyType({})
    tiny: Mapping[str, object] = MappingProxyType({})
    released: Mapping[str, float] = MappingProxyType({})
    start: Callable[[nn.Module], None] | None = None


def _resolved(value: object) -> object:
    """A value of systems.toml with the classes and functions that it names."""
    if isinstance(value, dict):
        return {key: _resolved(each) for key, each in value.items()}
    return resolve_name(value) if isinstance(value, str) and ":" in value else value


_rows = tomllib.loads((paths.PACKAGE / "systems.toml").read_text("utf-8"))
KINDS, NOTEBOOKS = _rows["kinds"], _rows["notebooks"]
MIXERS = {name: Mixer(**_resolved(row)) for name, row in _rows["mixers"].items()}
FAMILIES = [Family(name, **_resolved(row)) for name, row in _rows["families"].items()]
MECHANISMS = {name: row.mechanism for name, row in MIXERS.items() if row.letter}


class System(NamedTuple):
    """A member of a family; `note` says what is not the paper's own."""

    name: str
    family: Family
    mixer: str
    mechanism: Maker | None = None
    note: str = ""


def _mechanism(family: Family, mixer: str) -> Maker | None:
    """What makes a mechanism as a family has it."""
    made, own = MIXERS[mixer].mechanism, family.own.get(MIXERS[mixer].letter)
    return partial(made, **own) if own else made


def _members(family: Family) -> list[System]:
    """The members of a family in the order of MIXERS."""
    told = family.kind if family.kind in ("as released", "baseline") else ""
    if family.mixer:
        return [System(family.name, family, family.mixer, note=told)]
    members = []
    for mixer, row in MIXERS.items():
        if row.letter and (row.letter in family.letters or not told):
            note = told or ("" if row.letter in family.letters else "ours")
            name = family.name.format(row.letter)
            members.append(System(name, family, mixer, _mechanism(family, mixer), note))
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


trained: list[Callable] = []  # what loads a trained model: of weights.py, which builds by `build`


def build(
    name: str,
    *,
    attention: str | Maker | None = None,
    mixer: TokenMixer | None = None,
    few_tokens: str | None = None,
    num_classes: int = 10,
    pretrained: bool = False,
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
    `pretrained` gives the trained model that ships, of its own sizes: weights.pretrained.
    """
    if pretrained:
        if attention or mixer:
            raise BadInput("pretrained: weights are of a system as it is, without another part")
        return trained[0](name, num_classes=num_classes, **sizes)
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
        mechanism = _mechanism(row.family, one_of("attention", attention, MECHANISMS))
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
