"""Mistakes made by a tool are made where they matter, tried, and told as they were seen."""

import proof
import pytest
import trials_tool
from proof import Trial

TOY = '''"""A toy."""

from os import environ

LIMIT = 3  # of something


def twice(x: int = 1, *, down: bool = False) -> int:
    """Two times, say 2."""
    if x > 100:
        got = f"{x + 1} of {LIMIT + 1}"
        raise ValueError(f"x: expected {1 + 1}, got {got}", 7)
    return 2 * x if not down else -2 * x


def counted(n):
    i = 0
    while i < n:
        i += 1
    return i


def untested(a, b):
    return max(a, b)
'''
TESTS = """
from toy import counted, twice

def test_twice():
    assert twice(3) == 6
    assert twice(3, down=True) == -6

def test_counted():
    assert counted(4) == 4
"""


def every(text, module="toy.py"):
    return trials_tool.sampled(module, text, 1, 0)


def test_words_of_errors_types_and_docstrings_are_no_place_for_mistakes():
    made = every(TOY)
    assert {m.line for m in made} == {5, 8, 10, 13, 17, 18, 19, 24}
    assert all("bool" in m.new and "int" in m.new for m in made if m.line == 8)


def test_what_a_mistake_changes_is_told():
    (less,) = (m for m in every(TOY) if m.line == 18)
    assert (less.operator, less.old, less.new) == ("swap_op", "while i < n:", "while i <= n:")
    assert less.text == TOY.replace("i < n", "i <= n")
    assert less.name == f"tool/toy.py/{less.mark}"


def test_every_mistake_is_python_and_another():
    made = every(TOY)
    for mutant in made:
        compile(mutant.text, "toy.py", "exec")
        assert mutant.old != mutant.new
    assert len({m.mark for m in made}) == len(made) == len({m.text for m in made})


def test_an_edit_elsewhere_leaves_marks_and_choice():
    moved = "\n# a line more\n" + TOY.replace("max(a, b)", "a")
    then, now = ({m.mark: m.new for m in every(text)} for text in (TOY, moved))
    assert {mark for mark in then if mark not in now} == {
        m.mark for m in every(TOY) if "max" in m.old
    }
    assert all(now[mark] == then[mark] for mark in now)
    few = trials_tool.sampled("toy.py", TOY, 0.25, 0)
    assert {m.mark for m in few} == set(sorted(then)[: len(few)])  # the lowest hashes
    assert len(few) == -(-len(then) // 4)
    assert trials_tool.sampled("toy.py", TOY, 0, 6) == trials_tool.sampled("toy.py", TOY, 0.01, 6)
    assert len(trials_tool.sampled("toy.py", TOY, 0, 6)) == 6


def test_other_modules_have_other_choices():
    assert not {m.mark for m in every(TOY)} & {m.mark for m in every(TOY, "other.py")}


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    root = tmp_path_factory.mktemp("toys")
    (root / "toy.py").write_text(TOY)
    (root / "tests").mkdir()
    (root / "tests" / "test_toy.py").write_text(TESTS)
    server = trials_tool.Server(root, ("pytest",))
    yield lambda old, new, limit=60: server.ask(
        "toy.py", TOY.replace(old, new), ["tests/test_toy.py"], limit
    )
    server.close()
    assert server.process.returncode == 0


@pytest.mark.parametrize(
    ("old", "new", "seen"),
    [
        ("", "", None),
        ("return 2 *", "return 3 *", "test_toy.py::test_twice"),
        ("i < n", "i <= n", "test_toy.py::test_counted"),
        ("max(a, b)", "max(a, None)", None),
        ("def counted", "def uncounted", "test_toy.py"),
        ("i += 1", "raise SystemExit", "test_toy.py::test_counted"),
        ("i += 1", "import os; os.kill(os.getpid(), 9)", "ended: test_toy.py::test_counted"),
    ],
)
def test_a_mistake_is_noticed_by_the_test_that_fails(ask, old, new, seen):
    assert ask(old, new)["seen"] == seen


def test_a_test_that_never_ends_has_noticed(ask):
    found = ask("i += 1", "pass", limit=5)["seen"]
    assert found == "timeout: test_toy.py::test_counted"


def test_a_file_is_never_written(ask, tmp_path_factory):
    ask("return 2 *", "return 3 *")
    assert (tmp_path_factory.getbasetemp() / "toys0" / "toy.py").read_text() == TOY


SEEN = {"module": "toy.py", "line": 18, "operator": "swap_op", "old": "a", "new": "b"}


def entry(old, new, reason):
    return f'[["toy.py"]]\nold = "{old}"\nnew = "{new}"\nreason = "{reason}"\n'


@pytest.fixture
def judge(tmp_path, monkeypatch):
    monkeypatch.setattr(trials_tool, "SURVIVORS", tmp_path / "survivors.toml")
    trials_tool.SURVIVORS.write_text("")
    return lambda *entries: trials_tool.SURVIVORS.write_text("".join(entries))


def test_a_survivor_holds_once_it_is_judged(judge):
    assert trials_tool.holds(SEEN | {"seen": "test_a"})
    assert not trials_tool.holds(SEEN | {"seen": None})
    judge(entry("a", "b", "the same"))
    assert trials_tool.holds(SEEN | {"seen": None})
    assert not trials_tool.holds(SEEN | {"seen": None, "new": "c"})


def test_a_control_holds_where_tests_ran_and_nothing_was_noticed():
    control = {"module": "toy.py", "control": True, "seen": None, "ran": 3}
    assert trials_tool.holds(control)
    assert not trials_tool.holds(control | {"seen": "test_a"})
    assert not trials_tool.holds(control | {"ran": 0})


def test_no_survivor_is_judged_without_a_reason(judge):
    judge(entry("a", "b", " "))
    with pytest.raises(ValueError, match=r"toy\.py: no reason: a -> b"):
        trials_tool.equivalents()
    judge(entry("a", "b", "the same"), entry("a", "b", "again"))
    with pytest.raises(ValueError, match=r"toy\.py: twice: a -> b"):
        trials_tool.equivalents()


def test_a_judged_survivor_that_is_not_tried_stops_all(judge, monkeypatch, capsys):
    monkeypatch.setattr(trials_tool, "JUDGES", {"toy.py": ""})
    monkeypatch.setattr(trials_tool, "mutants", lambda module: every(TOY))
    less = "while i < n:"
    judge(entry(less, "while i <= n:", "tried"), entry(less, "while i > n:", "not tried"))
    assert trials_tool.stale() == ["toy.py: while i < n: -> while i > n:"]
    monkeypatch.setattr(proof.trials_mutants, "misplaced", list)
    monkeypatch.setattr(proof, "trials", lambda: pytest.fail("tried"))
    monkeypatch.setattr("sys.argv", ["proof.py"])
    assert proof.main() == 2
    assert capsys.readouterr().err.splitlines()[1:] == ["toy.py: while i < n: -> while i > n:"]


def test_what_is_committed_is_judged_with_reasons():
    assert all(module in trials_tool.JUDGES for module, *_ in trials_tool.equivalents())


def test_a_survivor_is_not_tried_again_until_something_changes(judge, monkeypatch, tmp_path):
    ran = []

    def run():
        ran.append(1)
        return SEEN | {"seen": None}

    for name, path in {"RESULTS": "proof.json", "PAGE": "README.md"}.items():
        monkeypatch.setattr(proof, name, tmp_path / path)
    monkeypatch.setattr(proof.trials_mutants, "misplaced", list)
    monkeypatch.setattr(trials_tool, "stale", list)
    trial = Trial(run, trials_tool.holds, ("tests/small.py",), again=False)
    monkeypatch.setattr(proof, "trials", lambda: {"tool/toy.py/1": trial})
    monkeypatch.setattr("sys.argv", ["proof.py"])
    assert proof.main() == 1
    assert proof.main() == 1
    assert len(ran) == 1
    page = proof.PAGE.read_text()
    assert "- toy.py:18, swap_op: `a` → `b`" in page
    assert "| toy.py | 1 | 0 | 0 | 0 % |" in page
    judge(entry("a", "b", "the same"))
    assert proof.main() == 0
    assert "| toy.py | 1 | 1 | 0 | – |" in proof.PAGE.read_text()
    assert len(ran) == 1
    trial = trial._replace(files=("vixlib/errors.py",))
    proof.main()
    assert len(ran) == 2


def test_nothing_is_tried_where_tests_fail_without_a_mistake(judge, monkeypatch, tmp_path):
    ran = []
    for name, path in {"RESULTS": "proof.json", "PAGE": "README.md"}.items():
        monkeypatch.setattr(proof, name, tmp_path / path)
    monkeypatch.setattr(proof.trials_mutants, "misplaced", list)
    monkeypatch.setattr(trials_tool, "stale", list)
    seen = {"module": "toy.py", "control": True, "seen": "test_a", "ran": 1}
    order = {"tool/toy.py/as it is": Trial(lambda: seen, trials_tool.holds, ())}
    order["tool/toy.py/1"] = Trial(
        lambda: ran.append(1) or SEEN | {"seen": "test_b"},
        trials_tool.holds,
        (),
        again=False,
        needs="tool/toy.py/as it is",
    )
    monkeypatch.setattr(proof, "trials", lambda: order)
    monkeypatch.setattr("sys.argv", ["proof.py"])
    assert proof.main() == 1
    assert not ran
    seen["seen"] = None
    assert proof.main() == 0
    assert len(ran) == 1
    assert proof.main() == 0
    assert len(ran) == 1


def test_every_module_has_tests_that_judge_it():
    for module in trials_tool.JUDGES:
        assert (trials_tool.ROOT / module).exists()
        assert trials_tool.judges(module)
