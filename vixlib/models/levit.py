"""LeViX: LeViT's shrinking pyramid with any attention (LeViT, LeViL, LeViP, LeViN)."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from vixlib.attention import Grid, Mechanism
from vixlib.errors import whole
from vixlib.fused import MultiHead, Softmax
from vixlib.layers import LinearNorm, OffsetBias, Residual, Subsample, shrunk, tokens_of
from vixlib.models.host import Host, TokenMixer, check_stages, mechanism_for


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
        mechanism: Callable[..., Mechanism] = Softmax,
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
            queries, width = shrunk(grid, stride), value * dim_head
            made = mechanism_for(mechanism, heads, dim_head, queries, grid, width)
            q = LinearNorm(dim, heads * dim_head)
            return MultiHead(
                made,
                q=q if stride == 1 else nn.Sequential(Subsample(grid, stride), q),
                k=LinearNorm(dim, heads * dim_head),
                v=LinearNorm(dim, heads * width),
                out=nn.Sequential(nn.Hardswish(), LinearNorm(heads * width, out, gain=stride > 1)),
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
                mix = mixer(dim, grid) if mixer else attention(dim, dim, heads[stage], value=2)
                self.blocks.append(Residual(mix))
                self.blocks.append(mlp(dim))
        self.head = nn.Sequential(nn.BatchNorm1d(dim), nn.Linear(dim, num_classes))

    def logits(self, images: Tensor) -> Tensor:
        x = self.blocks(tokens_of(self.stem(images)))
        return self.head(x.mean(1))
