"""Every released system is what the authors' code computes, but for the rows of README's table.

At equal weights, all of them drawn anew, in float64: with every departure ours, the textbook of
`released.py` gives our logits; with one departure the authors' way, it does not. The table is
complete, since the textbook has a switch for each row, and with all of them set it costs what the
authors' code was counted to cost.
"""

import re
from functools import cache, partial
from pathlib import Path

import pytest
import released
import torch
from released import COUNT, DEPARTURES, DROP, MOVE, NONE, RELEASED, SAME, START, TRAIN
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vixlib import build, list_systems, measure
from vixlib.attention import Nystrom, Performer
from vixlib.data import Dataset, normalise
from vixlib.layers import Residual
from vixlib.models.host import Host
from vixlib.paper.runs import PROFILES, Run, published
from vixlib.systems import system
from vixlib.train import EVALUATION_BATCH, evaluate

README = (Path(__file__).parents[1] / "README.md").read_text()
TABLE = README.partition("## Where we depart")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| ([^|]+?) \| [^|]+ \| [^|]+ \|$", TABLE, re.MULTILINE)[1:]
TOLERANCE = 1e-9  # of the largest logit

HEIGHT, WIDTH, STRIDE = 16, 20, 2  # 8 x 10 places; with CLS 81, which 5 landmarks do not divide
SMALL = {
    "ViX": {"patch_size": STRIDE, "dim": 64, "depth": 2},
    "CCX": {"stem": (STRIDE, 1, 1), "dim": 64, "depth": 3},
    "CvX": {"strides": (STRIDE, 1, 1), "widths": (64,) * 3, "heads": (2,) * 3},
}
TINY = {  # as released for Tiny ImageNet: 64 x 64, 200 classes
    "ViX": {"patch_size": 2},
    "CCX": {"stem": (2, 1, 1)},
    "CvX": {"strides": (2, 1, 1)},
}


# --- models at equal weights ---------------------------------------------------------------------


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Draws everything that a model holds, queries and keys larger than fresh ones."""
    for name, tensor in model.state_dict().items():
        if name.endswith(".weight") and tensor.ndim == 1:  # a norm's
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(".weight"):
            larger = 2 if re.search(r"\.[qk]\.", name) else 1
            tensor.normal_(std=larger * tensor[0].numel() ** -0.5)
        elif not name.endswith("directions"):  # biases, CLS, positions, Linformer's mixtures
            tensor.normal_(std=0.3)


@cache
def ours(name: str, mechanism: partial | None = None) -> Host:
    """Our model of a system, small, random, in float64."""
    sizes = SMALL[RELEASED[name].host] | {"image_size": (HEIGHT, WIDTH), "num_classes": 7}
    sizes |= {} if mechanism is None else {"attention": mechanism}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)  # also for tables: RoPE's
        try:
            model = build(name, **sizes).eval()
        finally:
            torch.set_default_dtype(torch.float32)
        randomise(model)
    return model


class Weights(dict):
    """A state dict that knows which of its tensors were asked for."""

    def __init__(self, model: nn.Module):
        super().__init__((key, t) for key, t in model.state_dict().items() if t.numel())
        self.asked = set()

    def __getitem__(self, key: str) -> torch.Tensor:
        self.asked.add(key)
        return super().__getitem__(key)


def images(batch: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, HEIGHT, WIDTH, dtype=torch.float64, generator=generator)


@torch.no_grad()
def textbook(
    name: str, *departures: str, mechanism: partial | None = None, training: bool = False
) -> torch.Tensor:
    """What the released model says of the images at the weights of ours."""
    torch.manual_seed(0)
    w = ours(name, mechanism).state_dict()
    return released.logits(name, w, images(), {*departures}, stride=STRIDE, training=training)


plain = cache(textbook)  # with every departure ours


def distance(x: torch.Tensor, y: torch.Tensor) -> float:
    """In parts of the largest."""
    return ((x - y).abs().max() / y.abs().max()).item()


@cache
@torch.no_grad()
def said(name: str, mechanism: partial | None = None) -> torch.Tensor:
    """What our model says of them."""
    return ours(name, mechanism)(images())


ABOUT = {  # what a departure is about
    "Nyström's pseudo-inverse is scaled": lambda f: f.mixer == "N",
    "Performer subtracts a maximum": lambda f: f.mixer == "P",
    "Nyström pads": lambda f: f.mixer == "N" and f.cls,  # without CLS 80 places are 5 x 16
    "64 landmarks": lambda f: f.mixer == "N",  # Linformer's mixtures are weights
    "Linformer's values are turned": lambda f: f.mixer == "L" and f.rope,
    "MLP-Mixer normalises": lambda f: f.mixer == "M",
    "dropout of 0.25 or 0.5": lambda f: f.dropout or f.embedding_dropout or f.attention_dropout,
    "dropout left on": lambda f: f.left_on,
    "Nyström forms": lambda f: f.mixer == "N",
    "Performer keeps its features": lambda f: f.mixer == "P",
    "Linformer projects tokens": lambda f: f.mixer == "L" and not f.rope,
}


def touched(departure: str) -> list[str]:
    """The systems that a departure is about."""
    return [name for name, facts in RELEASED.items() if ABOUT[departure](facts)]


def test_every_system_is_released_or_not_and_why():
    assert not set(RELEASED) & set(released.UNRELEASED)
    assert {*RELEASED, *released.UNRELEASED} == {*list_systems()}
    assert {*RELEASED} == {*published().query("quantity == 'batch'")["system"]}


def test_the_table_and_the_switches_name_the_same_departures():
    assert len(ROWS) == len(DEPARTURES) == len(set(DEPARTURES))
    for row in ROWS:
        assert len([name for name in DEPARTURES if row.startswith(name)]) == 1, row
    assert {*MOVE, *DROP, *SAME, *COUNT, *START, *TRAIN} == {*DEPARTURES}


@pytest.mark.parametrize("name", RELEASED)
def test_ours_is_the_released_model_but_for_the_departures(name):
    assert distance(said(name), plain(name)) <= TOLERANCE


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_model_reads_every_weight_of_ours(name):
    w = Weights(ours(name))
    with torch.no_grad():
        released.logits(name, w, images(), stride=STRIDE)
    assert w.asked == set(w)


@pytest.mark.parametrize("departure", MOVE)
def test_each_departure_moves_the_logits(departure):
    assert touched(departure)
    for name in touched(departure):
        assert distance(textbook(name, departure), said(name)) > 1e3 * TOLERANCE, name


@pytest.mark.parametrize("departure", MOVE)
def test_a_departure_leaves_all_other_systems_alone(departure):
    for name in {*RELEASED} - {*touched(departure)}:
        assert torch.equal(textbook(name, departure), plain(name)), name


OPTIONS = {  # of our mechanisms, that do what the released ones do
    "Nyström's pseudo-inverse is scaled": ("HybridViN-RoPE", partial(Nystrom, batch_wide=True)),
    "Performer subtracts a maximum": ("ViP", partial(Performer, batch_wide=True)),
    "64 landmarks": ("ViN", partial(Nystrom, landmarks=64)),
}


@pytest.mark.parametrize("departure", OPTIONS)
def test_an_option_of_ours_is_the_released_way(departure):
    name, mechanism = OPTIONS[departure]
    theirs = textbook(name, departure, mechanism=mechanism)
    assert distance(said(name, mechanism), theirs) <= TOLERANCE


@pytest.mark.parametrize("departure", SAME)
def test_what_is_the_same_is_so_to_rounding_and_costs_otherwise(departure):
    assert touched(departure)
    for name in touched(departure):
        theirs = textbook(name, departure)
        assert distance(theirs, said(name)) <= TOLERANCE
        assert not torch.equal(theirs, plain(name))


# --- training ------------------------------------------------------------------------------------


@torch.no_grad()
def in_training(model: Host) -> torch.Tensor:
    """What a model says while it trains, all that is random seeded."""
    torch.manual_seed(0)
    try:
        return model.train()(images())
    finally:
        model.eval()


@pytest.mark.parametrize("name", RELEASED)
def test_in_training_too_but_for_dropout(name):
    theirs = textbook(name, training=True)
    assert distance(in_training(ours(name)), theirs) <= TOLERANCE
    dropping = distance(textbook(name, "dropout of 0.25 or 0.5", training=True), theirs) > 1e-3
    assert dropping == (name in touched("dropout of 0.25 or 0.5"))


def test_some_were_tested_as_if_they_were_trained():
    assert touched("dropout left on") == [
        "ViN-RoPE", "HybridViN", "HybridViN-RoPE", "CCN", "CCP"
    ]  # fmt: skip
    for name in RELEASED:
        left_on = distance(textbook(name, *DROP), said(name)) > 1e-3
        assert left_on == (name in touched("dropout left on")), name


@pytest.mark.parametrize("name", ["CCT", "CCN", "CCP"])
def test_stochastic_depth_grows_with_depth(name):
    rates = [m.drop_path for m in build(name).blocks if isinstance(m, Residual)]
    assert rates == pytest.approx([x for i in range(4) for x in 2 * [0.1 * i / 3]])


# --- what they cost, how large they are ----------------------------------------------------------


@cache
def known() -> dict[tuple[str, str, str], float]:
    """Every published number by system, dataset and quantity."""
    rows = published().query("system in @RELEASED")
    keys = zip(rows["system"], rows["dataset"], rows["quantity"], strict=True)
    return dict(zip(keys, rows["value"].astype(float), strict=True))


def number(name: str, dataset: str, quantity: str) -> float | None:
    """A published number about a system, if there is one."""
    return known().get((name, dataset, quantity))


def of_scripts(quantity: str) -> dict[str, int]:
    """A number of each system's script, whatever its dataset."""
    return {name: int(value) for (name, _, what), value in known().items() if what == quantity}


@cache
def whole(name: str, dataset: str = "cifar10") -> Host:
    """Our model of a system at the released size for a dataset, of no memory."""
    tiny = TINY[RELEASED[name].host] | {"image_size": 64, "num_classes": 200}
    with torch.device("meta"):
        return build(name, **tiny if dataset == "tiny-imagenet" else {})


COUNTED = [
    (name, dataset, kind)
    for name in RELEASED
    for dataset, kind in (
        ("cifar10", "released"), ("cifar10", "adapted"), ("tiny-imagenet", "released")
    )
    if number(name, dataset, f"parameters_{kind}")
]  # fmt: skip


def flops(name: str, *departures: str, dataset: str = "cifar10") -> int:
    """What one image costs the released model, as torch counts it."""
    model, stride = whole(name, dataset), 1 if dataset == "cifar10" else 2
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        x = torch.empty(1, 3, *model.size)
        released.logits(name, model.state_dict(), x, {*departures}, stride=stride)
    return counter.get_total_flops()


@pytest.mark.parametrize(("name", "dataset", "kind"), COUNTED)
def test_with_every_departure_it_costs_what_theirs_does(name, dataset, kind):
    theirs = flops(name, *DEPARTURES, dataset=dataset)
    assert theirs / 2e6 == pytest.approx(number(name, dataset, f"mmacs_{kind}"), abs=0.006)


@pytest.mark.parametrize("name", [name for name in RELEASED if RELEASED[name].mixer != "N"])
def test_with_none_it_costs_what_ours_does(name):
    assert flops(name) == measure.flops(partial(build, name), (1, 3, 32, 32))


def test_what_is_the_same_costs_more_or_less():
    extra = {}
    for name, departure in zip(("LeViN-released", "ViP", "HybridViL"), SAME, strict=True):
        theirs = flops(name, departure)
        extra[name] = theirs - measure.flops(partial(build, name), (1, 3, 32, 32))
    assert extra["LeViN-released"] > 2 * 4 * 4 * 12 * 64**3  # of 24 products in a head, half
    assert extra["ViP"] == -2 * 4 * 4 * 1025 * 110  # the sum over keys, as a column
    mixed, projected = 2 * 1025 * 64 * 128, 2 * 1025 * 128 * 128
    assert extra["HybridViL"] == 4 * (mixed + projected - 2 * 64 * 128 * 128)


@pytest.mark.parametrize(("name", "dataset", "kind"), COUNTED)
def test_its_size_is_theirs_and_torchsummarys(name, dataset, kind):
    model = whole(name, dataset)
    w = model.state_dict()
    assert measure.parameters(model) == released.parameters(name, w)
    theirs = released.parameters(name, w, {"RoPE models keep"})
    assert theirs == number(name, dataset, f"parameters_{kind}")
    for quantity in ("parameters_weight_bias", "parameters_logged"):
        seen = number(name, dataset, quantity)
        assert seen in (None, released.parameters(name, w, {"the sum of `weight`"}))


@pytest.mark.parametrize("name", ["LeViP", "LeViN", "CvP", "CvN"])
def test_the_simplified_are_systems_of_their_own(name):
    assert f"{name}-released" in RELEASED
    assert system(f"{name}-released").note == "as released"
    with torch.device("meta"):
        host = build(name)
    assert measure.parameters(host) != measure.parameters(whole(f"{name}-released"))


def test_hosts_are_released_for_other_images():
    for name, facts in RELEASED.items():
        given = number(name, "cifar10", "parameters_released") is not None
        assert given == facts.cls
        datasets = ["cifar10"] if given else ["cifar10", "tiny-imagenet"]
        assert {whole(name, dataset).grid[:2] for dataset in datasets} == {(32, 32)}


# --- how they start ------------------------------------------------------------------------------

RECIPES = {"fair": NONE, "as-released": {*START}}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", RELEASED)
def test_fresh_weights_are_spread_as_they_should(name, recipe):
    w = Run(name, "paper", recipe).build().state_dict()
    for key, tensor in w.items():
        n, drawn = tensor.numel(), released.start(name, key, w, RECIPES[recipe])
        if n and drawn.spread == 0:
            assert (tensor == drawn.mean).all(), key
        elif n:
            x = tensor / drawn.spread
            kurtosis = 1.8 if drawn.uniform else 3
            assert abs(x.mean()) <= 5 * n**-0.5, key
            assert abs(x.square().mean() - 1) <= 5 * ((kurtosis - 1) / n) ** 0.5, key
            if drawn.uniform:
                assert x.abs().max() <= 3**0.5 + 1e-6, key
            elif n >= 1000:
                assert x.abs().max() > 3**0.5 + 0.5, key


def test_each_start_is_seen():
    for name, key, departure, spread in (
        ("ViT", "cls", "positions start from", (0.02, 1.0)),
        ("ViT", "positions.table", "positions start from", (0.02, 1.0)),
        ("CCN", "positions.table", "CCX starts from", (0.02, 0.2)),
        ("CCN", "head.weight", "CCX starts from", (384**-0.5, 0.02)),
        ("CCN", "tokenizer.3.weight", "CCX starts from", (1728**-0.5, 288**-0.5)),
    ):
        w = Run(name, "paper").build().state_dict()
        starts = [released.start(name, key, w, on) for on in (NONE, {departure})]
        assert [each.spread for each in starts] == pytest.approx(spread)


# --- how they are trained and tested -------------------------------------------------------------


@pytest.mark.parametrize("name", RELEASED)
def test_recipes_train_as_they_say(name):
    script = [of_scripts(quantity)[name] for quantity in ("batch", "epochs_in_loop")]
    undone = {*START, "the best epoch", "dropout left on"}
    for recipe, departures in ("fair", NONE), ("as-released", undone):
        wanted = released.settings(name, *script, departures)
        assert wanted.items() <= Run(name, "paper", recipe).settings.items()
    theirs = released.settings(name, *script, {*DEPARTURES})
    differ = {key for key in wanted if wanted[key] != theirs[key]}
    assert differ == {"epochs", "precision"}  # a budget is the profile's, not the recipe's


def test_the_rows_give_the_scripts_numbers():
    told = {row: [int(digits) for digits in re.findall(r"\d+", row)] for row in ROWS}
    batches = {*of_scripts("batch").values()}
    epochs = {*of_scripts("epochs_in_loop").values()}
    for departure, numbers in (
        ("dropout left on", [min(batches), max(batches)]),
        ("loops of", sorted(epochs)),
    ):
        assert [told[row] for row in ROWS if row.startswith(departure)] == [numbers]
    assert {profile.precision for profile in PROFILES.values()} == {"float32", "bfloat16"}


def test_each_image_counts_once():
    count = EVALUATION_BATCH + 10
    pixels = torch.zeros(count, 3, 8, 8, dtype=torch.uint8)
    pixels[:17] = 255
    labels = torch.ones(count, dtype=torch.int64)
    data = Dataset(pixels, labels, pixels, labels, ("dark", "light"), "noise")

    class Light(nn.Module):
        def forward(self, x):
            return torch.stack([-x.mean((1, 2, 3)), x.mean((1, 2, 3))], 1)

    right = torch.arange(count) < 17
    top1, _ = evaluate(Light(), data)
    assert top1 == pytest.approx(released.accuracy(right, EVALUATION_BATCH), abs=1e-4)
    theirs = released.accuracy(right, EVALUATION_BATCH, {"accuracy is the mean"})
    assert abs(theirs - top1) > 1


def test_all_data_are_normalised_by_one_rule():
    pixels = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8)
    for dataset in ("cifar10", "tiny-imagenet"):
        assert torch.allclose(normalise(pixels), released.normalised(pixels, dataset), atol=1e-6)
    theirs = released.normalised(pixels, "tiny-imagenet", {"Tiny ImageNet is normalised"})
    assert (normalise(pixels) - theirs).abs().max() > 0.05
