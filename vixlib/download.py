"""Datasets' files: found in a folder, downloaded from mirrors, held to their checksums."""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock
from tqdm import tqdm

from vixlib import paths
from vixlib.checkpoint import check_room
from vixlib.errors import DataError

TIMEOUT = 30  # seconds of silence after which a connection counts as dead
LIMIT = 3600  # seconds that a mirror has for a file, however often it is asked
TRIES = 3  # connections to a mirror, each for what is missing


class Source(NamedTuple):
    """A dataset: its title, how it is read, and classes known before anything is read.

    `forms` are the names under which it may lie in a folder, the first as it is read, the second
    the official archive; `mirrors` serve byte-identical copies, the universities' own last: they
    are slow or dead at times. `kind` is the class of torchvision that knows it; without `read`
    that class reads it.
    """

    title: str
    classes: tuple[str, ...] = ()  # a Dataset has Tiny ImageNet's real names
    read: Callable[["Source", Path, bool], tuple] | None = None
    forms: tuple[str, ...] = ()
    mirrors: tuple[str, ...] = ()
    md5: str = ""
    size: int = 0  # of the archive, in bytes
    kind: str = ""


def find(source: Source, unpack: Callable, root: Path, download: bool) -> Path:
    """A dataset's folder in `root`, perhaps just unpacked from the archive there or a download.

    That is made by one process at a time, in the project's data/ where `root` is read-only.
    """
    forms, archive = source.forms, source.forms[1]
    official = next((root / form for form in forms if (root / form).exists()), None)
    if official and official.name != archive:
        return official
    if official is None and not download:
        looked = f"looked for {', '.join(forms)}; name its folder: --data DIR"
        raise DataError(f"no {source.title} in {root}: {looked}")
    if official:
        verify(official, source.md5, source.size)
        root = root if os.access(root, os.W_OK) else paths.root() / "data"
    check_room(root, source.size)
    kept, lock, prefix = root / forms[0], root / f".{archive}.lock", f"unfinished-{archive}-"
    with FileLock(lock):
        try:
            for left in root.glob(f"{prefix}*"):  # by a process that was killed
                shutil.rmtree(left)
            if kept.exists():  # by now
                return kept
            with tempfile.TemporaryDirectory(dir=root, prefix=prefix) as scratch:
                unpack(official or _download(source, Path(scratch, archive)), Path(scratch))
                if not kept.exists():  # by a process that holds no lock
                    Path(scratch, forms[0]).rename(kept)
                return kept
        finally:
            lock.unlink(missing_ok=True)


def verify(file: Path, md5: str, size: int = 0) -> None:
    """DataError where a file is cut short, its size being known, or has another checksum."""
    if file.stat().st_size < size:
        raise DataError(f"{file} is truncated: {file.stat().st_size} of {size} bytes")
    with file.open("rb") as stream:
        got = hashlib.file_digest(stream, "md5").hexdigest()
    if got != md5:
        raise DataError(f"{file} is not the official file: expected md5 {md5}, got {got}")


def _download(source: Source, archive: Path) -> Path:
    """The official archive from the first mirror that has it, over TRIES connections if they break.

    DataError if none has.
    """
    failures = {}
    for url in filter(None, (os.environ.get("VIXLIB_MIRROR"), *source.mirrors)):
        end = time.monotonic() + LIMIT
        for _ in range(TRIES):
            try:
                _receive(url, archive, source.size, end)
                verify(archive, source.md5)
                return archive
            except (OSError, ValueError, HTTPException) as error:
                failures[url] = f"{url}: {' '.join(str(error).split())}"
                if isinstance(error, HTTPError | ValueError):  # as it will be next time
                    break
        archive.unlink(missing_ok=True)  # the next mirror goes on with nothing of it
    wanted = f"{source.title} could not be downloaded; with a copy at hand: --data DIR"
    raise DataError(f"{wanted} ({'; '.join(failures.values())})")


def _receive(url: str, file: Path, size: int, end: float) -> None:
    """What is missing of a file, until `end`. OSError: truncated, silent; ValueError: another."""
    have = file.stat().st_size if file.exists() else 0
    request = Request(url, headers={"User-Agent": "vixlib", "Range": f"bytes={have}-"})
    with urlopen(request, timeout=TIMEOUT) as reply:
        if not reply.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0
        announced = have + int(reply.headers.get("Content-Length") or size - have)
        with (
            file.open("ab" if have else "wb") as target,
            tqdm(total=size, initial=have, desc=request.host, unit="B", mininterval=2) as bar,
        ):
            while have < announced == size and (piece := reply.read1(2**16)):
                target.write(piece[: size - have])
                have += len(piece)
                bar.update(len(piece))
                if time.monotonic() > end:
                    raise OSError(f"not whole after {LIMIT} s: {have} of {size} bytes")
    if max(have, announced) > size or announced < size:
        raise ValueError(f"another file: expected {size} bytes, got {max(have, announced)}")
    if have < size:
        raise OSError(f"truncated: {have} of {size} bytes")
