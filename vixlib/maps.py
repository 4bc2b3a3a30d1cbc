"""What a model looks at: the map of every attention layer as an image, and all layers at once."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vixlib.attention import Bias, Grid, Mechanism
from vixlib.errors import BadInput, checked, held

LARGEST = 100  # of a normalised pixel: beyond are bytes, or nothing finite


@checked
@torch.no_grad()
def attention_map(mechanism: Mechanism, q: Tensor, k: Tensor, **bias: Bias) -> Tensor:
    """The matrix (b h n m) that a mechanism multiplies values with, exact or implied.

    The identity is fed as v. Rows of Linformer and Nyström may be negative and need not sum to 1.
    """
    v = torch.eye(mechanism.keys.tokens, dtype=q.dtype, device=q.device)
    v = v if k.shape[2] == len(v) else mechanism.compress(v)  # k came compressed
    return mechanism(q, k, v.expand(*k.shape[:2], -1, -1), **bias)


class AttentionMap(NamedTuple):
    """The weights (b h n m) of one layer, for queries and keys on their grids over an image."""

    weights: Tensor
    queries: Grid
    keys: Grid
    size: tuple[int, int]  # of the image: height, width

    def image(self, query: tuple[int, int] | str | None = None, head: int | None = None) -> Tensor:
        """The weights that a query gives to the places of an image: (b H W).

        `query` is a pixel (row, column) or "cls", None for the mean of all; `head` None for the
        mean of all. Keys without a place (CLS) are left out. BadInput for what is not there.
        """
        heads = range(self.weights.shape[1])
        if head is not None and head not in heads:
            raise BadInput(f"head: expected 0 to {heads[-1]}, got {head!r}")
        weights = self.weights.mean(1) if head is None else self.weights[:, head]
        chosen = one_query(self.queries, self.size, query).to(weights)
        return on_image(chosen @ weights, self.keys, self.size)


@checked
@torch.no_grad()
def attention_maps(model: nn.Module, images: Tensor) -> list[AttentionMap]:
    """The map of every attention layer of a model, first to last, for normalised images."""
    if not (images.abs() <= LARGEST).all():
        seen = f"{images.min():g} to {images.max():g}"
        raise BadInput(f"images: expected normalised floats, about -1 to 1, got {seen}")
    seen = []

    def see(mechanism: Mechanism, qkv: tuple[Tensor, ...], bias: dict[str, Bias]) -> None:
        seen.append((mechanism, *qkv[:2], bias))

    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, Mechanism):
                hooks.enter_context(module.register_forward_pre_hook(see, with_kwargs=True))
        model(images)
    size, maps = tuple(images.shape[-2:]), []
    for m, q, k, bias in seen:
        maps.append(AttentionMap(attention_map(m, q, k, **bias), m.queries, m.keys, size))
    return maps


def rollout(maps: Sequence[AttentionMap], query: tuple[int, int] | str | None = None) -> Tensor:
    """What a query of the last layer drew from the image through all layers: (b H W), sum 1.

    Abnar and Zuidema 2020, equation 1: half of each token is the layer's input, half what it
    attends to. Heads are averaged by the size of their weights, since linear attentions have
    negative ones, too. Where the grid changes between layers, shares stay with their place.
    """
    held("maps", maps, Sequence[AttentionMap])
    if not maps:
        raise BadInput("rollout: expected the maps of attention layers, got none")
    share = one_query(maps[-1].queries, maps[-1].size, query).to(maps[-1].weights)
    grid = maps[-1].queries
    for weights, queries, keys, _ in reversed(maps):
        share = moved(share, grid, queries)
        weights = weights.abs().mean(1)
        drawn = share @ (weights / weights.sum(-1, keepdim=True))
        grid = max(queries, keys, key=lambda grid: grid.tokens)  # of the layer's input
        drawn = moved(drawn, keys, grid)
        share = (share + drawn) / 2 if queries == grid else drawn  # fewer queries skip nothing
    image = on_image(share, grid, maps[-1].size)
    return image / image.sum((-2, -1), keepdim=True)


def one_query(grid: Grid, size: tuple[int, int], query: tuple[int, int] | str | None) -> Tensor:
    """A row (1 1 n) that picks a query: "cls", a pixel of an image of `size`, None for the mean."""
    row = torch.zeros(1, 1, grid.tokens)
    pixel = isinstance(query, tuple) and len(query) == 2
    if query is None:
        row += 1 / grid.tokens
    elif query == "cls" and grid.prefix_tokens:
        row[..., 0] = 1
    elif pixel and all(0 <= at < side for at, side in zip(query, size, strict=True)):
        y, x = (at * n // side for at, n, side in zip(query, grid[:2], size, strict=True))
        row[..., grid.prefix_tokens + y * grid.columns + x] = 1
    else:
        legal = f"a pixel (row, column) of {size[0]} x {size[1]}"
        cls = ' or "cls"' if grid.prefix_tokens else ""
        raise BadInput(f"query: expected {legal}{cls}, got {query!r}")
    return row


def moved(share: Tensor, old: Grid, new: Grid) -> Tensor:
    """Shares of tokens (b 1 n) on another grid, each at its place; CLS begins where it first is."""
    prefix, image = share.split([old.prefix_tokens, old.rows * old.columns], -1)
    image = F.interpolate(image.unflatten(-1, old[:2]), size=new[:2], mode="area").flatten(-2)
    image = image * (old.rows * old.columns / (new.rows * new.columns))
    return torch.cat([prefix[..., : new.prefix_tokens], image], -1)


def on_image(values: Tensor, grid: Grid, size: tuple[int, int]) -> Tensor:
    """Values of tokens (b 1 n) over the pixels of an image: (b H W)."""
    image = values[..., grid.prefix_tokens :].unflatten(-1, grid[:2])
    return F.interpolate(image, size=size, mode="nearest-exact")[:, 0]
