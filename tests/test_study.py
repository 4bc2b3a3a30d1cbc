"""The register: every hypothesis can be decided, and every verdict come out, of made-up records."""

import math

import numpy as np
import pandas as pd
import pytest

from vixlib.errors import BadInput
from vixlib.paper import runs, study
from vixlib.paper.runs import Run, arm, queue, registered

REGISTER = study.register().set_index("hypothesis", drop=False)
NAMED = [(run, run.name) for run in queue("study")]


def simulated(effects, noise=0.3, seed=0):
    """Records of all registered runs: 60 points, what each system adds, a shift a seed, noise."""
    draw = np.random.default_rng(seed)
    shifts = draw.normal(0, 1, 3)
    rows = []
    for run, name in NAMED:
        top1 = 60 + shifts[run.seed] + noise * draw.normal() + effects(run)
        rows.append({"name": name, "seed": run.seed, "status": "read", "top1": top1})
    return pd.DataFrame(rows)


def nothing(run):
    return 0.0


def test_a_text_names_a_run():
    run = arm("ViN:epochs=4:mechanism.padded=true:validation_images=null", "study", "annealed", 2)
    changes = (("epochs", 4), ("mechanism.padded", True), ("validation_images", None))
    assert run == Run("ViN", "study", "annealed", 2, changes)
    assert run.build().blocks[0][1].mechanism.padded
    with pytest.raises(BadInput, match=r"mechanism\.pad"):
        arm("ViN:mechanism.pad=true", "study", "annealed", 0)


def test_parts_are_trained_in_their_order_seed_by_seed():
    a = registered()["A"]
    assert len(a) == len(set(a)) == 48
    assert [run.seed for run in a] == [0] * 16 + [1] * 16 + [2] * 16
    assert {run.settings["epochs"] for run in a} == {8}
    order = [run for part in registered().values() for run in part]
    assert queue("study") == list(dict.fromkeys(order))
    assert len({run.name for run in queue("study")}) == len(queue("study"))
    for run in queue("study"):
        watches = run.recipe == "as-released"
        assert (run.settings["validation_images"] is None) == watches


@pytest.mark.parametrize("name", REGISTER.index)
def test_every_hypothesis_can_be_decided(name):
    row = REGISTER.loc[name].to_dict()
    records = simulated(nothing)
    effect = study.effect(row, records)
    assert math.isfinite(effect.value + effect.half)
    assert effect.pairs == row["seeds"] == 3
    needed = min(run.name for _, of in study.arms(row) for run in of)
    assert study.effect(row, records[records["name"] != needed]) is None
    records.loc[records["name"] == needed, "status"] = "stale"
    assert study.effect(row, records) is None


def test_effects_are_differences_of_means():
    """Rotary adds 2, convolution 1 but 0.5 with Nyström; Linformer takes 3."""

    def effects(run):
        hybrid, rotary = "Hybrid" in run.system, "RoPE" in run.system
        nystrom, linformer = ("Vi" + letter in run.system for letter in "NL")
        return 2 * rotary + hybrid * (0.5 if nystrom else 1) - 3 * linformer

    exact = simulated(effects, noise=0)

    def value(name):
        return study.effect(REGISTER.loc[name].to_dict(), exact).value

    assert value("rope") == pytest.approx(2)
    assert value("convolution") == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert value("linformer-better") == pytest.approx(-3)
    assert value("nystrom-better") == pytest.approx(-0.25)  # the mean over embeddings
    assert value("convolution-for-nystrom") == pytest.approx(-0.5)
    assert value("rope-without-convolution") == pytest.approx(0)
    assert value("convolution-4") == pytest.approx(0.75)


def test_sums_of_arms_are_taken_seed_by_seed():
    """RoPE gains 12 points as released and 5 from 0.02: more than half goes with the spread."""

    def effects(run):
        small = run.settings["std"] == 0.02
        return 5 * small + ("RoPE" in run.system) * (5 if small else 12)

    exact = simulated(effects, noise=0)
    found = study.effect(REGISTER.loc["rope-by-spread"].to_dict(), exact)
    assert found.value == pytest.approx(12 - 2 * 5)
    assert found.agreeing == 3


def test_verdicts_follow_the_effects():
    def effects(run):
        return 3.0 * ("Hybrid" in run.system) - 3.0 * ("RoPE" in run.system)

    found = study.verdicts(simulated(effects, noise=0.15)).set_index("hypothesis")
    assert found.loc["convolution", "verdict"] == found.loc["convolution", "overall"] == "holds"
    assert found.loc["rope", "verdict"] == "does not hold"
    assert found.loc["nystrom-keeps", "verdict"] == "holds"
    assert (found["adjusted"] >= found["p"]).all()
    waiting = study.verdicts(simulated(nothing).iloc[:0])
    assert set(waiting["verdict"]) == set(waiting["overall"]) == {"not tested yet"}
    assert waiting["effect"].isna().all()


def test_a_verdict_may_depend_on_the_budget():
    def effects(run):
        return 3.0 * ("Hybrid" in run.system) * (1 if run.settings["epochs"] == 8 else -1)

    found = study.verdicts(simulated(effects, noise=0.05)).set_index("hypothesis")
    assert found.loc["convolution", "verdict"] == "holds"
    assert found.loc["convolution-4", "verdict"] == "does not hold"
    assert found.loc["convolution", "overall"] == "depends on the budget"
    assert found.loc["rope", "overall"] == found.loc["rope", "verdict"]


def test_what_is_not_registered_is_refused():
    row = REGISTER.loc["padding"].to_dict() | {"compares": "+ ViN:epochs=5 - ViN:epochs=4"}
    with pytest.raises(BadInput, match=r"padding: ViN\.cifar10.*epochs=5 is not registered"):
        study.arms(row)
    with pytest.raises(BadInput, match="part"):
        study.arms(row | {"part": "Z"})


def test_the_study_sees_all_of_cifar10():
    profile = runs.PROFILES["study"]
    assert (profile.train_images, profile.validation_images) == (None, 5000)
    assert profile.sizes == runs.PROFILES["laptop"].sizes
