"""What `make proof` tries is there, and is told as it was seen."""

import json
from pathlib import Path

import proof
import pytest
import trials_mutants
import trials_tool
from proof import Trial


def test_a_mutant_takes_the_place_of_what_stands_once():
    name = '"""Layers around'
    mutant = trials_mutants.Mutant("other name", "vixlib/layers.py", name, '"""Around')
    text = (proof.ROOT / mutant.file).read_text()
    assert trials_mutants.mutated(mutant) == text.replace(name, '"""Around')
    twice = mutant._replace(old="import")
    with pytest.raises(ValueError, match=r"other name: \d+ times in vixlib/layers\.py"):
        trials_mutants.mutated(twice)


def test_a_mutant_whose_place_has_gone_is_an_error():
    gone = trials_mutants.Mutant("gone", "vixlib/layers.py", "not there", "")
    with pytest.raises(ValueError, match=r"gone: 0 times in vixlib/layers\.py"):
        trials_mutants.mutated(gone)


def test_nothing_is_tried_before_every_mutant_applies(elsewhere, monkeypatch, capsys):
    head = '"""Layers around'
    broken = [
        trials_mutants.Mutant("gone", "vixlib/layers.py", "not there", ""),
        trials_mutants.Mutant("no Python", "vixlib/layers.py", head, "("),
        trials_mutants.Mutant("the same", "vixlib/layers.py", head, head),
        trials_mutants.Mutant("good", "vixlib/layers.py", head, '"""Around'),
    ]
    monkeypatch.setattr(trials_mutants, "mutants", lambda: broken)
    monkeypatch.setattr(proof, "trials", lambda: pytest.fail("tried"))
    monkeypatch.setattr("sys.argv", ["proof.py"])
    assert proof.main() == 2
    first, *wrong = capsys.readouterr().err.splitlines()
    assert first == "mutants.toml must follow the library first:"
    assert [line.split(":")[0] for line in wrong] == ["gone", "no Python", "the same"]


def test_mistakes_are_named_once_and_explained():
    listed = trials_mutants.mutants()
    assert len({mutant.name for mutant in listed}) == len(listed) == 143
    assert sum(bool(mutant.survives) for mutant in listed) == 2


@pytest.mark.parametrize(
    ("killed_by", "survives", "told"),
    [("a test", "", True), (None, "", False), (None, "equal", True), ("a test", "equal", False)],
)
def test_survivors_must_be_explained_and_explained_ones_survive(killed_by, survives, told):
    assert trials_mutants.as_told({"killed_by": killed_by, "survives": survives}) is told


def test_the_page_is_what_the_results_say():
    assert proof.PAGE.read_text() == proof.page(proof.load())


def test_the_tests_that_noticed_are_still_there():
    tests = Path(__file__).parent
    for name, result in proof.load().items():
        if killed_by := result["seen"].get("killed_by"):
            file, _, test = killed_by.partition("::")
            assert f"def {test.split('[')[0]}(" in (tests / file).read_text(), name


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(proof, "RESULTS", tmp_path / "proof.json")
    monkeypatch.setattr(proof, "PAGE", tmp_path / "README.md")
    monkeypatch.setattr(trials_mutants, "mutants", list)  # theirs are looked at in `make proof`
    monkeypatch.setattr(trials_tool, "stale", list)
    return tmp_path


def test_what_was_tried_is_not_tried_again(elsewhere, monkeypatch, capsys):
    ran = []

    def stop():
        raise KeyboardInterrupt

    def run(name, then=dict):
        ran.append(name)
        return then()

    order = {
        "alone/a": Trial(lambda: run("a"), lambda seen: True),
        "alone/b": Trial(lambda: run("b", lambda: 1 / 0), lambda seen: True),
        "alone/c": Trial(lambda: run("c", stop), lambda seen: True),
    }
    monkeypatch.setattr(proof, "trials", lambda: order)
    monkeypatch.setattr("sys.argv", ["proof.py"])
    with pytest.raises(KeyboardInterrupt):
        proof.main()
    assert ran == ["a", "b", "c"]
    order["alone/c"] = Trial(lambda: run("c"), lambda seen: True)
    assert proof.main() == 1
    assert ran == ["a", "b", "c", "b", "c"]  # b did not hold
    results = proof.load()
    assert [result["held"] for result in results.values()] == [True, False, True]
    assert "ZeroDivisionError" in results["alone/b"]["seen"]["error"]
    assert "alone/b" in proof.PAGE.read_text()
    order["alone/a"] = order["alone/a"]._replace(files=("vixlib/errors.py",))  # other code
    proof.main()
    assert ran[5:] == ["a", "b"]


def test_a_trial_is_a_line(elsewhere):
    results = {"kill/ä": {"held": True, "seen": {"a": [1, 2]}}, "alone/b": {"held": False}}
    text = proof.one_a_line(results)
    assert json.loads(text) == results
    assert [line.split(":")[0] for line in text.splitlines()] == [
        "{",
        '"kill/ä"',
        '"alone/b"',
        "}",
    ]
    assert json.loads(proof.one_a_line({})) == {}
    committed = Path(proof.__file__).with_name("proof.json").read_text()
    assert committed == proof.one_a_line(json.loads(committed))


def test_only_and_minutes(elsewhere, monkeypatch, capsys):
    order = {name: Trial(dict, lambda seen: True) for name in ("kill/a", "alone/a")}
    monkeypatch.setattr(proof, "trials", lambda: order)
    monkeypatch.setattr("sys.argv", ["proof.py", "--minutes", "0"])
    assert proof.main() == 0
    assert proof.load() == {}
    monkeypatch.setattr("sys.argv", ["proof.py", "--only", "kill/"])
    proof.main()
    assert list(proof.load()) == ["kill/a"]


def test_a_comment_does_not_ask_for_all_again(tmp_path, monkeypatch):
    monkeypatch.setattr(proof, "ROOT", tmp_path)
    trial, seen = Trial(dict, bool, ("file.py",)), []
    for text in ("x = 1\n", "x  = 1  # why\n", "x = 2\n"):
        (tmp_path / "file.py").write_text(text)
        seen.append(proof.source(trial))
    assert seen[0] == seen[1] != seen[2]
