"""The explorer and the site: what runs in the browser is what torch computes; one address."""

import functools
import http.server
import json
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from vixlib import paths

SITE = paths.CHECKOUT / "site"
sys.path.insert(0, str(SITE))  # its scripts import each other
BUILT = paths.CHECKOUT / "build" / "site"


def exported(name, tmp_path, *inputs):
    """What onnxruntime gives for a file of the explorer."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install '.[export]'")
    import exports

    file = tmp_path / f"{name}.onnx"
    models = dict.fromkeys(exports.MODELS)
    exports.jobs(models)[name].write(file)
    session = onnxruntime.InferenceSession(str(file))
    named = [each.name for each in session.get_inputs()]
    return session.run(None, {n: x.numpy() for n, x in zip(named, inputs, strict=True)})


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.`:FutureWarning")
@pytest.mark.parametrize(("name", "part"), [("nystrom8", None), ("linformer", (8, 64))])
def test_a_mechanism_of_the_explorer_is_ours(name, part, tmp_path):
    """At another number of tokens than it was exported with."""
    pytest.importorskip("onnxscript", reason="pip install '.[export]'")
    import exports

    torch.manual_seed(0)
    q, k, sharpness = torch.randn(1, 1, 64, 32), torch.randn(1, 1, 64, 32), torch.tensor(2.0)
    given = [] if part is None else [torch.randn(*part) / 8]
    seen, rows, whole = exported(name, tmp_path, q, k, sharpness, *given)
    with torch.no_grad():
        wanted = exports.alone(name.rstrip("0123456789"), 8)(q, k, sharpness, *given)
    for got, want in zip((seen, rows, whole), wanted, strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-4)
    softmax = (2 * q @ k.mT / 32**0.5).softmax(-1)[0, 0]
    away = np.linalg.norm(seen - softmax.numpy()) / softmax.norm().item()
    assert whole == pytest.approx(away, rel=1e-3)


def test_the_address_is_set_everywhere(tmp_path):
    """And taken back: not a byte is left of it."""
    import address

    subprocess.run(["git", "clone", "-q", str(paths.CHECKOUT), str(tmp_path / "copy")], check=True)
    root, url = tmp_path / "copy", "https://github.com/" + "some-body/vix"
    old = address.current(root)
    changed = address.set_address(url, root)
    assert {path.suffix for path in changed} >= {".toml", ".ipynb"}
    first = json.loads((root / "notebooks" / "03_vix.ipynb").read_text())["cells"]
    assert "colab.research.google.com/github/some-body/vix/blob" in "".join(first[0]["source"])
    assert any(f"git clone --quiet --depth 1 {url} " in "".join(c["source"]) for c in first)
    address.set_address(old, root)
    status = ["git", "-C", str(root), "status", "--porcelain"]
    assert subprocess.run(status, capture_output=True, text=True).stdout == ""
    with pytest.raises(SystemExit, match="expected such as https"):
        address.set_address("github.com/someone", root)


def test_weights_of_the_explorer_have_their_records():
    folder = paths.PACKAGE / "pretrained"
    runs = json.loads((folder / "runs.json").read_text())
    assert {path.stem for path in folder.glob("*.safetensors")} == set(runs)
    for name, run in runs.items():
        (found,) = (paths.CHECKOUT / "figures" / "records").glob(f"*/{run}.json")
        assert json.loads(found.read_text())["system"] == name


# ---- in a browser, after `make site` ----


@pytest.fixture(scope="module")
def page():
    """A browser at the built site, and where it is served."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install '.[browser]'")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no chromium and chromedriver on this machine")
    if not (BUILT / "explorer" / "about.json").exists():
        pytest.skip("no site in build/site: make site")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    serve = functools.partial(Quiet, directory=str(BUILT))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = webdriver.ChromeOptions()
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,1000"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    browser = webdriver.Chrome(options, service)
    yield browser, f"http://127.0.0.1:{server.server_port}"
    browser.quit()
    server.shutdown()


def wait(browser, script, seconds=60):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, seconds).until(lambda b: b.execute_script(f"return {script}"))


@pytest.mark.proof
@pytest.mark.browser
def test_the_explorer_computes_and_is_moved_by_keys(page):
    browser, url = page
    browser.get(f"{url}/explorer/index.html")
    wait(browser, "performance.getEntriesByName('computed').length > 0")
    first = browser.execute_script(
        "return performance.getEntriesByName('first picture')[0].startTime"
    )
    assert first < 2000
    assert "Computed in your browser" in browser.find_element("id", "status").text
    where = browser.find_element("id", "where").text
    photo = browser.find_element("id", "photo")
    photo.send_keys("\ue015")  # arrow down
    wait(browser, f"document.getElementById('where').textContent !== {json.dumps(where)}")
    browser.find_element("id", "tab-trained").click()
    wait(browser, "document.querySelector('.guess')?.textContent.includes('%')")
    browser.find_element("id", "tab-records").click()
    wait(browser, "document.getElementById('records').textContent.length > 100")
    assert not [row for row in browser.get_log("browser") if row["level"] == "SEVERE"]
    size = sum(path.stat().st_size for path in (BUILT / "explorer").iterdir())
    assert size < 8.4e6


@pytest.mark.proof
@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_need_not_scroll_sideways(page, dark):
    browser, url = page
    size = {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    browser.get(f"{url}/explorer/index.html")
    wait(browser, "performance.getEntriesByName('first picture').length > 0")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    browser.save_screenshot(str(BUILT.parent / f"explorer-{'dark' if dark else 'light'}.png"))
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.proof
@pytest.mark.browser
@pytest.mark.parametrize(
    "name", ["index", "README", "api", "notebooks/03_vix", "notebooks/13_study"]
)
def test_pages_open_without_errors(page, name):
    browser, url = page
    if not (BUILT / f"{name}.html").exists():
        pytest.skip("the explorer alone was built: make site")
    browser.get(f"{url}/{name}.html")
    wait(browser, "document.readyState === 'complete'")
    assert browser.title
    errors = [row for row in browser.get_log("browser") if row["level"] == "SEVERE"]
    assert not errors, errors
    unnamed = "[...document.images].filter((i) => !i.alt).map((i) => i.src)"
    assert browser.execute_script(f"return {unnamed}") == []
