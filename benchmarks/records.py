"""What was measured: one file a table and machine, a list of flat rows, one row a line."""

import ast
import hashlib
import json
import re
from pathlib import Path

from vixlib.paths import atomic_write

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = ROOT / "benchmarks" / "records"
MEASURED = "benchmarks/clock.py", "benchmarks/pairs.py"
LAYERS = "vixlib/attention.py", "vixlib/fused.py", "vixlib/layers.py"
EVERY = sorted(f"vixlib/models/{path.name}" for path in (ROOT / "vixlib/models").glob("*.py"))
HOSTS = "vixlib/systems.py", "vixlib/models/host.py", "vixlib/models/vix.py"
SOURCES = {  # what a table's numbers come from
    "layers": LAYERS,
    "models": (*LAYERS, *HOSTS),
    "pipeline": ("vixlib/data.py", "benchmarks/pipeline.py"),
    "scaling": LAYERS,
    "small": LAYERS,
    "systems": (*LAYERS, "vixlib/systems.py", *EVERY, "vixlib/data.py", "vixlib/train.py"),
    "fits": (*LAYERS, *HOSTS, "benchmarks/fits.py"),
    "images": ("vixlib/data.py", "vixlib/images.py", "benchmarks/images.py"),
    "scale": (*LAYERS, "vixlib/systems.py", *EVERY, "benchmarks/fits.py"),
}
# what makes a row another row of the same cell
SAME = "cell", "precision", "compiled", "threads", "allocator"


def source(table: str) -> str:
    """A hash of the code that a table measures, blind to comments and docstrings."""
    digest = hashlib.sha256()
    for file in (*MEASURED, *SOURCES[table]):
        tree = ast.parse((ROOT / file).read_text())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                first = body[0].value
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    first.value = ""
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:10]


def place(folder: Path, device: str, table: str) -> Path:
    """records/<kind of machine>/<table>.json"""
    return folder / re.sub(r"\W+", "-", device.lower()).strip("-") / f"{table}.json"


def read(file: Path) -> list[dict]:
    return json.loads(file.read_text()) if file.exists() else []


def replace(file: Path, rows: list[dict]) -> None:
    """Rows take the place of those of the same cell, measured the same way."""
    key = [rows[0][name] for name in SAME]
    kept = [row for row in read(file) if [row[name] for name in SAME] != key]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in [*kept, *rows])
    atomic_write(file, lambda path: path.write_text(f"[\n{lines}\n]\n"))
