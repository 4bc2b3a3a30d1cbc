"""Three commands from a folder of images to predictions, an exported model and its maps."""

import inspect
import itertools
import json
import os
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from drawn import CLASSES, folder
from PIL import Image

import vixlib
from vixlib.__main__ import main
from vixlib.data import Dataset, dataset
from vixlib.errors import BadInput, CheckpointError
from vixlib.images import read_image
from vixlib.maps import attention_maps, rollout
from vixlib.paper.records import VOLATILE
from vixlib.paper.runs import RECIPES, Run
from vixlib.paper.training import perform
from vixlib.train import fit

QUICK = ["--image-size", "16", "--set", "dim=32", "--set", "depth=1"]
NAME = "ViN.photos.own.seed0.dim=32.depth=1.image_size=16.epochs=5"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project where ViN was trained on 300 images of three classes, and what that printed."""
    root = tmp_path_factory.mktemp("project")
    folder(root / "photos", 100)
    with pytest.MonkeyPatch.context() as patch, pytest.MonkeyPatch.context() as out:
        patch.setenv("VIXLIB_ROOT", str(root))
        said = []
        out.setattr("builtins.print", lambda time, text, **_: said.append(text))
        command = ["train", "ViN", "--data", str(root / "photos"), *QUICK, "--epochs", "5"]
        assert main(command) == 0
    return root, said


@pytest.fixture
def project(trained, monkeypatch):
    monkeypatch.setenv("VIXLIB_ROOT", str(trained[0]))
    monkeypatch.chdir(trained[0])
    return trained[0]


def test_a_line_an_epoch_and_where_the_weights_are(trained):
    root, said = trained
    assert len(said) == 7
    folder = root / "photos"
    shown = "240 images to train on, 60 held out, 3 classes (circle, square, triangle)"
    assert said[0] == f"{folder}: {shown}"
    place = f"run 1 of 1, {NAME}: "
    assert all(line.startswith(f"{place}epoch {i}/5, ") for i, line in enumerate(said[1:6], 1))
    weights = root / "build/own/weights" / f"{NAME}.safetensors"
    record = root / "build/own/records" / f"{NAME}.json"
    top1 = json.loads(record.read_text())["top1"]
    told = f"top-1 {top1:.2f} %, recorded in {record}, weights in {weights}; 0 left"
    assert said[6] == place + told
    assert weights.exists()
    assert not list(root.glob("build/own/checkpoints/*"))
    assert top1 > 60  # of three classes
    model = vixlib.load(weights)
    assert (model.system, model.classes, model.size) == ("ViN", CLASSES, (16, 16))


def test_predictions_of_files_and_folders(project, capsys):
    weights = f"build/own/weights/{NAME}.safetensors"
    files = sorted((project / "photos").rglob("*.*"))
    assert main(["predict", weights, "photos", "--json", "--top", "2", "--batch", "77"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["image"] for row in rows] == [str(f.relative_to(project)) for f in files]
    wanted = vixlib.predict(weights, files[:5], top=2)
    for row, best in zip(rows, wanted, strict=False):
        assert [each["class"] for each in row["classes"]] == [name for name, _ in best]
        seen = [each["probability"] for each in row["classes"]]
        np.testing.assert_allclose(seen, [share for _, share in best], rtol=1e-4)
    right = sum(row["classes"][0]["class"] in row["image"] for row in rows)
    assert right > 180
    assert main(["predict", NAME, str(files[0])]) == 0
    lines = capsys.readouterr().out.splitlines()
    (best,) = vixlib.predict(weights, files[0])
    assert [line.split(" %  ")[1] for line in lines] == [name for name, _ in best]
    assert sum(float(line.split(" %")[0]) for line in lines) == pytest.approx(100, abs=0.1)


def test_what_cannot_be_read_does_not_stop_the_others(project, tmp_path, capsys):
    (tmp_path / "b.png").write_bytes(b"no image")
    for name in ("a", "c"):
        Image.new("L", (30, 20)).save(tmp_path / f"{name}.png")
    assert main(["predict", NAME, str(tmp_path), "--json"]) == 2
    out, err = capsys.readouterr()
    assert [json.loads(line)["image"][-5:] for line in out.splitlines()] == ["a.png", "c.png"]
    assert err.startswith(f"vix: cannot read the image {tmp_path}/b.png: ")
    assert err.count("\n") == 1


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.`:FutureWarning")
def test_export_and_maps(project, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install '.[export]'")
    assert main(["export", NAME, str(tmp_path / "out.onnx")]) == 0
    model = vixlib.load(f"build/own/weights/{NAME}.safetensors")
    file = next((project / "photos/circle").iterdir())
    x = read_image(file, model.size)[None].float() / 127.5 - 1
    session = onnxruntime.InferenceSession(str(tmp_path / "out.onnx"))
    (logits,) = session.run(None, {"images": x.numpy()})
    with torch.no_grad():
        assert np.abs(logits - model(x).numpy()).max() < 1e-4
    maps = attention_maps(model, x)
    assert len(maps) == 1
    seen = rollout(maps, query="cls")
    assert seen.shape == (1, 16, 16)
    assert seen.sum().item() == pytest.approx(1, abs=1e-4)


def test_a_training_goes_on(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VIXLIB_ROOT", str(tmp_path))
    photos = folder(tmp_path / "few", 10)
    command = ["train", "FNet", "--data", str(photos), *QUICK, "--epochs", "2"]
    assert main([*command, "--minutes", "0.00001"]) == 3
    assert "time is up" in capsys.readouterr().out
    assert not list(tmp_path.glob("build/own/checkpoints/*"))  # nothing was done yet

    calls = itertools.count()

    def stop(deadline):
        if next(calls):
            raise vixlib.train.TimeUp

    with monkeypatch.context() as patch:
        patch.setattr("vixlib.train.stop_at", stop)
        assert main(command) == 3
    assert len(list(tmp_path.glob("build/own/checkpoints/*"))) == 1
    assert main(command) == 0
    assert "weights in" in capsys.readouterr().out
    start = trained[0] / "build/own/weights" / f"{NAME}.safetensors"
    more = ["train", "ViN", "--data", str(photos), "--image-size", "24", *QUICK[2:]]
    more += ["--epochs", "1"]
    more += ["--best", "--mix", "cutmix", "--label-smoothing", "0.1", "--class-weights", "balanced"]
    assert main([*more, "--start", str(start), "--patience", "3", "--batch", "9"]) == 0
    path = capsys.readouterr().out.split("weights in ")[1].split("; ")[0]
    assert vixlib.load(path).size == (24, 24)
    for name in ("none.safetensors", "ViN.none.own.seed0"):
        assert main([*more, "--start", name]) == 2
        assert name in capsys.readouterr().err
    assert main(["train", "ViP", "--data", str(photos), *QUICK, "--start", str(start)]) == 2
    assert "--start: expected weights of ViP, got those of ViN" in capsys.readouterr().err
    assert main(["train", "ViN", "--data", str(photos), "--start", str(start)]) == 2  # other sizes
    assert "--start: expected weights of depth=2, got those of depth=1" in capsys.readouterr().err
    assert main(["train", "FNet", "--data", str(photos), *QUICK, "--set", "lr=1e9"]) == 1
    assert "diverged in epoch" in capsys.readouterr().out


def test_a_training_goes_on_with_its_own_images_alone(root, monkeypatch):
    def images(count, classes="abcdefghij"):
        pixels, labels = torch.zeros(count, 3, 16, 16, dtype=torch.uint8), torch.arange(count) % 10
        return Dataset(pixels, labels, pixels[:9], labels[:9], tuple(classes), "noise")

    def stop(deadline):
        if next(calls):
            raise vixlib.train.TimeUp

    run, calls = Run("FNet", "quick", overrides=(("epochs", 1), ("batch", 10))), itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr("vixlib.train.stop_at", stop)
        assert perform(run, images=images(30)) is None
    for other in (images(40), images(30, "jihgfedcba")):
        with pytest.raises(CheckpointError, match="of another run or code"):
            perform(run, images=other)
    assert perform(run, images=images(30))["train_images"] == 30


def test_what_is_read_anew_each_epoch_leaves_the_record_of_what_is_held(root):
    photos, found = folder(root / "photos", 10), []
    for gigabytes in (2.0, 0):
        images = dataset(photos, size=16, gigabytes=gigabytes, workers=1)
        changes = ("dataset", "photos"), ("num_classes", 3), ("epochs", 1), ("batch", 9)
        run = Run("FNet", "own", "own", 0, (*changes, ("image_size", 16)))
        record = perform(run, images=images)
        kept = record.keys() - VOLATILE | {"peak_memory_mb"}
        found.append({name: record[name] for name in kept})
    assert found[0] == found[1]
    assert found[0]["peak_memory_mb"] > 0


def test_images_are_loaded_where_the_process_computes(tmp_path, monkeypatch, capsys):
    """torchrun's processes must have joined by then, each with the GPU that is its own."""
    joined = []

    @contextmanager
    def processes(device):
        joined.append(device)
        yield
        joined.clear()

    def runs(options):
        raise BadInput(f"joined for {joined}")

    monkeypatch.setattr("vixlib.distributed.processes", processes)
    monkeypatch.setattr("vixlib.paper.own.runs", runs)
    photos = folder(tmp_path / "photos", 2)
    assert main(["train", "ViN", "--data", str(photos), "--device", "cpu"]) == 2
    assert "joined for ['cpu']" in capsys.readouterr().err


def test_all_that_a_recipe_says_to_fit_reaches_it():
    asked = {"lr": 0.5, "weight_decay": 0.25, "warm_up": 0.125, "cosine": True, "augmented": True}
    asked |= {"mix": "cutmix", "label_smoothing": 0.5, "class_weights": "balanced"}
    asked |= {"best": True, "patience": 3, "batch": 7}
    assert asked.keys() == vars(RECIPES["own"]).keys() & inspect.signature(fit).parameters.keys()
    changes = *asked.items(), ("validation_images", 9), ("precision", "bfloat16"), ("epochs", 4)
    told = Run("FNet", "quick", "fair", 2, changes).training
    assert told == asked | {"precision": "bfloat16", "epochs": 4, "seed": 2}


def test_runs_are_asked_by_system_options_or_name(root, capsys):
    changes = ("epochs", 1), ("train_images", 64)
    run = Run("FNet", "quick", "annealed", 3, changes)
    perform(run)
    image = root / "digit.png"
    Image.new("L", (8, 8)).save(image)
    asked = ["FNet", str(image), "--profile", "quick", "--recipe", "annealed", "--seed", "3"]
    asked += ["--set", "epochs=1", "--set", "train_images=64"]
    assert main(["predict", *asked]) == 0
    first = capsys.readouterr().out
    assert main(["predict", run.name, str(image)]) == 0
    assert capsys.readouterr().out == first
    assert len(first.splitlines()) == 5


BAD = [
    (["predict", "ViN.photos.fair.seed0", "a.png"], "no weights of a run 'ViN.photos.fair.seed0'"),
    (["predict", "none.safetensors", "a.png"], "unreadable weights none.safetensors"),
    (["predict", "ViN", "a.png", "--recipe", "best"], "unknown recipe 'best'"),
    (["predict", "ViN", "a.png", "--set", "dims=3"], "unknown setting 'dims'"),
    (["predict", "ViN", "a.png", "--top", "0"], "--top: expected at least 1, got 0"),
    (["export", "ViN", "a.onnx"], "train them: vix train ViN"),
    (["export", "ViN"], "arguments are required: out"),
    (["train", "ViN", "--best"], "best, patience: they would choose on test images"),
    (["train", "ViN", "--profile", "own"], "unknown dataset 'own'; legal: digits, "),
    (["list", "--profile", "huge"], "unknown profile 'huge'; legal: quick, laptop, study, paper, "),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_commands_are_a_line(root, capsys, arguments, message):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_every_option_has_a_line_of_help(capsys):
    from vixlib.paper.cli import _parser

    commands = _parser()._subparsers._group_actions[0].choices
    assert set(commands) == {"list", "train", "verify", "predict", "export", "reproduce"}
    for sub in commands.values():
        assert all(action.help for action in sub._actions), sub.prog
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"vixlib {vixlib.__version__}\n"


def test_folders_that_hold_a_dataset_are_not_ours(root, tmp_path, capsys):
    (tmp_path / "photos" / "cifar-10-batches-py").mkdir(parents=True)
    (tmp_path / "photos" / "other").mkdir()
    assert main(["train", "ViN", "--data", str(tmp_path / "photos")]) == 2
    assert "data_batch_1" in capsys.readouterr().err
    os.rmdir(tmp_path / "photos" / "cifar-10-batches-py")
    assert main(["train", "ViN", "--data", str(tmp_path / "photos")]) == 2
    assert "a folder for each of two classes or more, got other" in capsys.readouterr().err
