"""The pages around the explorer: README, notebooks as they are committed, the API, by Sphinx."""

import os
import re
import shutil
from pathlib import Path

import nbformat
from sphinx.cmd.build import main as sphinx

from vixlib.paper import show
from vixlib.paths import CHECKOUT

HERE = Path(__file__).parent
PAGES = HERE / "pages"
TEXTS = (
    "README.md",
    "figures/study.md",
    "tests/README.md",
    "benchmarks/README.md",
    "docs/scale.md",
)
MODULES = "attention fused layers models.host models.vix models.levit models.cct models.cvt"
MODULES += " models.baselines systems weights maps measure contract train data images errors"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def build(out: Path, only: list[str] | None = None) -> None:
    """Render everything, or `only` these notebooks of all, into an empty folder."""
    source = out.with_name(f"{out.name}-source")
    for folder in (source, out):
        shutil.rmtree(folder, ignore_errors=True)
    address = _address()
    for name in TEXTS:
        stage(CHECKOUT / name, source / name, source, address)
    chosen = sorted((CHECKOUT / "notebooks").rglob("*.ipynb"))
    chosen = [path for path in chosen if ".ipynb_checkpoints" not in path.parts]
    for path in chosen:
        if only is None or path.stem in only:
            to = source / path.relative_to(CHECKOUT)
            to.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(prepared(nbformat.read(path, as_version=4), to, source, address), to)
    for name in ("index.md", "explorer/index.md"):
        stage(PAGES / name, source / name, source, address)
    (source / "api.md").write_text(api())
    os.environ["VIXLIB_CHECKOUT"] = str(CHECKOUT)
    how = ["-q", "--keep-going"] if only else ["-q", "-W", "--keep-going"]
    doctrees = source.with_name(f"{out.name}-doctrees")
    if sphinx([*how, "-E", "-c", str(HERE), "-d", str(doctrees), str(source), str(out)]):
        raise SystemExit("Sphinx complains, see above")
    mathjax = out / "_static" / "mathjax"
    mathjax.mkdir()
    shutil.copy(HERE / "node_modules" / "mathjax" / "es5" / "tex-svg.js", mathjax)
    for left in (".buildinfo", "objects.inv"):
        (out / left).unlink(missing_ok=True)


def _address() -> str:
    text = (CHECKOUT / "pyproject.toml").read_text()
    return re.search(r'^Repository = "(.*)"', text, re.MULTILINE)[1]


def stage(path: Path, to: Path, source: Path, address: str) -> None:
    """Copy a text, and what it links to."""
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(linked(path.read_text(), path, to, source, address))


def linked(text: str, path: Path, to: Path, source: Path, address: str) -> str:
    """Links to files of the project bring them along; those to folders become plain text."""

    def each(match: re.Match) -> str:
        mark, title, target, _ = match.groups()
        if target.startswith(f"{address}/blob/main/"):
            wanted = CHECKOUT / target.removeprefix(f"{address}/blob/main/")
        elif re.match(r"[a-z]+:", target) or not (path.parent / target).exists():
            return match[0]
        else:
            wanted = (path.parent / target).resolve()
        if wanted.is_dir():
            return title
        copy = source / wanted.relative_to(PAGES if wanted.is_relative_to(PAGES) else CHECKOUT)
        if wanted.suffix not in (".md", ".ipynb"):  # those are pages of their own
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(wanted, copy)
        return f"{mark}[{title}]({os.path.relpath(copy, to.parent)}{match[4] or ''})"

    return LINK.sub(each, text)


def prepared(notebook: nbformat.NotebookNode, to: Path, source: Path, address: str):
    """A notebook without badges, its links within the site, its pictures described."""
    path = CHECKOUT / to.relative_to(source)
    heading = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            kept = [line for line in cell.source.splitlines() if "[![" not in line]
            cell.source = linked("\n".join(kept), path, to, source, address)
            found = re.findall(r"^#+ (.*)", cell.source, re.MULTILINE)
            heading = re.sub(r"[*`$\\]", "", found[-1]) if found else heading
            continue
        if "colab" in cell.metadata.get("tags", []):
            cell.metadata["tags"] = ["remove-cell"]
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            cell.metadata["mystnb"] = {"image": {"alt": described(cell.source, heading)}}
    return notebook


def described(code: str, heading: str) -> str:
    """What a cell draws: the first line that its functions say of themselves, under a heading."""
    names = re.findall(r"\bshow\.(\w+)\(", code)
    said = [(getattr(show, name).__doc__ or "").split("\n")[0] for name in names]
    said = [re.sub(r"[`*]", "", line).rstrip(".") for line in said if line]
    return ". ".join([heading, *dict.fromkeys(said)]).strip(". ") + "."


def api() -> str:
    """The library module by module, from its docstrings."""
    head = "# API\n\nWhat `import vixlib` brings is at the top of each part; all comes from the\n"
    head += "docstrings. Letters of shapes: b batch, h heads, n queries, m keys, d and e widths.\n"
    parts = [head]
    for name in MODULES.split():
        options = "   :members:\n   :undoc-members:\n   :exclude-members: forward, mix, training\n"
        directive = f".. automodule:: vixlib.{name}\n{options}"
        parts.append(f"## vixlib.{name}\n\n```{{eval-rst}}\n{directive}```\n")
    return "\n".join(parts)
