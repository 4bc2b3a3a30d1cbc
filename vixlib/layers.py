"""Layers around a mechanism: embeddings, positions, token mixers, channel mixing; textbook forms.

Letters: b batch, c channels, n tokens, h heads, d e widths of a head, r s rows and columns.
A token mixer is built with (dim, grid) and maps (b n c) -> (b n c).
"""

from collections.abc import Callable
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from vixlib.attention import Grid, Mechanism, resample, widened
from vixlib.errors import BadInput, number, whole

FRESH_STD = 0.02  # spread of fresh positions and CLS; the released code's is 1


def tokens_of(image: Tensor) -> Tensor:
    """Places of an image as tokens in raster order: (b c r s) -> (b n c)."""
    return rearrange(image, "b c r s -> b (r s) c")


class PatchEmbedding(nn.Conv2d):
    """Each patch of an image to one token: (b 3 H W) -> (b c r s). Dosovitskiy et al. 2021."""

    def __init__(self, dim: int, patch: int):
        super().__init__(3, dim, patch, stride=patch)


class ConvolutionalEmbedding(nn.Sequential):
    """Three 3x3 convolutions for the hybrids: (b 3 H W) -> (b c r s). Jeevan and Sethi 2021.

    As released, nothing stands between them: a linear map that sees 7 x 7 pixels; with `relu` a
    ReLU does. A patch of 2, 4 or 8 becomes strides of 2.
    """

    def __init__(self, dim: int, patch: int, relu: bool = False):
        if patch not in (1, 2, 4, 8):
            raise BadInput(f"patch_size: expected 1, 2, 4 or 8 with convolutions, got {patch}")
        widths = 3, whole("dim", dim, least=4) // 4, dim // 2, dim
        super().__init__()
        for i in range(3):
            stride = 2 if patch > 2**i else 1
            self.append(nn.Conv2d(widths[i], widths[i + 1], 3, stride, padding=1))
            if relu and i < 2:
                self.append(nn.ReLU())


class Positions(nn.Module):
    """A learned vector added to each token; the table is kept as an image, CLS apart."""

    def __init__(self, dim: int, grid: Grid, std: float = FRESH_STD):
        super().__init__()
        self.table = nn.Parameter(torch.randn(dim, grid.rows, grid.columns) * std)
        self.prefix = nn.Parameter(torch.randn(grid.prefix_tokens, dim) * std)

    def follow(self, twin: "Positions") -> None:
        """Positions are resampled as an image, to another's size."""
        self.table.data = resample(self.table.data, *twin.table.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.cat([self.prefix, rearrange(self.table, "c r s -> (r s) c")])


class Rotary(nn.Module):
    """Each pair of widths turned by its token's place times its own speed. (b h n d) -> same.

    Su et al. 2021, equation 34. As released: places count in raster order, CLS first. For images
    of another size, places lie where the grid that was trained on would have them.
    """

    def __init__(self, dim_head: int, grid: Grid, base: float = 10_000.0):
        super().__init__()
        if dim_head % 2:
            raise BadInput(f"dim_head: expected an even number to turn, got {dim_head}")
        self.inv_freq = base ** (-torch.arange(0, dim_head, 2) / dim_head)
        self.trained = grid
        self.cos, self.sin = (nn.Buffer(table, persistent=False) for table in self.turns(grid))

    def turns(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the angles of each token of a grid (n d/2)."""
        rows = (torch.arange(grid.rows) + 0.5) * (self.trained.rows / grid.rows) - 0.5
        columns = (torch.arange(grid.columns) + 0.5) * (self.trained.columns / grid.columns) - 0.5
        first = grid.prefix_tokens
        places = first + rows[:, None] * self.trained.columns + columns
        angles = torch.cat([torch.arange(first), places.flatten()])[:, None] * self.inv_freq
        return angles.cos(), angles.sin()

    def follow(self, twin: "Rotary") -> None:
        """Places of a new grid lie where the one that was trained on would have them."""
        self.cos, self.sin = (table.to(self.cos) for table in self.turns(twin.trained))

    def forward(self, x: Tensor) -> Tensor:
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


class OffsetBias(nn.Module):
    """A learned bias for each head and each distance in rows and columns: LeViT's attention bias.

    Graham et al. 2021, equation 1. Called with functions that a mechanism applies to the places of
    queries and keys (n 2), it gives the bias (h n m) between what they return.
    """

    def __init__(self, heads: int, queries: Grid, keys: Grid, stride: int = 1):
        super().__init__()
        self.stride = stride
        self.table = nn.Parameter(torch.zeros(heads, keys.rows, keys.columns))
        self.register_buffer("of_queries", stride * places(queries), persistent=False)
        self.register_buffer("of_keys", places(keys), persistent=False)

    def move(self, queries: Grid, keys: Grid) -> None:
        """Take other grids; a distance keeps the bias that it had as a share of the image."""
        table = self.table.data
        rows = stretch(table.shape[1], keys.rows).to(table)
        columns = stretch(table.shape[2], keys.columns).to(table)
        self.table.data = rows @ table @ columns.T
        self.of_queries = (self.stride * places(queries)).to(self.of_queries)
        self.of_keys = places(keys).to(self.of_keys)

    def forward(self, of_q: Callable = torch.positive, of_k: Callable = torch.positive) -> Tensor:
        q, k = of_q(self.of_queries.float()), of_k(self.of_keys.float())  # means of many places
        rows, columns = (q[:, None] - k).abs().round().long().unbind(-1)
        return self.table[:, rows, columns]


def places(grid: Grid) -> Tensor:
    """Row and column of every token of a grid without prefix tokens: (n 2)."""
    rows, columns = torch.arange(float(grid.rows)), torch.arange(float(grid.columns))
    return torch.cartesian_prod(rows, columns)


def stretch(then: int, now: int) -> Tensor:
    """What takes a line over distances 0 ... then - 1 to `now` of them, 0 staying 0: (now then)."""
    at = (torch.arange(now) * (then / now)).clamp(max=then - 1)
    return (1 - (at[:, None] - torch.arange(then)).abs()).clamp(min=0)


class MultiHead(nn.Module):
    """A mechanism between its host's own projections; `v` is None where values are the keys.

    `scale` multiplies queries, for hosts that divide scores by another root than that of d.
    """

    def __init__(
        self,
        mechanism: Mechanism,
        q: nn.Module,
        k: nn.Module,
        v: nn.Module | None,
        out: nn.Module,
        *,
        rotary: Rotary | None = None,
        bias: OffsetBias | None = None,
        scale: float = 1.0,
    ):
        super().__init__()
        self.mechanism, self.rotary, self.scale = mechanism, rotary, scale
        self.q, self.k, self.v, self.out = q, k, v, out
        self.bias = bias if mechanism.takes_bias else None

    def follow(self, twin: "MultiHead") -> None:
        """Take the grids of another's bias; the mechanism, whichever it is, follows by itself."""
        if self.bias is not None:
            self.bias.move(twin.mechanism.queries, twin.mechanism.keys)

    def context(self, x: Tensor) -> Tensor:
        """What keys and values are projected from."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        heads = partial(rearrange, pattern="b n (h d) -> b h n d")
        context = self.context(x)
        q = heads(self.q(x), h=self.mechanism.heads)
        k = heads(self.k(context), d=q.shape[-1])
        v = k if self.v is None else heads(self.v(context), h=k.shape[1])
        if self.rotary is not None:  # places turn queries and keys, never values
            q, k = self.rotary(q), self.rotary(k)
        options = {} if self.bias is None else {"bias": self.bias}
        q = q if self.scale == 1 else q * self.scale
        return self.out(rearrange(self.mechanism(q, k, v, **options), "b h n e -> b n (h e)"))


class Fourier(nn.Module):
    """The real part of a Fourier transform over tokens and channels. FNet: Lee-Thorp et al. 2021.

    Equation 3; no parameters; time grows as n log n. (b n c) -> (b n c).
    """

    def __init__(self, dim: int, grid: Grid):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fftn(widened(x), dim=(1, 2)).real.to(x.dtype)  # none in half precision


class TokenMLP(nn.Module):
    """A two-layer network over the tokens of each channel. MLP-Mixer: Tolstikhin et al. 2021.

    Equation 1. (b n c) -> (b n c) for one number of tokens only: the weights are n x n.
    """

    def __init__(self, dim: int, grid: Grid):
        super().__init__()
        self.tokens = grid.tokens
        self.mlp = mlp(grid.tokens, grid.tokens)

    def follow(self, twin: "TokenMLP") -> None:
        """BadInput for any other number of tokens."""
        if twin.tokens != self.tokens:
            many = f"an MLP-Mixer of {self.tokens} tokens holds that many by its weights"
            raise BadInput(f"{many}; build another for {twin.tokens}")

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.tokens:
            raise BadInput(f"TokenMLP: expected {self.tokens} tokens, got {x.shape[1]}")
        return self.mlp(x.mT).mT


def mlp(dim: int, hidden: int) -> nn.Sequential:
    """Linear, GELU, linear over the last axis."""
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


class Residual(nn.Sequential):
    """x + layers(x); in training a sample goes without the layers with probability `drop_path`.

    Stochastic depth: Huang et al. 2016, equation 5, what is kept scaled up instead of later down.
    """

    def __init__(self, *layers: nn.Module, drop_path: float = 0.0):
        super().__init__(*layers)
        self.drop_path = number("drop_path", drop_path, below=1)

    def forward(self, x: Tensor) -> Tensor:
        branch = super().forward(x)
        if self.training and self.drop_path:
            kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.drop_path
            branch = branch * kept / (1 - self.drop_path)
        return x + branch


class TokenNorm(nn.BatchNorm1d):
    """Batch normalisation of each channel over samples and tokens: (b n c) -> same."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).view_as(x)


class LinearNorm(nn.Sequential):
    """A linear map without bias, then batch normalisation that starts with gain `gain`."""

    def __init__(self, dim: int, out: int, gain: float = 1.0):
        super().__init__(nn.Linear(dim, out, bias=False), TokenNorm(out))
        nn.init.constant_(self[1].weight, gain)


class Subsample(nn.Module):
    """Every `stride`-th row and column of a grid of tokens: (b n c) -> (b n' c)."""

    def __init__(self, grid: Grid, stride: int):
        super().__init__()
        self.grid, self.stride = grid, stride

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (self.grid.rows, self.grid.columns))
        return x[:, :: self.stride, :: self.stride].flatten(1, 2)


def shrunk(grid: Grid, stride: int) -> Grid:
    """The grid that every `stride`-th row and column leaves; prefix tokens stay."""
    return Grid(-(-grid.rows // stride), -(-grid.columns // stride), grid.prefix_tokens)
