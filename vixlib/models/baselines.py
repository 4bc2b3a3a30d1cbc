"""Convolutional networks of the same size, not ours: they keep the attentions honest."""

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from vixlib.errors import whole
from vixlib.layers import Residual
from vixlib.models.host import Host


class ResidualPair(nn.Module):
    """Two normalised 3x3 convolutions beside a shortcut that pads new channels with zeros."""

    def __init__(self, before: int, dim: int, stride: int):
        super().__init__()
        convolution = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
        first = convolution(before, dim, stride=stride), nn.BatchNorm2d(dim), nn.ReLU()
        self.layers = nn.Sequential(*first, convolution(dim, dim), nn.BatchNorm2d(dim))
        self.stride, self.new = stride, whole("widths", dim, least=before) - before

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.pad(x[..., :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))
        return F.relu(shortcut + self.layers(x))


class ResNet(Host):
    """The CIFAR form: three stages of 16, 32, 64 channels, 6 x `pairs` + 2 layers. He et al. 2016.

    Section 4.2, shortcuts of option A. (b 3 H W) -> (b num_classes).
    """

    def __init__(
        self,
        *,
        pairs: int,
        image_size: int | tuple[int, int] = 32,
        num_classes: int = 10,
        widths: Sequence[int] = (16, 32, 64),
    ):
        super().__init__(image_size)
        last = widths[0]
        layers = [nn.Conv2d(3, last, 3, padding=1, bias=False), nn.BatchNorm2d(last), nn.ReLU()]
        for stage, dim in enumerate(widths):
            for i in range(pairs):
                layers.append(ResidualPair(last, dim, stride=2 if stage and not i else 1))
                last = dim
        head = nn.Linear(last, num_classes)
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)

    def logits(self, images: Tensor) -> Tensor:
        return self.layers(images)


class ConvMixer(Host):
    """Patches, then depthwise and pointwise convolutions in turn. Trockman and Kolter 2022.

    (b 3 H W) -> (b num_classes).
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] = 32,
        patch_size: int = 2,
        num_classes: int = 10,
        dim: int = 256,
        depth: int = 8,
        kernel: int = 5,
    ):
        super().__init__(image_size)
        self.patches(patch_size)  # else a rim would be left out

        def stage(convolution: nn.Conv2d) -> nn.Sequential:
            return nn.Sequential(convolution, nn.GELU(), nn.BatchNorm2d(dim))

        self.layers = stage(nn.Conv2d(3, dim, patch_size, stride=patch_size))
        for _ in range(depth):
            depthwise = nn.Conv2d(dim, dim, kernel, padding="same", groups=dim)
            self.layers.extend([Residual(*stage(depthwise)), stage(nn.Conv2d(dim, dim, 1))])
        self.layers.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(dim, num_classes)])

    def logits(self, images: Tensor) -> Tensor:
        return self.layers(images)
