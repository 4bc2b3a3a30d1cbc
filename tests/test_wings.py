"""Two wings: the library works without what only the companion needs, and knows nothing of it."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vixlib"
ABSENT = ["pandas", "seaborn", "matplotlib", "sklearn", "scipy", "IPython", "papermill", "nbformat"]
NEEDED = {"torch", "torchvision", "einops", "numpy", "safetensors", "tqdm", "PIL", "filelock"}
EXTRA = {"vixlib.data": {"sklearn"}, "vixlib.weights": {"onnxscript"}}  # within a function
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
LIBRARY = [name for name in MODULES if not name.startswith("vixlib.paper")]


def alone(code: str) -> subprocess.CompletedProcess:
    """Python code in a process of its own where the companion's packages are not installed."""
    head = f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n"
    command = [sys.executable, "-W", "error::DeprecationWarning:vixlib", "-c", head + code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


LIBRARY_WORKS = """
import torch, vixlib
from vixlib import data, maps, train
from vixlib.contract import check_mechanism

assert vixlib.build("ViN").size == (32, 32)
assert all(row.holds for row in check_mechanism(vixlib.Nystrom))
pixels = torch.randint(256, (20, 3, 16, 16), dtype=torch.uint8)
labels = torch.arange(20) % 3
noise = data.Dataset(pixels, labels, pixels, labels, ("a", "b", "c"), "noise")
model = vixlib.build("ViN", image_size=16, patch_size=2, dim=32, depth=1, num_classes=3)
curve = train.fit(model, noise, epochs=2, batch=10)
assert [row["epoch"] for row in curve] == [1, 2]
assert len(train.evaluate(model, noise)) == 2
looked = maps.attention_maps(model, data.normalise(pixels[:2]))
assert maps.rollout(looked).shape == (2, 16, 16)
assert not [name for name in sys.modules if name.startswith("vixlib.paper")]
"""


def test_the_library_works_alone():
    done = alone(LIBRARY_WORKS)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_command_line_says_what_to_install():
    done = alone("from vixlib.__main__ import main\nprint(main(['list']))")
    assert done.stdout == "2\n"
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("vix: ")
    assert "pip install 'vixlib[paper]'" in done.stderr


def test_digits_say_what_to_install():
    done = alone("from vixlib import data\ndata.load('digits')")
    assert "MissingExtra: sklearn" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("pip install 'vixlib[paper]'")


# ---- who imports whom ----


def imports(name: str) -> list[tuple[str, bool]]:
    """What a module imports, by whole names, and whether it does so when it is imported itself."""
    tree = ast.parse(MODULES[name].read_text())
    later = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: relative"
            parts = [f"{node.module}.{alias.name}" for alias in node.names]
            named = [part if part in MODULES else node.module for part in parts]
        else:
            continue
        found += [(each, node not in later) for each in named]
    return found


def test_modules_are_found():
    assert {"vixlib", "vixlib.fused", "vixlib.models.vix", "vixlib.paper.runs"} <= set(MODULES)
    seen = dict(imports("vixlib.data"))
    assert seen["vixlib.paths"]
    assert not seen["sklearn.datasets"]  # where it is needed


@pytest.mark.parametrize("name", [name for name in LIBRARY if name != "vixlib.__main__"])
def test_the_library_knows_nothing_of_its_companion(name):
    assert not [other for other, _ in imports(name) if other.startswith("vixlib.paper")]


@pytest.mark.parametrize("name", LIBRARY)
def test_the_library_needs_few_packages(name):
    packages = {other.split(".")[0] for other, _ in imports(name)}
    packages -= {*sys.stdlib_module_names, "vixlib"}
    assert packages <= NEEDED | EXTRA.get(name, set())


def test_nobody_imports_in_a_circle():
    names = dict.fromkeys(MODULES, ())
    graph = {name: {other for other, _ in imports(name) if other in names} for name in names}
    assert len([*graphlib.TopologicalSorter(graph).static_order()]) == len(MODULES)
