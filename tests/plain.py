"""Every system as plain functions of its weights, read from the papers: what wiring is held to.

Nothing here calls vixlib: a function takes a model's tensors by their names, and all that it needs
to know of sizes. Heads, tokens, landmarks and kernels are loops. What a function does not ask for
by name, a model should not have: `Weights.asked` tells.

Letters: b batch, c channels, n queries, m keys, d e widths of a head's keys and values.
A grid is (rows, columns, tokens before them). A mix is one head of a mechanism.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int, int]
Places = list[tuple[float, float]]
EPSILON = 1e-5  # of every norm


class Weights:
    """A model's tensors by name, `at` a prefix; `after` are the statistics that training leaves."""

    def __init__(self, tensors: dict[str, Tensor], training: bool = False):
        self.tensors, self.training, self.prefix = tensors, training, ""
        self.asked, self.after = set(), {}

    def at(self, *path: str | int) -> "Weights":
        part = Weights(self.tensors, self.training)
        part.prefix = self.prefix + "".join(f"{name}." for name in path)
        part.asked, part.after = self.asked, self.after
        return part

    def __getitem__(self, name: str) -> Tensor:
        self.asked.add(self.prefix + name)
        return self.tensors[self.prefix + name]


# --- parts of a network --------------------------------------------------------------------------


def linear(x: Tensor, w: Weights, bias: bool = True) -> Tensor:
    y = torch.einsum("...i,oi->...o", x, w["weight"])
    return y + w["bias"] if bias else y


def layer_norm(x: Tensor, w: Weights, released: bool = False) -> Tensor:
    """Ba et al. 2016, equation 3; the released CvN and CvP add epsilon to the root."""
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    spread = variance.sqrt() + EPSILON if released else (variance + EPSILON).sqrt()
    return (x - mean) / spread * w["weight"] + w["bias"]


def batch_norm(x: Tensor, w: Weights, axis: int) -> Tensor:
    """Ioffe and Szegedy 2015, algorithms 1 and 2; a tenth of each batch goes into what is kept."""
    over = [i for i in range(x.ndim) if i != axis % x.ndim]
    shape = [-1 if i == axis % x.ndim else 1 for i in range(x.ndim)]
    mean, variance = w["running_mean"], w["running_var"]
    if w.training:
        kept, count = (mean, variance), x.numel() / x.shape[axis]
        mean = x.mean(over)
        variance = ((x - mean.view(shape)) ** 2).mean(over)
        unbiased = variance * count / (count - 1)
        for name, old, new in zip(("mean", "var"), kept, (mean, unbiased), strict=True):
            w.after[f"{w.prefix}running_{name}"] = 0.9 * old + 0.1 * new.detach()
    x = (x - mean.view(shape)) / (variance + EPSILON).sqrt().view(shape)
    return x * w["weight"].view(shape) + w["bias"].view(shape)


def relu(x: Tensor) -> Tensor:
    return x * (x > 0)


def gelu(x: Tensor) -> Tensor:
    """x P(X <= x) of a standard normal X. Hendrycks and Gimpel 2016."""
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def hardswish(x: Tensor) -> Tensor:
    """Howard et al. 2019, section 5.2."""
    return x * (x + 3).clamp(0, 6) / 6


def mlp(x: Tensor, w: Weights) -> Tensor:
    return linear(gelu(linear(x, w.at(0))), w.at(2))


def convolution(
    x: Tensor, w: Weights, stride: int = 1, padding: int = 0, groups: int = 1, bias: bool = False
) -> Tensor:
    return F.conv2d(x, w["weight"], w["bias"] if bias else None, stride, padding, 1, groups)


def raster(image: Tensor) -> Tensor:
    """Row after row, one token a place: (b c r s) -> (b n c)."""
    return torch.cat([row.transpose(1, 2) for row in image.unbind(2)], 1)


def image_of(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """The other way."""
    return torch.stack([row.transpose(1, 2) for row in tokens.split(columns, 1)], 2)


def dropped(branch: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth: a sample goes without, the others count for more. Huang et al. 2016."""
    if training and rate:
        kept = torch.rand(len(branch)) >= rate
        whole = [each / (1 - rate) if k else 0 * each for k, each in zip(kept, branch, strict=True)]
        branch = torch.stack(whole)
    return branch


# --- mechanisms: one head ------------------------------------------------------------------------


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v. Vaswani et al. 2017, equation 1."""
    scores = torch.einsum("bnd,bmd->bnm", q, k) / math.sqrt(q.shape[-1]) + bias
    return torch.einsum("bnm,bme->bne", scores.softmax(2), v)


Bias = Callable[[Callable, Callable], Tensor | float]


def no_bias(of_q: Callable, of_k: Callable) -> float:
    return 0.0


def all_of(x):
    return x


def softmax(w: Weights, head: int, q, k, v, grids, kept: int, bias: Bias = no_bias) -> Tensor:
    return attend(q, k, v, bias(all_of, all_of))


def linformer(w: Weights, head: int, q, k, v, grids, kept: int, bias: Bias = no_bias) -> Tensor:
    """Wang et al. 2020, equation 7: a mixture sums over tokens in raster order, CLS first."""
    image, before = w["projection"], grids[1][2]
    rows = [w["projection_prefix"]] if before else []
    e = torch.cat([*rows, *image.unbind(1)], 1)
    return attend(q, torch.einsum("rm,bmd->brd", e, k), torch.einsum("rm,bmd->brd", e, v))


def performer(w: Weights, head: int, q, k, v, grids, kept: int, bias: Bias = no_bias) -> Tensor:
    """Choromanski et al. 2021, equation 5 for softmax: x is divided by the fourth root of d."""

    def phi(x: Tensor) -> Tensor:
        x = x / x.shape[-1] ** 0.25
        return torch.exp(
            torch.einsum("bnd,rd->bnr", x, w["directions"]) - (x * x).sum(-1)[..., None] / 2
        )

    matrix = torch.einsum("bnr,bmr->bnm", phi(q), phi(k))
    return torch.einsum("bnm,bme->bne", matrix / matrix.sum(2, keepdim=True), v)


def elu(w: Weights, head: int, q, k, v, grids, kept: int, bias: Bias = no_bias) -> Tensor:
    """Katharopoulos et al. 2020, equation 7: elu(x) + 1 is x + 1 above 0 and exp(x) below."""

    def phi(x: Tensor) -> Tensor:
        return torch.where(x > 0, x + 1, x.clamp(max=0).exp())

    matrix = torch.einsum("bnd,bmd->bnm", phi(q), phi(k))
    return torch.einsum("bnm,bme->bne", matrix / matrix.sum(2, keepdim=True), v)


def landmarks(x: Tensor, kept: int) -> Tensor:
    """Means of runs of neighbouring tokens, the first ones longer where they do not come out."""
    runs = [len(run) for run in torch.arange(x.shape[-2]).tensor_split(kept)]
    return torch.stack([run.mean(-2) for run in x.split(runs, -2)], -2)


def pseudo_inverse(a: Tensor, iterations: int = 6) -> Tensor:
    """Xiong et al. 2021, equation 14, for (b r r)."""
    identity = torch.eye(a.shape[-1], dtype=a.dtype)
    scale = a.abs().sum(1).amax(1) * a.abs().sum(2).amax(1)
    z = a.transpose(1, 2) / scale[:, None, None]
    for _ in range(iterations):
        az = a @ z
        z = z @ (13 * identity - az @ (15 * identity - az @ (7 * identity - az))) / 4
    return z


def nystrom(w: Weights, head: int, q, k, v, grids, kept: int, bias: Bias = no_bias) -> Tensor:
    """Xiong et al. 2021, equation 13, and a convolution of values where both grids are one."""

    def few(x):
        return landmarks(x, kept)

    def matrix(q: Tensor, k: Tensor, of_q: Callable, of_k: Callable) -> Tensor:
        identity = torch.eye(of_k(k).shape[1], dtype=k.dtype).expand(len(k), -1, -1)
        return attend(of_q(q), of_k(k), identity, bias(of_q, of_k))

    inverse = pseudo_inverse(matrix(q, k, few, few))
    out = matrix(q, k, all_of, few) @ (inverse @ (matrix(q, k, few, all_of) @ v))
    if grids[0] == grids[1]:
        kernel, m = w["residual.weight"][head].flatten(), v.shape[1]
        assert len(kernel) == 33
        padded = F.pad(v, (0, 0, 16, 16))
        out = out + sum(kernel[j] * padded[:, j : j + m] for j in range(33))
    return out


Mix = Callable[..., Tensor]
MIXES: dict[str, Mix] = {"T": softmax, "L": linformer, "P": performer, "N": nystrom, "E": elu}
TAKE_A_BIAS = softmax, nystrom


def tokens_of(grid: Grid) -> int:
    return grid[0] * grid[1] + grid[2]


def chosen(mix: Mix, queries: Grid, keys: Grid) -> tuple[Mix, int]:
    """Softmax under 64 tokens; else a landmark or mixture for each 16 of the larger grid."""
    most = max(tokens_of(queries), tokens_of(keys))
    return (softmax if most < 64 else mix), most // 16


# --- layers that mix tokens ----------------------------------------------------------------------


def turned(x: Tensor) -> Tensor:
    """Su et al. 2021, equation 34, token by token: pair i turns by place x 10,000^(-2i/d)."""
    d, tokens = x.shape[-1], []
    speeds = torch.tensor([10_000 ** (-2 * i / d) for i in range(d // 2)], dtype=x.dtype)
    for place, token in enumerate(x.unbind(1)):
        pairs = torch.complex(token[:, 0::2], token[:, 1::2])
        pairs = pairs * torch.polar(torch.ones_like(speeds), place * speeds)
        tokens.append(torch.stack([pairs.real, pairs.imag], -1).flatten(-2))
    return torch.stack(tokens, 1)


def self_attention(
    x: Tensor,
    w: Weights,
    grid: Grid,
    heads: int,
    mix: Mix,
    kept: int,
    *,
    rope: bool = False,
    shared: bool = False,
    one_head: bool = False,
) -> Tensor:
    """Linear projections, with biases for Performer only; values may be keys before their turn."""
    q, k = (linear(x, w.at(name), bias=mix is performer) for name in "qk")
    v = k if shared else linear(x, w.at("v"), bias=mix is performer)
    out, d = [], q.shape[-1] // heads
    for head in range(heads):
        at = slice(head * d, head * d + d)
        of_keys = slice(0, d) if one_head else at
        qkv = q[..., at], k[..., of_keys], v[..., of_keys]
        if rope:
            qkv = turned(qkv[0]), turned(qkv[1]), qkv[2]
        out.append(mix(w.at("mechanism"), head, *qkv, (grid, grid), kept))
    return linear(torch.cat(out, -1), w.at("out"))


def fourier(x: Tensor) -> Tensor:
    """Real part of the sum of x[i, j] exp(-2 pi i (i k / n + j l / c)). FNet, equation 3."""
    parts = []
    for size in x.shape[1:]:
        at = torch.arange(size, dtype=x.dtype)
        angle = 2 * math.pi * torch.outer(at, at) / size
        parts.append((angle.cos(), angle.sin()))
    (cos_n, sin_n), (cos_c, sin_c) = parts
    return cos_n @ x @ cos_c - sin_n @ x @ sin_c


def token_mlp(x: Tensor, w: Weights) -> Tensor:
    """One network over the tokens of each channel. MLP-Mixer, equation 1."""
    return torch.stack([mlp(channel, w.at("mlp")) for channel in x.unbind(2)], 2)


# --- ViX: ViT, its hybrids, RoPE, FNet, MLP-Mixer, and LeViX as released --------------------------


def patches(images: Tensor, w: Weights, patch: int) -> Tensor:
    """Each patch, in raster order, through one linear map. Dosovitskiy et al. 2021, equation 1."""
    tokens = [
        torch.einsum("bcyx,ocyx->bo", square, w["weight"]) + w["bias"]
        for row in images.split(patch, 2)
        for square in row.split(patch, 3)
    ]
    return torch.stack(tokens, 1)


def three_convolutions(images: Tensor, w: Weights, patch: int) -> Tensor:
    """Jeevan and Sethi 2021, hybrids: 3x3, nothing between them, the first ones stride."""
    for i in range(3):
        stride = 2 if 2 ** (i + 1) <= patch else 1
        images = convolution(images, w.at(i), stride, padding=1, bias=True)
    return raster(images)


def vix(
    w: Weights,
    images: Tensor,
    *,
    patch: int,
    heads: int,
    depth: int,
    mixer: str,
    hybrid: bool = False,
    rope: bool = False,
    positions: bool = True,
    cls: bool = True,
    norm: bool = True,
    shared: bool = False,
    one_head: bool = False,
) -> Tensor:
    """Dosovitskiy et al. 2021, equations 1 to 4, with mixers; without CLS the mean is read out."""
    x = (three_convolutions if hybrid else patches)(images, w.at("embedding"), patch)
    grid = images.shape[2] // patch, images.shape[3] // patch, int(cls)
    if cls:
        x = torch.stack([torch.cat([w["cls"], sample]) for sample in x])
    if positions:
        at = [w["positions.prefix"]] if cls else []
        table = w["positions.table"]
        x = x + torch.cat([*at, *(row.T for row in table.unbind(1))])
    normed = layer_norm if norm else lambda x, w: x
    for block in range(depth):
        first, second = w.at("blocks", 2 * block), w.at("blocks", 2 * block + 1)
        y = normed(x, first.at(0))
        if mixer == "fourier":
            y = fourier(y)
        elif mixer == "tokenmlp":
            y = token_mlp(y, first.at(1))
        else:
            options = {"rope": rope, "shared": shared, "one_head": one_head}
            mix = chosen(MIXES[mixer], grid, grid)
            y = self_attention(y, first.at(1), grid, heads, *mix, **options)
        x = x + y
        x = x + mlp(normed(x, second.at(0)), second.at(1))
    x = normed(x, w.at("head", 0))
    return linear(x[:, 0] if cls else x.mean(1), w.at("head", 1))


# --- LeViX ---------------------------------------------------------------------------------------


def linear_norm(x: Tensor, w: Weights) -> Tensor:
    return batch_norm(linear(x, w.at(0), bias=False), w.at(1), -1)


def every(x: Tensor, grid: Grid, stride: int) -> Tensor:
    """Tokens of every `stride`-th row and column."""
    rows, columns, _ = grid
    kept = [
        x[:, y * columns + c] for y in range(0, rows, stride) for c in range(0, columns, stride)
    ]
    return torch.stack(kept, 1)


def offset_bias(table: Tensor, queries: Places, keys: Places) -> Bias:
    """The bias of the distance in rows and in columns. Graham et al. 2021, equation 1."""

    def bias(of_q: Callable, of_k: Callable) -> Tensor:
        q, k = of_q(torch.tensor(queries)).tolist(), of_k(torch.tensor(keys)).tolist()
        rows = [[round(abs(y - b)) for b, _ in k] for y, _ in q]
        columns = [[round(abs(x - a)) for _, a in k] for _, x in q]
        return table[torch.tensor(rows), torch.tensor(columns)]

    return bias


def levit_attention(x: Tensor, w: Weights, grid: Grid, heads: int, d: int, mix: Mix, stride: int):
    """Graham et al. 2021, section 4: hardswish before what goes out; values two or four times d."""
    queries = -(-grid[0] // stride), -(-grid[1] // stride), 0
    mix, kept = chosen(mix, queries, grid)
    q = linear_norm(every(x, grid, stride), w.at("q") if stride == 1 else w.at("q", 1))
    k, v = linear_norm(x, w.at("k")), linear_norm(x, w.at("v"))
    e, out = d * (2 if stride == 1 else 4), []
    of_keys = [(y, c) for y in range(grid[0]) for c in range(grid[1])]
    of_queries = [(y, c) for y, c in of_keys if y % stride == 0 and c % stride == 0]
    of_keys, of_queries = ([tuple(map(float, at)) for at in some] for some in (of_keys, of_queries))
    for head in range(heads):
        at = slice(head * d, head * d + d)
        bias = no_bias
        if mix in TAKE_A_BIAS:
            bias = offset_bias(w["bias.table"][head], of_queries, of_keys)
        qkv = q[..., at], k[..., at], v[..., head * e : head * e + e]
        out.append(mix(w.at("mechanism"), head, *qkv, (queries, grid), kept, bias))
    return linear_norm(hardswish(torch.cat(out, -1)), w.at("out", 1)), queries


def levit(
    w: Weights,
    images: Tensor,
    *,
    mixer: str,
    stem: Sequence[int],
    widths: Sequence[int],
    heads: Sequence[int],
    depths: Sequence[int],
    d: int,
) -> Tensor:
    x, mix = images, MIXES[mixer]
    for i, stride in enumerate(stem):
        x = convolution(x, w.at("stem", 3 * i), stride, padding=1)
        x = batch_norm(x, w.at("stem", 3 * i + 1), 1)
        x = x if i == len(stem) - 1 else hardswish(x)
    grid, x = (*x.shape[2:], 0), raster(x)
    block = iter(range(1000))

    def channels(x: Tensor) -> Tensor:
        part = w.at("blocks", next(block))
        return x + linear_norm(hardswish(linear_norm(x, part.at(0))), part.at(2))

    for stage, depth in enumerate(depths):
        if stage:
            part, count = w.at("blocks", next(block)), widths[stage - 1] // d
            x, grid = levit_attention(x, part, grid, count, d, mix, 2)
            x = channels(x)
        for _ in range(depth):
            part = w.at("blocks", next(block), 0)
            x = x + levit_attention(x, part, grid, heads[stage], d, mix, 1)[0]
            x = channels(x)
    return linear(batch_norm(x.mean(1), w.at("head", 0), 1), w.at("head", 1))


# --- CCX -----------------------------------------------------------------------------------------


def cct(
    w: Weights,
    images: Tensor,
    *,
    mixer: str,
    stem: Sequence[int],
    pool: int,
    heads: int,
    depth: int,
    drop_path: float,
) -> Tensor:
    """Hassani et al. 2021: tokenizer, then x = norm(x + attention(norm x)), x + mlp(x)."""
    x = images
    for i, stride in enumerate(stem):
        x = relu(convolution(x, w.at("tokenizer", 3 * i), stride, padding=1))
        x = F.max_pool2d(x, 3, pool, padding=1)
    grid = *x.shape[2:], 0
    x = raster(x) + raster(w["positions.table"][None])
    for i in range(depth):
        rate = drop_path * i / (depth - 1) if i else 0
        first, between, second = (w.at("blocks", 3 * i + j) for j in range(3))
        y = layer_norm(x, first.at(0))
        y = self_attention(y, first.at(1), grid, heads, *chosen(MIXES[mixer], grid, grid))
        x = layer_norm(x + dropped(y, rate, w.training), between)
        x = x + dropped(mlp(x, second.at(0)), rate, w.training)
    x = layer_norm(x, w.at("norm"))
    importance = linear(x, w.at("importance")).exp()
    pooled = sum(importance[:, i] * x[:, i] for i in range(x.shape[1])) / importance.sum(1)
    return linear(pooled, w.at("head"))


# --- CvX -----------------------------------------------------------------------------------------


def convolutional_attention(
    x: Tensor, w: Weights, grid: Grid, heads: int, mix: Mix, kept: int, keys: Grid, stride: int
) -> Tensor:
    """Wu et al. 2021, equation 2; CLS goes around convolutions; scores over the root of dim."""
    (rows, columns, before), dim = grid, x.shape[-1]

    def projected(name: str, stride: int) -> Tensor:
        part = w.at(name)
        image = image_of(x[:, before:], rows, columns)
        image = convolution(image, part.at("depthwise", 0), stride, padding=1, groups=dim)
        image = batch_norm(image, part.at("depthwise", 1), 1)
        return linear(torch.cat([x[:, :before], raster(image)], 1), part.at("linear"))

    q, k, v = projected("q", 1), projected("k", stride), projected("v", stride)
    d, out = dim // heads, []
    for head in range(heads):
        at = slice(head * d, head * d + d)
        qkv = q[..., at] / math.sqrt(dim) * math.sqrt(d), k[..., at], v[..., at]
        out.append(mix(w.at("mechanism"), head, *qkv, (grid, keys), kept))
    return linear(torch.cat(out, -1), w.at("out"))


def cvt(
    w: Weights,
    images: Tensor,
    *,
    mixer: str,
    strides: Sequence[int],
    kernels: Sequence[int],
    heads: Sequence[int],
    depths: Sequence[int],
    kv_stride: int = 2,
    released: bool = False,
) -> Tensor:
    """Wu et al. 2021, section 3; as released without convolutions in attention, CLS, last norm."""
    last, x = len(strides) - 1, images
    for i, (stride, kernel) in enumerate(zip(strides, kernels, strict=True)):
        padding = {3: 1, 7: 2}[kernel]  # CvT's own
        x = convolution(x, w.at("embeddings", i), stride, padding, bias=True)
        rows, columns = x.shape[2:]
        x = layer_norm(raster(x), w.at("norms", i), released)
        before = int(i == last and not released)
        if before:
            x = torch.cat([w["cls"].expand(len(x), 1, -1), x], 1)
        grid, attention = (rows, columns, before), self_attention
        mix = chosen(MIXES[mixer], grid, grid)
        if not released:
            keys = -(-rows // kv_stride), -(-columns // kv_stride), before
            mix = *chosen(MIXES[mixer], grid, keys), keys, kv_stride
            attention = convolutional_attention
        for j in range(depths[i]):
            first, second = (w.at("stages", i, 2 * j + half) for half in range(2))
            y = layer_norm(x, first.at(0), released)
            x = x + attention(y, first.at(1), grid, heads[i], *mix)
            x = x + mlp(layer_norm(x, second.at(0), released), second.at(1))
        if i < last:
            x = image_of(x, rows, columns)
    read = x.mean(1) if released else layer_norm(x, w.at("norm"))[:, 0]
    return linear(read, w.at("head"))


# --- baselines -----------------------------------------------------------------------------------


def resnet(w: Weights, images: Tensor, *, pairs: int) -> Tensor:
    """He et al. 2016, section 4.2: shortcuts of option A, new channels zero after the old ones."""
    x = relu(batch_norm(convolution(images, w.at("layers", 0), padding=1), w.at("layers", 1), 1))
    for i in range(3 * pairs):
        part = w.at("layers", 3 + i, "layers")
        stride = 2 if i in (pairs, 2 * pairs) else 1
        y = relu(batch_norm(convolution(x, part.at(0), stride, padding=1), part.at(1), 1))
        y = batch_norm(convolution(y, part.at(3), padding=1), part.at(4), 1)
        x = x[:, :, ::stride, ::stride]
        new = y.shape[1] - x.shape[1]
        x = relu(torch.cat([x, torch.zeros_like(y[:, :new])], 1) + y)
    return linear(x.mean((2, 3)), w.at("layers", 5 + 3 * pairs))


def convmixer(w: Weights, images: Tensor, *, patch: int, depth: int, kernel: int) -> Tensor:
    """Trockman and Kolter 2022, equations 1 to 3: activation before norm, then the shortcut."""

    def stage(x: Tensor, w: Weights, **options) -> Tensor:
        return batch_norm(gelu(convolution(x, w.at(0), bias=True, **options)), w.at(2), 1)

    x = stage(images, w.at("layers"), stride=patch)
    for i in range(depth):
        around = {"padding": kernel // 2, "groups": x.shape[1]}
        x = x + stage(x, w.at("layers", 3 + 2 * i), **around)
        x = stage(x, w.at("layers", 4 + 2 * i))
    return linear(x.mean((2, 3)), w.at("layers", 5 + 2 * depth))
