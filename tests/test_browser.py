"""A student's first minute: JupyterLab in a real browser opens 00 and runs all of it."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).parents[1]
RUN = """
const done = found => { window.seen = found; };
const app = window.jupyterapp, panel = app.shell.currentWidget;
(async () => {
  await panel.context.ready;
  await panel.sessionContext.ready;
  await app.commands.execute('notebook:run-all-cells');
  const kernel = panel.sessionContext.session.kernel;
  while (kernel.status !== 'idle') await new Promise(resolve => setTimeout(resolve, 200));
  const cells = panel.content.model.cells, outputs = [], counts = [];
  for (let i = 0; i < cells.length; i++) {
    if (cells.get(i).type !== 'code') continue;
    counts.push(cells.get(i).executionCount);
    for (const output of cells.get(i).outputs.toJSON()) outputs.push(output.output_type);
  }
  done({counts, outputs});
})().catch(error => done({error: String(error)}));
"""


@pytest.mark.browser
def test_run_all_in_jupyterlab(tmp_path):
    selenium = pytest.importorskip(
        "selenium.webdriver", reason="selenium: pip install '.[browser]'"
    )
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no chromium and chromedriver on this machine")
    notebooks = shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    server = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    server += ["--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True"]
    settings = tmp_path / "settings"  # the news toast would cover what is to be clicked
    quiet = settings / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false"}')
    environment = os.environ | {"JUPYTERLAB_SETTINGS_DIR": str(settings)}
    options = selenium.ChromeOptions()
    for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(option)
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(server, cwd=notebooks, env=environment, **silent) as running:
        try:
            _wait(lambda: urlopen(f"{address}/api").status == 200)
            with selenium.Chrome(
                options, selenium.ChromeService(shutil.which("chromedriver"))
            ) as at:
                at.get(f"{address}/lab/tree/00_start_here.ipynb")
                opened = "return !!window.jupyterapp?.shell?.currentWidget?.sessionContext?.isReady"
                _wait(lambda: at.execute_script(opened))
                at.execute_script(RUN)
                _wait(lambda: at.execute_script("return !!window.seen"), 400)
                seen = at.execute_script("return window.seen")
        finally:
            running.terminate()
    assert "error" not in seen, seen
    assert seen["counts"] == [*range(1, len(seen["counts"]) + 1)]
    assert len(seen["counts"]) > 10
    assert "error" not in seen["outputs"]


def _wait(ready, seconds=120):
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if ready():
                return
        assert time.monotonic() < end, "JupyterLab did not get ready"
        time.sleep(0.3)
