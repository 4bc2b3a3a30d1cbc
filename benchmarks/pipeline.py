"""Images of CIFAR-10's shape, cropped at random, flipped, normalised: ours and torchvision's."""

import torch
from torch import Tensor

from benchmarks.pairs import Unequal
from vixlib.data import augment, normalise

BATCH, PADDING = 128, 4


def ours(images: Tensor) -> None:
    """One epoch, as the training loop reads it."""
    for chosen in torch.randperm(len(images), device=images.device).split(BATCH):
        normalise(augment(images[chosen], padding=PADDING))


def loader(images: Tensor) -> torch.utils.data.DataLoader:
    """What torchvision's tutorials build: pictures opened and transformed one by one."""
    from PIL import Image
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomCrop(images.shape[-1], padding=PADDING),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.5,) * 3),
        ]
    )
    pictures = images.permute(0, 2, 3, 1).cpu().numpy()

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, i: int) -> Tensor:  # as torchvision.datasets.CIFAR10
            return transform(Image.fromarray(pictures[i]))

    return torch.utils.data.DataLoader(Pictures(), batch_size=BATCH, shuffle=True)


def agreement(images: Tensor) -> dict:
    """Each image of both must be one of the crops of the padded original, or a mirrored one."""
    from torchvision.transforms import functional as tv

    side = images.shape[-1]
    padded = normalise(tv.pad(images.cpu(), PADDING))
    crops = [
        tv.crop(padded, down, right, side, side)
        for down in range(2 * PADDING + 1)
        for right in range(2 * PADDING + 1)
    ]
    legal = torch.stack([flip for crop in crops for flip in (crop, tv.hflip(crop))])
    mine = normalise(augment(images, padding=PADDING)).cpu()
    transform = loader(images).dataset
    theirs = torch.stack([transform[i] for i in range(len(images))])
    far = [(legal - some).abs().amax((2, 3, 4)).amin(0).max().item() for some in (mine, theirs)]
    if max(far) > 1e-6:
        raise Unequal(f"no crop of the original: ours {far[0]:.1e}, torchvision's {far[1]:.1e}")
    return {"equal_to": float(f"{max(far):.1e}"), "as_released": float(f"{max(far):.1e}")}
