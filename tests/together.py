"""Trainings in one process, and in several: `torchrun ... tests/together.py OUT OPTIONS`."""

import json
import sys
from pathlib import Path

import torch
from small import small

from vixlib import distributed, train
from vixlib.data import Dataset
from vixlib.train import fit, judged

BATCH = 8


def wide(train: object) -> None:
    """Lets a module train in float64: what has float32 is made of it."""
    narrow, loss = train.normalise, train.cross_entropy
    train.normalise = lambda pixels: narrow(pixels).double()
    train.cross_entropy = lambda *given: loss(*given).double()


def images(size: tuple[int, int], count: int = 26) -> Dataset:
    """Noise; the last batch has two images, too few for three processes."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, *size), generator=draw, dtype=torch.uint8)
    labels = torch.randint(10, (count,), generator=draw)
    return Dataset(pixels, labels, pixels[:11], labels[:11], tuple(map(str, range(10))), "noise")


def trained(name: str, **options) -> dict:
    """What a training in float64 comes to: its curve, losses, and scores afterwards."""
    torch.manual_seed(0)
    model, losses = small(name).double(), []
    noise = images(model.size)
    options = {"epochs": 2, "batch": BATCH, "augmented": True} | options
    curve = fit(model, noise, losses=losses, **options)
    hits = judged(model, noise)
    scores = model.eval()(train.normalise(noise.test_images))
    rows = [[row[key] for key in ("loss", "train_accuracy", "top1")] for row in curve]
    losses = [loss.item() for loss in losses]
    return {"curve": rows, "losses": losses, "hits": hits.tolist(), "scores": scores.tolist()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    wide(train)
    out, asked = sys.argv[1:]
    with distributed.processes("cpu"):
        found = {name: trained(name, **more) for name, more in json.loads(asked).items()}
        if distributed.Team().rank == 0:
            Path(out).write_text(json.dumps(found))
