"""The same mechanisms and layers in less time and memory: what every model uses unless told.

Each is a subclass of its textbook form, with the same parameters; tests hold values and gradients
of the two equal. What differs:
Softmax and Linformer never form their matrix (torch's fused kernel); Performer's features are
computed again in the backward pass, not kept; Nyström's pseudo-inverse is applied, not formed;
half of a Fourier transform is mirrored; tokens are mixed before they are projected.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vixlib import attention, layers
from vixlib.attention import Bias, Mechanism, inverse_scale, segment_means, uncast, weights, widened

CACHED = 2**18  # features at a time on a CPU, 1 MB in float32: they stay in a core's own cache


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v by torch's fused kernel; one key/value head serves all."""
    k, v = (t.expand(-1, q.shape[1], -1, -1) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, None if bias is None else bias.to(q.dtype))


class Softmax(attention.Softmax):
    """Softmax attention by torch's fused kernel: its matrix is never formed."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias | None = None) -> Tensor:
        return sdpa(q, k, v, bias and bias())


class Linformer(attention.Linformer):
    """Linformer by torch's fused kernel; MultiHead may compress before it projects."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sdpa(q, k, v)


class Performer(attention.Performer):
    """Performer without a constant against underflow, its features computed again, not kept.

    Not in the paper: the largest exponent of each feature among the keys moves from phi(k) to
    phi(q). Their product stays the same, a query's own scale cancels in the ratio, and no sum over
    keys falls below 1: nothing underflows.
    """

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.batch_wide:
            return super().mix(q, k, v)
        w = self.directions.to(q.dtype).T * self.dim_head**-0.25
        sequences = [t.expand(-1, self.heads, -1, -1).flatten(0, 1) for t in (q, k, v)]
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


class Nystrom(attention.Nystrom):
    """Nyströmformer by fused kernels, its pseudo-inverse applied, not formed."""

    def approximate(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias | None) -> Tensor:
        mean = partial(segment_means, segments=self.kept)
        q_mean, k_mean = mean(q), mean(k)
        between = weights(q_mean, k_mean, bias and bias(of_q=mean, of_k=mean))
        out = sdpa(q_mean, k, v, bias and bias(of_q=mean))
        out = pseudo_inverse_times(between, out, self.iterations, self.batch_wide)
        return sdpa(q, k_mean, out, bias and bias(of_k=mean))


def pseudo_inverse_times(a: Tensor, w: Tensor, iterations: int, batch_wide: bool = False) -> Tensor:
    """The iterated pseudo-inverse of a (... r r) times w (... r e), never formed.

    z <- z p(a z) with p(x) = (13 - 15 x + 7 x^2 - x^3) / 4 makes of x = a z the next x p(x): x and
    w are multiplied by the same p(x), two products a step in place of four, and a^T comes last.
    Reflecting a and w leaves a^T p(x) w as it is, but the rows of a, alike for a softmax, become
    one large and small ones, none lost in rounding.
    """
    scale = inverse_scale(a, batch_wide)
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


class Fourier(layers.Fourier):
    """FNet's mixing by half of a transform: the other half is its mirror image."""

    def forward(self, x: Tensor) -> Tensor:
        return RealFourier.apply(widened(x)).to(x.dtype)


class RealFourier(torch.autograd.Function):
    """Re F_n x F_c: sums of x over tokens i and channels j, times cos 2 pi (i k / n + j l / c).

    For real x the transform at (-k, -l) is the conjugate of that at (k, l): half of the channels
    are computed, the others mirrored. The cosines are symmetric, so gradients pass as x does.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        half = torch.fft.rfft2(x).real  # channels 0 ... c/2
        rest = half[..., 1 : (x.shape[-1] + 1) // 2].flip(-1, -2).roll(1, -2)
        return torch.cat([half, rest], -1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return RealFourier.apply(gradient)


class MultiHead(layers.MultiHead):
    """MultiHead that compresses tokens before it projects them, where that is less work."""

    def __init__(self, mechanism: Mechanism, *projections: nn.Module | None, **options):
        super().__init__(mechanism, *projections, **options)
        self.early = self.rotary is None and cheaper_early(mechanism, self.k, self.v)

    def context(self, x: Tensor) -> Tensor:
        # in half precision after the projections, so that no mixture is rounded before the scores
        cast = not x.is_meta and torch.is_autocast_enabled(x.device.type)
        half = cast or torch.finfo(x.dtype).bits < 32
        return self.mechanism.compress(x) if self.early and not half else x


def cheaper_early(mechanism: Mechanism, k: nn.Module, v: nn.Module | None) -> bool:
    """Whether compressing tokens before they are projected is the same, in fewer products.

    E (x W) = (E x) W for linear maps without a bias.
    """
    maps = [k] if v is None else [k, v]
    exact = all(type(each) is nn.Linear and each.bias is None for each in maps)
    if mechanism.compress is None or not exact:
        return False
    m, r = mechanism.keys.tokens, mechanism.kept
    c, width = k.in_features, sum(each.out_features for each in maps)
    return (m * r + r * width) * c < (m * c + m * r) * width
