"""The contract of attention, and each mechanism as its paper writes it: the textbook form.

Letters: b batch, h heads, n queries, m keys, d width of a query or key, e width of a value,
r what is kept of the tokens (Linformer's rank, Nyström's landmarks) or Performer's features.

A mechanism is built with (heads, dim_head, queries, keys), the last two grids of tokens, and its
own keyword options. It is called with q (b h n d), k (b h m d), v (b h m e) and returns (b h n e);
k and v may come with a single head. It never looks at other samples of the batch. Where it takes
one, a host may add a bias to the scores: bias(of_q, of_k) gives (h n m) for the places of queries
and keys after the functions of_q and of_k, so that a mechanism can ask for that of its landmarks.

Models use the subclasses in fused.py, which compute the same in less time and memory.
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

from vixlib.errors import BadInput, checked, held, whole

COMPRESSION = 16  # tokens a landmark: the paper keeps 64 of 1,024


class Grid(NamedTuple):
    """Where tokens sit: rows x columns of an image, after `prefix_tokens` without a place (CLS)."""

    rows: int
    columns: int
    prefix_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.rows * self.columns + self.prefix_tokens


def _grid(cls: type, rows: int, columns: int, prefix_tokens: int = 0) -> Grid:
    """A named tuple has no checks of its own."""
    numbers = {"rows": rows, "columns": columns, "prefix_tokens": prefix_tokens}
    return cls._make(whole(name, value, least=0) for name, value in numbers.items())


Grid.__new__ = _grid
Bias = Callable[..., Tensor]


class Mechanism(nn.Module):
    """What every mechanism shares. A new one needs only `mix(q, k, v)`.

    It declares what it wants of the projections (`qkv_bias`; `kv_heads`, None for as many as query
    heads; `shared`, values are the keys), how many tokens it keeps (`kept`, None for all), whether
    its `mix` takes a bias (`takes_bias`), and whether its sums need float32 under half precision
    (`precise`). One that begins by mixing keys and values, each channel alike, says how in
    `compress`: (... m c) -> (... kept c). A host may do that itself, before it projects them.
    """

    qkv_bias = False
    kv_heads: int | None = None
    shared = False
    kept: int | None = None
    takes_bias = False
    precise = False
    compress: Callable[[Tensor], Tensor] | None = None

    def __init_subclass__(cls):
        if "__init__" in vars(cls):
            cls.__init__ = checked(cls.__init__)  # options keep to their annotations

    @checked
    def __init__(self, heads: int, dim_head: int, queries: Grid, keys: Grid):
        super().__init__()
        for name, value in [*queries._asdict().items(), *keys._asdict().items()]:
            whole(name, value, least=0 if name == "prefix_tokens" else 1)
        self.heads, self.dim_head = heads, dim_head
        self.queries, self.keys = queries, keys

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(b h n d), (b h m d), (b h m e) -> (b h n e), k and v as `compress` leaves them."""
        raise NotImplementedError

    def follow(self, twin: "Mechanism") -> None:
        """Take the grids of another; what is tied to places is stretched over them."""
        self.queries, self.keys = twin.queries, twin.keys

    def forward(self, q: Tensor, k: Tensor, v: Tensor, **bias: Bias) -> Tensor:
        h, n, m, d = self.heads, self.queries.tokens, self.keys.tokens, self.dim_head
        counts = [m] if self.compress is None else [m, self.kept]
        legal = [(q.shape[0], kv, count, d) for kv in (1, h) for count in counts]
        if q.shape[1:] != (h, n, d) or k.shape not in legal or v.shape[:-1] != k.shape[:-1]:
            wanted = f"q (b h n d) = (any, {h}, {n}, {d}), {m} keys and values of one head or {h}"
            got = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
            raise BadInput(f"{type(self).__name__}: expected {wanted}; got {got}")
        with uncast(q) if self.precise else nullcontext():
            x = [widened(t) if self.precise else t for t in ((q, k) if v is k else (q, k, v))]
            if self.compress is not None and k.shape[2] == m:
                x[1:] = map(self.compress, x[1:])
            out = self.mix(x[0], x[1], x[-1], **bias).to(q.dtype)
        got, wanted = tuple(out.shape), (*q.shape[:3], v.shape[3])
        if got != wanted:
            raise BadInput(f"{type(self).__name__}: expected to mix to {wanted}, got {got}")
        return out

    def extra_repr(self) -> str:
        return f"{self.queries.tokens} queries, {self.keys.tokens} keys, kept {self.kept}"


Maker = Callable[..., Mechanism]  # of (heads, dim_head, queries, keys): a class, or its partial


def uncast(x: Tensor) -> AbstractContextManager:
    """Autocast switched off where x is; for the meta device there is none."""
    # not torch.amp.is_autocast_available: torch up to 2.11 cannot compile it
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def widened(x: Tensor) -> Tensor:
    """x in float32 at least: half precision is too coarse for sums over tokens."""
    return x.float() if torch.finfo(x.dtype).bits < 32 else x


def weights(q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias): (b h n d), (b h m d) -> (b h n m)."""
    scores = q @ k.mT * q.shape[-1] ** -0.5
    return (scores if bias is None else scores + bias.to(q.dtype)).softmax(-1)


class Softmax(Mechanism):
    """softmax(q k^T / sqrt(d)) v. Vaswani et al. 2017, equation 1. Time grows as n m."""

    takes_bias = True

    def mix(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias | None = None) -> Tensor:
        return weights(q, k, bias and bias()) @ v


class Linformer(Mechanism):
    """softmax(q (E k)^T / sqrt(d)) E v: tokens projected to r learned mixtures.

    Wang et al. 2020, equation 7, with one E for keys and values of a layer. Time grows as
    (n + m) r. E is stored as an image, so that it has a place for each token. Mixtures are kept in
    float32, since rounded ones of large keys move scores by whole units.
    """

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
        self.kept = r = sixteenth(queries, keys) if rank is None else rank
        if kv_heads not in (None, 1, heads):
            raise BadInput(f"kv_heads: expected 1 or {heads}, got {kv_heads}")
        self.kv_heads, self.shared = kv_heads, shared
        # uniform in +-1/sqrt(r), as in the released code; the Linformer paper draws N(0, 1/r)
        self.projection = nn.Parameter(torch.empty(r, keys.rows, keys.columns))
        self.projection_prefix = nn.Parameter(torch.empty(r, keys.prefix_tokens))
        for part in (self.projection, self.projection_prefix):
            nn.init.uniform_(part, -(r**-0.5), r**-0.5)

    def follow(self, twin: Mechanism) -> None:
        (rows, columns, _), (m, n, _) = twin.keys, self.keys
        # the same mixtures over more or fewer places: their sums stay
        projection = resample(self.projection.data, rows, columns) * (m * n / (rows * columns))
        self.projection.data = projection
        super().follow(twin)

    def compress(self, x: Tensor) -> Tensor:
        """E x."""
        e = torch.cat([self.projection_prefix, self.projection.flatten(1)], 1)
        return e.to(x.dtype) @ x

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return weights(q, k) @ v


class Performer(Mechanism):
    """phi(q) (phi(k)^T v) / phi(q) sum(phi(k)): FAVOR+, softmax by positive random features.

    Choromanski et al. 2021, lemma 1; the features' directions are orthogonal Gaussian vectors,
    drawn once and kept in the state dict. Time grows as (n + m) r. `batch_wide` is as released:
    one maximum over the keys of all samples, and a small constant against underflow.
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

    def phi(self, x: Tensor, over: int | tuple[int, ...]) -> Tensor:
        """exp(w x - |x|^2 / 2) for x scaled by d^-1/4 and each direction w: (... d) -> (... r).

        As released, w x minus its maximum `over` some axes, and a constant.
        """
        x = x * self.dim_head**-0.25
        wx, norm = x @ self.directions.to(x.dtype).T, x.square().sum(-1, keepdim=True) / 2
        if self.batch_wide:
            return (wx - norm - wx.amax(over, keepdim=True)).exp() + 1e-4
        return (wx - norm).exp()

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return by_features(self.phi(q, over=-1), self.phi(k, over=()), v)


class LinearAttention(Mechanism):
    """phi(q) (phi(k)^T v) / phi(q) sum(phi(k)) with phi(x) = elu(x) + 1: another kernel.

    Katharopoulos et al. 2020, equations 5 and 7; no features are drawn and none approximates
    softmax. Time grows as (n + m) d.
    """

    precise = True

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return by_features(F.elu(q) + 1, F.elu(k) + 1, v)


def by_features(phi_q: Tensor, phi_k: Tensor, v: Tensor) -> Tensor:
    """Attention whose weights are products of features: (b h n r), (b h m r), (b h m e)."""
    return phi_q @ (phi_k.mT @ v) / (phi_q @ phi_k.sum(-2).unsqueeze(-1))


class Nystrom(Mechanism):
    """softmax(q k~^T) pinv(softmax(q~ k~^T)) softmax(q~ k^T) v + convolution of v.

    Xiong et al. 2021, equations 13 and 14; q~ and k~ are landmarks, means of runs of neighbouring
    tokens; the pseudo-inverse is iterated. Multiplied from the right, the n x m matrix never
    exists: time grows as (n + m) r + r^3. With as many landmarks as tokens and 24 iterations it is
    softmax; 6 miss by percents. The convolution over 33 neighbouring tokens needs queries and keys
    on one grid; elsewhere, or with `kernel=None`, there is none. A bias is that of the landmarks'
    mean places: exact where each token is a landmark. As released are `batch_wide`, the inverse
    starting from maxima over all samples, and `padded`, zeros in front, up to a multiple of the
    landmarks, that take part like tokens.
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
        padded: bool = False,
    ):
        super().__init__(heads, dim_head, queries, keys)
        self.kept = sixteenth(queries, keys) if landmarks is None else landmarks
        if self.kept > min(queries.tokens, keys.tokens):
            raise BadInput(f"landmarks={landmarks} of {min(queries.tokens, keys.tokens)} tokens")
        self.iterations, self.batch_wide, self.padded = iterations, batch_wide, padded
        convolved = kernel is not None and queries == keys
        self.residual = TokenConvolution(heads, kernel) if convolved else None

    def follow(self, twin: Mechanism) -> None:
        super().follow(twin)
        self.kept = min(self.kept, self.queries.tokens, self.keys.tokens)

    def approximate(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias | None) -> Tensor:
        """Equation 13: the product of three matrices and v."""
        mean = partial(segment_means, segments=self.kept)
        to_landmarks = weights(q, mean(k), bias and bias(of_k=mean))
        between = weights(mean(q), mean(k), bias and bias(of_q=mean, of_k=mean))
        of_landmarks = weights(mean(q), k, bias and bias(of_q=mean))
        inverse = pseudo_inverse(between, self.iterations, self.batch_wide)
        return to_landmarks @ (inverse @ (of_landmarks @ v))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias | None = None) -> Tensor:
        n = q.shape[2]
        if self.padded:
            q, k, v = (F.pad(t, (0, 0, -t.shape[2] % self.kept, 0)) for t in (q, k, v))
        out = self.approximate(q, k, v, bias)
        return (out if self.residual is None else out + self.residual(v))[:, :, -n:]


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


def pseudo_inverse(a: Tensor, iterations: int, batch_wide: bool = False) -> Tensor:
    """Moore-Penrose inverse of a (... r r), iterated from a^T over a scale. Xiong et al., eq. 14.

    The scale is of each matrix alone, so that no sample sees another; as released, of the batch.
    """
    z, identity = a.mT / inverse_scale(a, batch_wide), torch.eye(a.shape[-1]).to(a)
    for _ in range(iterations):
        az = a @ z
        z = 0.25 * z @ (13 * identity - az @ (15 * identity - az @ (7 * identity - az)))
    return z


def inverse_scale(a: Tensor, batch_wide: bool) -> Tensor:
    """The largest row sum times the largest column sum: of each matrix, or of all."""
    over = () if batch_wide else -1
    return (a.sum(-1).amax(over) * a.sum(-2).amax(over))[..., None, None]


def resample(table: Tensor, rows: int, columns: int) -> Tensor:
    """A table over places, (c r s), as an image of `rows` x `columns`; bicubic."""
    if table.shape[1:] == (rows, columns):
        return table
    how = {"mode": "bicubic", "antialias": True}
    return F.interpolate(widened(table)[None], (rows, columns), **how)[0].to(table.dtype)


def sixteenth(queries: Grid, keys: Grid) -> int:
    """The rank or landmarks that every profile uses: one for each 16 tokens of the larger grid."""
    return max(1, max(queries.tokens, keys.tokens) // COMPRESSION)


def segment_means(x: Tensor, segments: int) -> Tensor:
    """Means of runs of neighbouring tokens, the first n % segments runs one token longer."""
    size, longer = divmod(x.shape[-2], segments)
    first, rest = x.split([longer * (size + 1), (segments - longer) * size], -2)
    parts = first.unflatten(-2, (longer, size + 1)), rest.unflatten(-2, (segments - longer, size))
    return torch.cat([part.mean(-2) for part in parts], -2)


def orthogonal_gaussian(rows: int, columns: int) -> Tensor:
    """Gaussian vectors, orthogonal within each block of `columns` rows."""
    blocks = [nn.init.orthogonal_(torch.empty(columns, columns)) for _ in range(0, rows, columns)]
    return torch.cat(blocks)[:rows] * torch.randn(rows, columns).norm(dim=1, keepdim=True)


def construct(mechanism: Maker, *arguments) -> Mechanism:
    """mechanism(*arguments); BadType where that is no mechanism."""
    held("mechanism", mechanism, Callable)
    other = isinstance(mechanism, type) and not issubclass(mechanism, Mechanism)
    built = mechanism if other else mechanism(*arguments)
    held("mechanism", built, Mechanism)
    return built
