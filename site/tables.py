"""What the explorer shows without computing: photos, costs, a first picture, every record."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import sklearn.datasets
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from exports import KEPT, TOKENS, WIDTH, ColourAndPlace, alone
from vixlib import Grid, attention, fused
from vixlib.attention import orthogonal_gaussian, segment_means
from vixlib.measure import flops, peak_memory
from vixlib.paths import CHECKOUT
from vixlib.systems import MIXERS, SYSTEMS

SIDE = 384  # of a photo, in pixels: a multiple of what any number of tokens takes
DRAWS = 4  # of Performer's directions
FIRST = {
    "photo": "flower",
    "source": "colour",
    "tokens": 256,
    "sharpness": 1.0,
    "query": [0.5, 0.5],
}
FIRST |= {"kept": {"linformer": 16, "performer": 110, "nystrom": 16}, "projection": "averages"}
ALT = {  # of photos that come with scikit-learn, and of ours
    "flower": "an orange dahlia before dark leaves",
    "china": "a Chinese pagoda with red pillars before trees and sky",
    "drawing": "two orange discs, a blue one, and a green stripe on light grey",
}


def photos(folder: Path) -> list[dict]:
    """Write the photos, square; returns what the page says of them."""
    found = Path(sklearn.datasets.__file__).parent / "images"
    credits = _credits((found / "README.txt").read_text())
    rows = []
    for name, alt in ALT.items():
        file = found / f"{name}.jpg"
        image = Image.open(file) if file.exists() else drawing()
        short = min(image.size)
        left, top = ((side - short) // 2 for side in image.size)
        image = image.crop((left, top, left + short, top + short)).resize((SIDE, SIDE))
        image.save(folder / f"{name}.jpg", quality=85)
        rows.append({"name": name, "alt": alt, **credits.get(name, {"by": "", "from": ""})})
    return rows


def _credits(text: str) -> dict[str, dict]:
    """Who took each photo, from the file that lies beside them."""
    made = {}
    for part in text.split("Image: ")[1:]:
        name = part.split(".jpg")[0]
        by = part.split("flickr.com/photos/")[1].split("/")[0]
        made[name] = {"by": by, "from": part.split("[3] ")[-1].split()[0]}
    return made


def drawing() -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), "#d8d8d8")
    draw = ImageDraw.Draw(image)
    draw.polygon([(0, 300), (SIDE, 180), (SIDE, 240), (0, 360)], fill="#2e8b57")
    for x, y, r, color in (
        (100, 110, 70, "#e07b1f"),
        (300, 310, 60, "#e07b1f"),
        (300, 90, 50, "#2b5fb3"),
    ):
        draw.ellipse((x - r, y - r, x + r, y + r), fill=color)
    return image


def pixels(path: Path, side: int) -> Tensor:
    """A photo as side x side means of its pixels, normalised: (1 3 side side)."""
    image = np.asarray(Image.open(path).convert("RGB"), np.float32)
    step = SIDE // side
    means = image.reshape(side, step, side, step, 3).mean((1, 3))
    return torch.from_numpy(means).permute(2, 0, 1)[None] / 127.5 - 1


def costs() -> dict[str, list[float]]:
    """By "mechanism tokens kept": FLOPs, MB as its paper writes it, MB as fused.

    Of one image and one head without a gradient; megabytes by torch's own record of allocations.
    """
    made = {}
    for tokens in TOKENS:
        grid, shape = Grid(1, tokens), (1, 1, tokens, WIDTH)
        for name in ("softmax", *KEPT):
            for kept in KEPT.get(name, [0]):
                options = _options(name, kept)
                make = partial(_made, fused, name, grid, options)
                row = [flops(make, shape, shape, shape)]
                for module in (attention, fused):
                    mechanism, x = _made(module, name, grid, options), torch.randn(shape)
                    with torch.no_grad():
                        mechanism(x, x, x)
                        row.append(peak_memory(partial(mechanism, x, x, x), x.device))
                made[f"{name} {tokens} {kept}"] = row
    return made


def _options(name: str, kept: int) -> dict:
    options = {
        "softmax": {},
        "linformer": {"rank": kept},
        "performer": {"features": kept},
        "nystrom": {"landmarks": kept, "kernel": None},
    }
    return options[name]


def _made(module: object, name: str, grid: Grid, options: dict) -> torch.nn.Module:
    kind = MIXERS[name].mechanism.__name__
    return getattr(module, kind)(1, WIDTH, grid, grid, **options)


def drawn() -> tuple[Tensor, Tensor]:
    """Draws of Performer's directions (t r d), and a fresh projection before its r^-1/2 (r n)."""
    directions = []
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        directions.append(orthogonal_gaussian(max(KEPT["performer"]), WIDTH))
    projection = torch.empty(max(KEPT["linformer"]), max(TOKENS)).uniform_(-1, 1)
    return torch.stack(directions), projection


@torch.no_grad()
def first(folder: Path) -> tuple[bytes, dict]:
    """The maps that are shown before anything is computed: a byte a weight, and their errors.

    Of each mechanism a scale of each row (n float32) and the rows (n n int8).
    """
    n, kept = FIRST["tokens"], FIRST["kept"]
    q, k = ColourAndPlace()(pixels(folder / f"{FIRST['photo']}.jpg", round(n**0.5)))
    parts = {
        "linformer": segment_means(torch.eye(n), kept["linformer"]),
        "performer": drawn()[0][0, : kept["performer"]],
    }
    packed, errors = b"", {}
    for name in ("softmax", *KEPT):
        given = [parts[name]] if name in parts else []
        module = alone(name, kept.get(name, 16))
        weights, rows, whole = module(q, k, torch.tensor(FIRST["sharpness"]), *given)
        scale = weights.abs().amax(1) / 127
        packed += scale.numpy().tobytes()
        packed += (weights / scale[:, None]).round().to(torch.int8).numpy().tobytes()
        errors[name] = {
            "whole": round(whole.item(), 4),
            "rows": [round(x, 4) for x in rows.tolist()],
        }
    return packed, errors


RECORD = [
    *("name", "system", "profile", "recipe", "seed", "dataset", "tokens", "epochs", "top1", "top5"),
    *("parameters", "flops", "peak_memory_mb", "seconds_per_epoch", "batch", "lr", "overrides"),
    *("commit", "device"),
]


def records(root: Path = CHECKOUT) -> list[dict]:
    """Every record of every profile: what a plot may ask, and where its system belongs."""
    rows = []
    for path in sorted((root / "figures" / "records").glob("*/*.json")):
        record = json.loads(path.read_text())
        row = {key: record.get(key) for key in RECORD}
        of = SYSTEMS[record["system"]]
        rows.append(row | {"mixer": of.mixer, "kind": of.family.kind, "table": of.family.table})
    return rows
