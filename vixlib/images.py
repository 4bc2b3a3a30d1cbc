"""Image files, pictures and tensors as pixels: one way for training and for prediction."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from vixlib.errors import BadInput, DataError, held, refused

MOST_PIXELS = 64_000_000  # of one image: more is a mistake or an attack
FORMATS = "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"  # no decoder but these is run
Size = tuple[int, int]  # height, width


class BadImage(DataError):
    """An image cannot be read; the line names it."""


def read_image(
    source: str | Path | Image.Image | Tensor,
    size: Size | None = None,
    *,
    most_pixels: int = MOST_PIXELS,
    within: str | Path | None = None,
) -> Tensor:
    """An image as uint8 pixels (3 h w), turned as its EXIF says; BadImage if it cannot be.

    Grey of 16 bits is scaled to 8, of colours the upper 8 are taken; what is transparent shows
    white, CMYK becomes RGB, of several frames the first counts. For a `size` (height, width) the
    largest window of that shape in the middle is scaled, bilinearly and antialiased. More than
    `most_pixels`, what is no plain file and a link out of the folder `within` are refused. A tensor
    is (3 h w), (1 h w) or (h w), of bytes or of floats from 0 to 1.
    """
    held("image", source, str | Path | Image.Image | Tensor)
    file = isinstance(source, str | Path)
    name = source if file else f"of type {type(source).__name__}"
    kept, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # ours holds, before any decoding
    try:
        with refused(BadImage, f"cannot read the image {name}", Exception):
            if isinstance(source, Tensor):
                return _window(_bytes(source), size)
            if not file:
                return _window(_colours(source, most_pixels), size)
            target = Path(source).resolve()
            if target.exists() and not target.is_file():  # opening a pipe would wait for ever
                raise BadInput("expected a plain file")
            if within is not None and not target.is_relative_to(Path(within).resolve()):
                raise BadInput(f"expected a file in {within}, got a link to {target}")
            with Image.open(target, formats=FORMATS) as image:
                return _window(_colours(image, most_pixels), size)
    finally:
        Image.MAX_IMAGE_PIXELS = kept


def _colours(image: Image.Image, most_pixels: int) -> Image.Image:
    """The image upright and in RGB."""
    if image.width * image.height > most_pixels:
        seen = f"{image.width} x {image.height}"
        raise BadInput(f"expected at most {most_pixels:,} pixels (most_pixels), got {seen}")
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # grey of 16 bits, "I;16" and the like, perhaps with room for 32
        grey = np.asarray(image)
        if image.mode == "F" or grey.min() < 0 or grey.max() > 65_535:
            raise BadInput(f"expected 8 or 16 bits, got {grey.dtype} to {grey.max()}")
        image = Image.fromarray(np.rint(grey / 257).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _bytes(image: Tensor) -> Image.Image:
    """A tensor as an image in RGB."""
    image = image[None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[0] not in (1, 3) or not image.numel():
        raise BadInput(f"expected (1 or 3, height, width), got {tuple(image.shape)}")
    if image.dtype != torch.uint8:
        low, high = image.min().item(), image.max().item()
        if not image.is_floating_point() or not (low >= 0 and high <= 1):  # NaN is neither
            wanted = "expected torch.uint8, or floats from 0 to 1"
            raise BadInput(f"{wanted}, got {image.dtype} from {low:g} to {high:g}")
        image = image.float().mul(255).round().byte()
    return Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).cpu().contiguous().numpy())


def _window(image: Image.Image, size: Size | None) -> Tensor:
    """The middle of an image in RGB, scaled to a size: (3 h w)."""
    if size is not None and image.size != size[::-1]:
        image = ImageOps.fit(image, size[::-1], Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
