"""The files that say how to install, cite and share the project agree with pyproject.toml."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from vixlib import __version__

ROOT = Path(__file__).parents[1]

CONDA = {"pytorch": "torch"}  # conda-forge's names, where they differ


def requirements(lines):
    """Name -> specifier, without the project's reference to its own extras."""
    parsed = [Requirement(line) for line in lines]
    return {r.name: r.specifier for r in parsed if r.name != "vixlib"}


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def extras(project):
    """Of each extra its own requirements and those of the extras that it names."""
    named = project["optional-dependencies"]

    def whole(name):
        found = requirements(named[name])
        for line in map(Requirement, named[name]):
            for other in line.extras if line.name == "vixlib" else ():
                found |= whole(other)
        return found

    return {name: whole(name) for name in named}


@pytest.fixture(scope="module")
def needed(project, extras):
    return requirements(project["dependencies"]) | extras["notebooks"]


def load(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_environment_agrees(project, extras, needed):
    environment = load("environment.yml")
    assert environment["channels"][0] == "conda-forge"
    python, *conda, last = environment["dependencies"]
    assert last == {"pip": ["-e ."]}
    release = re.fullmatch(r"python=(\d+\.\d+)", python)[1]  # the form that repo2docker reads
    assert release in SpecifierSet(project["requires-python"])
    found = requirements(conda)
    assert found.pop("pip") == ""
    found = {CONDA.get(name, name): specifier for name, specifier in found.items()}
    assert needed.keys() | {"pytest", "nbval"} <= found.keys()
    everything = needed | extras["tests"]
    assert found == {name: everything.get(name) for name in found}


def test_environment_names_the_gpu():
    assert re.search("^#.*pytorch-gpu", (ROOT / "environment.yml").read_text(), re.MULTILINE)


def test_constraints(extras, needed):
    """What `make` installs is pinned to a version that its floor allows, or a comment names it."""
    installed = re.findall(r"-e '\.\[([a-z,]+)\]'", (ROOT / "Makefile").read_text())
    assert installed
    for extra in ",".join(installed).split(","):
        needed = needed | extras[extra]
    text = (ROOT / "constraints.txt").read_text()
    pins = requirements(line for line in text.splitlines() if line and not line.startswith("#"))
    comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    for name, specifier in needed.items():
        if name not in pins:
            assert re.search(rf"\b{re.escape(name)}\b", comments), f"{name} is not pinned"
            continue
        (pin,) = pins[name]
        assert pin.operator == "==", name
        assert pin.version in specifier, name


def test_citation(project):
    citation = load("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == project["version"] == __version__
    assert citation["license"] == project["license"] == "MIT"
    paper, (preprint,) = citation["preferred-citation"], citation["references"]
    assert paper["title"] == "Resource-Efficient Hybrid X-Formers for Vision"
    assert (paper["year"], paper["start"], paper["end"]) == (2022, 2982, 2990)
    assert preprint["title"] == "Vision Xformers: Efficient Attention for Image Classification"
    assert preprint["identifiers"][0]["value"] == "arXiv:2107.02239"
    for work in (paper, preprint):
        assert [author["family-names"] for author in work["authors"]] == ["Jeevan", "Sethi"]


def test_license():
    text = (ROOT / "LICENSE").read_text()
    assert text.startswith("MIT License\n\nCopyright (c) 2026 The vixlib authors\n")
    assert "WITHOUT WARRANTY OF ANY KIND" in text
