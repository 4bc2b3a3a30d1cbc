"""README's table of results, drawn from records."""

import re
from collections.abc import Iterable

from vixlib.paper.runs import runs
from vixlib.paper.tables import results
from vixlib.paper.training import read
from vixlib.systems import NOTEBOOKS, RESULTS, system

DEFAULT = "laptop"  # the profile that the committed notebooks show


def rendered_readme(text: str) -> str:
    """README with its table of results drawn from today's records of the default profile."""
    lines = [
        "| system | logged | ours | peak MB | parameters | notebook |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for name, row in results(read(runs(RESULTS, DEFAULT))).iterrows():
        notebook = NOTEBOOKS[system(name).family.table]
        link = f"[{notebook}](notebooks/{notebook}.ipynb)"
        cells = name, *row[["logged", "ours", "peak MB", "parameters"]], link
        lines.append(f"| {' | '.join(cells)} |")
    return between(text, "results", lines)


def between(text: str, name: str, lines: Iterable[str]) -> str:
    """The text with these lines between the markers of a name."""
    head, begin, rest = re.split(f"(<!-- {name}: .* -->\n)", text)
    end = f"<!-- end of {name} -->"
    return "\n".join([head + begin, *lines, "", end]) + rest.split(end)[1]
