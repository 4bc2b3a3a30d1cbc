"""README's tables, drawn from records."""

import re
from collections.abc import Iterable

import pandas as pd

from vixlib.paper.benchmarks import benchmark, best_peers
from vixlib.paper.figures import written
from vixlib.paper.runs import runs
from vixlib.paper.tables import results
from vixlib.paper.training import read
from vixlib.systems import TABLES, system

DEFAULT = "laptop"  # the profile that the committed notebooks show


def rendered_readme(text: str) -> str:
    """README with its tables drawn from today's records: the default profile's, and benchmarks'."""
    lines = [
        "| system | logged | ours | peak MB | parameters | notebook |",
        "|---|--:|--:|--:|--:|---|",
    ]
    names = [name for table in TABLES.values() for name in table]
    for name, row in results(read(runs(names, DEFAULT))).iterrows():
        notebook = system(name).family.notebook
        link = f"[{notebook}](notebooks/{notebook}.ipynb)"
        cells = name, *row[["logged", "ours", "peak MB", "parameters"]], link
        lines.append(f"| {' | '.join(cells)} |")
    return _between(_between(text, "results", lines), "benchmarks", benchmark_lines())


def _between(text: str, name: str, lines: Iterable[str]) -> str:
    """The text with these lines between the markers of a name."""
    head, begin, rest = re.split(f"(<!-- {name}: .* -->\n)", text)
    end = f"<!-- end of {name} -->"
    return "\n".join([head + begin, *lines, "", end]) + rest.split(end)[1]


def benchmark_lines() -> list[str]:
    """README's table of ours beside the fastest package; a dash where nothing was measured."""
    layers, models, pipeline = (
        best_peers(benchmark(table, "cpu")) for table in ("layers", "models", "pipeline")
    )
    layers = layers[layers["direction"] == "training"]
    columns = "mechanism or model", "beside", "faster", "at 4,096 tokens", "times less memory"
    lines = [f"| {' | '.join(columns)} |", "|---|---|--:|--:|--:|"]
    for rows, label in ((layers, "{}"), (models, "{}, a whole step"), (pipeline, "{}")):
        for name, own in rows.groupby("mechanism", sort=False):
            shorter, longer = (own[own["tokens"] == n] for n in (1024, 4096))
            first = own if rows is not layers else shorter
            if first.empty:
                continue
            ratios = [_times(row, "ratio_median") for row in (first, longer)]
            what = label.format(written(name))
            cells = what, first["peer"].iloc[0], *ratios, _times(first, "memory")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _times(rows: pd.DataFrame, column: str) -> str:
    return f"{rows[column].iloc[0]:.2f}" if len(rows) else "–"
