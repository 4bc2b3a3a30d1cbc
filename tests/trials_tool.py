"""Mistakes made by a tool, not by hand: mutmut's operators over the library; do the tests notice?

Of mutmut only the operators are used. They drop and swap arguments, take one branch of two, change
numbers, signs, names and strings, as careless edits do. Its own runner skips every decorated
function and hides the signatures that `checked` inspects; cosmic-ray's operators know arguments and
branches not at all, and for each + have eleven others, of which a test notices all or none.

A process imports torch and the like once, nothing of vixlib, and forks a child a mutant, in which
the text of one module is another. `survivors.toml` names mutants that change nothing that a test
could see; they do not count.
"""

import ast
import contextlib
import functools
import hashlib
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SURVIVORS = HERE / "survivors.toml"
OPERATORS_OF = "mutmut 3.8.1"
LIMIT = 90  # seconds that one test may take, or the collection of all: then it is a loop
MEMORY = 12 * 2**30  # bytes of addresses that a child may take
RATE, LEAST = 1 / 7, 20  # places of a module that are tried, and how many at least

MATHS = "attention textbook layers wiring released maps models resolution gradients precision"
MATHS += " measures twins"
HOSTS = "layers wiring released maps models resolution bad_input measures attention twins"
JUDGES = {  # the tests that are meant to see a module, the quickest first
    "vixlib/contract.py": "contract attention",
    "vixlib/train.py": "loop fit_options bad_input training lost",
    "vixlib/images.py": "images own_data bad_input",
    "vixlib/weights.py": "weights own",
    "vixlib/checkpoint.py": "lost training",
    "vixlib/download.py": "data lost",
    "vixlib/measure.py": "measures claims bad_input",
    "vixlib/paper/statistics.py": "statistics claims",
    "vixlib/paper/records.py": "statistics bad_input training lost",
    "vixlib/data.py": "data own_data bad_input",
    "vixlib/maps.py": "maps models bad_input",
    "vixlib/attention.py": MATHS + " bad_input",
    "vixlib/fused.py": MATHS,
    "vixlib/layers.py": MATHS + " bad_input",
    "vixlib/released.py": HOSTS,
    "vixlib/models/baselines.py": HOSTS,
    "vixlib/models/cct.py": HOSTS,
    "vixlib/models/cvt.py": HOSTS,
    "vixlib/models/host.py": HOSTS,
    "vixlib/models/levit.py": HOSTS,
    "vixlib/models/vix.py": HOSTS,
}
SLOW = "compiled or killed or workers"  # by name, and left out: minutes, of what others see, too


def judges(module: str) -> list[str]:
    """The files of tests that judge a module, those that are there."""
    named = (f"tests/test_{name}.py" for name in JUDGES[module].split())
    return [name for name in named if (ROOT / name).exists()]


class Mutant(NamedTuple):
    """A mistake in a module: `old` lines become `new` ones; `mark` is its name, whatever moves."""

    module: str
    mark: str
    line: int
    operator: str
    old: str
    new: str
    text: str

    @property
    def name(self) -> str:
        return f"tool/{self.module}/{self.mark}"


# --- making them ---------------------------------------------------------------------------------

# what only words an error or a bar of progress: an operator changes nothing that matters there
WORDS = {"whole", "held", "number", "one_of"}  # their first argument names what is wrong
UNSEEN = {"extra_repr"}


def worded(tree: ast.Module) -> set[tuple[int, int]]:
    """Where (line, column) expressions begin that only word errors, for all that is inside."""
    found = []
    for function in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
        if function.name in UNSEEN:
            found += function.body
        raised = [n for n in ast.walk(function) if isinstance(n, ast.Raise)]
        inside = {id(n) for r in raised for n in ast.walk(r)}
        found += [r.exc for r in raised if isinstance(r.exc, ast.Call)]
        loads = [n for n in ast.walk(function) if isinstance(n, ast.Name)]
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                uses = [n for n in loads if n.id == name and isinstance(n.ctx, ast.Load)]
                if uses and all(id(n) in inside for n in uses):
                    found.append(node)  # such as got = ..., told by the error alone
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in WORDS:
                found += node.args[:1]
            if called.split(".")[0] == "tqdm":
                found += [keyword.value for keyword in node.keywords]
            if called == "tqdm":
                found += node.args[1:]
    return {
        (n.lineno, n.col_offset) for top in found for n in ast.walk(top) if hasattr(n, "lineno")
    }


def candidates(module: str, text: str) -> Iterator[tuple[str, int, int, Callable[[], str]]]:
    """Every mistake that an operator makes: its name, place and how to make the text with it."""
    import libcst as cst
    from libcst.metadata import (
        MetadataWrapper,
        PositionProvider,
        WhitespaceInclusivePositionProvider,
    )
    from mutmut.mutation.mutators import mutation_operators

    wrapper = MetadataWrapper(cst.parse_module(text), unsafe_skip_copy=True)
    places = wrapper.resolve(PositionProvider)
    spans = wrapper.resolve(WhitespaceInclusivePositionProvider)  # what a node's code takes up
    words = worded(ast.parse(text))
    begins = [0, *itertools.accumulate(len(line) for line in text.splitlines(keepends=True))]
    told = cst.BaseExpression | cst.BaseSmallStatement | cst.Arg

    def make(node: cst.CSTNode, changed: cst.CSTNode) -> str:
        span = spans[node]
        first, last = (begins[at.line - 1] + at.column for at in (span.start, span.end))
        return text[:first] + wrapper.module.code_for_node(changed) + text[last:]

    found = []

    class Visitor(cst.CSTVisitor):
        def on_visit(self, node: cst.CSTNode) -> bool:
            if isinstance(node, cst.Annotation | cst.Import | cst.ImportFrom):
                return False
            if (place := places.get(node)) is None:
                return True
            at = place.start.line, place.start.column
            if at in words and isinstance(node, told):
                return False
            for kind, operator in mutation_operators:
                if isinstance(node, kind):
                    name = operator.__name__.removeprefix("operator_")
                    found.extend((name, *at, partial(make, node, new)) for new in operator(node))
            return True

    wrapper.module.visit(Visitor())
    return iter(found)


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:10]


@functools.cache
def sampled(module: str, text: str, rate: float = RATE, least: int = LEAST) -> tuple[Mutant, ...]:
    """The mistakes that are tried, in the order of their lines.

    One at each of the places (an operator at a spot) whose hashes are lowest. A hash is that of the
    line's own text, so that an edit elsewhere leaves the choice as it is, but for its end.
    """
    lines = text.splitlines()
    spots: dict[tuple, list] = {}
    for name, line, column, make in candidates(module, text):
        spots.setdefault((name, line, column), []).append(make)
    keyed, seen = [], {}
    for (name, line, column), made in spots.items():
        words = name, lines[line - 1].strip(), column
        seen[words] = seen.get(words, -1) + 1
        keyed.append((digest(module, *words, seen[words]), name, line, made))
    keyed.sort(key=lambda each: each[0])
    chosen = []
    for mark, name, line, made in keyed:
        if len(chosen) >= max(least, rate * len(keyed)):
            break
        mutant = text
        for shift in range(len(made)):  # the first that is other Python code
            mutant = made[(int(mark, 16) + shift) % len(made)]()
            if is_other(text, mutant):
                old, new = differing(text, mutant)
                chosen.append(Mutant(module, mark, line, name, old, new, mutant))
                break
    return tuple(sorted(chosen, key=lambda mutant: (mutant.line, mutant.mark)))


def is_other(text: str, mutant: str) -> bool:
    """Whether it is Python, and not the same."""
    try:
        return ast.dump(ast.parse(mutant)) != ast.dump(ast.parse(text))
    except SyntaxError:
        return False


def differing(text: str, mutant: str) -> tuple[str, str]:
    """The lines that differ, before and after, as one."""
    old, new = text.splitlines(), mutant.splitlines()
    while old and new and old[0] == new[0]:
        del old[0], new[0]
    while old and new and old[-1] == new[-1]:
        del old[-1], new[-1]
    return tuple(" ".join(line.strip() for line in lines) for lines in (old, new))


def mutants(module: str) -> tuple[Mutant, ...]:
    return sampled(module, (ROOT / module).read_text())


# --- judged equivalent ---------------------------------------------------------------------------


def equivalents() -> dict[tuple[str, str, str], str]:
    """The reason of each (module, old, new) that was judged to change nothing."""
    found = {}
    for module, entries in tomllib.loads(SURVIVORS.read_text()).items():
        for entry in entries:
            key = module, entry["old"], entry["new"]
            told = f"{entry['old']} -> {entry['new']}"
            if not entry["reason"].strip():
                raise ValueError(f"{module}: no reason: {told}")
            if key in found:
                raise ValueError(f"{module}: twice: {told}")
            found[key] = entry["reason"]
    return found


def stale() -> list[str]:
    """What survivors.toml names and is not tried: its line has changed, or is not sampled."""
    tried = {(m.module, m.old, m.new) for module in JUDGES for m in mutants(module)}
    gone = [key for key in equivalents() if key not in tried]
    return [f"{module}: {old} -> {new}" for module, old, new in gone]


# --- trying them ---------------------------------------------------------------------------------


HEAVY = (  # what tests import, somewhere
    *("torch", "torch.nn.functional", "torch.utils.flop_counter", "torch._dynamo", "torchvision"),
    *("torchvision.datasets", "torchvision.transforms.functional", "einops", "safetensors.torch"),
    *("numpy", "pandas", "scipy.special", "sklearn.datasets", "sklearn.model_selection"),
    *("matplotlib.pyplot", "seaborn", "PIL.Image", "tqdm", "yaml", "hypothesis", "pytest"),
    *("timm", "timm.models.levit", "vit_pytorch", "transformers"),
    "transformers.models.cvt.modeling_cvt",
    "transformers.models.nystromformer.modeling_nystromformer",
)


class Server:
    """The process that has imported what is heavy, and forks a child a mutant."""

    def __init__(self, root: Path = ROOT, heavy: tuple[str, ...] = HEAVY):
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(HERE / "trials_tool.py"), str(root), *heavy],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
        )

    def ask(self, module: str, text: str | None, tests: list[str], limit: float = LIMIT) -> dict:
        """What noticed a text in a module's place: {"seen": a test or None, ...}."""
        request = {"module": module, "text": text, "tests": tests, "limit": limit}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        if not (answer := self.process.stdout.readline()):
            raise RuntimeError(f"the server of mutants ended with {self.process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@functools.cache
def server() -> Server:
    return Server()


def tool_trial(module: str, mark: str) -> dict:
    """Run the tests of a module on a mistake in it, until one fails."""
    (mutant,) = (each for each in mutants(module) if each.mark == mark)
    answer = server().ask(module, mutant.text, judges(module))
    if answer["ran"] == 0 and answer["seen"] is None:
        raise RuntimeError(f"no test ran: {answer}")
    about = {"line": mutant.line, "operator": mutant.operator, "old": mutant.old, "new": mutant.new}
    return {"module": module, **about, "seen": answer["seen"], "ran": answer["ran"]}


def control_trial(module: str) -> dict:
    """The same on the module as it is: nothing is there to be noticed."""
    answer = server().ask(module, (ROOT / module).read_text(), judges(module))
    return {"module": module, "control": True, "seen": answer["seen"], "ran": answer["ran"]}


def holds(seen: dict) -> bool:
    """Noticed, or judged equivalent; a control is not noticed."""
    if seen.get("control"):
        return seen["seen"] is None and seen["ran"] > 0
    return seen["seen"] is not None or judged(seen)


def judged(seen: dict) -> bool:
    return (seen["module"], seen["old"], seen["new"]) in equivalents()


def report(results: dict[str, dict]) -> list[str]:
    """Lines for the page."""
    told = {name: r for name, r in results.items() if "module" in r["seen"]}
    tried = {name: r for name, r in told.items() if not r["seen"].get("control")}
    if not tried:
        return []
    controls = len(told) - len(tried)
    lines = ["", "## Mistakes made by a tool", ""]
    lines += [
        f"The operators of {OPERATORS_OF}, sampled by hash: an argument dropped, a branch taken,",
        "a number, a sign, a name changed. Noticed: a test failed, or took more than "
        f"{LIMIT} s. Not counted:",
        "[those that change nothing](survivors.toml), with their reasons. The modules as they are "
        f"passed {controls} times.",
        "",
        "| module | tried | equivalent | noticed | of what counts | on |",
        "|---|---:|---:|---:|---:|---|",
    ]
    rows, left = {}, []
    for name, result in tried.items():
        seen = result["seen"]
        row = rows.setdefault(seen["module"], {"tried": 0, "same": 0, "noticed": 0, "date": ""})
        row["tried"] += 1
        row["date"] = max(row["date"], result["date"])
        if seen["seen"] is not None:
            row["noticed"] += 1
        elif judged(seen):
            row["same"] += 1
        else:
            left.append((name, seen))
    whole = {key: sum(row[key] for row in rows.values()) for key in ("tried", "same", "noticed")}
    whole["date"] = max(row["date"] for row in rows.values())
    for module, row in [*rows.items(), ("all", whole)]:
        count = row["tried"] - row["same"]
        share = f"{100 * row['noticed'] / count:.0f} %" if count else "–"
        lines.append(
            f"| {module} | {row['tried']} | {row['same']} | {row['noticed']} | {share} | "
            f"{row['date']} |"
        )
    lines += ["", "Not noticed:" if left else "All that count were noticed.", ""]
    for _, seen in left:
        old, new = (code(seen[key]) for key in ("old", "new"))
        lines.append(f"- {seen['module']}:{seen['line']}, {seen['operator']}: {old} → {new}")
    return lines


def code(text: str) -> str:
    """As code of one line on the page."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


# --- the server ----------------------------------------------------------------------------------


def serve(root: Path, heavy: list[str]) -> None:
    """Answers requests, one a line, each by a child that is forked for it."""
    import importlib.util

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints goes elsewhere
    guard = "vixlib._torchvision"  # alone of our modules: torchvision needs it, twice would abort
    if (file := root / "vixlib" / "_torchvision.py").exists():
        spec = importlib.util.spec_from_file_location(guard, file)
        sys.modules[guard] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[guard])
    for name in heavy:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    assert {name for name in sys.modules if name.split(".")[0] == "vixlib"} <= {guard}
    kept = root / "build" / "durations.json"  # of tests, from one call to the next
    durations = json.loads(kept.read_text()) if kept.exists() else {}
    for line in sys.stdin:
        answer = try_one(root, json.loads(line), durations)
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(durations))
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def try_one(root: Path, request: dict, durations: dict[str, float]) -> dict:
    """Forks a child, and ends it where a test fails or takes too long."""
    reading, writing = os.pipe()
    scratch = tempfile.mkdtemp(prefix="mutant-")
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        child(root, request, durations, writing, scratch)
    os.close(writing)
    try:
        return listen(reading, request["limit"], durations)
    finally:
        os.close(reading)
        for kill in (os.kill, os.killpg):  # the child's own children, too
            with contextlib.suppress(ProcessLookupError):
                kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        shutil.rmtree(scratch, ignore_errors=True)


def listen(reading: int, limit: float, durations: dict[str, float]) -> dict:
    """What a child says of each test: the first that failed, or took longer than the limit."""
    now, ran, rest = "collection", 0, b""
    began = time.monotonic()
    while True:
        left = began + limit - time.monotonic()
        if not select.select([reading], [], [], max(0, left))[0]:
            return {"seen": f"timeout: {now}", "ran": ran}
        if not (got := os.read(reading, 2**16)):
            return {"seen": f"ended: {now}", "ran": ran}  # a crash
        *lines, rest = (rest + got).split(b"\n")
        for event, name, *seconds in map(json.loads, lines):
            if event == "failed":
                return {"seen": name.removeprefix("tests/"), "ran": ran}
            if event == "passed":
                return {"seen": None, "ran": ran}
            if event == "end":
                ran, durations[name] = ran + 1, seconds[0]
            now, began = name.removeprefix("tests/"), time.monotonic()


def child(root: Path, request: dict, durations: dict[str, float], writing: int, scratch: str):
    """Runs pytest with another text of one module, and ends."""
    import importlib.abc
    import importlib.machinery
    import importlib.util
    import resource

    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        os.chdir(root)
        sys.path[:] = [str(root), *(p for p in sys.path if Path(p or ".").resolve() != HERE)]
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = scratch
        os.environ["PYTHONPATH"] = str(root)
        name = request["module"].removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        path = str(root / request["module"])

        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname):
                return compile(request["text"], path, "exec", dont_inherit=True)

        class Finder(importlib.abc.MetaPathFinder):
            def find_spec(self, fullname, _, target=None):
                if fullname != name:
                    return None
                loader = Loader(name, path)
                return importlib.util.spec_from_file_location(name, path, loader=loader)

        sys.meta_path.insert(0, Finder())

        def say(*event):
            os.write(writing, (json.dumps(event) + "\n").encode())

        import pytest

        class Listener:
            @pytest.hookimpl(trylast=True)
            def pytest_collection_modifyitems(self, items):
                # of a file the quickest first, by what was seen; those that are slow last of all
                files = [*dict.fromkeys(item.path for item in items)]

                def late(item):
                    seconds = durations.get(item.nodeid, 0)
                    return seconds > 2, files.index(item.path), seconds

                items.sort(key=late)

            def pytest_runtest_logstart(self, nodeid, location):
                say("start", nodeid)

            def pytest_runtest_logreport(self, report):
                if report.failed:
                    say("failed", report.nodeid)
                if report.when == "call":
                    say("end", report.nodeid, report.duration)

            def pytest_collectreport(self, report):
                if report.failed:
                    say("failed", report.nodeid)

        plugins = ("cacheprovider", "xdist", "nbval")
        options = ["-x", "-q", "--tb=no", *(f"-pno:{plugin}" for plugin in plugins)]
        options += ["-k", f"not ({SLOW})", "--basetemp", f"{scratch}/tmp", "--rootdir", str(root)]
        if pytest.main([*options, *request["tests"]], plugins=[Listener()]) in (0, 5):
            say("passed", "")  # 5: there was none
    finally:
        os._exit(0)


if __name__ == "__main__":
    serve(Path(sys.argv[1]).resolve(), sys.argv[2:])
