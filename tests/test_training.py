"""One loop: equal runs give equal records, however often they are interrupted."""

import json
import math
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from vixlib import data, experiments
from vixlib.errors import BadInput, CheckpointError, RecordError
from vixlib.experiments import QUEUE, RECIPES, VOLATILE, Run, load, perform, read
from vixlib.models.zoo import systems
from vixlib.train import Checkpoint, TimeUp, evaluate, fit, write_whole

RUN = Run("ViN", "quick", overrides=(("epochs", 3), ("train_images", 500)))


def steady(record):
    """What equal runs must agree on."""
    assert set(record) >= VOLATILE
    return {key: value for key, value in record.items() if key not in VOLATILE}


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """The record of RUN, trained in one go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments, "ROOT", tmp_path_factory.mktemp("once"))
        return perform(RUN)


def test_a_record_says_what_ran(record):
    wanted = {
        "system",
        "dataset",
        "profile",
        "recipe",
        "seed",
        "parameters",
        "flops",
        "top1",
        "top5",
    }
    assert wanted <= set(record)
    assert (record["system"], record["dataset"], record["profile"]) == ("ViN", "digits", "quick")
    assert (record["batch"], record["std"], record["tokens"]) == (128, 0.02, 64)
    assert [row["epoch"] for row in record["curve"]] == [1, 2, 3]
    assert record["curve"][-1]["top1"] == record["top1"]  # the last epoch, whole test set
    assert record["peak_memory_mb"] > 1
    assert len(record["fingerprint"]) == 8 * 10
    assert all(not isinstance(value, dict) for value in record.values())  # flat


def test_equal_runs_give_equal_records(record, root):
    assert steady(perform(RUN)) == steady(record)
    assert steady(json.loads(RUN.path.read_text())) == steady(record)


def test_another_seed_gives_another_record(record, root):
    other = perform(Run("ViN", "quick", seed=1, overrides=RUN.overrides))
    assert other["curve"] != record["curve"]
    assert other["fingerprint"] != record["fingerprint"]


def test_stopped_by_the_clock_again_and_again(record, root, monkeypatch):
    looks = 0

    def check(deadline):  # time is up after every third look at the clock
        nonlocal looks
        looks += deadline < math.inf
        if looks == 4:
            looks = 0
            raise TimeUp

    monkeypatch.setattr("vixlib.train.check", check)
    results = [perform(RUN, deadline=1.0) for _ in range(6)]
    assert results[:-1] == [None] * 5  # 3 epochs of 4 steps and 2 looks of an evaluation each
    assert steady(results[-1]) == steady(record)
    assert not list(root.glob("build/quick/checkpoints/*"))


def test_killed_and_resumed(root):
    run = Run("ViT", "quick", overrides=(("epochs", 12), ("train_images", 700)))
    command = [sys.executable, "-m", "vixlib", *run.command.split()[1:]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    checkpoint = root / "build/quick/checkpoints" / f"{run.name}.pt"
    while not checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not run.path.exists()
    begun = torch.load(checkpoint, weights_only=True)["state"]["epoch"]
    assert 1 <= begun < 12
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"epoch {begun + 1}/12" in out
    assert f"epoch {begun}/12" not in out
    resumed = json.loads(run.path.read_text())
    run.path.unlink()
    assert steady(perform(run)) == steady(resumed)


def test_bfloat16_and_augmentation_are_settings(record, root):
    for change in (("precision", "bfloat16"), ("augmented", True)):
        changed = Run("ViN", "quick", overrides=(*RUN.overrides, change))
        result = perform(changed)
        assert result["curve"] != record["curve"]
        assert result["fingerprint"] == record["fingerprint"]
        assert math.isfinite(result["loss"])


def test_as_released_notes_the_best_epoch_beside_the_last(root):
    run = Run("ViL", "quick", "as-released", overrides=(("epochs", 2), ("train_images", 500)))
    result = perform(run)
    assert (result["batch"], result["std"]) == (256, 1.0)
    best = max(result["curve"], key=lambda row: row["top1"])
    assert (result["top1_best"], result["epoch_best"]) == (best["top1"], best["epoch"])
    assert RECIPES["fair"].best_on_test is False


class Spy(nn.Module):
    """Remembers the mode that it was called in; right on every second class."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(10))
        self.modes = []

    def forward(self, images):
        self.modes.append(self.training)
        return self.weight.expand(len(images), -1)


def test_training_trains_and_evaluation_evaluates():
    digits = data.subset(data.load("digits"), train=130, test=60)
    spy = Spy()
    fit(spy, digits, epochs=2, batch=128)
    assert spy.modes == [True, True, False] * 2
    spy.modes.clear()
    spy.train()
    evaluate(spy, digits)
    assert spy.modes == [False]
    assert spy.training


def test_evaluation_counts_images_not_batches(monkeypatch):
    digits = data.load("digits")
    spy = Spy()
    spy.weight.data[3] = 1
    spy.weight.data[5:9] = 0.5
    share = (digits.test_labels == 3).float().mean().item() * 100
    among = torch.isin(digits.test_labels, torch.tensor([3, 5, 6, 7, 8])).float().mean().item()
    for batch in (250, 7):
        monkeypatch.setattr("vixlib.train.EVALUATION_BATCH", batch)
        top1, top5 = evaluate(spy, digits)
        assert top1 == pytest.approx(share, abs=1e-3)
        assert top5 == pytest.approx(100 * among, abs=1e-3)


def test_missing_records_are_not_trained_unasked(root, capsys):
    frame = read([RUN])
    assert frame.loc[0, "status"] == "missing"
    assert frame.loc[0, "command"].startswith("vix train ViN --profile quick --seed 0")
    assert "top1" not in frame or frame["top1"].isna().all()
    assert capsys.readouterr().out == "0 read, 0 trained, 1 missing, 0 stale\n"
    assert not RUN.path.exists()


def test_read_trains_when_asked_and_reads_the_second_time(root, capsys):
    short = Run("FNet", "quick", overrides=(("epochs", 1), ("train_images", 200)))
    assert read([short], train=True)["status"].tolist() == ["trained"]
    assert "epoch 1/1" in capsys.readouterr().out
    assert read([short], train=True)["status"].tolist() == ["read"]


def test_a_record_of_other_code_is_stale(record, root):
    changed = record | {"fingerprint": [x + 0.01 for x in record["fingerprint"]]}
    write_whole(RUN.path, lambda path: path.write_text(json.dumps(changed)))
    assert load(RUN)["status"] == "stale"
    assert experiments.unfinished([RUN]) == [RUN]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "ViN"}', "null"])
def test_a_corrupt_record_is_named(root, text):
    write_whole(RUN.path, lambda path: path.write_text(text))
    for attempt in (lambda: load(RUN), lambda: read([RUN], train=True)):
        with pytest.raises(RecordError, match=r"unreadable record .*ViN\.digits\.fair\.seed0"):
            attempt()
    assert RUN.path.read_text() == text


def test_a_record_of_another_run_is_refused(record, root):
    other = Run("ViT", "quick", overrides=RUN.overrides)
    write_whole(other.path, lambda path: path.write_text(json.dumps(record)))
    with pytest.raises(RecordError, match="another run"):
        load(other)


def test_a_corrupt_checkpoint_is_named(root):
    path = root / "build/quick/checkpoints" / f"{RUN.name}.pt"
    write_whole(path, lambda part: part.write_bytes(b"not a checkpoint"))
    with pytest.raises(CheckpointError, match=r"unreadable checkpoint .*seed0.*delete it"):
        perform(RUN)
    assert path.read_bytes() == b"not a checkpoint"
    assert not RUN.path.exists()


def test_a_checkpoint_of_another_run_or_code_is_refused(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    scores = torch.zeros(3)
    Checkpoint(tmp_path / "a.pt", "ours", scores).save(model, optimizer, {"epoch": 1})
    assert Checkpoint(tmp_path / "a.pt", "ours", scores).load(model, optimizer) == {"epoch": 1}
    for other in (("theirs", scores), ("ours", scores + 1)):
        with pytest.raises(CheckpointError, match="another run or code"):
            Checkpoint(tmp_path / "a.pt", *other).load(model, optimizer)


def test_nothing_is_half_written(tmp_path):
    def fail(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "record.json", fail)
    assert not list(tmp_path.iterdir())


def test_trained_weights_give_the_recorded_accuracy(root):
    result = perform(RUN)
    digits = data.load("digits", size=16)
    assert evaluate(experiments.trained(RUN), digits) == (result["top1"], result["top5"])
    RUN.weights.write_bytes(b"?")
    with pytest.raises(CheckpointError, match="unreadable weights"):
        experiments.trained(RUN)
    RUN.weights.unlink()
    with pytest.raises(BadInput, match="train them: vix train ViN"):
        experiments.trained(RUN)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ViX", "quick"), "unknown system"),
        (("ViT", "slow"), "unknown profile 'slow'; legal: quick, laptop, paper"),
        (("ViT", "quick", "fast"), "unknown recipe"),
        (("ViT", "quick", "fair", -1), "seed: expected at least 0"),
        (("ViT", "quick", "fair", 0, (("epoch", 3),)), "did you mean epochs"),
        (("ViT", "quick", "fair", 0, (("epochs", 0),)), "epochs: expected int, at least 1"),
        (("ViT", "quick", "fair", 0, (("lr", "much"),)), "lr: expected float"),
    ],
)
def test_a_run_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(BadInput, match=message):
        Run(*arguments)


def test_a_run_names_and_repeats_its_lists():
    run = Run("LeViN", "quick", overrides=(("widths", [32, 32, 64]), ("epochs", 1)))
    assert run.name == "LeViN.digits.fair.seed0.widths=[32,32,64].epochs=1"
    assert run.command.endswith("--set widths=[32,32,64] --set epochs=1")
    assert {run: 1}[run] == 1
    assert run.build().head[1].in_features == 64


def test_the_queue_holds_every_system_once():
    assert sorted(QUEUE) == sorted(systems())
    assert QUEUE[:4] == ["ViT", "ViN", "ViP", "ViL"]
