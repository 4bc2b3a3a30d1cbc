"""ViX: one vision transformer whose token mixer is an argument (ViT, ViL, ViP, ViN, FNet, ...)."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from vixlib.attention import Maker
from vixlib.errors import BadInput
from vixlib.fused import Softmax
from vixlib.layers import FRESH_STD, PatchEmbedding, Positions, Residual, mlp, tokens_of
from vixlib.models.host import Host, TokenMixer, self_attention


class ViX(Host):
    """Image to tokens, `depth` blocks of token mixer and channel MLP, one token to class logits.

    Dosovitskiy et al. 2021 with pre-normalisation; Jeevan and Sethi 2021 for the mixers. Called
    with normalised images (b 3 H W), returns logits (b num_classes). Tokens are mixed by attention
    with a mechanism, with rotary positions if asked, or by any mixer(dim, grid). `embedding` is
    built as embedding(dim, patch_size). With `cls` a learned token is read out at the end, else the
    mean of all; `std` is the spread of fresh positions and CLS.
    """

    def __init__(
        self,
        *,
        mechanism: Maker = Softmax,
        mixer: TokenMixer | None = None,
        embedding: Callable[[int, int], nn.Module] = PatchEmbedding,
        positions: bool = True,
        rotary: bool = False,
        cls: bool = True,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        image_size: int | tuple[int, int] = 32,
        patch_size: int = 1,
        num_classes: int = 10,
        dim: int = 128,
        depth: int = 4,
        dim_head: int = 32,
        mlp_ratio: int = 2,
        std: float = FRESH_STD,
    ):
        super().__init__(image_size)
        if mixer is not None and rotary:
            raise BadInput("rotary: it turns queries and keys of attention; a mixer has none")
        attention = partial(self_attention, mechanism=mechanism, dim_head=dim_head, rotary=rotary)
        mixer = mixer or attention
        self.grid = grid = self.patches(patch_size)._replace(prefix_tokens=int(cls))
        self.embedding = embedding(dim, patch_size)
        self.cls = nn.Parameter(torch.randn(grid.prefix_tokens, dim) * std) if cls else None
        self.positions = Positions(dim, grid, std) if positions else nn.Identity()
        self.blocks = nn.Sequential()
        for _ in range(depth):
            self.blocks.append(Residual(norm(dim), mixer(dim, grid)))
            self.blocks.append(Residual(norm(dim), mlp(dim, mlp_ratio * dim)))
        self.head = nn.Sequential(norm(dim), nn.Linear(dim, num_classes))

    def logits(self, images: Tensor) -> Tensor:
        x = tokens_of(self.embedding(images))
        if self.cls is not None:
            x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1)
        x = self.blocks(self.positions(x))
        norm, linear = self.head
        return linear(norm(x).mean(1) if self.cls is None else norm(x[:, 0]))
