"""Bad input is refused in one line that says what was expected and what came."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path


class BadInput(ValueError):
    """What a user passed cannot be used; the command line prints it as one line."""


class DataError(BadInput):
    """A dataset is missing, unreadable or not the official one."""


class RecordError(BadInput):
    """A record is unreadable or lacks what a record holds."""


class CheckpointError(BadInput):
    """A checkpoint is unreadable or belongs to another run."""


@dataclass
class Diverged(Exception):
    """Training met a loss, weights or scores that are not finite, first in this step (from 1).

    `checkpoint` is the last one with finite weights, None without; `curve` what was until then.
    """

    epoch: int
    step: int
    lr: float
    checkpoint: Path | None = None
    curve: list[dict] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"diverged in epoch {self.epoch}, step {self.step}, at learning rate {self.lr:g}; "
            f"last good checkpoint: {self.checkpoint or 'none'}"
        )


def whole(name: str, value: int, least: int = 1) -> int:
    """`value` if it is a whole number of at least `least`; else TypeError or BadInput."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected a whole number, got {value!r}")
    if value < least:
        raise BadInput(f"{name}: expected at least {least}, got {value}")
    return value


def one_of(name: str, value: str, legal: Iterable[str]) -> str:
    """`value` if it is one of the legal names; else BadInput that lists them."""
    legal = list(legal)
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a name, got {value!r}")
    if value not in legal:
        lower = {name.lower(): name for name in legal}
        near = difflib.get_close_matches(value.lower(), lower, n=1, cutoff=0.7)
        hint = f" (did you mean {lower[near[0]]}?)" if near else ""
        raise BadInput(f"unknown {name} {value!r}{hint}; legal: {', '.join(legal)}")
    return value
