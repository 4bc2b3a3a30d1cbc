"""Nothing is lost: checkpoints that notice damage, room on the disk, requests to stop."""

import hashlib
import io
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from vixlib.errors import CheckpointError, refused
from vixlib.paths import atomic_write

stopping = threading.Event()  # set: every training stops with a checkpoint, as at its deadline
GRACE = 4  # seconds from a signal to the end, whatever is under way
DIGEST = hashlib.sha256().digest_size
MORE = 2**20  # bytes for what is not a tensor, and for a record


class Checkpoint:
    """The state of one unfinished run in one file, written whole or not at all.

    `identity` says which run it is and `fingerprint` (logits of the untrained model) which code: a
    checkpoint of another run or of other code is refused, not trained over. The file ends with a
    SHA-256 of all before.
    """

    def __init__(self, path: Path, identity: str = "", fingerprint: Tensor | None = None):
        self.path, self.identity, self.fingerprint = Path(path), identity, fingerprint

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict) -> None:
        """Write it; OSError where the disk is full, and the file is as it was."""
        content = {"identity": self.identity, "fingerprint": self.fingerprint, "state": state}
        content |= {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        made = io.BytesIO()  # torch's own writer to a file says not why it failed
        torch.save(content, made)
        made.write(hashlib.sha256(made.getbuffer()).digest())
        atomic_write(self.path, lambda path: path.write_bytes(made.getbuffer()))

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict | None:
        """The saved state, with model and optimizer set to it; None where nothing was saved."""
        if not self.path.exists():
            return None
        remedy = "; delete it to begin again"
        with refused(CheckpointError, f"unreadable checkpoint {self.path}{remedy}", Exception):
            read = self.path.read_bytes()
            if hashlib.sha256(read[:-DIGEST]).digest() != read[-DIGEST:]:
                raise ValueError("its checksum is another")
            content = torch.load(io.BytesIO(read[:-DIGEST]), "cpu", weights_only=True)
            same = content["identity"] == self.identity
            if same and self.fingerprint is not None:
                same = torch.allclose(content["fingerprint"], self.fingerprint, atol=1e-3)
            if same:
                model.load_state_dict(content["model"])
                optimizer.load_state_dict(content["optimizer"])
        if not same:
            raise CheckpointError(f"checkpoint {self.path} is of another run or code{remedy}")
        return content["state"]

    def check_room(self, model: nn.Module) -> None:
        """OSError where it could not be written: the model and, of each number, AdamW's two."""
        tensors = model.state_dict().values()
        check_room(self.path.parent, 3 * sum(t.numel() * t.element_size() for t in tensors))

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)


def check_room(folder: Path, octets: int = 0) -> None:
    """OSError where so many bytes, and MORE, cannot be written in a folder, made if missing."""
    octets += MORE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # space, quota and the limit of a file at once
                os.posix_fallocate(file.fileno(), 0, octets)
    except OSError as error:
        wanted = f"{folder}: expected room for {octets / 2**20:.0f} MiB, got {error.strerror}"
        raise OSError(error.errno, wanted) from error


@contextmanager
def stoppable() -> Iterator[None]:
    """Within it SIGINT, SIGTERM and SIGHUP set `stopping`: trainings end with a checkpoint.

    KeyboardInterrupt when they have, GRACE seconds after the signal, or at a second one.
    """
    if threading.current_thread() is not threading.main_thread():  # no other hears signals
        yield
        return

    def ask(*_) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()
        late.start()

    late = threading.Timer(GRACE, os.kill, (os.getpid(), signal.SIGTERM))
    late.daemon = True
    numbers = [getattr(signal, name, signal.SIGINT) for name in ("SIGINT", "SIGTERM", "SIGHUP")]
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        signal.signal(number, signal.SIG_IGN if handler == signal.SIG_IGN else ask)  # as nohup has
    try:
        yield
        if stopping.is_set():
            raise KeyboardInterrupt
    finally:
        late.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
        stopping.clear()
