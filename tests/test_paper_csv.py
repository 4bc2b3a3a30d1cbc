"""figures/paper.csv: every published or logged number, tidy and with its source."""

import pandas as pd
import pytest

from vixlib import list_systems, paths
from vixlib.systems import SYSTEMS

QUOTED = {  # systems that we do not build
    *("2DFNet", "ViMEA", "CPV", "CLTV", "CNV"),
    *("WaveMix", "WaveMix-best", "WaveMix-Lite-64/6", "WaveMix-Lite-32/7"),
}
KEY = ["system", "dataset", "quantity"]
UNITS = {
    "top1_best": "%",
    "top1_last": "%",
    "top1_published": "%",
    "top5_best": "%",
    "train_accuracy_last": "%",
    "epoch_best": "epoch",
    "epochs_logged": "epochs",
    "epochs_in_loop": "epochs",
    "seconds_per_epoch": "s",
    "forward_backward_mb": "MB",
    "batch": "images",
    "parameters_logged": "parameters",
    "parameters_released": "parameters",
    "parameters_published": "parameters",
    "parameters_weight_bias": "parameters",
    "parameters_adapted": "parameters",
    "attention_parameters_released": "parameters",
    "mmacs_released": "M MACs",
    "mmacs_adapted": "M MACs",
    "attention_mmacs_released": "M MACs",
}


@pytest.fixture(scope="module")
def paper():
    return pd.read_csv(paths.shipped("paper.csv"), keep_default_na=False)


@pytest.fixture(scope="module")
def value(paper):
    return paper.set_index(KEY)["value"]


def test_tidy(paper):
    assert list(paper) == [*KEY, "value", "unit", "source", "note"]
    assert not paper.duplicated(KEY).any()
    assert pd.api.types.is_numeric_dtype(paper["value"])
    assert (paper["value"] > 0).all()
    assert set(paper["dataset"]) == {"cifar10", "tiny-imagenet"}
    assert paper["quantity"].map(UNITS).equals(paper["unit"])


def test_sourced(paper):
    assert paper["source"].str.fullmatch(r"(log|run|repo|PWC|web|WaveMix).*, paper\.md \d\w?").all()


def test_systems_known(paper):
    assert set(paper["system"]) <= {*list_systems(), *QUOTED}
    unknown = {row.name for row in SYSTEMS.values() if row.note in ("ours", "baseline")}
    unknown |= {"LeViT", "LeViN", "LeViP", "CvT", "CvN"}  # the authors logged others by these names
    assert set(list_systems()) - set(paper["system"]) == unknown


def test_plausible(paper):
    assert (paper.loc[paper["unit"] == "%", "value"] < 100).all()
    whole = paper["unit"].isin(["parameters", "images", "epoch", "epochs"])
    assert (paper.loc[whole, "value"] % 1 == 0).all()
    wide = paper.pivot(index=KEY[:2], columns="quantity", values="value")
    for smaller, larger in [
        ("top1_last", "top1_best"),
        ("top1_best", "top5_best"),
        ("epoch_best", "epochs_logged"),
        ("epochs_logged", "epochs_in_loop"),
        ("parameters_weight_bias", "parameters_released"),
    ]:
        both = wide[[smaller, larger]].dropna()
        assert len(both)
        assert (both[smaller] <= both[larger]).all(), smaller


def test_logs_printed_weights_and_biases_only(paper):
    wide = paper.pivot(index=KEY[:2], columns="quantity", values="value")
    both = wide[["parameters_logged", "parameters_weight_bias"]].dropna()
    assert len(both) == 20
    assert both["parameters_logged"].equals(
        both["parameters_weight_bias"].rename("parameters_logged")
    )


def test_caveats_are_noted(paper):
    note = paper.set_index(KEY)["note"]
    assert "only two epochs" in note["ViL", "cifar10", "top1_best"]
    assert "continued run" in note["ViP", "cifar10", "top1_best"]
    assert "continued run" in note["HybridViP-RoPE", "cifar10", "top1_best"]
    assert "saved weights" in note["LeViN-released", "tiny-imagenet", "top1_best"]
    assert note[:, :, "top1_best"].str.contains("best epoch chosen on").all()


@pytest.mark.parametrize(
    ("system", "dataset", "quantity", "expected"),
    [
        ("ViT", "cifar10", "top1_best", 56.82),
        ("ViT-RoPE", "cifar10", "seconds_per_epoch", 607),
        ("HybridViP-RoPE", "cifar10", "top1_best", 76.55),
        ("HybridViT", "cifar10", "parameters_released", 754_506),
        ("ViN", "cifar10", "mmacs_released", 889.36),
        ("ViL", "cifar10", "parameters_logged", 415_754),
        ("HybridViP", "cifar10", "batch", 128),
        ("FNet", "cifar10", "epochs_in_loop", 100),
        ("CCN", "cifar10", "top1_published", 83.36),
        ("CvP", "cifar10", "top1_published", 83.19),
        ("CvN-released", "tiny-imagenet", "top1_best", 45.48),
        ("LeViP-released", "tiny-imagenet", "top5_best", 68.29),
        ("MLPMixer", "tiny-imagenet", "parameters_released", 8_558_664),
    ],
)
def test_spot_checks(value, system, dataset, quantity, expected):
    assert value[system, dataset, quantity] == expected


@pytest.mark.parametrize("system", ["ViN", "HybridViP", "HybridViN", "FNet", "MLPMixer"])
def test_what_is_not_known_is_absent(value, system):
    assert (system, "cifar10", "top1_best") not in value.index
