"""Datasets by name, or of one's own images: as uint8 tensors, or read as they are wanted.

Letters: n images, b of them in a batch, c channels, h rows, w columns.
"""

import inspect
import math
import operator
import os
import pickle
import shutil
import tomllib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data import Dataset as Pairs
from tqdm import tqdm

from vixlib import paths
from vixlib.download import Source, find, verify
from vixlib.errors import BadInput, BadType, DataError, checked, extra, held, one_of, refused, whole
from vixlib.images import MOST_PIXELS, Size, read_image

TRAIN_EACH, TEST_EACH = 500, 50  # images of a class in Tiny ImageNet


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images (n 3 h w) of uint8 that are read whenever they are wanted, since all would not fit.

    `source` holds pairs (image, label) and `index` says which of them; a part is taken as of a
    tensor. `options` are read_image's, after which all must have the `size`; so many `workers`
    read beside this process, or it does.
    """

    source: Sequence
    index: Tensor
    size: Size
    workers: int
    options: dict

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.index), 3, *self.size

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, at: int | slice | Tensor) -> "tuple[Tensor, int, str] | Pictures":
        """A part; or an image with its label and nothing, or with what is wrong with it."""
        if not isinstance(at, int):
            return replace(self, index=self.index[at])
        at = int(self.index[at])
        try:
            image, label = self.source[at]
            pixels = read_image(image, **self.options)
            if pixels.shape[1:] != self.size:
                name = f"image {at}" if isinstance(image, Tensor | Image.Image) else image
                wanted = f"expected {self.size}, as the first, or a size to scale to"
                raise BadInput(f"{name}: {wanted}, got {tuple(pixels.shape[1:])}")
            return pixels, whole("label", operator.index(label), least=0), ""
        except Exception as error:  # of a Dataset of somebody's own, any
            said = "" if isinstance(error, BadInput) else f"image {at}: {type(error).__name__}: "
            return torch.zeros(3, *self.size, dtype=torch.uint8), 0, f"{said}{error}"

    def batches(self, places: Iterable[Tensor]) -> DataLoader:
        """Pixels (b 3 h w), labels (b) and what is wrong, of each list of places.

        torch's loader; it draws nothing of the global generator.
        """
        options = {"num_workers": self.workers, "generator": torch.Generator()}
        return DataLoader(self, batch_sampler=[some.tolist() for some in places], **options)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images (n 3 h w) as uint8 and labels (n) as int64, for training and for testing.

    `skipped` says which images of a folder could not be read, and why.
    """

    train_images: Tensor | Pictures
    train_labels: Tensor
    test_images: Tensor | Pictures
    test_labels: Tensor
    classes: tuple[str, ...]
    name: str
    skipped: tuple[str, ...] = ()

    def __post_init__(self):
        test = self.test_images, self.test_labels
        for images, labels in ((self.train_images, self.train_labels), test):
            if not isinstance(images, Pictures):
                check_pixels(images)
            check_labels(labels, len(images), len(self.classes))


def batches(
    images: Tensor | Pictures, labels: Tensor, places: Iterable[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (b 3 h w) and labels (b) at each of some lists of places, in their order."""
    if isinstance(images, Tensor):
        yield from ((images[some], labels[some]) for some in places)
        return
    for some, (pixels, _, said) in zip(places, images.batches(places), strict=True):
        if any(said):
            raise DataError("; ".join(filter(None, said)))
        yield pixels.to(labels.device), labels[some]


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

    "digits" come with scikit-learn; the others of sources.toml, and sets of torchvision by the name
    of their class, are read from `folder`, else from the one that VIXLIB_DATA names, and from
    nowhere else; with neither from the project's data/, after a download if need be. Loaded once a
    process: do not write into the tensors.
    """
    resolve_device(device)
    folder = folder or os.environ.get("VIXLIB_DATA")
    root = Path(folder).expanduser() if folder else paths.root() / "data"
    return _load(name, root, size, download and not folder, str(device))


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """A device that can hold numbers, by default the GPU where there is one; else BadInput."""
    with refused(BadInput, f"device {str(device)!r}", RuntimeError, AssertionError):
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=found).item()
    return found


@lru_cache(maxsize=4)
def _load(name: str, root: Path, size: int | None, download: bool, device: str) -> Dataset:
    source = SOURCES.get(name) or Source(name, kind=name)
    if source.read is None:
        parts = _of_torchvision(source, root, download)
        return replace(dataset(parts, size=size, device=device), name=name)
    with refused(DataError, f"cannot read or unpack {name} in {root}", OSError):
        *tensors, classes = source.read(source, root, download)
    with refused(BadInput, f"size: {size} does not fit in memory", RuntimeError):
        tensors[::2] = [_upsample(images, size) for images in tensors[::2]]
        return Dataset(*(tensor.to(device) for tensor in tensors), tuple(classes), name)


def _upsample(images: Tensor, size: int | None) -> Tensor:
    if size is None or whole("size", size, least=images.shape[-1]) == images.shape[-1]:
        return images
    bilinear = torch.nn.Upsample(size=(size, size), mode="bilinear")
    # in pieces: all of CIFAR-10 as floats would fill a small machine
    return torch.cat([bilinear(piece.float()).round().byte() for piece in images.split(1000)])


def _digits(source: Source, root: Path, download: bool) -> tuple:
    with extra("paper"):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

    raw = load_digits()
    grey = torch.from_numpy(raw.images).mul(255 / 16).round().byte()  # ink runs from 0 to 16
    images, labels = grey[:, None].repeat(1, 3, 1, 1), torch.from_numpy(raw.target).long()
    train, test = train_test_split(range(1797), test_size=360, stratify=labels, random_state=0)
    return images[train], labels[train], images[test], labels[test], source.classes


def _cifar(source: Source, root: Path, download: bool) -> tuple:
    from torchvision import datasets  # here: its import takes seconds

    kind, found = getattr(datasets, source.kind), root
    files = dict([*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])])
    if not any((root / file).is_file() for file in files):
        found = find(source, shutil.unpack_archive, root, download)
    for file, md5 in files.items():
        verify(found / file, md5)
    # only now may anything be unpickled: a pickle can run whatever its author likes
    *raw, meta = (pickle.loads((found / file).read_bytes(), encoding="latin1") for file in files)
    images = torch.cat([torch.from_numpy(batch["data"]) for batch in raw]).view(-1, 3, 32, 32)
    known = [batch.get("labels") or batch["fine_labels"] for batch in raw]
    labels, test = torch.cat([*map(torch.tensor, known)]), len(known[-1])  # the last batch
    return images[:-test], labels[:-test], images[-test:], labels[-test:], meta[kind.meta["key"]]


def _tiny(source: Source, root: Path, download: bool) -> tuple:
    """Tiny ImageNet; its validation images, in the order of their annotations, are for testing."""

    def unzip(archive: Path, into: Path) -> None:
        shutil.unpack_archive(archive, into)
        (into / "tiny-imagenet-200").rename(into / source.forms[0])

    def table(name: str) -> dict[str, str]:  # the first two columns
        lines = (found / name).read_text(encoding="utf-8", errors="replace").splitlines()
        return dict((*line.split("\t"), "")[:2] for line in lines)

    found = find(source, unzip, root, download)
    labels = {wnid: i for i, wnid in enumerate(sorted(table("wnids.txt")))}
    words, boxes = table("words.txt"), table("val/val_annotations.txt")
    train = {f"train/{c}/images/{c}_{i}.JPEG": c for c in labels for i in range(TRAIN_EACH)}
    test = {f"val/images/{name}": wnid for name, wnid in boxes.items() if wnid in labels}
    classes = len(source.classes)
    for what, got, expected in (
        ("classes in wnids.txt", len(labels), classes),
        ("of them in words.txt", len(labels.keys() & words), classes),
        ("images of them in val/val_annotations.txt", len(test), classes * TEST_EACH),
    ):
        if got != expected:
            raise DataError(f"{found} is incomplete: expected {expected} {what}, got {got}")
    tensors = []
    for files in (train, test):
        pairs = [(str(found / name), labels[wnid]) for name, wnid in files.items()]
        tensors += _read(pairs, None, math.inf, None, most=0)[:2]
    return *tensors, [words[wnid].split(",")[0] for wnid in labels]


def _of_torchvision(source: Source, root: Path, download: bool) -> tuple[Pairs, ...]:
    """A set of torchvision's in two parts, as its class reads it."""
    from torchvision import datasets

    if source.kind not in datasets.__all__:
        one_of("dataset", source.kind, SOURCES)
    kind = getattr(datasets, source.kind)
    known = inspect.signature(kind).parameters
    part, values = ("train", (True, False)) if "train" in known else ("split", ("train", "test"))
    more = {"download": download} if "download" in known else {}
    with refused(DataError, f"no {source.title} in {root}", Exception):
        return tuple(kind(root, **{part: value}, **more) for value in values)


READERS = {"digits": _digits, "cifar10": _cifar, "cifar100": _cifar, "tiny-imagenet": _tiny}
SOURCES = {}
for _name, _row in tomllib.loads((paths.PACKAGE / "sources.toml").read_text()).items():
    # where the archive alone has the names of classes, they are numbered
    _classes = _row.pop("classes", None) or [f"class {i}" for i in range(_row.pop("count"))]
    SOURCES[_name] = Source(classes=tuple(_classes), read=READERS.get(_name), **_row)


# ---- one's own images ----


@checked
def dataset(
    source: Dataset | Pairs | tuple | str | Path,
    *,
    size: int | tuple | None = None,
    test_share: float = 0.2,
    seed: int = 0,
    gigabytes: float = 2.0,
    workers: int | None = None,
    most_pixels: int = MOST_PIXELS,
    device: str | torch.device = "cpu",
) -> Dataset:
    """The images of a folder, of a torch Dataset of pairs (image, label), or of tensors.

    A folder holds train/ and val/ or test/, each with a folder a class, or the folders of classes
    alone. A tuple is of two torch Datasets, of images and labels, or of both for training and then
    for testing. Where nothing is for testing, `test_share` of each class is, drawn by `seed`. Every
    image becomes pixels of `size` as `read_image` says; without one all must have the same. What
    cannot be read is skipped and listed with a warning, up to 1 % of all; then DataError. All are
    read once; where they fill more than so many `gigabytes` they are read again in each epoch, by
    `workers` processes (None: one a core for 1,000 images and more).
    """
    if isinstance(source, Dataset):
        return source
    size = (size, size) if isinstance(size, int) else size
    if size is not None and len([whole("size", side) for side in size]) != 2:
        raise BadInput(f"size: expected an int or (height, width), got {size}")
    folder = isinstance(source, str | Path)
    name = Path(source).resolve().name if folder else "own images"
    parts = folder_parts(Path(source).expanduser()) if folder else _parts(source)
    room, read, skipped = int(gigabytes * 1e9) // len(parts), [], []
    for pairs, _, top in parts:
        images, labels, bad = _read(pairs, size, room, workers, within=top, most_pixels=most_pixels)
        size, skipped = images.shape[2:], [*skipped, *bad]
        read += [images.to(device) if isinstance(images, Tensor) else images, labels.to(device)]
    if skipped:
        warnings.warn(f"{name}: skipped {_listed(skipped)}", stacklevel=3)
    classes = tuple(map(str, parts[0][1] or range(1 + int(torch.cat(read[1::2]).max()))))
    seen = {*read[1].tolist()}
    if missing := [name for number, name in enumerate(classes) if number not in seen]:
        raise DataError(f"{name}: no image to train on of class {', '.join(missing):.200}")
    found = Dataset(*read, *read[: 4 - len(read)], classes, name, tuple(skipped))
    share = max(1, round(test_share * len(read[1])))
    return held_out(found, share, seed=seed) if len(parts) == 1 else found


# pairs (image, label), for training or for testing, their classes, and where all files must be
Part = tuple[Sequence, Sequence[str], str | Path | None]


def folder_parts(root: Path) -> list[Part]:
    """The files of a folder with their classes, for training and perhaps for testing."""
    inside = _folders(root)
    test = [inside[name] for name in ("val", "test") if name in inside][:1]
    split = "train" in inside and (test or len(inside) == 1)
    parts = [inside["train"], *test] if split else [root]
    classes = sorted({name for part in parts for name in _folders(part)})
    if len(classes) < 2:
        wanted = "expected a folder for each of two classes or more"
        raise DataError(f"{root}: {wanted}, got {', '.join(classes) or 'none'}")
    found = []
    for part in parts:
        files = [
            (str(path), label)
            for label, name in enumerate(classes)
            for path in sorted((part / name).rglob("*"))
            if path.name[0] != "." and (path.is_symlink() or not path.is_dir())
        ]
        if not files:
            raise DataError(f"no images in {part}")
        found.append((files, classes, root))
    return found


def _folders(root: Path) -> dict[str, Path]:
    with refused(DataError, f"no folder of images in {root}", OSError):
        return {p.name: p for p in root.iterdir() if p.is_dir() and p.name[0] != "."}


def _parts(source: Pairs | tuple) -> list[Part]:
    """One or two torch Datasets; an ImageFolder as its files, which its loader would not turn."""
    from torchvision.datasets import DatasetFolder, folder

    given = source if isinstance(source, tuple) else (source,)
    if all(isinstance(each, Tensor) for each in given):
        lengths = [len(each) for each in given]
        if lengths[::2] != lengths[1::2]:
            raise BadInput(f"data: expected labels for each tensor of images, got {lengths}")
        given = [TensorDataset(*given[at : at + 2]) for at in range(0, len(given), 2)]
    if len(given) not in (1, 2) or not all(isinstance(each, Pairs) for each in given):
        wanted = "a folder, one or two torch Datasets, or two or four tensors"
        got = ", ".join(type(each).__name__ for each in given)
        raise BadType(f"data: expected {wanted}, got {got or 'nothing'}")
    found = []
    for each in given:
        plain = isinstance(each, DatasetFolder) and each.loader is folder.default_loader
        pairs = each.samples if plain and each.transforms is None else each
        found.append((pairs, getattr(each, "classes", ()), getattr(each, "root", None)))
    return found


def _read(
    pairs: Sequence, size: Size | None, room: float, workers: int | None, most=0.01, **options
) -> tuple[Tensor | Pictures, Tensor, list[str]]:
    """Images and labels of one part, all tried once, and what was wrong with those left out.

    DataError if they are more than the share `most`.
    """
    if not hasattr(pairs, "__len__"):
        raise BadType(f"data: expected Datasets of a known length, got {type(pairs).__name__}")
    count = whole("number of images", len(pairs))
    if isinstance(pairs, TensorDataset) and pairs.tensors[0].dtype == torch.uint8:
        images, labels = pairs.tensors
        numbers = labels.dtype == torch.int64 and labels.ndim == 1 and labels.min() >= 0
        if numbers and images.shape[1:] == (3, *(size or images.shape[2:])):  # as they are
            return images, labels, []
    if isinstance(pairs, list):
        pairs = np.rec.fromrecords(pairs)  # of Python's own objects each worker would make copies
    options["size"] = size
    fixed = size or tuple(read_image(pairs[0][0], **options).shape[1:])
    workers = workers or (os.cpu_count() if count >= 1000 else 1)
    images = Pictures(pairs, torch.arange(count), fixed, workers if workers > 1 else 0, options)
    tried = images.batches(images.index.split(64))
    labels, said = [], []
    if math.prod(images.shape) <= room:
        images = torch.empty(images.shape, dtype=torch.uint8)
    for pixels, truth, wrong in tqdm(tried, "images", disable=None, leave=False, mininterval=1):
        if isinstance(images, Tensor):
            images[len(said) :][: len(truth)] = pixels
        labels.append(truth)
        said += wrong
    failed = [text for text in said if text]
    if len(failed) > most * count:
        raise DataError(f"of {count} images {_listed(failed)}")
    labels, good = torch.cat(labels), [i for i, text in enumerate(said) if not text]
    return (images[good], labels[good], failed) if failed else (images, labels, [])


def _listed(failed: list[str]) -> str:
    """What could not be read, in a line."""
    more = f"; and {len(failed) - 10} more" * (len(failed) > 10)
    return f"{len(failed)} that cannot be read: {'; '.join(failed[:10])}{more}"


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
        if n is not None:
            images, labels = getattr(dataset, f"{part}_images"), getattr(dataset, f"{part}_labels")
            kept, _ = _drawn(part, n, labels, len(labels), seed)
            parts |= {f"{part}_images": images[kept], f"{part}_labels": labels[kept]}
    return replace(dataset, **parts)


@checked
def held_out(dataset: Dataset, images: int, *, seed: int = 0) -> Dataset:
    """The dataset with so many of its training images, the same for a seed, as its test images.

    Each class has its share; they are no longer trained on. BadInput if none would be left.
    """
    pixels, labels = dataset.train_images, dataset.train_labels
    held, rest = _drawn("images", images, labels, len(labels) - 1, seed)
    kept = {"train_images": pixels[rest], "train_labels": labels[rest]}
    return replace(dataset, **kept, test_images=pixels[held], test_labels=labels[held])


def _drawn(name: str, n: int, labels: Tensor, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """The places of `n` images, each class in its share, and of all others, in their order."""
    if whole(name, n) > most:
        raise BadInput(f"{name}: expected at most {most} images, got {n}")
    order = _stratified(labels, seed)
    return order[:n].sort().values, order[n:].sort().values


def _stratified(labels: Tensor, seed: int = 0) -> Tensor:
    """A fixed order in which every beginning holds each class in its share."""
    here, labels = labels.device, labels.cpu()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled = labels[order]
    by_class, counts, rank = (
        shuffled.argsort(stable=True),
        shuffled.bincount(),
        torch.empty_like(order),
    )
    rank[by_class] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[shuffled[by_class]] + 1
    return order[(rank / counts[shuffled]).argsort(stable=True)].to(here)
