"""Training beside a loop of plain torch that is not ours: what is drawn, learned and recorded."""

import csv
import math
import tomllib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy.stats import chi2_contingency, chisquare
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from small import small
from torch import Tensor, nn

from vixlib import build, list_systems, paths
from vixlib.data import Dataset
from vixlib.errors import BadInput, CheckpointError
from vixlib.paper import runs, training
from vixlib.paper.records import files, unpacked
from vixlib.paper.runs import Run
from vixlib.paper.training import perform
from vixlib.train import Checkpoint, TimeUp, evaluate, fit, judged

few_examples = settings(max_examples=20, deadline=None, derandomize=True)


# ---- the reference ----


def constant(step: int, steps: int) -> float:
    return 1.0


def up_and_down(step: int, steps: int) -> float:
    """In equal parts up over 15 % of the steps, a begun one included; then a cosine down to 0."""
    up = -(-15 * steps // 100)
    return (step + 1) / up if step < up else math.cos((step - up) / (steps - up) * math.pi / 2) ** 2


class Words(NamedTuple):
    """A recipe in the words of README.md; `rate` is the share of lr at a step, from 0, of steps."""

    lr: float
    weight_decay: float
    std: float
    augmented: bool
    best_on_test: bool
    batch: int | None  # None: that of the released script
    rate: Callable[[int, int], float] = constant
    warm_up: float = 0.0
    cosine: bool = False


RECIPES = {
    "fair": Words(1e-3, 0.01, 0.02, False, False, 128),
    "as-released": Words(1e-3, 0.01, 1.0, False, True, None),
    "annealed": Words(1e-3, 0.01, 0.02, True, False, 128, up_and_down, 0.15, True),
    "study": Words(2e-3, 0.01, 0.02, True, False, 128, up_and_down, 0.15, True),
    "own": Words(1e-3, 0.01, 0.02, True, False, 32, up_and_down, 0.15, True),
}
ROW = "epoch", "loss", "train_accuracy", "top1", "seconds", "cpu_seconds"


def options_of(words: Words) -> dict:
    """The words of a recipe as options of fit."""
    keys = "lr", "weight_decay", "augmented", "warm_up", "cosine"
    return {key: getattr(words, key) for key in keys}


def settled(words: Words) -> dict:
    """The words of a recipe that are settings of a run."""
    return {key: value for key, value in words._asdict().items() if key != "rate"}


def normalised(pixels: Tensor) -> Tensor:
    """0 becomes -1 and 255 becomes 1."""
    return 2 * (pixels.float() / 255) - 1


def moved(image: Tensor, down: int, right: int, mirrored: int) -> Tensor:
    """The window at (down, right) of an image in a black frame 4 wide, perhaps seen in a mirror."""
    c, h, w = image.shape
    framed = torch.zeros(c, h + 8, w + 8, dtype=torch.uint8)
    framed[:, 4 : 4 + h, 4 : 4 + w] = image
    window = framed[:, down : down + h, right : right + w]
    return torch.stack([window[:, :, w - 1 - x] for x in range(w)], 2) if mirrored else window


def reference(
    model: nn.Module,
    dataset: Dataset,
    words: Words,
    *,
    batch: int,
    epochs: int,
    seed: int = 0,
    watch: int | None = None,
    under: Callable = nullcontext,
) -> list[dict]:
    """Train a model by a recipe's words: cross-entropy and AdamW by their formulas; the curve."""
    learned = [p for p in model.parameters() if p.requires_grad]
    state = {p: (torch.zeros_like(p), torch.zeros_like(p)) for p in learned}
    count, curve, t = len(dataset.train_images), [], 0
    steps = -(-count // batch)
    if count % batch == 1 < batch and any("BatchNorm" in type(m).__name__ for m in model.modules()):
        steps -= 1  # one image has no variance: the step before takes it, too
    for epoch in range(epochs):
        epoch_seed = 10_000 * seed + epoch
        stream = torch.Generator().manual_seed(epoch_seed)
        order = torch.randperm(count, generator=stream).tolist()
        losses, right = [], 0
        for step in range(steps):
            torch.manual_seed(100_000 * epoch_seed + step)
            chosen = order[step * batch : (step + 1) * batch if step < steps - 1 else None]
            pixels, labels = dataset.train_images[chosen], dataset.train_labels[chosen]
            if words.augmented:
                n = len(chosen)
                draws = torch.randint(9, (n,)), torch.randint(9, (n,)), torch.randint(2, (n,))
                pixels = torch.stack([moved(*each) for each in zip(pixels, *draws, strict=True)])
            model.train().zero_grad()
            with under():
                logits = model(normalised(pixels))
            logits = logits if logits.dtype == torch.float64 else logits.float()
            loss = -logits.log_softmax(1)[range(len(chosen)), labels]  # of each image
            loss.mean().backward()
            losses += loss.tolist()
            right += (logits.argmax(1) == labels).sum().item()
            rate, t = words.lr * words.rate(t, epochs * steps), t + 1
            with torch.no_grad():
                for p in learned:
                    if p.grad is not None:
                        m, v = state[p]
                        m += (1 - 0.9) * (p.grad - m)
                        v += (1 - 0.999) * (p.grad**2 - v)
                        p -= rate * words.weight_decay * p
                        scale = (v / (1 - 0.999**t)).sqrt() + 1e-8
                        p -= rate * (m / (1 - 0.9**t)) / scale
        with torch.no_grad(), under():
            scores = model.eval()(normalised(dataset.test_images[:watch]))
        row = {
            "epoch": epoch + 1,
            "loss": sum(losses) / count,
            "train_accuracy": 100 * right / count,
        }
        curve.append(row | {"top1": accuracy(scores, dataset.test_labels[:watch], best=1)})
    return curve


def accuracy(scores: Tensor, labels: Tensor, best: int) -> float:
    """Percent of images of which fewer than `best` classes score above the true one."""
    above = [sum(x > row[y] for x in row) for row, y in zip(scores.tolist(), labels, strict=True)]
    return 100 * sum(n < best for n in above) / len(above)


# ---- what a model lives through ----


def flat(model: nn.Module) -> Tensor:
    """All of a model's state, weights and running statistics, in a row."""
    return torch.cat([tensor.detach().double().flatten() for tensor in model.state_dict().values()])


def followed(model: nn.Module) -> list[dict]:
    """A list that grows with every call: mode, images, state, logits, their gradient."""
    calls = []

    def before(module: nn.Module, inputs: tuple) -> None:
        half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
        modes = {each.training for each in module.modules()}
        call = {"modes": modes, "graph": torch.is_grad_enabled(), "half": half}
        calls.append(call | {"images": inputs[0].clone(), "state": flat(module)})

    def after(module: nn.Module, inputs: tuple, logits: Tensor) -> None:
        call = calls[-1]
        call["logits"] = logits.detach().clone()
        if logits.requires_grad:
            logits.register_hook(lambda gradient: call.update(slope=gradient.clone()))

    model.register_forward_pre_hook(before)
    model.register_forward_hook(after)
    return calls


def joined(calls: list[dict]) -> list[dict]:
    """Calls of one evaluation as one: it looks at 250 images at a time."""
    found = []
    for call in calls:
        if found and found[-1]["modes"] == call["modes"] == {False}:
            both = {key: torch.cat([found[-1][key], call[key]]) for key in ("images", "logits")}
            found[-1] = call | both
        else:
            found.append(call)
    return found


NUMBERS = "state", "logits", "slope"


def assert_same(
    ours: list[dict], theirs: list[dict], within: float = 1e-12, of: Sequence[str] = NUMBERS
) -> None:
    """The same calls: modes and images exactly, numbers within a share of 1 and of themselves."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for key in ("modes", "graph", "half"):
            assert one[key] == other[key]
        assert torch.equal(one["images"], other["images"])
        for key in one.keys() & {*of}:
            torch.testing.assert_close(one[key], other[key], rtol=within, atol=within)


def assert_same_curve(ours: list[dict], theirs: list[dict]) -> None:
    """Numbers of a curve are rounded to four places."""
    assert len(ours) == len(theirs)
    for row, other in zip(ours, theirs, strict=True):
        assert {key: row[key] for key in other} == pytest.approx(other, rel=0, abs=2e-4)


class Small(nn.Module):
    """Batch normalisation, dropout, a bias, a frozen factor and a layer that is never called."""

    def __init__(self, size: int = 8):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.GELU(), nn.Dropout(0.2)
        )
        self.head = nn.Linear(4 * (size - 2) ** 2, 10)
        self.factor = nn.Parameter(torch.tensor(8.0), requires_grad=False)  # slopes beyond 1
        self.unused = nn.Linear(2, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * self.head(self.body(images).flatten(1))


def doubled(model: nn.Module) -> nn.Module:
    """A model in float64, called with float32."""

    def widen(module: nn.Module, inputs: tuple) -> tuple:
        assert inputs[0].dtype == torch.float32
        return (inputs[0].double(),)

    model.double().register_forward_pre_hook(widen)
    return model


def fresh(name: str, std: float = 0.02, seed: int = 0) -> nn.Module:
    """A model in float64: that of this file or a small system."""
    torch.manual_seed(seed)
    if name == "Small":
        return doubled(Small())
    changes = {"LeViT": {}, "ViN": {"std": std, "depth": 1}, "CCT": {"std": std, "drop_path": 0.4}}
    return doubled(small(name, **changes[name]))


def noise(train: int = 20, test: int = 23, size: int = 8) -> Dataset:
    """Images and labels without sense, equal at every call."""
    stream = torch.Generator().manual_seed(5)
    shape = train + test, 3, size, size
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=stream)
    labels = torch.randint(10, (train + test,), generator=stream)
    classes = tuple("abcdefghij")
    split = pixels[:train], labels[:train], pixels[train:], labels[train:]
    return Dataset(*split, classes, "noise")


# ---- step by step ----


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    ("name", "augmented", "seed"),
    [
        *(("Small", augmented, seed) for augmented in (False, True) for seed in (0, 3)),
        ("ViN", True, 1),
        ("CCT", False, 2),  # stochastic depth
        ("LeViT", True, 4),  # batch normalisation
    ],
)
def test_every_step_is_that_of_the_reference(recipe, name, augmented, seed):
    """Two epochs of two whole batches and one of half the size."""
    words = RECIPES[recipe]._replace(augmented=augmented)
    dataset, untouched = noise(size=8 if name == "Small" else 16), noise(size=8)
    ours, theirs = fresh(name, words.std), fresh(name, words.std)
    for p in ours.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None  # left from something else
    calls, expected = followed(ours.eval()), followed(theirs)
    rows = []
    options = {"batch": 8, "epochs": 2, "seed": seed, "watch": 17}
    curve = fit(ours, dataset, report=rows.append, **options, **options_of(words))
    wanted = reference(theirs, dataset, words, **options)
    # a weight whose slope is 0 but for rounding, as the bias of a softmax: Adam magnifies that
    assert_same(calls, expected, within=1e-9 if name in ("CCT", "LeViT") else 1e-12)
    assert [call["modes"] for call in calls] == [{True}, {True}, {True}, {False}] * 2
    assert [len(call["images"]) for call in calls] == [8, 8, 4, 17] * 2
    assert_same_curve(curve, wanted)
    assert curve == rows
    assert set(curve[0]) == {*ROW}
    assert ours.training
    if name == "Small":
        parts = "train_images", "train_labels", "test_images", "test_labels"
        assert all(getattr(dataset, p).equal(getattr(untouched, p)) for p in parts)


@pytest.mark.parametrize(
    ("name", "count", "sizes"),
    [
        ("ViN", 17, [8, 8, 1]),
        ("LeViT", 17, [8, 9]),
        ("LeViT", 18, [8, 8, 2]),
        ("LeViT", 16, [8, 8]),
        ("LeViT", 9, [9]),
        ("LeViT", 2, [2]),
        ("Small", 25, [8, 8, 9]),
    ],
)
def test_an_image_alone_has_no_variance(name, count, sizes):
    """Batch normalisation refuses a batch of one: that image joins the batch before."""
    dataset = noise(count, size=8 if name == "Small" else 16)
    ours, theirs = fresh(name), fresh(name)
    calls, expected = followed(ours), followed(theirs)
    curve = fit(ours, dataset, batch=8, epochs=2)
    wanted = reference(theirs, dataset, RECIPES["fair"], batch=8, epochs=2)
    assert_same(calls, expected, within=1e-9)
    assert [len(call["images"]) for call in calls if call["graph"]] == sizes * 2
    assert_same_curve(curve, wanted)


@pytest.mark.parametrize(("count", "batch"), [(1, 8), (9, 1)])
def test_batch_normalisation_of_one_image_is_refused_before_the_first_step(count, batch):
    with pytest.raises(BadInput, match="Small normalises over a batch: expected at least 2"):
        fit(fresh("Small"), noise(count), epochs=1, batch=batch)


@pytest.mark.parametrize(
    "changes",
    [{"lr": 0.02}, {"lr": 0.0}, {"weight_decay": 0.0}, {"weight_decay": 3.0}, {}],
)
def test_rate_and_decay_reach_every_parameter(changes):
    """Also biases and norms; the defaults are the words of the recipe fair."""
    ours, theirs, dataset = fresh("Small"), fresh("Small"), noise(300, 20)
    with torch.no_grad():
        for model in (ours, theirs):
            for p in model.parameters():
                p += 0.5  # so that decay moves what starts at zero, too
    calls, expected = followed(ours), followed(theirs)
    curve = fit(ours, dataset, epochs=1, **changes)
    wanted = reference(theirs, dataset, RECIPES["fair"]._replace(**changes), batch=128, epochs=1)
    assert_same(calls, expected)
    assert_same_curve(curve, wanted)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_both_training_and_evaluation_run_at_the_precision(precision):
    """At a rate of zero, where no rounding adds up; the loss is of float32, not of bfloat16."""
    torch.manual_seed(1)
    ours, theirs, dataset = Small(), Small(), noise(300, 20)
    theirs.load_state_dict(ours.state_dict())
    calls, expected = followed(ours), followed(theirs)
    curve = fit(ours, dataset, epochs=2, lr=0.0, weight_decay=0.0, precision=precision)
    half = precision == "bfloat16"
    words = RECIPES["fair"]._replace(lr=0.0, weight_decay=0.0)

    def under() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=half)

    wanted = reference(theirs, dataset, words, batch=128, epochs=2, under=under)
    assert_same(calls, expected, within=0, of=("state", "logits"))
    assert {call["half"] for call in calls} == {torch.bfloat16 if half else False}
    assert_same_curve(curve, wanted)


def test_float64_is_not_rounded_on_the_way():
    """A model in float64 learns from slopes in float64."""
    model = fresh("Small")
    calls = followed(model)
    fit(model, noise(), epochs=1)
    assert not torch.equal(calls[0]["slope"], calls[0]["slope"].float().double())


# ---- stopped and gone on ----


class Clock:
    """The module time, where it passes with the calls of a model: one second each."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("vixlib.train.time", self)

    def monotonic(self) -> float:
        return self.now

    def process_time(self) -> float:  # of two threads
        return 2 * self.now

    def follow(self, model: nn.Module) -> None:
        def tick(*_) -> None:
            self.now += 1

        model.register_forward_hook(tick)


OPTIONS = {"epochs": 2, "batch": 8, "augmented": True, "seed": 3}  # 3 steps, a look, twice


@pytest.fixture(scope="module")
def whole():
    """The calls and the curve of the reference, in one go."""
    model = fresh("Small")
    calls = followed(model)
    words = RECIPES["fair"]._replace(augmented=True)
    curve = reference(model, noise(), words, batch=8, epochs=2, seed=3)
    return calls, [row | {"seconds": 3.0, "cpu_seconds": 6.0} for row in curve]  # steps, not looks


@pytest.mark.parametrize("every", range(9))
def test_a_run_stopped_anywhere_goes_on_as_if_it_had_not_been(whole, every, tmp_path, monkeypatch):
    """Stopped before its n-th call, in training, evaluation or between epochs, then again."""
    calls, curve, rows, clock = [], None, [], Clock(monkeypatch)
    checkpoint = Checkpoint(tmp_path / "run.pt", "a run")
    for attempt in range(9):
        # but for the first, the checkpoint's weights count, where there was a step to save
        model = fresh("Small", seed=attempt if every else 0)
        seen, deadline = followed(model), clock.now + every - 0.5
        clock.follow(model)
        options = {"checkpoint": checkpoint, "report": rows.append}
        options |= {"deadline": deadline} if every or not attempt else {}
        curve = fit(model, noise(), **OPTIONS, **options)
        assert len(seen) == min(every, 8 - len(calls)) or (attempt and not every)
        calls += seen
        clock.now += 1000  # which do not count
        if curve is not None:
            break
    assert_same(calls, whole[0])
    assert_same_curve(curve, whole[1])
    assert curve == rows
    if every == 8:
        assert attempt == 0


@pytest.mark.parametrize("at", range(4, 8))
def test_a_killed_run_goes_on_from_the_end_of_its_last_epoch(whole, at, tmp_path, monkeypatch):
    rows, clock, checkpoint = [], Clock(monkeypatch), Checkpoint(tmp_path / "run.pt")

    def kill(*_) -> None:
        if len(seen) > at:
            raise KeyboardInterrupt

    model = fresh("Small")
    seen = followed(model)
    clock.follow(model)
    model.register_forward_pre_hook(kill)
    with pytest.raises(KeyboardInterrupt):
        fit(model, noise(), **OPTIONS, checkpoint=checkpoint, report=rows.append)
    assert len(rows) == 1
    model = fresh("Small", seed=1)
    seen = followed(model)
    clock.follow(model)
    curve = fit(model, noise(), **OPTIONS, checkpoint=checkpoint, report=rows.append)
    assert_same(seen, whole[0][4:])
    assert_same_curve(curve, whole[1])
    assert curve == rows


def test_out_of_time_without_a_checkpoint_is_no_curve():
    assert fit(fresh("Small"), noise(), epochs=1, deadline=0.0) is None


# ---- what is drawn ----


class Watcher(nn.Module):
    """Remembers the bytes of its images and what a dropout drew; learns nothing of use."""

    def __init__(self, classes: int = 10):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes))
        self.dropout = nn.Dropout(0.5)
        self.trained, self.evaluated = [], []  # pixels of each call
        self.dropped = []

    def forward(self, images: Tensor) -> Tensor:
        pixels = ((images + 1) * 127.5).round().to(torch.uint8)
        (self.trained if self.training else self.evaluated).append(pixels)
        self.dropped.append(tuple(self.dropout(torch.ones(64)).tolist()))
        return self.weight.expand(len(images), -1)


def numbered(train: int, test: int = 10, size: int = 12) -> Dataset:
    """Images that tell their row (1 ...), their column (1 ...) and their number in the middle."""
    n = train + test
    place = torch.arange(1, size + 1, dtype=torch.uint8)
    rows, columns = place[:, None].expand(size, size), place.expand(size, size)
    number = torch.arange(n, dtype=torch.uint8)[:, None, None].expand(n, size, size)
    pixels = torch.stack([rows.expand(n, -1, -1), columns.expand(n, -1, -1), number], 1)
    labels = torch.arange(n) % 10
    split = pixels[:train], labels[:train], pixels[train:], labels[train:]
    return Dataset(*split, tuple("abcdefghij"), "numbered")


seeds = st.integers(0, 2**31 - 1) | st.integers(0, 3)


@few_examples
@given(
    count=st.integers(1, 40),
    batch=st.integers(1, 50),
    epochs=st.integers(1, 3),
    seeds=st.lists(seeds, min_size=2, max_size=3, unique=True),
)
def test_every_image_is_seen_once_an_epoch_in_an_order_of_its_own(count, batch, epochs, seeds):
    dataset, orders = numbered(count), []
    sizes = [min(batch, count - first) for first in range(0, count, batch)]
    for seed in seeds:
        watcher = Watcher()
        fit(watcher, dataset, epochs=epochs, batch=batch, seed=seed)
        assert [len(pixels) for pixels in watcher.trained] == sizes * epochs
        seen = torch.cat(watcher.trained)
        numbers = seen[:, 2, 5, 5].view(epochs, count)
        assert seen.equal(dataset.train_images[numbers.flatten().long()])
        assert numbers.sort().values.equal(torch.arange(count).to(torch.uint8).expand(epochs, -1))
        assert all(each.equal(dataset.test_images) for each in watcher.evaluated)
        orders += map(tuple, numbers.tolist())
        assert tuple(range(count)) not in orders or count < 12
    assert len(set(orders)) == len(orders) or count < 12


SEEDS, EPOCHS, STEPS, BATCH = 4, 10, 5, 50


class Drawn(NamedTuple):
    """Of each image, by seed, epoch, step and place in its batch."""

    down: np.ndarray
    right: np.ndarray
    flip: np.ndarray
    number: np.ndarray


@pytest.fixture(scope="module")
def watchers():
    """A training with each of four seeds: 10,000 images augmented."""
    dataset, watchers = numbered(STEPS * BATCH, 5), [Watcher() for _ in range(SEEDS)]
    for seed, watcher in enumerate(watchers):
        fit(watcher, dataset, epochs=EPOCHS, batch=BATCH, augmented=True, seed=seed)
    return watchers


@pytest.fixture(scope="module")
def drawn(watchers):
    """The shifts and flips that were drawn, read off the images."""
    pixels = torch.cat([pixels for watcher in watchers for pixels in watcher.trained])
    row, column, number = pixels[:, :, 5, 5].long().unbind(1)
    flip = pixels[:, 1, 5, 6] < column
    down, right = row - 1 - 5 + 4, column - 1 - torch.where(flip, 11 - 5, 5) + 4
    shape = SEEDS, EPOCHS, STEPS, BATCH
    return Drawn(*(part.view(shape).numpy() for part in (down, right, flip.long(), number)))


def test_augmentation_is_a_shift_and_a_flip_of_each_image(watchers, drawn):
    originals = numbered(STEPS * BATCH, 5).train_images
    pixels = torch.cat([pixels for watcher in watchers for pixels in watcher.trained])
    draws = (part.ravel() for part in (drawn.number, drawn.down, drawn.right, drawn.flip))
    for image, number, *draw in zip(pixels, *draws, strict=True):
        assert image.equal(moved(originals[number], *draw))


def test_evaluation_is_not_augmented(watchers):
    untouched = numbered(STEPS * BATCH, 5).test_images
    looks = [pixels for watcher in watchers for pixels in watcher.evaluated]
    assert len(looks) == SEEDS * EPOCHS
    assert all(pixels.equal(untouched) for pixels in looks)


def test_no_two_steps_draw_the_same(watchers, drawn):
    draws = np.stack([drawn.down, drawn.right, drawn.flip]).reshape(3, -1, BATCH)
    steps = SEEDS * EPOCHS * STEPS
    for part in draws:
        assert len({tuple(step) for step in part}) == steps
    dropped = [mask for watcher in watchers for mask in watcher.dropped]
    nothing = (1.0,) * 64
    assert dropped.count(nothing) == SEEDS * EPOCHS  # in evaluation
    assert len(set(dropped) - {nothing}) == steps


def test_shifts_and_flips_are_uniform(drawn):
    cells = drawn.down * 18 + drawn.right * 2 + drawn.flip
    counts = np.bincount(cells.flat, minlength=162)
    assert counts.shape == (162,)
    assert chisquare(counts).pvalue > 1e-4


def images_sorted(drawn: Drawn, part: np.ndarray) -> np.ndarray:
    """By seed, epoch and number of the image, not its place."""
    shape = SEEDS, EPOCHS, STEPS * BATCH
    return np.take_along_axis(part.reshape(shape), drawn.number.reshape(shape).argsort(-1), -1)


PAIRS = {
    "rows and columns": lambda d: (d.down, d.right),
    "rows and flips": lambda d: (d.down, d.flip),
    "columns and flips": lambda d: (d.right, d.flip),
    "rows of neighbours": lambda d: (d.down[..., 1:], d.down[..., :-1]),
    "columns of neighbours": lambda d: (d.right[..., 1:], d.right[..., :-1]),
    "flips of neighbours": lambda d: (d.flip[..., 1:], d.flip[..., :-1]),
    "rows of a step and the next": lambda d: (d.down[:, :, 1:], d.down[:, :, :-1]),
    "rows of an epoch and the next": lambda d: (d.down[:, 1:], d.down[:, :-1]),
    "rows of a seed and the next": lambda d: (d.down[1:], d.down[:-1]),
    "flips of a step and the next": lambda d: (d.flip[:, :, 1:], d.flip[:, :, :-1]),
    "flips of an epoch and the next": lambda d: (d.flip[:, 1:], d.flip[:, :-1]),
    "rows of an image in two epochs": lambda d: (
        images_sorted(d, d.down)[:, 1:],
        images_sorted(d, d.down)[:, :-1],
    ),
    "flips of an image under two seeds": lambda d: (
        images_sorted(d, d.flip)[1:],
        images_sorted(d, d.flip)[:-1],
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_draws_are_independent(drawn, pair):
    one, other = PAIRS[pair](drawn)
    table = np.zeros((one.max() + 1, other.max() + 1))
    np.add.at(table, (one.flat, other.flat), 1)
    assert chi2_contingency(table).pvalue > 1e-4


# ---- evaluation ----


class Lookup(nn.Module):
    """Scores (n classes) by the number that an image is."""

    def __init__(self, scores: Tensor):
        super().__init__()
        self.scores = nn.Parameter(scores)

    def forward(self, images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        high, low = ((images[:, :2, 0, 0] + 1) * 127.5).round().long().unbind(1)
        return self.scores[256 * high + low]


def looked_up(n: int, classes: int) -> Dataset:
    """Test images of one pixel, each a number; labels without sense."""
    number = torch.arange(n)
    pixels = torch.stack([number // 256, number % 256, number * 0], 1).to(torch.uint8)
    labels = torch.randint(classes, (n,), generator=torch.Generator().manual_seed(n))
    pixels = pixels[:, :, None, None]
    return Dataset(pixels[:1], labels[:1], pixels, labels, ("",) * classes, "numbers")


@few_examples
@given(
    n=st.integers(1, 20) | st.integers(240, 760),
    classes=st.integers(1, 12),
    first=st.none() | st.integers(1, 800),
    training=st.booleans(),
)
def test_accuracies_are_those_of_a_plain_count(n, classes, first, training):
    dataset = looked_up(n, classes)
    scores = torch.stack([torch.randperm(classes).float() for _ in range(n)])
    model = Lookup(scores).train(training)
    top1, top5 = evaluate(model, dataset, first)
    labels = dataset.test_labels[:first]
    assert top1 == pytest.approx(accuracy(scores[:first], labels, best=1), abs=1e-3)
    assert top5 == pytest.approx(accuracy(scores[:first], labels, best=5), abs=1e-3)
    assert model.training is training
    assert model.scores.grad is None


@few_examples
@given(
    n=st.integers(1, 600),
    place=st.integers(0, 599),
    first=st.none() | st.integers(1, 600),
    bad=st.sampled_from([math.nan, math.inf, -math.inf]),
)
def test_one_score_that_is_not_finite_spoils_what_looks_at_it(n, place, first, bad):
    place %= n
    scores = torch.randn(n, 6)
    scores[place, place % 6] = bad
    found = evaluate(Lookup(scores), looked_up(n, 6), first)
    assert [math.isnan(value) for value in found] == [first is None or place < first] * 2


def test_each_image_is_judged_as_accuracies_count_it():
    dataset = looked_up(300, 7)
    model = Lookup(torch.randn(300, 7))
    hits = judged(model, dataset)
    assert hits.shape == (300, 2)
    assert (100 * hits.mean(0)).tolist() == pytest.approx(evaluate(model, dataset), abs=1e-3)
    right = model.scores.argmax(1) == dataset.test_labels
    assert hits[:, 0].bool().equal(right)


def test_accuracies_have_four_places():
    """Of three images the first is right, and the others are last of all."""
    dataset, scores = looked_up(3, 12), torch.zeros(3, 12)
    scores[range(3), dataset.test_labels] = torch.tensor([1.0, -1.0, -1.0])
    assert evaluate(Lookup(scores), dataset) == (33.3333, 33.3333)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [TimeUp, KeyboardInterrupt])
def test_an_evaluation_cut_short_restores_the_mode(kind, training):
    def fail(*_) -> None:
        raise KeyboardInterrupt

    model = Small().train(training)
    model.register_forward_pre_hook(fail)
    with pytest.raises(kind):
        evaluate(model, noise(), deadline=0.0 if kind is TimeUp else math.inf)
    assert {each.training for each in model.modules()} == {training}


@pytest.mark.parametrize("name", ["Small", "LeViT", "CCT"])
def test_an_evaluation_leaves_no_trace(name):
    model, dataset = fresh(name), noise(5, 30, size=8 if name == "Small" else 16)
    calls, before, stream = followed(model), flat(model), torch.get_rng_state()
    assert evaluate(model, dataset) == evaluate(model, dataset)
    assert torch.equal(flat(model), before)
    assert torch.equal(torch.get_rng_state(), stream)  # nothing is drawn
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert {call["graph"] for call in calls} == {False}
    assert torch.equal(calls[0]["images"], normalised(dataset.test_images).double())


# ---- what a run hands to it, and what is recorded ----


def enlarged(images: np.ndarray) -> np.ndarray:
    """(n 8 8) -> (n 16 16): pixel middles a quarter and three quarters between old ones."""
    middles = (np.arange(16) + 0.5) / 2 - 0.5
    weights = np.stack([np.interp(middles, range(8), one) for one in np.eye(8)], 1)
    return weights @ images @ weights.T


@pytest.fixture(scope="module")
def digits():
    """scikit-learn's digits as the profile quick takes them, by numpy."""
    raw = load_digits()
    grey = np.rint(enlarged(np.rint(raw.images * 255 / 16))).astype(np.uint8)
    images = torch.from_numpy(grey)[:, None].expand(-1, 3, -1, -1)
    labels = torch.from_numpy(raw.target).long()
    split = {"test_size": 360, "stratify": raw.target, "random_state": 0}
    train, test = train_test_split(range(1797), **split)
    assert (train[:3], test[:3], sum(test)) == (TRAIN, TEST, SUM)  # on every machine
    return SimpleNamespace(
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
    )


TRAIN, TEST, SUM = [1346, 295, 257], [1496, 188, 705], 337944


def deal(labels: list[int], seed: int = 0) -> list[int]:
    """The order of a shuffle, dealt by the share of a class."""
    dealt, shares = {}, []
    shuffle = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    for i in shuffle:
        dealt[labels[i]] = dealt.get(labels[i], 0) + 1
        shares.append((dealt[labels[i]] / labels.count(labels[i]), i))
    return [i for _, i in sorted(shares, key=lambda pair: pair[0])]


def chosen(dataset: SimpleNamespace, part: str, into: str, some: list[int]) -> dict:
    """Images and labels of a part, under the name of another, in the dataset's order."""
    kinds = "images", "labels"
    return {f"{into}_{kind}": getattr(dataset, f"{part}_{kind}")[sorted(some)] for kind in kinds}


def first_of_each_class(dataset: SimpleNamespace, n: int, seed: int) -> SimpleNamespace:
    """The dataset with n training images."""
    order = deal(dataset.train_labels.tolist(), seed)
    return SimpleNamespace(**vars(dataset) | chosen(dataset, "train", "train", order[:n]))


def without(dataset: SimpleNamespace, n: int) -> SimpleNamespace:
    """The dataset whose test images are n of those for training, which goes without them."""
    order = deal(dataset.train_labels.tolist())
    held = chosen(dataset, "train", "test", order[:n])
    return SimpleNamespace(**chosen(dataset, "train", "train", order[n:]) | held)


def released_batches() -> dict[str, int]:
    """By system, from figures/paper.csv."""
    with open(paths.shipped("paper.csv"), newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["quantity"] == "batch"]
    return {row["system"]: int(row["value"]) for row in rows}


QUICK = {"image_size": 16, "num_classes": 10, "dim": 32, "depth": 2}
BUILT = {  # as profiles.toml says
    "FNet": QUICK | {"patch_size": 2},
    "ViL": QUICK | {"patch_size": 2},
    "ViP": QUICK | {"patch_size": 2},
    "CCT": QUICK | {"stem": (2, 1, 1)},
}
CHANGED = {
    "lr": 0.004,
    "weight_decay": 0.3,
    "std": 0.5,
    "augmented": True,
    "best_on_test": True,
    "batch": 40,
}


@pytest.fixture
def models(monkeypatch):
    """The models that runs build, the first with its calls: that is the one that is trained."""
    models, made = [], Run.build

    def build_and_follow(run: Run) -> nn.Module:
        model = made(run)
        models.append(model if models else (model, followed(model)))
        return model

    monkeypatch.setattr(Run, "build", build_and_follow)
    monkeypatch.setattr(training, "_training_memory", lambda *_, **__: 0.0)  # a step of its own
    return models


@pytest.mark.parametrize(
    ("name", "recipe", "seed", "epochs", "images", "watch", "changed"),
    [
        ("ViP", "fair", 2, 2, 150, 70, CHANGED),
        ("FNet", "fair", 0, 2, 300, None, {}),
        ("ViL", "as-released", 3, 2, 600, None, {}),
        ("CCT", "fair", 1, 1, 100, 90, {}),
        ("FNet", "annealed", 4, 3, 200, None, {"validation_images": 130}),
    ],
)
def test_a_run_trains_by_its_recipe(
    root, models, digits, name, recipe, seed, epochs, images, watch, changed
):
    held = changed.get("validation_images")
    own = {key: value for key, value in changed.items() if key in Words._fields}
    words = RECIPES[recipe]._replace(**own)
    batch = words.batch or released_batches()[name]
    budget = {"epochs": epochs, "train_images": images}
    budget |= {} if watch is None else {"watch_images": watch}
    rows = []
    run = Run(name, "quick", recipe, seed, tuple((budget | changed).items()))
    record = perform(run, report=rows.append)

    torch.manual_seed(seed)
    model = build(name, std=words.std, **BUILT[name])
    expected, dataset = followed(model), without(digits, held) if held else digits
    dataset = first_of_each_class(dataset, images, seed)
    options = {"batch": batch, "epochs": epochs, "seed": seed, "watch": watch}
    curve = reference(model, dataset, words, **options)
    with torch.no_grad():
        scores = model(normalised(digits.test_images))
    trained, calls = models[0]
    looks = [call for call in calls if call["modes"] == {False}]
    assert [call["modes"] for call in calls[-2:]] == [{False}] * 2  # 250 and 110 images
    assert_same(joined(calls[:-2]), expected[:-1], within=1e-3, of=("logits", "slope"))
    assert torch.equal(calls[0]["state"], expected[0]["state"])
    last = torch.cat([call["images"] for call in looks[-2:]])
    assert torch.equal(last, normalised(digits.test_images))

    assert_same_curve(record["curve"], curve)
    assert record["curve"] == [{k: row[k] for k in ROW if "seconds" not in k} for row in rows]
    assert record["cpu_seconds"] == pytest.approx(sum(row["cpu_seconds"] for row in rows), abs=0.06)
    right = (scores.argmax(1) == digits.test_labels).tolist()
    assert unpacked(record["right"], 360).tolist() == right
    assert record["top1"] == pytest.approx(100 * sum(right) / 360, abs=1e-3)
    assert record["top5"] == pytest.approx(accuracy(scores, digits.test_labels, 5), abs=1e-3)
    assert (record["train_images"], record["test_images"]) == (images, 360)
    assert {key: record[key] for key in settled(words)} == settled(words) | {"batch": batch}
    best = max(range(epochs), key=lambda i: curve[i]["top1"])
    noted = (best + 1, record["curve"][best]["top1"]) if words.best_on_test else (None, None)
    assert (record["epoch_best"], record["top1_best"]) == noted
    last = record["curve"][-1]
    assert (record["loss"], record["train_accuracy"]) == (last["loss"], last["train_accuracy"])
    weights = load_file(files(run).weights)
    assert all(torch.equal(weights[key], value) for key, value in trained.state_dict().items())


def test_a_run_keeps_its_precision(root, models):
    """A step, the look after the epoch and the last, of two batches each."""
    changes = ("epochs", 1), ("train_images", 20), ("precision", "bfloat16")
    perform(Run("FNet", "quick", overrides=changes))
    assert [call["half"] for call in models[0][1]] == [torch.bfloat16] * 5


def test_recipes_are_those_of_the_readme():
    told = tomllib.loads((paths.PACKAGE / "paper" / "recipes.toml").read_text())
    assert set(told) == set(RECIPES)
    for name, words in RECIPES.items():
        unless_told = {"batch": None, "warm_up": 0.0, "cosine": False}
        assert unless_told | told[name] == settled(words)


def test_as_released_takes_the_batch_sizes_of_paper_csv():
    known = released_batches()
    for name in list_systems():
        if name in known:
            assert Run(name, "paper", "as-released").settings["batch"] == known[name]
            asked = Run(name, "paper", "as-released", overrides=(("batch", 7),))
            assert asked.settings["batch"] == 7
        assert Run(name, "paper").settings["batch"] == 128


CURVE = [  # loss, train accuracy and test accuracy are best in epochs of their own
    dict(zip(ROW, row, strict=True))
    for row in (
        (1, 0.1, 20.0, 30.0, 5.0, 1.0),
        (2, 0.3, 10.0, 40.0, 1.0, 1.0),
        (3, 0.4, 60.0, 40.0, 9.0, 1.0),
        (4, 0.2, 50.0, 20.0, 2.0, 1.0),
    )
]


@pytest.mark.parametrize(("recipe", "best"), [("fair", (None, None)), ("as-released", (40.0, 2))])
def test_the_best_epoch_is_the_first_that_did_best_on_the_test_set(root, monkeypatch, recipe, best):
    monkeypatch.setattr(training, "fit", lambda *_, **__: CURVE)
    monkeypatch.setattr(training, "_training_memory", lambda *_, **__: 0.0)
    record = perform(Run("FNet", "quick", recipe))
    assert (record["top1_best"], record["epoch_best"]) == best
    assert (record["loss"], record["train_accuracy"]) == (0.2, 50.0)
    assert (record["seconds_per_epoch"], record["cpu_seconds"]) == (3.5, 4.0)  # median, sum
    assert [row["epoch"] for row in record["curve"]] == [1, 2, 3, 4]


@pytest.mark.parametrize("other", ["recipe", "code"])
def test_a_run_does_not_go_on_under_another_recipe_or_code(root, monkeypatch, other):
    run = Run("FNet", "quick")
    looks = iter([False, True] * 2)

    def stop_at(_) -> None:
        if next(looks):
            raise TimeUp

    monkeypatch.setattr("vixlib.train.stop_at", stop_at)
    assert perform(run) is None
    assert perform(run) is None  # but under its own
    if other == "recipe":
        changed = runs.Recipe(**vars(runs.RECIPES["fair"]) | {"lr": 0.002})
        monkeypatch.setitem(runs.RECIPES, "fair", changed)
    else:
        monkeypatch.setattr(training, "fingerprint", lambda run: run.fingerprint() + 0.01)
    with pytest.raises(CheckpointError, match="of another run or code"):
        perform(run)
