"""LeViX: LeViT's shrinking pyramid with any attention (LeViT, LeViL, LeViP, LeViN)."""

from collections.abc import Sequence

from torch import Tensor, nn

from vixlib.attention import Grid, Maker
from vixlib.errors import equally_long, whole
from vixlib.fused import MultiHead, Softmax
from vixlib.layers import LinearNorm, OffsetBias, Residual, Subsample, shrunk, tokens_of
from vixlib.models.host import Host, TokenMixer, mechanism_for


class LeViX(Host):
    """Convolutions, then stages of attention and MLP; between stages queries are subsampled.

    Graham et al. 2021. Kept with every mechanism: the convolution stem, batch normalisation,
    hardswish, shrinking stages, values wider than keys. The attention bias only where a mechanism
    takes one (softmax; Nyström, at its landmarks). Linformer's rows know places by themselves; in
    Performer's layers nothing but the stem's padding tells them. A mixer(dim, grid) takes the place
    of attention within the stages; between them, attention shrinks the grid. Called with images
    (b 3 H W), returns logits (b num_classes).
    """

    def __init__(
        self,
        *,
        mechanism: Maker = Softmax,
        mixer: TokenMixer | None = None,
        image_size: int | tuple[int, int] = 32,
        num_classes: int = 10,
        stem: Sequence[int] = (1, 1, 1),
        widths: Sequence[int] = (64, 96, 128),
        heads: Sequence[int] = (2, 3, 4),
        depths: Sequence[int] = (2, 2, 2),
        dim_head: int = 16,
        mlp_ratio: int = 2,
    ):
        super().__init__(image_size)
        equally_long(widths=widths, heads=heads, depths=depths)
        self.stem, grid, last = nn.Sequential(), Grid(*self.size), 3
        for i, stride in enumerate(stem):
            width = whole("width of a stem layer", widths[0] >> (len(stem) - 1 - i))
            conv = nn.Conv2d(last, width, 3, stride, padding=1, bias=False)
            self.stem.extend([conv, nn.BatchNorm2d(width), nn.Hardswish()])
            last, grid = width, shrunk(grid, stride)
        del self.stem[-1]  # the last convolution goes without
        self.grid = grid  # of the first stage
        self.blocks = nn.Sequential()

        def attention(dim: int, after: int, heads: int, value: int, stride: int = 1) -> MultiHead:
            queries, width = shrunk(grid, stride), value * dim_head
            made = mechanism_for(mechanism, heads, dim_head, queries, grid, width)
            q, k, v = (LinearNorm(dim, heads * each) for each in (dim_head, dim_head, width))
            if stride > 1:
                q = nn.Sequential(Subsample(grid, stride), q)
            out = nn.Sequential(nn.Hardswish(), LinearNorm(heads * width, after, gain=stride > 1))
            return MultiHead(made, q, k, v, out, bias=OffsetBias(heads, queries, grid, stride))

        def mlp(dim: int) -> Residual:
            up, down = LinearNorm(dim, mlp_ratio * dim), LinearNorm(mlp_ratio * dim, dim, gain=0)
            return Residual(up, nn.Hardswish(), down)

        for stage, (dim, depth) in enumerate(zip(widths, depths, strict=True)):
            if stage:
                before = widths[stage - 1]
                self.blocks.append(attention(before, dim, before // dim_head, value=4, stride=2))
                self.blocks.append(mlp(dim))
                grid = shrunk(grid, 2)
            for _ in range(depth):
                mix = mixer(dim, grid) if mixer else attention(dim, dim, heads[stage], value=2)
                self.blocks.extend([Residual(mix), mlp(dim)])
        self.head = nn.Sequential(nn.BatchNorm1d(dim), nn.Linear(dim, num_classes))

    def logits(self, images: Tensor) -> Tensor:
        x = self.blocks(tokens_of(self.stem(images)))
        return self.head(x.mean(1))
