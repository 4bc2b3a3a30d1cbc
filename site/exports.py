"""What runs in the browser: our own mechanisms and models, each a small ONNX file with its maps.

Letters as in vixlib: b batch, h heads, n tokens, d width of a head, r what is kept or features.
"""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.func import functional_call

from vixlib import Grid, Linformer, Nystrom, Performer, Softmax, attention, resized
from vixlib.attention import Mechanism, weights
from vixlib.maps import attention_map

WIDTH = 32  # of a head in every profile: what queries and keys of the explorer have
TOKENS = (64, 256, 576, 1024)
KEPT = {  # what the explorer offers, for any number of tokens
    "linformer": (4, 8, 16, 32, 64),
    "performer": (16, 32, 64, 110, 256),  # 110 = int(32 ln 32), as released
    "nystrom": (4, 8, 16, 32, 64),
}
MODELS = ("ViT", "ViL", "ViP", "ViN")
PLACES, COLOURS = 4, 4  # numbers that tell where a token is, and what colour


class Mix(nn.Module):
    """A mechanism without the checks of its grid, so that one file serves any number of tokens."""

    def __init__(self, mechanism: Mechanism):
        super().__init__()
        self.mechanism = mechanism

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        """The matrix (b h n n) that multiplies values: the identity is fed as v."""
        m, v = self.mechanism, torch.eye(k.shape[-2]).expand(*k.shape[:2], -1, -1)
        if m.compress is not None:
            k, v = m.compress(k), m.compress(v)
        return m.mix(q, k, v)


class Compared(nn.Module):
    """A mechanism's matrix and how far it is from softmax's, by the same scores.

    `parts` names what is drawn at random or learned, and comes as an input. Outputs: the matrix
    (n n), |A' - A| / |A| of each query's row (n), and of the whole matrix ().
    """

    def __init__(self, mechanism: Mechanism, parts: Callable[[Tensor], dict[str, Tensor]] | None):
        super().__init__()
        self.mix, self.parts = Mix(mechanism), parts

    def forward(self, q: Tensor, k: Tensor, sharpness: Tensor, part: Tensor | None = None):
        q = q * sharpness
        given = {} if part is None else self.parts(part)
        seen, exact = functional_call(self.mix, given, (q, k))[0, 0], weights(q, k)[0, 0]
        away = (seen - exact).square().sum(-1)
        size = exact.square().sum(-1)
        return seen, (away / size).sqrt(), (away.sum() / size.sum()).sqrt()


def of_linformer(e: Tensor) -> dict[str, Tensor]:
    """Its projection (r n) as the parameters that Linformer keeps."""
    return {"mechanism.projection": e[:, None], "mechanism.projection_prefix": e[:, :0]}


def of_performer(directions: Tensor) -> dict[str, Tensor]:
    return {"mechanism.directions": directions}


def alone(name: str, kept: int = 16) -> Compared:
    """A mechanism of the explorer's first view. Nyström has no convolution here."""
    grid = Grid(1, TOKENS[1])
    at = 1, WIDTH, grid, grid
    made = {
        "softmax": lambda: Compared(Softmax(*at), None),
        "linformer": lambda: Compared(Linformer(*at, rank=kept), of_linformer),
        "performer": lambda: Compared(Performer(*at, features=kept), of_performer),
        "nystrom": lambda: Compared(Nystrom(*at, landmarks=kept, kernel=None), None),
    }
    return made[name]().eval()


class ColourAndPlace(nn.Module):
    """Queries and keys that nobody trained: alike where colours are alike and places are near.

    A pixel a token, (1 3 s s) -> q and k, both (1 1 n 32): the direction of its colour from the
    photo's mean, which counts four times, and where it is.
    """

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        colours = images - images.mean((-2, -1), keepdim=True)
        colours = colours / colours.square().mean().sqrt()
        colours = torch.cat([colours, torch.full_like(colours[:, :1], 0.5)], 1)
        colours = colours / colours.square().sum(1, keepdim=True).sqrt()
        side = images.shape[-1]
        steps = torch.ones(side).cumsum(0)  # ONNX divides by no symbol
        angle = (steps - 1) / steps[-1:] * (torch.pi / 2)
        turns = torch.stack([angle.cos(), angle.sin()])
        rows, columns = turns[:, :, None], turns[:, None]
        places = torch.cat([rows.expand(-1, -1, side), columns.expand(-1, side, -1)])[None]
        x = torch.cat([2 * colours, places], 1).flatten(2).mT[:, None]
        x = nn.functional.pad(x, (0, WIDTH - PLACES - COLOURS)) * WIDTH**0.25
        return x, x.clone()


def mechanisms(model: nn.Module) -> list[Mechanism]:
    return [module for module in model.modules() if isinstance(module, Mechanism)]


class Seen(nn.Module):
    """A trained model with what it looks at: logits, the maps of its layers, queries and keys.

    Images (1 3 H W) -> logits (1 c), maps (l h n n), q and k (l h n d); a mechanism that compresses
    keys before its hooks see them has none to give, so the last two are softmax's alone.
    """

    def __init__(self, model: nn.Module, *, maps: bool = True):
        super().__init__()
        self.model, self.maps, self.caught = model, maps, []
        for mechanism in mechanisms(model):
            mechanism.register_forward_pre_hook(self.catch, with_kwargs=True)

    def catch(self, mechanism: Mechanism, qkv: tuple[Tensor, ...], bias: dict) -> None:
        self.caught.append((mechanism, *qkv[:2], bias))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        self.caught = []
        logits = self.model(images)
        caught, self.caught = self.caught, []  # a map calls its mechanism again
        if self.maps:
            return logits, torch.cat([attention_map(m, q, k, **b) for m, q, k, b in caught])
        first = self.model.grid.prefix_tokens  # the explorer's tokens are those with a place
        q, k = (torch.cat([row[i][:, :, first:] for row in caught]) for i in (1, 2))
        return q, k


def at_tokens(model: nn.Module, tokens: int) -> nn.Module:
    """A model for images of so many patches."""
    patch = model.size[0] // model.grid.rows
    return resized(model, patch * round(tokens**0.5)).eval()


class Job(NamedTuple):
    """A file of the explorer: what writes it, and the model whose weights are in it."""

    write: Callable[[Path], None]
    model: nn.Module | None = None


def jobs(models: dict[str, nn.Module]) -> dict[str, Job]:
    """Every file of the explorer by its name."""
    n, r, side = (Dim(name, min=2, max=1024) for name in ("n", "r", "side"))
    x, one = torch.randn(1, 1, TOKENS[1], WIDTH), torch.tensor(1.5)
    pair, axes = (x, x.clone(), one), {"q": {2: n}, "k": {2: n}, "sharpness": {}}
    outputs = ["map", "rows", "whole"]

    def mechanism(name: str, *part: Tensor, kept: int = 16, axis: dict | None = None) -> Job:
        named = axes if axis is None else axes | {"part": axis}
        inputs = *pair, *part
        return Job(lambda path: write(alone(name, kept), inputs, path, named, outputs))

    e, directions = torch.randn(16, TOKENS[1]), torch.randn(16, WIDTH)
    made = {"softmax": mechanism("softmax")}
    made["linformer"] = mechanism("linformer", e, axis={0: r, 1: n})
    made["performer"] = mechanism("performer", directions, axis={0: r})
    for kept in KEPT["nystrom"]:
        made[f"nystrom{kept}"] = mechanism("nystrom", kept=kept)
    square = {"images": {2: side, 3: side}}
    colours = ColourAndPlace(), (torch.randn(1, 3, 16, 16),)
    made["colour"] = Job(lambda path: write(*colours, path, square, ["q", "k"]))
    for tokens in TOKENS:
        made[f"queries{tokens}"] = Job(partial(_of_model, models["ViT"], tokens), models["ViT"])
    for name, model in models.items():
        made[name] = Job(partial(_of_model, model, None), model)
    return made


def _of_model(model: nn.Module, tokens: int | None, path: Path) -> None:
    model = model if tokens is None else at_tokens(model, tokens)
    images = torch.zeros(1, 3, *model.size)
    outputs = ["logits", "maps"] if tokens is None else ["q", "k"]
    write(Seen(model, maps=tokens is None), (images,), path, None, outputs)


def write(
    module: nn.Module, inputs: tuple, path: Path, axes: dict | None, outputs: list[str]
) -> None:
    """Export a module to ONNX, without what torch notes about its origin."""
    names = list(axes) if axes else ["images"]
    shapes = {"dynamic_shapes": tuple(axes.values())} if axes else {}
    # torch cannot prove that 16 runs of n // 16 tokens are n tokens: not asked, it goes on
    shapes["prefer_deferred_runtime_asserts_over_guards"] = bool(axes)
    attention.divmod = lambda a, b: (a // b, a % b)  # torch's symbols know no divmod
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter about torch
        try:
            program = torch.export.export(module.eval(), inputs, **shapes)
        finally:
            del attention.divmod
        how = {"dynamo": True, "input_names": names, "output_names": outputs, "verbose": False}
        made = torch.onnx.export(program, **how).model_proto
    del made.graph.value_info[:], made.graph.metadata_props[:]
    for node in made.graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
    path.write_bytes(made.SerializeToString())
