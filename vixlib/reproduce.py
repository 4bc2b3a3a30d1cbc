"""Everything in one go: train what is missing, execute every notebook, say where it all lies."""

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pandas as pd
import papermill
from jupyter_client.manager import AsyncKernelManager

from vixlib import ROOT, experiments, measure, show
from vixlib.errors import one_of
from vixlib.experiments import PROFILES, Run

DEFAULT = "laptop"  # the profile that the committed notebooks show
NOTEBOOKS = {  # where a table of runs is discussed
    "vix": "03_vix",
    "hybrid": "04_hybrid_vix",
    "rope": "05_rope",
    "hybrid-rope": "05_rope",
    "levit": "06_levit",
    "cct": "07_cct",
    "cvt": "08_cvt",
    "mixers": "09_fnet_mixer",
    "yardsticks": "11_paper_tables",
}


def reproduce(
    profile: str,
    todo: list[Run],
    *,
    workers: int = 1,
    folder: str | Path | None = None,
    write: bool = False,
) -> None:
    """Train `todo`, then execute all notebooks with this profile into build/<profile>/notebooks/.

    With `write` the executed notebooks of the default profile replace the committed ones, and
    README's tables are rendered.
    """
    one_of("profile", profile, [DEFAULT] if write else PROFILES)
    began = time.monotonic()
    if todo:
        print(f"training {len(todo)} runs, {workers} side by side", flush=True)
        experiments.perform_all(todo, workers=workers, folder=folder)
    trained = time.monotonic()
    executed = ROOT / "build" / profile / "notebooks"
    seconds = execute(sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")), executed, profile)
    for name, took in seconds.items():
        print(f"{name:32}{took:6.0f} s")
    if write:
        answers = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
        seconds |= {
            f"solutions/{k}": v for k, v in execute(answers, executed / "solutions").items()
        }
        for name in seconds:
            _strip(executed / name, ROOT / "notebooks" / name)
        readme = ROOT / "README.md"
        readme.write_text(rendered_readme(readme.read_text()))
    print(f"training   {trained - began:5.0f} s  {experiments.records_folder(profile)}")
    print(f"notebooks  {time.monotonic() - trained:5.0f} s  {executed}")
    print(f"figures             {experiments.figures(profile)}")


def execute(notebooks: Iterable[Path], folder: Path, profile: str = DEFAULT) -> dict[str, float]:
    """Execute notebooks with papermill, two at a time in this process; seconds by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for kernels: equal output on every machine

    def one(notebook: Path) -> tuple[str, float]:
        began = time.monotonic()
        papermill.execute_notebook(
            notebook,
            folder / notebook.name,
            parameters={} if profile == DEFAULT else {"profile": profile},
            kernel_name="python3",
            kernel_manager_class=_KernelManager,
            progress_bar=False,
        )
        return notebook.name, time.monotonic() - began

    with ThreadPoolExecutor(2) as pool:
        return dict(pool.map(one, notebooks))


class _KernelManager(AsyncKernelManager):
    """Kernels on files instead of TCP ports: for those, kernels started together would race."""

    def __init__(self, **options):
        if os.name == "posix":
            options |= {"transport": "ipc", "ip": tempfile.mkdtemp(prefix="vix") + "/k"}
        super().__init__(**options)

    async def start_kernel(self, **options):
        """What goes wrong comes through the protocol; standard error has only its farewell."""
        await super().start_kernel(stderr=subprocess.DEVNULL, **options)


def _strip(executed: Path, target: Path) -> None:
    """Copy a notebook without papermill's traces: when, where and how long."""
    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
    nbformat.write(notebook, target)


def rendered_readme(text: str) -> str:
    """README with its tables drawn from today's records: the default profile's, and benchmarks'."""
    lines = [
        "| system | logged | ours | peak MB | parameters | notebook |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for table, notebook in NOTEBOOKS.items():
        wanted = experiments.runs(experiments.TABLES[table], DEFAULT)
        results = show.results(experiments.read(wanted))
        link = f"[{notebook}](notebooks/{notebook}.ipynb)" if notebook else ""
        for name, row in results.iterrows():
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
        measure.best_peers(measure.benchmark(table, "cpu"))
        for table in ("layers", "models", "pipeline")
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
            what = label.format(show.written(name))
            cells = what, first["peer"].iloc[0], *ratios, _times(first, "memory")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _times(rows: pd.DataFrame, column: str) -> str:
    return f"{rows[column].iloc[0]:.2f}" if len(rows) else "–"
