"""Everything in one go: train what is missing, execute every notebook, say where it all lies."""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vixlib import paths
from vixlib.errors import BadInput, extra, one_of
from vixlib.paper.readme import DEFAULT, rendered_readme
from vixlib.paper.records import figures, records_folder
from vixlib.paper.runs import PROFILES, Run
from vixlib.paper.training import perform_all

with extra("notebooks"):
    import nbformat
    import papermill
    from jupyter_client.manager import AsyncKernelManager


def reproduce(profile: str, todo: list[Run], *, write: bool = False, **options) -> int:
    """Train `todo`, then execute all notebooks with this profile into build/<profile>/notebooks/.

    With `write` the executed notebooks of the default profile replace the committed ones, and
    README's tables are rendered. The number of runs that failed or diverged. `options` are
    perform_all's.
    """
    one_of("profile", profile, [DEFAULT] if write else PROFILES)
    notebooks = paths.root() / "notebooks"
    if not notebooks.is_dir():
        raise BadInput(f"no notebooks in {paths.root()}: reproduce works in a checkout")
    began, failed = time.monotonic(), 0
    if todo:
        beside = options.get("workers", 1)
        print(f"training {len(todo)} runs, {beside} side by side", flush=True)
        failed, _ = perform_all(todo, **options)
    trained = time.monotonic()
    executed = paths.root() / "build" / profile / "notebooks"
    seconds = execute(sorted(notebooks.glob("[0-9]*.ipynb")), executed, profile)
    for name, took in seconds.items():
        print(f"{name:32}{took:6.0f} s")
    if write:
        answers = sorted((notebooks / "solutions").glob("*.ipynb"))
        solved = execute(answers, executed / "solutions")
        for name in (*seconds, *(f"solutions/{name}" for name in solved)):
            _strip(executed / name, notebooks / name)
        readme = paths.root() / "README.md"
        readme.write_text(rendered_readme(readme.read_text()))
    print(f"training   {trained - began:5.0f} s  {records_folder(profile)}")
    print(f"notebooks  {time.monotonic() - trained:5.0f} s  {executed}")
    print(f"figures             {figures(profile)}")
    return failed


def execute(notebooks: Iterable[Path], folder: Path, profile: str = DEFAULT) -> dict[str, float]:
    """Execute notebooks with papermill, two at a time in this process; seconds by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for kernels: equal output on every machine
    given = {} if profile == DEFAULT else {"profile": profile}
    how = {"kernel_name": "python3", "kernel_manager_class": _KernelManager, "progress_bar": False}
    how["coalesce_streams"] = True  # else a busy machine cuts what a cell prints in two

    def one(notebook: Path) -> tuple[str, float]:
        began = time.monotonic()
        papermill.execute_notebook(notebook, folder / notebook.name, given, **how)
        return notebook.name, time.monotonic() - began

    with ThreadPoolExecutor(2) as pool:
        return dict(pool.map(one, notebooks))


class _KernelManager(AsyncKernelManager):
    """Kernels on files instead of TCP ports: for those, kernels started together would race."""

    def __init__(self, **options):
        if os.name == "posix":
            self._folder = tempfile.TemporaryDirectory(prefix="vix")  # goes with this manager
            options |= {"transport": "ipc", "ip": f"{self._folder.name}/k"}
        super().__init__(**options)

    async def start_kernel(self, **options):
        """What goes wrong comes through the protocol; standard error has only its farewell."""
        await super().start_kernel(stderr=subprocess.DEVNULL, **options)


def _strip(executed: Path, target: Path) -> None:
    """Copy a notebook without papermill's traces: when, where and how long."""
    notebook = nbformat.read(executed, as_version=4)
    for part in (notebook, *notebook.cells):
        for trace in ("papermill", "execution"):
            part.metadata.pop(trace, None)
    nbformat.write(notebook, target)
