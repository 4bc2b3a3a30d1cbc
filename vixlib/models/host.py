"""What hosts share: images of one size in, logits out; attention for their grids; other sizes."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn

from vixlib.attention import Grid, Maker, Mechanism, construct
from vixlib.errors import BadInput, BadType, checked, held, whole
from vixlib.fused import MultiHead, Softmax
from vixlib.layers import Rotary

FEWEST_TOKENS = 64  # below, a sixteenth would be under four: softmax is kept

TokenMixer = Callable[[int, Grid], nn.Module]  # mixer(dim, grid): (b n c) -> (b n c)


def mechanism_for(
    mechanism: Maker, heads: int, dim_head: int, queries: Grid, keys: Grid, width: int | None = None
) -> Mechanism:
    """The mechanism built for these tokens; softmax where they are fewer than 64.

    `width` is that of a value, where it is not that of a key.

    Raises BadInput where its rank or landmarks would not be fewer than the tokens, or where it
    cannot take what the host gives: fewer queries than keys, values wider than keys.
    """
    held("mechanism", mechanism, Callable)
    if max(queries.tokens, keys.tokens) < FEWEST_TOKENS:
        return Softmax(heads, dim_head, queries, keys)
    made = construct(mechanism, heads, dim_head, queries, keys)
    n, m, e, title = queries.tokens, keys.tokens, width or dim_head, type(made).__name__
    if made.kept is not None and made.kept >= min(n, m):
        asked = f"{title} keeps {made.kept} of {n} queries and {m} keys"
        raise BadInput(f"{asked}: at most {min(n, m) - 1}")
    if queries == keys and e == dim_head:
        return made
    kv = made.kv_heads or heads
    shapes = (heads, n, dim_head), (kv, m, dim_head), (kv, m, e)
    try:
        with torch.no_grad():
            made.eval()(*(torch.zeros(1, *shape) for shape in shapes))
    except Exception as error:  # whatever a student's code comes to
        asked = f"mix {m} keys into {n} queries, keys {dim_head} and values {e} wide"
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise BadInput(f"{title} cannot {asked}, as this host asks: {said}") from error
    return made.train()


def self_attention(
    dim: int, grid: Grid, *, mechanism: Maker = Softmax, dim_head: int = 32, rotary: bool = False
) -> MultiHead:
    """A token mixer: linear projections of the form that the mechanism declares, then the rest."""
    if dim % dim_head:
        raise BadInput(f"dim: expected a multiple of the head width {dim_head}, got {dim}")
    made = mechanism_for(mechanism, dim // dim_head, dim_head, grid, grid)
    linear = partial(nn.Linear, dim, bias=made.qkv_bias)
    kv = (made.kv_heads or made.heads) * dim_head
    q, k, v = linear(dim), linear(kv), None if made.shared else linear(kv)
    turn = Rotary(dim_head, grid) if rotary else None
    return MultiHead(made, q, k, v, nn.Linear(dim, dim), rotary=turn)


class Host(nn.Module):
    """Images (b 3 H W) of one size in, logits (b num_classes) out. A host needs only `logits`."""

    def __init_subclass__(cls):
        if "__init__" in vars(cls):  # options keep to their annotations
            cls.__init__ = checked(cls.__init__)

    def __new__(cls, /, **options):
        host = super().__new__(cls)
        host.options = options  # so that `resized` can ask for the grids of another size
        return host

    def __init__(self, image_size: int | tuple[int, int]):
        super().__init__()
        size = (image_size,) * 2 if isinstance(image_size, int) else image_size
        if len(size) != 2:
            raise BadInput(f"image_size: expected an int or (height, width), got {image_size}")
        self.size = tuple(whole("image_size", side) for side in size)
        self.grid = Grid(0, 0)  # of a host without tokens

    def patches(self, patch_size: int) -> Grid:
        """The grid of the patches of its images; BadInput where they do not fill one."""
        if any(side % patch_size for side in self.size):
            size = " x ".join(map(str, self.size))
            raise BadInput(f"image_size {size} is not divisible by patch_size {patch_size}")
        return Grid(*(side // patch_size for side in self.size))

    def logits(self, images: Tensor) -> Tensor:
        """(b 3 H W) -> (b num_classes)."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        if not isinstance(images, Tensor) or not images.is_floating_point():
            got = getattr(images, "dtype", type(images).__name__)
            raise BadType(f"images: expected a tensor of normalised floats, got {got}")
        dtype = next(self.parameters()).dtype
        if images.dtype != dtype and not torch.is_autocast_enabled(images.device.type):
            raise BadType(f"images: expected {dtype} as the weights, got {images.dtype}")
        if images.shape[1:] != (3, *self.size) or images.shape[0] == 0:
            wanted, got = f"(batch, 3, {self.size[0]}, {self.size[1]})", tuple(images.shape)
            hint = "resized(model, (height, width)) gives a model for another size"
            raise BadInput(f"images: expected {wanted}, got {got}; {hint}")
        return self.logits(images)


@checked
def resized(model: Host, image_size: int | tuple[int, int]) -> Host:
    """A copy of a model for images of another size, to run as it is or to train on.

    Every module that has a grid takes that of its twin in a model built for the size; what ties a
    table to places has a method `follow` that stretches it in two dimensions: positions, rotary
    places, Linformer's projection, LeViT's bias. Mechanisms stay what they were built as, and keep
    as many mixtures or landmarks. BadInput for an MLP-Mixer, whose weights hold one number of
    tokens.
    """
    with torch.device("meta"):  # only its grids are wanted
        twin = type(model)(**{**model.options, "image_size": image_size})
    copy = deepcopy(model)
    try:
        for name, module in copy.named_modules():
            if hasattr(module, "grid"):
                module.grid = twin.get_submodule(name).grid
            if hasattr(module, "follow"):
                module.follow(twin.get_submodule(name))
    except RuntimeError as error:  # no memory for it
        raise BadInput(f"image_size: {image_size}: {str(error).splitlines()[0]}") from error
    copy.size, copy.options = twin.size, twin.options
    return copy
