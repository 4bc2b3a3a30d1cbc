"""Where things lie: read from the checkout or the package, written under the project's root."""

import os
from collections.abc import Callable
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
# None: installed from a wheel
CHECKOUT = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").exists() else None


def root() -> Path:
    """What is written to: VIXLIB_ROOT, else the checkout, else the working directory."""
    return Path(os.environ.get("VIXLIB_ROOT") or CHECKOUT or Path.cwd())


def shipped(name: str) -> Path:
    """A table that is read, such as paper.csv: of the checkout's figures/, else in the package."""
    return CHECKOUT / "figures" / name if CHECKOUT else PACKAGE / "paper" / name


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place, then move it there: never seen half-written; all may read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        write(part)
        part.chmod(0o644)  # safetensors lets only its owner read
        with part.open("rb") as written:
            os.fsync(written.fileno())  # some disks say only now that they are full
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
