"""Trained models: saved with all that rebuilds them, loaded, asked about images, exported."""

import hashlib
import json
import sys
import warnings
from collections.abc import Iterable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vixlib.data import normalise
from vixlib.errors import BadInput, CheckpointError, checked, extra, one_of, refused
from vixlib.images import MOST_PIXELS, read_image
from vixlib.models.host import Host, resized
from vixlib.paths import PACKAGE, atomic_write
from vixlib.systems import SYSTEMS, build, trained

FORMAT = "vixlib 2"  # of the metadata
NORMALISATION = json.dumps({"mean": [0.5] * 3, "std": [0.5] * 3})  # of pixels from 0 to 1


@checked
def save(model: Host, path: str | Path, *, classes: Iterable = ()) -> None:
    """Write a model's weights and, as metadata, how `build` was called for it, as safetensors.

    Without names of `classes` they are those that it was loaded with, or numbers.
    """
    if not hasattr(model, "asked"):
        raise BadInput(f"model: expected one that build made, got {type(model).__name__}")
    count = model.asked["num_classes"]
    names = [*map(str, classes)] or [*getattr(model, "classes", map(str, range(count)))]
    if len(names) != count or any("\n" in name for name in names):
        raise BadInput(f"classes: expected {count} names of one line each, got {len(names)}")
    about = {"format": FORMAT, "system": model.system, "classes": "\n".join(names)}
    about |= {"size": json.dumps(model.size), "normalisation": NORMALISATION}
    about["options"] = json.dumps(model.asked, default=_told)
    state = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    about["sha256"] = _digest(state, about)
    atomic_write(Path(path), partial(save_file, state, metadata=about))


@checked
def load(path: str | Path, *, num_classes: int | None = None, **parts) -> Host:
    """The model that `save` wrote, in evaluation mode; it has `classes` and `system`.

    With another `num_classes` the layer that ends in them is fresh and the rest as it was. `parts`
    (attention=, mixer=, ...) are those of somebody's own. CheckpointError where the file is damaged
    or of something else.
    """
    state, about = _read(Path(path))
    names, size = about["classes"].split("\n"), tuple(json.loads(about["size"]))
    options = json.loads(about["options"], object_hook=_made)
    if "image_size" in parts:
        raise BadInput("image_size: weights have their own; `resized` stretches what load gives")
    if "attention" in parts:
        options.pop("mechanism", None)
    options |= {"num_classes": num_classes or len(names), "few_tokens": "softmax", **parts}
    for name, value in options.items():
        if isinstance(value, dict):
            wanted = f"say load(path, {name}=...)"
            raise BadInput(f"{path}: its {name} is {value['class']}, none of ours; {wanted}")
    model = build(about["system"], **options)
    model = model if size == model.size else resized(model, size)
    if len(names) != options["num_classes"]:
        own = model.state_dict()
        ends = [name for name in own.keys() & state if own[name].shape != state[name].shape]
        ends = [name for name in ends if own[name].shape[1:] == state[name].shape[1:]]
        state |= {name: own[name] for name in ends}
        names = map(str, range(options["num_classes"]))
    with refused(CheckpointError, f"{path} does not fit what it says it is of", RuntimeError):
        model.load_state_dict(state)
    model.classes = tuple(names)
    return model.eval()


@checked
def pretrained(name: str, *, num_classes: int = 10, image_size: int | tuple | None = None) -> Host:
    """The model of a system that was trained on CIFAR-10 and ships, as `load` gives it.

    Of 32 x 32 pixels in patches of 2, unless `image_size` stretches it; vixlib/pretrained/runs.json
    names the runs, whose records say how far they come. BadInput lists the systems.
    """
    kept = {path.stem: path for path in sorted((PACKAGE / "pretrained").glob("*.safetensors"))}
    model = load(kept[one_of("pretrained system", name, kept)], num_classes=num_classes)
    return model if image_size is None else resized(model, image_size)


trained.append(pretrained)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with refused(CheckpointError, f"unreadable weights {path}", Exception):
        state = load_file(path)
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
    if about.get("format") != FORMAT or about.get("system") not in SYSTEMS:
        raise CheckpointError(f"unreadable weights {path}: not written by vixlib.save")
    if about.get("normalisation", NORMALISATION) != NORMALISATION:
        raise CheckpointError(f"{path}: expected pixels normalised by {NORMALISATION}")
    if about.pop("sha256", "") != _digest(state, about):
        raise CheckpointError(f"damaged weights {path}: their checksum is another")
    return state, about


def _digest(state: dict[str, Tensor], about: dict[str, str]) -> str:
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(state):
        found.update(f"{name} {tuple(state[name].shape)} {state[name].dtype}".encode())
        found.update(state[name].flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def _told(part: object) -> dict:
    """What JSON cannot hold: a class or function by its name, with the options of a partial."""
    kind, options = getattr(part, "func", part), getattr(part, "keywords", {})
    if not hasattr(kind, "__qualname__") or getattr(part, "args", ()):
        wanted = "model: cannot write down how it was built: expected JSON or a class"
        raise BadInput(f"{wanted}, got {type(part).__name__}")
    return {"class": f"{kind.__module__}:{kind.__qualname__}", "options": options}


def _made(told: dict) -> object:
    """Options with tuples for JSON's lists; a class of ours or torch's, or a partial of it."""
    module, _, name = str(told.get("class")).partition(":")
    known = sys.modules.get(module) if module.startswith(("vixlib.", "torch.nn.")) else None
    kind = getattr(known, name, None)
    if isinstance(kind, type) and issubclass(kind, nn.Module):
        return partial(kind, **told["options"]) if told["options"] else kind
    return {key: tuple(it) if isinstance(it, list) else it for key, it in told.items()}


@checked
@torch.no_grad()
def predict(
    model: Host | str | Path,
    images: str | Path | Image.Image | Tensor | Sequence,
    *,
    top: int = 5,
    batch: int = 64,
    most_pixels: int = MOST_PIXELS,
) -> list[list[tuple[str, float]]]:
    """The likeliest classes of each image with their probabilities, the likeliest first.

    `model` is one of ours or a file that `save` wrote; images are files, pictures of PIL or tensors
    (3 h w), one or many, made to fit as `read_image` says. BadInput where a probability is not
    finite.
    """
    model = load(model) if isinstance(model, str | Path) else model
    one = isinstance(images, str | Path | Image.Image) or getattr(images, "ndim", 4) < 4
    images, found, was_training = [images] if one else [*images], [], model.training
    here, model = next(model.parameters()), model.eval()
    try:
        for at in range(0, len(images), batch):
            some = [read_image(x, model.size, most_pixels=most_pixels) for x in images[at:][:batch]]
            shares = model(normalise(torch.stack(some)).to(here)).float().softmax(-1)
            if not shares.isfinite().all():
                raise BadInput(f"model: probabilities are not finite, in images {at} and on")
            names = [*map(str, getattr(model, "classes", range(shares.shape[1])))]
            for row in shares.tolist():
                ranked = sorted(zip(names, row, strict=True), key=lambda pair: -pair[1])
                found.append(ranked[:top])
    finally:
        model.train(was_training)
    return found


@checked
def export(model: Host, path: str | Path) -> None:
    """Write a model as ONNX: `images` (any batch, 3 H W), normalised, to `logits`."""
    with extra("export"):
        import onnxscript  # noqa: F401  what torch's exporter needs
    batch, copy = {"images": {0: torch.export.Dim("batch")}}, deepcopy(model).cpu().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch's exporter about torch
        images = torch.zeros(2, 3, *model.size)
        how = {"dynamo": True, "output_names": ["logits"], "verbose": False}
        made = torch.onnx.export(copy, (images,), dynamic_shapes=batch, **how)
    names = "\n".join(getattr(model, "classes", ()))
    made.model.metadata_props.update(classes=names, normalisation=NORMALISATION)
    atomic_write(Path(path), made.save)
