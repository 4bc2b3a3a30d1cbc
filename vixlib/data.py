"""Datasets as uint8 tensors: scikit-learn's digits, CIFAR-10 and Tiny ImageNet.

Letters: n images, b of them in a batch, c channels, h rows, w columns.
"""

import os
import pickle
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from vixlib import paths
from vixlib.download import Source, find, verify
from vixlib.errors import BadInput, BadType, DataError, checked, extra, held, one_of, whole

PARTS = ("train_images", "train_labels", "test_images", "test_labels")
TRAIN_EACH, TEST_EACH = 500, 50  # images of a class in Tiny ImageNet


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images (n 3 h w) as uint8 and labels (n) as int64, for training and for testing."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    name: str

    def __post_init__(self):
        check_pixels(self.train_images), check_pixels(self.test_images)
        check_labels(self.train_labels, len(self.train_images), len(self.classes))
        check_labels(self.test_labels, len(self.test_images), len(self.classes))


@checked
def load(
    name: str,
    *,
    folder: str | Path | None = None,
    size: int | None = None,
    download: bool = True,
    device: str | torch.device = "cpu",
) -> Dataset:
    """The dataset of this name, resized to `size` rows and columns; DataError if it fails.

    "digits" come with scikit-learn; "cifar10" and "tiny-imagenet" are read from `folder`, else from
    the one that VIXLIB_DATA names, and from nowhere else; with neither from the project's data/,
    after a download if need be. Loaded once a process: do not write into the tensors.
    """
    one_of("dataset", name, SOURCES)
    resolve_device(device)
    folder = folder or os.environ.get("VIXLIB_DATA")
    root = Path(folder).expanduser() if folder else paths.root() / "data"
    return _load(name, root, size, download and not folder, str(device))


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """A device that can hold numbers, by default the GPU where there is one; else BadInput."""
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=found).item()
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"device {str(device)!r}: {str(error).splitlines()[0]}") from error
    return found


@lru_cache(maxsize=4)
def _load(name: str, root: Path, size: int | None, download: bool, device: str) -> Dataset:
    try:
        train, train_labels, test, test_labels, classes = SOURCES[name].read(root, download)
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot read or unpack {name} in {root}: {error}") from error
    try:
        train, test = (_upsample(images, size).to(device) for images in (train, test))
    except RuntimeError as error:
        raise BadInput(f"size: {size} does not fit in memory") from error
    train_labels, test_labels = train_labels.to(device), test_labels.to(device)
    return Dataset(train, train_labels, test, test_labels, classes, name)


def _upsample(images: Tensor, size: int | None) -> Tensor:
    if size is None or whole("size", size, least=images.shape[-1]) == images.shape[-1]:
        return images
    bilinear = torch.nn.Upsample(size=(size, size), mode="bilinear")
    # in pieces: all of CIFAR-10 as floats would fill a small machine
    return torch.cat([bilinear(piece.float()).round().byte() for piece in images.split(1000)])


def _digits(root: Path, download: bool) -> tuple:
    with extra("paper"):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

    raw = load_digits()
    grey = torch.from_numpy(raw.images).mul(255 / 16).round().byte()  # ink runs from 0 to 16
    images, labels = grey[:, None].repeat(1, 3, 1, 1), torch.from_numpy(raw.target).long()
    train, test = train_test_split(range(1797), test_size=360, stratify=labels, random_state=0)
    return images[train], labels[train], images[test], labels[test], SOURCES["digits"].classes


def _cifar10(root: Path, download: bool) -> tuple:
    from torchvision.datasets import CIFAR10  # here: its import takes seconds

    found = root
    if not any(root.glob("data_batch_*")):
        found = find(SOURCES["cifar10"], _untar, root, download)
    batches = [*CIFAR10.train_list, *CIFAR10.test_list]  # the test batch is the last
    for file, md5 in (*batches, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])):
        verify(found / file, md5)
    # only now may anything be unpickled: a pickle can run whatever its author likes
    raw = [pickle.loads((found / file).read_bytes(), encoding="latin1") for file, _ in batches]
    images = torch.cat([torch.from_numpy(batch["data"]) for batch in raw]).view(-1, 3, 32, 32)
    labels = torch.tensor([label for batch in raw for label in batch["labels"]])
    test = len(raw[-1]["labels"])
    classes = SOURCES["cifar10"].classes
    return images[:-test], labels[:-test], images[-test:], labels[-test:], classes


def _untar(archive: Path, into: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # since Python 3.11.4
        tar.extractall(into)


def _tiny_imagenet(root: Path, download: bool) -> tuple:
    """The official validation images, in the order of their annotations, are the test images."""
    kept = find(SOURCES["tiny-imagenet"], _decode, root, download)
    try:
        with safe_open(kept, "pt") as file:  # mapped, not copied
            tensors = [file.get_tensor(name) for name in PARTS]
            return *tensors, tuple(file.metadata()["classes"].split("\n"))
    except Exception as error:
        raise DataError(f"unreadable {kept}; delete it to make it anew: {error}") from error


def _decode(official: Path, into: Path) -> None:
    """Tiny ImageNet's archive, read in place, or the folder unpacked from it, as one file."""
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    name = "tiny-imagenet-200"
    official = official if official.is_dir() else zipfile.Path(official, f"{name}/")

    def table(name: str) -> dict[str, str]:  # the first two columns
        lines = (official / name).read_text(encoding="utf-8", errors="replace").splitlines()
        return {first: rest.split("\t")[0] for first, _, rest in (x.partition("\t") for x in lines)}

    labels = {wnid: i for i, wnid in enumerate(sorted(table("wnids.txt")))}
    words = {wnid: names.split(",")[0] for wnid, names in table("words.txt").items()}
    train = {f"train/{c}/images/{c}_{i}.JPEG": c for c in labels for i in range(TRAIN_EACH)}
    boxes = table("val/val_annotations.txt")
    test = {f"val/images/{name}": wnid for name, wnid in boxes.items() if wnid in labels}
    classes = len(SOURCES["tiny-imagenet"].classes)
    for what, got, expected in (
        ("classes in wnids.txt", len(labels), classes),
        ("of them in words.txt", len(labels.keys() & words), classes),
        ("images of them in val/val_annotations.txt", len(test), classes * TEST_EACH),
    ):
        if got != expected:
            raise DataError(f"{official} is incomplete: expected {expected} {what}, got {got}")
    tensors = []
    for files in (train, test):
        images = torch.empty(len(files), 3, 64, 64, dtype=torch.uint8)
        for i, file in enumerate(tqdm(files, "Tiny ImageNet", mininterval=2)):
            try:
                with (official / file).open("rb") as stream:  # some are grey
                    images[i] = pil_to_tensor(Image.open(stream).convert("RGB"))
            except Exception as error:
                raise DataError(f"unreadable image {official / file}: {error}") from error
        tensors += [images, torch.tensor([labels[wnid] for wnid in files.values()])]
    named = {"classes": "\n".join(words[wnid] for wnid in labels)}
    made = dict(zip(PARTS, tensors, strict=True))
    paths.atomic_write(into / f"{name}.safetensors", lambda path: save_file(made, path, named))


def _sources() -> dict[str, Source]:
    """sources.toml; where it has no names of classes, but their number, they are numbered."""
    found = {}
    for name, row in tomllib.loads((paths.PACKAGE / "sources.toml").read_text()).items():
        row["classes"] = row["classes"] or [f"class {i}" for i in range(row.pop("count"))]
        listed = {key: tuple(row.get(key, ())) for key in ("classes", "forms", "mirrors")}
        found[name] = Source(**row | listed, read=READERS[name])
    return found


READERS = {"digits": _digits, "cifar10": _cifar10, "tiny-imagenet": _tiny_imagenet}
SOURCES = _sources()


def check_pixels(images: Tensor) -> None:
    """BadType where images are not a tensor of bytes."""
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        got = getattr(images, "dtype", type(images).__name__)
        raise BadType(f"images: expected a tensor of torch.uint8, got {got}")


def check_labels(labels: Tensor, count: int, classes: int) -> None:
    """BadInput where labels are not as many classes' numbers as there are images."""
    whole("number of images", count)
    held("labels", labels, Tensor)
    if labels.shape != (count,) or labels.dtype != torch.int64:
        got = f"{tuple(labels.shape)} of {labels.dtype}"
        raise BadInput(f"labels: expected ({count},) of torch.int64, got {got}")
    low, high = labels.min().item(), labels.max().item()
    if low < 0 or high >= classes:
        raise BadInput(f"labels: expected 0 to {classes - 1}, got {low} to {high}")


def normalise(images: Tensor) -> Tensor:
    """uint8 images as floats in [-1, 1], as the paper does; any shape."""
    check_pixels(images)
    return (images.float() / 255 - 0.5) / 0.5


def augment(images: Tensor, generator: torch.Generator | None = None, padding: int = 4) -> Tensor:
    """Each uint8 image (b c h w) shifted by up to `padding` pixels, black outside, perhaps flipped.

    Shifts and flips are drawn for each image; equal generators give equal images.
    """
    whole("padding", padding, least=0)
    check_pixels(images), held("generator", generator, torch.Generator | None)
    b, c, h, w = images.shape
    here = images.device
    drawn_on = here if generator is None else generator.device
    draw = {"size": (b, 1), "generator": generator, "device": drawn_on}
    down, right = (torch.randint(2 * padding + 1, **draw).to(here) for _ in range(2))
    flip = torch.randint(2, **draw).to(here, torch.bool)
    column = torch.arange(w, device=here)
    rows = down + torch.arange(h, device=here)
    columns = right + torch.where(flip, column.flip(0), column)
    padded = F.pad(images, [padding] * 4)
    places = rows[:, :, None] * padded.shape[3] + columns[:, None]
    return padded.flatten(2).gather(2, places.view(b, 1, -1).expand(b, c, -1)).view(b, c, h, w)


@checked
def subset(
    dataset: Dataset, train: int | None = None, test: int | None = None, *, seed: int = 0
) -> Dataset:
    """The dataset with `train` and `test` images only; None keeps all. BadInput if out of range.

    The same images for the same seed, each class in its share (to within one where classes are of
    one size), in the dataset's order; a smaller subset lies within every larger one.
    """
    parts = {}
    for part, n in {"train": train, "test": test}.items():
        images, labels = getattr(dataset, f"{part}_images"), getattr(dataset, f"{part}_labels")
        if n is None:
            continue
        if whole(part, n) > len(labels):
            raise BadInput(f"{part}: expected at most {len(labels)} images, got {n}")
        index = _stratified(labels, seed)[:n].sort().values
        parts |= {f"{part}_images": images[index], f"{part}_labels": labels[index]}
    return replace(dataset, **parts)


@checked
def held_out(dataset: Dataset, images: int) -> Dataset:
    """The dataset with so many of its training images, always the same ones, as its test images.

    Each class has its share; they are no longer trained on. BadInput if none would be left.
    """
    if whole("images", images) >= len(dataset.train_labels):
        most = len(dataset.train_labels) - 1
        raise BadInput(f"images: expected at most {most} held out, got {images}")
    order = _stratified(dataset.train_labels)
    parts = {"train": order[images:].sort().values, "test": order[:images].sort().values}
    chosen = {f"{part}_images": dataset.train_images[i] for part, i in parts.items()}
    chosen |= {f"{part}_labels": dataset.train_labels[i] for part, i in parts.items()}
    return replace(dataset, **chosen)


def _stratified(labels: Tensor, seed: int = 0) -> Tensor:
    """A fixed order in which every beginning holds each class in its share."""
    here, labels = labels.device, labels.cpu()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled = labels[order]
    rank = F.one_hot(shuffled).cumsum(0).gather(1, shuffled[:, None]).squeeze(1)
    return order[(rank / shuffled.bincount()[shuffled]).argsort(stable=True)].to(here)
