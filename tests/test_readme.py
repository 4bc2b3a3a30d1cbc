"""README's code runs, its commands exist, its table is what the records say."""

import re
import shlex
from pathlib import Path

import pytest

from benchmarks import results
from vixlib.errors import BadInput
from vixlib.paper import readme
from vixlib.paper.cli import _parser

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_blocks_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # one writes weights
    assert len(blocks("python")) >= 2
    names = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)


def test_vix_lines_are_understood():
    lines = [line for block in blocks("sh") for line in block.splitlines() if "vix " in line]
    assert len(lines) >= 4
    for line in lines:
        _parser().parse_args(shlex.split(line, comments=True)[1:])
    with pytest.raises(BadInput, match="vanish"):
        _parser().parse_args(["vanish"])


def test_make_targets_exist():
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in set(re.findall(r"`(?:[A-Z_]+=\S+\s)?make (\w+)`", README)):
        assert f"\n{target}: " in makefile


def test_links_lead_somewhere():
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (Path(__file__).parents[1] / link).exists(), link


@pytest.mark.parametrize("table", [readme, results])
def test_the_tables_are_rendered_from_the_records(table):
    assert table.rendered_readme(README) == README
