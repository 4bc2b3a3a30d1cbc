"""ViX: one vision transformer whose token mixer is an argument (ViT, ViL, ViP, ViN, FNet, ...)."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from vixlib.attention import Grid, Mechanism, Softmax
from vixlib.layers import (
    FRESH_STD,
    PatchEmbedding,
    Positions,
    Residual,
    mlp,
    self_attention,
    tokens_of,
)
from vixlib.models.host import Host


class ViX(Host):
    """Image to tokens, `depth` blocks of token mixer and channel MLP, one token to class scores.

    Dosovitskiy et al. 2021 with pre-normalisation; Jeevan and Sethi 2021 for the mixers. Called
    with normalised images (b 3 H W), returns scores (b classes). `mixer` and `embedding` are built
    as mixer(dim, grid) and embedding(dim, patch_size). With `cls` a learned token is read out at
    the end, else the mean of all.
    """

    def __init__(
        self,
        *,
        mixer: Callable[[int, Grid], nn.Module],
        embedding: Callable[[int, int], nn.Module] = PatchEmbedding,
        positions: bool = True,
        cls: bool = True,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        image_size: int | tuple[int, int] = 32,
        patch_size: int = 1,
        classes: int = 10,
        dim: int = 128,
        depth: int = 4,
        mlp_ratio: int = 2,
    ):
        super().__init__(image_size)
        self.grid = grid = self.patches(patch_size)._replace(extra=int(cls))
        self.embedding = embedding(dim, patch_size)
        self.cls = nn.Parameter(torch.randn(grid.extra, dim) * FRESH_STD) if cls else None
        self.positions = Positions(dim, grid) if positions else nn.Identity()
        self.blocks = nn.Sequential()
        for _ in range(depth):
            self.blocks.append(Residual(norm(dim), mixer(dim, grid)))
            self.blocks.append(Residual(norm(dim), mlp(dim, mlp_ratio * dim)))
        self.head = nn.Sequential(norm(dim), nn.Linear(dim, classes))

    def scores(self, images: Tensor) -> Tensor:
        x = tokens_of(self.embedding(images))
        if self.cls is not None:
            x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1)
        x = self.blocks(self.positions(x))
        return self.head(x.mean(1) if self.cls is None else x[:, 0])


class AttentionViX(ViX):
    """A ViX whose token mixer is attention with a mechanism, learned or rotary positions."""

    def __init__(
        self,
        *,
        mechanism: Callable[..., Mechanism] = Softmax,
        dim_head: int = 32,
        rotary: bool = False,
        **host,
    ):
        mixer = partial(self_attention, mechanism=mechanism, dim_head=dim_head, rotary=rotary)
        super().__init__(mixer=mixer, **host)
