"""Small models of every system for 16 x 16 images: 64 tokens, the fewest with their mechanism."""

import torch
from torch import Tensor, nn

from vixlib import build
from vixlib.models.zoo import SYSTEMS

SMALL = {"image_size": 16, "patch_size": 2, "dim": 64, "depth": 2}  # of a ViX
HOSTS = {  # of the others: what brings 16 x 16 pixels to 64 tokens
    "LeVi{}": {"stem": (2, 1, 1), "widths": (32, 48, 64), "heads": (1, 2, 2), "depths": (1, 1, 1)},
    "CC{}": {"stem": (2, 1, 1), "dim": 64, "depth": 2},
    "Cv{}": {"strides": (2, 1, 1), "widths": (32, 32, 64), "heads": (1, 1, 2)},
    "Cv{}-released": {"strides": (2, 1, 1), "widths": (32,) * 3, "heads": (1,) * 3},
    "ResNet": {"widths": (4, 8, 16)},
    "ConvMixer": {"dim": 32, "depth": 2},
}


def sizes_of(name: str) -> dict:
    """The keywords that make a system small."""
    sizes = HOSTS.get(SYSTEMS[name].family)
    return SMALL if sizes is None else {"image_size": 16, **sizes}


def small(name: str, **changes) -> nn.Module:
    """A small model of a system for 16 x 16 images; its BatchNorms have seen a batch."""
    model = build(name, **{**sizes_of(name), **changes})
    with torch.no_grad():
        model(torch.randn(8, 3, *model.size))
    return model


def images(*size: int, batch: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    """Noise of a size (16 x 16 unless said): (batch 3 H W)."""
    return torch.randn(batch, 3, *(size or (16, 16)), dtype=dtype)


def random(*shape: int, **options) -> Tensor:
    """Noise in float64."""
    return torch.randn(shape, dtype=torch.float64, **options)
