"""Where a record comes from: the code that made it, its first losses, and their replay."""

import ast
import json
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vixlib import data, paths, train
from vixlib.__main__ import main
from vixlib.errors import BadInput
from vixlib.paper import figures, provenance, verify
from vixlib.paper.provenance import code
from vixlib.paper.records import files, load, unfinished
from vixlib.paper.runs import Run
from vixlib.paper.training import perform, read

PATH = {name: f"{name}.py" for name in ("attention", "fused", "layers", "systems", "data", "train")}
PATH |= {"vix": "models/vix.py", "levit": "models/levit.py", "runs": "paper/runs.py"}
PATH |= {
    "checkpoint": "checkpoint.py",
    "training": "paper/training.py",
    "records": "paper/records.py",
    "maps": "maps.py",
}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the package, to be edited and put right again."""
    folder = tmp_path_factory.mktemp("copy") / "vixlib"
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(paths.PACKAGE, folder, ignore=ignored))


def edited(package, module, old, new):
    """The hash of the code with one text of a module replaced, and the module's new text."""
    path = package / PATH[module]
    text = path.read_text()
    assert text.count(old) >= 1, old
    changed = text.replace(old, new, 1)
    ast.parse(changed)
    path.write_text(changed)
    try:
        return code.__wrapped__(package)
    finally:
        path.write_text(text)


# ---- the hash ----


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("train", "def learn(", "# why\n\n\ndef learn("),
        (
            "train",
            '"""Raise TimeUp past the deadline, of one process in all of them."""',
            '"""Another docstring."""',
        ),
        ("train", 'class TimeUp(Exception):\n    """The', 'class TimeUp(Exception):\n    """A'),
        (
            "train",
            "loss_of(logits.to(wide), labels)",
            "loss_of(\n(logits.to(wide)), labels,)",
        ),
        ("train", 'one_of("precision", precision', "one_of('precision', precision"),
        ("train", "-> torch.autocast:", "-> object:"),
        ("train", "precision: str) -> Tensor:", 'precision: "str | None") -> Tensor:'),
        ("train", "    was_training = model.training", "    was_training: bool = model.training"),
        ("systems", "    letter: str = ", "    letter: object = "),
        ("train", "FIRST = 20  #", "FIRST = 20;  #"),
    ],
)
def test_what_changes_no_outcome_changes_no_hash(package, module, old, new):
    assert edited(package, module, old, new) == code(package) == code()


@pytest.mark.parametrize(
    ("module", "function", "old", "new"),
    [
        ("train", "judged", "was_training", "before"),
        ("train", "logits_of", "wanted", "hoped"),
        ("train", "fit", "epoch_seed", "its_seed"),  # of a nested function
        ("train", "fit", "top1", "accuracy_now"),
        ("data", "_tiny", "tensors", "arrays"),
        ("checkpoint", "check_room", "error", "trouble"),  # of a handler
        ("data", "_stratified", "rank", "place"),
    ],
)
def test_names_of_locals_change_no_hash(package, module, function, old, new):
    text = (package / PATH[module]).read_text()
    tree = ast.parse(text)
    (node,) = (each for each in tree.body if getattr(each, "name", "") == function)
    source = ast.get_source_segment(text, node)
    assert new not in source
    whole = {each for each in ast.walk(node) if isinstance(each, ast.Name) and each.id == old}
    whole |= {
        each for each in ast.walk(node) if isinstance(each, ast.ExceptHandler) and each.name == old
    }
    assert len(whole) >= 2
    for each in whole:
        setattr(each, "id" if isinstance(each, ast.Name) else "name", new)
    renamed = ast.unparse(node)
    decorated = [f"@{ast.unparse(each)}\n" for each in node.decorator_list]
    changed = renamed.removeprefix("".join(decorated))
    assert changed != source
    assert edited(package, module, source, changed) == code(package)


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("train", "EVALUATION_BATCH = 250", "EVALUATION_BATCH = 251"),  # a constant
        ("train", "100_000 * epoch_seed + step", "100_000 * epoch_seed - step"),  # an operator
        ("train", "lr: float = 1e-3", "lr: float = 2e-3"),  # a default
        ("train", "weight_decay: float = 0.01", "weight_decay: float = 0"),  # a default, 0.0 is 0
        ("train", "loss.backward()\n    optimizer.step()", "optimizer.step()\n    loss.backward()"),
        ("train", "    optimizer.zero_grad()\n", ""),
        ("train", "fused=True)", "fused=False)"),
        ("train", "@torch.no_grad()\n", ""),
        ("train", "logits.detach().argmax(1) == truth", "logits.detach().argmax(1) != truth"),
        ("train", "% LOOK == 0", "% LOOK == 1"),
        ("train", "model.train(was_training)", "model.train()"),
        ("train", "def learn(\n    model", "def learn(\n    net"),  # a parameter is no local
        ("train", "chosen = order.to(device)", "order = order.to(device)"),
        ("data", "(images.float() / 255 - 0.5) / 0.5", "images.float() / 255 - 0.5 / 0.5"),
        ("data", "stable=True", "stable=False"),
        ("systems", '"TLPN"', '"TLNP"'),
        ("vix", "norm(x).mean(1)", "norm(x).mean(2)"),
        ("runs", "torch.manual_seed(self.seed)", "torch.manual_seed(0)"),
        ("training", 'train=s["train_images"]', "train=None"),
        ("runs", "batch lr weight_decay warm_up", "batch lr warm_up"),
        ("training", "max(curve, key=", "min(curve, key="),
        ("training", "judged(model, dataset, precision", "judged(model, dataset, 9, precision"),
    ],
)
def test_what_may_change_an_outcome_changes_the_hash(package, module, old, new):
    assert edited(package, module, old, new) != code(package)
    assert edited(package, module, old, old) == code(package)


def test_every_module_that_decides_counts(package):
    """A line more in a module of the library: these alone decide nothing about a training."""
    beside = {"__init__", "__main__", "_torchvision", "contract", "errors", "maps", "measure"}
    beside |= {"download", "weights"}  # what is read is held to its checksum
    for path in [*package.glob("*.py"), *package.glob("models/*.py")]:
        text = path.read_text()
        path.write_text(f"{text}extra = 1\n")
        changed = code.__wrapped__(package) != code(package)
        path.write_text(text)
        alone = path.parent == package and path.stem in {*beside, "paths"}
        assert changed != alone, path


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [("training", '"stopped;', '"out of hours;'), ("records", "atol=1e-3", "atol=1e-2")],
)
def test_what_only_reports_is_no_part_of_it(package, module, old, new):
    assert edited(package, module, old, new) == code(package)


def test_two_locals_are_not_one():
    """Numbers for names: alike where only names differ, never where their use does."""
    form = provenance._form
    same = form("def f(a):\n    x = a\n    y = a\n    return x - y")
    assert form("def f(a):\n    p = a\n    q = a\n    return p - q") == same
    for other in (
        "def f(a):\n    x = a\n    y = a\n    return y - x",
        "def f(a):\n    x = a\n    x = a\n    return x - x",
        "def f(b):\n    x = b\n    y = b\n    return x - y",
        "x = 1\ndef f(a):\n    z = a\n    y = a\n    return x - y",  # that of the module
        "def f(a):\n    x = a\n    y = a\n    return x - max",
        "def f(a, *, x=1):\n    x = a\n    y = a\n    return x - y",
    ):
        assert form(other) != same, other
    field = "class A:\n    x: int = 1"
    assert form(field) == form("class A:\n    x: str = 1") != form("class A:\n    x = 1")
    assert form("x = 1") != form("x = 1.0") != form("x = True")


# ---- the first losses ----

FEW = ("train_images", 50), ("batch", 20), ("watch_images", 20)  # 3 steps an epoch
RUN = Run("FNet", "quick", overrides=(("epochs", 8), *FEW))
OTHER = Run("FNet", "quick", overrides=(("epochs", 2), *FEW))


def plain_losses(run, steps):
    """Losses of the first steps of a run, by a loop that shares nothing with ours but one model."""
    model, s = run.build().train(), run.settings
    digits = data.subset(data.load("digits", size=16), train=s["train_images"])
    optimizer = torch.optim.AdamW(model.parameters(), s["lr"], weight_decay=s["weight_decay"])
    found = []
    for epoch in range(s["epochs"]):
        seed = 10_000 * run.seed + epoch
        order = torch.randperm(50, generator=torch.Generator().manual_seed(seed))
        for chosen in order.split(s["batch"]):
            pixels = digits.train_images[chosen].double() / 127.5 - 1
            loss = F.cross_entropy(model(pixels.float()), digits.train_labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    return found[:steps]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """The record of RUN, trained in one go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIXLIB_ROOT", str(tmp_path_factory.mktemp("once")))
        return perform(RUN)


@pytest.fixture
def path(record, root):
    """The file of the record of RUN, in a project of its own."""
    return written(record)


def written(record):
    path = files(RUN).record
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def test_the_first_losses_are_those_of_the_first_20_steps(record):
    assert record["first_losses"] == pytest.approx(plain_losses(RUN, 20), rel=1e-4)
    assert len(record["first_losses"]) == 20
    assert all(torch.tensor(loss).item() == loss for loss in record["first_losses"])  # unrounded
    epoch = record["first_losses"][:3]
    mean = sum(loss * n for loss, n in zip(epoch, (20, 20, 10), strict=True)) / 50
    assert record["curve"][0]["loss"] == pytest.approx(mean, abs=1e-4)


def test_a_shorter_run_has_fewer(root):
    assert len(perform(OTHER)["first_losses"]) == 6


@pytest.mark.parametrize("at", [3, 7])
def test_a_run_stopped_within_them_has_the_same(record, root, monkeypatch, at):
    looks = 0

    def time_is_up(deadline):
        nonlocal looks
        looks += deadline < math.inf
        if looks % at == 0 and 0 < looks < 60 and deadline < math.inf:
            raise train.TimeUp

    monkeypatch.setattr(train, "stop_at", time_is_up)
    done, tries = None, 0
    while done is None:
        done, tries = perform(RUN, deadline=1.0), tries + 1
    assert tries > 3
    assert done["first_losses"] == record["first_losses"]


def test_killed_after_the_last_checkpoint_it_has_them_still(record, root, monkeypatch):
    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vixlib.paper.training.judged", die)
        with pytest.raises(KeyboardInterrupt):
            perform(RUN)
    assert perform(RUN)["first_losses"] == record["first_losses"]


def test_what_was_saved_without_losses_gets_none_of_later_steps(tmp_path, monkeypatch):
    digits = data.subset(data.load("digits", size=16), train=60, test=20)
    checkpoint = train.Checkpoint(tmp_path / "run.pt")
    model, losses = Run("FNet", "quick").build(), []
    train.fit(model, digits, epochs=1, batch=10, checkpoint=checkpoint)
    optimizer = torch.optim.AdamW(model.parameters())
    state = checkpoint.load(model, optimizer)
    checkpoint.save(model, optimizer, {k: v for k, v in state.items() if k != "losses"})
    train.fit(model, digits, epochs=2, batch=10, checkpoint=checkpoint, losses=losses)
    assert losses == []


def test_a_checkpoint_of_other_code_is_refused(root, monkeypatch):
    looks = iter([None] * 5)
    monkeypatch.setattr(train, "stop_at", lambda deadline: next(looks, 0) == 0 and stop())

    def stop():
        raise train.TimeUp

    assert perform(RUN, deadline=1.0) is None
    monkeypatch.setattr(provenance, "code", lambda: "other")
    with pytest.raises(ValueError, match="another run or code"):
        perform(RUN)


# ---- replays ----


def vix(capsys, *arguments):
    """The status of a command, its lines, and its errors."""
    status = main(["verify", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out.splitlines(), err


def nudged(record, by):
    return record | {"first_losses": [loss * (1 + by) for loss in record["first_losses"]]}


@pytest.mark.parametrize("how", ["path", "name", "queue"])
def test_an_equal_record_is_equal(path, capsys, how):
    before = path.read_bytes()
    which = {
        "path": [path],
        "name": [RUN.name, "--profile", "quick"],
        "queue": ["--queue", "quick"],
    }
    assert vix(capsys, *which[how]) == (0, [f"{RUN.name}: equal, 20 losses"], "")
    assert path.read_bytes() == before


@pytest.mark.parametrize("by", [1e-7, -1e-7, 5e-7])
def test_a_record_of_another_processor_is_equal_to_rounding(record, root, capsys, by):
    status, lines, _ = vix(capsys, written(nudged(record, by)))
    assert status == 0
    assert lines[0].startswith(f"{RUN.name}: equal to rounding, 20 losses, up to ")


@pytest.mark.parametrize(
    "losses",
    [
        lambda now: [loss * (1 + 3e-6) for loss in now],
        lambda now: [now[0], now[1] * (1 + 3e-5), *now[2:]],
        lambda now: [*now[:19], now[19] * 1.02],
        lambda now: now[:19],
        lambda now: [*now, 1.0],
        lambda now: [],
    ],
)
def test_more_than_rounding_is_different(record, root, capsys, losses):
    path = written(record | {"first_losses": losses(record["first_losses"])})
    status, lines, _ = vix(capsys, path)
    assert status == 1
    assert lines[0].startswith(f"{RUN.name}: different, 20 losses")


def slower(optimizer, logits, labels, *_):
    """A careless edit of a step: a gradient a little too small, which Adam hardly notices."""
    loss = F.cross_entropy(logits.float(), labels, label_smoothing=1e-3)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def other_order(n, **options):
    return torch.arange(n)


@pytest.mark.parametrize(("what", "edit"), [("descend", slower), ("torch.randperm", other_order)])
def test_an_edit_of_the_loop_is_different(path, capsys, monkeypatch, what, edit):
    monkeypatch.setattr(f"vixlib.train.{what}", edit)
    assert vix(capsys, path)[0] == 1


def test_another_learning_rate_is_different(path, capsys, monkeypatch):
    monkeypatch.setattr(train, "share_of_rate", lambda *_: 1.01)
    assert vix(capsys, path)[0] == 1


def test_one_that_differs_is_told_among_others(record, path, root, capsys):
    perform(OTHER)
    written(nudged(record, 0.1))
    status, lines, _ = vix(capsys, "--queue", "quick")
    assert status == 1
    assert [line.split(": ")[1].split(",")[0] for line in lines] == ["equal", "different"]


def test_a_diverged_record_is_replayed(root, capsys):
    wild = Run("FNet", "quick", overrides=(("epochs", 2), *FEW, ("lr", 1e6)))
    record = perform(wild)
    assert record["status"] == "diverged"
    finite = len(record["first_losses"])
    assert 1 <= finite < 20
    assert vix(capsys, files(wild).record)[1] == [f"{wild.name}: equal, {finite} losses"]


# ---- records of old ----


def test_a_record_without_losses_cannot_be_replayed(record, root, capsys):
    path = written({key: value for key, value in record.items() if key != "first_losses"})
    status, lines, said = vix(capsys, path)
    assert status == 2
    assert not lines
    assert "cannot replay" in said
    assert "it has no first losses" in said


# ---- what a replay leaves, and what becomes of it ----


def test_a_changed_hash_alone_is_unverified_and_used(record, root, capsys):
    written(record)
    assert load(RUN)["status"] == "read"
    path = written(record | {"code": "other"})
    assert load(RUN)["status"] == "unverified"
    assert unfinished([RUN]) == []
    capsys.readouterr()
    frame = read([RUN], train=True)
    assert capsys.readouterr().out == "0 read, 0 trained, 0 missing, 0 stale, 1 unverified\n"
    assert frame["top1"].tolist() == [record["top1"]]
    assert figures._of(frame).endswith("some unverified")
    command = [*RUN.command.split()[1:]]
    assert main(command) == 0
    assert "; unverified: `vix verify`; --again" in capsys.readouterr().out
    assert vix(capsys, path, "--write")[0] == 0
    assert load(RUN)["status"] == "read"
    now = json.loads(path.read_text())
    assert now.pop("verified")["result"] == "equal"
    assert now == record  # the hash is today's, the rest as it was


def test_rounding_verifies_and_keeps_the_losses_of_the_record(record, root, capsys):
    nudge = nudged(record, 1e-7) | {"code": "other"}
    path = written(nudge)
    assert vix(capsys, path, "--write")[0] == 0
    now = json.loads(path.read_text())
    assert now["verified"]["result"] == "equal to rounding"
    assert now["first_losses"] == nudge["first_losses"]
    assert load(RUN)["status"] == "read"


def test_a_different_replay_makes_a_record_stale_until_one_is_equal(path, capsys, monkeypatch):
    before = json.loads(path.read_text())
    with monkeypatch.context() as patch:
        patch.setattr("vixlib.train.descend", slower)
        assert vix(capsys, path)[0] == 1
        assert load(RUN)["status"] == "read"  # not asked to write
        assert vix(capsys, path, "--write")[0] == 1
    now = json.loads(path.read_text())
    assert now.pop("verified")["result"] == "different"
    assert now == before
    assert load(RUN)["status"] == "stale"
    assert unfinished([RUN]) == [RUN]
    assert vix(capsys, path, "--write")[0] == 0
    assert load(RUN)["status"] == "read"


def test_other_scores_are_stale_unless_nothing_else_is_other(record, root):
    """By the same code, torch and settings they would be of somebody's hand."""
    for more in ({"code": "other"}, {"versions": "torch 2.7"}, {"lr": 0.5}):
        written(record | more | {"fingerprint": [x + 0.01 for x in record["fingerprint"]]})
        assert load(RUN)["status"] == "stale"


def test_a_record_of_today_s_code_needs_no_model(root, monkeypatch):
    """Of all images, too, whose setting is None while the record counts them."""
    run = Run("FNet", "quick", overrides=(("epochs", 1),))
    assert run.settings["train_images"] is None
    assert perform(run)["train_images"] > 0
    monkeypatch.setattr("vixlib.paper.records.fingerprint", None)
    assert load(run)["status"] == "read"


def test_a_diverged_record_of_other_code_is_diverged(record, root):
    where = {"diverged_epoch": 1, "diverged_step": 2}
    written(record | where | {"status": "diverged", "top1": None, "code": "other"})
    assert load(RUN)["status"] == "diverged"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"system": "ViZ"}, "unknown system 'ViZ'"),
        ({"profile": "huge"}, "unknown profile 'huge'"),
        ({"recipe": "old"}, "unknown recipe 'old'"),
        ({"lr": 0.1}, "lr was 0.1, is 0.001"),
        ({"image_size": 32}, "image_size was 32, is 16"),
        ({"dim": 48}, "dim was 48, is 32"),
        ({"batch": 64}, "name was FNet.digits.fair.seed0.epochs=8"),
        ({"name": "FNet.digits.fair.seed0"}, "name was FNet.digits.fair.seed0, is FNet.digits"),
        ({"overrides": "layers=3", "layers": 3}, "unknown setting 'layers'"),
        ({"overrides": None}, "cannot replay"),
    ],
)
def test_a_run_that_is_no_more_is_one_line(record, root, capsys, change, said):
    good = files(OTHER).record
    path = written(record | change)
    changed = {"overrides": record["overrides"].replace("epochs=8", "epochs=2"), "epochs": 2}
    good.write_text(json.dumps(record | {"name": OTHER.name} | changed))
    status, lines, error = vix(capsys, good, path)
    assert (status, lines, error.count("\n")) == (2, [], 1)  # before anything is trained
    assert error.startswith(f"vix: cannot replay {path}: ")
    assert said in error


def test_runs_of_committed_records_are_still_the_same():
    """By their names and settings, the sizes of models among them."""
    kept = [*(paths.CHECKOUT / "figures" / "records").rglob("*.json")]
    assert kept
    for path in kept:
        run, _ = verify.rebuilt(path)
        assert run.name == path.stem


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name records, or a profile with --queue"),
        (["ViT", "--queue", "quick"], "name records, or a profile with --queue"),
        (["ViT.cifar10.fair.seed9"], "cannot replay"),
        (["--queue", "fast"], "unknown profile 'fast'"),
        (["--queue", "quick"], "no records in"),
    ],
)
def test_bad_input_is_one_line(root, capsys, arguments, said):
    status, lines, error = vix(capsys, *arguments)
    assert (status, lines, error.count("\n")) == (2, [], 1)
    assert said in error


def test_lists_and_floats_are_rebuilt(root):
    changes = ("widths", [32, 32, 64]), ("epochs", 1), ("train_images", 100), ("lr", 2e-3)
    run = Run("LeViN", "quick", "as-released", 1, (*changes, ("batch", 50)))
    assert verify.rebuilt(_performed(run))[0] == run


def _performed(run):
    perform(run)
    return files(run).record


# ---- committed code ----

DIGITS = ("dataset", "digits"), ("image_size", 16), ("epochs", 1), ("train_images", 20)
KEPT = Run("FNet", "laptop", overrides=DIGITS)


@pytest.fixture(scope="module")
def clone(tmp_path_factory, package):
    """A small repository of its own with today's code, whatever is committed here."""
    folder = tmp_path_factory.mktemp("cloned") / "clone"
    folder.mkdir()
    shutil.copytree(package, folder / "vixlib")
    (folder / "figures").mkdir()
    for name in ("pyproject.toml", "README.md", "figures/paper.csv"):
        shutil.copy(paths.CHECKOUT / name, folder / name)
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, *("-c", "user.name=a", "-c", "user.email=a@b"), "commit", "-qm", "all")
    return folder


def git(folder, *arguments):
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def commit(clone, root, monkeypatch):
    """The commit in the record of a small run in the clone as it is then."""
    monkeypatch.setattr(paths, "CHECKOUT", clone)
    monkeypatch.setattr("vixlib.paper.training._costs", lambda *_, **__: {})

    def made(run=KEPT, **options):
        provenance._git.cache_clear()
        return perform(run, **options)["commit"]

    yield made
    provenance._git.cache_clear()


def test_kept_records_are_of_committed_code(clone, commit):
    head = git(clone, "rev-parse", "--short=10", "HEAD")
    (clone / "README.md").write_text("other words")
    assert commit() == head  # words decide nothing
    module, table = clone / "vixlib" / "train.py", clone / "vixlib" / "paper" / "recipes.toml"
    texts = module.read_text(), table.read_text()
    module.write_text(texts[0].replace("LOOK = 50", "LOOK = 51"))
    table.write_text(texts[1] + "# more\n")
    with pytest.raises(BadInput) as refused:
        commit()
    said = "not committed: vixlib/paper/recipes.toml, vixlib/train.py; commit, or say --dirty"
    assert str(refused.value) == f"{said} (dirty=True)"
    assert commit(dirty=True) == f"{head}-dirty"
    assert commit(RUN) == f"{head}-dirty"  # those of quick are not kept
    git(clone, "add", "vixlib/train.py")  # staged is not committed
    table.write_text(texts[1])
    with pytest.raises(BadInput, match=r"not committed: vixlib/train\.py;"):
        commit()
    module.write_text(texts[0])
    git(clone, "add", "vixlib/train.py")
    (clone / "vixlib" / "new.py").touch()
    with pytest.raises(BadInput, match=r"not committed: vixlib/new\.py;"):
        commit()
    (clone / "vixlib" / "new.py").unlink()
    assert commit() == head


def test_without_git_nothing_is_refused(clone, commit, monkeypatch):
    (clone / "vixlib" / "new.py").touch()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        assert commit() == "unknown"
    (clone / ".git").rename(clone / "not.git")
    assert commit() == "unknown"
    (clone / "not.git").rename(clone / ".git")
    monkeypatch.setattr(provenance.paths, "CHECKOUT", None)  # a wheel
    monkeypatch.setattr(paths, "shipped", lambda name: clone / "figures" / name)
    assert commit() == "unknown"
    (clone / "vixlib" / "new.py").unlink()


def test_commands_say_dirty(root, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        "vixlib.paper.training.perform", lambda run, **options: asked.append(options)
    )
    for more in ([], ["--dirty"]):
        main(["train", "FNet", "--profile", "quick", "--workers", "1", *more])
    assert [options["dirty"] for options in asked] == [False, True]
