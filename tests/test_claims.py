"""figures/claims.csv: every claim can be judged, and every verdict can come out."""

import shutil

import pandas as pd
import pytest

from vixlib import list_systems, paths
from vixlib.errors import BadInput
from vixlib.paper import claims
from vixlib.paper.runs import Run

SAID = {  # what the abstracts assert, in a few words, and the rows that hold it
    "transformers need more than convolutional networks": ["convnet-accuracy", "convnet-compute"],
    "linear attention is more accurate": ["linear-accuracy"],
    "and takes fewer resources": ["linear-memory", "linear-compute"],
    "and far fewer parameters": ["fewer-parameters"],
    "longer sequences": ["longer-sequences"],
    "seven times less memory": ["seven-times"],
    "still less for FNet and mixers": ["mixers-memory"],
    "convolutions raise accuracy at the same size": ["convolution-accuracy", "convolution-size"],
    "LeViT keeps its accuracy for less": ["levit-accuracy", "levit-memory"],
    "CCT keeps its accuracy for less": ["cct-accuracy", "cct-memory"],
    "CvT keeps its accuracy for less": ["cvt-accuracy", "cvt-memory"],
    "RoPE raises accuracy at the same size": ["rope-accuracy", "rope-size"],
    "limited data and computing": ["limited-data", "limited-computing"],
}
ROW = {
    "claim": "mine",
    "says": "ViN is better than ViT.",
    "source": "me",
    "why": "to test it",
    "profile": "paper",
    "dataset": "cifar10",
    "quantity": "top1",
    "better": "ViN",
    "worse": "ViT",
    "test": "difference > margin",
    "margin": "0",
    "seeds": "3",
}


def row(**changed) -> dict:
    return claims.judgeable([ROW | changed]).iloc[0].to_dict()


def records(quantity: str = "top1", status: str = "read", recipe: str = "fair", **values):
    """Hand-made records of `paper`: a list of numbers for each system, a seed each."""
    same = {"profile": "paper", "status": status}
    return pd.DataFrame(
        {"name": Run(name, "paper", recipe, seed).name, quantity: value, **same}
        for name, own in values.items()
        for seed, value in enumerate(own)
    )


@pytest.fixture(scope="module")
def ledger():
    return claims.ledger()


def test_the_ledger_is_whole(ledger):
    assert list(ledger) == list(claims.COLUMNS)
    assert ledger["claim"].is_unique
    assert pd.api.types.is_float_dtype(ledger["margin"])
    assert ledger["why"].str.len().min() > 20
    named = {name for key in ("better", "worse") for text in ledger[key] for name in text.split()}
    assert named <= set(list_systems())
    assert (ledger["profile"] == "paper").all()  # laptop's records were there before it


@pytest.mark.parametrize("sentence", SAID)
def test_every_sentence_is_covered(sentence, ledger):
    assert set(SAID[sentence]) <= set(ledger["claim"])


def test_accuracy_takes_several_seeds_and_memory_one(ledger):
    several = ledger["quantity"] == "top1"
    assert (ledger.loc[several, "seeds"] >= 3).all()
    assert (ledger.loc[~several, "seeds"] == 1).all()


T = [60.0, 61.0, 62.0]  # an interval of ±2.5, and of ±3.5 for a difference of two such


@pytest.mark.parametrize(
    ("change", "n", "expected"),
    [
        ({}, [70.0, 71.0, 72.0], "holds"),
        ({}, [62.0, 63.0, 64.0], "not resolved"),
        ({}, [50.0, 51.0, 52.0], "does not hold"),
        ({"margin": "8"}, [70.0, 71.0, 72.0], "not resolved"),
        ({"margin": "-4"}, T, "holds"),
        ({"test": "|difference| <= margin", "margin": "4"}, T, "holds"),
        ({"test": "|difference| <= margin", "margin": "3"}, T, "not resolved"),
        ({"test": "|difference| <= margin", "margin": "3"}, [50.0, 51.0, 52.0], "does not hold"),
        ({}, [70.0, 71.0], "not tested yet"),
        ({}, [], "not tested yet"),
    ],
)
def test_accuracy(change, n, expected):
    assert claims.verdict(row(**change), records(ViT=T, ViN=n))[0] == expected


def test_the_interval_is_that_of_the_difference():
    _, numbers = claims.verdict(row(), records(ViT=T, ViN=[70.0, 71.0, 72.0]))
    assert numbers == "ViN − ViT: +10.0 ± 3.5"  # 4.303 x sqrt(1/3 + 1/3)


@pytest.mark.parametrize(
    ("n", "expected"), [(63.5, "holds"), (62.0, "not resolved"), (56.0, "does not hold")]
)
def test_one_seed_has_the_noise_of_one_where_the_ledger_asks_for_one(n, expected):
    have = records(ViT=[60.0], ViN=[n])
    assert claims.verdict(row(seeds="1"), have)[0] == expected
    assert claims.verdict(row(), have)[0] == "not tested yet"


def test_claims_of_memory_are_decided_by_bytes_of_a_step(ledger, tmp_path, monkeypatch):
    """Beside the fused softmax and the written-out one, from numbers made up here."""
    file = tmp_path / "step_memory.csv"
    lines = "ViT,fused,8,200", "ViT,written out,8,900", "ViN,fused,8,300", "FNet,fused,8,150"
    file.write_text("\n".join(["system,softmax,images,megabytes", *lines]) + "\n")
    monkeypatch.setattr(claims.paths, "shipped", lambda name: tmp_path / name)
    less = {"test": "ratio <= margin", "margin": "0.9", "seeds": "1"}
    nothing = records(ViT=[])
    judged = claims.verdict(row(**less, quantity="step_mb"), nothing)
    assert judged == ("does not hold", "ViN / ViT: 1.500")
    judged = claims.verdict(row(**less, quantity="step_mb_written_out"), nothing)
    assert judged == ("holds", "ViN / ViT: 0.333")
    mixer = less | {"better": "FNet", "worse": "ViN", "quantity": "step_mb_written_out"}
    assert claims.verdict(row(**mixer), nothing) == ("holds", "FNet / ViN: 0.500")


def test_no_claim_of_memory_waits(ledger):
    own = ledger[ledger["quantity"].isin(claims.STEPS)]
    assert len(own) > 10
    assert not claims.runs(own)
    for name, asked in own.groupby("claim"):
        said = claims.verdict(asked.iloc[0], records(ViT=[]))[0]
        assert said in ("holds", "does not hold"), name
    both = own.assign(of=own["claim"].str.removesuffix("-fused")).groupby("of")["quantity"]
    split = both.agg(set).drop("mixers-memory")  # which compares no softmax
    assert all(found == set(claims.STEPS) for found in split)


def test_memory_decides_by_one_record():
    less = {"quantity": "peak_memory_mb", "test": "ratio <= margin", "seeds": "1"}
    have = records("peak_memory_mb", ViT=[700.0], ViN=[100.0], ViP=[300.0])
    assert claims.verdict(row(**less, margin="0.2"), have) == ("holds", "ViN / ViT: 0.143")
    assert claims.verdict(row(**less, margin="0.1"), have)[0] == "does not hold"
    both = {"better": "ViN ViP", "worse": "ViT ViT", "margin": "0.2"}
    assert claims.verdict(row(**less, **both), have)[0] == "does not hold"
    both["test"] = "any " + less.pop("test")
    assert claims.verdict(row(**less, **both), have)[0] == "holds"
    both["margin"] = "0.1"
    assert claims.verdict(row(**less, **both), have)[0] == "does not hold"


def test_every_pair_counts():
    both = row(better="ViN ViP", worse="ViT ViT")
    above, near, under = [70.0, 71.0, 72.0], [62.0, 63.0, 64.0], [50.0, 51.0, 52.0]
    for n, p, expected in [
        (above, above, "holds"),
        (above, near, "not resolved"),
        (above, under, "does not hold"),
        (near, under, "does not hold"),
        (above, [], "not tested yet"),
    ]:
        assert claims.verdict(both, records(ViT=T, ViN=n, ViP=p))[0] == expected


def test_exact_counts_need_no_records():
    none = pd.DataFrame()
    size = {"quantity": "parameters", "test": "ratio <= margin", "margin": "1", "seeds": "1"}
    assert claims.verdict(row(**size), none) == ("does not hold", "ViN / ViT: 1.001")
    assert claims.verdict(row(**size, worse="ViL"), none)[0] == "holds"
    cost = size | {"quantity": "flops"}
    assert claims.verdict(row(**cost), none) == ("holds", "ViN / ViT: 0.477")


ABOVE = [70.0, 71.0, 72.0]


@pytest.mark.parametrize(
    "other",
    [{"status": "stale"}, {"status": "missing"}, {"status": "diverged"}, {"recipe": "as-released"}],
)
def test_other_records_do_not_count(other):
    have = pd.concat([records(ViT=T), records(ViN=ABOVE, **other)])
    assert claims.verdict(row(), have)[0] == "not tested yet"


def test_a_diverged_run_is_not_tested_by_what_it_cost():
    less = {"quantity": "peak_memory_mb", "test": "ratio <= margin", "margin": "1", "seeds": "1"}
    have = [records("peak_memory_mb", ViT=[700.0]), records("peak_memory_mb", ViN=[100.0])]
    assert claims.verdict(row(**less), pd.concat(have))[0] == "holds"
    have[1]["status"] = "diverged"
    assert claims.verdict(row(**less), pd.concat(have))[0] == "not tested yet"


def test_one_diverged_seed_leaves_a_claim_untested():
    lost = records(status="diverged", ViN=[None] * 3)[2:]
    have = pd.concat([records(ViT=T, ViN=ABOVE[:2]), lost])
    word, numbers = claims.verdict(row(), have)
    assert (word, numbers) == ("not tested yet", "3 of each asked, too few of ViN")


def test_other_profiles_and_doubles_do_not_count():
    have = records(ViT=T, ViN=ABOVE)
    assert claims.verdict(row(), have)[0] == "holds"
    assert claims.verdict(row(), have.assign(profile="laptop"))[0] == "not tested yet"
    again = pd.concat([records(ViT=T), *[records(ViN=ABOVE[:1])] * 3])
    assert claims.verdict(row(), again)[0] == "not tested yet"  # one seed, thrice


def test_only_as_many_seeds_as_were_asked_count():
    more = records(ViT=T, ViN=[*ABOVE, 0.0])
    assert claims.verdict(row(), more) == claims.verdict(row(), more[:-1])


def test_overrides_of_a_row():
    few = row(dataset="cifar10 train_images=5000,epochs=250")
    have = records(ViT=T, ViN=ABOVE)
    assert claims.verdict(few, have)[0] == "not tested yet"
    have["name"] += ".epochs=250.train_images=5000"
    assert claims.verdict(few, have)[0] == "holds"


def test_runs_are_those_that_a_ledger_needs(ledger):
    runs = claims.runs(ledger)
    assert len(set(runs)) == len(runs)
    assert {run.recipe for run in runs} == {"fair"}
    few = [run for run in runs if run.overrides]
    assert {run.settings["train_images"] for run in few} == {5000}
    full = Run("ViT", "paper").settings["epochs"] * 50_000
    assert {run.settings["epochs"] * 5000 for run in few} == {full}  # as many steps
    assert not claims.runs(ledger[ledger["quantity"].isin(["parameters", "flops"])])
    assert len(claims.runs(claims.judgeable([ROW]))) == 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"better": "ViZ"}, "unknown system 'ViZ'"),
        ({"better": "ViN ViP"}, "pairs"),
        ({"profile": "huge"}, "unknown profile"),
        ({"dataset": "digits"}, "dataset: its profile trains on cifar10"),
        ({"dataset": "cifar10 layers=5"}, "unknown setting"),
        ({"dataset": "cifar10 epochs=few"}, "few"),
        ({"quantity": "speed"}, "unknown quantity"),
        ({"test": "looks good"}, "unknown test"),
        ({"test": "ratio <= margin"}, "unknown quantity of a ratio"),
        ({"margin": "small"}, "small"),
        ({"margin": "nan"}, "margin"),
        ({"seeds": "0"}, "seeds"),
        ({"seeds": "some"}, "some"),
        ({"why": " "}, "expected a text in each of"),
        ({"extra": "more"}, "expected a text in each of"),
        ({"claim": "first"}, "another row"),
    ],
)
def test_a_bad_row_is_named(change, said):
    bad = {"claim": "second"} | change
    with pytest.raises(BadInput, match=rf"row 2 \({bad['claim']}\).*{said}"):
        claims.judgeable([ROW | {"claim": "first"}, ROW | bad])


def test_a_bad_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "figures").mkdir()
    file = shutil.copy(paths.shipped("claims.csv"), tmp_path / "figures")
    monkeypatch.setattr(paths, "CHECKOUT", tmp_path)
    text = (tmp_path / "figures" / "claims.csv").read_text()
    assert len(claims.ledger()) == text.count("\n") - 1
    for old, new in (("ViL ViP ViN", "ViL ViP ViM"), (",0.154,", ",a seventh,")):
        with open(file, "w") as changed:
            changed.write(text.replace(old, new))
        with pytest.raises(BadInput, match="claims, row"):
            claims.ledger()
