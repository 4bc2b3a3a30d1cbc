"""Take over what another checkout has trained of the study: its records, and the models that ship.

    python workflow/ship.py CHECKOUT

The queue trains in a clone, where no edit reaches it. Records that are new there come into
figures/records/study/, and the models of part A's first seed into vixlib/pretrained/, in half
precision; one whose test accuracy that moves by more than 0.05 points stays out, with status 1.
"""

import json
import sys
from functools import partial
from pathlib import Path
from shutil import copyfile

from vixlib import data, paths, weights
from vixlib.paper.records import files
from vixlib.paper.runs import Run, queue, registered
from vixlib.train import evaluate

FOLDER = paths.PACKAGE / "pretrained"
LEAST = 0.05  # points of accuracy


def there(path: Path, checkout: Path) -> Path:
    """The same file in another checkout."""
    return checkout / path.relative_to(paths.root())


def records(checkout: Path) -> list[str]:
    """Names of the runs whose records were copied."""
    taken = []
    for run in queue("study"):
        own = files(run).record
        if there(own, checkout).exists() and not own.exists():
            paths.atomic_write(own, partial(copyfile, there(own, checkout)))
            taken.append(run.name)
    return taken


def model(run: Run, trained: Path, images: data.Dataset) -> bool:
    """Write a model in half precision; False, and nothing, where it is not what was recorded."""
    recorded = json.loads(files(run).record.read_text())["top1"]
    halved = weights.load(trained).half()
    top1, _ = evaluate(halved.float(), images)
    print(f"{run.system}: {top1:.2f} % in half precision, {recorded:.2f} % recorded")
    if abs(top1 - recorded) > LEAST:
        return False
    weights.save(halved.half(), FOLDER / f"{run.system}.safetensors")
    return True


def main(checkout: Path) -> int:
    """Take all over: how many models stayed out."""
    print("records:", ", ".join(records(checkout)) or "none that is new")
    file, kept, out = FOLDER / "runs.json", {}, 0
    known, images = json.loads(file.read_text()), data.load("cifar10", download=False)
    for run in (run for run in registered()["A"] if run.seed == 0):
        trained = there(files(run).weights, checkout)
        if run.system in known or (trained.exists() and model(run, trained, images)):
            kept[run.system] = run.name
        else:
            out += trained.exists()
    paths.atomic_write(
        file, lambda part: part.write_text(json.dumps(kept | known, indent=1) + "\n")
    )
    return out


if __name__ == "__main__":
    sys.exit(min(1, main(Path(sys.argv[1]).resolve())))
