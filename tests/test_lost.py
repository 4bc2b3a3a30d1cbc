"""Nothing is lost: signals, shared queues, full disks, damaged files, memory, bad mirrors."""

import contextlib
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
import trials_lost
from filelock import FileLock, Timeout
from torch import nn

from vixlib import checkpoint as module
from vixlib import data, download, train
from vixlib.__main__ import main
from vixlib.checkpoint import Checkpoint, check_room, stoppable, stopping
from vixlib.errors import BadInput, CheckpointError, DataError, OutOfMemory, RecordError
from vixlib.paper import training
from vixlib.paper.records import VOLATILE, files, load
from vixlib.paper.runs import Run
from vixlib.paper.training import perform, perform_all
from vixlib.paths import atomic_write

CHANGES = ("epochs", 2), ("train_images", 60), ("batch", 10)
QUEUE = [Run("FNet", "quick", seed=seed, overrides=CHANGES) for seed in range(3)]
FIRST = QUEUE[0]
VIX = ["train", "FNet", "ViT", "--profile", "quick", "--workers", "1"]
VIX += [f"--set={name}={value}" for name, value in CHANGES]
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    """No test leaves a request to stop, or handlers of its own."""
    monkeypatch.setattr(training, "_training_memory", lambda *_, **__: 0.0)  # a step of its own
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert not stopping.is_set()


def steady(run):
    record = json.loads(files(run).record.read_text())
    return {key: value for key, value in record.items() if key not in VOLATILE}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The record of FIRST, trained in one go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIXLIB_ROOT", str(tmp_path_factory.mktemp("once")))
        patch.setattr(training, "_training_memory", lambda *_, **__: 0.0)
        perform(FIRST)
        return steady(FIRST)


def at_step(monkeypatch, act, number=9):
    """Does something within the n-th step of all trainings: of 12, the third of an epoch."""
    learn, steps = train.learn, []

    def learn_and_act(*arguments, **options):
        steps.append(1)
        if len(steps) == number:
            act()
        return learn(*arguments, **options)

    monkeypatch.setattr(train, "learn", learn_and_act)
    return steps


# ---- signals ----


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_in_the_middle_of_an_epoch(root, whole, monkeypatch, capsys, number):
    before = signal.signal(number, signal.SIG_DFL)  # under nohup SIGHUP is ignored, and stays so
    with monkeypatch.context() as patch:
        steps = at_step(patch, lambda: os.kill(os.getpid(), number))
        assert main(VIX) == 130
    signal.signal(number, before)
    out, err = capsys.readouterr()
    assert err == "vix: stopped; the same command goes on\n"
    assert "stopped" in out.splitlines()[-1]
    assert len(steps) == 9
    kept = [path.name for path in root.rglob("*.pt")]
    assert kept == [files(FIRST).checkpoint.name]  # and none of the run that had not begun
    state = torch.load(files(FIRST).checkpoint, weights_only=True)["state"]
    assert (state["epoch"], state["step"]) == (1, 3)
    assert perform_all([FIRST]) == (0, 0)
    assert steady(FIRST) == whole
    assert not [path for path in root.rglob("*") if path.suffix in (".pt", ".part", ".lock")]


def test_a_second_signal_ends_at_once(root, monkeypatch):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping.wait(5)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        pytest.fail("it went on")

    at_step(monkeypatch, twice)
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # in the background it is ignored
    with pytest.raises(KeyboardInterrupt):
        perform_all(QUEUE)
    signal.signal(signal.SIGINT, before)
    state = torch.load(files(FIRST).checkpoint, weights_only=True)["state"]
    assert (state["epoch"], state["step"]) == (1, 0)  # the last that was whole


def test_a_step_that_does_not_end_is_left(root, monkeypatch):
    monkeypatch.setattr(module, "GRACE", 0.2)

    def hang():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)

    at_step(monkeypatch, hang)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        perform_all(QUEUE)
    assert time.monotonic() - began < 20
    assert 0 < module.GRACE < 5


def test_what_is_ignored_stays_ignored():
    """nohup, or a job in the background of a script."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stopping.is_set()
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_trains_without_handlers(root):
    thread = threading.Thread(target=perform_all, args=([FIRST],))
    thread.start()
    thread.join()
    assert files(FIRST).record.exists()


def test_the_last_look_keeps_to_the_deadline(root, whole, monkeypatch):
    looks = []

    def stop_at(deadline):
        looks.append(deadline)
        if len(looks) == 12 + 2 * 2 + 1:  # steps, looks after an epoch, the first of the last
            raise train.TimeUp

    monkeypatch.setattr(train, "stop_at", stop_at)
    assert perform(FIRST, deadline=1e9) is None
    assert looks == [1e9] * 17
    assert not files(FIRST).record.exists()
    perform(FIRST, deadline=1e9)
    assert steady(FIRST) == whole


def test_out_of_time_before_a_step_leaves_nothing(root, capsys):
    assert main([*VIX, "--minutes", "1e-9"]) == 3
    assert "2 left: time is up" in capsys.readouterr().out
    assert perform(FIRST, deadline=0.0) is None
    assert not [path for path in root.rglob("*") if path.is_file()]


def test_a_reader_who_leaves_stops_nothing(root, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        assert main(VIX) == 0
    assert files(FIRST).record.exists()


# ---- queues ----


@pytest.fixture
def forked(monkeypatch):
    """Workers that are forked: they begin at once, with what a test has replaced."""
    monkeypatch.setattr(training, "get_context", lambda _: multiprocessing.get_context("fork"))


def fails(monkeypatch, act, run=QUEUE[1]):
    """Something happens where a run is trained."""

    def perform_or_act(asked, **options):
        return act() if asked == run else perform(asked, **options)

    monkeypatch.setattr(training, "perform", perform_or_act)


def raising(error):
    def act():
        raise error

    return act


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (CheckpointError("unreadable checkpoint x.pt"), "failed: unreadable checkpoint x.pt; "),
        (RuntimeError("two\nlines"), "failed: RuntimeError: two lines; "),
        (OSError(28, "No space left on device", "x"), "failed: [Errno 28] No space left on device"),
        (MemoryError(), "failed: out of memory at batch 10, 64 tokens an image: lower batch"),
    ],
)
def test_a_run_that_fails_concerns_no_other(root, monkeypatch, forked, capfd, error, said, workers):
    fails(monkeypatch, raising(error))
    assert perform_all(QUEUE, workers=workers) == (1, 0)
    assert [files(run).record.exists() for run in QUEUE] == [True, False, True]
    lines = [line for line in capfd.readouterr().out.splitlines() if "failed" in line]
    assert len(lines) == 1
    assert f" run 2 of 3, {QUEUE[1].name}: {said}" in lines[0]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_cannot_be_asked_ends_a_queue(root, monkeypatch, forked, workers):
    fails(monkeypatch, raising(DataError("no CIFAR-10 in /nowhere")))
    with pytest.raises(BadInput, match="no CIFAR-10 in /nowhere"):
        perform_all(QUEUE, workers=workers)


def test_a_killed_worker_costs_its_run(root, monkeypatch, forked, capfd):
    assert {run.tokens for run in QUEUE} == {64}  # else torch is at work here while workers fork
    fails(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGKILL), QUEUE[0])
    assert perform_all(QUEUE, workers=2) == (1, 0)
    assert [files(run).record.exists() for run in QUEUE] == [False, True, True]
    out = capfd.readouterr().out
    said = "failed: its process died (-9), perhaps out of memory at batch 10, 64 tokens an image"
    assert f"run 1 of 3, {FIRST.name}: {said}" in out


@pytest.mark.parametrize("stubborn", [False, True])
def test_workers_stop_with_their_parent(root, monkeypatch, forked, stubborn):
    """Those that train save it; one that does not hear is ended."""
    monkeypatch.setattr(module, "GRACE", 3)
    begun = root / "begun"
    begun.mkdir()

    def wait():
        (begun / str(os.getpid())).touch()
        if stubborn:
            time.sleep(60)
        while not stopping.is_set():
            time.sleep(0.01)

    monkeypatch.setattr(training, "perform", lambda *_, **__: wait())

    def stop():
        while len(list(begun.iterdir())) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        perform_all(QUEUE, workers=2)
    assert time.monotonic() - began < 20
    workers = [int(path.name) for path in begun.iterdir()]
    assert len(workers) == 2  # the third run did not begin
    time.sleep(0.5)
    assert not [child for child in multiprocessing.active_children() if child.pid in workers]


def test_two_processes_train_no_run_twice(root, monkeypatch):
    begun = root / "begun"

    def perform_and_tell(run, **options):
        with begun.open("a") as file:
            file.write(f"{run.seed}\n")
        return perform(run, **options)

    monkeypatch.setattr(training, "perform", perform_and_tell)
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=perform_all, args=(QUEUE,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert sorted(begun.read_text().split()) == ["0", "1", "2"]
    assert all(files(run).record.exists() for run in QUEUE)


def test_a_claim_holds_until_its_process_is_dead(root):
    begun, context = multiprocessing.Event(), multiprocessing.get_context("fork")

    def hold():
        with training._claim(FIRST):
            begun.set()
            time.sleep(60)

    process = context.Process(target=hold)
    process.start()
    assert begun.wait(30)
    with pytest.raises(Timeout), training._claim(FIRST):
        pass
    assert perform_all([FIRST]) == (0, 1)
    process.kill()
    process.join()
    assert perform_all([FIRST]) == (0, 0)


def test_another_process_may_have_finished_it_by_now(root, monkeypatch):
    record, asked = perform(FIRST), []

    def perform_again(run, **_):
        asked.append(run)
        return record

    monkeypatch.setattr(training, "perform", perform_again)
    assert perform_all([FIRST]) == (0, 0)
    assert asked == []
    assert perform_all([FIRST], again=True) == (0, 0)
    assert asked == [FIRST]


# ---- damaged files ----


@pytest.fixture
def saved(tmp_path):
    model = nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    kept = Checkpoint(tmp_path / "run.pt", "ours", torch.zeros(3))
    kept.save(model, optimizer, {"epoch": 1})
    return kept, model, optimizer


def test_every_flipped_bit_is_noticed(saved):
    kept, *parts = saved
    whole, chance = kept.path.read_bytes(), random.Random(0)
    for _ in range(200):
        octets = bytearray(whole)
        octets[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        kept.path.write_bytes(octets)
        with pytest.raises(CheckpointError, match=r"unreadable checkpoint .*delete it"):
            kept.load(*parts)
    for length in (0, 1, 31, 32, 33, len(whole) // 2, len(whole) - 1):
        kept.path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="unreadable"):
            kept.load(*parts)
    kept.path.write_bytes(whole)
    assert kept.load(*parts) == {"epoch": 1}
    kept.path.unlink()
    kept.path.mkdir()
    with pytest.raises(CheckpointError, match="unreadable"):
        kept.load(*parts)


def test_a_damaged_file_concerns_its_run_alone(root, capsys):
    """A record of the first run, a checkpoint of the second: the third has its turn."""
    queue = [*VIX[:3], "ViP", *VIX[3:]]
    fnet, vit, vip = (Run(name, "quick", overrides=CHANGES) for name in ("FNet", "ViT", "ViP"))
    files(fnet).record.mkdir(parents=True)
    atomic_write(files(vit).checkpoint, lambda path: path.write_text("?"))
    assert main(queue) == 1
    out, err = capsys.readouterr()
    failed = [line for line in out.splitlines() if "failed" in line]
    assert len(failed) == 2
    assert f"{fnet.name}: failed: unreadable record {files(fnet).record}" in failed[0]
    assert f"{vit.name}: failed: unreadable checkpoint {files(vit).checkpoint}" in failed[1]
    assert (err, load(vip)["epochs"]) == ("", 2)


@pytest.mark.parametrize("change", [text for text in trials_lost.RECORDS if text[:2] == '{"'])
def test_records_hold_what_a_training_leaves(root, whole, change):
    def put(record):
        atomic_write(files(FIRST).record, lambda path: path.write_text(json.dumps(record)))

    put(whole)
    assert load(FIRST)["top1"] == whole["top1"]
    put(whole | json.loads(change))
    with pytest.raises(RecordError, match=f"unreadable record {files(FIRST).record}"):
        load(FIRST)


def test_a_percentage_is_at_most_a_hundred(root, whole):
    for top1, known in ((100.0, True), (100.5, False)):
        changed = json.dumps(whole | {"top1": top1})
        atomic_write(files(FIRST).record, lambda path, text=changed: path.write_text(text))
        with contextlib.nullcontext() if known else pytest.raises(RecordError, match="top1"):
            assert load(FIRST)["top1"] == top1


def test_a_record_of_old_may_have_no_curve(root, whole):
    fewer = {name: value for name, value in whole.items() if name != "curve"}
    atomic_write(files(FIRST).record, lambda path: path.write_text(json.dumps(fewer)))
    assert load(FIRST)["top1"] == whole["top1"]


def test_verify_goes_on_after_a_damaged_record(root, capsys):
    for run in QUEUE[:2]:
        perform(run)
    files(FIRST).record.write_text("{}")
    assert main(["verify", "--queue", "quick"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{FIRST.name}: failed, cannot replay {files(FIRST).record}")
    assert lines[1].startswith(f"{QUEUE[1].name}: equal")


# ---- disks ----


@contextlib.contextmanager
def full(size):
    """No file may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_room_is_looked_for_before_the_first_step(root, monkeypatch, capsys):
    steps = at_step(monkeypatch, print)
    with full(50_000):
        assert main(VIX) == 1
    out, err = capsys.readouterr()
    assert steps == []
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"vix: [Errno 27] {root}/build/quick/")
    assert "expected room for 1 MiB, got File too large" in err
    assert not [path for path in root.rglob("*") if path.is_file()]


def test_room_is_for_the_whole_checkpoint(tmp_path):
    model, size = nn.Linear(1000, 1000), 3 * 4 * 1001 * 1000
    for room, enough in ((size + module.MORE, True), (size - 1, False)):
        with (
            full(room),
            contextlib.nullcontext() if enough else pytest.raises(OSError, match="room"),
        ):
            Checkpoint(tmp_path / "run.pt").check_room(model)
    assert not list(tmp_path.iterdir())
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1000)).sum().backward()
    optimizer.step()
    with full(size + module.MORE):
        Checkpoint(tmp_path / "run.pt").save(model, optimizer, {})  # it was enough


def test_what_is_not_there_is_deleted(tmp_path):
    Checkpoint(tmp_path / "none.pt").delete()


def test_a_folder_that_cannot_be_is_one_line(root, capsys):
    (root / "build").touch()
    assert main(VIX) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("vix: ")


def test_a_disk_full_later_keeps_the_last_good_state(root, whole, monkeypatch):
    with contextlib.ExitStack() as limit, monkeypatch.context() as patch:
        at_step(patch, lambda: limit.enter_context(full(1000)))
        assert perform_all([FIRST]) == (1, 0)
    state = torch.load(files(FIRST).checkpoint, weights_only=True)["state"]
    assert (state["epoch"], state["step"]) == (1, 0)
    assert not list(root.rglob("*.part"))
    assert perform_all([FIRST]) == (0, 0)
    assert steady(FIRST) == whole


def test_a_success_removes_what_a_killed_process_left(root):
    old = [path.with_name(f"{path.name}.12345.part") for path in files(FIRST)]
    other = files(QUEUE[1]).record.with_name(f"{QUEUE[1].name}.json.12345.part")
    for path in (*old, other):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    perform(FIRST)
    assert [*root.rglob("*.part")] == [other]


def test_a_disk_may_say_late_that_it_is_full(tmp_path, monkeypatch):
    atomic_write(tmp_path / "file", lambda path: path.write_text("old"))
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(122, "quota")))
    with pytest.raises(OSError, match="quota"):
        atomic_write(tmp_path / "file", lambda path: path.write_text("new"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_check_room_needs_a_folder_to_write_in(tmp_path, monkeypatch):
    def refuse(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    check_room(tmp_path / "new")
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(PermissionError, match=f"{tmp_path}: expected room for 1 MiB, got Permis"):
        check_room(tmp_path)


# ---- memory ----


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        MemoryError(),
    ],
)
def test_out_of_memory_says_what_to_lower(monkeypatch, error):
    at_step(monkeypatch, raising(error), 1)
    digits = data.subset(data.load("digits", size=16), train=20, test=20)
    said = "out of memory at batch 10, 64 tokens an image: lower batch, tokens"
    with pytest.raises(OutOfMemory, match=said):
        train.fit(Run("FNet", "quick").build(), digits, epochs=1, batch=10)


def test_other_errors_keep_their_name(monkeypatch):
    at_step(monkeypatch, raising(RuntimeError("shapes differ")), 1)
    digits = data.subset(data.load("digits", size=16), train=20, test=20)
    with pytest.raises(RuntimeError, match="shapes differ"):
        train.fit(Run("FNet", "quick").build(), digits, epochs=1, batch=10)


# ---- downloads ----


@pytest.mark.parametrize("kind", trials_lost.MIRRORS)
def test_mirrors(kind):
    if kind in ("drip", "silent in the middle"):
        pytest.skip("seconds of waiting: make proof")
    assert trials_lost.mirror_holds(trials_lost.mirror_trial(kind))


@pytest.fixture
def source(monkeypatch, tmp_path):
    """A dataset of one file, packed as itself, served from here: (source, unpack, unpacked)."""
    monkeypatch.setenv("VIXLIB_ROOT", str(tmp_path / "project"))
    monkeypatch.delenv("VIXLIB_MIRROR", raising=False)
    packed, unpacked = tmp_path / "packed", []
    packed.write_bytes(trials_lost.WHOLE)
    md5 = download.hashlib.md5(trials_lost.WHOLE).hexdigest()

    def unpack(official, into):
        unpacked.append(into)
        time.sleep(0.2)
        (into / "whole").write_bytes(official.read_bytes())

    forms, mirrors = ("whole", "packed"), (packed.as_uri(),)
    made = download.Source("noise", (), print, forms, mirrors, md5, len(trials_lost.WHOLE))
    return made, unpack, unpacked


def test_two_processes_download_once(source, tmp_path):
    made, unpack, unpacked = source
    found, where = [], tmp_path / "new"
    both = [
        threading.Thread(target=lambda: found.append(download.find(made, unpack, where, True)))
        for _ in range(2)
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert found == [where / "whole"] * 2
    assert len(unpacked) == 1
    assert os.listdir(where) == ["whole"]


def test_what_a_killed_download_left_is_removed(source, tmp_path):
    made, unpack, _ = source
    (tmp_path / "new" / "unfinished-packed-abc").mkdir(parents=True)
    (tmp_path / "new" / "unfinished-other-abc").mkdir()  # of another dataset, perhaps at work
    download.find(made, unpack, tmp_path / "new", True)
    assert sorted(os.listdir(tmp_path / "new")) == ["unfinished-other-abc", "whole"]


def test_a_read_only_archive_is_unpacked_in_the_project(source, tmp_path, monkeypatch):
    made, unpack, unpacked = source
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and access(path, mode))
    for _ in range(2):
        assert download.find(made, unpack, tmp_path, False) == tmp_path / "project/data/whole"
    assert len(unpacked) == 1
    assert sorted(os.listdir(tmp_path)) == ["packed", "project"]


def test_a_download_needs_room(source, tmp_path):
    made, unpack, _ = source
    with full(100_000), pytest.raises(OSError, match="expected room"):
        download.find(made, unpack, tmp_path / "new", True)
    assert not list((tmp_path / "new").iterdir())


def test_a_lock_is_one_for_all_threads(tmp_path):
    """What `find` and `_claim` rely on."""
    with FileLock(tmp_path / "x"), pytest.raises(Timeout), FileLock(tmp_path / "x", timeout=0):
        pass


def test_a_lock_that_goes_while_one_waits_is_taken_anew(tmp_path):
    """What lets them remove it; from filelock 3.21 on without a gap."""
    path, seen = tmp_path / "x", []

    def wait():
        with FileLock(path):
            seen.append(path.exists())

    with FileLock(path):
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.5)
        path.unlink()
    thread.join()
    assert seen == [True]


def test_no_folder_of_a_queue_is_left_half_made(root):
    assert trials_lost.leftovers(str(root)) == []
    Path(root, "a.1.part").touch()
    assert trials_lost.leftovers(str(root)) == ["a.1.part"]
