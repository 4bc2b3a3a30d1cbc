"""Every mechanism as its paper writes it: nothing fused, reordered or recomputed.

They take the place of packages where none is installed, and ours must not be slower at 64 tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vixlib.attention import Linformer, Mechanism, Nystrom, Performer, Softmax, segment_means
from vixlib.layers import Fourier


def attention(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)): (b h n d), (b h m d) -> (b h n m)."""
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)


class PlainSoftmax(Softmax):
    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k) @ v


class PlainLinformer(Linformer):
    reduces, reduce = False, Mechanism.reduce

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        e = torch.cat([self.projection_extra, self.projection.flatten(1)], 1)
        return attention(q, e @ k) @ (e @ v)


class PlainPerformer(Performer):
    def phi(self, x: Tensor) -> Tensor:
        x = x * self.dim_head**-0.25
        return (x @ self.directions.T - x.square().sum(-1, keepdim=True) / 2).exp()

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = self.phi(q), self.phi(k)
        return q @ (k.mT @ v) / (q @ k.sum(-2).unsqueeze(-1))


class PlainNystrom(Nystrom):
    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q_mean, k_mean = segment_means(q, self.reduced), segment_means(k, self.reduced)
        inverse = pseudo_inverse(attention(q_mean, k_mean), self.iterations)
        out = attention(q, k_mean) @ inverse @ (attention(q_mean, k) @ v)
        weight = self.residual.weight
        return out + F.conv2d(v, weight, padding=(weight.shape[2] // 2, 0), groups=self.heads)


class PlainFourier(Fourier):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fftn(x, dim=(1, 2)).real


def pseudo_inverse(a: Tensor, iterations: int) -> Tensor:
    """Nyströmformer, equation 14, its start scaled for each matrix alone."""
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    z = a.mT / (a.sum(-1).amax(-1) * a.sum(-2).amax(-1))[..., None, None]
    for _ in range(iterations):
        az = a @ z
        z = 0.25 * z @ (13 * identity - az @ (15 * identity - az @ (7 * identity - az)))
    return z
