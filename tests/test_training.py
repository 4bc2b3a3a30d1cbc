"""One loop: equal runs give equal records, however often they are interrupted."""

import copy
import functools
import json
import math
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small import VARIED, images, small
from torch import nn
from trials_export import shallow
from trials_host import PRECISIONS, waits_holds, waits_trial

from vixlib import data, list_systems
from vixlib.__main__ import main
from vixlib.errors import BadInput, CheckpointError, Diverged, RecordError
from vixlib.layers import Residual
from vixlib.paper import runs, training
from vixlib.paper.records import VOLATILE, files, load, unfinished
from vixlib.paper.runs import PROFILES, RECIPES, Run
from vixlib.paper.training import perform, read
from vixlib.paths import atomic_write
from vixlib.systems import RESULTS
from vixlib.train import Checkpoint, TimeUp, compile_blocks, evaluate, fit

RUN = Run("ViN", "quick", overrides=(("epochs", 3), ("train_images", 500)))


def steady(record):
    """What equal runs must agree on."""
    assert set(record) >= VOLATILE
    return {key: value for key, value in record.items() if key not in VOLATILE}


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """The record of RUN, trained in one go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIXLIB_ROOT", str(tmp_path_factory.mktemp("once")))
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


def time_is_up(monkeypatch, at: int) -> None:
    """Every `at`-th look at the clock under a deadline says so."""
    looks = 0

    def check(deadline):
        nonlocal looks
        looks += deadline < math.inf
        if looks == at:
            looks = 0
            raise TimeUp

    monkeypatch.setattr("vixlib.train.stop_at", check)


def test_equal_runs_give_equal_records(record, root):
    assert steady(perform(RUN)) == steady(record)
    assert steady(json.loads(files(RUN).record.read_text())) == steady(record)


def test_another_seed_gives_another_record(record, root):
    other = perform(Run("ViN", "quick", seed=1, overrides=RUN.overrides))
    assert other["curve"] != record["curve"]
    assert other["fingerprint"] != record["fingerprint"]


def test_stopped_by_the_clock_again_and_again(record, root, monkeypatch):
    time_is_up(monkeypatch, at=4)
    results = [perform(RUN, deadline=1.0) for _ in range(7)]
    # 3 epochs of 4 steps and 2 looks of an evaluation each, and 2 looks at the end
    assert results[:-1] == [None] * 6
    assert steady(results[-1]) == steady(record)
    assert not list(root.glob("build/quick/checkpoints/*"))


def test_killed_and_resumed(root, capsys):
    run = Run("ViT", "quick", overrides=(("epochs", 8), ("train_images", 256)))
    command = [sys.executable, "-m", "vixlib", *run.command.split()[1:]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    checkpoint = root / "build/quick/checkpoints" / f"{run.name}.pt"
    while not checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not files(run).record.exists()
    begun = torch.load(checkpoint, weights_only=True)["state"]["epoch"]
    assert 1 <= begun < 8
    assert main(run.command.split()[1:]) == 0
    out = capsys.readouterr().out
    assert f"epoch {begun + 1}/8" in out
    assert f"epoch {begun}/8" not in out
    resumed = json.loads(files(run).record.read_text())
    files(run).record.unlink()
    assert steady(perform(run)) == steady(resumed)


@pytest.mark.skipif(sys.platform != "linux", reason="children are listed in /proc")
def test_workers_end_with_a_killed_parent(root):
    command = [sys.executable, "-m", "vixlib", "train", "ViT", "ViN", "--profile", "quick"]
    command += ["--set", "epochs=999", "--set", "train_images=128", "--workers", "2"]
    parent = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while len(list(root.glob("build/quick/checkpoints/*.pt"))) < 2:
        assert parent.poll() is None
        time.sleep(0.1)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    assert len(children) >= 2
    parent.kill()
    parent.wait()
    end = time.monotonic() + 30
    while any(Path("/proc", child).exists() for child in children):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_bfloat16_and_augmentation_are_settings(record, root):
    for change in (("precision", "bfloat16"), ("augmented", True)):
        changed = Run("ViN", "quick", overrides=(("epochs", 1), ("train_images", 500), change))
        result = perform(changed)
        assert result["curve"] != record["curve"][:1]
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


# ---- divergence ----


class Fragile(Spy):
    """Breaks at its n-th training step: its loss, its weights or only its evaluation, for good;
    or its loss once, with a finite slope.
    """

    def __init__(self, what, at):
        super().__init__()
        self.what, self.at = what, at

    def forward(self, images):
        scores = super().forward(images)
        broken = sum(self.modes) >= self.at
        if self.what == "once" and self.training and sum(self.modes) == self.at:
            return scores.index_fill(1, torch.arange(1, 10), -math.inf)
        if broken and self.what == "weights" and self.training:
            return scores + (self.weight * 0).sqrt()  # the slope of 0 x infinity
        if broken and self.what == ("loss" if self.training else "evaluation"):
            return scores * math.inf
        return scores


@pytest.fixture(scope="module")
def few():
    return data.subset(data.load("digits"), train=60, test=20)  # 6 steps of 10 an epoch


@pytest.mark.parametrize("look", [1, 4, 50])
@pytest.mark.parametrize(
    ("what", "at", "epoch", "step"),
    [
        ("loss", 1, 1, 1),
        ("loss", 9, 2, 3),
        ("loss", 12, 2, 6),
        ("once", 9, 2, 3),
        ("weights", 12, 2, 6),
        ("evaluation", 7, 2, 6),
    ],
)
def test_the_first_bad_step_is_named(few, tmp_path, monkeypatch, look, what, at, epoch, step):
    monkeypatch.setattr("vixlib.train.LOOK", look)
    model, rows = Fragile(what, at), []
    checkpoint = Checkpoint(tmp_path / "run.pt")
    options = {"epochs": 4, "batch": 10, "lr": 0.25, "checkpoint": checkpoint}
    with pytest.raises(Diverged) as caught:
        fit(model, few, report=rows.append, **options)
    error = caught.value
    assert (error.epoch, error.step, error.lr) == (epoch, step, 0.25)
    assert error.curve == rows
    assert len(rows) == epoch - 1
    kept = tmp_path / "run.pt" if epoch > 1 else "none"
    said = f"diverged in epoch {epoch}, step {step}, at learning rate 0.25; "
    assert str(error) == f"{said}last good checkpoint: {kept}"
    assert sum(model.modes) <= 6 * (epoch - 1) + math.ceil(step / look) * look  # soon noticed
    if epoch > 1:
        state = torch.load(checkpoint.path, weights_only=True)
        assert (state["state"]["epoch"], state["state"]["curve"]) == (1, rows)
        assert state["model"]["weight"].isfinite().all()
        again = Fragile(what, at - 6)  # goes on from there
        with pytest.raises(Diverged) as second:
            fit(again, few, **options)
        assert (second.value.epoch, second.value.step) == (epoch, step)
        assert second.value.curve == rows


@pytest.mark.parametrize("what", ["loss", "weights"])
def test_out_of_time_keeps_no_bad_state(few, tmp_path, monkeypatch, what):
    time_is_up(monkeypatch, at=10)  # 6 steps, an evaluation, 2 steps: after the one that breaks
    checkpoint = Checkpoint(tmp_path / "run.pt")
    with pytest.raises(Diverged) as caught:
        fit(Fragile(what, 8), few, epochs=4, batch=10, checkpoint=checkpoint, deadline=1.0)
    assert (caught.value.epoch, caught.value.step) == (2, 2)
    assert torch.load(checkpoint.path, weights_only=True)["state"]["step"] == 0


def test_scores_that_are_not_finite_are_no_class(few):
    model = Spy()
    assert evaluate(model, few)[0] == pytest.approx(10)  # class 0, by its place
    model.weight.data[7] = math.nan
    assert all(map(math.isnan, evaluate(model, few)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="counts how often a GPU is waited for")
def test_a_step_does_not_wait_for_the_device():
    waits = []
    for train in (100, 1000):
        digits = data.subset(data.load("digits", size=16, device="cuda"), train=train, test=50)
        model = Run("ViN", "quick").build().cuda()
        fit(model, digits, epochs=1, batch=50)  # so that nothing is set up while we count
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                fit(model, digits, epochs=1, batch=50)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waits.append(sum("synchronizing" in str(warning.message) for warning in caught))
    assert 0 < waits[0] == waits[1]


WILD = Run("FNet", "quick", overrides=(("epochs", 12), ("train_images", 500), ("lr", 500.0)))


@pytest.fixture(scope="module")
def wild(tmp_path_factory):
    """The record of WILD, and the loss of each of its steps."""
    losses, cross_entropy = [], F.cross_entropy

    def listen(*tensors, **options):
        loss = cross_entropy(*tensors, **options)
        losses.append(loss.item())
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIXLIB_ROOT", str(tmp_path_factory.mktemp("wild")))
        patch.setattr(training, "_training_memory", lambda *_, **__: 0.0)  # a step of its own
        patch.setattr("torch.nn.functional.cross_entropy", listen)
        record = perform(WILD)
        assert json.loads(files(WILD).record.read_text(), parse_constant=pytest.fail) == record
        assert files(WILD).checkpoint.exists() == (record["diverged_epoch"] > 1)
    return record, losses


def test_a_run_that_diverges_has_a_record(wild, record):
    result, losses = wild
    first = [math.isfinite(loss) for loss in losses].index(False)
    assert (result["diverged_epoch"], result["diverged_step"]) == (first // 4 + 1, first % 4 + 1)
    assert result["status"] == "diverged"
    assert set(result) - set(record) == {"status", "diverged_epoch", "diverged_step"}
    assert set(record) <= set(result)  # what others have; and theirs is as it was
    unknown = {"top1", "top5", "train_accuracy", "loss", "top1_best", "epoch_best"}
    assert all(result[key] is None for key in unknown)
    assert [row["epoch"] for row in result["curve"]] == [*range(1, result["diverged_epoch"])]
    assert all(math.isfinite(row["loss"]) for row in result["curve"])
    assert all(not isinstance(value, dict) for value in result.values())


def test_a_diverged_run_is_known_and_not_trained_again(wild, root, capsys):
    files(WILD).weights.parent.mkdir(parents=True)
    files(WILD).weights.write_text("of an earlier training")
    assert steady(perform(WILD)) == steady(wild[0])
    assert not files(WILD).weights.exists()
    written = files(WILD).record.read_bytes()
    assert load(WILD)["status"] == "diverged"
    assert unfinished([WILD]) == []
    frame = read([WILD], train=True)
    assert capsys.readouterr().out == "0 read, 0 trained, 0 missing, 0 stale, 1 diverged\n"
    assert frame["status"].tolist() == ["diverged"]
    assert frame["top1"].isna().all()
    assert files(WILD).record.read_bytes() == written
    other = {"fingerprint": [0.0] * 80, "code": "other"}
    files(WILD).record.write_text(json.dumps(wild[0] | other))
    assert load(WILD)["status"] == "stale"
    assert unfinished([WILD]) == [WILD]
    files(WILD).record.write_text(json.dumps({k: v for k, v in wild[0].items() if k != "status"}))
    with pytest.raises(RecordError):  # a number is missing, and nothing says why
        load(WILD)


def test_read_trains_into_divergence(root, capsys):
    assert read([WILD], train=True)["status"].tolist() == ["diverged"]
    assert "1 diverged" in capsys.readouterr().out


def test_divergence_after_stops_is_the_same(wild, root, monkeypatch):
    time_is_up(monkeypatch, at=3)
    results = [perform(WILD, deadline=1.0)]
    while results[-1] is None:
        assert len(results) < 30
        results.append(perform(WILD, deadline=1.0))
    assert len(results) > 1
    assert steady(results[-1]) == steady(wild[0])


def test_the_last_look_at_the_whole_test_set_counts(root, monkeypatch):
    """Scores of images that no epoch looked at are not finite."""
    monkeypatch.setattr(training, "judged", lambda *_, **__: torch.full((360, 2), math.nan))
    run = Run("FNet", "quick", overrides=(("epochs", 1), ("train_images", 300)))
    result = perform(run)
    assert (result["status"], result["top1"]) == ("diverged", None)
    assert (result["diverged_epoch"], result["diverged_step"]) == (1, 3)
    assert len(result["curve"]) == 1


def test_missing_records_are_not_trained_unasked(root, capsys):
    frame = read([RUN])
    assert frame.loc[0, "status"] == "missing"
    assert frame.loc[0, "command"].startswith("vix train ViN --profile quick --seed 0")
    assert "top1" not in frame or frame["top1"].isna().all()
    assert capsys.readouterr().out == "0 read, 0 trained, 1 missing, 0 stale\n"
    assert not files(RUN).record.exists()


def test_read_trains_when_asked_and_reads_the_second_time(root, capsys):
    short = Run("FNet", "quick", overrides=(("epochs", 1), ("train_images", 200)))
    assert read([short], train=True)["status"].tolist() == ["trained"]
    assert "epoch 1/1" in capsys.readouterr().out
    assert read([short], train=True)["status"].tolist() == ["read"]


def test_a_record_of_other_code_is_stale(record, root):
    moved = [x + 0.01 for x in record["fingerprint"]]
    changed = record | {"fingerprint": moved, "code": "other"}
    atomic_write(files(RUN).record, lambda path: path.write_text(json.dumps(changed)))
    assert load(RUN)["status"] == "stale"
    assert unfinished([RUN]) == [RUN]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "ViN"}', "null"])
def test_a_corrupt_record_is_named(root, text):
    atomic_write(files(RUN).record, lambda path: path.write_text(text))
    for attempt in (lambda: load(RUN), lambda: read([RUN], train=True)):
        with pytest.raises(RecordError, match=r"unreadable record .*ViN\.digits\.fair\.seed0"):
            attempt()
    assert files(RUN).record.read_text() == text


def test_a_record_of_another_run_is_refused(record, root):
    other = Run("ViT", "quick", overrides=RUN.overrides)
    atomic_write(files(other).record, lambda path: path.write_text(json.dumps(record)))
    with pytest.raises(RecordError, match="another run"):
        load(other)


def test_a_corrupt_checkpoint_is_named(root):
    path = root / "build/quick/checkpoints" / f"{RUN.name}.pt"
    atomic_write(path, lambda part: part.write_bytes(b"not a checkpoint"))
    with pytest.raises(CheckpointError, match=r"unreadable checkpoint .*seed0.*delete it"):
        perform(RUN)
    assert path.read_bytes() == b"not a checkpoint"
    assert not files(RUN).record.exists()


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
        atomic_write(tmp_path / "record.json", fail)
    assert not list(tmp_path.iterdir())


def test_what_is_written_may_be_read_by_all(tmp_path):
    def write(path):
        path.touch(mode=0o600)

    atomic_write(tmp_path / "new" / "record.json", write)
    assert (tmp_path / "new" / "record.json").stat().st_mode & 0o777 == 0o644


def test_trained_weights_give_the_recorded_accuracy(root):
    result = perform(RUN)
    digits = data.load("digits", size=16)
    assert evaluate(training.trained(RUN), digits) == (result["top1"], result["top5"])
    files(RUN).weights.write_bytes(b"?")
    with pytest.raises(CheckpointError, match="unreadable weights"):
        training.trained(RUN)
    files(RUN).weights.unlink()
    with pytest.raises(BadInput, match="train them: vix train ViN"):
        training.trained(RUN)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ViX", "quick"), "unknown system"),
        (("ViT", "slow"), "unknown profile 'slow'; legal: quick, laptop, study, paper"),
        (("ViT", "quick", "fast"), "unknown recipe"),
        (("ViT", "quick", "fair", -1), "seed: expected at least 0"),
        (("ViT", "quick", "fair", 0, (("epoch", 3),)), "did you mean epochs"),
        (("ViT", "quick", "fair", 0, (("epochs", 0),)), "epochs: expected at least 1, got 0"),
        (("ViT", "quick", "fair", 0, (("lr", "much"),)), "lr: expected a number, got .much."),
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
    assert sorted(RESULTS) == sorted(list_systems())
    assert RESULTS[:4] == ["ViT", "ViL", "ViP", "ViN"]
    assert runs.queue("paper")[: len(RESULTS)] == runs.runs(RESULTS, "paper")


@pytest.mark.parametrize(("name", "precision"), zip(VARIED, cycle(PRECISIONS)))
def test_a_step_waits_for_nothing(name, precision):
    """The others in `make proof`."""
    assert waits_holds(waits_trial(name, [precision]))


def test_a_wait_is_seen(monkeypatch):
    """Where a layer asks whether a sum is positive."""
    gelu = F.gelu

    def asking(x, **options):
        return gelu(x, **options) if x.sum() > 0 else x

    monkeypatch.setattr("torch.nn.functional.gelu", asking)
    assert waits_trial("FNet")["waits"] == {"float32": True, "bfloat16": True}


def test_compiled_blocks_learn_the_same():
    name = "CCL"  # with stochastic depth
    model = small(name, **shallow(name)).double()
    compiled, x = copy.deepcopy(model), images()
    compile_blocks(compiled, backend="eager")
    grads = []
    for each in (model, compiled):
        torch.manual_seed(1)
        F.cross_entropy(each.train()(x), torch.arange(4)).backward()
        grads.append(torch.cat([p.grad.flatten() for p in each.parameters() if p.numel()]))
    assert torch.allclose(*grads, rtol=0, atol=1e-9 * grads[0].abs().max().item())
    assert torch.equal(model.eval()(x), compiled.eval()(x))
    assert compiled.state_dict().keys() == model.state_dict().keys()
    blocks = [module for module in compiled.modules() if isinstance(module, Residual)]
    assert blocks
    assert all(block._compiled_call_impl is not None for block in blocks)


def test_a_compiled_run_has_the_record_of_one_that_is_not(root, monkeypatch):
    compile_eagerly = functools.partial(compile_blocks, backend="eager")
    monkeypatch.setattr("vixlib.paper.training.compile_blocks", compile_eagerly)
    run = Run("FNet", "quick", overrides=(("epochs", 2), ("train_images", 200)))
    record, again = perform(run), perform(run, compiled=True)
    assert (record["compiled"], again["compiled"]) == (False, True)
    assert steady(again) == steady(record)


@pytest.mark.parametrize("profile", PROFILES)
def test_longer_sequences(profile):
    known, few = PROFILES[profile], 64
    smallest = known.patches[-1]
    assert known.patches == sorted(known.patches, reverse=True)
    assert smallest == known.sizes["ViX"]["patch_size"]  # the runs of every other notebook
    ordinary = runs.runs(runs.LONGER, profile)
    for equal in ("epochs", "cost"):
        found = runs.longer(profile, equal=equal)
        assert [run for run in found if not run.overrides] == ordinary == found[-len(ordinary) :]
        assert len(set(found)) == len(found)
        for run in found:
            s = run.settings
            assert run.tokens == (known.image_size // s["patch_size"]) ** 2
            read = run.tokens * s["epochs"], s["epochs"]
            wanted = ordinary[0].tokens * known.epochs, known.epochs
            assert read[equal == "epochs"] == wanted[equal == "epochs"]
        for patch in known.patches:
            own = [run.system for run in found if run.settings["patch_size"] == patch]
            tokens = (known.image_size // patch) ** 2 + 1
            assert own == (["ViT", "FNet"] if tokens < few else runs.LONGER)
    assert len(runs.longer(profile, seeds=2)) == 2 * len(runs.longer(profile))


def test_longer_sequences_are_named_and_queued():
    ours = [f"ViN.cifar10.fair.seed0{end}" for end in (".patch_size=4", ".patch_size=4.epochs=24")]
    queue = runs.queue("laptop")
    assert queue[: len(RESULTS)] == runs.runs(RESULTS, "laptop")
    assert len(set(queue)) == len(queue)
    both = {run for e in ("epochs", "cost") for run in runs.longer("laptop", equal=e)}
    assert set(queue) == {*queue[: len(RESULTS)], *both}
    assert {run.name for run in queue} >= set(ours)
    assert "patches" not in queue[-1].settings
    with pytest.raises(BadInput, match="epochs, cost"):
        runs.longer("laptop", equal="time")
    with pytest.raises(BadInput, match="unknown setting 'patches'"):
        Run("ViT", "laptop", overrides=(("patches", [4]),))


def test_with_few_tokens_all_attentions_are_one_function():
    """So that one run stands for all: the same weights, whatever the mechanism declares."""
    images = torch.rand(2, 3, 32, 32)
    vit = Run("ViT", "laptop", overrides=(("patch_size", 8),)).build()
    for name in ("ViL", "ViP", "ViN"):
        with pytest.warns(UserWarning, match="softmax is kept"):
            other = Run(name, "laptop", overrides=(("patch_size", 8),)).build()
        assert torch.equal(vit(images), other(images))
        assert list(vit.state_dict()) == list(other.state_dict())


def test_two_ways_to_say_a_run_are_one():
    said = ("lr", 0.01), ("mechanism.landmarks", 3), ("dim", 16), ("epochs", 2)
    run = Run("ViN", "quick", overrides=said)
    assert run == Run("ViN", "quick", overrides=said[::-1])
    assert run.name == "ViN.digits.fair.seed0.dim=16.epochs=2.lr=0.01.mechanism.landmarks=3"
    usual = ("dim", 32), ("lr", 1e-3), ("mechanism.iterations", 6)
    usual += (
        ("epochs", PROFILES["quick"].epochs),
        ("batch", 128),
        ("mix", None),
        ("mechanism.kernel", 33),
    )
    assert Run("ViN", "quick", overrides=usual) == Run("ViN", "quick")
    assert Run("ViL", "quick", overrides=(("mechanism.shared", True),)) == Run("ViL", "quick")
    other = Run("ViL", "quick", overrides=(("mechanism.shared", False),))
    assert other.overrides == (("mechanism.shared", False),)
    assert Run("LeViN", "quick", overrides=(("widths", [32, 48, 64]),)) == Run("LeViN", "quick")
    released = Run("ViT", "paper", "as-released")
    again = replace(released, overrides=(("batch", released.settings["batch"]),))
    assert again == released
