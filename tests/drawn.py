"""Folders of drawn images, as somebody might have them: three classes, several modes and sizes."""

import random
from pathlib import Path

from PIL import Image, ImageDraw

CLASSES = "circle", "square", "triangle"
KINDS = (
    ("RGB", "png"),
    ("L", "png"),
    ("RGBA", "png"),
    ("CMYK", "jpg"),
    ("P", "png"),
    ("RGB", "webp"),
)


def shape(name: str, width: int, height: int, draws: random.Random) -> Image.Image:
    """A dark shape in the middle of a light picture; each shape leans to a colour of its own."""
    image = Image.new("RGB", (width, height), tuple(draws.randrange(180, 256) for _ in range(3)))
    r = min(width, height) * draws.uniform(0.25, 0.4)
    x, y = width / 2 + draws.uniform(-3, 3), height / 2 + draws.uniform(-3, 3)
    lean, pen = CLASSES.index(name), ImageDraw.Draw(image)
    ink = tuple(draws.randrange(0, 90) + 80 * (i == lean) for i in range(3))
    if name == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), ink)
    elif name == "square":
        pen.rectangle((x - r, y - r, x + r, y + r), ink)
    else:
        pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], ink)
    return image


def folder(root: Path, each: int, seed: int = 0) -> Path:
    """A folder of `each` images of each class under `root`."""
    draws = random.Random(seed)
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for i in range(each):
            mode, suffix = KINDS[i % len(KINDS)]
            size = draws.randrange(24, 60), draws.randrange(24, 60)
            image = shape(name, *size, draws).convert(mode)
            image.save(root / name / f"{name}{i}.{suffix}")
    return root
