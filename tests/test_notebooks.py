"""The house rules of the notebooks, and that the rules themselves can fail.

A rule takes a Page (a notebook and its name) and returns complaints. Every rule is tried on a
small good notebook, doctored so that this rule and no other must complain.
"""

import ast
import copy
import gc
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import tomllib
import warnings
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from nbformat import NotebookNode

from vixlib import data
from vixlib.train import fit

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SOLUTIONS = sorted((FOLDER / "solutions").glob("*.ipynb"))

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ADDRESS = PROJECT["urls"]["Repository"]

COLAB = f"""\
import sys

if "google.colab" in sys.modules:
    !git clone --quiet --depth 1 {ADDRESS} /content/vixlib
    %pip install --quiet einops
    %pip install --quiet --no-deps -e /content/vixlib
    sys.path.insert(0, "/content/vixlib")"""
PARAMETERS = ['profile = "laptop"', "train = False", "seeds = 1"]
TAGS = {"colab", "parameters", "exercise", "nbval-ignore-output", "hide-output"}
LARGEST = 500_000  # bytes


class Page(NamedTuple):
    """A notebook as the rules see it."""

    name: str
    notebook: NotebookNode
    solution: bool = False

    @property
    def cells(self) -> list[NotebookNode]:
        return self.notebook.cells

    @property
    def code(self) -> list[NotebookNode]:
        return [cell for cell in self.cells if cell.cell_type == "code"]

    @property
    def outputs(self) -> list[NotebookNode]:
        return [output for cell in self.code for output in cell.outputs]

    @property
    def first(self) -> str:
        return self.cells[0].source if self.cells else ""

    def tagged(self, tag: str) -> list[NotebookNode]:
        return [cell for cell in self.cells if tag in tags(cell)]

    @property
    def python(self) -> list[tuple[NotebookNode, ast.Module]]:
        """The code cells that are Python alone, parsed."""
        return [(cell, parsed(cell.source)) for cell in self.code if "colab" not in tags(cell)]


@pytest.fixture(autouse=True, scope="module")
def _collected():
    """Sockets that kernels' event loops left open are told of here, not within another test."""
    yield
    gc.collect()


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def parsed(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except SyntaxError:  # a magic: `shell` complains of it
        return ast.Module([], [])


def lines(cell: NotebookNode) -> list[str]:
    return [line for line in cell.source.splitlines() if line.strip()]


def where(cell: NotebookNode) -> str:
    return f"cell {cell.get('id')}: {(lines(cell) or [''])[0][:60]!r}"


def text(output: NotebookNode) -> str:
    """All of an output that is text, pictures left out."""
    if output.output_type == "stream":
        return output.text
    data = output.get("data", {}).items()
    return "\n".join(str(value) for kind, value in data if not kind.startswith("image/"))


def misplaced(page: Page, cell: NotebookNode, tag: str) -> list[str]:
    """A complaint where a cell does not follow the one with a tag."""
    before = page.tagged(tag)[:1]
    good = page.solution or not before or page.cells[page.cells.index(before[0]) + 1] is cell
    return [] if good else [f"it should follow the cell tagged {tag}: {where(cell)}"]


def load(path: Path) -> Page:
    return Page(path.stem, nbformat.read(path, as_version=4), path.parent.name == "solutions")


# ---- rules ----


def title(page: Page) -> list[str]:
    """`# 03 · What it is about` where the file is 03_*.ipynb; solutions say what they are."""
    number = page.name.split("_")[0]
    begin = f"# {number} · "
    good = re.match(rf"{re.escape(begin)}\S", page.first) and re.fullmatch(r"\d\d_\w+", page.name)
    return [] if good else [f"the first line should begin with {begin!r}"]


def launchers(name: str, address: str = ADDRESS) -> list[str]:
    """Where Colab and Binder open a notebook; nowhere until the project has an address."""
    if not address.startswith("https://github.com/"):
        return []
    of = address.removeprefix("https://github.com/")
    return [
        f"https://colab.research.google.com/github/{of}/blob/main/notebooks/{name}.ipynb",
        f"https://mybinder.org/v2/gh/{of}/HEAD?labpath=notebooks%2F{name}.ipynb",
    ]


def badges(page: Page) -> list[str]:
    """Badges open this very notebook of the project's one address, and nothing else."""
    wanted = [] if page.solution else launchers(page.name)
    found = re.findall(r"\[!\[[^\]]*\]\([^)]*\)\]\(([^)]*)\)", page.first)
    return [] if found == wanted else [f"badges to {found}, not to {wanted}"]


def promises(page: Page) -> list[str]:
    """The first cell says what the reader will do, what it needs and how long it takes."""
    if page.solution:
        return []
    return [
        f"no *{word}*" for word in ("You will", "Needs", "Time") if f"*{word}" not in page.first
    ]


def colab(page: Page) -> list[str]:
    """The second cell installs on Colab, and does nothing elsewhere."""
    if page.solution:
        return []
    second = page.cells[1] if len(page.cells) > 1 else None
    found = page.tagged("colab")
    if len(found) != 1 or found[0] is not second or second.source.strip() != COLAB:
        return ["the second cell, and no other, is tagged colab and reads as in this test"]
    return []


def parameters(page: Page) -> list[str]:
    """After Colab's, one cell: profile, train and seeds with their defaults, one a line."""
    found = page.tagged("parameters")
    if page.solution and not found:
        return []
    if len(found) != 1:
        return [f"{len(found)} cells are tagged parameters"]
    got = [line.split("#")[0].strip() for line in lines(found[0])]
    wrong = [] if got == PARAMETERS else [f"the parameters are {got}, not {PARAMETERS}"]
    return wrong + misplaced(page, found[0], "colab")


def imports(page: Page) -> list[str]:
    """All imports stand in one cell, after the parameters; it ends with figures = ..."""
    found = [
        cell
        for cell, tree in page.python
        if any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(tree))
    ]
    if len(found) != 1:
        return [f"{len(found)} cells import: {'; '.join(map(where, found))}"]
    if page.solution:
        return []
    last = lines(found[0])[-1] == "figures = experiments.figures(profile)"
    wrong = [] if last else ["the imports do not end with figures = ..."]
    return wrong + misplaced(page, found[0], "parameters")


def machine(page: Page) -> list[str]:
    """Every notebook says where it runs; what tells of the machine is not compared."""
    told = [cell for cell in page.code if "show.machine(" in cell.source]
    wrong = [] if told or page.solution else ["no show.machine(profile)"]
    volatile = [*told, *(cell for cell in page.code if "experiments.read(" in cell.source)]
    compared = [cell for cell in volatile if "nbval-ignore-output" not in tags(cell)]
    return wrong + [f"not tagged nbval-ignore-output: {where(cell)}" for cell in compared]


def length(page: Page) -> list[str]:
    """25 to 45 cells."""
    fits = page.solution or 25 <= len(page.cells) <= 45
    return [] if fits else [f"{len(page.cells)} cells, not 25 to 45"]


def short(page: Page) -> list[str]:
    """Code cells of at most 20 lines."""
    return [
        f"{len(lines(cell))} lines: {where(cell)}" for cell in page.code if len(lines(cell)) > 20
    ]


def median(page: Page) -> list[str]:
    """Half of the code cells have at most 6 lines."""
    middle = statistics.median(len(lines(cell)) for cell in page.code) if page.code else 0
    return [] if page.solution or middle <= 6 else [f"the median cell has {middle} lines"]


def classes(page: Page) -> list[str]:
    """Classes live in the library; only an exercise may hold one."""
    return [
        f"a class outside exercises: {where(cell)}"
        for cell, tree in page.python
        if "exercise" not in tags(cell)
        and not page.solution
        and any(isinstance(node, ast.ClassDef) for node in ast.walk(tree))
    ]


def shell(page: Page) -> list[str]:
    """No shell line or magic outside the Colab cell."""
    return [
        f"a shell line or magic: {line.strip()!r} in {where(cell)}"
        for cell in page.code
        if "colab" not in tags(cell)
        for line in cell.source.splitlines()
        if re.match(r"\s*[!%]", line) or "get_ipython" in line
    ]


def profiles(page: Page) -> list[str]:
    """Nothing but the library's profiles depends on the profile."""
    return [
        f"asks which profile it is: {where(cell)}"
        for cell, tree in page.python
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and "profile" in {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
    ]


def semicolons(page: Page) -> list[str]:
    """No cell hides its value by a semicolon: nbval does not know of it."""
    return [
        f"ends with ;: {where(cell)}" for cell in page.code if cell.source.rstrip().endswith(";")
    ]


def paths(page: Page) -> list[str]:
    """No relative paths, and no folders of the machine that executed it."""
    wrong = [f"a relative path: {where(cell)}" for cell in page.code if "../" in cell.source]
    ours = re.compile(r"/(work|tmp|root|home|Users)/|site-packages|[A-Z]:\\\\")
    seen = [f"{where(cell)}" for cell in page.cells if ours.search(cell.source)]
    seen += [
        f"an output: {text(output)[:60]!r}" for output in page.outputs if ours.search(text(output))
    ]
    return wrong + [f"a path of one machine in {place}" for place in seen]


def links(page: Page) -> list[str]:
    """Links to other notebooks lead to one."""
    folder = FOLDER / "solutions" if page.solution else FOLDER
    text = "\n".join(cell.source for cell in page.cells if cell.cell_type == "markdown")
    found = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    return [f"a link to nowhere: {link}" for link in found if not (folder / link).exists()]


def executed(page: Page) -> list[str]:
    """Run from top to bottom in a fresh kernel: counts 1, 2, 3 ..."""
    counts = [cell.execution_count for cell in page.code]
    return [] if counts == list(range(1, len(counts) + 1)) else [f"execution counts {counts}"]


def errors(page: Page) -> list[str]:
    """No error, and nothing on standard error."""
    wrong = [output.ename for output in page.outputs if output.output_type == "error"]
    loud = [o for o in page.outputs if o.output_type == "stream" and o.name == "stderr"]
    return [f"ended with {name}" for name in wrong] + [f"warned: {o.text[:60]!r}" for o in loud]


def pictures(page: Page) -> list[str]:
    """Pictures are PNG: nbval compares everything else, and SVG is large."""
    wrong = []
    for output in page.outputs:
        kinds = [k for k in output.get("data", {}) if k.startswith("image/") and k != "image/png"]
        wrong += [f"an output of kind {kind}" for kind in kinds]
        wrong += ["SVG within an output"] if "<svg" in text(output) else []
    return wrong


def repeatable(page: Page) -> list[str]:
    """No memory addresses, styled tables, widgets or figure objects: they differ in every run."""
    sign = re.compile(r"\bat 0x[0-9a-f]{6,}|id=\"T_|vnd\.jupyter\.widget|<Figure size|<Axes")
    return [
        f"an output that differs in every run: {text(output)[:60]!r}"
        for output in page.outputs
        if sign.search(text(output) + " ".join(output.get("data", {})))
    ]


def traces(page: Page) -> list[str]:
    """Nothing of papermill stays, and no times of execution."""
    wrong = ["papermill's metadata"] if "papermill" in page.notebook.metadata else []
    wrong += [
        f"{key} in the metadata of {where(cell)}"
        for cell in page.cells
        for key in ("papermill", "execution", "ExecuteTime")
        if key in cell.metadata
    ]
    return wrong + [f"injected: {where(cell)}" for cell in page.tagged("injected-parameters")]


def kernel(page: Page) -> list[str]:
    """The kernel python3, which every environment has, and no version of one machine."""
    spec = page.notebook.metadata.get("kernelspec", {}).get("name")
    wrong = [] if spec == "python3" else [f"kernel {spec!r}"]
    return wrong


def ids(page: Page) -> list[str]:
    """Every cell has an id of its own."""
    found = [cell.get("id") for cell in page.cells]
    unique = all(found) and len(set(found)) == len(found)
    return [] if unique else ["cells without an id of their own"]


def known_tags(page: Page) -> list[str]:
    """No tag that nothing reads; above all none by which nbval skips a cell."""
    return [
        f"unknown tag {tag!r}: {where(cell)}"
        for cell in page.cells
        for tag in sorted(set(tags(cell)) - TAGS - {"injected-parameters"})
    ]


def small(page: Page) -> list[str]:
    """Under 500 kB."""
    size = len(json.dumps(page.notebook, indent=1, ensure_ascii=False).encode())
    return [] if size < LARGEST else [f"{size:,} bytes"]


def exercises(page: Page) -> list[str]:
    """A line with one to three stars begins each exercise, the hardest last."""
    found, wrong = stars(page), []
    if not found or found != sorted(found) or found[-1] > 3:
        wrong = [f"exercises with {found} stars"]
    before = None
    for cell in page.cells:
        if "exercise" in tags(cell) and not page.solution and "★" not in before.source:
            wrong.append(f"an exercise without stars: {where(cell)}")
        before = cell if cell.cell_type == "markdown" else before
    return wrong


def predictions(page: Page) -> list[str]:
    """What a reader shall predict is hidden: a guess, or outputs that JupyterLab and the site fold.

    And nothing else is.
    """
    wrong, asked = [], None  # the cell that asks, until an answer has been hidden
    under = False  # such a cell, to the end of its section
    for cell in page.cells if not page.solution else ():
        if cell.cell_type == "markdown":
            asks = bool(re.search(r"\*predict\b", cell.source.lower()))
            if asks or cell.source.startswith("## "):
                wrong += [f"its answer is seen: {where(asked)}"] if asked else []
                under, asked = asks, cell if asks else None
            continue
        folded = cell.metadata.get("jupyter", {}).get("outputs_hidden", False)
        if folded != ("hide-output" in tags(cell)) or (folded and not under):
            wrong.append(f"hidden by halves, or nothing was to be predicted: {where(cell)}")
        if folded or "show.guess(" in cell.source:
            asked = None
    return wrong + ([f"its answer is seen: {where(asked)}"] if asked else [])


# what stands in prose and in no output: why it may
FACTS = {
    "1,024": "tokens of the paper's setting, a pixel each",
    "1,025": "and the CLS token",
    "1,088": "to which the released code pads these: 17 times 64",
    "3,136": "tokens of CvT-13's first stage, 56 x 56",
    "33": "the kernel of Nyström's convolution",
    "44": "Performer's features at 16 numbers a head: 16 ln 16",
    "110": "Performer's features at 32 numbers a head: 32 ln 32",
    "180": "degrees",
    "95": "percent of an interval",
    "1,437": "images of scikit-learn's digits to train on",
    "360": "and to test on",
}
SETTINGS = "vixlib/paper/recipes.toml", "vixlib/paper/profiles.toml", "vixlib/sources.toml"
SETTINGS = (*SETTINGS, "figures/study.md")
NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?")


def numbers(text: str) -> set[str]:
    return {found.replace(",", "") for found in NUMBER.findall(text)}


def typed(page: Page) -> list[str]:
    """A number in prose, above 20, is shown by code or an output, or a setting; else it rots.

    Free are the first cell, what is quoted, referred to or to be done in an exercise, and years.
    """
    known = {*map(str, range(21)), *map(str, range(1900, 2100))} | numbers(" ".join(FACTS))
    known |= {path.stem[:2] for path in NOTEBOOKS}
    shown = [*(cell.source for cell in page.code), *map(text, page.outputs)]
    shown += [(ROOT / name).read_text().replace("_", "") for name in SETTINGS]
    known |= numbers(" ".join(shown))
    wrong = []
    for cell in page.cells[1:] if not page.solution else ():
        if cell.cell_type != "markdown" or "★" in cell.source or "## References" in cell.source:
            continue
        said = re.sub(r"`[^`]*`|\$[^$]*\$|\]\([^)]*\)|<[^>]*>", "", cell.source)
        said = re.sub(r"^(>|#).*$", "", said, flags=re.MULTILINE)
        new = sorted(numbers(said) - known)
        wrong += [f"{number} is typed, shown nowhere: {where(cell)}" for number in new]
    return wrong


def solved(page: Page) -> list[str]:
    """In a solution every verdict is "right"."""
    cells = page.code if page.solution else []
    said = {cell["id"]: "\n".join(map(text, cell.outputs)) for cell in cells}
    return [f"cell {id}: {t[:60]!r}" for id, t in said.items() if re.search(r"not (tried )?yet", t)]


RULES = [
    *(title, badges, promises, colab, parameters, imports, machine, length, short, median),
    *(classes, shell, profiles, semicolons, paths, links, executed, errors, pictures, repeatable),
    *(traces, kernel, ids, known_tags, small, exercises, predictions, typed, solved),
]


def stars(page: Page) -> list[int]:
    """How many stars each exercise has: a line of text begins with them.

    In a notebook the text counts if its answer's cell follows; in solutions all text counts.
    """
    found, above = [], ""
    for cell in page.cells:
        if cell.cell_type == "markdown":
            above = "" if page.solution else cell.source
            text = cell.source if page.solution else ""
        else:
            text, above = (above, "") if "exercise" in tags(cell) else ("", above)
        found += [len(run) for run in re.findall(r"^[\W_]*?(★+)", text, re.MULTILINE)]
    return found


def complaints(page: Page) -> list[str]:
    return [f"{rule.__name__}: {text}" for rule in RULES for text in rule(page)]


# ---- the notebooks keep them ----


@pytest.mark.parametrize(
    "path", [*NOTEBOOKS, *SOLUTIONS], ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_house_rules(path):
    page = load(path)
    nbformat.validate(page.notebook)
    assert not complaints(page)


def test_notebooks_are_numbered_without_a_gap():
    numbers = [int(path.stem.split("_")[0]) for path in NOTEBOOKS]
    assert numbers
    assert sorted(set(numbers)) == list(range(max(numbers) + 1))
    assert len(numbers) == len(set(numbers))


def test_every_notebook_has_its_solutions():
    assert [path.name for path in SOLUTIONS] == [path.name for path in NOTEBOOKS]


def test_tests_that_a_notebook_names_exist():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", "".join(p.read_text() for p in NOTEBOOKS))
    assert named
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), name


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_every_exercise_has_its_solution(path):
    assert stars(load(path)) == stars(load(FOLDER / path.name))


# ---- the rules can fail ----


def good(solution: bool = False) -> Page:
    """A notebook that keeps every rule."""
    new, name = nbformat.v4, "03_vix"
    links = " ".join(f"[![Open](https://badge)]({url})" for url in launchers(name))
    head = f"# 03 · ViX\n\n{links}\n\n*You will* look. *Needs*: 01. *Time*: seconds."

    def tagged(source: str, *names: str) -> NotebookNode:
        return new.new_code_cell(source, metadata={"tags": list(names)} if names else {})

    cells = [
        new.new_markdown_cell(head),
        tagged(COLAB, "colab"),
        tagged("\n".join(f"{line}  # why" for line in PARAMETERS), "parameters"),
        tagged(
            "from vixlib.paper import experiments, show\n\nfigures = experiments.figures(profile)"
        ),
        tagged("show.machine(profile)", "nbval-ignore-output"),
        *(tagged(f"x = {i}\nx") for i in range(20)),
        new.new_markdown_cell("**★** How many?"),
        tagged("mine = None\nshow.verdict(mine, 4)", "exercise"),
    ]
    page = Page(name, new.new_notebook(cells=cells), solution)
    page.notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    for count, cell in enumerate(page.code, 1):
        cell.execution_count = count
    page.cells[6].outputs = [new.new_output("display_data", {"image/png": "iVBORw0KGgo="})]
    page.cells[-1].outputs = [new.new_output("stream", name="stdout", text="right\n")]
    return page


def put(source: str, at: int = 7):
    """A change of one cell's source."""
    return lambda page: page.cells[at].update(source=source)


def prose(source: str, at: int = 7):
    """A change: one more cell."""
    return lambda page: page.cells.insert(at, nbformat.v4.new_markdown_cell(source))


def add(kind: str, data: dict | None = None, **fields):
    """A change of one cell's outputs."""
    return lambda page: page.cells[7].outputs.append(nbformat.v4.new_output(kind, data, **fields))


def replace(old: str, new: str, at: int = 0):
    """A change within one cell's source."""

    def change(page: Page) -> None:
        assert old in page.cells[at].source
        page.cells[at].source = page.cells[at].source.replace(old, new)

    return change


def tag(name: str, at: int = 7):
    return lambda page: page.cells[at].metadata.setdefault("tags", []).append(name)


def folded(page: Page) -> None:
    page.cells[7].metadata["jupyter"] = {"outputs_hidden": True}


def many(page: Page, count: int) -> None:
    page.cells[8:8] = [nbformat.v4.new_markdown_cell("text") for _ in range(count)]


DOCTORED = [
    (title, put("# ViX\n\n" + good().first.split("\n", 2)[2], at=0)),
    (title, replace("# 03", "# 04")),
    (badges, replace("*You will*", "[![Open](https://badge)](https://elsewhere) *You will*")),
    (promises, replace("*Time*", "When")),
    (colab, tag("colab")),
    (colab, lambda page: page.cells.pop(1)),
    (colab, replace("!git clone", "!git clone --verbose", at=1)),
    (colab, replace(ADDRESS, "https://github.com/someone/vixlib", at=1)),
    (colab, prose("hello", at=1)),
    (parameters, tag("parameters")),
    (parameters, lambda page: page.cells[2].metadata.clear()),
    (parameters, replace("laptop", "quick", at=2)),
    (parameters, put("profile, train, seeds = 'laptop', False, 1", at=2)),
    (parameters, prose("hello", at=2)),
    (imports, put("import math")),
    (imports, put("def f():\n    import math", at=-1)),
    (imports, replace("figures =", "folder =", at=3)),
    (imports, prose("hello", at=3)),
    (machine, put("1", at=4)),
    (machine, lambda page: page.cells[4].metadata.clear()),
    (machine, put("records = experiments.read(runs, train=train)")),
    (length, lambda page: page.cells.__delitem__(slice(20, 25))),
    (length, lambda page: many(page, 19)),
    (short, put("x = 1\n" * 21)),
    (median, lambda page: [cell.update(source="x = 1\n" * 7) for cell in page.cells[5:25]]),
    (classes, put("class Mine:\n    pass")),
    (classes, put("if True:\n    class Mine:\n        pass")),
    (shell, put("!ls")),
    (shell, put("x = 1\n    %time x")),
    (shell, put("get_ipython().system('ls')")),
    (profiles, put('if profile == "quick":\n    x = 1')),
    (profiles, put('x = 1 if profile in ("quick",) else 2')),
    (semicolons, put("x = 1;")),
    (paths, put('open("../data")')),
    (paths, put('open("/work/main/data")')),
    (paths, add("stream", name="stdout", text="saved in /tmp/x")),
    (paths, add("execute_result", {"text/plain": "PosixPath('/root/vixlib')"}, execution_count=3)),
    (links, put("**★** As in [that one](99_none.ipynb)?", at=-2)),
    (executed, lambda page: page.cells[7].update(execution_count=None)),
    (executed, lambda page: page.cells[7].update(execution_count=99)),
    (errors, add("error", ename="ValueError", evalue="no", traceback=[])),
    (errors, add("stream", name="stderr", text="UserWarning: no")),
    (pictures, add("display_data", {"image/svg+xml": "..."})),
    (pictures, add("display_data", {"image/jpeg": "..."})),
    (pictures, add("display_data", {"text/html": "<svg></svg>"})),
    (repeatable, add("stream", name="stdout", text="<function f at 0x7f1234567890>")),
    (repeatable, add("display_data", {"text/html": '<table id="T_1a2b3">'})),
    (repeatable, add("display_data", {"application/vnd.jupyter.widget-view+json": {}})),
    (traces, lambda page: page.notebook.metadata.update(papermill={})),
    (traces, lambda page: page.cells[7].metadata.update(papermill={})),
    (traces, lambda page: page.cells[7].metadata.update(execution={"iopub.execute_input": ""})),
    (traces, tag("injected-parameters")),
    (kernel, lambda page: page.notebook.metadata.kernelspec.update(name="venv")),
    (kernel, lambda page: page.notebook.metadata.clear()),
    (ids, lambda page: page.cells[7].update(id=page.cells[8].id)),
    (ids, lambda page: page.cells[7].pop("id")),
    (known_tags, tag("nbval-skip")),
    (known_tags, tag("raises-exception")),
    (small, put("# " + "long " * 100_000)),
    (exercises, lambda page: page.cells[-1].metadata.clear()),
    (exercises, put("How many?", at=-2)),
    (exercises, put("★★ How many?\n\n★ And how many now?", at=-2)),
    (predictions, prose("*Predict:* x?")),
    (predictions, tag("hide-output")),
    (predictions, folded),
    (predictions, lambda page: tag("hide-output")(page) or folded(page)),
    (typed, prose("It gains 3.4 points.")),
    (typed, prose("All 1,357 agree.")),
]


def doctored(change, solution: bool = False) -> Page:
    page = copy.deepcopy(good(solution))
    change(page)
    if not any(rule is executed and change is other for rule, other in DOCTORED):
        for count, cell in enumerate(page.code, 1):
            cell.execution_count = count
    return page


def test_a_good_notebook_keeps_every_rule():
    assert complaints(good()) == complaints(good(solution=True)) == []


@pytest.mark.parametrize(("rule", "change"), DOCTORED, ids=lambda x: getattr(x, "__name__", ""))
def test_a_broken_rule_is_seen(rule, change):
    page = doctored(change)
    assert [other.__name__ for other in RULES if other(page)] == [rule.__name__]


@pytest.mark.parametrize("verdict", ["not yet", "not tried yet"])
def test_an_unsolved_solution_is_seen(verdict):
    def change(page):
        page.cells[-1].outputs[0].text = f"{verdict}\n"

    assert complaints(doctored(change)) == []  # to leave it open is a reader's right
    assert [text.split(":")[0] for text in complaints(doctored(change, True))] == ["solved"]


def test_every_rule_is_tried():
    assert {rule for rule, _ in DOCTORED} | {solved} == set(RULES)


def test_stars_are_counted_once_an_exercise():
    page = good()
    answer = page.cells[-1]
    page.cells.append(answer)
    assert stars(page) == [1]
    text = "## More\n\n- ★★ Write one (not as hard as ★★★).\n- ★★ Another."
    page.cells.extend([nbformat.v4.new_markdown_cell(text), answer])
    assert stars(page) == stars(page._replace(solution=True)) == [1, 2, 2]


# ---- they run elsewhere ----


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A project of published numbers alone, and the environment that points there."""
    (tmp_path / "figures").mkdir()
    shutil.copy(ROOT / "figures" / "paper.csv", tmp_path / "figures")
    monkeypatch.setenv("VIXLIB_ROOT", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def test_papermill_runs_one_from_any_folder_without_records(elsewhere):
    folder = elsewhere / "somewhere else"
    folder.mkdir()
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "-p", "profile", "quick"]
    command += [str(FOLDER / "03_vix.ipynb"), "out.ipynb"]
    done = subprocess.run(command, cwd=folder, env={**os.environ}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    page = load(folder / "out.ipynb")
    assert [lines(cell)[-1] for cell in page.tagged("injected-parameters")] == ['profile = "quick"']
    assert any("vix train" in text(output) for output in page.outputs)
    assert not [*errors(page), *pictures(page)]
    assert [path.name for path in folder.iterdir()] == ["out.ipynb"]
    assert not [*elsewhere.glob("build/quick/records/*")]  # it only reads
    assert [*elsewhere.glob("build/quick/figures/03_*.png")]


def captured(source: str, shell: InteractiveShell) -> list[NotebookNode]:
    """The outputs of a cell that is run in this process; its error is raised."""
    with capture_output() as seen:
        done = shell.run_cell(source)
    done.raise_error()
    new = nbformat.v4.new_output
    told = {"stdout": seen.stdout, "stderr": seen.stderr}
    streams = [new("stream", name=name, text=text) for name, text in told.items() if text]
    return streams + [new("display_data", shown.data) for shown in seen.outputs]


def briefly(model, dataset, **options):
    """fit on 64 images: what a solution says of its training is its reader's, not ours to hold."""
    return fit(model, data.subset(dataset, train=64, test=64), **options)


@pytest.fixture
def shell(elsewhere, monkeypatch):
    """A kernel's shell within this process, in a project with our records."""
    if (ROOT / "figures" / "records").exists():
        shutil.copytree(ROOT / "figures" / "records", elsewhere / "figures" / "records")
    monkeypatch.setattr("vixlib.train.fit", briefly)
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_solutions_run(path, shell):
    """Each kernel would import for seconds what is imported here already."""
    page = load(path)
    with warnings.catch_warnings():
        for kind in (UserWarning, RuntimeWarning, FutureWarning):
            warnings.simplefilter("error", kind)
        for cell in page.code:
            cell.outputs = captured(cell.source, shell)
    assert any(cell.outputs for cell in page.code)
    assert not [*errors(page), *pictures(page), *solved(page)]


def test_notebooks_are_executed_two_at_a_time(tmp_path, monkeypatch):
    """Each in a kernel of its own; what it printed is kept in one piece, an error ends all.

    Nothing is left where their sockets lay.
    """
    from papermill.exceptions import PapermillExecutionError

    from vixlib.paper.reproduce import execute

    sockets, make = [], tempfile.mkdtemp

    def made(*names, **options):
        sockets.append(make(*names, **options))
        return sockets[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", made)
    slow = "import time\nx = 1\nprint(x, flush=True)\ntime.sleep(1)\nprint(2)"
    for name, source in {"a": slow, "b": "print('x' in globals())"}.items():
        cells = [nbformat.v4.new_code_cell(source)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / f"{name}.ipynb")
    seconds = execute(sorted(tmp_path.glob("*.ipynb")), tmp_path / "done")
    assert set(seconds) == {"a.ipynb", "b.ipynb"}
    assert min(seconds.values()) > 0
    told = [load(tmp_path / "done" / name).outputs[0].text for name in sorted(seconds)]
    assert told == ["1\n2\n", "False\n"]
    wrong = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    nbformat.write(wrong, tmp_path / "a.ipynb")
    with pytest.raises(PapermillExecutionError, match="ZeroDivisionError"):
        execute([tmp_path / "a.ipynb"], tmp_path / "done")
    gc.collect()
    assert len(sockets) == 3
    assert not [*filter(os.path.exists, sockets)]
