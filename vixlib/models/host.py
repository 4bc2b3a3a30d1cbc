"""What every model shares: images of one size in, scores out, and a copy for another size."""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from vixlib.attention import Grid
from vixlib.errors import BadInput, BadType, checked, whole


class Host(nn.Module):
    """Images (b 3 H W) of one size in, scores (b classes) out. A host needs only `scores`."""

    def __init_subclass__(cls):
        if "__init__" in vars(cls):
            cls.__init__ = checked(cls.__init__)  # options keep to their annotations

    def __new__(cls, /, **options):
        host = super().__new__(cls)
        host.options = options  # so that `resized` can ask for the grids of another size
        return host

    def __init__(self, image_size: int | tuple[int, int]):
        super().__init__()
        self.size, self.grid = check_size(image_size), Grid(0, 0)  # a host without tokens

    def patches(self, patch_size: int) -> Grid:
        """The grid of the patches of its images; BadInput where they do not fill one."""
        if any(side % patch_size for side in self.size):
            size = " x ".join(map(str, self.size))
            raise BadInput(f"image_size {size} is not divisible by patch_size {patch_size}")
        return Grid(*(side // patch_size for side in self.size))

    def scores(self, images: Tensor) -> Tensor:
        """(b 3 H W) -> (b classes)."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        if not isinstance(images, Tensor) or not images.is_floating_point():
            got = getattr(images, "dtype", type(images).__name__)
            raise BadType(f"images: expected a tensor of normalised floats, got {got}")
        if images.ndim != 4 or images.shape[1:] != (3, *self.size):
            wanted = f"(batch, 3, {self.size[0]}, {self.size[1]})"
            raise BadInput(
                f"images: expected {wanted}, got {tuple(images.shape)}; resized(model, "
                "(height, width)) gives a model for another size"
            )
        return self.scores(images)


def check_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of an int or a pair; else BadInput or TypeError."""
    size = (image_size,) * 2 if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2:
        raise BadInput(f"image_size: expected an int or (height, width), got {image_size}")
    return tuple(whole("image_size", side) for side in size)


def check_stages(**lists: Sequence) -> None:
    """BadInput if a host's lists do not all have a value for each stage."""
    if len({len(each) for each in lists.values()}) > 1:
        got = ", ".join(f"{len(each)} {name}" for name, each in lists.items())
        raise BadInput(f"stages: expected as many of each, got {got}")


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
    for name, module in copy.named_modules():
        if hasattr(module, "grid"):
            module.grid = twin.get_submodule(name).grid
        if hasattr(module, "follow"):
            module.follow(twin.get_submodule(name))
    copy.size, copy.options = twin.size, twin.options
    return copy
