"""The command line: what it prints, and one clear line for what it cannot do."""

import json
import re
import subprocess
import sys

import pytest

from vixlib import list_systems
from vixlib.__main__ import main
from vixlib.paper.runs import queue

TINY = ["--set", "epochs=1", "--set", "train_images=128"]


def told(capsys) -> list[str]:
    """Lines of standard output without their times."""
    lines = capsys.readouterr().out.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in lines)
    return [line[9:] for line in lines]


def test_list_names_systems_and_what_they_cost(capsys, monkeypatch):
    """The first two; all are counted in `test_wheel.py`, at a smaller size."""
    first = list_systems()[:2]
    monkeypatch.setattr("vixlib.paper.cli.list_systems", lambda: first)
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == first
    assert lines[1].split() == ["ViT", "661,770", "1,024", "3,227.3"]


def test_train_writes_a_record_once(root, capsys):
    command = ["train", "ViP", "--profile", "quick", *TINY]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "epoch 1/1" in out
    path = root / "build/quick/records/ViP.digits.fair.seed0.epochs=1.train_images=128.json"
    assert json.loads(path.read_text())["epochs"] == 1
    before = path.read_bytes()
    assert main(command) == 0
    assert "--again" in capsys.readouterr().out
    assert path.read_bytes() == before


def test_divergence_is_told_and_recorded_once(root, capsys):
    wild = ["train", "ViN", "ViT", "--profile", "quick", "--workers", "1", "--set", "lr=1e6"]
    wild += ["--set", "epochs=2", "--set", "train_images=500"]
    assert main(wild) == 1
    lines = told(capsys)
    record = root / "build/quick/records/ViN.digits.fair.seed0.epochs=2"
    record = record.with_name(record.name + ".train_images=500.lr=1000000.0.json")
    said = "diverged in epoch 1, step 2, at learning rate 1e+06; last good checkpoint: none"
    first = f"{record.stem}: {said}; recorded in {record}"
    assert lines[0] == f"run 1 of 2, {first}; 1 left"
    assert len(lines) == 2  # the next run has its turn
    assert json.loads(record.read_text())["status"] == "diverged"
    before = record.stat().st_mtime_ns
    assert main(wild) == 1
    assert told(capsys)[0] == f"run 1 of 2, {first}; --again trains it anew; 1 left"
    assert record.stat().st_mtime_ns == before
    assert main([*wild, "--again"]) == 1
    assert told(capsys) == lines
    assert record.stat().st_mtime_ns > before


def test_a_queue_goes_on_where_it_stopped(root, capsys, monkeypatch):
    queue = ["ViT", "ViP-RoPE", "FNet", "LeViN", "CCL", "CvP", "CvN-released", "ResNet-20"]
    monkeypatch.setattr("vixlib.paper.runs.RESULTS", queue)
    monkeypatch.setattr("vixlib.paper.runs.LONGER", ["FNet"])
    records = len(queue) + 1  # at few tokens, too; equal in epochs, since these are set
    command = ["train", "--queue", "quick", "--workers", "1", *TINY]
    assert main([*command, "--minutes", "0.00001"]) == 3
    assert capsys.readouterr().out[9:] == f"{records} left: time is up; the same command goes on\n"
    assert not list(root.glob("build/quick/*/*"))  # no checkpoint, either
    calls = 0
    while len(list(root.glob("build/quick/records/*.json"))) < records:
        assert main([*command, "--minutes", "0.1"]) in (0, 3)
        calls += 1
        assert calls < 60
    capsys.readouterr()
    assert main(command) == 0
    assert capsys.readouterr().out.count("recorded in") == records
    assert (
        root
        / "build/quick/records/FNet.digits.fair.seed0.patch_size=4.epochs=1.train_images=128.json"
    ).exists()


def test_a_queue_keeps_the_recipe_and_seed_of_its_runs(root, monkeypatch):
    """Those of the study have their own; what is said goes before."""
    asked = []

    def perform_all(todo, **_):
        asked.append(todo)
        return 0, 0

    monkeypatch.setattr("vixlib.paper.training.perform_all", perform_all)
    for more in ([], ["--recipe", "fair", "--seed", "7", "--set", "epochs=1"]):
        assert main(["train", "--queue", "study", *more]) == 0
    plain, changed = asked
    assert plain == queue("study")
    assert {run.recipe for run in plain} == {"annealed", "study", "as-released"}
    assert {run.seed for run in plain} == {0, 1, 2}
    told = {(run.recipe, run.seed, run.settings["epochs"]) for run in changed}
    assert told == {("fair", 7, 1)}


def test_predict_reads_an_image(root, tmp_path, capsys):
    import numpy as np
    from PIL import Image

    picture = tmp_path / "digit.png"
    Image.fromarray(np.zeros((40, 40), dtype=np.uint8)).save(picture)
    assert main(["predict", "FNet", str(picture), "--profile", "quick"]) == 2
    assert "train them: vix train FNet" in capsys.readouterr().err
    from vixlib.paper.records import files
    from vixlib.paper.runs import Run
    from vixlib.paper.training import perform

    run = Run("FNet", "quick", overrides=(("epochs", 1), ("train_images", 128)))
    perform(run)
    files(run).weights.rename(files(Run("FNet", "quick")).weights)
    assert main(["predict", "FNet", str(picture), "--profile", "quick"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert main(["predict", "FNet", str(tmp_path / "none.png"), "--profile", "quick"]) == 2
    assert "cannot read the image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "ViX"], "unknown system 'ViX'"),
        (["train", "vit"], "did you mean ViT?"),
        (["train", "ViT", "--profile", "fast"], "legal: quick, laptop, study, paper"),
        (["train", "--queue", "fast"], "legal: quick, laptop, study, paper"),
        (["train", "ViT", "--recipe", "best"], "legal: fair, as-released"),
        (["train"], "name systems, or a profile with --queue"),
        (["train", "ViT", "--queue", "quick"], "name systems, or a profile with --queue"),
        (["train", "ViT", "--seed", "-1"], "seed: expected at least 0, got -1"),
        (["train", "ViT", "--set", "epochs"], "expected NAME=VALUE, got 'epochs'"),
        (["train", "ViT", "--set", "epochs=0"], "epochs: expected"),
        (["train", "ViT", "--set", "patch_size=3"], "32 is not divisible by patch_size 3"),
        (["train", "ViT", "--set", "precision=int8"], "legal: float32, bfloat16"),
        (["train", "ViT", "--minutes", "0"], "--minutes: expected more than 0"),
        (["train", "ViT", "--workers", "0"], "--workers: expected at least 1"),
        (["train", "ViT", "--device", "tpu9"], "device 'tpu9'"),
        (["train", "ViT", "--data", "/nowhere"], "no CIFAR-10 in /nowhere"),
        (["reproduce", "--profile", "fast"], "legal: quick, laptop, study, paper"),
        (["reproduce", "--profile", "quick", "--write"], "legal: laptop"),
        (["list", "--profile", "fast"], "legal: quick, laptop, study, paper"),
    ],
)
def test_bad_input_is_one_line(root, capsys, arguments, message):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("vix: ")
    assert error.count("\n") == 1
    assert not [path for path in root.rglob("*") if path.is_file()]


def test_the_module_runs():
    done = subprocess.run(
        [sys.executable, "-m", "vixlib", "train", "ViT", "--profile", "?"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
