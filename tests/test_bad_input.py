"""What users may pass by mistake: every public function says in one line what it expected.

Cases that belong to a longer story stand in the files of their modules.
"""

import math
from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
import torch
from torch import nn

from vixlib import build, data, list_systems, measure, predict
from vixlib.__main__ import main
from vixlib.attention import Grid
from vixlib.contract import check_mechanism
from vixlib.errors import BadInput, checked
from vixlib.fused import Linformer, Nystrom, Performer, Softmax
from vixlib.layers import Residual, Rotary
from vixlib.maps import attention_map, attention_maps
from vixlib.models.host import mechanism_for
from vixlib.paper import claims, figures, notebook, records, tables, training
from vixlib.paper.records import files
from vixlib.paper.runs import Run, runs
from vixlib.train import evaluate, fit

GRID, QUERY = Grid(8, 8, 1), torch.zeros(1, 2, 65, 16)
LONG = 10**12  # more than any memory


def raises(case):
    """One line, of the type that was said: what was expected and what came."""
    call, kind, message = case
    with pytest.raises(kind, match=message) as caught:
        call()
    assert isinstance(caught.value, (ValueError, TypeError))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def cases(table):
    return pytest.mark.parametrize("case", table, ids=[message for *_, message in table])


@pytest.fixture(autouse=True)
def _nothing_is_written(root):
    yield
    assert not [path for path in root.rglob("*") if path.is_file() and path.name != "image.png"]


# ---- models ----

vit = partial(build, "ViT", image_size=16, patch_size=2)
levit = partial(build, "LeViT", image_size=16, stem=[2, 1, 1], widths=[32, 48, 64])
cct = partial(build, "CCT", image_size=16)
cvt = partial(build, "CvT", image_size=16)
resnet = partial(build, "ResNet-20", image_size=16)
convmixer = partial(build, "ConvMixer-256/8", image_size=16)

MODELS = [
    (lambda: build(5), TypeError, r"system: expected a name, got 5"),
    (lambda: vit(dims=3), TypeError, r"unknown option of ViX 'dims' \(did you mean dim\?\)"),
    (lambda: vit(image_size=2.5), TypeError, r"image_size: expected int or tuple, got 2\.5"),
    (lambda: vit(image_size=(8, 8, 8)), BadInput, r"expected an int or \(height, width\), got \(8"),
    (lambda: vit(image_size=LONG), BadInput, r"image_size: expected less than 2\*\*31, got 1000"),
    (lambda: vit(image_size=10**6), BadInput, r"ViT with .*'image_size': 1000000.*memory"),
    (lambda: vit(dim="a"), TypeError, r"dim: expected a whole number, got 'a'"),
    (lambda: vit(dim_head=0), BadInput, r"dim_head: expected at least 1, got 0"),
    (lambda: vit(mlp_ratio=1.5), TypeError, r"mlp_ratio: expected a whole number, got 1\.5"),
    (lambda: vit(mlp_ratio=-1), BadInput, r"mlp_ratio: expected at least 1, got -1"),
    (lambda: vit(rotary="yes"), TypeError, r"rotary: expected bool, got 'yes'"),
    (lambda: vit(num_classes=True), TypeError, r"num_classes: expected a whole number, got True"),
    (lambda: vit(attention=5), TypeError, r"mechanism: expected Callable, got 5"),
    (lambda: vit(attention=nn.Linear), TypeError, r"mechanism: expected Mechanism, got <class"),
    (
        lambda: build("ViT-RoPE", dim=20, dim_head=5),
        BadInput,
        r"dim_head: expected an even .*got 5",
    ),
    (lambda: Rotary(3, GRID), BadInput, r"dim_head: expected an even number to turn, got 3"),
    (lambda: build("HybridViT", dim=3, dim_head=1), BadInput, r"dim: expected at least 4, got 3"),
    (lambda: levit(stem=[]), BadInput, r"length of stem: expected at least 1, got 0"),
    (lambda: levit(stem="abc"), TypeError, r"stem: expected Sequence, got 'abc'"),
    (lambda: levit(stem=[1] * 12), BadInput, r"width of a stem layer: expected at least 1, got 0"),
    (lambda: levit(widths=[32]), BadInput, r"expected as many of each, got 1 widths, 3 heads"),
    (lambda: levit(widths=[32, 0, 64]), BadInput, r"widths: expected at least 1, got 0"),
    (lambda: levit(heads=[1, 1.5, 2]), TypeError, r"heads: expected a whole number, got 1\.5"),
    (lambda: levit(depths=2), TypeError, r"depths: expected Sequence, got 2"),
    (lambda: cct(pool=0), BadInput, r"pool: expected at least 1, got 0"),
    (
        lambda: cct(drop_path=math.nan),
        BadInput,
        r"drop_path: expected at least 0 and less than inf, got nan",
    ),
    (
        lambda: cct(drop_path=1.0),
        BadInput,
        r"drop_path: expected at least 0 and less than 1, got 1\.0",
    ),
    (lambda: Residual(drop_path="a"), TypeError, r"drop_path: expected a number, got 'a'"),
    (lambda: cct(depth=0), BadInput, r"depth: expected at least 1, got 0"),
    (lambda: cvt(heads=[1, 2]), BadInput, r"3 strides, 3 kernels, 3 widths, 2 heads, 3 depths"),
    (lambda: cvt(heads=[3, 3, 4]), BadInput, r"widths: expected a multiple of 3 heads, got 64"),
    (lambda: cvt(kernels=[3, 4, 3]), BadInput, r"kernels: expected odd numbers from 3, got 4"),
    (lambda: resnet(pairs=0), BadInput, r"pairs: expected at least 1, got 0"),
    (lambda: resnet(widths=[32, 16]), BadInput, r"widths: expected at least 32, got 16"),
    (lambda: convmixer(kernel="a"), TypeError, r"kernel: expected a whole number, got 'a'"),
    (lambda: convmixer(patch_size=3), BadInput, r"16 is not divisible by patch_size 3"),
    (
        lambda: vit()(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)),
        TypeError,
        r"normalised floats.*t8",
    ),
    (
        lambda: vit()([[1.0]]),
        TypeError,
        r"images: expected a tensor of normalised floats, got list",
    ),
    (lambda: Softmax(2, 16, 65, 65), TypeError, r"queries: expected Grid, got 65"),
    (lambda: Softmax(2, 16, GRID, Grid(0, 8)), BadInput, r"rows: expected at least 1, got 0"),
    (lambda: Softmax("2", 16, GRID, GRID), TypeError, r"heads: expected a whole number, got '2'"),
    (lambda: Linformer(2, 16, GRID, GRID, rank=0), BadInput, r"rank: expected at least 1, got 0"),
    (
        lambda: Linformer(2, 16, GRID, GRID, kv_heads=3),
        BadInput,
        r"kv_heads: expected 1 or 2, got 3",
    ),
    (
        lambda: Performer(2, 16, GRID, GRID, features=LONG),
        BadInput,
        r"features: expected less than",
    ),
    (
        lambda: Nystrom(2, 16, GRID, GRID, landmark=4),
        BadInput,
        r"landmark' \(did you mean landmarks",
    ),
    (
        lambda: Nystrom(2, 16, GRID, GRID, iterations=0),
        BadInput,
        r"iterations: expected at least 1",
    ),
    (lambda: Nystrom(2, 16, GRID, GRID, kernel=0), BadInput, r"kernel: expected at least 1, got 0"),
    (
        lambda: Nystrom(2, 16, GRID, GRID, kernel=4),
        BadInput,
        r"kernel: expected an odd number, got 4",
    ),
    (
        lambda: Softmax(2, 16, GRID, GRID)(QUERY, QUERY[..., :8], QUERY),
        BadInput,
        r"65 keys and values of one head or 2; got .* k \(1, 2, 65, 8\)",
    ),
    (
        lambda: Nystrom(2, 16, GRID, GRID)(QUERY, QUERY, QUERY.repeat(2, 1, 1, 1)),
        BadInput,
        r"Nystrom: expected .* v \(2, 2, 65, 16\)",
    ),
    (
        lambda: mechanism_for("nystrom", 2, 16, GRID, GRID),
        TypeError,
        r"expected Callable, got 'nystrom'",
    ),
    (
        lambda: attention_map("softmax", QUERY, QUERY),
        TypeError,
        r"expected Mechanism, got 'softmax'",
    ),
    (
        lambda: attention_map(Softmax(2, 16, GRID, GRID), 1, 2),
        TypeError,
        r"q: expected Tensor, got 1",
    ),
    (lambda: attention_maps("ViT", QUERY), TypeError, r"model: expected Module, got 'ViT'"),
    (lambda: attention_maps(vit(), QUERY), BadInput, r"\(batch, 3, 16, 16\), got \(1, 2, 65, 16\)"),
    (lambda: check_mechanism("nystrom"), TypeError, r"mechanism: expected Callable, got 'nystrom'"),
    (lambda: measure.mechanism_flops(nn.Linear, 64), TypeError, r"mechanism: expected Mechanism"),
]


@cases(MODELS)
def test_models(case):
    raises(case)


def test_what_makes_no_mechanism_does_not_hold():
    rows = check_mechanism(lambda *arguments: None)
    assert not any(row.holds for row in rows)
    assert {row.seen for row in rows} == {"BadType: mechanism: expected Mechanism, got None"}


# ---- data ----

DIGITS = data.subset(data.load("digits"), train=30, test=10)
BYTES, LABELS = DIGITS.train_images, DIGITS.train_labels

DATA = [
    (lambda: data.load(5), TypeError, r"name: expected str, got 5"),
    (lambda: data.load("digits", folder=5), TypeError, r"folder: expected str or Path, got 5"),
    (lambda: data.load("digits", size=9.5), TypeError, r"size: expected a whole number, got 9\.5"),
    (lambda: data.load("digits", size=10**6), BadInput, r"size: 1000000 does not fit in memory"),
    (lambda: data.load("digits", download="no"), TypeError, r"download: expected bool, got 'no'"),
    (lambda: data.load("digits", device="gpu"), BadInput, r"device 'gpu': Expected one of cpu"),
    (lambda: data.load("digits", device="meta"), BadInput, r"device 'meta': "),
    (lambda: data.load("digits", sizes=8), BadInput, r"option of load 'sizes' \(did you mean size"),
    (lambda: data.subset("digits", 10), TypeError, r"dataset: expected Dataset, got 'digits'"),
    (lambda: data.subset(DIGITS, test="5"), TypeError, r"test: expected a whole number, got '5'"),
    (lambda: data.subset(DIGITS, test=11), BadInput, r"test: expected at most 10 images, got 11"),
    (lambda: data.normalise(torch.rand(2, 3)), TypeError, r"of torch.uint8, got torch.float32"),
    (lambda: data.normalise([1, 2]), TypeError, r"expected a tensor of torch.uint8, got list"),
    (lambda: data.augment(BYTES.long()), TypeError, r"of torch.uint8, got torch.int64"),
    (lambda: data.augment(BYTES, generator=5), TypeError, r"generator: expected Generator, got 5"),
    (lambda: data.augment(BYTES, padding=-1), BadInput, r"padding: expected at least 0, got -1"),
    (
        lambda: replace(DIGITS, train_labels=LABELS + 5),
        BadInput,
        r"labels: expected 0 to 9, got 5 to",
    ),
    (lambda: replace(DIGITS, train_labels=LABELS - 1), BadInput, r"expected 0 to 9, got -1 to 8"),
    (
        lambda: replace(DIGITS, train_labels=LABELS[:5]),
        BadInput,
        r"labels: expected \(30,\) of .*\(5,\)",
    ),
    (lambda: replace(DIGITS, train_labels=LABELS.float()), BadInput, r"int64, got .*torch.float32"),
    (lambda: replace(DIGITS, test_labels=[1]), TypeError, r"labels: expected Tensor, got \[1\]"),
    (
        lambda: replace(DIGITS, train_images=BYTES.float()),
        TypeError,
        r"torch.uint8, got torch.float",
    ),
    (lambda: replace(DIGITS, classes=("a",)), BadInput, r"labels: expected 0 to 0, got 0 to 9"),
]


@cases(DATA)
def test_data(case):
    raises(case)


# ---- training and measuring ----

MODEL = build("ViT", image_size=8, patch_size=2, dim=32, depth=1)
FEW = build("ViT", image_size=8, patch_size=2, dim=32, depth=1, num_classes=5)
FLOATS = torch.zeros(3, 3, 8, 8)
train = partial(fit, MODEL, DIGITS, epochs=1)
memory = partial(measure.training_memory, MODEL, FLOATS)

TRAINING = [
    (lambda: fit("ViT", DIGITS, epochs=1), TypeError, r"model: expected Module, got 'ViT'"),
    (
        lambda: fit(MODEL, "digits", epochs=1),
        TypeError,
        r"data: expected Dataset or .*, got 'digits'",
    ),
    (lambda: fit(MODEL, DIGITS), TypeError, r"missing a required argument: 'epochs'"),
    (
        lambda: fit(MODEL, DIGITS, epoch=1),
        BadInput,
        r"unknown option of fit 'epoch' \(did you mean ep",
    ),
    (lambda: train(epochs=0), BadInput, r"epochs: expected at least 1, got 0"),
    (lambda: train(batch=-1), BadInput, r"batch: expected at least 1, got -1"),
    (lambda: train(batch=LONG), BadInput, r"batch: expected less than 2\*\*31, got 1000000000000"),
    (lambda: train(lr="fast"), TypeError, r"lr: expected a number, got 'fast'"),
    (lambda: train(lr=-1), BadInput, r"lr: expected at least 0 and less than inf, got -1"),
    (lambda: train(lr=math.nan), BadInput, r"lr: expected at least 0 and less than inf, got nan"),
    (lambda: train(weight_decay=math.inf), BadInput, r"weight_decay: expected .*, got inf"),
    (lambda: train(augmented="no"), TypeError, r"augmented: expected bool, got 'no'"),
    (lambda: train(precision="int8"), BadInput, r"unknown precision 'int8'; legal: float32, bfl"),
    (lambda: train(seed=-1), BadInput, r"seed: expected at least 0, got -1"),
    (lambda: train(seed=2**31), BadInput, r"seed: expected less than 2\*\*31, got 2147483648"),
    (lambda: train(watch=0), BadInput, r"watch: expected at least 1, got 0"),
    (lambda: train(checkpoint="a.pt"), TypeError, r"checkpoint: expected Checkpoint, got 'a\.pt'"),
    (lambda: train(deadline=None), TypeError, r"deadline: expected a number, got None"),
    (lambda: train(report=5), TypeError, r"report: expected Callable, got 5"),
    (lambda: fit(FEW, DIGITS, epochs=1), BadInput, r"expected logits \(30, 10\), got \(30, 5\)"),
    (lambda: evaluate(FEW, DIGITS), BadInput, r"model: expected logits \(10, 10\), got \(10, 5\)"),
    (lambda: evaluate(len, DIGITS), TypeError, r"model: expected Module, got <built-in"),
    (lambda: evaluate(MODEL, DIGITS, "5"), TypeError, r"first: expected a whole number, got '5'"),
    (lambda: measure.parameters("ViT"), TypeError, r"model: expected Module, got 'ViT'"),
    (lambda: measure.flops(MODEL.size, (1,)), TypeError, r"make: expected Callable, got \(8, 8\)"),
    (lambda: measure.flops(lambda: 5, (1,)), TypeError, r"made model: expected Module, got 5"),
    (lambda: measure.mechanism_flops(Softmax, 0), BadInput, r"tokens: expected at least 1, got 0"),
    (
        lambda: measure.mechanism_flops(Softmax, 64, heads=0),
        BadInput,
        r"heads: expected at least 1",
    ),
    (lambda: tables.sizes("ViT"), TypeError, r"names: expected Iterable, got 'ViT'"),
    (lambda: tables.sizes(["ViM"]), BadInput, r"unknown system 'ViM'"),
    (lambda: memory([1, 2, 3]), TypeError, r"labels: expected Tensor, got \[1, 2, 3\]"),
    (lambda: memory(torch.tensor([1, 2, 10])), BadInput, r"labels: expected 0 to 9, got 1 to 10"),
    (lambda: memory(torch.tensor([1, 2])), BadInput, r"labels: expected \(3,\) of .*got \(2,\)"),
]


@cases(TRAINING)
def test_training(case):
    raises(case)


# ---- runs and records ----


def run(*overrides, system="ViT", **options):
    return Run(system, "quick", overrides=overrides, **options)


RUN = run(("epochs", 1), ("train_images", 30), system="FNet")
perform = partial(training.perform, RUN)

RUNS = [
    (lambda: Run(5, "quick"), TypeError, r"system: expected a name, got 5"),
    (lambda: Run("ViT", None), TypeError, r"profile: expected a name, got None"),
    (lambda: run(recipe=["fair"]), TypeError, r"recipe: expected a name, got \['fair'\]"),
    (lambda: run(seed="0"), TypeError, r"seed: expected a whole number, got '0'"),
    (lambda: run(seed=LONG), BadInput, r"seed: expected less than 2\*\*31, got 1000000000000"),
    (lambda: Run("ViT", "quick", overrides=5), TypeError, r"overrides: expected tuple, got 5"),
    (lambda: run("epochs", 3), BadInput, r"pairs \(name, value\) once each, got 'epochs'"),
    (lambda: run(("epochs", 1), ("epochs", 2)), BadInput, r"once each, got \('epochs', 2\)"),
    (lambda: run((3, 3)), TypeError, r"setting: expected a name, got 3"),
    (lambda: run(("epochs", True)), TypeError, r"epochs: expected a whole number, got True"),
    (lambda: run(("batch", 0)), BadInput, r"batch: expected at least 1, got 0"),
    (lambda: run(("lr", -1.0)), BadInput, r"lr: expected at least 0 and less than inf, got -1\.0"),
    (lambda: run(("lr", math.nan)), BadInput, r"lr: expected .*, got nan"),
    (lambda: run(("std", math.inf)), BadInput, r"std: expected .*, got inf"),
    (lambda: run(("augmented", 1)), TypeError, r"augmented: expected bool, got 1"),
    (lambda: run(("precision", "int8")), BadInput, r"unknown precision 'int8'"),
    (
        lambda: run(("dataset", "mnist")),
        BadInput,
        r"unknown dataset 'mnist'; legal: digits, cifar10",
    ),
    (lambda: run(("train_images", 0)), BadInput, r"train_images: expected at least 1, got 0"),
    (
        lambda: training.perform(run(("train_images", 9999))),
        BadInput,
        r"train: expected at most 1437 images, got 9999",
    ),
    (
        lambda: run(("widths", [32, "a"]), system="LeViT"),
        TypeError,
        r"widths: expected a whole.*'a'",
    ),
    (lambda: run(("widths", 32), system="LeViT"), TypeError, r"widths: expected Sequence, got 32"),
    (lambda: runs("ViT", "quick"), TypeError, r"names: expected Iterable, got 'ViT'"),
    (lambda: runs(["ViT"], "quick", seeds=0), BadInput, r"seeds: expected at least 1, got 0"),
    (
        lambda: runs(["ViT"], "quick", seed=2),
        BadInput,
        r"option of runs 'seed' \(did you mean seeds",
    ),
    (lambda: records.load("ViT"), TypeError, r"run: expected Run, got 'ViT'"),
    (lambda: training.read(["ViT"]), TypeError, r"run: expected Run, got 'ViT'"),
    (lambda: training.read([RUN], train=1), TypeError, r"train: expected bool, got 1"),
    (lambda: training.perform_all(["ViT"]), TypeError, r"wanted: expected Run, got 'ViT'"),
    (lambda: training.perform_all([RUN], workers=0), BadInput, r"workers: expected at least 1"),
    (lambda: training.trained("ViT"), TypeError, r"run: expected Run, got 'ViT'"),
    (lambda: predict(MODEL, [5]), TypeError, r"image: expected str or Path or .*, got 5"),
    (lambda: predict(MODEL, "x.png", top=0), BadInput, r"top: expected at least 1, got 0"),
    (lambda: records.records_folder("fast"), BadInput, r"unknown profile 'fast'; legal: quick"),
    (lambda: perform(device="meta"), BadInput, r"device 'meta': "),
    (lambda: perform(device=0), TypeError, r"device: expected str, got 0"),
    (lambda: perform(deadline=math.nan), BadInput, r"deadline: expected at least 0 .*, got nan"),
]


@cases(RUNS)
def test_runs(case):
    raises(case)


def test_a_whole_learning_rate_is_the_same_run():
    assert run(("lr", 1)) == run(("lr", 1.0))
    assert run(("lr", 1)).name == run(("lr", 1.0)).name


# ---- tables and figures ----

RECORDS = pd.DataFrame([{"system": "ViT", "top1": 40.0}])
OTHERS = pd.DataFrame([{"name": "ViT"}])
MAPS, PICTURE = {"softmax": torch.rand(17, 17)}, BYTES[0]
look_from = partial(figures.attention_maps, MAPS, Grid(4, 4, 1))

SHOW = [
    (lambda: tables.plan("ViT"), TypeError, r"runs: expected Iterable, got 'ViT'"),
    (lambda: tables.results([RUN]), TypeError, r"records: expected DataFrame, got \[Run\("),
    (lambda: tables.results(OTHERS), BadInput, r"unknown column 'system'; legal: name"),
    (
        lambda: tables.results(RECORDS, "top9"),
        BadInput,
        r"unknown quantity 'top9'; legal: .*top1_best",
    ),
    (lambda: notebook.gap(RECORDS, "ViT", "ViM"), BadInput, r"unknown system 'ViM'"),
    (lambda: figures.curves(None), TypeError, r"records: expected DataFrame, got None"),
    (
        lambda: figures.curves(RECORDS, "top9"),
        BadInput,
        r"unknown quantity 'top9' \(did you mean top1",
    ),
    (lambda: figures.curves(OTHERS), BadInput, r"unknown column 'system'"),
    (
        lambda: figures.tradeoff(RECORDS, "memory"),
        BadInput,
        r"unknown quantity 'memory'; legal: top1",
    ),
    (lambda: figures.tradeoff(RECORDS, save=5), TypeError, r"save: expected str or Path, got 5"),
    (lambda: figures.cost(OTHERS), BadInput, r"unknown column 'tokens'; legal: name"),
    (lambda: figures.images(PICTURE), BadInput, r"1 or 3, height, width\), got \(3, 8, 8\)"),
    (lambda: figures.images(BYTES[:0]), BadInput, r"got \(0, 3, 8, 8\)"),
    (lambda: figures.images([1]), TypeError, r"batch: expected Tensor, got \[1\]"),
    (lambda: figures.tokens(PICTURE, 0), BadInput, r"patch: expected at least 1, got 0"),
    (lambda: figures.tokens(PICTURE, 3), BadInput, r"patch: expected to divide 8 x 8, got 3"),
    (lambda: look_from(query=(9, 0)), BadInput, r"query: expected a place of Grid\(.*got \(9, 0\)"),
    (lambda: look_from(query=5), TypeError, r"query: expected tuple, got 5"),
    (lambda: figures.attention_maps(MAPS, 17), TypeError, r"grid: expected tuple, got 17"),
    (lambda: tables.machine(5), TypeError, r"profile: expected a name, got 5"),
    (lambda: figures.kind("ViM"), BadInput, r"unknown system 'ViM'"),
    (lambda: figures.color(5), TypeError, r"system: expected a name, got 5"),
    (lambda: notebook.source("ViX"), TypeError, r"expected, got str"),
    (lambda: claims.judgeable(5), TypeError, r"rows: expected Iterable, got 5"),
    (lambda: claims.judgeable(["x"]), TypeError, r"claim: expected Mapping, got 'x'"),
    (lambda: claims.runs([{}]), TypeError, r"rows: expected DataFrame, got \[\{\}\]"),
]


@cases(SHOW)
def test_show(case):
    raises(case)


# ---- the command line ----

QUICK = ["train", "ViT", "--profile", "quick"]
COMMANDS = [
    ([], "the following arguments are required"),
    (["vanish"], "invalid choice: 'vanish'"),
    (["list", "--profile"], "argument --profile: expected one argument"),
    (["list", "--sizes"], "unrecognized arguments: --sizes"),
    ([*QUICK, "--seed", "one"], "argument --seed: invalid int value: 'one'"),
    ([*QUICK, "--seed", "9999999999"], "seed: expected less than 2**31, got 9999999999"),
    ([*QUICK, "--workers", "1.5"], "argument --workers: invalid int value: '1.5'"),
    ([*QUICK, "--workers", "-3"], "--workers: expected at least 1, got -3"),
    ([*QUICK, "--minutes", "soon"], "argument --minutes: invalid float value: 'soon'"),
    ([*QUICK, "--minutes", "nan"], "--minutes: expected more than 0, got nan"),
    ([*QUICK, "--minutes", "-1"], "--minutes: expected more than 0, got -1"),
    ([*QUICK, "--recipe", "Fair"], "unknown recipe 'Fair' (did you mean fair?)"),
    ([*QUICK, "--device", "meta"], "device 'meta'"),
    ([*QUICK, "--data", "/nowhere", "--set", "dataset=cifar10"], "no CIFAR-10 in /nowhere"),
    ([*QUICK, "--set", "=3"], "unknown setting ''"),
    ([*QUICK, "--set", "epoch=3"], "unknown setting 'epoch' (did you mean epochs?)"),
    ([*QUICK, "--set", "epochs=true"], "epochs: expected a whole number, got True"),
    ([*QUICK, "--set", "lr=NaN"], "lr: expected at least 0 and less than inf, got nan"),
    ([*QUICK, "--set", "dataset=mnist"], "unknown dataset 'mnist'"),
    ([*QUICK, "--set", "train_images=9999"], "train: expected at most 1437 images, got 9999"),
    ([*QUICK, "--set", "epochs=1", "--set", "epochs=2"], "once each, got ('epochs', 2)"),
    (["predict", "ViT"], "the following arguments are required: image"),
    (["predict", "ViM", "image.png"], "unknown system 'ViM'"),
    (["predict", "ViT", "image.png", "--seed", "-1"], "seed: expected at least 0, got -1"),
    (["predict", "ViT", "image.png", "--profile", "Quick"], "did you mean quick?"),
    (["reproduce", "--workers", "0"], "--workers: expected at least 1, got 0"),
]


@pytest.mark.parametrize(("arguments", "message"), COMMANDS, ids=[m for _, m in COMMANDS])
def test_commands(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("vixlib.paper.cli.queue", lambda profile: [])  # nothing to reproduce
    assert main(arguments) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert error.startswith("vix: ")
    assert message in error


def test_an_image_that_cannot_be_read(root, capsys):
    files(RUN).weights.parent.mkdir(parents=True)
    weights = files(Run("FNet", "quick")).weights
    training.perform(RUN)
    files(RUN).weights.rename(weights)
    image = root / "image.png"
    for content in (b"", b"text", b"\x89PNG\r\n\x1a\n" + b"\0" * 40):
        image.write_bytes(content)
        assert main(["predict", "FNet", str(image), "--profile", "quick"]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"vix: cannot read the image {image}: ")
        assert error.count("\n") == 1
    assert main(["predict", "FNet", str(root), "--profile", "quick"]) == 2
    weights.unlink(), files(RUN).record.unlink()


# ---- the rule itself ----


def test_good_input_passes():
    """Edges that are legal, and keep being so."""
    assert fit(MODEL, DIGITS, epochs=1, lr=0, weight_decay=0, batch=30, watch=10, seed=2**31 - 1)
    assert run(("batch", None)).settings["batch"] is not None
    assert run(("train_images", None)).settings["train_images"] is None
    assert len(runs(iter(list_systems()), "quick")) == len(list_systems())  # any iterable


def test_checked_keeps_name_and_signature():
    assert fit.__name__ == "fit"
    assert fit.__doc__.startswith("Train a model")

    @checked
    def both(size: int | None = None, *rest: int, **more: int):
        return size, rest, more

    assert both() == (None, (), {})
    assert both(1, 0, a="any") == (1, (0,), {"a": "any"})
    with pytest.raises(BadInput, match="size: expected at least 1"):
        both(size=0)
