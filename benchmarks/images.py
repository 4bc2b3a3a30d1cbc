"""Training from a folder of many small JPEGs that are read whenever they are wanted.

    python -m benchmarks.images COUNT WORKERS STEPS SPLIT

in a process of its own, whose peak of memory is its own: a line of JSON.
"""

import io
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from vixlib import build
from vixlib.data import batches, dataset
from vixlib.train import learn

KINDS, CLASSES, SIZE, BATCH = 64, 100, 32, 128
WARM = 5  # steps before time is taken: workers start, queues fill
SPLITS = "train and val", "held out"  # where the test images come from


def generated(folder: Path, count: int, split: str) -> None:
    """So many files of noise, 32 to 64 pixels a side: hard links to 64 that are written."""
    chance = torch.Generator().manual_seed(0)
    parts = [folder / "train"] * 9 + [folder / "val"] if split == SPLITS[0] else [folder]
    kinds = []
    for i in range(KINDS):
        sides = torch.randint(SIZE, 2 * SIZE + 1, (2,), generator=chance).tolist()
        pixels = torch.randint(256, (*sides, 3), dtype=torch.uint8, generator=chance)
        kinds.append(folder / f".{i}.jpg")
        file = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(file, "JPEG")
        kinds[-1].write_bytes(file.getvalue())
    for part in set(parts):
        for label in range(CLASSES):
            (part / f"{label:03}").mkdir(parents=True)
    for i in range(count):
        of_class, label = divmod(i, CLASSES)
        part = parts[of_class % len(parts)]
        (part / f"{label:03}" / f"image_{i:08}.jpeg").hardlink_to(kinds[i % KINDS])


def peak_mb(process: int | str) -> float:
    """Most memory that a process had at once, what it shares with its parent included."""
    said = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", said)[1]) / 1e3


def trained(folder: Path, workers: int, steps: int) -> dict:
    """Memory and time of some steps."""
    torch.manual_seed(0)
    row, began = {"start_mb": peak_mb("self")}, time.perf_counter()
    data = dataset(folder, size=SIZE, gigabytes=0, workers=workers)
    row |= {"first_look_seconds": time.perf_counter() - began, "first_look_mb": peak_mb("self")}
    model = build("ViT", image_size=SIZE, patch_size=4, dim=64, depth=2, num_classes=CLASSES)
    optimizer = torch.optim.AdamW(model.parameters())
    places = torch.randperm(len(data.train_labels)).split(BATCH)
    some, waited, whole = batches(data.train_images, data.train_labels, places), 0.0, 0.0
    for step in range(WARM + steps):
        began = time.perf_counter()
        images, labels = next(some)
        got = time.perf_counter()
        learn(model, optimizer, data, images, labels, False, "float32")
        if step >= WARM:
            waited, whole = waited + got - began, whole + time.perf_counter() - began
    crew = [process.pid for process in multiprocessing.active_children()]
    row |= {"main_mb": peak_mb("self"), "worker_mb": max(map(peak_mb, crew), default=0.0)}
    row |= {"images_a_second": steps * BATCH / whole, "waiting": waited / whole}
    return {name: round(value, 3) for name, value in row.items()}


def rows(count: int, workers: int, steps: int, split: str) -> list[dict]:
    """The row of a number of files, measured by a process of its own."""
    given = map(str, (count, workers, steps, split))
    command = [sys.executable, "-m", "benchmarks.images", *given]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    about = {"files": count, "workers": workers, "steps": steps, "split": split, "batch": BATCH}
    return [about | json.loads(done.stdout.splitlines()[-1])]


def main(count: str, workers: str, steps: str, split: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        generated(Path(folder), int(count), split)
        print(json.dumps(trained(Path(folder), int(workers), int(steps))))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
