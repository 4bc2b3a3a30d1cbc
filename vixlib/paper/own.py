"""Commands for one's own images: train on a folder of them, predict, export."""

import argparse
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from vixlib import data, paths, weights
from vixlib.errors import BadInput, Diverged
from vixlib.images import BadImage, read_image
from vixlib.models.host import resized
from vixlib.paper.records import files
from vixlib.paper.runs import Run
from vixlib.train import Checkpoint, compile_blocks, evaluate, fit

SIZES = {"image_size": 32, "epochs": 30, "batch": 32}  # others are those of the profile laptop
FIT = "mix", "label_smoothing", "class_weights", "patience", "best"


def add_options(sub: argparse.ArgumentParser) -> None:
    """What `vix train` takes for a folder of one's own images."""
    own = sub.add_argument_group("with a folder of your own images as --data")
    own.add_argument("--image-size", type=int, help="pixels, each way (default 32)")
    own.add_argument("--epochs", type=int, help="passes over the images (default 30)")
    own.add_argument("--batch", type=int, help="images a step (default 32)")
    own.add_argument("--start", metavar="WEIGHTS", help="go on from these, with a fresh last layer")
    own.add_argument("--mix", metavar="NAME", help="mixup or cutmix of the images of a batch")
    own.add_argument("--label-smoothing", type=float, metavar="SHARE", help="of each label, to all")
    own.add_argument("--class-weights", metavar="balanced", help="rare classes weigh more")
    own.add_argument(
        "--patience", type=int, metavar="EPOCHS", help="end after so many without a better"
    )
    own.add_argument("--best", action="store_true", default=None, help="keep the best epoch")


def holds_images(folder: Path) -> bool:
    """Whether a folder holds folders of images, and no dataset that has a name."""
    forms = {form.rstrip("/") for source in data.SOURCES.values() for form in source.forms}
    inside = [*folder.iterdir()] if folder.is_dir() else []
    named = any(each.name in forms or each.name.startswith("data_batch_") for each in inside)
    return not named and any(each.is_dir() and each.name[0] != "." for each in inside)


def train(system: str, options: argparse.Namespace, changes: dict, deadline: float) -> int:
    """Train a system on a folder, a line an epoch, its weights named last; the exit status."""
    folder, seed = Path(options.data), options.seed or 0
    told = {name: getattr(options, name) for name in SIZES}
    told = {name: value for name, value in told.items() if value is not None} | changes
    make = partial(Run, system, "laptop", options.recipe or "annealed", seed)
    settings = make(tuple((SIZES | told).items())).settings
    name = make(tuple(told.items())).name.replace(".cifar10.", f".{folder.resolve().name}.", 1)
    device, size = data.resolve_device(options.device), settings["image_size"]
    images = data.dataset(folder, size=size, seed=seed, device=device)
    count = len(images.classes)
    if options.start:
        model = weights.load(weights_file(options.start, options), num_classes=count)
        model = resized(model, size)
    else:
        model = make(tuple((SIZES | told).items())).build(num_classes=count)
    model = model.to(device)
    if options.compile:
        compile_blocks(model)
    how = {key: getattr(options, key) for key in FIT if getattr(options, key) is not None}
    keys = "epochs", "batch", "lr", "weight_decay", "warm_up", "cosine", "augmented", "precision"
    kept = paths.root() / "build/own"
    identity = f"{name} {how} {options.start} {images.classes} {len(images.train_labels)}"
    checkpoint = Checkpoint(kept / "checkpoints" / f"{name}.pt", identity)
    how |= {key: settings[key] for key in keys} | {"seed": seed, "checkpoint": checkpoint}
    try:
        report = partial(_tell, name, settings["epochs"])
        curve = fit(model, images, deadline=deadline, report=report, **how)
    except Diverged as error:
        print(f"{name}: {error}", flush=True)
        return 1
    if curve is None:
        print(f"{name}: stopped, or out of time; the same command goes on", flush=True)
        return 3
    top1, _ = evaluate(model, images, precision=settings["precision"])
    path = kept / "weights" / f"{name}.safetensors"
    weights.save(model, path, classes=images.classes)
    checkpoint.delete()
    seen = f"top-1 {top1:.1f} % of {len(images.test_labels)} images that were held out"
    print(f"{name}: {seen}; {count} classes ({', '.join(images.classes):.200}); weights in {path}")
    return 0


def _tell(name: str, epochs: int, row: dict) -> None:
    seen = f"train {row['train_accuracy']:.1f} %, test {row['top1']:.1f} %, {row['seconds']:.1f} s"
    print(f"{name}: epoch {row['epoch']}/{epochs}, loss {row['loss']:.3f}, {seen}", flush=True)


def weights_file(name: str, options: argparse.Namespace, changes: tuple = ()) -> Path:
    """The weights that a name means: a file, the name of a run, or a system and its options."""
    if name.endswith(".safetensors") or Path(name).is_file():
        return Path(name)
    kept = sorted(paths.root().glob("build/*/weights/*.safetensors"))
    named = [path for path in kept if path.stem == name]
    if named:
        return next((path for path in named if options.profile in path.parts), named[0])
    if "." in name:
        raise BadInput(f"no weights of a run {name!r} in {paths.root() / 'build'}/*/weights")
    run = Run(name, options.profile, options.recipe or "fair", options.seed or 0, changes)
    if not files(run).weights.exists():
        raise BadInput(f"no weights in {files(run).weights}; train them: {run.command}")
    return files(run).weights


def predict(options: argparse.Namespace, changes: tuple) -> int:
    """The likeliest classes of files, and of all files in folders; 2 where some cannot be read."""
    model = weights.load(weights_file(options.model, options, changes))
    model = model.to(data.resolve_device(options.device))
    wanted, status = [*_files(options.images)], 0
    for at in range(0, len(wanted), options.batch):
        pixels = {}
        for path in wanted[at : at + options.batch]:
            try:
                pixels[path] = read_image(path, model.size, most_pixels=options.most_pixels)
            except BadImage as error:
                print(f"vix: {error}", file=sys.stderr)
                status = 2
        told = weights.predict(model, [*pixels.values()], top=options.top)
        for path, best in zip(pixels, told, strict=True):
            if options.json:
                classes = [{"class": name, "probability": share} for name, share in best]
                print(json.dumps({"image": str(path), "classes": classes}))
                continue
            if len(wanted) > 1:
                print(path)
            for name, share in best:
                print(f"{100 * share:6.2f} %  {name}")
    return status


def _files(given: list[Path]) -> Iterator[Path]:
    for path in given:
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        if path.is_dir():
            inside = [each for each in inside if each.name[0] != "." and not each.is_dir()]
        if not inside:
            raise BadInput(f"no images in {path}")
        yield from inside


def export(options: argparse.Namespace, changes: tuple) -> None:
    """Write a trained model as ONNX."""
    model = weights.load(weights_file(options.model, options, changes))
    weights.export(model, options.out)
    print(f"{options.out}: images (any, 3, {model.size[0]}, {model.size[1]}) to logits of classes")
