"""Commands for one's own images: a folder of them as a dataset, predictions, export."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from vixlib import data, paths, weights
from vixlib.distributed import Team
from vixlib.errors import BadInput, whole
from vixlib.images import MOST_PIXELS, BadImage, read_image
from vixlib.paper.runs import Run
from vixlib.paper.training import note, weights_of


def holds_images(folder: Path) -> bool:
    """Whether a folder holds folders of images, and no dataset that has a name."""
    forms = {form.rstrip("/") for source in data.SOURCES.values() for form in source.forms}
    inside = [*folder.iterdir()] if folder.is_dir() else []
    named = any(each.name in forms or each.name.startswith("data_batch_") for each in inside)
    return not named and any(each.is_dir() and each.name[0] != "." for each in inside)


def runs(options: argparse.Namespace) -> tuple[list[Run], data.Dataset]:
    """A run of each system on a folder of images, and the images."""
    folder, recipe, seed = Path(options.data), options.recipe or "own", options.seed or 0
    first, *_ = [Run(name, "own", recipe, seed, options.changes) for name in options.systems]
    size = first.settings["image_size"]
    images = data.dataset(folder, size=size, seed=seed, device=data.resolve_device(options.device))
    count = len(images.classes)
    told = ("dataset", folder.resolve().name), ("num_classes", count), *options.changes
    shown = f"{len(images.train_labels)} images to train on, {len(images.test_labels)} held out"
    if Team().rank == 0:
        note(f"{folder}: {shown}, {count} classes ({', '.join(images.classes):.200})")
    return [Run(name, "own", recipe, seed, told) for name in options.systems], images


def weights_file(name: str, options: argparse.Namespace) -> Path:
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
    return weights_of(Run(name, options.profile, recipe, seed, options.changes))


def predict(options: argparse.Namespace) -> int:
    """The likeliest classes of files, and of all files in folders; 2 where some cannot be read."""
    whole("--batch", options.batch), whole("--top", options.top)
    model = weights.load(weights_file(options.model, options))
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
    model = weights.load(weights_file(options.model, options))
    weights.export(model, options.out)
    print(f"{options.out}: images (any, 3, {model.size[0]}, {model.size[1]}) to logits of classes")
