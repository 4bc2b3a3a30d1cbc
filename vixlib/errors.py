"""Bad input is refused in one line that says what was expected and what came."""

import difflib
import functools
import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import NoneType, UnionType
from typing import get_args, get_origin


class BadInput(ValueError):
    """What a user passed cannot be used; the command line prints it as one line."""


class BadType(BadInput, TypeError):
    """What a user passed is of another type than what was asked for."""


class DataError(BadInput):
    """A dataset is missing, unreadable or not the official one."""


class RunError(BadInput):
    """What concerns one run alone: others of a queue go on."""


class RecordError(RunError):
    """A record is unreadable or lacks what a record holds."""


class CheckpointError(RunError):
    """A checkpoint is unreadable or belongs to another run."""


class OutOfMemory(RunError, MemoryError):
    """The memory of the machine, or of its GPU, does not suffice for what was asked."""


class MissingExtra(BadInput, ImportError):
    """A package that an extra of vixlib brings is not installed."""


class Diverged(Exception):
    """Training met a loss, weights or scores that are not finite, first in this step (from 1).

    `checkpoint` is the last one with finite weights, None without; `curve` what was until then.
    """

    def __init__(
        self, epoch: int, step: int, lr: float, checkpoint: Path | None = None, curve: Sequence = ()
    ):
        where = f"epoch {epoch}, step {step}, at learning rate {lr:g}"
        super().__init__(f"diverged in {where}; last good checkpoint: {checkpoint or 'none'}")
        self.epoch, self.step, self.lr = epoch, step, lr
        self.checkpoint, self.curve = checkpoint, curve


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Imports of what an extra brings: MissingExtra says in one line how to install it."""
    try:
        yield
    except ImportError as error:
        missing = error.name or str(error)
        raise MissingExtra(f"{missing} is missing: pip install 'vixlib[{name}]'") from error


@contextmanager
def refused(kind: type[BadInput], what: str, *errors: type[Exception]) -> Iterator[None]:
    """What others raise, if it is one of these `errors`, as a `kind` in one line after `what`."""
    try:
        yield
    except errors as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise kind(f"{what}: {said:.300}") from error


@contextmanager
def enough_memory(batch: int, tokens: int = 0) -> Iterator[None]:
    """Steps that need memory: OutOfMemory says in one line how large they were, what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's are RuntimeErrors
        known = isinstance(error, MemoryError) or re.search("out of memory|allocate", str(error))
        if not known or isinstance(error, OutOfMemory):
            raise
        of = f"batch {batch}, {tokens} tokens an image" if tokens else f"batch {batch}"
        less = "batch, tokens (by a larger patch_size)" if tokens else "batch"
        raise OutOfMemory(f"out of memory at {of}: lower {less} or what runs beside it") from error


def whole(name: str, value: int, least: int = 1) -> int:
    """`value` if it is a whole number of at least `least`; else BadType or BadInput."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadType(f"{name}: expected a whole number, got {_shown(value)}")
    if value < least:
        raise BadInput(f"{name}: expected at least {least}, got {value}")
    if value >= 2**31:  # beyond, seeds and sizes overflow
        raise BadInput(f"{name}: expected less than 2**31, got {value}")
    return value


def number(name: str, value: float, below: float = math.inf) -> float:
    """`value` if it is a number, at least 0 and less than `below`; else BadType or BadInput."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadType(f"{name}: expected a number, got {_shown(value)}")
    if not 0 <= value < below:
        raise BadInput(f"{name}: expected at least 0 and less than {below}, got {value}")
    return value


def one_of(name: str, value: str, legal: Iterable[str], kind: type[BadInput] = BadInput) -> str:
    """`value` if it is one of the legal names; else BadType, or a `kind` that lists them."""
    legal = list(legal)
    if not isinstance(value, str):
        raise BadType(f"{name}: expected a name, got {_shown(value)}")
    if value not in legal:
        lower = {name.lower(): name for name in legal}
        near = difflib.get_close_matches(value.lower(), lower, n=1, cutoff=0.7)
        hint = f" (did you mean {lower[near[0]]}?)" if near else ""
        raise kind(f"unknown {name} {value!r}{hint}; legal: {', '.join(legal)}")
    return value


def equally_long(**lists: Sequence) -> None:
    """BadInput if lists do not all have a value for each stage of a host."""
    if len({len(each) for each in lists.values()}) > 1:
        got = ", ".join(f"{len(each)} {name}" for name, each in lists.items())
        raise BadInput(f"stages: expected as many of each, got {got}")


def _shown(value: object) -> str:
    """A value in an error's one line, its beginning if it is long."""
    return f"{' '.join(repr(value).split()):.80}"


def held(name: str, value: object, kind: object, default: object = None) -> None:
    """BadType or BadInput where a value does not keep to its annotation, if it has one.

    int: whole, from 1, or from 0 where the default is; float: from 0, finite unless the default is
    not; Sequence[int]: one or more such; of any other class: an instance, and no string unless it
    says so.
    """
    options = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if value is None and NoneType in options:
        return
    kinds = tuple(get_origin(each) or each for each in options if each is not NoneType)
    if kinds == (int,):
        whole(name, value, least=0 if default == 0 else 1)
    elif kinds == (float,):
        value == default == math.inf or number(name, value)
    elif inspect.Parameter.empty not in kinds:
        if not isinstance(value, kinds) or (isinstance(value, str) and str not in kinds):
            names = " or ".join(each.__name__ for each in kinds)
            raise BadType(f"{name}: expected {names}, got {_shown(value)}")
        if kind == Sequence[int]:
            whole(f"length of {name}", len(value))
        for each in value if kinds in ((Sequence,), (list,)) else ():
            held(name, each, *get_args(options[0]))


def checked(function: Callable) -> Callable:
    """The function, every argument of a call held to its annotation; legal options are listed."""
    signature, title = inspect.signature(function), function.__qualname__.removesuffix(".__init__")
    named = {name: p for name, p in signature.parameters.items() if name != "self"}
    rest = [name for name, p in named.items() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]

    @functools.wraps(function)
    def call(*arguments, **options):
        for name in options if not rest else ():
            one_of(f"option of {title}", name, named, BadType)
        for name, value in signature.bind(*arguments, **options).arguments.items():
            if name in named and name not in rest:
                held(name, value, named[name].annotation, named[name].default)
        return function(*arguments, **options)

    return call
