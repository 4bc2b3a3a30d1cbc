"""The register: every hypothesis can be decided, and every verdict come out, of made-up records."""

import math

import numpy as np
import pandas as pd
import pytest

from vixlib.errors import BadInput
from vixlib.paper import figures, runs, study, training
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


def rotary(name):
    return "RoPE" in name


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
    own = records.set_index("name")["top1"]
    weighed = pd.DataFrame(
        {"seed": run.seed, "name": run.name, "part": weight * own[run.name]}
        for weight, of in study.arms(row)
        for run in of
    )
    lost = weighed.iloc[weighed["name"].argmin()]
    left = weighed[weighed["seed"] != lost["seed"]].groupby("seed")["part"].sum()
    for status in ("missing", "stale"):  # the seeds that are whole tell, without an interval
        records.loc[records["name"] == lost["name"], "status"] = status
        found = study.effect(row, records)
        assert found.value == pytest.approx(left.mean())
        assert found.pairs == 2
        assert math.isnan(found.half)
        assert math.isnan(found.p)
    records.loc[records["name"].isin(weighed["name"]), "top1"] = math.nan
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


def test_claims_with_other_margins_are_not_one_claim(monkeypatch):
    other = REGISTER.reset_index(drop=True)
    other.loc[other["hypothesis"] == "convolution-4", "margin"] = 0.5
    monkeypatch.setattr(study, "register", other.copy)

    def effects(run):
        return 3.0 * ("Hybrid" in run.system) * (1 if run.settings["epochs"] == 8 else -1)

    found = study.verdicts(simulated(effects, noise=0.05))
    for name, word in (("convolution", "holds"), ("convolution-4", "does not hold")):
        assert claim(found, name)["overall"] == claim(found, name)["verdict"] == word


def test_what_is_not_registered_is_refused():
    row = REGISTER.loc["padding"].to_dict() | {"compares": "+ ViN:epochs=5 - ViN:epochs=4"}
    with pytest.raises(BadInput, match=r"padding: ViN\.cifar10.*epochs=5 is not registered"):
        study.arms(row)
    with pytest.raises(BadInput, match="part"):
        study.arms(row | {"part": "Z"})
    for compares, said in [
        ("positions: rotary", "unknown factor 'positions'"),
        ("position: rotated", "unknown level 'rotated'"),
        ("mechanism: linformer", "unknown level 'linformer'"),  # not of this part
    ]:
        with pytest.raises(BadInput, match=said):
            study.arms(row | {"part": "C1", "compares": compares})


def test_a_factorial_weighs_all_its_arms():
    """A main effect is a mean of 8 minus a mean of 8; an interaction a difference of such."""

    def weights(name):
        weighed = study.arms(REGISTER.loc[name].to_dict())
        assert [len(runs) for _, runs in weighed] == [3] * 16
        return {runs[0].system: weight for weight, runs in weighed}

    rope = weights("rope")
    assert {name for name, weight in rope.items() if weight == 1 / 8} == {*filter(rotary, rope)}
    assert sum(rope.values()) == 0
    better = weights("nystrom-better")
    assert {better["ViN"], better["HybridViN-RoPE"]} == {1 / 4}
    assert {better["ViT"], better["HybridViT"]} == {-1 / 4}
    assert {better["ViL"], better["ViP"]} == {0}
    both = weights("convolution-for-nystrom")
    assert both["HybridViN"] == both["ViT-RoPE"] == 1 / 2
    assert both["ViN"] == both["HybridViT"] == -1 / 2
    assert both["HybridViL"] == 0
    effect = study.effect(REGISTER.loc["rope"].to_dict(), simulated(nothing))
    assert effect.freedom == 2 * 15


def test_the_study_sees_all_of_cifar10():
    profile = runs.PROFILES["study"]
    assert (profile.train_images, profile.validation_images) == (None, 5000)
    assert profile.sizes == runs.PROFILES["laptop"].sizes


def test_all_arms_of_a_part_tell_how_far_runs_spread():
    """Two arms at three seeds leave two degrees of freedom, the whole part a dozen times as many.

    An arm that lacks a seed says nothing yet; that of ViT stands in C1 and counts all the same.
    """
    records = simulated(nothing)
    row = REGISTER.loc["std-vit"].to_dict()
    arms = len(registered()["F"]) // 3 + 1
    assert study.effect(row, records).freedom == 2 * (arms - 1)
    fewer = records[~records["name"].str.contains("padded=true") | (records["seed"] < 2)]
    assert study.effect(row, fewer).freedom == 2 * (arms - 2)
    wanted = {run.name for _, runs in study.arms(row) for run in runs}
    alone = records[records["name"].isin(wanted)]
    wide = alone.assign(one=alone["name"].str.contains("std")).pivot_table("top1", "seed", "one")
    own = study.effect(row, alone)
    assert own.freedom == 2
    assert own.value == pytest.approx((wide[True] - wide[False]).mean())
    spread = (wide[True] - wide[False]).std()
    assert own.half == pytest.approx(4.302653 * spread / 3**0.5, rel=1e-6)


def claim(found, name):
    return found.set_index("hypothesis").loc[name].to_dict()


def test_a_sentence_follows_the_records():
    def hybrids_gain(sign):
        found = study.verdicts(simulated(lambda run: sign * 3.0 * ("Hybrid" in run.system), 0.15))
        return study.sentence(claim(found, "convolution"))

    gain, loss = hybrids_gain(1), hybrids_gain(-1)
    assert "Holds: +" in gain
    assert "in 3 of 3 seeds" in gain
    assert "Does not hold: −" in loss
    for text in (gain, loss):
        assert text.startswith("Convolutions in place of the linear embedding raise accuracy. ")
        assert "16 systems, 256 tokens, 8 epochs, 3 seeds" in text
    two = simulated(nothing)
    few = study.sentence(claim(study.verdicts(two[two["seed"] < 2]), "convolution"))
    assert "Not tested yet (2 of 3 seeds): " in few
    assert "±" not in few
    assert "`vix train --queue study`" in few
    none = study.sentence(claim(study.verdicts(two.iloc[:0]), "convolution"))
    assert "Not tested yet (16 systems" in none
    assert "points" not in none


def test_a_reader_s_table_has_each_effect_its_interval_and_scope():
    found = study.verdicts(simulated(lambda run: -2.04 * ("RoPE" in run.system), noise=0.2))
    table = study.told(found)
    assert list(table.columns) == ["effect", "95 % interval", "verdict", "scope"]
    assert len(table) == len(REGISTER)
    row, seen = table.loc[REGISTER.loc["rope", "says"]], claim(found, "rope")
    low, high = seen["effect"] - seen["half"], seen["effect"] + seen["half"]
    assert row["effect"] == f"−{abs(seen['effect']):.1f}"
    assert row["95 % interval"] == f"−{abs(low):.1f} to −{abs(high):.1f}"
    assert row["verdict"] == "does not hold"
    assert (
        table.loc[REGISTER.loc["padding", "says"], "scope"] == "ViN, 256 tokens, 4 epochs, 3 seeds"
    )
    records = simulated(nothing)
    empty = study.told(study.verdicts(records.iloc[:0]))
    assert set(empty["effect"]) == set(empty["95 % interval"]) == {""}
    one = study.told(study.verdicts(records[records["seed"] == 0]))
    assert set(one["verdict"]) == {"not tested yet (1 of 3 seeds)"}
    assert "" not in {*one["effect"]}
    assert set(one["95 % interval"]) == {""}


def test_seeds_that_are_not_whole_decide_nothing():
    """An effect of ten points in two of three seeds, without any noise, is not tested yet."""
    records = simulated(lambda run: 10.0 * ("Hybrid" in run.system), noise=0.01)
    lost = (records["name"].str.startswith("HybridViN.")) & (records["seed"] == 1)
    found = claim(study.verdicts(records[~lost]), "convolution")
    assert found["verdict"] == "not tested yet"
    assert found["overall"] == "not tested yet (2 of 3 seeds)"
    assert found["effect"] == pytest.approx(10, abs=0.1)
    assert math.isnan(found["adjusted"])


def test_costs_are_those_of_the_runs_that_are_there():
    records = simulated(nothing).assign(cpu_seconds=1800.0)
    records.loc[records["name"] == registered()["A"][0].name, "status"] = "missing"
    table = study.costs(records)
    assert table.loc["A", "runs"] == "47 of 48"
    assert table.loc["A", "core-hours"] == 23.5
    assert table.loc["0", "runs"] == "15 of 15"
    assert (study.costs(records.iloc[:0])["core-hours"] == 0).all()


def test_the_rate_is_that_of_the_rule():
    """The last row of the validation curve counts, never the test set; near 0.001 it is 0.001."""
    gain = {0.0005: 0.0, 0.001: 0.0, 0.002: 0.0}

    def records():
        rows = []
        for run in registered()["0"]:
            last = 40 + gain[run.settings["lr"]] + len(run.system) / 10
            curve = [{"epoch": 1, "top1": 99.0}, {"epoch": 2, "top1": last}]
            known = {"name": run.name, "system": run.system, "lr": run.settings["lr"]}
            rows.append(known | {"status": "read", "curve": curve, "top1": -last})
        return pd.DataFrame(rows)

    assert study.chosen_rate(study.rates(records())) == 0.001
    gain[0.002] = 0.08
    assert study.chosen_rate(study.rates(records())) == 0.001
    gain[0.002] = 0.12
    assert study.chosen_rate(study.rates(records())) == 0.002
    gain[0.0005] = 0.3
    assert study.chosen_rate(study.rates(records())) == 0.0005
    assert study.chosen_rate(study.rates(records().iloc[1:])) is None
    assert study.rates(records()).loc["ViT", 0.0005] == pytest.approx(40.6)


def test_a_rate_as_near_as_the_rule_says_is_near():
    means = pd.Series({0.0005: 40.0, 0.001: 40.5, 0.002: 40.75})  # no rounding
    table = pd.DataFrame([means] * 5)
    assert [study.chosen_rate(table, near=near) for near in (0.25, 0.125)] == [0.001, 0.002]


def test_what_follows_part_0_trains_at_the_rate_that_it_chose():
    """As soon as all of its records are there."""
    rate = study.chosen_rate(study.rates(training.read(registered()["0"])))
    after = [run for part in ("A", "C1", "F", "R", "H") for run in registered()[part]]
    assert rate is None or {run.settings["lr"] for run in after} == {rate}


@pytest.mark.parametrize("seeds", [3, 2, 0])
def test_a_forest_draws_tested_begun_and_untested(tmp_path, seeds, monkeypatch):
    records = simulated(lambda run: -2.0 * ("RoPE" in run.system))
    judged, drawn, finish = study.verdicts(records[records["seed"] < seeds]), [], figures._finish
    monkeypatch.setattr(
        figures, "_finish", lambda fig, save: drawn.append(fig) or finish(fig, save)
    )
    figures.forest(judged[judged["part"] == "A"], save=tmp_path / "forest.png")
    assert (tmp_path / "forest.png").stat().st_size > 10_000
    (ax,) = drawn[0].axes
    inner = {line.get_markerfacecolor() for line in ax.lines if line.get_marker() == "o"}
    assert ("none" in inner) == (seeds < 3)  # a ring while seeds are missing
