"""Datasets' files: found in a folder, downloaded from mirrors, held to their checksums."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.request import Request, urlopen

from tqdm import tqdm

from vixlib.errors import DataError

TIMEOUT = 30  # seconds of silence after which a mirror counts as dead


class Source(NamedTuple):
    """A dataset: its title, how it is read, and classes known before anything is read.

    `forms` are the names under which it may lie in a folder, the first as it is read, the second
    the official archive; `mirrors` serve byte-identical copies, the universities' own last: they
    are slow or dead at times.
    """

    title: str
    classes: tuple[str, ...]  # a Dataset has Tiny ImageNet's real names
    read: Callable[[Path, bool], tuple]
    forms: tuple[str, ...]
    mirrors: tuple[str, ...]
    md5: str = ""


def find(source: Source, unpack: Callable, root: Path, download: bool) -> Path:
    """The first form of a dataset in `root`: there, or made whole of a later one or a download."""
    title, forms = source.title, source.forms
    kept, archive = root / forms[0], forms[1]
    official = next((root / form for form in forms if (root / form).exists()), None)
    if official == kept:
        return kept
    if official is None and not download:
        looked = ", ".join(forms)
        raise DataError(f"no {title} in {root}: looked for {looked}; name its folder: --data DIR")
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix="unfinished-") as scratch:
        official = official or _download(source, Path(scratch, archive))
        if official.is_file():
            verify(official, source.md5)
        unpack(official, Path(scratch))
        try:
            return Path(scratch, forms[0]).rename(kept)
        except OSError:  # another process was first
            if not kept.exists():
                raise
            return kept


def verify(file: Path, md5: str) -> None:
    with file.open("rb") as stream:
        got = hashlib.file_digest(stream, "md5").hexdigest()
    if got != md5:
        raise DataError(f"{file} is not the official file: expected md5 {md5}, got {got}")


def _download(source: Source, archive: Path) -> Path:
    """The official archive from the first mirror that has it; DataError if none does."""
    failures = []
    for url in filter(None, (os.environ.get("VIXLIB_MIRROR"), *source.mirrors)):
        try:
            _fetch(url, archive)
            verify(archive, source.md5)
            return archive
        except (OSError, ValueError, HTTPException) as error:
            failures.append(f"{url}: {error}")
    causes = "; ".join(failures)
    raise DataError(
        f"{source.title} could not be downloaded; with a copy at hand: --data DIR ({causes})"
    )


def _fetch(url: str, file: Path) -> None:
    request = Request(url, headers={"User-Agent": "vixlib"})
    with urlopen(request, timeout=TIMEOUT) as source, file.open("wb") as target:
        total = int(source.headers.get("Content-Length") or 0) or None
        with tqdm.wrapattr(source, "read", total, desc=request.host, mininterval=2) as watched:
            shutil.copyfileobj(watched, target)
