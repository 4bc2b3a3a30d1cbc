"""The wheel, installed in an environment of its own and used in an empty folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from vixlib import list_systems, paths

TINY = ["--profile", "quick", "--set", "epochs=1", "--set", "train_images=128", "--workers", "1"]


def works(python):
    """Whether it runs: pyenv puts names on the path that do not."""
    return subprocess.run([python, "--version"], capture_output=True).returncode == 0


PYTHONS = [sys.executable, *filter(works, filter(None, [shutil.which("python3.13")]))]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=paths.CHECKOUT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module", params=PYTHONS, ids=lambda path: Path(path).name)
def vix(request, wheel, tmp_path_factory):
    """Runs `vix` of an environment that holds the wheel, in an empty folder."""
    home = tmp_path_factory.mktemp("environment")
    python = home / "bin" / "python"
    if request.param == sys.executable:  # what it needs is borrowed, our checkout is not
        venv.create(home, with_pip=False)
        (site,) = home.glob("lib/python*/site-packages")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
        (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    else:
        subprocess.run([request.param, "-m", "venv", home], check=True)
        pins = paths.CHECKOUT / "constraints.txt"
        install = [python, "-m", "pip", "install", "-q", "-c", pins, f"{wheel}[paper]"]
        subprocess.run(install, check=True, capture_output=True)
        (site,) = home.glob("lib/python*/site-packages")
    for path in [*site.glob("vixlib/**/*"), site / "vixlib"]:
        path.chmod(0o555 if path.is_dir() else 0o444)  # nothing is written into it
    folder = tmp_path_factory.mktemp("empty")
    known = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "HOME": str(home)}

    def run(*commands, blocked=()):
        """Commands, each a list of words, one after another in one process."""
        block = f"import sys; sys.modules.update(dict.fromkeys({list(blocked)}))"
        main = f"from vixlib.__main__ import main; sys.exit(max(map(main, {[*commands]})))"
        command = [python, "-c", f"{block}; {main}"]
        return subprocess.run(command, cwd=folder, env=known, capture_output=True, text=True)

    yield run, folder
    for path in site.rglob("*"):
        path.chmod(0o755)


def test_it_holds_what_is_read_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in names} == {"vixlib"}
    read = {"paper.csv", "claims.csv", "step_memory.csv", "study.csv", "study.toml"}
    read |= {"profiles.toml", "recipes.toml", "labels.toml"}
    assert {"vixlib/sources.toml", "vixlib/systems.toml"} <= names
    assert {f"vixlib/paper/{name}" for name in read} <= names
    metadata = next(n for n in zipfile.ZipFile(wheel).namelist() if n.endswith("METADATA"))
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    needed = [line.split()[1] for line in text.splitlines() if line.startswith("Requires-Dist")]
    core = {name.split(">")[0] for name in needed if f"Requires-Dist: {name}\n" in text + "\n"}
    wing = {"torch", "torchvision", "einops", "numpy", "pillow", "safetensors", "tqdm", "filelock"}
    assert core == wing


def test_from_a_list_to_a_prediction(vix):
    from PIL import Image

    run, folder = vix
    recipes = "fair", "as-released"
    trainings = [["train", "FNet", *TINY, "--recipe", recipe] for recipe in recipes]
    done = run(["list", "--profile", "quick"], *trainings)
    assert done.returncode == 0, done.stderr
    listed = [line.partition(" ")[0] for line in done.stdout.splitlines()]
    assert listed[1 : 1 + len(list_systems())] == list_systems()
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert len(written) == 4  # a record and weights of each
    assert {path.relative_to(folder).parts[0] for path in written} == {"build"}
    assert {oct(path.stat().st_mode & 0o777) for path in written} == {"0o644"}
    Image.new("L", (40, 40)).save(folder / "digit.png")
    weights = folder / "build/quick/weights"
    (trained,) = weights.glob("FNet.digits.fair.*")
    trained.rename(weights / "FNet.digits.fair.seed0.safetensors")
    done = run(["predict", "FNet", "digit.png", "--profile", "quick"])
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 5), done.stderr


@pytest.mark.parametrize(
    ("missing", "commands", "extras"),
    [
        (["pandas"], [["list"]], ["paper"]),
        (
            ["sklearn", "sklearn.datasets", "papermill"],
            [["train", "FNet", *TINY, "--seed", "7"], ["reproduce"]],
            ["paper", "notebooks"],
        ),
    ],
)
def test_what_needs_an_extra_says_so_in_a_line(vix, missing, commands, extras):
    run, _ = vix
    done = run(*commands, blocked=missing)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == len(extras)
    for line, extra in zip(lines, extras, strict=True):
        assert f"pip install 'vixlib[{extra}]'" in line


def test_notebooks_are_of_a_checkout(vix):
    run, _ = vix
    done = run(["reproduce", "--profile", "quick"])
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    # where papermill is there; else that is what is missing first
    assert "reproduce works in a checkout" in done.stderr or "[notebooks]" in done.stderr
