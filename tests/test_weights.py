"""Saved models rebuild themselves; what is damaged or of somebody else is a line."""

import importlib.util
import json
import pickle
import random
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small import images, randomise, sizes_of, small
from torch import nn

import vixlib
from vixlib import Mechanism, Nystrom, build, data, resized, weights
from vixlib.errors import BadInput, CheckpointError
from vixlib.fused import Fourier
from vixlib.models.vix import ViX
from vixlib.systems import SYSTEMS
from vixlib.train import evaluate

ROOT = Path(__file__).parents[1]
FAMILIES = {row.family.name: name for name, row in SYSTEMS.items()}


class Mean(Mechanism):
    def mix(self, q, k, v):
        return v.mean(-2, keepdim=True).expand(-1, -1, q.shape[-2], -1)


def trained(name, **changes):
    torch.manual_seed(0)
    model = small(name, **changes)
    randomise(model)
    return model.eval()


def equal(one, other, x=None):
    x = images(*one.size, dtype=torch.float32) if x is None else x
    with torch.no_grad():
        return torch.equal(one(x), other(x))


@pytest.mark.parametrize(
    "name", sorted({*FAMILIES.values(), "ViN", "CvL", "LeViP-released", "CCP"})
)
def test_a_file_alone_rebuilds_its_model(name, tmp_path):
    model = trained(name, num_classes=3)
    vixlib.save(model, tmp_path / "a.safetensors", classes=["a", "b", "c d"])
    torch.manual_seed(1)
    again = vixlib.load(tmp_path / "a.safetensors")
    assert equal(model, again)
    assert (again.system, again.classes) == (name, ("a", "b", "c d"))
    assert not again.training
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        about = file.metadata()
    assert (about["system"], about["classes"]) == (name, "a\nb\nc d")
    assert about["normalisation"] == '{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}'
    vixlib.save(again, tmp_path / "b.safetensors")  # with the names that it came with
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert file.metadata() == about


MADE = {
    "a name": lambda: build("ViT", attention="nystrom", image_size=(16, 24), patch_size=2, depth=1),
    "a class": lambda: build("LeViT", attention=Nystrom, image_size=16, stem=(2, 1, 1)),
    "a partial": lambda: build(
        "ViT", attention=partial(Nystrom, landmarks=9), image_size=16, patch_size=2, depth=1
    ),
    "a mixer": lambda: build("ViT", mixer=Fourier, image_size=16, patch_size=2, depth=1),
    "a part of torch's": lambda: build("ViT", norm=nn.RMSNorm, image_size=16, patch_size=2),
    "an option of a host": lambda: build("ViP", rotary=True, image_size=16, patch_size=2, depth=1),
}


@pytest.mark.parametrize("what", MADE)
def test_what_was_asked_for_is_remembered(what, tmp_path):
    model = MADE[what]().eval()
    vixlib.save(model, tmp_path / "a.safetensors")
    again = vixlib.load(tmp_path / "a.safetensors")
    assert equal(model, again)
    assert [*map(type, model.modules())] == [*map(type, again.modules())]


@pytest.mark.parametrize("name", ["ViN-RoPE", "ViL", "LeViT", "CvN"])
def test_a_model_of_another_size_rebuilds_as_it_was(name, tmp_path):
    model = resized(resized(trained(name), 32), (24, 32)).eval()
    vixlib.save(model, tmp_path / "a.safetensors")
    again = vixlib.load(tmp_path / "a.safetensors")
    assert again.size == (24, 32)
    assert equal(model, again)


@pytest.mark.parametrize("name", sorted(FAMILIES.values()))
def test_a_fresh_last_layer_on_old_weights(name, tmp_path):
    model = trained(name)
    vixlib.save(model, tmp_path / "a.safetensors")
    fresh = vixlib.load(tmp_path / "a.safetensors", num_classes=3)
    assert fresh(images(dtype=torch.float32)).shape == (4, 3)
    old, new = model.state_dict(), fresh.state_dict()
    other = [key for key in old if not torch.equal(old[key], new[key])]
    assert 1 <= len(other) <= 2
    assert all(new[key].shape == (3, *old[key].shape[1:]) for key in other)
    assert vixlib.load(tmp_path / "a.safetensors", num_classes=10).state_dict().keys() == old.keys()
    assert equal(model, vixlib.load(tmp_path / "a.safetensors", num_classes=10))


def test_of_old_weights_only_the_last_layer_may_be_fresh(good):
    """Else what does not fit would be drawn anew, or what was asked for not be done, in silence."""
    with pytest.raises(BadInput, match="image_size: weights have their own"):
        vixlib.load(good, image_size=32)
    for classes in (None, 5):
        with pytest.raises(CheckpointError, match="does not fit"):
            vixlib.load(good, num_classes=classes, dim=64)


def test_somebody_s_own_mechanism_is_asked_for(tmp_path):
    file = tmp_path / "a.safetensors"
    model = build("ViT", attention=Mean, image_size=16, patch_size=2, depth=1).eval()
    vixlib.save(model, file)
    with pytest.raises(BadInput, match=r"its attention is .*Mean, none of ours; say load"):
        vixlib.load(file)
    assert equal(model, vixlib.load(file, attention=Mean))
    odd = build(
        "ViT", attention=partial(Nystrom, landmarks=9), image_size=16, patch_size=2, depth=1
    )
    odd.asked["norm"] = partial(nn.LayerNorm, eps=object())
    with pytest.raises(BadInput, match="cannot write down how it was built"):
        vixlib.save(odd, file)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "good.safetensors"
    vixlib.save(trained("ViN", dim=32, depth=1, num_classes=3), file, classes=["a", "b", "c"])
    return file


def one_line(file):
    with pytest.raises(CheckpointError) as caught:
        vixlib.load(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)
    return str(caught.value)


def test_thirty_damaged_files(good, tmp_path):
    """Cut anywhere or with one bit turned anywhere: never a model."""
    content, random_ = good.read_bytes(), random.Random(0)
    for i in range(30):
        at = random_.randrange(len(content))
        broken = bytearray(content[:at] if i % 2 else content)
        if not i % 2:
            broken[at] ^= 1 << random_.randrange(8)
        file = tmp_path / f"{i}.safetensors"
        file.write_bytes(broken)
        one_line(file)


def test_files_of_something_else(good, tmp_path):
    flag, file = tmp_path / "flag", tmp_path / "a.safetensors"

    class Payload:
        def __reduce__(self):
            return type(flag).touch, (flag,)

    for content in (b"", b"text", pickle.dumps(Payload())):
        file.write_bytes(content)
        assert "unreadable weights" in one_line(file)
    torch.save(Payload(), file)
    one_line(file)
    assert not flag.exists()
    save_file({"x": torch.zeros(2)}, file)
    assert "not written by vixlib.save" in one_line(file)
    state = load_file(good)
    save_file(state, file, {"format": weights.FORMAT, "system": "ViN"})
    assert "their checksum is another" in one_line(file)
    with safe_open(good, "pt") as opened:
        about = opened.metadata() | {"normalisation": '{"mean": [0.4], "std": [0.2]}'}
    del about["sha256"]
    about["sha256"] = weights._digest(state, about)
    save_file(state, file, about)
    assert "expected pixels normalised by" in one_line(file)
    one_line(tmp_path)
    one_line(tmp_path / "nowhere")


def test_what_a_file_says_of_its_model_is_in_its_checksum(good, tmp_path):
    file = tmp_path / "a.safetensors"
    with safe_open(good, "pt") as opened:
        about = opened.metadata()
    for change in ({"classes": "b\na\nc"}, {"size": "[8, 32]"}, {"more": "?"}):
        save_file(load_file(good), file, about | change)
        assert "damaged weights" in one_line(file)


def test_bad_calls(good):
    model = vixlib.load(good)
    for call, message in (
        (lambda: vixlib.save(nn.Linear(2, 2), "x"), "model: expected Host, got Linear"),
        (lambda: vixlib.save(ViX(), "x"), "model: expected one that build made, got ViX"),
        (lambda: vixlib.save(model, "x", classes=["a"]), "classes: expected 3 names .*, got 1"),
        (lambda: vixlib.save(model, "x", classes=["a", "b", "c\nd"]), "of one line each"),
        (lambda: vixlib.load(5), "path: expected str or Path, got 5"),
        (lambda: vixlib.load(good, num_classes=0), "num_classes: expected at least 1, got 0"),
        (lambda: vixlib.load(good, layers=3), "unknown option of ViX 'layers'"),
        (lambda: vixlib.predict(model, 5), "images: expected .*, got 5"),
        (lambda: vixlib.predict(model, [5]), "image: expected str or Path or .*, got 5"),
        (lambda: vixlib.predict(model, []), None),
        (lambda: vixlib.predict("nowhere", []), "unreadable weights nowhere"),
    ):
        if message is None:
            assert call() == []
            continue
        with pytest.raises(BadInput, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


# ---- asked about images ----


def test_predictions_are_those_of_the_model(good, tmp_path):
    model = vixlib.load(good)
    pixels = torch.randint(256, (7, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        shares = model(pixels.float() / 127.5 - 1).softmax(1)
    files = []
    for i, image in enumerate(pixels):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(files[-1])
    pictures = [Image.open(file) for file in files]
    model.train()
    for asked in (pixels, [*pixels], files, [*map(str, files)], pictures, pixels / 255):
        told = vixlib.predict(model, asked, top=2, batch=3)
        assert [len(best) for best in told] == [2] * 7
        for best, row in zip(told, shares, strict=True):
            names = [("a", "b", "c")[i] for i in row.argsort(descending=True)[:2]]
            assert [name for name, _ in best] == names
            np.testing.assert_allclose([p for _, p in best], row.sort().values.flip(0)[:2], 1e-4)
    assert model.training
    assert len(vixlib.predict(good, files[0], top=9)[0]) == 3
    assert vixlib.predict(good, files[0]) == vixlib.predict(good, [files[0]])


def test_names_that_are_too_few_are_an_error(good):
    model = vixlib.load(good)
    model.classes = ("a", "b")
    with pytest.raises(ValueError, match="zip"):
        vixlib.predict(model, torch.zeros(3, 16, 16))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_probabilities_that_are_not_finite_are_an_error(good, bad):
    model = vixlib.load(good)
    model.head[1].bias.data[0] = bad
    with pytest.raises(BadInput, match="probabilities are not finite"):
        vixlib.predict(model, torch.zeros(2, 3, 16, 16))


def test_a_copy_in_evaluation_is_exported(good, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript", reason="pip install '.[export]'")
    given, about = [], {}

    def export(model, *_, **__):
        given.append(model)
        made = SimpleNamespace(metadata_props=about)
        return SimpleNamespace(model=made, save=lambda path: path.write_text("made"))

    monkeypatch.setattr(torch.onnx, "export", export)
    model = vixlib.load(good).train()
    vixlib.export(model, tmp_path / "a.onnx")
    assert model.training
    assert not any(module.training for module in given[0].modules())
    assert about == {"classes": "a\nb\nc", "normalisation": weights.NORMALISATION}
    assert (tmp_path / "a.onnx").read_text() == "made"


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.`:FutureWarning")
def test_the_exported_model_is_the_same(good, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install '.[export]'")
    model = vixlib.load(good)
    vixlib.export(model, tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"))
    for batch in (1, 5):
        x = images(batch=batch, dtype=torch.float32)
        (logits,) = session.run(["logits"], {"images": x.numpy()})
        with torch.no_grad():
            assert np.abs(logits - model(x).numpy()).max() < 1e-4
    assert session.get_modelmeta().custom_metadata_map["classes"] == "a\nb\nc"
    assert [(x.name, x.shape) for x in session.get_inputs()] == [("images", ["batch", 3, 16, 16])]


# ---- what ships ----


PRETRAINED = ROOT / "vixlib" / "pretrained"
SHIPPED = json.loads((PRETRAINED / "runs.json").read_text())


@pytest.mark.parametrize("name", SHIPPED)
def test_a_trained_model_has_its_recorded_accuracy(name):
    """Where CIFAR-10 lies; what half precision rounds off moves a few images in ten thousand."""
    try:
        cifar = data.load("cifar10", download=False)
    except BadInput:
        pytest.skip("no CIFAR-10: VIXLIB_DATA names its folder")
    record = ROOT / "figures" / "records" / "study" / f"{SHIPPED[name]}.json"
    top1, _ = evaluate(build(name, pretrained=True), cifar)
    assert top1 == pytest.approx(json.loads(record.read_text())["top1"], abs=0.05)


@pytest.fixture
def ship(monkeypatch, tmp_path):
    """workflow/ship.py in an empty project that has two models, beside a checkout with three."""
    spec = importlib.util.spec_from_file_location("ship", ROOT / "workflow" / "ship.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    there, here = tmp_path / "there", tmp_path / "here"
    for name in ("ViT", "ViN", "HybridViN"):
        record = there / "figures" / "records" / "study" / f"{SHIPPED[name]}.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps({"top1": {"ViT": 62.2, "ViN": 62.1}.get(name, 64.1)}))
        kept = there / "build" / "study" / "weights" / f"{SHIPPED[name]}.safetensors"
        weights.save(build(name, pretrained=True), kept)
    (here / "pretrained").mkdir(parents=True)
    (here / "pretrained" / "runs.json").write_text(json.dumps({"ViN": SHIPPED["ViN"]}))
    monkeypatch.setenv("VIXLIB_ROOT", str(here))
    monkeypatch.setattr(found, "FOLDER", here / "pretrained")
    monkeypatch.setattr(found.data, "load", lambda *_, **__: None)
    monkeypatch.setattr(found, "evaluate", lambda *_: (62.16, 90.0))
    return found, there, here


def test_what_a_clone_has_trained_is_taken_over(ship, capsys):
    """Its records, and a model where half precision keeps the accuracy that its record has."""
    found, there, here = ship
    assert found.main(there) == 1  # HybridViN's record says 64.1, and its weights here 62.16
    shipped = here / "pretrained"
    assert [*json.loads((shipped / "runs.json").read_text())] == ["ViT", "ViN"]
    assert {path.stem for path in shipped.glob("*.safetensors")} == {"ViT"}
    made, ours = (load_file(at / "ViT.safetensors") for at in (shipped, PRETRAINED))
    assert made.keys() == ours.keys()
    assert all(torch.equal(made[key], ours[key]) for key in ours)
    assert {tensor.dtype for tensor in made.values() if tensor.is_floating_point()} == {torch.half}
    own = here / "figures" / "records" / "study"
    assert {path.stem for path in own.iterdir()} == {
        SHIPPED[n] for n in ("ViT", "ViN", "HybridViN")
    }
    assert "HybridViN: 62.16 % in half precision, 64.10 % recorded" in capsys.readouterr().out
    (own / f"{SHIPPED['ViT']}.json").write_text("{}")
    assert found.records(there) == []  # what is there stays
    assert (own / f"{SHIPPED['ViT']}.json").read_text() == "{}"


def test_trained_models_ship():
    """Of the systems that runs.json names; a new last layer, another size; nothing else changes."""
    for name in SHIPPED:
        model = build(name, pretrained=True)
        equal(model, weights.load(PRETRAINED / f"{name}.safetensors"))
        assert not model.training
        assert model.classes[:3] == ("airplane", "automobile", "bird")
    three, larger = (
        build("ViN", pretrained=True, **o) for o in ({"num_classes": 3}, {"image_size": 48})
    )
    own, kept = three.state_dict(), load_file(PRETRAINED / "ViN.safetensors")
    fresh = [key for key in kept if not torch.equal(own[key], kept[key].float())]
    assert {own[key].shape[0] for key in fresh} == {3}
    assert larger.size == (48, 48)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "CvT"}, "unknown pretrained system 'CvT'; legal: .*ViL, .*ViN, .*ViP, .*ViT$"),
        ({"attention": Mean}, "weights are of a system as it is"),
        ({"dim": 32}, "unknown option of pretrained 'dim'"),
    ],
)
def test_what_was_not_trained_is_refused(options, said):
    with pytest.raises(BadInput, match=said):
        build(**{"name": "ViN", "pretrained": True, **options})


@pytest.mark.parametrize("name", SYSTEMS)
def test_torch_hub_has_every_system(name):
    sizes = sizes_of(name)
    model = torch.hub.load(str(ROOT), name, source="local", **sizes)
    assert (model.system, model.asked) == (name, build(name, **sizes).asked)


def test_torch_hub_has_trained_systems():
    here = {"source": "local", "pretrained": True}
    equal(torch.hub.load(str(ROOT), "ViN", **here), build("ViN", pretrained=True))
