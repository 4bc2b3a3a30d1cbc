"""What fit offers beyond the recipes, beside a loop of plain torch; stopped and gone on with."""

import math
from types import SimpleNamespace

import pytest
import torch
from small import images, small
from torch import nn
from torch.overrides import TorchFunctionMode

from vixlib import data, resized, train
from vixlib.data import Dataset
from vixlib.errors import BadInput
from vixlib.train import Checkpoint, evaluate, fit

CLASSES, SIZE = 4, 6


def noise(train=37, test=30, seed=0):
    """Images without sense, of classes of unequal size."""
    stream = torch.Generator().manual_seed(seed)
    n = train + test
    pixels = torch.randint(256, (n, 3, SIZE, SIZE), dtype=torch.uint8, generator=stream)
    labels = torch.randperm(n, generator=stream).remainder(10).clamp(max=CLASSES - 1)
    split = pixels[:train], labels[:train], pixels[train:], labels[train:]
    return Dataset(*split, tuple("abcd"), "noise")


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Linear(3 * SIZE * SIZE, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.body(x.flatten(1)).tanh())


def loss_by_hand(logits, shares, smoothing, weights):
    """The cross-entropy that torch's documentation writes, for shares (b classes) of labels.

    For whole labels divided by the weights of the true classes, for shares by the batch.
    """
    terms = -logits.log_softmax(1) * weights
    smooth = shares * (1 - smoothing) + smoothing / CLASSES
    whole = (shares.max(1).values == 1).all()
    total = (shares @ weights).sum() if whole else len(logits)
    return (terms * smooth).sum() / total


def reference(dataset, epochs, batch=10, seed=0, smoothing=0.0, weights=None, mix=None):
    model = Plain()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.01)
    weights = torch.ones(CLASSES) if weights is None else weights
    count = len(dataset.train_labels)
    for epoch in range(epochs):
        own = 10_000 * seed + epoch
        order = torch.randperm(count, generator=torch.Generator().manual_seed(own)).tolist()
        for step in range(math.ceil(count / batch)):
            torch.manual_seed(100_000 * own + step)
            some = order[step * batch : (step + 1) * batch]
            x = dataset.train_images[some].float() / 127.5 - 1
            shares = torch.eye(CLASSES)[dataset.train_labels[some]]
            if mix is not None:
                share = torch.distributions.Beta(torch.ones(1), torch.ones(1)).sample().item()
                other = [(i - 1) % len(some) for i in range(len(some))]
                mixed = share * x + (1 - share) * x[other]
                if mix == "cutmix":
                    right, down = (torch.randint(SIZE, (1,)).item() for _ in range(2))
                    half = int(0.5 * math.sqrt(1 - share) * SIZE)
                    left, top = max(right - half, 0), max(down - half, 0)
                    right, down = min(right + half, SIZE), min(down + half, SIZE)
                    mixed = x.clone()
                    mixed[:, :, top:down, left:right] = x[other][:, :, top:down, left:right]
                    share = 1 - (down - top) * (right - left) / SIZE**2
                x, shares = mixed, share * shares + (1 - share) * shares[other]
            optimizer.zero_grad()
            loss_by_hand(model(x), shares, smoothing, weights).backward()
            optimizer.step()
    return model


def balanced(labels):
    """n / (classes x images of the class), as scikit-learn has it."""
    return torch.tensor([len(labels) / CLASSES / labels.tolist().count(c) for c in range(CLASSES)])


LABELS = noise().train_labels
OPTIONS = {  # ours, the reference's
    "nothing": ({}, {}),
    "smoothing": ({"label_smoothing": 0.2}, {"smoothing": 0.2}),
    "balanced": ({"class_weights": "balanced"}, {"weights": balanced(LABELS)}),
    "weights": (
        {"class_weights": torch.tensor([1.0, 0.0, 5.0, 2.0])},
        {"weights": torch.tensor([1.0, 0.0, 5.0, 2.0])},
    ),
    "smoothed weights": (
        {"class_weights": "balanced", "label_smoothing": 0.1},
        {"weights": balanced(LABELS), "smoothing": 0.1},
    ),
    "mixup": ({"mix": "mixup"}, {"mix": "mixup"}),
    "cutmix": ({"mix": "cutmix"}, {"mix": "cutmix"}),
    "all": (
        {"mix": "mixup", "label_smoothing": 0.1, "class_weights": "balanced"},
        {"mix": "mixup", "smoothing": 0.1, "weights": balanced(LABELS)},
    ),
}


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_is_what_its_formula_says(name):
    ours, theirs = OPTIONS[name]
    model = Plain()
    fit(model, noise(), epochs=2, batch=10, lr=1e-2, seed=1, **ours)
    wanted = flat(reference(noise(), 2, seed=1, **theirs))
    assert (flat(model) - wanted).abs().max() < 1e-4
    if name != "nothing":  # it would be noticed, were it ignored
        assert (flat(reference(noise(), 2, seed=1)) - wanted).abs().max() > 1e-2


RESUMED = {name: ours for name, (ours, _) in OPTIONS.items()}
RESUMED |= {
    "best": {"best": True},
    "patience": {"patience": 2},
    "both": {"patience": 1, "best": True},
}


@pytest.mark.parametrize("name", RESUMED)
def test_stopped_in_the_middle_it_goes_on_as_if_it_had_not_been(name, tmp_path):
    options = {"epochs": 6, "batch": 10, "lr": 0.05, **RESUMED[name]}
    whole, parts, checkpoint = Plain(), Plain(), Checkpoint(tmp_path / "a.pt")
    curve = fit(whole, noise(), **options)
    for steps in (3, 7, 9):
        assert fit(parts, noise(), checkpoint=checkpoint, steps=steps, **options) is None
        parts = Plain()
    again = fit(parts, noise(), checkpoint=checkpoint, **options)
    assert [row["loss"] for row in again] == [row["loss"] for row in curve]
    assert [row["top1"] for row in again] == [row["top1"] for row in curve]
    assert flat(parts).equal(flat(whole))


def test_the_best_epoch_is_kept():
    """Its weights are those of a training that ended there."""
    model, ends = Plain(), Plain()
    options = {"batch": 10, "lr": 0.05}
    curve = fit(model, noise(), epochs=8, best=True, **options)
    seen = [row["top1"] for row in curve]
    first = seen.index(max(seen))
    assert 0 < first < 7
    assert evaluate(model, noise())[0] == max(seen) != seen[-1]
    fit(ends, noise(), epochs=first + 1, **options)
    assert flat(model).equal(flat(ends))


def test_the_best_epoch_is_kept_with_its_running_statistics():
    def normed():
        torch.manual_seed(3)
        width = 3 * SIZE * SIZE
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(width), nn.Linear(width, CLASSES))

    model, ends, options = normed(), normed(), {"batch": 10, "lr": 0.05}
    seen = [row["top1"] for row in fit(model, noise(), epochs=6, best=True, **options)]
    first = seen.index(max(seen))
    assert first < 5
    fit(ends, noise(), epochs=first + 1, **options)
    for name, tensor in ends.state_dict().items():
        assert tensor.equal(model.state_dict()[name]), name


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_training_ends_when_patience_does(patience):
    options = {"batch": 10, "lr": 0.05}
    seen = [row["top1"] for row in fit(Plain(), noise(), epochs=12, **options)]
    wanted, best, waited = 0, -1.0, 0
    for top1 in seen:
        wanted, waited = wanted + 1, waited + 1
        if top1 > best:
            best, waited = top1, 0
        if waited == patience:
            break
    assert wanted < 12
    curve = fit(Plain(), noise(), epochs=12, patience=patience, **options)
    assert [row["top1"] for row in curve] == seen[:wanted]


def test_what_is_frozen_stays_as_it_is():
    model = Plain()
    model.body.requires_grad_(False)
    model.body.weight.grad = torch.ones_like(model.body.weight)  # left from before
    before = {name: p.clone() for name, p in model.named_parameters()}
    fit(model, noise(), epochs=2, batch=10, weight_decay=3.0)
    for name, p in model.named_parameters():
        assert p.equal(before[name]) == name.startswith("body")
    model.requires_grad_(False)
    with pytest.raises(BadInput, match="a parameter that learns, got none that requires"):
        fit(model, noise(), epochs=1)


@pytest.mark.parametrize("name", ["ViN", "ViL", "LeViL", "CvL", "CCP"])
def test_what_is_frozen_stays_so_at_another_size(name):
    frozen = small(name)
    assert all(p.requires_grad for p in resized(frozen, 24).parameters())
    frozen.requires_grad_(False)
    larger = resized(frozen, 24)
    assert larger(images(24, 24, dtype=torch.float32)).shape == (4, 10)
    assert not [key for key, p in larger.named_parameters() if p.requires_grad]


BAD = [
    ({"mix": "cut"}, r"unknown mix 'cut'; legal: mixup, cutmix"),
    ({"label_smoothing": 1.0}, r"label_smoothing: expected at least 0 and less than 1, got 1\.0"),
    ({"class_weights": "even"}, r"unknown class_weights 'even'; legal: balanced"),
    (
        {"class_weights": torch.ones(3)},
        r"class_weights: expected 4 numbers .* 0, got \(3,",
    ),
    ({"class_weights": torch.tensor([1, 1, 1, math.nan])}, r"at least 0, got \(4,\) from nan"),
    ({"class_weights": -torch.ones(4)}, r"got \(4,\) from -1 to -1"),
    ({"class_weights": [1, 1, 1, 1]}, r"class_weights: expected str or Tensor, got \[1, 1"),
    ({"patience": 0}, r"patience: expected at least 1, got 0"),
    ({"best": "yes"}, r"best: expected bool, got 'yes'"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_options_are_a_line(options, message):
    with pytest.raises(BadInput, match=message) as caught:
        fit(Plain(), noise(), epochs=1, **options)
    assert "\n" not in str(caught.value)


def test_classes_of_model_and_data_differ():
    more = data.replace(noise(), classes=tuple("abcde"))
    with pytest.raises(BadInput, match=r"expected logits \(37, 5\), got \(37, 4\)"):
        fit(Plain(), more, epochs=1)
    three = data.dataset((torch.zeros(9, 3, SIZE, SIZE, dtype=torch.uint8), torch.arange(9) % 3))
    with pytest.raises(BadInput, match=r"expected logits \(7, 3\), got \(7, 4\)"):
        fit(Plain(), three, epochs=1)


def test_balanced_weights_are_right_for_a_class_of_one_image():
    labels = torch.tensor([0, 1, 0, 2, 0, 2])
    few = SimpleNamespace(classes="abc", train_labels=labels)
    seen = train.cross_entropy(few, "balanced", 0.0).weight
    torch.testing.assert_close(seen, torch.tensor([6 / 9, 6 / 3, 6 / 6]))


def test_a_bar_names_its_epoch(monkeypatch):
    names = []

    def bar(steps, name, **_):
        names.append(name)
        return steps

    monkeypatch.setattr(train, "tqdm", bar)
    fit(Plain(), noise(), epochs=2, batch=10)
    assert names == ["epoch 1/2", "epoch 2/2"]


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_of_mixed_images_the_larger_share_is_right(share):
    """Here the share of what the model says."""
    some, model = noise(), Plain()
    pixels, eye = some.train_images, torch.eye(CLASSES)
    said = model(pixels.float() / 127.5 - 1).argmax(1)
    assert len(said.unique()) > 1

    def mixer(images, labels):
        return images, share * eye[labels] + (1 - share) * eye[(labels + 1) % CLASSES]

    how = torch.optim.SGD(model.parameters(), 0.1), some, pixels, said, False, "float32"
    _, right = train.learn(model, *how, mixer=mixer)
    assert right == (len(said) if share > 0.5 else 0)


class Moves(TorchFunctionMode):
    """What tensors are told to move to, a device or the like."""

    def __init__(self):
        super().__init__()
        self.told = []

    def __torch_function__(self, function, types, arguments=(), options=None):
        if function is torch.Tensor.to:
            self.told.append(arguments[1])
        return function(*arguments, **(options or {}))


def test_what_a_training_holds_goes_to_its_device():
    """Weights of classes, sums of an epoch and the order of each: a GPU reads no other memory."""
    with Moves() as moves:
        fit(Plain(), noise(), epochs=3, class_weights="balanced")
    device = torch.device("cpu")
    assert [told for told in moves.told if not isinstance(told, torch.dtype)] == [device] * 5


def test_a_deadline_is_past_when_it_is_past(monkeypatch):
    monkeypatch.setattr(train, "time", SimpleNamespace(monotonic=lambda: 5.0))
    train.stop_at(5.0)
    with pytest.raises(train.TimeUp):
        train.stop_at(4.9)
