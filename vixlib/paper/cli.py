"""The command line: vix list | train | verify | predict | export | reproduce."""

import argparse
import math
import os
import sys
import time
import tomllib
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from vixlib import __version__, distributed, list_systems, paths
from vixlib.attention import Mechanism
from vixlib.errors import BadInput, RecordError, one_of, whole
from vixlib.fused import Softmax
from vixlib.paper import own, training
from vixlib.paper.records import DIFFERENT, records_folder, unfinished
from vixlib.paper.runs import PROFILES, RECIPES, Run, counted, queue, setting
from vixlib.paper.verify import rebuilt, verify
from vixlib.systems import system
from vixlib.train import tokens_of

TYPES = {"int": int, "float": float, "path": Path}  # of options


def main(arguments: list[str] | None = None) -> int:
    """Run one command; bad input ends with one line on standard error and status 2.

    Others are told by `vix train --help`; 1, too, where a record that `vix verify` was asked for is
    of another training.
    """
    try:
        options = _parser().parse_args(arguments)
        options.changes = tuple(map(setting, getattr(options, "changes", ())))
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            return options.command(options) or 0
    except BadInput as error:
        print(f"vix: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        with suppress(OSError):  # of a terminal that is gone
            if os.environ.get("RANK", "0") == "0":  # of torchrun's processes the first
                print("vix: stopped; the same command goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `vix list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0 if options.command in (_list, own.predict) else 1
    except OSError as error:
        print(f"vix: {error}", file=sys.stderr)
        return 1


def _warn(message: Warning, *where: object) -> None:
    print(f"vix: {message}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise BadInput(message)


def _parser() -> argparse.ArgumentParser:
    """The parser that options.toml describes."""
    table = tomllib.loads((paths.PACKAGE / "paper" / "options.toml").read_text())
    shared = table.pop("shared")
    legal = {"profiles": " | ".join(PROFILES), "recipes": " | ".join(RECIPES)}
    parser = _Parser("vix", description="Vision Xformers, reproduced.")
    parser.add_argument("--version", action="version", version=f"vixlib {__version__}")
    commands = parser.add_subparsers(required=True, metavar=" | ".join(table))
    functions = _list, _train, _verify, own.predict, own.export, _reproduce
    for (name, row), function in zip(table.items(), functions, strict=True):
        texts = {"description": row["help"], "epilog": row.get("epilog")}
        sub = commands.add_parser(name, help=row["help"], **texts)
        sub.register("action", "yes or no", argparse.BooleanOptionalAction)
        for option, words in ({"--profile": {}} | row["options"]).items():
            words = shared.get(option, {}) | words
            words["help"] = words["help"].format(**legal)
            words |= {"type": TYPES[words["type"]]} if "type" in words else {}
            if name := words.pop("setting", ""):  # another way to say --set NAME=VALUE
                words |= {"action": "append", "dest": "changes", "type": f"{name}={{}}".format}
            sub.add_argument(option, **words)
        sub.set_defaults(command=function, profile=row["profile"])
    return parser


def _list(options: argparse.Namespace) -> None:
    one_of("profile", options.profile, PROFILES)
    print(f"{'system':18}{'parameters':>12}{'tokens':>8}{'MFLOPs':>10}")
    for name in list_systems():
        run = Run(name, options.profile)
        with torch.device("meta"):
            model = run.build()
        cost = counted(run.build)
        print(f"{name:18}{cost['parameters']:>12,}{tokens_of(model):>8,}", end="")
        print(f"{cost['flops'] / 1e6:>10,.1f}", end="")
        made = [type(each) for each in model.modules() if isinstance(each, Mechanism)]
        few = made.count(Softmax) if system(name).mechanism is not Softmax else 0
        print(f"  softmax in {few} of {len(made)} layers: few tokens" if few else "")


def _train(options: argparse.Namespace) -> int:
    if bool(options.systems) == bool(options.queue):
        raise BadInput("name systems, or a profile with --queue; `vix list` has the names")
    if options.minutes is not None and not 0 < options.minutes < math.inf:
        raise BadInput(f"--minutes: expected more than 0, got {options.minutes}")
    with distributed.processes(options.device):
        return _train_all(options)


def _train_all(options: argparse.Namespace) -> int:
    """What was asked for, by this process or by all that torchrun has started."""
    deadline = time.monotonic() + 60 * (options.minutes or math.inf)
    changes, asked = dict(options.changes), {}
    how = {"device": options.device, "compiled": options.compile}
    how |= {"accumulate": options.accumulate, "recompute": options.recompute}
    how["start"] = own.weights_file(options.start, options) if options.start else None
    named = options.queue or "dataset" in changes
    if options.data and not named and own.holds_images(Path(options.data)):
        wanted, how["images"] = own.runs(options)
        options.again = True  # there may be other images in the folder
    else:
        said = {"recipe": options.recipe, "seed": options.seed}
        asked = {name: value for name, value in said.items() if value is not None}
        wanted = [Run(name, options.profile, **asked) for name in options.systems]
        wanted += queue(options.queue) if options.queue else []
    for i, run in enumerate(wanted):
        kept = (pair for pair in run.overrides if pair[0] not in changes)
        wanted[i] = replace(run, overrides=(*kept, *options.changes), **asked)
    how |= _how(options, wanted := [*dict.fromkeys(wanted)])
    failed, left = training.perform_all(wanted, deadline=deadline, again=options.again, **how)
    if left and distributed.Team().rank == 0:
        why = "time is up" if time.monotonic() > deadline else "another process has begun them"
        training.note(f"{left} left: {why}; the same command goes on")
    return 1 if failed else 3 if left else 0


def _verify(options: argparse.Namespace) -> bool:
    """A line a record: whether today's code begins its training with the same losses."""
    if bool(options.records) == bool(options.queue):
        raise BadInput("name records, or a profile with --queue")
    folder = records_folder(options.queue or options.profile)
    named = [Path(f"{name.removesuffix('.json')}.json") for name in options.records]
    found = [path if path.exists() else folder / path for path in named]
    for path in found:  # what was named is refused before any is trained
        rebuilt(path)
    found = found or sorted(folder.glob("*.json"))
    if not found:
        raise BadInput(f"no records in {folder}")
    torch.set_num_threads(1)
    failed = False
    for path in found:
        try:
            result, said = verify(
                path, folder=options.data, device=options.device, note=options.write
            )
        except RecordError as error:  # which concerns no other record
            result, said = "failed", error
        failed |= result in ("failed", DIFFERENT)
        print(f"{path.stem}: {result}, {said}", flush=True)
    return failed


def _how(options: argparse.Namespace, wanted: list[Run]) -> dict:
    """What commands that train share: options of perform_all."""
    together = torch.cuda.is_available() or distributed.by_torchrun()
    cores = 1 if together else os.cpu_count()
    workers = cores if options.workers is None else whole("--workers", options.workers)
    workers = min(workers, len(wanted) or 1)
    return {"workers": workers, "folder": options.data, "dirty": options.dirty}


def _reproduce(options: argparse.Namespace) -> bool:
    one_of("profile", options.profile, ["laptop"] if options.write else PROFILES)
    from vixlib.paper.reproduce import reproduce  # papermill and its needs: an extra

    todo = unfinished(queue(options.profile))
    return reproduce(options.profile, todo, write=options.write, **_how(options, todo)) > 0
