"""Small models of every system for 16 x 16 images: 64 tokens, the fewest with their mechanism."""

import re

import torch
from torch import Tensor, nn

from vixlib import build
from vixlib.paper.runs import Run
from vixlib.systems import SYSTEMS

CHANGES = {  # of the profile quick, by host: two heads, a mechanism in the last stage, less to do
    "ViX": {"dim": 64},
    "CCX": {"dim": 64},
    "CvX": {"strides": (2, 1, 1)},
    "ResNet": {"widths": (4, 8, 16)},
    "ConvMixer": {"depth": 2},
}


def sizes_of(name: str) -> dict:
    """The keywords that make a system small: those of the profile quick, with a few changes."""
    sizes = Run(name, "quick").sizes | CHANGES.get(SYSTEMS[name].family.host.__name__, {})
    lists = {key: tuple(value) for key, value in sizes.items() if isinstance(value, list)}
    return {"image_size": 16, **{k: v for k, v in (sizes | lists).items() if k != "epochs"}}


SMALL = sizes_of("ViT")  # of a ViX
# Where each system costs seconds, these stand for all: every host and mixer, with and without CLS,
# both embeddings, turned queries, biases, keys on another grid, the released forms.
VARIED = "ViT", "ViL", "HybridViP-RoPE", "HybridFNet", "MLPMixer", "LeViN", "LeViP", "CCE", "CvL"
VARIED += "CvN-released", "LeViP-released", "ResNet-20", "ConvMixer-256/8"


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


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Draws everything that a model holds, also what starts as zero or one; q and k four times.

    At random initialisation, a bias that is transposed or a norm's other epsilon moves scores by
    1e-5 only.
    """
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif name.endswith("weight") and tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("weight"):
            larger = 4 if tensor.ndim == 2 and re.search(r"\.[qk]\.|^[qk]\.", name) else 1
            tensor.normal_(std=larger * tensor[0].numel() ** -0.5)
        elif name.endswith("table"):
            tensor.normal_(std=2)
        elif tensor.ndim:  # biases, means, CLS, directions, Linformer's projection
            tensor.normal_(std=0.3)
