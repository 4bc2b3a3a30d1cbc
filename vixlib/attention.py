"""Attention mechanisms: queries, keys and values in, mixed values out, on one contract.

Letters: b batch, h heads, n queries, m keys, d width of a query or key, e width of a value,
r what the tokens are reduced to (Linformer's rank, Nyström's landmarks, Performer's features).

A mechanism is built with (heads, dim_head, queries, keys), the last two grids of tokens, and its
own keyword options. It is called with q (b h n d), k (b h m d), v (b h m e) and returns (b h n e);
k and v may come with a single head. It never looks at other samples of the batch. Where it takes
one, a host may add a bias to the scores: bias(of_q, of_k) gives (h n m) for the places of queries
and keys after the functions of_q and of_k, so that a mechanism can ask for that of its landmarks.
One that begins by mixing tokens does so in `reduce`; a host may do that itself, before it projects
the few that are left to keys and values, and says `reduced=True`.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vixlib.errors import BadInput, checked, held, whole

COMPRESSION = 16  # tokens a landmark: the paper keeps 64 of 1,024
CACHED = 2**18  # features at a time on a CPU, 1 MB in float32: they stay in a core's own cache
FEWEST_TOKENS = 64  # below, a sixteenth would be under four: softmax is kept


class Grid(NamedTuple):
    """Where tokens sit: rows x columns of an image, after `extra` tokens without a place (CLS)."""

    rows: int
    columns: int
    extra: int = 0

    @property
    def tokens(self) -> int:
        return self.rows * self.columns + self.extra


Bias = Callable[..., Tensor]


class Mechanism(nn.Module):
    """What every mechanism shares. A new one needs only `mix(q, k, v)`.

    It declares what it wants of the projections (`qkv_bias`; `kv_heads`, None for as many as query
    heads; `shared`, values are the keys), the number of tokens that it keeps (`reduced`, None where
    it keeps all) and whether `reduce` leaves no more (`reduces`), whether its `mix` takes a bias
    (`takes_bias`), and whether its sums need float32 under half precision (`precise`).
    """

    qkv_bias = False
    kv_heads: int | None = None
    shared = False
    reduced: int | None = None
    reduces = False
    takes_bias = False
    precise = False

    def __init_subclass__(cls):
        if "__init__" in vars(cls):
            cls.__init__ = checked(cls.__init__)  # options keep to their annotations

    @checked
    def __init__(self, heads: int, dim_head: int, queries: Grid, keys: Grid):
        super().__init__()
        for grid in (queries, keys):
            whole("rows", grid.rows), whole("columns", grid.columns), whole("extra", grid.extra, 0)
        self.heads, self.dim_head = heads, dim_head
        self.queries, self.keys = queries, keys

    def reduce(self, x: Tensor) -> Tensor:
        """Tokens of keys or values (... m c), mixed to `reduced` of them, each channel alike."""
        return x

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(b h n d), (b h m d), (b h m e) -> (b h n e), k and v as `reduce` leaves them."""
        raise NotImplementedError

    def follow(self, twin: "Mechanism") -> None:
        """Take the grids of another; what is tied to places is stretched over them."""
        self.queries, self.keys = twin.queries, twin.keys

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, reduced: bool = False, **bias: Bias
    ) -> Tensor:
        h, n, d = self.heads, self.queries.tokens, self.dim_head
        m = self.reduced if reduced else self.keys.tokens
        legal = [(q.shape[0], kv, m, d) for kv in (1, h)]
        if q.shape[1:] != (h, n, d) or k.shape not in legal or v.shape[:-1] != k.shape[:-1]:
            raise BadInput(
                f"{type(self).__name__}: expected q (batch, heads, queries, width) = (any, {h}, "
                f"{n}, {d}) and {m} keys and values of one head or {h}; got "
                f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
            )
        shared, half = v is k, self.precise and torch.finfo(q.dtype).bits < 32
        with uncast(q) if self.precise else nullcontext():
            x = [t.float() if half else t for t in ((q, k) if shared else (q, k, v))]
            if not reduced:
                x[1:] = map(self.reduce, x[1:])
            return self.mix(x[0], x[1], x[-1], **bias).to(q.dtype)

    def extra_repr(self) -> str:
        return f"{self.queries.tokens} queries, {self.keys.tokens} keys, reduced to {self.reduced}"


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v by torch's fused kernel; one key/value head serves all."""
    k, v = (t.expand(-1, q.shape[1], -1, -1) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, None if bias is None else bias.to(q.dtype))


class Softmax(Mechanism):
    """softmax(q k^T / sqrt(d)) v. Vaswani et al. 2017, equation 1. Time grows as n m."""

    takes_bias = True

    def mix(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias | None = None) -> Tensor:
        return sdpa(q, k, v, bias and bias())


class Linformer(Mechanism):
    """softmax(q (E k)^T / sqrt(d)) E v: tokens projected to r learned mixtures.

    Wang et al. 2020, equation 7, with one E for keys and values of a layer. Time grows as
    (n + m) r. E is stored as an image, so that it has a place for each token. Mixtures are kept in
    float32, since rounded ones of large keys move scores by whole units.
    """

    reduces = True
    precise = True

    def __init__(
        self,
        heads: int,
        dim_head: int,
        queries: Grid,
        keys: Grid,
        *,
        rank: int | None = None,
        kv_heads: int | None = None,
        shared: bool = False,
    ):
        super().__init__(heads, dim_head, queries, keys)
        self.reduced = r = sixteenth(queries, keys) if rank is None else rank
        if kv_heads not in (None, 1, heads):
            raise BadInput(f"kv_heads: expected 1 or {heads}, got {kv_heads}")
        self.kv_heads, self.shared = kv_heads, shared
        # uniform in +-1/sqrt(r), as in the released code; the Linformer paper draws N(0, 1/r)
        self.projection = nn.Parameter(torch.empty(r, keys.rows, keys.columns))
        self.projection_extra = nn.Parameter(torch.empty(r, keys.extra))
        for part in (self.projection, self.projection_extra):
            nn.init.uniform_(part, -(r**-0.5), r**-0.5)

    def follow(self, twin: Mechanism) -> None:
        (rows, columns, _), (m, n, _) = twin.keys, self.keys
        # the same mixtures over more or fewer places: their sums stay
        projection = resample(self.projection.detach(), rows, columns) * (m * n / (rows * columns))
        self.projection = nn.Parameter(projection)
        super().follow(twin)

    def reduce(self, x: Tensor) -> Tensor:
        e = torch.cat([self.projection_extra, self.projection.flatten(1)], 1)
        return e.to(x.dtype) @ x

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sdpa(q, k, v)


class Performer(Mechanism):
    """phi(q) (phi(k)^T v) / phi(q) sum(phi(k)): FAVOR+, softmax by positive random features.

    Choromanski et al. 2021, lemma 1: phi(x)_i = exp(w_i x - |x|^2 / 2) for x scaled by d^-1/4 and
    w_i orthogonal Gaussian directions, drawn once and kept in the state dict. Time (n + m) r.
    Not in the paper: instead of a small constant against underflow, the largest exponent of each
    feature among the keys moves from phi(k) to phi(q). Their product stays the same, a query's
    own scale cancels in the ratio, and no sum over keys falls below 1.
    `batch_wide` is as released: one maximum over the keys of all samples, and the constant.
    """

    qkv_bias = True
    precise = True

    def __init__(
        self,
        heads: int,
        dim_head: int,
        queries: Grid,
        keys: Grid,
        *,
        features: int | None = None,
        batch_wide: bool = False,
    ):
        super().__init__(heads, dim_head, queries, keys)
        self.batch_wide = batch_wide
        count = max(1, int(dim_head * math.log(dim_head))) if features is None else features
        self.register_buffer("directions", orthogonal_gaussian(count, dim_head))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        w = self.directions.to(q.dtype).T * self.dim_head**-0.25
        if self.batch_wide:
            phi_q = (exponents(q, w) - (q @ w).amax(-1, keepdim=True)).exp() + 1e-4
            phi_k = (exponents(k, w) - (k @ w).amax()).exp() + 1e-4
            out = phi_q @ (phi_k.mT @ beside_ones(v))
            return out[..., :-1] / out[..., -1:]
        k, v = (t.expand(-1, self.heads, -1, -1) for t in (k, v))
        sequences = [t.flatten(0, 1) for t in (q, k, v)]
        if q.is_cpu and not torch.compiler.is_compiling():  # some at a time, by what a cache holds
            some = max(1, CACHED // (w.shape[1] * max(q.shape[-2], k.shape[-2])))
            parts = zip(*(t.split(some) for t in sequences), strict=True)
            out = torch.cat([Features.apply(*part, w) for part in parts])
        else:
            out = Features.apply(*sequences, w)
        return out.unflatten(0, q.shape[:2])


class Features(torch.autograd.Function):
    """Performer's mix of sequences q (g n d), k (g m d), v (g m e) by directions w (d r).

    A column of ones beside v gives the sums over keys. The output is o = y[:-1] / y[-1] of
    y = phi(q) (phi(k)^T [v 1]). Backward, its gradient g becomes [g, -g o] / y[-1] for y, and a
    feature's gradient times the feature is that of its exponent. Features, by far the largest
    tensors, are computed again, not kept: half the memory, and on a CPU no slower.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, w: Tensor) -> Tensor:
        exponent = exponents(k, w)
        top = exponent.amax(-2, keepdim=True)
        sums = exponent.sub_(top).exp_().mT @ beside_ones(v)
        y = features_of_queries(q, w, top) @ sums
        out, total = y[..., :-1] / y[..., -1:], y[..., -1:].clone()
        ctx.save_for_backward(q, k, v, w, top, sums, total, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, w, top, sums, total, out = ctx.saved_tensors
        with uncast(q):
            of_total = -(gradient * out).sum(-1, keepdim=True)
            of_y = torch.cat([gradient, of_total], -1) / total
            phi = features_of_queries(q, w, top)
            of_sums = phi.mT @ of_y
            of_q = (of_y @ sums.mT).mul_(phi) @ w.mT
            phi = exponents(k, w).sub_(top).exp_()
            of_v = phi @ of_sums[..., :-1]
            of_exponent = (beside_ones(v) @ of_sums.mT).mul_(phi)
            of_k = of_exponent @ w.mT - k * of_exponent.sum(-1, keepdim=True) * k.shape[-1] ** -0.5
        return of_q, of_k, of_v, None


def exponents(x: Tensor, w: Tensor) -> Tensor:
    """Of Performer's features: w x - |x|^2 / 2, x scaled by d^-1/4, w already: (... n r)."""
    return (x @ w).sub_(x.square().sum(-1, keepdim=True) * (0.5 * x.shape[-1] ** -0.5))


def features_of_queries(q: Tensor, w: Tensor, top: Tensor) -> Tensor:
    """exp(w q + top), each query at its own scale: the largest is 1."""
    exponent = (q @ w).add_(top)
    return exponent.sub_(exponent.amax(-1, keepdim=True)).exp_()


def beside_ones(v: Tensor) -> Tensor:
    """[v 1]."""
    return F.pad(v, (0, 1), value=1.0)


def uncast(x: Tensor) -> AbstractContextManager:
    """Autocast switched off where x is; for the meta device there is none."""
    # not torch.amp.is_autocast_available: torch up to 2.11 cannot compile it
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


class Nystrom(Mechanism):
    """softmax(q k~^T) pinv(softmax(q~ k~^T)) softmax(q~ k^T) v + convolution of v.

    Xiong et al. 2021, equations 13 and 14; q~ and k~ are landmarks, means of runs of neighbouring
    tokens; the pseudo-inverse is iterated. Multiplied from the right, the n x m matrix never
    exists: time grows as (n + m) r + r^3. With as many landmarks as tokens and 24 iterations it is
    softmax; 6 miss by percents. The convolution over 33 neighbouring tokens needs queries and keys
    on one grid; elsewhere, or with `kernel=None`, there is none. A bias is that of the landmarks'
    mean places: exact where each token is a landmark. `batch_wide` is as released: the inverse
    starts from maxima over all samples.
    """

    takes_bias = True
    precise = True

    def __init__(
        self,
        heads: int,
        dim_head: int,
        queries: Grid,
        keys: Grid,
        *,
        landmarks: int | None = None,
        iterations: int = 6,
        kernel: int | None = 33,
        batch_wide: bool = False,
    ):
        super().__init__(heads, dim_head, queries, keys)
        self.reduced = sixteenth(queries, keys) if landmarks is None else landmarks
        if self.reduced > min(queries.tokens, keys.tokens):
            raise BadInput(f"landmarks={landmarks} of {min(queries.tokens, keys.tokens)} tokens")
        self.iterations, self.batch_wide, self.residual = iterations, batch_wide, None
        if kernel is not None and queries == keys:
            self.residual = TokenConvolution(heads, kernel)

    def follow(self, twin: Mechanism) -> None:
        super().follow(twin)
        self.reduced = min(self.reduced, self.queries.tokens, self.keys.tokens)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias | None = None) -> Tensor:
        mean = partial(segment_means, segments=self.reduced)
        q_mean, k_mean = mean(q), mean(k)
        scores = q_mean @ k_mean.mT * self.dim_head**-0.5
        if bias is not None:
            scores = scores + bias(of_q=mean, of_k=mean)
        out = sdpa(q_mean, k, v, bias and bias(of_q=mean))
        out = pseudo_inverse(scores.softmax(-1), out, self.iterations, self.batch_wide)
        out = sdpa(q, k_mean, out, bias and bias(of_k=mean))
        return out if self.residual is None else out + self.residual(v)


class TokenConvolution(nn.Module):
    """Each value mixed with its neighbours in raster order, one kernel a head. (b h m e)."""

    def __init__(self, heads: int, kernel: int):
        super().__init__()
        if whole("kernel", kernel) % 2 == 0:
            raise BadInput(f"kernel: expected an odd number, got {kernel}")
        self.weight = nn.Parameter(torch.empty(heads, 1, kernel, 1))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as nn.Conv2d

    def forward(self, v: Tensor) -> Tensor:
        h, e = v.shape[1], v.shape[-1]
        # With the channels last and one group a channel, torch takes its fast path. Its own padding
        # would get the weight's gradient wrong by 4 to 11 % where m % 15 == 1 and the batch is one
        # or values are contiguous (oneDNN, torch 2.13).
        weight = self.weight.to(v.dtype).repeat_interleave(e, 0)
        side = weight.shape[2] // 2
        x = F.pad(rearrange(v, "b h m e -> b (h e) m 1"), (0, 0, side, side))
        return rearrange(F.conv2d(x, weight, groups=h * e), "b (h e) m 1 -> b h m e", h=h)


def resample(table: Tensor, rows: int, columns: int) -> Tensor:
    """A table over places, (c r s), as an image of `rows` x `columns`; bicubic."""
    if table.shape[1:] == (rows, columns):
        return table
    size = {"size": (rows, columns), "mode": "bicubic", "antialias": True}
    wide = table if table.dtype == torch.float64 else table.float()
    return F.interpolate(wide[None], **size)[0].to(table.dtype)


def sixteenth(queries: Grid, keys: Grid) -> int:
    """The rank or landmarks that every profile uses: one for each 16 tokens of the larger grid."""
    return max(1, max(queries.tokens, keys.tokens) // COMPRESSION)


def segment_means(x: Tensor, segments: int) -> Tensor:
    """Means of runs of neighbouring tokens, the first n % segments runs one token longer."""
    size, longer = divmod(x.shape[-2], segments)
    first, rest = x.split([longer * (size + 1), (segments - longer) * size], -2)
    parts = first.unflatten(-2, (longer, size + 1)), rest.unflatten(-2, (segments - longer, size))
    return torch.cat([part.mean(-2) for part in parts], -2)


def pseudo_inverse(a: Tensor, w: Tensor, iterations: int, batch_wide: bool = False) -> Tensor:
    """Moore-Penrose inverse of a (... r r), iterated, times w (... r e). Xiong et al. 2021, eq. 14.

    z <- z p(a z) with p(x) = (13 - 15 x + 7 x^2 - x^3) / 4, from a^T over a scale of each matrix
    alone, so that no sample sees another; as released, of the whole batch (`batch_wide`). Not in
    the paper: x = a z becomes a z p(a z) = x p(x), so no z is formed: x and w are multiplied by the
    same p(x), two products a step in place of four. Reflecting a and w leaves a^T p(x) w as it is,
    but the rows of a, alike for a softmax, become one large and small ones, none lost in rounding.
    """
    over = () if batch_wide else -1
    scale = (a.sum(-1).amax(over) * a.sum(-2).amax(over))[..., None, None]
    a, w = reflected(a), reflected(w)
    x = a @ a.mT / scale
    for left in reversed(range(iterations)):
        y, xw = x @ x, x @ w
        w = 0.25 * (13 * w - 15 * xw + y @ (7 * w - xw))
        if left:
            x = 0.25 * (13 * x - 15 * y + y @ (7 * x - y))
    return a.mT @ w / scale


def reflected(x: Tensor) -> Tensor:
    """The rows of (... r e) reflected (Householder), so that the first is -sqrt(r) their mean."""
    r = x.shape[-2]
    normal = torch.full((r, 1), r**-0.5, dtype=x.dtype, device=x.device)
    normal[0] += 1
    return x - normal @ (normal.mT @ x / (1 + r**-0.5))


def orthogonal_gaussian(rows: int, columns: int) -> Tensor:
    """Gaussian vectors, orthogonal within each block of `columns` rows."""
    blocks = [
        nn.init.orthogonal_(torch.empty(columns, columns)) for _ in range(-(-rows // columns))
    ]
    return torch.cat(blocks)[:rows] * torch.randn(rows, columns).norm(dim=1, keepdim=True)


def construct(mechanism: Callable[..., Mechanism], *arguments) -> Mechanism:
    """mechanism(*arguments); BadType where that is no mechanism."""
    held("mechanism", mechanism, Callable)
    other = isinstance(mechanism, type) and not issubclass(mechanism, Mechanism)
    built = mechanism if other else mechanism(*arguments)
    held("mechanism", built, Mechanism)
    return built


def attend(
    mechanism: Callable[..., Mechanism], heads: int, dim_head: int, queries: Grid, keys: Grid
) -> Mechanism:
    """The mechanism built for these tokens; softmax where they are fewer than 64.

    Raises BadInput where its rank or landmarks would not be fewer than the tokens.
    """
    if max(queries.tokens, keys.tokens) < FEWEST_TOKENS:
        return Softmax(heads, dim_head, queries, keys)
    built = construct(mechanism, heads, dim_head, queries, keys)
    fewest = min(queries.tokens, keys.tokens)
    if built.reduced is not None and built.reduced >= fewest:
        raise BadInput(
            f"{type(built).__name__} reduced to {built.reduced} with {queries.tokens} queries and "
            f"{keys.tokens} keys: at most {fewest - 1}"
        )
    return built


@checked
@torch.no_grad()
def attention_map(
    mechanism: Mechanism, q: Tensor, k: Tensor, *, reduced: bool = False, **bias: Bias
) -> Tensor:
    """The matrix (b h n m) that a mechanism multiplies values with, exact or implied.

    The identity is fed as v. Rows of Linformer and Nyström may be negative and need not sum to 1.
    """
    v = torch.eye(mechanism.keys.tokens, dtype=q.dtype, device=q.device)
    v = mechanism.reduce(v) if reduced else v
    return mechanism(q, k, v.expand(*k.shape[:2], -1, -1), reduced=reduced, **bias)
