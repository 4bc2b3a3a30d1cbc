"""CvX: convolutions in embedding and projections, with any attention (CvT, CvL, CvP, CvN)."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from vixlib.attention import Grid, Maker
from vixlib.errors import BadInput, equally_long
from vixlib.fused import MultiHead, Softmax
from vixlib.layers import FRESH_STD, Residual, mlp, shrunk, tokens_of
from vixlib.models.host import Host, TokenMixer, mechanism_for, self_attention


class ConvolutionalProjection(nn.Module):
    """Depthwise convolution and batch norm over the grid, then a linear map: (b n c) -> (b n' c).

    Wu et al. 2021, equation 2. Prefix tokens (CLS) go around the convolution.
    """

    def __init__(self, dim: int, grid: Grid, stride: int = 1):
        super().__init__()
        self.grid = grid
        convolution = nn.Conv2d(dim, dim, 3, stride, padding=1, groups=dim, bias=False)
        self.depthwise = nn.Sequential(convolution, nn.BatchNorm2d(dim))
        self.linear = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns, prefix_tokens = self.grid
        prefix, image = x.split([prefix_tokens, rows * columns], 1)
        image = self.depthwise(image.mT.unflatten(2, (rows, columns)))
        return self.linear(torch.cat([prefix, tokens_of(image)], 1))


def convolutional_attention(
    dim: int, grid: Grid, *, mechanism: Maker = Softmax, dim_head: int = 32, stride: int = 2
) -> MultiHead:
    """A token mixer: convolutional projections, keys and values on every `stride`-th place.

    As in CvT, scores are divided by the root of dim, not of a head's width.
    """
    made = mechanism_for(mechanism, dim // dim_head, dim_head, grid, shrunk(grid, stride))
    project = partial(ConvolutionalProjection, dim, grid)
    out = nn.Linear(dim, dim)
    scale = (dim_head / dim) ** 0.5
    return MultiHead(made, project(), project(stride), project(stride), out, scale=scale)


class CvX(Host):
    """Stages, each a convolution that makes fewer, wider tokens, then transformer blocks.

    Wu et al. 2021. Kept with every mechanism: convolutional embeddings and projections, strided
    keys and values, CLS in the last stage only, no positions. Nyström has no residual convolution
    here, since queries and keys lie on different grids; the attention alone mixes neighbours.
    With `cls=False` the mean of all tokens is read out, without a norm; with `convolutional=False`
    projections are linear, of all tokens. Called with images (b 3 H W), returns logits
    (b num_classes).
    """

    def __init__(
        self,
        *,
        mechanism: Maker = Softmax,
        mixer: TokenMixer | None = None,
        image_size: int | tuple[int, int] = 32,
        num_classes: int = 10,
        strides: Sequence[int] = (1, 1, 2),
        kernels: Sequence[int] = (3, 3, 3),
        widths: Sequence[int] = (64, 96, 128),
        heads: Sequence[int] = (2, 3, 4),
        depths: Sequence[int] = (1, 1, 2),
        mlp_ratio: int = 4,
        convolutional: bool = True,
        kv_stride: int = 2,
        cls: bool = True,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        std: float = FRESH_STD,
    ):
        super().__init__(image_size)
        strided = partial(convolutional_attention, stride=kv_stride)
        attention = partial(strided if convolutional else self_attention, mechanism=mechanism)
        grid, last = Grid(*self.size), 3
        self.embeddings, self.norms, self.stages = (nn.ModuleList() for _ in range(3))
        equally_long(strides=strides, kernels=kernels, widths=widths, heads=heads, depths=depths)
        for i, dim in enumerate(widths):
            if dim % heads[i]:
                raise BadInput(f"widths: expected a multiple of {heads[i]} heads, got {dim}")
            if kernels[i] < 3 or kernels[i] % 2 == 0:
                raise BadInput(f"kernels: expected odd numbers from 3, got {kernels[i]}")
            padding = (kernels[i] - strides[i] + 1) // 2 if kernels[i] > 3 else 1
            self.embeddings.append(nn.Conv2d(last, dim, kernels[i], strides[i], padding))
            self.norms.append(norm(dim))
            grid = shrunk(grid, strides[i])
            self.grid = grid if not i else self.grid  # of the first stage
            if cls and i == len(widths) - 1:
                grid = grid._replace(prefix_tokens=1)
            stage = nn.Sequential()
            for _ in range(depths[i]):
                mix = mixer or partial(attention, dim_head=dim // heads[i])
                stage.append(Residual(norm(dim), mix(dim, grid)))
                stage.append(Residual(norm(dim), mlp(dim, mlp_ratio * dim)))
            self.stages.append(stage)
            last = dim
        self.cls = nn.Parameter(torch.randn(1, dim) * std) if cls else None
        self.norm = norm(dim) if cls else nn.Identity()
        self.head = nn.Linear(dim, num_classes)

    def logits(self, images: Tensor) -> Tensor:
        x = images
        for embedding, norm, stage in zip(self.embeddings, self.norms, self.stages, strict=True):
            image = embedding(x)
            x = norm(tokens_of(image))
            if self.cls is not None and stage is self.stages[-1]:
                x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1)
            x = stage(x)
            if stage is not self.stages[-1]:
                x = x.mT.unflatten(2, image.shape[2:])
        return self.head(self.norm(x.mean(1) if self.cls is None else x[:, 0]))
