"""LeViX: LeViT's shrinking pyramid with any attention (LeViT, LeViL, LeViP, LeViN)."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from vixlib.attention import Grid, Mechanism, Softmax, attend
from vixlib.errors import whole
from vixlib.layers import (
    LinearNorm,
    MultiHead,
    OffsetBias,
    Residual,
    Subsample,
    shrunk,
    tokens_of,
)
from vixlib.models.host import Host, check_stages


class LeViX(Host):
    """Convolutions, then stages of attention and MLP; between stages queries are subsampled.

    Graham et al. 2021. Kept with every mechanism: the convolution stem, batch normalisation,
    hardswish, shrinking stages, values wider than keys. The attention bias only where a mechanism
    takes one (softmax; Nyström, at its landmarks). Linformer's rows know places by themselves; in
    Performer's layers nothing but the stem's padding tells them. Called with images (b 3 H W),
    returns scores (b classes).
    """

    def __init__(
        self,
        *,
        mechanism: Callable[..., Mechanism] = Softmax,
        image_size: int | tuple[int, int] = 32,
        classes: int = 10,
        stem: Sequence[int] = (1, 1, 1),
        widths: Sequence[int] = (64, 96, 128),
        heads: Sequence[int] = (2, 3, 4),
        depths: Sequence[int] = (2, 2, 2),
        dim_head: int = 16,
        mlp_ratio: int = 2,
    ):
        super().__init__(image_size)
        check_stages(widths=widths, heads=heads, depths=depths)
        self.stem, grid, last = nn.Sequential(), Grid(*self.size), 3
        for i, stride in enumerate(stem):
            width = whole("width of a stem layer", widths[0] >> (len(stem) - 1 - i))
            conv = nn.Conv2d(last, width, 3, stride, padding=1, bias=False)
            self.stem.extend([conv, nn.BatchNorm2d(width), nn.Hardswish()])
            last, grid = width, shrunk(grid, stride)
        del self.stem[-1]  # the last convolution goes without
        self.grid = grid  # of the first stage
        self.blocks = nn.Sequential()

        def attention(dim: int, out: int, heads: int, value: int, stride: int = 1) -> MultiHead:
            queries = shrunk(grid, stride)
            made = attend(mechanism, heads, dim_head, queries, grid)
            q, value = LinearNorm(dim, heads * dim_head), heads * value * dim_head
            return MultiHead(
                made,
                q=q if stride == 1 else nn.Sequential(Subsample(grid, stride), q),
                k=LinearNorm(dim, heads * dim_head),
                v=LinearNorm(dim, value),
                out=nn.Sequential(nn.Hardswish(), LinearNorm(value, out, gain=stride > 1)),
                bias=OffsetBias(heads, queries, grid, stride),
            )

        def mlp(dim: int) -> Residual:
            hidden = mlp_ratio * dim
            return Residual(
                LinearNorm(dim, hidden), nn.Hardswish(), LinearNorm(hidden, dim, gain=0)
            )

        for stage, (dim, depth) in enumerate(zip(widths, depths, strict=True)):
            if stage:
                before = widths[stage - 1]
                self.blocks.append(attention(before, dim, before // dim_head, value=4, stride=2))
                self.blocks.append(mlp(dim))
                grid = shrunk(grid, 2)
            for _ in range(depth):
                self.blocks.append(Residual(attention(dim, dim, heads[stage], value=2)))
                self.blocks.append(mlp(dim))
        self.head = nn.Sequential(nn.BatchNorm1d(dim), nn.Linear(dim, classes))

    def scores(self, images: Tensor) -> Tensor:
        x = self.blocks(tokens_of(self.stem(images)))
        return self.head(x.mean(1))
