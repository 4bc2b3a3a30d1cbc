"""Which code makes a record: a hash of all that decides an outcome, and what git says of it."""

import ast
import builtins
import hashlib
import subprocess
import tomllib
from functools import cache
from pathlib import Path

from vixlib import paths
from vixlib.errors import BadInput

# what decides an outcome beside the settings, which a record holds: modules, or names in them
LIBRARY = "attention.py fused.py layers.py released.py models/*.py systems.py"
LIBRARY += " systems.toml images.py data.py train.py distributed.py checkpoint.py"
DECIDES = dict.fromkeys(LIBRARY.split(), ()) | {"paper/runs.py": ("Run",)}
DECIDES |= {"paper/training.py": ("perform", "_prepared", "_of_curve")}
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
SILENT = "ctx", "kind", "annotation", "returns"  # fields of a syntax tree


@cache
def code(package: Path = paths.PACKAGE) -> str:
    """The hash of the code that decides an outcome, the same on every Python.

    Comments, docstrings, layout, annotations and names of local variables do not count.
    """
    total = hashlib.sha256()
    for pattern, names in DECIDES.items():
        for path in sorted(package.glob(pattern)):
            text = path.read_text("utf-8")
            form = _form(text, names) if path.suffix == ".py" else tomllib.loads(text)
            total.update(f"{path.name} {form}\n".encode())
    return total.hexdigest()[:16]


@cache
def _form(source: str, names: tuple[str, ...] = ()) -> str:
    """A module in words, or these names of it."""
    module = ast.parse(source).body
    kept = [node for node in module if not names or getattr(node, "name", "") in names]
    return _text(kept, _shared(module))


def _text(node: object, shared: set[str], local: dict[str, str] | None = None) -> str:
    """A tree in words; those of ast.dump depend on Python. `local`: within a function, its own."""
    if isinstance(node, list):
        said = [each for each in node if not _is_remark(each)]
        return f"[{', '.join(_text(each, shared, local) for each in said)}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if local is None and isinstance(node, FUNCTION):
        local = _locals(node, shared)
    if local is not None and isinstance(node, ast.AnnAssign):  # in a class it makes a field
        node = ast.Assign([node.target], node.value)
    said = []
    for field, value in ast.iter_fields(node):
        if field in ("id", "name") and local:
            value = local.get(value, value)
        if field not in SILENT and value not in (None, []):
            said.append(f"{field}={_text(value, shared, local)}")
    return f"{type(node).__name__}({', '.join(said)})"


def _is_remark(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _locals(function: ast.AST, shared: set[str]) -> dict[str, str]:
    """Numbers for the names that a function alone knows; those within it share them."""
    nodes = [*ast.walk(function)]
    if any(isinstance(node, ast.ClassDef | ast.Global | ast.Nonlocal) for node in nodes):
        return {}
    stored = [node for node in nodes if isinstance(node, ast.Name | ast.ExceptHandler)]
    fixed = shared.union(_bound(node) for node in {*nodes} - {*stored})  # arguments, imports
    names = dict.fromkeys(_bound(node) for node in stored)
    return {name: str(number) for number, name in enumerate(names) if name not in fixed}


def _shared(module: list[ast.stmt]) -> set[str]:
    """Names that all functions of a module know, builtins among them."""
    shared = {*dir(builtins)}
    for top in module:
        whole = not isinstance(top, FUNCTION | ast.ClassDef)
        shared |= {_bound(node) for node in (ast.walk(top) if whole else [top])}
    return shared


def _bound(node: ast.AST) -> str | None:
    """The name that a node gives a value."""
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.arg(name) | ast.alias(_, str(name)):
            return name
        case ast.alias(name) | ast.ExceptHandler(name=name):
            return name
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return name


@cache
def _git(*arguments: str) -> str:
    """What git said of the checkout when this process first asked; nothing outside of one."""
    if paths.CHECKOUT is None or not (paths.CHECKOUT / ".git").exists():
        return ""
    command = ["git", "-C", str(paths.CHECKOUT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def origin(*, clean: bool = False) -> dict[str, str]:
    """Columns of a record: code and commit; BadInput where `clean` is wanted and files differ.

    Both are those of the beginning: a file may change while a long queue runs.
    """
    status = _git("status", "--porcelain", "--", "vixlib/*.py", "vixlib/*.toml")
    changed = [line[3:] for line in status.splitlines()]
    if changed and clean:
        raise BadInput(f"not committed: {', '.join(changed)}; commit, or say --dirty (dirty=True)")
    commit = _git("describe", "--always", "--abbrev=10").strip() or "unknown"
    return {"commit": commit + "-dirty" * bool(changed), "code": code()}
