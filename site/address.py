"""Set the repository's address everywhere: `make address URL=https://github.com/owner/name`.

Badges and a launch on Colab or Binder exist for an address on GitHub alone. Until one is set there
is none that a stranger could take: pyproject.toml has a host under .invalid (RFC 2606).
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).parents[1]
UNSET = "https://vixlib.invalid/vixlib"
GITHUB = "https://github.com/"
COLAB = "https://colab.research.google.com"
BINDER = "https://mybinder.org"
TEXTS = [".md", ".py", ".toml", ".cff", ".ipynb", ".yml", ".yaml", ".cfg"]


def slug(url: str) -> str:
    """owner/name as Colab, Binder and torch.hub want it; GitHub has no owner with a dot."""
    return url.removeprefix(GITHUB).removeprefix("https://")


def badges(url: str, name: str) -> str:
    """The line of a notebook's badges, or nothing."""
    if not url.startswith(GITHUB):
        return ""
    path = f"notebooks/{name}.ipynb"
    colab = f"{COLAB}/github/{slug(url)}/blob/main/{path}"
    binder = f"{BINDER}/v2/gh/{slug(url)}/HEAD?labpath={quote(path, safe='')}"
    pictures = f"{COLAB}/assets/colab-badge.svg", f"{BINDER}/badge_logo.svg"
    return f"[![Open in Colab]({pictures[0]})]({colab}) [![Binder]({pictures[1]})]({binder})"


def current(root: Path) -> str:
    text = (root / "pyproject.toml").read_text("utf-8")
    return re.search(r'^Repository = "(.*)"$', text, re.MULTILINE)[1]


def set_address(url: str, root: Path = ROOT) -> list[Path]:
    """Write the address into every tracked text that has one; returns the files that changed."""
    if not re.fullmatch(r"https://[\w.-]+(/[\w.-]+)+", url) or url.endswith(".git"):
        raise SystemExit(f"URL={url}: expected such as https://github.com/owner/name")
    old, changed = current(root), []
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = root / name
        if path.suffix not in TEXTS or not path.exists() or path.name == Path(__file__).name:
            continue
        text = path.read_text("utf-8")
        new = text.replace(old, url)
        new = new.replace(f'torch.hub.load("{slug(old)}', f'torch.hub.load("{slug(url)}')
        if path.suffix == ".ipynb":
            new = of_notebook(new, url, path)
        elif path.name == "CITATION.cff":
            new = of_citation(new, url)
        if new != text:
            path.write_text(new, "utf-8")
            changed.append(path)
    return changed


def of_notebook(text: str, url: str, path: Path) -> str:
    """Badges below the title, as Jupyter writes files; solutions have none."""
    notebook = json.loads(text)
    if path.parent.name != "notebooks":
        return text
    first = notebook["cells"][0]
    title, *rest = [line for line in first["source"] if "[![" not in line]
    while rest and not rest[0].strip():
        rest.pop(0)
    line = badges(url, path.stem)
    first["source"] = [title, "\n", *([f"{line}\n", "\n"] if line else []), *rest]
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def of_citation(text: str, url: str) -> str:
    """repository-code after the licence, where there is an address."""
    text = re.sub(r"^repository-code: .*\n", "", text, flags=re.MULTILINE)
    if url == UNSET:
        return text
    return re.sub(r"^(license: .*\n)", rf'\1repository-code: "{url}"\n', text, flags=re.MULTILINE)


def main(arguments: list[str], say: Callable[[str], object] = print) -> None:
    (url,) = arguments or [""]
    for path in set_address((url or UNSET).rstrip("/")):
        say(path.relative_to(ROOT))


if __name__ == "__main__":
    main(sys.argv[1:])
