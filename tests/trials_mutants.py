"""Trials of the tests themselves: a mistake is put into a copy of the library; do they notice?

Free of pytest: `proof.py` runs them; `mutants.toml` lists the mistakes.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TESTS = tuple(  # the quickest first
    f"tests/test_{name}.py"
    for name in (
        "attention",
        "textbook",
        "layers",
        "wiring",
        "contract",
        "maps",
        "models",
        "gradients",
        "precision",
        "resolution",
        "twins",
        "loop",
    )
)
NEEDED = "vixlib", "tests", "figures", "pyproject.toml"


class Mutant(NamedTuple):
    """`old`, which stands once in `file`, becomes `new`; `survives` says why none can notice."""

    name: str
    file: str
    old: str
    new: str
    survives: str = ""


def mutants() -> list[Mutant]:
    table = tomllib.loads((HERE / "mutants.toml").read_text())["files"]
    return [Mutant(name, file, **entry) for file, of in table.items() for name, entry in of.items()]


def mutated(mutant: Mutant, root: Path = ROOT) -> str:
    """The file's text with the mistake; ValueError where its place is not found once."""
    text = (root / mutant.file).read_text()
    if (count := text.count(mutant.old)) != 1:
        raise ValueError(f"{mutant.name}: {count} times in {mutant.file}: {mutant.old!r}")
    return text.replace(mutant.old, mutant.new)


def misplaced() -> list[str]:
    """What is wrong with mistakes that cannot be tried: their place has gone, or is no Python."""
    wrong = []
    for mutant in mutants():
        try:
            compile(mutated(mutant), mutant.file, "exec")
        except (ValueError, SyntaxError) as error:
            wrong.append(str(error) if mutant.name in str(error) else f"{mutant.name}: {error}")
        if mutant.old == mutant.new:
            wrong.append(f"{mutant.name}: changes nothing")
    return wrong


def mutant_trial(mutant: Mutant) -> dict:
    """Run the tests on a copy with the mistake, until one fails."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in NEEDED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, root / name)
        (root / mutant.file).write_text(mutated(mutant, root))
        environment = os.environ | {"PYTHONPATH": folder, "VIXLIB_ROOT": folder}
        command = [sys.executable, "-P", "-m", "pytest", "-x", "-q", "--tb=no", "-rfE"]
        command += ["-p", "no:cacheprovider", *TESTS]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1, 2):
        raise RuntimeError(done.stdout[-300:] + done.stderr[-300:])
    by = re.findall(
        r"^(?:FAILED|ERROR) tests/(\S+?\.py(?:::[^\n]*?)?)(?: - .*)?$", done.stdout, re.M
    )
    return {
        "file": mutant.file,
        "killed_by": by[0] if by else None,
        "survives": mutant.survives,
    }


def as_told(seen: dict) -> bool:
    """Killed, unless it was said why it cannot be."""
    return bool(seen["killed_by"]) != bool(seen["survives"])


def report(results: dict[str, dict]) -> list[str]:
    """Lines for the page."""
    if not results:
        return []
    seen = {name.split("/", 1)[1]: result["seen"] for name, result in results.items()}
    killers = [s["killed_by"].split(".py")[0] for s in seen.values() if s.get("killed_by")]
    by = ", ".join(f"{file} {killers.count(file)}" for file in sorted(set(killers)))
    lines = ["", "## Do the tests notice?", ""]
    lines += [f"{len(killers)} of {len(seen)} mistakes were noticed first by: {by}.", ""]
    for name, s in seen.items():
        if not s.get("killed_by"):
            lines.append(f"- not noticed: {name} ({s.get('survives') or 'a gap in the tests'})")
    return lines
