"""The command line: vix list | train | verify | predict | export | reproduce."""

import argparse
import json
import math
import os
import sys
import time
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from vixlib import __version__, list_systems, measure
from vixlib.attention import Mechanism
from vixlib.checkpoint import stoppable
from vixlib.errors import BadInput, RecordError, one_of, whole
from vixlib.fused import Softmax
from vixlib.images import MOST_PIXELS
from vixlib.models.host import FEWEST_TOKENS
from vixlib.paper import own, training
from vixlib.paper.records import DIFFERENT, load, records_folder, unfinished
from vixlib.paper.runs import PROFILES, RECIPES, Run, queue
from vixlib.paper.verify import rebuilt, verify
from vixlib.systems import system

ENDS = """exit status: 0 all done; 3 some are left, since time is up or another process trains them;
1 a run failed or diverged, now or before; 2 what was asked for cannot be; 130 stopped by Ctrl-C,
SIGTERM or SIGHUP, within 5 seconds: what ran has a checkpoint, and the same command goes on."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; bad input ends with one line on standard error and status 2.

    Others are ENDS; 1, too, where a record that `vix verify` was asked for is of another training.
    """
    try:
        options = _parser().parse_args(arguments)
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            return options.command(options) or 0
    except BadInput as error:
        print(f"vix: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        with suppress(OSError):  # of a terminal that is gone
            print("vix: stopped; the same command goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `vix list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0 if options.command in (_list, _predict) else 1
    except OSError as error:
        print(f"vix: {error}", file=sys.stderr)
        return 1


def _warn(message: Warning, *where: object) -> None:
    print(f"vix: {message}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise BadInput(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("vix", description="Vision Xformers, reproduced.")
    parser.add_argument("--version", action="version", version=f"vixlib {__version__}")
    commands = parser.add_subparsers(
        required=True, metavar="list | train | verify | predict | export | reproduce"
    )

    def command(function, text: str, profile: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(function.__name__.strip("_"), help=text, description=text)
        sub.set_defaults(command=function)
        legal = " | ".join(PROFILES)
        sub.add_argument("--profile", default=profile, help=f"{legal} (default {profile})")
        return sub

    def trains(sub: argparse.ArgumentParser) -> None:
        held = "a folder that holds CIFAR-10, or folders of your own images"
        sub.add_argument("--data", metavar="DIR", help=held)
        sub.add_argument("--workers", type=int, help="runs side by side, one thread each")
        sub.add_argument("--dirty", action="store_true", help="train even uncommitted code")

    def of_a_run(sub: argparse.ArgumentParser, recipe: str) -> None:
        sub.add_argument("--recipe", help=f"{' | '.join(RECIPES)} (default {recipe})")
        sub.add_argument("--seed", type=int, help="of all that is random (default 0)")
        text = "a size or setting that differs; again for another"
        given = {"action": "append", "default": [], "metavar": "NAME=VALUE", "dest": "changes"}
        sub.add_argument("--set", help=text, **given)

    def trained(sub: argparse.ArgumentParser) -> None:
        text = "weights: a file, the name of a run, or a system and its options"
        sub.add_argument("model", metavar="WEIGHTS-or-RUN", help=text)
        of_a_run(sub, "fair")

    command(_list, "name, size, tokens and FLOPs of every system", "paper")

    sub = command(_train, "train systems and write their records", "laptop")
    sub.epilog = ENDS
    sub.add_argument("systems", nargs="*", help="names as `vix list` prints them")
    sub.add_argument("--queue", metavar="PROFILE", help="every unfinished run of a profile")
    of_a_run(sub, "fair, the queue's own, annealed for your images")
    sub.add_argument("--minutes", type=float, help="stop in time, with a checkpoint to go on from")
    sub.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    compiled = argparse.BooleanOptionalAction
    sub.add_argument("--compile", action=compiled, help="each block, by torch (default: on cuda)")
    sub.add_argument("--again", action="store_true", help="train even what has a record")
    trains(sub)
    own.add_options(sub)

    sub = command(_verify, "train the first steps of records again, and compare", "laptop")
    sub.add_argument("records", nargs="*", metavar="RECORD", help="files, or names of a profile's")
    sub.add_argument("--queue", metavar="PROFILE", help="every record of a profile")
    sub.add_argument("--data", metavar="DIR", help="a folder that holds CIFAR-10")
    sub.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    sub.add_argument("--write", action="store_true", help="note in the records what was found")

    sub = command(_predict, "classify images with trained weights", "laptop")
    trained(sub)
    sub.add_argument("images", type=Path, nargs="+", help="files, or folders of them")
    sub.add_argument("--top", type=int, default=5, help="classes an image (default 5)")
    sub.add_argument("--json", action="store_true", help="a line of JSON an image")
    sub.add_argument("--batch", type=int, default=64, help="images at once (default 64)")
    sub.add_argument("--most-pixels", type=int, default=MOST_PIXELS, help="refuse larger images")
    sub.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")

    sub = command(_export, "write trained weights as ONNX", "laptop")
    trained(sub)
    sub.add_argument("out", type=Path, help="the file to write, such as model.onnx")

    sub = command(_reproduce, "train what is missing, then execute every notebook", "quick")
    sub.add_argument("--write", action="store_true", help="put outputs into notebooks/ and README")
    trains(sub)
    return parser


def _list(options: argparse.Namespace) -> None:
    one_of("profile", options.profile, PROFILES)
    print(f"{'system':18}{'parameters':>12}{'tokens':>8}{'MFLOPs':>10}")
    for name in list_systems():
        run = Run(name, options.profile)
        with torch.device("meta"):
            model = run.build()
        cost = measure.flops(run.build, (1, 3, *model.size)) / 1e6
        size = f"{measure.parameters(model):>12,}{run.tokens:>8,}{cost:>10,.1f}"
        made = [each for each in model.modules() if isinstance(each, Mechanism)]
        few = sum(each.queries.tokens < FEWEST_TOKENS > each.keys.tokens for each in made)
        swapped = system(name).mechanism not in (None, Softmax)
        note = f"  softmax in {few} of {len(made)} layers: few tokens" if few and swapped else ""
        print(f"{name:18}{size}{note}")


def _train(options: argparse.Namespace) -> int:
    if bool(options.systems) == bool(options.queue):
        raise BadInput("name systems, or a profile with --queue; `vix list` has the names")
    if options.minutes is not None and not 0 < options.minutes < math.inf:
        raise BadInput(f"--minutes: expected more than 0, got {options.minutes}")
    deadline = time.monotonic() + 60 * (options.minutes or math.inf)
    changes = tuple(_change(text) for text in options.changes)
    named = options.queue or "dataset" in dict(changes)
    if options.data and not named and own.holds_images(Path(options.data)):
        with stoppable():
            ends = [own.train(x, options, dict(changes), deadline) for x in options.systems]
        return next((status for status in (1, 3) if status in ends), 0)
    for name in (*own.SIZES, *own.FIT, "start"):
        if getattr(options, name) is not None:
            option = name.replace("_", "-")
            raise BadInput(f"--{option}: only with a folder of your own images as --data")
    asked = {"recipe": options.recipe, "seed": options.seed}
    asked = {name: value for name, value in asked.items() if value is not None}
    wanted = [Run(name, options.profile, overrides=changes, **asked) for name in options.systems]
    for run in queue(options.queue) if options.queue else ():
        kept = [pair for pair in run.overrides if pair[0] not in dict(changes)]
        wanted.append(replace(run, overrides=(*kept, *changes), **asked))
    todo, failed = [], 0
    for run in dict.fromkeys(wanted):
        try:
            record = None if options.again else load(run)
        except RecordError as error:  # which concerns no other run
            training.note(f"{run.name}: failed: {error}")
            failed += 1
            continue
        if record is None or record["status"] == "stale":
            todo.append(run)
            continue
        failed += record["status"] == "diverged"
        doubt = "; unverified: `vix verify`" if record["status"] == "unverified" else ""
        training.note(f"{run.name}: {training.ended(run, record)}{doubt}; --again trains it anew")
    more, left = training.perform_all(
        todo,
        workers=_workers(options, todo),
        folder=options.data,
        device=options.device,
        compiled=options.compile,
        dirty=options.dirty,
        deadline=deadline,
        again=options.again,
    )
    if left:
        why = "time is up" if time.monotonic() > deadline else "another process has begun them"
        training.note(f"{left} left: {why}; the same command goes on")
    return 1 if failed + more else 3 if left else 0


def _verify(options: argparse.Namespace) -> bool:
    """A line a record: whether today's code begins its training with the same losses."""
    if bool(options.records) == bool(options.queue):
        raise BadInput("name records, or a profile with --queue")
    folder = records_folder(options.queue or options.profile)
    found = [name if name.endswith(".json") else f"{name}.json" for name in options.records]
    found = [Path(x) if Path(x).exists() else folder / x for x in found] or sorted(
        folder.glob("*.json")
    )
    if not found:
        raise BadInput(f"no records in {folder}")
    for path in found if options.records else ():  # what was named is refused before any is trained
        rebuilt(path)
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


def _change(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise BadInput(f"--set: expected NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _workers(options: argparse.Namespace, todo: list[Run]) -> int:
    cores = 1 if torch.cuda.is_available() else os.cpu_count()
    workers = cores if options.workers is None else whole("--workers", options.workers)
    return min(workers, len(todo) or 1)


def _predict(options: argparse.Namespace) -> int:
    whole("--batch", options.batch), whole("--top", options.top)
    return own.predict(options, tuple(map(_change, options.changes)))


def _export(options: argparse.Namespace) -> None:
    own.export(options, tuple(map(_change, options.changes)))


def _reproduce(options: argparse.Namespace) -> bool:
    one_of("profile", options.profile, ["laptop"] if options.write else PROFILES)
    from vixlib.paper.reproduce import reproduce  # papermill and its needs: an extra

    todo = unfinished(queue(options.profile))
    failed = reproduce(
        options.profile,
        todo,
        workers=_workers(options, todo),
        folder=options.data,
        dirty=options.dirty,
        write=options.write,
    )
    return failed > 0
