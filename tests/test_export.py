"""Compiled, exported or saved, a model is the same."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import images, small
from trials_export import compile_holds, compile_trial, export_holds, export_trial, moved, shallow

from vixlib import list_systems
from vixlib.attention import Mechanism
from vixlib.fused import Performer, Softmax
from vixlib.systems import SYSTEMS

# Tracing costs seconds: here each host and each mixer once, a mechanism where its host asks most of
# it (biases of landmarks, keys on another grid, turned queries). The slow ones wait for
# `make proof`, which traces all systems by inductor and for ONNX, too.
COMPILED = "HybridViP-RoPE", "FNet", "LeViN", "CvL", "ConvMixer-256/8"
EXPORTED = "ViT", "MLPMixer", "CCE", "CvN-released", "ResNet-20"
TRACED = COMPILED + EXPORTED
SLOW = "LeViN", "CvL", "CCE", "CvN-released"
FEWER = {"ResNet-20": {"pairs": 1}}


def tried(names: tuple[str, ...]) -> list:
    return [pytest.param(n, marks=pytest.mark.proof) if n in SLOW else n for n in names]


def traced(name: str) -> dict:
    """The keywords of a shallow model, with fewer layers that are alike."""
    return shallow(name) | FEWER.get(name, {})


def test_every_host_and_mixer_is_traced():
    rows = [SYSTEMS[name] for name in TRACED]
    assert {row.family.host for row in rows} == {row.family.host for row in SYSTEMS.values()}
    assert {row.mixer for row in rows} == {row.mixer for row in SYSTEMS.values()}


def test_models_of_a_trial_keep_their_mechanism():
    for name, row in SYSTEMS.items():
        made = [m for m in moved(name).modules() if isinstance(m, Mechanism)]
        kind = getattr(row.mechanism, "func", row.mechanism)
        kinds = {type(m) for m in made}  # LeViT and CvT end with fewer than 64 tokens
        assert kinds - {Softmax} == {kind} - {Softmax, None}, name


@pytest.mark.parametrize("name", tried(COMPILED))
def test_compiles_without_a_graph_break(name):
    seen = compile_trial(name, sizes=traced(name))
    assert compile_holds(seen), seen


# torch 2.13 warns of itself
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.`:FutureWarning")
@pytest.mark.parametrize("name", tried(EXPORTED))
def test_exports_with_any_batch(name):
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package}: pip install '.[export]'")
    seen = export_trial(name, traced(name))
    assert export_holds(seen), seen


@pytest.mark.parametrize("name", list_systems())
def test_safetensors_keep_every_number(name, tmp_path):
    torch.manual_seed(0)
    model, x = small(name).eval(), images(dtype=torch.float32)
    performers = [m for m in model.modules() if isinstance(m, Performer)]
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    saved = load_file(tmp_path / "model.safetensors")
    assert sum(key.endswith(".directions") for key in saved) == len(performers)
    assert bool(performers) == (SYSTEMS[name].mixer == "performer")
    torch.manual_seed(1)
    other = small(name).eval()
    with torch.no_grad():
        assert not torch.equal(other(x), model(x))
        other.load_state_dict(saved)
        assert torch.equal(other(x), model(x))
