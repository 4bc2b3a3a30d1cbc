"""One training by several processes, or piece by piece: the same as in one, in less memory."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from copy import deepcopy
from functools import partial
from itertools import chain
from pathlib import Path

import pytest
import torch
from small import VARIED, small
from together import images, trained, wide
from torch import nn

from vixlib import list_systems, measure, train
from vixlib.distributed import Team, recompute_blocks
from vixlib.errors import BadInput
from vixlib.paper.cli import main
from vixlib.paper.records import VOLATILE
from vixlib.paper.runs import Run
from vixlib.paper.training import perform
from vixlib.train import fit

HERE = Path(__file__).parent
TORCHRUN = sys.executable, "-m", "torch.distributed.run", "--standalone"
ALONE = {name: value for name, value in os.environ.items() if "TORCHELASTIC" not in name}
ALONE |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}


@pytest.fixture
def in_float64(monkeypatch):
    for name in ("normalise", "cross_entropy"):  # so that it is undone
        monkeypatch.setattr(train, name, getattr(train, name))
    wide(train)


def close(one: dict, other: dict, limit: float = 1e-9) -> None:
    for name in one:
        a, b = (torch.tensor(found[name], dtype=torch.float64) for found in (one, other))
        # Adam enlarges what rounding leaves of slopes that are 0, such as those of a bias before a
        # norm, to steps of a whole rate; scores do not see them
        assert a.shape == b.shape
        assert (a - b).abs().max() <= limit * b.abs().max(), name


def compared(folder: Path, asked: dict) -> None:
    """The trainings of systems, with their options, by three processes beside those by one."""
    start = [*TORCHRUN, "--nproc-per-node=3", str(HERE / "together.py")]
    command = [*start, str(folder / "out.json"), json.dumps(asked)]
    done = subprocess.run(command, env=ALONE, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((folder / "out.json").read_text())
    for name, options in asked.items():
        close(found[name], trained(name, **options))


@pytest.mark.usefixtures("in_float64")
def test_three_processes_train_as_one(tmp_path):
    """Tables of no rows, stochastic depth, batch statistics, weights of classes, pieces as well.

    The mean over a batch is by all processes' weights, not by each one's own. The last batch is too
    small for a share of each.
    """
    weighed = {"class_weights": "balanced", "label_smoothing": 0.1, "accumulate": 3}
    compared(tmp_path, {"ViT": {}, "CCT": weighed, "LeViL": {"recompute": True}, "ResNet-20": {}})


@pytest.mark.usefixtures("in_float64")
@pytest.mark.proof
@pytest.mark.parametrize("name", list_systems())
def test_every_system_trains_by_three_processes_as_by_one(name, tmp_path):
    compared(tmp_path, {name: {}})


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("name", VARIED)
def test_pieces_of_a_batch_make_the_same_step(name):
    if any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in small(name).modules()):
        with pytest.raises(BadInput, match="normalises over a batch"):
            trained(name, accumulate=3)
    else:
        close(trained(name, accumulate=3), trained(name), 1e-11)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("name", VARIED)
def test_blocks_computed_twice_change_nothing(name):
    if name.startswith("ResNet"):
        with pytest.raises(BadInput, match="no blocks"):
            trained(name, recompute=True)
    else:
        close(trained(name, recompute=True), trained(name), 0.0)


def test_a_copy_of_a_recomputed_model_computes_with_its_own_weights():
    """Asked for twice, blocks are computed twice and no more; a resized model is a copy, too."""
    model = small("ViT").eval()
    recompute_blocks(model), recompute_blocks(model)
    x = torch.randn(2, 3, *model.size)
    with torch.no_grad():
        before = model(x)
        copy = deepcopy(model)
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(copy(x), before)
        assert not torch.equal(model(x), before)
    calls = []
    copy.blocks[1].register_forward_hook(lambda *_: calls.append(1))
    copy.blocks[1][0].register_forward_hook(lambda *_: calls.append(2))
    copy(x).sum().backward()
    assert sorted(calls) == [1, 2, 2]


def test_blocks_that_are_recomputed_are_not_compiled(root):
    with pytest.raises(BadInput, match="or recomputed blocks"):
        perform(Run("ViT", "quick"), compiled=True, recompute=True)


@pytest.mark.usefixtures("in_float64")
def test_running_statistics_follow_a_batch_once():
    """Mean, variance and count of every norm, though each block is computed twice."""
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = small("LeViN").double()
        fit(model, images(model.size, 26), epochs=1, recompute=recompute)
        found.append({name: buffer.clone() for name, buffer in model.named_buffers()})
    for name, buffer in found[0].items():
        assert torch.equal(buffer, found[1][name]), name


@pytest.mark.usefixtures("in_float64")
def test_a_step_takes_less_memory_in_pieces_and_computed_twice():
    """Activations of 64 images: a quarter of them at once, or what enters blocks alone."""
    peaks = {}
    for how in ({}, {"accumulate": 4}, {"recompute": True}):
        model = small("ViT", dim=32, depth=4).double()
        call = partial(fit, model, images(model.size, 64), epochs=1, batch=64, watch=1, **how)
        peaks[str(how)] = measure.peak_memory(call, torch.device("cpu"))
    whole, pieces, twice = peaks.values()
    assert pieces < 0.35 * whole
    assert twice < 0.5 * whole


def test_a_share_is_of_everything_once():
    """Each thing is some process's own; where there are fewer than processes, all have all."""
    for size in (1, 2, 3, 7):
        for count in (1, 2, 6, 7, 20):
            teams = [Team() for _ in range(size)]
            for rank, team in enumerate(teams):
                team.rank, team.size = rank, size
            own = [[*range(count)[team.share(count)]] for team in teams]
            if count < size:
                assert own == size * [[*range(count)]]
            else:
                assert [*chain(*own)] == [*range(count)]
                assert {count // size, -(-count // size)} >= {*map(len, own)}
    with pytest.raises(BadInput, match="accumulate: expected at least 1"):
        Team(0)


# ---- the command ----

SHORT = "--profile", "quick", "--set", "train_images=128", "--device", "cpu"
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def torchrun(folder: Path, *arguments: str) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    command = [*TORCHRUN, "--nproc-per-node=2", "-m", "vixlib", "train", *SHORT, *arguments]
    return subprocess.Popen(command, cwd=folder, env=ALONE | {"VIXLIB_ROOT": str(folder)}, **PIPES)


def record_of(folder: Path) -> dict:
    (path,) = folder.glob("build/quick/records/*.json")
    return json.loads(path.read_text())


def test_a_command_by_two_processes_leaves_the_record_of_one(tmp_path, root):
    """One line an epoch, one record, one file of weights, no claim and no checkpoint."""
    out, _ = (going := torchrun(tmp_path / "two", "CCN", "--epochs", "2")).communicate(timeout=300)
    assert going.returncode == 0
    assert len(re.findall("epoch . of 2|epoch ./2", out)) == 2
    assert main(["train", "CCN", *SHORT, "--epochs", "2"]) == 0
    two, one = record_of(tmp_path / "two"), record_of(root)
    assert two["processes"] == 2
    for name in one.keys() - VOLATILE - {"curve", "first_losses", "loss"}:
        assert two[name] == one[name], name
    assert two["first_losses"] == pytest.approx(one["first_losses"], rel=1e-5)
    left = {path.name for path in (tmp_path / "two").rglob("*") if path.is_file()}
    assert left == {f"{two['name']}.json", f"{two['name']}.safetensors"}


def test_what_one_process_misses_all_train(tmp_path, monkeypatch):
    """A record that only some see, as on nodes with folders of their own, is nobody's."""
    asked = ["train", "FNet", *SHORT, "--epochs", "2"]
    monkeypatch.setenv("VIXLIB_ROOT", str(tmp_path / "0"))
    assert main(asked) == 0
    before = record_of(tmp_path / "0")
    command = shlex.join([sys.executable, "-m", "vixlib", *asked])
    each = f"VIXLIB_ROOT={tmp_path}/$RANK exec {command}"
    command = [*TORCHRUN, "--nproc-per-node=2", "--no-python", "sh", "-c", each]
    done = subprocess.run(command, env=ALONE, timeout=300, **PIPES)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "epoch 2/2" in done.stdout
    assert "processes" not in before
    assert record_of(tmp_path / "0")["processes"] == 2
    assert not [*(tmp_path / "1").rglob("*.json")]


@pytest.mark.proof
def test_a_process_that_dies_ends_all_and_one_goes_on(root, capsys):
    """Within a minute, with a line that says so; the checkpoint serves any number of processes."""
    going = torchrun(root, "CCN", "--epochs", "40")
    checkpoints = root / "build/quick/checkpoints"
    while not [*checkpoints.glob("*.pt")]:
        assert going.poll() is None
        time.sleep(0.2)
    children = subprocess.run(["pgrep", "-P", str(going.pid)], capture_output=True, text=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    began = time.monotonic()
    _, said = going.communicate(timeout=60)
    assert going.returncode != 0
    assert time.monotonic() - began < 60
    assert "vix: another process of this training has ended; the same command goes on" in said
    assert main(["train", "CCN", *SHORT, "--epochs", "40"]) == 0
    assert "epoch 40/40" in (told := capsys.readouterr().out)
    assert "epoch 1/40" not in told
