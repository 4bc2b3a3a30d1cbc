"""Commands for one's own images: train on a folder of them, predict, export."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from vixlib import data, paths, weights
from vixlib.errors import BadInput, Diverged, whole
from vixlib.images import MOST_PIXELS, BadImage, read_image
from vixlib.models.host import resized
from vixlib.paper.runs import Run
from vixlib.paper.training import note, tell, weights_of
from vixlib.train import Checkpoint, compile_blocks, evaluate, fit

SIZES = {"image_size": 32, "epochs": 30, "batch": 32}  # others are those of the profile laptop
FIT = "mix", "label_smoothing", "class_weights", "patience", "best"


def given(options: argparse.Namespace, *names: str) -> dict:
    """Those of these options that were said, by name."""
    said = {name: getattr(options, name) for name in names}
    return {name: value for name, value in said.items() if value is not None and value is not False}


def holds_images(folder: Path) -> bool:
    """Whether a folder holds folders of images, and no dataset that has a name."""
    forms = {form.rstrip("/") for source in data.SOURCES.values() for form in source.forms}
    inside = [*folder.iterdir()] if folder.is_dir() else []
    named = any(each.name in forms or each.name.startswith("data_batch_") for each in inside)
    return not named and any(each.is_dir() and each.name[0] != "." for each in inside)


def train(system: str, options: argparse.Namespace, deadline: float) -> int:
    """Train a system on a folder, a line an epoch, its weights named last; the exit status."""
    folder, seed, told = Path(options.data), options.seed or 0, given(options, *SIZES)
    told |= dict(options.changes)
    run = Run(system, "laptop", options.recipe or "annealed", seed, tuple((SIZES | told).items()))
    name = replace(run, overrides=tuple(told.items())).name
    name = name.replace(".cifar10.", f".{folder.resolve().name}.", 1)
    device, size = data.resolve_device(options.device), run.settings["image_size"]
    images = data.dataset(folder, size=size, seed=seed, device=device)
    count = len(images.classes)
    if options.start:
        model = weights.load(weights_file(options.start, options), num_classes=count)
        if model.system != system:
            raise BadInput(f"--start: expected weights of {system}, got those of {model.system}")
        model = resized(model, size)
    else:
        model = run.build(num_classes=count)
    model = model.to(device)
    if options.compile:
        compile_blocks(model)
    how, kept = given(options, *FIT), paths.root() / "build/own"
    identity = f"{name} {how} {options.start} {images.classes} {len(images.train_labels)}"
    checkpoint = Checkpoint(kept / "checkpoints" / f"{name}.pt", identity)
    how |= run.training | {"checkpoint": checkpoint, "deadline": deadline}
    try:
        curve = fit(model, images, report=partial(tell, name, run.settings["epochs"]), **how)
    except Diverged as error:
        note(f"{name}: {error}")
        return 1
    if curve is None:
        note(f"{name}: stopped, or out of time; the same command goes on")
        return 3
    top1, _ = evaluate(model, images, precision=run.settings["precision"])
    path = kept / "weights" / f"{name}.safetensors"
    weights.save(model, path, classes=images.classes)
    checkpoint.delete()
    seen = f"top-1 {top1:.1f} % of {len(images.test_labels)} images that were held out"
    note(f"{name}: {seen}; {count} classes ({', '.join(images.classes):.200}); weights in {path}")
    return 0


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
    recipe, seed = options.recipe or "fair", options.seed or 0
    return weights_of(Run(name, options.profile, recipe, seed, changes))


def predict(options: argparse.Namespace) -> int:
    """The likeliest classes of files, and of all files in folders; 2 where some cannot be read."""
    whole("--batch", options.batch), whole("--top", options.top)
    model = weights.load(weights_file(options.model, options, options.changes))
    most = MOST_PIXELS if options.most_pixels is None else options.most_pixels
    model = model.to(data.resolve_device(options.device))
    wanted, status = [*_files(options.images)], 0
    for at in range(0, len(wanted), options.batch):
        pixels = {}
        for path in wanted[at : at + options.batch]:
            try:
                pixels[path] = read_image(path, model.size, most_pixels=most)
            except BadImage as error:
                print(f"vix: {error}", file=sys.stderr)
                status = 2
        told = weights.predict(model, [*pixels.values()], top=options.top)
        for path, best in zip(pixels, told, strict=True):
            if options.json:
                classes = [{"class": name, "probability": share} for name, share in best]
                print(json.dumps({"image": str(path), "classes": classes}))
                continue
            lines = [f"{100 * share:6.2f} %  {name}" for name, share in best]
            print(*([path] if len(wanted) > 1 else []), *lines, sep="\n")
    return status


def _files(given: list[Path]) -> Iterator[Path]:
    for path in given:
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        if path.is_dir():
            inside = [each for each in inside if each.name[0] != "." and not each.is_dir()]
        if not inside:
            raise BadInput(f"no images in {path}")
        yield from inside


def export(options: argparse.Namespace) -> None:
    """Write a trained model as ONNX."""
    model = weights.load(weights_file(options.model, options, options.changes))
    weights.export(model, options.out)
    print(f"{options.out}: images (any, 3, {model.size[0]}, {model.size[1]}) to logits of classes")
