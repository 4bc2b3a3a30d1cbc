"""The long proofs: `make proof`. Trials that take hours in all, one after another, resumable.

    python tests/proof.py [--only NAME ...] [--minutes M]

Each trial's result goes to tests/proof.json, with its date and what it ran on. One that held with
the same code is skipped; a stop loses the trial under way. tests/README.md is drawn from the
results. --only takes beginnings of names (`mutant/`, `kill/ViN`), --list names what is due.
"""

import argparse
import ast
import datetime
import hashlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
import trials_cluster
import trials_host
import trials_lost
import trials_mutants
import trials_precision
import trials_tool

from vixlib import list_systems
from vixlib.paths import atomic_write

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS, PAGE = HERE / "proof.json", HERE / "README.md"
MATHS = "attention.py", "fused.py", "layers.py", "released.py", "maps.py", "systems.py"
MATHS += "systems.toml", "models"
MATHS = tuple(f"vixlib/{name}" for name in MATHS)
LARGE = 1024, 4096, 16384


class Trial(NamedTuple):
    """What is run, how its result is judged, and the files that decide it."""

    run: Callable[[], dict]
    holds: Callable[[dict], bool]
    files: tuple[str, ...] = MATHS
    again: bool = True  # tried again with the same code where it did not hold
    needs: str = ""  # a trial that must hold, else this one would tell nothing


def trials() -> dict[str, Trial]:
    """Every trial by its name, the quickest kinds first."""
    found = {}
    p, h, m = trials_precision, trials_host, trials_mutants
    files = (*MATHS, "tests/trials_precision.py")
    for tokens in LARGE:
        for mechanism in p.MECHANISMS:
            for form in p.FORMATS:
                run = partial(p.mechanism_trials, mechanism, form, tokens, heads=1)
                found[f"precision/{tokens}/{mechanism}/{form}"] = Trial(run, p.all_hold, files)
    found["ends/performer"] = Trial(p.performer_ends, p.performer_holds, files)
    for name in list_systems():
        found[f"half/{name}"] = Trial(partial(p.system_trials, name), p.all_systems_hold, files)
    for name in list_systems():
        found[f"alone/{name}"] = Trial(
            partial(h.alone_trial, name), h.alone_holds, (*MATHS, "tests/trials_host.py")
        )
    for name in list_systems():
        files = (*MATHS, "vixlib/train.py", "tests/trials_host.py", "tests/small.py")
        found[f"waits/{name}"] = Trial(partial(h.waits_trial, name), h.waits_holds, files)
    for name in h.KILLED:
        for seed in range(h.TIMES):
            found[f"kill/{name}/{seed}"] = Trial(
                partial(h.kill_trial, name, seed), h.kill_holds, ("vixlib", "tests/trials_host.py")
            )
    for name, (run, holds, arguments) in trials_lost.trials().items():
        run = partial(run, *arguments)
        found[name] = Trial(run, holds, ("vixlib", "tests/trials_lost.py"))
    for name, (run, holds, arguments) in trials_cluster.trials().items():
        found[name] = Trial(partial(run, *arguments), holds, trials_cluster.FILES)
    if importlib.util.find_spec("trials_export"):
        import trials_export as e

        for name in list_systems():
            files = (*MATHS, "tests/trials_export.py", "tests/small.py")
            run = partial(e.compile_trial, name, "inductor")
            found[f"inductor/{name}"] = Trial(run, e.compile_holds, files)
            found[f"onnx/{name}"] = Trial(partial(e.export_trial, name), e.export_holds, files)
    for path in sorted(HERE.glob("test_*.py")):
        if "pytest.mark.proof" in path.read_text():
            files = "vixlib", f"tests/{path.name}"
            found[f"sweep/{path.stem}"] = Trial(partial(sweep_trial, path.stem), sweep_holds, files)
    for mutant in m.mutants():
        # not the tests: `test_proof.py` holds that the one that noticed is still there
        found[f"mutant/{mutant.name}"] = Trial(partial(m.mutant_trial, mutant), m.as_told)
    t = trials_tool
    for module in t.JUDGES:
        files, whole = (module, *t.judges(module)), f"tool/{module}/as it is"
        found[whole] = Trial(partial(t.control_trial, module), t.holds, files)
        for mutant in t.mutants(module):
            run = partial(t.tool_trial, module, mutant.mark)
            found[mutant.name] = Trial(run, t.holds, files, again=False, needs=whole)
    return found


def sweep_trial(stem: str) -> dict:
    """The tests of a file that `make test` leaves out."""
    command = [sys.executable, "-m", "pytest", "-m", "proof", f"tests/{stem}.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    seen = {"code": done.returncode, "tests": done.stdout.count(".")}
    return seen | ({"end": done.stdout[-200:]} if done.returncode else {})


def sweep_holds(seen: dict) -> bool:
    return seen["code"] == 0


def source(trial: Trial) -> str:
    """A hash of the code that decides a trial, whatever its comments, and of its arguments."""
    digest = hashlib.sha256(repr(trial.run.args if isinstance(trial.run, partial) else "").encode())
    for name in trial.files:
        path = ROOT / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            text = file.read_text()
            digest.update(dumped(text) if file.suffix == ".py" else text.encode())
    return digest.hexdigest()[:12]


@cache
def dumped(text: str) -> bytes:
    return ast.dump(ast.parse(text)).encode()


def commit() -> str:
    """What git calls this state, or unknown."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


def perform(trial: Trial) -> dict:
    """The result of a trial; an error is a result that does not hold."""
    began = time.monotonic()
    try:
        seen = trial.run()
        held = bool(trial.holds(seen))
    except Exception as error:
        seen, held = {"error": f"{type(error).__name__}: {error}"[:400]}, False
    return {
        "held": held,
        "date": datetime.date.today().isoformat(),
        "seconds": round(time.monotonic() - began, 1),
        "source": source(trial),
        "commit": commit(),
        "versions": f"torch {torch.__version__}, python {platform.python_version()}",
        "seen": rounded(seen),
    }


def rounded(value):
    """Floats to three digits, in whatever holds them."""
    if isinstance(value, float):
        return float(f"{value:.3g}")
    if isinstance(value, dict):
        return {str(key): rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value


def load() -> dict[str, dict]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def one_a_line(results: dict[str, dict]) -> str:
    """JSON, a trial a line, so that a change of one is a change of one line."""
    told = (json.dumps({name: r}, ensure_ascii=False)[1:-1] for name, r in results.items())
    return "{\n" + ",\n".join(told) + "\n}\n"


def save(results: dict[str, dict], order: dict[str, Trial]) -> None:
    kept = {name: results[name] for name in order if name in results}
    text = one_a_line(kept)
    atomic_write(RESULTS, lambda path: path.write_text(text))
    atomic_write(PAGE, lambda path: path.write_text(page(kept)))


# --- the page ------------------------------------------------------------------------------------

KINDS = {
    "precision": "A mechanism at 1,024 to 16,384 tokens, one head, inputs scaled by 1, 4 and 16, "
    "in half precision: output and every gradient beside float64",
    "ends": "Where Performer ends: 64 single heads at 64 tokens, at each scale, in float32",
    "half": "A system at the paper's size in half precision and under autocast: scores and "
    "gradient beside float64",
    "alone": "A system at the paper's size in float64: an image alone and beside others a thousand "
    "times as large, fresh weights and doubled",
    "waits": "A training step in float32 and bfloat16 asks for no tensor's value, for which a GPU "
    "would be waited for",
    "kill": "A training killed (SIGKILL) at random moments and resumed: record and weights equal "
    "to those of one that was left alone",
    "mirror": "A mirror that misbehaves, before a good one: the file comes whole, and nothing else",
    "image": "A broken image among 100 that are whole: skipped, and named in a line",
    "disk": "A queue on a disk that is full or read-only: a line, nothing half-written; then again",
    "damage": "A damaged checkpoint or record: named, the others of the queue go on",
    "shared": "Two processes on one queue, with one worker or two each: each run is trained once",
    "signal": "A queue that gets SIGKILL, SIGTERM or SIGINT at random moments, with one worker or "
    "two: it ends within 5 s, goes on, and its records are equal to those of one left alone",
    "grid": "The Snakefile on one machine, its jobs and its scheduler killed, its records lost or "
    "of other code: the next call heals it, records equal to those of `vix`, and one more has "
    "nothing to do",
    "slurm": "The same on a Slurm of one node: jobs left before their limit and queued again, "
    "cancelled, and the scheduler killed",
    "inductor": "A system compiled by inductor without a graph break, scores and a training step, "
    "beside eager",
    "onnx": "A system exported to ONNX with a free batch, run by onnxruntime, beside eager",
    "sweep": "The tests of a file that `make test` leaves out as too long",
    "mutant": "A mistake in the library: at least one test fails",
    "tool": "A mistake made by a tool, and each module as it is",
}


def page(results: dict[str, dict]) -> str:
    """tests/README.md from the results alone."""
    kinds = {kind: {} for kind in KINDS}
    for name, result in results.items():
        kinds[name.split("/")[0]][name] = result
    lines = [
        "# What was tried",
        "",
        "`make test` is what every change must pass. `make proof` runs what is too long for it:",
        "the trials below, on one CPU thread, from where it last stopped. This page is drawn from",
        "their dated results in [proof.json](proof.json) by [proof.py](proof.py).",
        "",
        "| trial | tried | held | minutes | on |",
        "|---|---:|---:|---:|---|",
    ]
    for kind, of_kind in kinds.items():
        if of_kind:
            all_of = of_kind.values()
            dates = sorted({r["date"] for r in all_of})
            minutes = sum(r["seconds"] for r in all_of) / 60
            lines.append(
                f"| {KINDS[kind]} | {len(of_kind)} | {sum(r['held'] for r in all_of)} | "
                f"{minutes:.0f} | {' to '.join(dict.fromkeys((dates[0], dates[-1])))} |"
            )
    lines += ["", "Versions: " + "; ".join(sorted({r["versions"] for r in results.values()})) + "."]
    lines += trials_precision.report(kinds["precision"], kinds["ends"], kinds["half"])
    lines += trials_host.report(kinds["alone"], kinds["kill"])
    lines += trials_lost.report(kinds["signal"])
    lines += trials_mutants.report(kinds["mutant"])
    lines += trials_tool.report(kinds["tool"])
    failed = {
        name: r["seen"]
        for name, r in results.items()
        if not r["held"] and "old" not in r["seen"]  # those are listed above
    }
    lines += ["", "## What did not hold", ""]
    lines += [f"- {name}: `{json.dumps(seen)[:300]}`" for name, seen in failed.items()] or [
        "Nothing."
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", default=[""], help="trials whose names begin so")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin none after")
    parser.add_argument("--list", action="store_true", help="name what would be run")
    options = parser.parse_args()
    if wrong := trials_mutants.misplaced():
        print("mutants.toml must follow the library first:", *wrong, sep="\n", file=sys.stderr)
        return 2
    if wrong := trials_tool.stale():
        print("survivors.toml names what is not tried:", *wrong, sep="\n", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    deadline = time.monotonic() + 60 * options.minutes
    order, results = trials(), load()
    sources = {name: source(trial) for name, trial in order.items()}
    known = {name: r for name, r in results.items() if r["source"] == sources.get(name)}
    for name, result in known.items():  # what is judged by hand may have been judged since
        if not order[name].again and "error" not in result["seen"]:
            result["held"] = order[name].holds(result["seen"])
    done = {
        name
        for name, r in known.items()
        if r["held"] or not (order[name].again or "error" in r["seen"])
    }
    todo = [name for name in order if name.startswith(tuple(options.only)) and name not in done]
    print(f"{len(todo)} of {len(order)} trials to run", flush=True)
    for name in [] if options.list else todo:
        if time.monotonic() > deadline:
            print("time is up; the same command goes on")
            break
        if (need := order[name].needs) and need not in done:
            print(f"left   {name}: {need} does not hold", flush=True)
            continue
        results[name] = perform(order[name])
        save(results, order)
        result = results[name]
        done |= {name} if result["held"] else set()
        print(
            f"{'held  ' if result['held'] else 'FAILED'} {name} {result['seconds']:.1f} s",
            flush=True,
        )
    if options.list:
        print("\n".join(todo))
    else:
        save(results, order)
    return int(not all(results[name]["held"] for name in order if name in results))


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    sys.exit(main())
