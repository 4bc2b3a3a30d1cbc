"""The static site: its address, its pages and links, and the explorer in a real browser."""

import base64
import gzip
import json
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock

from vixlib import attention, load
from vixlib.attention import Grid, segment_means
from vixlib.maps import attention_map, attention_maps

ROOT = Path(__file__).parents[1]
UNSET = "https://vixlib.invalid/vixlib"  # RFC 2606: nobody can own it
NEAR = 1e-4  # of torch
PAGES = "index.html", "README.html", "api.html", "figures/study.html"
PAGES += ("notebooks/01_attention.html", "explorer/index.html")
NEEDS = "sphinx", "myst_nb", "sphinx_book_theme", "onnxscript", "sklearn"


# ---- the address ----


def tracked():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    return [name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).exists()]


def run_address(root, *url):
    done = [sys.executable, "site/address.py", *url]
    return subprocess.run(done, cwd=root, capture_output=True, text=True)


@pytest.fixture
def copied(tmp_path):
    """The files that can have an address, in a repository of their own."""
    for name in tracked():
        if not name.startswith(("figures/records", "benchmarks/records")):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run(["git", "init", "-q", "."], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "-A"], cwd=tmp_path, check=True)
    return tmp_path


def test_an_address_is_set_everywhere_and_unset_again(copied):
    def texts():
        return {
            name: (copied / name).read_bytes() for name in tracked() if (copied / name).exists()
        }

    assert run_address(copied, UNSET).returncode == 0
    before, url = texts(), "https://github.com/someone/companion"
    assert run_address(copied, url).returncode == 0
    after = texts()
    own = {"site/address.py", "tests/test_site.py"}
    assert not [name for name in after.keys() - own if UNSET.encode() in after[name]]
    assert f'Repository = "{url}"' in after["pyproject.toml"].decode()
    assert f'repository-code: "{url}"' in after["CITATION.cff"].decode()
    notebook = json.loads(after["notebooks/03_vix.ipynb"])
    first, colab = ("".join(cell["source"]) for cell in notebook["cells"][:2])
    place = "someone/companion/blob/main/notebooks/03_vix.ipynb"
    assert f"(https://colab.research.google.com/github/{place})" in first
    place = "someone/companion/HEAD?labpath=notebooks%2F03_vix.ipynb"
    assert f"(https://mybinder.org/v2/gh/{place})" in first
    assert f"git clone --quiet --depth 1 {url} /content/vixlib" in colab
    assert run_address(copied).returncode == 0
    assert texts() == before


@pytest.mark.parametrize("url", ["someone/companion", "http://github.com/a/b", "https://a.b/c.git"])
def test_what_is_no_address_is_refused(copied, url):
    before = (copied / "pyproject.toml").read_text()
    done = run_address(copied, url)
    assert done.returncode != 0
    assert f"URL={url}" in done.stderr
    assert (copied / "pyproject.toml").read_text() == before


def test_until_it_is_set_no_stranger_can_take_the_address():
    project = (ROOT / "pyproject.toml").read_text()
    if f'Repository = "{UNSET}"' not in project:
        pytest.skip("the address is set")
    for name in tracked():
        if Path(name).suffix in {".ipynb", ".md", ".py", ".cff", ".toml"}:
            assert "github.com/" + "vixlib" not in (ROOT / name).read_text("utf-8"), name


def test_the_workflow_publishes_what_make_site_builds():
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "pages.yml").read_text())
    steps = flow["jobs"]["build"]["steps"]
    assert "make site" in [step.get("run") for step in steps]
    assert "build/site" in [step.get("with", {}).get("path") for step in steps]
    assert "\nsite: " in (ROOT / "Makefile").read_text()


# ---- what is built ----


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The explorer with one number of tokens, and the pages around two notebooks; built once."""
    for package in NEEDS:
        pytest.importorskip(package, reason=f"{package}: pip install '.[export,site]'")
    if not (ROOT / "site" / "node_modules").exists():
        pytest.skip("what npm vendors is not there: npm ci --prefix site")
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if base.name.startswith("popen-") else base
    out = shared / "site"
    with FileLock(f"{out}.lock"):
        if not (out / "explorer" / "records.json").exists():
            command = [sys.executable, ROOT / "site" / "build.py", "--out", out, "--few"]
            command += ["--notebooks", "00_start_here", "01_attention"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return out


class Page(HTMLParser):
    """What a page loads, where it leads, and its pictures without a description."""

    def __init__(self, path):
        super().__init__()
        self.loads, self.links, self.ids, self.mute = [], [], set(), []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        has = dict(attributes)
        self.ids.add(has.get("id") or has.get("name"))
        if tag in {"script", "img", "source", "iframe", "input"} and has.get("src"):
            self.loads.append(has["src"])
        if tag == "link" and has.get("rel") not in {"canonical"} and has.get("href"):
            self.loads.append(has["href"])
        if tag == "a" and has.get("href"):
            self.links.append(has["href"])
        if tag == "img" and not (has.get("alt") or "").strip() and "aria-hidden" not in has:
            self.mute.append(has.get("src"))


def pages_of(built):
    return {path: Page(path) for path in built.rglob("*.html")}


def test_nothing_is_loaded_from_elsewhere(built):
    for path, page in pages_of(built).items():
        foreign = [url for url in page.loads if urlsplit(url).scheme in {"http", "https"}]
        assert not [url for url in foreign if "://" in url], path
    for path in [*built.rglob("*.css"), *(built / "explorer").glob("*.js")]:
        assert not re.findall(r"(?:url\(|import )[\"']?https?:", path.read_text("utf-8")), path


def test_links_lead_somewhere(built):
    seen = pages_of(built)
    notebooks = {path.stem for path in (ROOT / "notebooks").rglob("*.ipynb")}
    for path, page in seen.items():
        for url in page.links + page.loads:
            if urlsplit(url).scheme or urlsplit(url).netloc:
                continue
            there = urljoin(path.relative_to(built).as_posix(), unquote(urlsplit(url).path))
            target = built / there if urlsplit(url).path else path
            if Path(there).stem in notebooks and not target.exists():
                continue  # two notebooks alone are built here
            assert target.exists(), f"{path}: {url}"
            part = unquote(urlsplit(url).fragment)
            if part.endswith(".ipynb"):
                continue
            if part and target in seen and "explorer" not in target.parts:
                assert part in seen[target].ids, f"{path}: {url}"


def test_every_picture_has_an_alternative_text(built):
    for path, page in pages_of(built).items():
        assert not page.mute, path


def test_a_notebook_is_shown_as_it_was_run(built):
    text = (built / "notebooks" / "01_attention.html").read_text("utf-8")
    assert text.count("<img") > 3
    assert "colab-badge" not in text
    assert (built / "searchindex.js").exists()


def test_the_explorer_is_small(built):
    assert sum(path.stat().st_size for path in (built / "explorer").iterdir()) <= 8_000_000


def test_the_first_picture_is_what_torch_computes(built):
    """The maps of the page's first settings, a byte a weight, by the textbook formula."""
    about = json.loads((built / "explorer" / "about.json").read_text())
    n, kept = about["first"]["tokens"], about["first"]["kept"]["linformer"]
    packed = gzip.decompress((built / "explorer" / "first.bin.gz").read_bytes())
    scale = np.frombuffer(packed, np.float32, n)
    exact = np.frombuffer(packed, np.int8, n * n, 4 * n).reshape(n, n) * scale[:, None]
    assert np.abs(exact.sum(1) - 1).max() < n / 254 * np.abs(exact).max()
    rest = packed[4 * n + n * n :]
    scale = np.frombuffer(rest, np.float32, n)
    linformer = np.frombuffer(rest, np.int8, n * n, 4 * n).reshape(n, n) * scale[:, None]
    runs = linformer.reshape(n, kept, n // kept)
    assert np.allclose(runs, runs[:, :, :1])  # a query sees averages of runs
    away = np.linalg.norm(linformer - exact) / np.linalg.norm(exact)
    assert away == pytest.approx(about["errors"]["linformer"]["whole"], rel=0.02)


def test_weights_of_the_explorer_have_their_records():
    folder = ROOT / "vixlib" / "pretrained"
    runs = json.loads((folder / "runs.json").read_text())
    assert {path.stem for path in folder.glob("*.safetensors")} == set(runs)
    for name, run in runs.items():
        (found,) = (ROOT / "figures" / "records").glob(f"*/{run}.json")
        assert json.loads(found.read_text())["system"] == name


# ---- in a browser ----


@pytest.fixture(scope="session")
def address(built):
    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=built))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="session")
def chromium(address):
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium: pip install '.[tests]'")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no chromium and chromedriver on this machine")
    options = selenium.ChromeOptions()
    for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = selenium.ChromeService(shutil.which("chromedriver"))
    with selenium.Chrome(options, service) as at:
        at.set_script_timeout(100)  # selenium itself waits for 120 seconds
        yield at


def resized(at, width):
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    at.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def marked(at, name):
    """When the page set a mark, in ms, waiting for it."""
    return at.execute_async_script(
        """
        const [name, done] = arguments;
        const look = () => {
          const [mark] = performance.getEntriesByName(name);
          if (mark) done(mark.startTime); else setTimeout(look, 50);
        };
        look();
        """,
        name,
    )


@pytest.fixture
def explorer(chromium, address):
    resized(chromium, 1280)
    chromium.get(f"{address}/explorer/index.html")
    marked(chromium, "computed")
    return chromium


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_open_without_complaint_and_fit(chromium, address, width):
    resized(chromium, width)
    chromium.get_log("browser")
    for page in PAGES:
        chromium.get(f"{address}/{page}")
        if "explorer" in page:
            marked(chromium, "computed")
        log = [row for row in chromium.get_log("browser") if row["level"] == "SEVERE"]
        assert not log, page
        wide = chromium.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width, page
    for view in ("trained", "records"):
        chromium.find_element("id", f"tab-{view}").click()
        wide = chromium.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width, view


@pytest.mark.browser
def test_the_first_picture_comes_before_the_wasm(chromium, address):
    """Without the wasm at all, maps are there within 2 s, and a key moves their query."""
    chromium.execute_cdp_cmd("Network.enable", {})
    chromium.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["*ort.wasm*", "*.onnx*"]})
    try:
        chromium.get(f"{address}/explorer/index.html")
        assert marked(chromium, "first picture") < 2000
        moves(chromium)
    finally:
        chromium.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})
        chromium.get_log("browser")


def moves(at):
    """An arrow key moves the query, and with it every map."""
    look = "return [...document.querySelectorAll('#cards-alone canvas')].map(c => c.toDataURL())"
    look += ".concat(document.getElementById('where').textContent)"
    before = at.execute_script(look)
    for key in ("DOWN", "DOWN", "LEFT", "LEFT"):
        at.find_element("id", "photo").send_keys(getattr(keys(), key))
    wait = "const done = arguments[0]; setTimeout(done, 300)"
    at.execute_async_script(wait)
    after = at.execute_script(look)
    assert len(before) == 5
    assert all(a != b for a, b in zip(before, after, strict=True))
    was, now = ([*map(int, re.findall(r"\d+", each[4])[:2])] for each in (before, after))
    assert [b - a for a, b in zip(was, now, strict=True)] == [2, -2]


def keys():
    from selenium.webdriver.common.keys import Keys

    return Keys


@pytest.mark.browser
def test_keys_and_pointer_move_the_query_and_sliders_change_maps(explorer):
    from selenium.webdriver import ActionChains

    moves(explorer)
    where = explorer.find_element("id", "where").text
    photo = explorer.find_element("id", "photo")
    actions = ActionChains(explorer).move_to_element_with_offset(photo, -60, -60).click_and_hold()
    actions.move_by_offset(40, 90).release().perform()
    explorer.execute_async_script("const done = arguments[0]; setTimeout(done, 200)")
    assert explorer.find_element("id", "where").text != where
    look = "return document.querySelectorAll('#cards-alone dd')[5].textContent"
    error = explorer.execute_script(look)
    explorer.find_element("id", "kept-linformer").send_keys(keys().ARROW_RIGHT)
    explorer.execute_async_script(
        """
        const [look, old, done] = arguments, started = performance.now();
        const wait = () => new Function(look)() !== old || performance.now() - started > 20000
          ? done() : setTimeout(wait, 50);
        wait();
        """,
        look,
        error,
    )
    now = explorer.execute_script(look)
    assert float(now.removesuffix(" %")) < float(error.removesuffix(" %"))  # a larger rank


RUN = """
const [name, given, done] = arguments;
(async () => {
  const { run } = await import(new URL("runtime.js", location.href));
  const inputs = {};
  for (const [key, [data, dims]] of Object.entries(given)) {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    inputs[key] = [new Float32Array(bytes.buffer), dims];
  }
  const outputs = {};
  for (const [key, { data, dims }] of Object.entries(await run(name, inputs))) {
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    let text = "";
    for (let i = 0; i < bytes.length; i += 8192) {
      text += String.fromCharCode(...bytes.subarray(i, i + 8192));
    }
    outputs[key] = [btoa(text), [...dims].map(Number)];
  }
  done(outputs);
})().catch((error) => done({ error: String(error) }));
"""


def ran(at, name, **inputs):
    """What a file of the explorer gives in the browser, by the page's own runtime."""
    given = {
        key: [base64.b64encode(x.contiguous().numpy().tobytes()).decode(), list(x.shape)]
        for key, x in inputs.items()
    }
    seen = at.execute_async_script(RUN, name, given)
    assert "error" not in seen, seen
    return {
        key: torch.frombuffer(bytearray(base64.b64decode(data)), dtype=torch.float32).view(dims)
        for key, (data, dims) in seen.items()
    }


def textbook(name, side, part):
    """The mechanism as its paper writes it, with what the page passes in."""
    at = 1, 32, Grid(side, side), Grid(side, side)
    if name == "linformer":
        made = attention.Linformer(*at, rank=len(part))
        made.projection.data = part.view(-1, side, side)
    elif name == "performer":
        made = attention.Performer(*at, features=len(part))
        made.directions = part
    elif name == "nystrom16":
        made = attention.Nystrom(*at, landmarks=16, kernel=None)
    else:
        made = attention.Softmax(*at)
    return made


@pytest.mark.browser
@pytest.mark.parametrize("side", [8, 16, 24])
def test_mechanisms_in_the_browser_equal_torch(explorer, side):
    """For any number of tokens: maps, and errors as a share of softmax's."""
    n, sharpness = side * side, torch.tensor(1.5)
    q, k = torch.randn(2, 1, 1, n, 32)
    exact = attention_map(textbook("softmax", side, None), q * sharpness, k)[0, 0]
    parts = {"softmax": None, "linformer": torch.rand(8, n) - 0.5}
    for name, part in (parts | {"performer": torch.randn(110, 32), "nystrom16": None}).items():
        given = {} if part is None else {"part": part}
        seen = ran(explorer, name, q=q, k=k, sharpness=sharpness, **given)
        wanted = attention_map(textbook(name, side, part), q * sharpness, k)[0, 0]
        assert (seen["map"] - wanted).abs().max() < NEAR, name
        away = (wanted - exact).norm() / exact.norm()
        assert abs(seen["whole"] - away) < NEAR * max(1, away), name
        rows = (wanted - exact).norm(dim=1) / exact.norm(dim=1)
        assert ((seen["rows"] - rows) / rows.clamp(min=1)).abs().max() < NEAR, name


@pytest.mark.browser
def test_projections_of_the_page_are_means_of_runs(explorer):
    script = """
    const done = arguments[0], at = new URL("parts.js", location.href);
    import(at).then(({ projected }) => done([...projected(8, 64, null, 0)]));
    """
    seen = torch.tensor(explorer.execute_async_script(script)).view(8, 64)
    assert torch.equal(seen, segment_means(torch.eye(64), 8))


@pytest.mark.browser
@pytest.mark.parametrize("name", ["ViT", "ViL", "ViP", "ViN"])
def test_trained_models_in_the_browser_equal_torch(explorer, name):
    model, images = (
        load(ROOT / "vixlib" / "pretrained" / f"{name}.safetensors"),
        torch.rand(1, 3, 32, 32),
    )
    seen = ran(explorer, name, images=images)
    with torch.no_grad():
        assert (seen["logits"] - model(images)).abs().max() < NEAR
    wanted = torch.cat([layer.weights for layer in attention_maps(model, images)])
    assert (seen["maps"] - wanted).abs().max() < NEAR
