"""The released models as one textbook: plain torch over a dictionary of weights, switch by switch.

Written from what is known of the authors' code (sizes, recipes, quirks), not from ours; weights go
by the names of our state dicts. `released` is a set of departures, each the beginning of a row of
README's table: those in it are done the authors' way, all others ours.
Letters: b batch, h heads, n tokens, c channels, d width of a head, r mixtures or landmarks.
"""

import math
from collections.abc import Mapping, Set
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]
NONE: Set[str] = frozenset()

# departures that change what a model says of images
MOVE = (
    "Nyström's pseudo-inverse is scaled",
    "Performer subtracts a maximum",
    "Nyström pads",
    "64 landmarks",
    "Linformer's values are turned",
    "MLP-Mixer normalises",
)
# ... what it says in training, or where it is left in training while it is tested
DROP = ("dropout of 0.25 or 0.5", "dropout left on")
# ... nothing but what it costs
SAME = ("Nyström forms", "Performer keeps its features", "Linformer projects tokens")
# ... what is counted as its size
COUNT = ("RoPE models keep", "the sum of `weight`", "LeViP, LeViN, CvP, CvN", "hosts take")
# ... how it starts
START = ("positions start from", "CCX starts from")
# ... how it is trained and tested
TRAIN = (
    "the best epoch",
    "accuracy is the mean",
    "Tiny ImageNet is normalised",
    "loops of",
    "autocast",
)
DEPARTURES = (*MOVE, *DROP, *SAME, *COUNT, *START, *TRAIN)

DIM_HEAD, LANDMARKS, ITERATIONS = 32, 64, 6


class Facts(NamedTuple):
    """Of a released model: how it mixes tokens (T L P N, Fourier, MLP), and where."""

    mixer: str
    host: str = "ViX"
    hybrid: bool = False
    rope: bool = False
    one_head: bool = False  # of keys, which are Linformer's values
    cls: bool = True
    positions: bool = True
    norm: str = "layer norm"
    dropout: float = 0.0  # as in the script: behind each map of the MLP, and softmax attention
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0  # of its matrix
    left_on: bool = False  # tested as if it were trained


def _facts() -> dict[str, Facts]:
    known = {}
    for hybrid in ("", "Hybrid"):
        for rope in ("", "-RoPE"):
            for letter in "TLPN":
                one = letter == "L" and not hybrid and not rope
                known[f"{hybrid}Vi{letter}{rope}"] = Facts(
                    letter, hybrid=bool(hybrid), rope=bool(rope), one_head=one, positions=not rope
                )
        known[f"{hybrid}FNet"] = Facts("F", hybrid=bool(hybrid))
        known[f"{hybrid}MLPMixer"] = Facts("M", hybrid=bool(hybrid), cls=False, positions=False)
    for name, dropped in {
        "ViT": {"dropout": 0.25},
        "ViN": {"dropout": 0.25},
        "HybridViN": {"dropout": 0.25, "left_on": True},
        "ViN-RoPE": {"embedding_dropout": 0.5, "left_on": True},
        "HybridViN-RoPE": {"dropout": 0.5, "embedding_dropout": 0.5, "left_on": True},
    }.items():
        known[name] = known[name]._replace(**dropped)
    known["CCT"] = Facts("T", "CCX", cls=False, attention_dropout=0.1)
    for letter in "NP":
        known[f"CC{letter}"] = Facts(letter, "CCX", cls=False, left_on=True)
        alone = Facts(letter, cls=False, positions=False)
        known[f"LeVi{letter}-released"] = alone._replace(hybrid=True, norm="none")
        known[f"Cv{letter}-released"] = alone._replace(host="CvX", norm="std + eps")
    return known


RELEASED = _facts()
UNRELEASED = {  # no forward pass of the authors' to compare with, and why
    **dict.fromkeys(("LeViT", "CvT"), "no baseline of it is in the authors' repository"),
    **dict.fromkeys(("LeViP", "LeViN", "CvP", "CvN"), "released without their hosts: -released"),
    **dict.fromkeys(("LeViL", "CCL", "CvL"), "ours: the paper has no Linformer in these hosts"),
    **dict.fromkeys(("ResNet-20", "ResNet-56", "ConvMixer-256/8"), "baselines of others"),
}


class Model(NamedTuple):
    """A released model at work: what is known of it, its weights, which departures are theirs."""

    facts: Facts
    w: Weights
    released: Set[str] = NONE
    training: bool = False

    # --- parts -----------------------------------------------------------------------------------

    def linear(self, name: str, x: Tensor, bias: bool = True) -> Tensor:
        x = x @ self.w[f"{name}.weight"].mT
        return x + self.w[f"{name}.bias"] if bias else x

    def norm(self, name: str, x: Tensor) -> Tensor:
        if self.facts.norm == "none":
            return x
        centred = x - x.mean(-1, keepdim=True)
        variance = (centred**2).mean(-1, keepdim=True)
        kind = self.facts.norm
        spread = variance.sqrt() + 1e-5 if kind == "std + eps" else (variance + 1e-5).sqrt()
        return centred / spread * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    @property
    def dropping(self) -> bool:
        return self.training or ("dropout left on" in self.released and self.facts.left_on)

    def drop(self, x: Tensor, rate: float) -> Tensor:
        active = self.dropping and rate > 0 and "dropout of 0.25 or 0.5" in self.released
        return F.dropout(x, rate) if active else x

    def drop_path(self, x: Tensor, rate: float) -> Tensor:
        """Stochastic depth: a sample keeps its branch with probability 1 - rate."""
        if not self.dropping or not rate:
            return x
        return x * (torch.rand(len(x), 1, 1) >= rate) / (1 - rate)

    def mlp(self, name: str, x: Tensor) -> Tensor:
        x = self.linear(f"{name}.0", x)
        x = self.drop(x * (1 + torch.erf(x / math.sqrt(2))) / 2, self.facts.dropout)
        return self.drop(self.linear(f"{name}.2", x), self.facts.dropout)

    def convolutions(self, name: str, x: Tensor, strides: tuple[int, ...]) -> Tensor:
        """3 x 3, one after the other, nothing between them."""
        for i, stride in enumerate(strides):
            x = F.conv2d(x, self.w[f"{name}.{i}.weight"], self.w[f"{name}.{i}.bias"], stride, 1)
        return x

    # --- mixing tokens ---------------------------------------------------------------------------

    def mix(self, name: str, x: Tensor) -> Tensor:
        if self.facts.mixer == "F":
            return torch.fft.fft2(x).real  # over tokens and channels
        if self.facts.mixer == "M":
            return self.mlp(f"{name}.mlp", x.mT).mT
        return {"T": self.softmax, "L": self.linformer, "P": self.performer, "N": self.nystrom}[
            self.facts.mixer
        ](name, x)

    def projected(self, name: str, x: Tensor, bias: bool = False) -> Tensor:
        """Queries, keys or values: (b n c) -> (b h n d)."""
        return self.linear(name, x, bias).unflatten(-1, (-1, DIM_HEAD)).transpose(1, 2)

    def out(self, name: str, x: Tensor) -> Tensor:
        return self.linear(f"{name}.out", x.transpose(1, 2).flatten(2))

    def turned(self, x: Tensor) -> Tensor:
        """RoPE: pairs (2 i, 2 i + 1) turned by place / 10,000^(2 i / d); CLS has place 0."""
        if not self.facts.rope:
            return x
        speed = 10_000.0 ** -(torch.arange(0, DIM_HEAD, 2, dtype=x.dtype) / DIM_HEAD)
        angle = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * speed
        turn = torch.polar(torch.ones_like(angle), angle)
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(3)

    def softmax(self, name: str, x: Tensor) -> Tensor:
        q, k, v = (self.projected(f"{name}.{which}", x) for which in "qkv")
        a = weights(self.turned(q), self.turned(k))
        y = self.out(name, self.drop(a, self.facts.attention_dropout) @ v)
        return self.drop(y, self.facts.dropout)

    def linformer(self, name: str, x: Tensor) -> Tensor:
        """Keys are the values; one matrix E mixes both."""
        parts = (self.w[f"{name}.mechanism.projection{part}"] for part in ("_prefix", ""))
        e = torch.cat([part.flatten(1) for part in parts], 1)
        q = self.turned(self.projected(f"{name}.q", x))
        (r, n), (width, c) = e.shape, self.w[f"{name}.k.weight"].shape
        fewer = n * r * c + r * c * width < n * c * width + n * r * width
        if "Linformer projects tokens" in self.released or self.facts.rope:
            k = v = self.projected(f"{name}.k", x)
            k = self.turned(k)
            v = k if "Linformer's values are turned" in self.released else v
            k, v = e @ k, e @ v  # also where they are the same
        elif fewer:
            k = v = self.projected(f"{name}.k", e @ x)
        else:
            k = v = e @ self.projected(f"{name}.k", x)
        return self.out(name, weights(q, k) @ v)  # one head of keys serves all

    def performer(self, name: str, x: Tensor) -> Tensor:
        """The released kernel: exp(w x - |x|^2 / 2 - maximum) + 1e-4."""
        q, k, v = (self.projected(f"{name}.{which}", x, bias=True) for which in "qkv")
        directions = self.w[f"{name}.mechanism.directions"]

        def phi(x: Tensor, over: tuple[int, ...]) -> Tensor:
            x = x / DIM_HEAD**0.25
            wx, length = x @ directions.mT, (x**2).sum(-1, keepdim=True)
            if "Performer subtracts a maximum" in self.released:
                return torch.exp(wx - length / 2 - wx.amax(over, keepdim=True)) + 1e-4
            return torch.exp(wx - length / 2)

        q, k = phi(self.turned(q), (-1,)), phi(self.turned(k), (0, 1, 2, 3))
        if "Performer keeps its features" in self.released:
            total = q @ k.sum(-2)[..., None]
            return self.out(name, q @ (k.mT @ v) / total)
        y = q @ (k.mT @ torch.cat([v, torch.ones_like(v[..., :1])], -1))
        return self.out(name, y[..., :-1] / y[..., -1:])

    def nystrom(self, name: str, x: Tensor) -> Tensor:
        n = x.shape[1]
        r = LANDMARKS if "64 landmarks" in self.released else n // 16
        if "Nyström pads" in self.released:  # in front; they take part, RoPE counts them
            x = F.pad(x, (0, 0, -n % r, 0))
        q, k, v = (self.projected(f"{name}.{which}", x) for which in "qkv")
        q, k = self.turned(q), self.turned(k)
        q_mean, k_mean = landmarks(q, r), landmarks(k, r)
        left, a, right = weights(q, k_mean), weights(q_mean, k_mean), weights(q_mean, k)
        over = None if "Nyström's pseudo-inverse is scaled" in self.released else (-1,)
        scale = largest(a.sum(-1), over) * largest(a.sum(-2), over)
        if "Nyström forms" in self.released:
            y = (left @ inverse(a, scale)) @ (right @ v)
        else:
            y = left @ inverse_times(a, scale, right @ v)
        kernel = self.w[f"{name}.mechanism.residual.weight"]
        y = y + F.conv2d(v, kernel, padding=(kernel.shape[2] // 2, 0), groups=v.shape[1])
        return self.out(name, y)[:, -n:]

    # --- hosts -----------------------------------------------------------------------------------

    def layers(self, name: str, x: Tensor) -> Tensor:
        """Norm before attention and before the MLP, each beside a shortcut."""
        for i in range(0, len(children(self.w, name)), 2):
            mixed, expanded = f"{name}.{i}", f"{name}.{i + 1}"
            x = x + self.mix(f"{mixed}.1", self.norm(f"{mixed}.0", x))
            x = x + self.mlp(f"{expanded}.1", self.norm(f"{expanded}.0", x))
        return x

    def with_positions(self, x: Tensor) -> Tensor:
        places = self.w["positions.table"].flatten(1).mT
        prefix = [self.w["positions.prefix"]] if self.facts.cls else []
        return x + torch.cat([*prefix, places])

    def vix(self, images: Tensor, stride: int) -> Tensor:
        """Also LeViN and LeViP as released: convolutions, then layers without norm or place."""
        if self.facts.hybrid:
            x = self.convolutions("embedding", images, (stride, 1, 1)).flatten(2).mT
        else:
            patches = images.unfold(2, stride, stride).unfold(3, stride, stride)
            patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
            x = patches @ self.w["embedding.weight"].flatten(1).mT + self.w["embedding.bias"]
        if self.facts.cls:
            x = torch.cat([self.w["cls"].expand(len(x), 1, -1), x], 1)
        x = self.with_positions(x) if self.facts.positions else x
        x = self.layers("blocks", self.drop(x, self.facts.embedding_dropout))
        if self.facts.cls:
            x = self.norm("head.0", x[:, 0])
        elif self.facts.norm == "none":
            x = x.mean(1)
        elif "MLP-Mixer normalises" in self.released:
            x = self.norm("head.0", x).mean(1)
        else:
            x = self.norm("head.0", x.mean(1))
        return self.linear("head.1", x)

    def ccx(self, images: Tensor, stride: int) -> Tensor:
        x = images
        for i, step in enumerate((stride, 1, 1)):
            x = F.conv2d(x, self.w[f"tokenizer.{3 * i}.weight"], None, step, 1).clamp(min=0)
            x = F.max_pool2d(x, 3, 1, 1)
        x = self.with_positions(x.flatten(2).mT)
        depth = len(children(self.w, "blocks")) // 3
        for i in range(depth):
            rate = 0.1 * i / (depth - 1)
            mixed, norm, expanded = (f"blocks.{3 * i + j}" for j in range(3))
            x = x + self.drop_path(self.mix(f"{mixed}.1", self.norm(f"{mixed}.0", x)), rate)
            x = self.norm(norm, x)
            x = x + self.drop_path(self.mlp(f"{expanded}.0", x), rate)
        x = self.norm("norm", x)
        share = self.linear("importance", x).softmax(1)
        return self.linear("head", (share.mT @ x)[:, 0])

    def cvx(self, images: Tensor, stride: int) -> Tensor:
        x = images
        for i, step in enumerate((stride, 1, 1)):
            kernel, bias = self.w[f"embeddings.{i}.weight"], self.w[f"embeddings.{i}.bias"]
            x = F.conv2d(x, kernel, bias, step, 1)
            rows = x.shape[2]
            x = self.layers(f"stages.{i}", self.norm(f"norms.{i}", x.flatten(2).mT))
            x = x.mT.unflatten(2, (rows, -1))
        return self.linear("head", x.mean((2, 3)))


def logits(
    name: str,
    w: Weights,
    images: Tensor,
    released: Set[str] = NONE,
    *,
    stride: int = 1,
    training: bool = False,
) -> Tensor:
    """What a released model says of images (b 3 H W): (b classes). `stride` is the first one."""
    model = Model(RELEASED[name], w, released, training)
    return {"ViX": model.vix, "CCX": model.ccx, "CvX": model.cvx}[model.facts.host](images, stride)


def children(w: Weights, name: str) -> set[str]:
    """The next parts of the names below one."""
    return {key.removeprefix(name + ".").split(".")[0] for key in w if key.startswith(name + ".")}


def weights(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT / math.sqrt(DIM_HEAD)).softmax(-1)


def landmarks(x: Tensor, r: int) -> Tensor:
    """Means of r runs of neighbours; where they do not come out even, the first are one longer."""
    if x.shape[-2] % r == 0:
        return x.unflatten(-2, (r, -1)).mean(-2)
    return torch.stack([run.mean(-2) for run in x.tensor_split(r, -2)], -2)


def largest(sums: Tensor, over: tuple[int, ...] | None) -> Tensor:
    """Of each matrix, or of all: (b h 1 1) or (1 1 1 1)."""
    over = tuple(range(sums.ndim)) if over is None else over
    return sums.amax(over, keepdim=True)[..., None]


def inverse(a: Tensor, scale: Tensor) -> Tensor:
    """The pseudo-inverse of a, iterated from a^T / scale. Xiong et al. 2021, equation 14."""
    z, one = a.mT / scale, torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    for _ in range(ITERATIONS):
        az = a @ z
        z = z @ (13 * one - az @ (15 * one - az @ (7 * one - az))) / 4
    return z


def inverse_times(a: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    """The same times x, by eigenvalues: each step multiplies those of a z by a polynomial."""
    values, vectors = torch.linalg.eigh(a @ a.mT / scale)
    gain = torch.ones_like(values)
    for _ in range(ITERATIONS):
        step = (13 - values * (15 - values * (7 - values))) / 4
        gain, values = gain * step, values * step
    return a.mT @ (vectors @ (gain[..., None] * (vectors.mT @ x))) / scale


# --- sizes and starts ----------------------------------------------------------------------------


def parameters(name: str, w: Weights, released: Set[str] = NONE) -> int:
    """How many numbers are learned, or how many torchsummary sees: `weight` and `bias` alone."""
    facts = RELEASED[name]
    learned = {key: tensor for key, tensor in w.items() if not key.endswith("directions")}
    count = sum(tensor.numel() for tensor in learned.values())
    seen = {key: t for key, t in learned.items() if key.endswith((".weight", ".bias"))}
    if facts.host == "CvX":  # the gains and shifts of its own norm have other names
        seen = {key: t for key, t in seen.items() if t.ndim > 1 or not is_norm(key, w)}
    if "the sum of `weight`" in released:
        return sum(tensor.numel() for tensor in seen.values())
    if "RoPE models keep" in released and facts.rope and facts.mixer in "TL":
        tokens, dim = 1025, w["cls"].shape[-1]
        count += tokens * dim
    return count


def is_norm(name: str, w: Weights) -> bool:
    """Whether a weight or bias is a norm's: its weight has one axis."""
    return w[name.rpartition(".")[0] + ".weight"].ndim == 1


class Start(NamedTuple):
    """How a tensor is drawn: its mean, its spread, whether from a uniform or a normal."""

    spread: float
    mean: float = 0.0
    uniform: bool = False


def start(name: str, key: str, w: Weights, released: Set[str] = NONE) -> Start:
    """How a released model's tensor is drawn."""
    of_ccx = RELEASED[name].host == "CCX"
    compact = of_ccx and "CCX starts from" in released
    if key == "cls" or key.startswith("positions."):
        large = "positions start from" in released and not of_ccx
        return Start(1.0 if large else 0.2 if compact else 0.02)
    if key.endswith("directions"):
        return Start(1.0)
    if ".projection" in key:  # within 1 / sqrt(k)
        return Start((3 * len(w[key])) ** -0.5, uniform=True)
    if is_norm(key, w):
        return Start(0.0, mean=float(key.endswith("weight")))
    weight = w[key.rpartition(".")[0] + ".weight"]
    fan_in = weight[0].numel()
    if compact and weight.ndim == 2:
        return Start(0.02 if key.endswith("weight") else 0.0)
    if compact and key.startswith("tokenizer."):
        return Start((2 / fan_in) ** 0.5)
    return Start((3 * fan_in) ** -0.5, uniform=True)  # torch's own: within 1 / sqrt(fan in)


def settings(name: str, batch: int, epochs: int, released: Set[str] = NONE) -> dict:
    """How a model is trained at the paper's size; `batch` and `epochs` are its script's."""
    of_ccx, theirs = RELEASED[name].host == "CCX", "dropout left on" in released
    large = "CCX starts from" if of_ccx else "positions start from"
    return {
        "lr": 1e-3,
        "weight_decay": 0.01,
        "augmented": False,
        "std": 0.02 if large not in released else 0.2 if of_ccx else 1.0,
        "batch": batch if theirs else 128,
        "epochs": epochs if "loops of" in released else 25,
        "best_on_test": "the best epoch" in released,
        "precision": "float32" if "autocast" in released else "bfloat16",
    }


def accuracy(right: Tensor, batch: int, released: Set[str] = NONE) -> float:
    """Percent of images that are right, or the mean of that over batches."""
    if "accuracy is the mean" in released:
        parts = [part.double().mean() for part in right.split(batch)]
        return 100 * torch.stack(parts).mean().item()
    return 100 * right.double().mean().item()


TINY_IMAGENET = (122.4786, 114.2755, 101.3963), (70.4924, 68.5679, 71.8127)


def normalised(pixels: Tensor, dataset: str, released: Set[str] = NONE) -> Tensor:
    """Pixels of 0 to 255 (b 3 H W) as a model sees them."""
    if dataset == "tiny-imagenet" and "Tiny ImageNet is normalised" in released:
        mean, spread = (torch.tensor(part)[:, None, None] for part in TINY_IMAGENET)
        return (pixels - mean) / spread
    return (pixels / 255 - 0.5) / 0.5
