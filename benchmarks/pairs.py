"""Ours and the peers of it: how each is built, and what of a peer's weights stands where in ours.

A peer imports its package when it is built: one that is missing costs its own cells only.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vixlib import attention, build, layers, self_attention
from vixlib.attention import Grid, Mechanism
from vixlib.fused import Fourier, Linformer, Nystrom, Performer, Softmax

DIM, HEADS, WIDTH, DEPTH, HIDDEN = 128, 4, 32, 4, 256
TOLERANCE = 1e-9  # of the largest entry, in float64

Of = Callable[[Tensor], Tensor | None]  # of a peer's tensor: its value, or its gradient
Weights = dict[str, Tensor]
Size = int | tuple[int, int]  # tokens of a layer, rows and columns of a model's image


class Peer(NamedTuple):
    """Who ours is compared with. `weights` are the peer's under our names; None: not our function.

    Where a peer computes something else by a detail, `options` put it into our mechanism, or
    `exact` takes it out of the peer; only for the check, never for timing.
    """

    name: str
    make: Callable[[Size], nn.Module]
    weights: Callable[[nn.Module, Of, Grid], Weights] | None = None
    package: str = ""
    note: str = ""
    exact: Callable[[], AbstractContextManager] = nullcontext
    options: Mapping[str, bool] = MappingProxyType({})
    most: int = 16384  # tokens; more would not fit or not end


class Contest(NamedTuple):
    """One row of a table: our module of a size, built with options of its mechanism, and peers."""

    name: str
    mechanism: Callable[..., nn.Module]
    ours: Callable[..., nn.Module]
    peers: tuple[Peer, ...]


def value(tensor: Tensor) -> Tensor:
    return tensor.detach()


def gradient(tensor: Tensor) -> Tensor | None:
    return tensor.grad


def difference(
    ours: nn.Module, peer: nn.Module, weights: Callable[..., Weights], x: Tensor
) -> float:
    """Largest difference of outputs, input gradients and weight gradients, given equal weights.

    Each in parts of its largest entry; in float64. `ours` and `peer` stay as they are.
    """
    ours, peer = deepcopy(ours).double(), deepcopy(peer).double()
    pour(ours, weights(peer, value))
    mine, theirs = (x.detach().double().requires_grad_() for _ in range(2))
    out = ours(mine), peer(theirs)
    towards = torch.randn_like(out[0])
    for one in out:
        one.backward(towards)
    grads = weights(peer, gradient)
    pairs = [out, (mine.grad, theirs.grad)]
    pairs += [
        (p.grad, grads[name].reshape(p.shape)) for name, p in ours.named_parameters() if p.numel()
    ]
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


class Unequal(AssertionError):
    """Ours and a peer do not compute the same."""


def agreement(contest: Contest, peer: Peer, size: Size, x: Tensor) -> dict[str, float | None]:
    """`equal_to`: how far apart, once what is known to differ is; `as_released`: with all of that.

    Raises Unequal where they should agree and do not, ImportError where the peer is not installed.
    """
    theirs = peer.make(size).to(x.device)
    if peer.weights is None:
        return {"equal_to": None, "as_released": None}

    def apart(**options) -> float:
        ours = contest.ours(size, **options).to(x.device)
        return difference(ours, theirs, partial(peer.weights, grid=grid_of(size)), x)

    released = apart()
    with peer.exact():
        equal = apart(**peer.options)
    if not equal <= TOLERANCE:
        raise Unequal(f"{contest.name}: {equal:.1e} from {peer.name}, {TOLERANCE:.0e} is allowed")
    return {"equal_to": float(f"{equal:.1e}"), "as_released": float(f"{released:.1e}")}


def pour(ours: nn.Module, weights: Weights) -> None:
    """A peer's weights into ours, each of them."""
    shaped = {name: weights[name].reshape(t.shape) for name, t in ours.state_dict().items()}
    ours.load_state_dict(shaped)


# --- layers --------------------------------------------------------------------------------------


def layer(mechanism: Callable[..., Mechanism], tokens: int, **options) -> nn.Module:
    if mechanism in (Fourier, layers.Fourier):
        return mechanism(DIM, Grid(1, tokens))
    mechanism = partial(mechanism, **options)
    return self_attention(DIM, Grid(1, tokens), mechanism=mechanism, dim_head=WIDTH)


def same(peer: nn.Module, of: Of, grid: Grid) -> Weights:
    """Of our own modules, named alike."""
    held = {**dict(peer.named_buffers()), **dict(peer.named_parameters())}
    return {name: of(tensor) for name, tensor in held.items()}


def linear(name: str, module: nn.Linear | nn.LayerNorm, of: Of) -> Weights:
    biased = {} if module.bias is None else {f"{name}.bias": of(module.bias)}
    return {f"{name}.weight": of(module.weight), **biased}


def of_fused(qkv: nn.Linear, out: nn.Linear, of: Of) -> Weights:
    parts = zip("qkv", of(qkv.weight).chunk(3), strict=True)
    return {f"{name}.weight": part for name, part in parts} | linear("out", out, of)


def of_timm(peer: nn.Module, of: Of, grid: Grid) -> Weights:
    return of_fused(peer.qkv, peer.proj, of)


def of_linformer(peer: nn.Module, of: Of, grid: Grid) -> Weights:
    prefix, image = of(peer.proj_k).T.split([grid.prefix_tokens, grid.rows * grid.columns], 1)
    named = {"q": peer.to_q, "k": peer.to_k, "v": getattr(peer, "to_v", None), "out": peer.to_out}
    weights = {"mechanism.projection": image, "mechanism.projection_prefix": prefix}
    for name, module in named.items():
        weights |= {} if module is None else linear(name, module, of)
    return weights


def of_performer(peer: nn.Module, of: Of, grid: Grid) -> Weights:
    weights = {"mechanism.directions": of(peer.fast_attention.projection_matrix)}
    for name in ("q", "k", "v", "out"):
        weights |= linear(name, getattr(peer, f"to_{name}"), of)
    return weights


def of_nystrom(peer: nn.Module, of: Of, grid: Grid) -> Weights:
    convolution = {"mechanism.residual.weight": of(peer.res_conv.weight)}
    return of_fused(peer.to_qkv, peer.to_out[0], of) | convolution


def nothing(peer: nn.Module, of: Of, grid: Grid) -> Weights:
    return {}


@contextmanager
def without_epsilon(module: str) -> Iterator[None]:
    """Random features without the small constant that the packages add to them."""
    kernel = importlib.import_module(module).softmax_kernel
    kept = kernel.__kwdefaults__
    kernel.__kwdefaults__ = {**kept, "eps": 0.0}
    try:
        yield
    finally:
        kernel.__kwdefaults__ = kept


def timm_attention(tokens: int) -> nn.Module:
    from timm.layers.attention import Attention

    return Attention(DIM, HEADS)


def linformer(tokens: int, rank: int) -> nn.Module:
    from linformer import LinformerSelfAttention

    peer = LinformerSelfAttention(DIM, tokens, k=rank, heads=HEADS, dim_head=WIDTH)
    peer.proj_v = peer.proj_k  # one projection of keys and values, as ours
    return peer


def shared_linformer(tokens: int, rank: int) -> nn.Module:
    from vision_xformer.vision_linformer import LinformerSelfAttention

    shared = {"one_kv_head": True, "share_kv": True}
    return LinformerSelfAttention(DIM, tokens, k=rank, heads=HEADS, dim_head=WIDTH, **shared)


def performer(tokens: int) -> nn.Module:
    from performer_pytorch import SelfAttention

    return SelfAttention(DIM, heads=HEADS, dim_head=WIDTH, qkv_bias=True)


def nystrom(tokens: int, landmarks: int) -> nn.Module:
    from nystrom_attention import NystromAttention

    return NystromAttention(DIM, dim_head=WIDTH, heads=HEADS, num_landmarks=landmarks)


def fourier(tokens: int) -> nn.Module:
    from vision_xformer.fnet import FNetBlock

    return FNetBlock()


FUSED = Peer(
    "fused softmax", partial(layer, Softmax), note="another mechanism: where ours crosses it"
)
NAIVE = Peer("naive form", partial(layer, attention.Softmax), same, most=4096)
BATCH_WIDE = {"batch_wide": True}
CONSTANT = "the peer adds 1e-4 to its features and has one scale for all"
ONE_SCALE = "the peer scales the pseudo-inverse by maxima over batch and heads; equal if ours does"


def _plain(mechanism: Callable[..., nn.Module], **options) -> Peer:
    return Peer("plain form", partial(layer, mechanism, **options), same)


def _contest(name: str, mechanism: Callable[..., nn.Module], *peers: Peer, **options) -> Contest:
    return Contest(name, mechanism, partial(layer, mechanism, **options), peers)


def _linformer(rank: int) -> Contest:
    peer = Peer("linformer", partial(linformer, rank=rank), of_linformer, "linformer")
    peer = peer._replace(note="one projection for keys and values on both sides")
    return _contest(f"linformer k {rank}", Linformer, peer, FUSED, rank=rank)


def _nystrom(landmarks: int) -> Contest:
    make, package = partial(nystrom, landmarks=landmarks), "nystrom-attention"
    peer = Peer(package, make, of_nystrom, package, ONE_SCALE, options=BATCH_WIDE)
    return _contest(f"nystrom m {landmarks}", Nystrom, peer, FUSED, landmarks=landmarks)


_exact = partial(without_epsilon, "performer_pytorch.performer_pytorch")
_package = "performer-pytorch"
LAYERS = (
    _contest("softmax", Softmax, Peer("timm", timm_attention, of_timm, "timm"), NAIVE),
    _linformer(256),
    _linformer(64),
    _contest(
        "linformer k 64 shared",
        Linformer,
        Peer("vision-xformer", partial(shared_linformer, rank=64), of_linformer, "vision-xformer"),
        rank=64,
        shared=True,
        kv_heads=1,
    ),
    _contest(
        "performer",
        Performer,
        Peer(_package, performer, of_performer, _package, f"{CONSTANT}; equal without", _exact),
        FUSED,
    ),
    _nystrom(64),
    _nystrom(256),
    _contest(
        "fourier",
        Fourier,
        Peer("vision-xformer", fourier, nothing, "vision-xformer", "two transforms in a row"),
        _plain(layers.Fourier)._replace(name="one fftn"),
        FUSED,
    ),
)
# with a landmark or mixture for each 16 tokens, as every model has them
SMALL = (
    _contest("softmax", Softmax, _plain(attention.Softmax)),
    _contest("linformer", Linformer, _plain(attention.Linformer)),
    _contest("performer", Performer, _plain(attention.Performer)),
    _contest("nystrom", Nystrom, _plain(attention.Nystrom)),
    _contest("fourier", Fourier, _plain(layers.Fourier)),
)

# --- models --------------------------------------------------------------------------------------


def grid_of(size: Size) -> Grid:
    return Grid(1, size) if isinstance(size, int) else Grid(*size, prefix_tokens=1)


def vit_pytorch(size: Size) -> nn.Module:
    from vit_pytorch import ViT

    return _host(ViT, size, heads=HEADS, dim_head=WIDTH)


def vision_xformer(size: Size, name: str, **options) -> nn.Module:
    return _host(getattr(importlib.import_module("vision_xformer"), name), size, **options)


def _host(kind: Callable[..., nn.Module], size: Size, **options) -> nn.Module:
    """Without its two norms around the patches, which ours has not: then both do the same."""
    sizes = {"dim": DIM, "depth": DEPTH, "mlp_dim": HIDDEN}
    peer = kind(image_size=size, patch_size=1, num_classes=10, **sizes, **options)
    peer.to_patch_embedding[1] = peer.to_patch_embedding[3] = nn.Identity()
    return peer


def of_host(
    peer: nn.Module, of: Of, grid: Grid, attention: Callable[[nn.Module, Of, Grid], Weights]
) -> Weights:
    """A model of vision-xformer or vit-pytorch under the names of our ViX."""
    if hasattr(peer, "mlp_head") and isinstance(peer.mlp_head, nn.Linear):  # vit-pytorch
        blocks = [(a.norm, a, f.net[0], f.net[1], f.net[4]) for a, f in peer.transformer.layers]
        head = peer.transformer.norm, peer.mlp_head
    else:
        layers = (peer.token_mixer if hasattr(peer, "token_mixer") else peer.transformer).layers
        blocks = [(a.norm, a.fn, f.norm, f.fn.net[0], f.fn.net[3]) for a, f in layers]
        head = peer.mlp_head
    positions = of(peer.pos_embedding).reshape(-1, DIM)
    weights = linear("embedding", peer.to_patch_embedding[2], of)
    weights |= {"cls": of(peer.cls_token).reshape(1, DIM), "positions.prefix": positions[:1]}
    weights |= {"positions.table": positions[1:].T.unflatten(1, grid[:2])}
    for i, (norm, mixer, second_norm, widen, narrow) in enumerate(blocks):
        mixing, channels = f"blocks.{2 * i}", f"blocks.{2 * i + 1}"
        weights |= linear(f"{mixing}.0", norm, of) | linear(f"{channels}.0", second_norm, of)
        weights |= {f"{mixing}.1.{name}": w for name, w in attention(mixer, of, grid).items()}
        weights |= linear(f"{channels}.1.0", widen, of) | linear(f"{channels}.1.2", narrow, of)
    return weights | linear("head.0", head[0], of) | linear("head.1", head[1], of)


def of_vit_pytorch(peer: nn.Module, of: Of, grid: Grid) -> Weights:
    return of_fused(peer.to_qkv, peer.to_out[0], of)


def model(
    name: str, size: Size, mechanism: Callable[..., Mechanism] | None = None, **options
) -> nn.Module:
    sizes = {"image_size": size, "dim": DIM, "depth": DEPTH}
    chosen = {} if mechanism is None else {"attention": partial(mechanism, **options)}
    return build(name, **sizes, **(chosen or options))


PADDED = "the peer pads 1,025 tokens with zero rows to a multiple of its landmarks"
BARE = "the peer without its norms around the patches"


def _released(name: str, attention: Callable, note: str = "", ours=MappingProxyType({}), **options):
    """A model of vision-xformer; its attention is read by `attention`, `ours` are our options."""
    make = partial(vision_xformer, name=name, **options)
    weights, package = partial(of_host, attention=attention), "vision-xformer"
    note = "; ".join(filter(None, (BARE, note)))
    return Peer(package, make, weights, package, note, options=ours)


def _model(name: str, peer: Peer, *, mechanism: Callable | None = None, **options) -> Contest:
    ours = partial(model, name.split()[0], mechanism=mechanism, **options)
    return Contest(name, mechanism or Softmax, ours, (peer,))


def _vin(landmarks: int) -> Contest:
    note = f"{PADDED}; {ONE_SCALE}"
    peer = _released("ViN", of_nystrom, note, BATCH_WIDE, num_landmarks=landmarks, **_heads)
    return _model(f"ViN m {landmarks}", peer, mechanism=Nystrom, landmarks=landmarks)


_heads = {"heads": HEADS, "dim_head": WIDTH}
_vit = partial(of_host, attention=of_vit_pytorch)
_vip = _released("ViP", of_performer, f"{CONSTANT}; equal if ours does", BATCH_WIDE, **_heads)
_vil = {"mechanism": Linformer, "rank": 64, "shared": True, "kv_heads": 1}
MODELS = (
    _model("ViT", Peer("vit-pytorch", vit_pytorch, _vit, "vit-pytorch", BARE)),
    _model("ViP", _vip, mechanism=Performer),
    _model("ViL", _released("ViL", of_linformer, k=64, **_heads), **_vil),
    _vin(64),
    _vin(256),
    _model("FNet", _released("FNet", nothing)),
)
