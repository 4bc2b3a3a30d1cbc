"""The Snakefile: the same runs and notebooks as `vix reproduce`, by whatever engine runs them."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from vixlib.paper.provenance import code
from vixlib.paper.records import files
from vixlib.paper.runs import queue
from vixlib.paths import CHECKOUT

README = (CHECKOUT / "README.md").read_text()
COMMANDS = re.findall(r"^snakemake (.*?)(?:  +#.*)?$", README, re.MULTILINE)
PROFILES = CHECKOUT / "workflow" / "profiles"
ONE_GPU = CHECKOUT / "workflow" / "one_gpu"


def installed(module):
    wanted = importlib.util.find_spec(module)
    return pytest.mark.skipif(wanted is None, reason=f"no {module}: pip install '.[cluster]'")


def call(root, *arguments):
    """What Snakemake says; its notes go into `root`, too."""
    os.makedirs(root / "grid", exist_ok=True)
    start = [sys.executable, "-m", "snakemake", "--directory", str(root / "grid")]
    start += ["--snakefile", str(CHECKOUT / "workflow" / "Snakefile")]
    own = os.environ | {"VIXLIB_ROOT": str(root), "PYTHONPATH": str(CHECKOUT)}
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run([*start, *arguments], env=own, text=True, **both)


def planned(said):
    """The number of jobs of each rule, and each run, the most urgent first, with its command."""
    counts = {rule: int(n) for rule, n in re.findall(r"^(train|notebook) +(\d+)$", said, re.M)}
    jobs = re.findall(r"^    priority: (\d+)$.*?^Shell command: ([^\n]*)", said, re.M | re.S)
    lines = [line for _, line in sorted(jobs, key=lambda job: -int(job[0]))]
    named = [re.search(r"test -e '.*/(.*)\.json'$", line) for line in lines]
    found = {match[1]: line for match, line in zip(named, lines, strict=True) if match}
    return counts, found


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda text: text[:20])
@installed("snakemake_executor_plugin_slurm")
def test_readme_says_what_runs_the_grid(root, arguments):
    """Each as it is written, but dry: a job for each run without a record of today's code."""
    (root / "notebooks").symlink_to(CHECKOUT / "notebooks")
    profile = re.search(r"profile=(\w+)", arguments)[1]
    runs = {run.name: run for run in queue(profile)}
    first, done, old, *others = runs
    for name, made_by, age in ((done, code(), 1e9), (old, "another", 0)):
        record = files(runs[name]).record
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps({"code": made_by}))
        os.utime(record, (time.time() - age,) * 2)  # which does not count
    said = call(root, "--dry-run", "--printshellcmds", *arguments.split())
    assert said.returncode == 0, said.stdout
    counts, commands = planned(said.stdout)
    notebooks = len(list((root / "notebooks").glob("[0-9]*.ipynb")))
    assert counts == {"train": len(runs) - 1, "notebook": notebooks}
    assert list(commands) == [first, old, *others]  # as they are registered
    for name, command in commands.items():
        assert f" {runs[name].command.removeprefix('vix ')} " in command
        assert (f" verify {name} --profile {profile} --write ||" in command) is (name == old)
        assert ("one_gpu" in command) is ("server" in arguments)
        on_slurm = "--minutes 216 " in command and "scontrol requeue $SLURM_JOB_ID" in command
        assert on_slurm is ("slurm" in arguments)


def test_readme_has_a_command_for_each_machine():
    named = [re.findall(r"--workflow-profile (\w+)", command) for command in COMMANDS]
    assert named == [[], ["server"], ["slurm"]]


def test_profiles_agree_on_what_is_no_matter_of_the_machine():
    """Snakemake reads one profile alone: what the first says of reruns all must say."""
    default, *others = (
        yaml.safe_load((PROFILES / name / "config.yaml").read_text())
        for name in ("default", "server", "slurm")
    )
    assert default["rerun-triggers"] == "mtime"
    for other in others:
        assert default.items() <= other.items()


@pytest.mark.proof
@installed("snakemake")
def test_a_run_is_trained_once_and_its_record_is_the_registrys(root):
    (run,) = (run for run in queue("quick") if run.name == "FNet.digits.fair.seed0.patch_size=4")
    target = str(files(run).record)
    first = call(root, "-c1", "--config", "profile=quick", "--", target)
    assert first.returncode == 0, first.stdout
    assert json.loads(Path(target).read_text())["name"] == run.name
    before = Path(target).stat().st_mtime_ns
    second = call(root, "-c1", "--config", "profile=quick", "--", target)
    assert "Nothing to be done" in second.stdout
    assert Path(target).stat().st_mtime_ns == before


@pytest.mark.skipif(sys.platform != "linux", reason="flock is Linux's")
def test_one_gpu_for_each(tmp_path):
    """Two of two are taken; the third has to wait, until the first is killed."""
    own = os.environ | {"CUDA_VISIBLE_DEVICES": "3,5", "TMPDIR": str(tmp_path)}
    said = [ONE_GPU, "sh", "-c", "echo $CUDA_VISIBLE_DEVICES; exec sleep 99"]
    options = {"env": own, "stdout": subprocess.PIPE, "text": True}
    holders = [subprocess.Popen(said, **options) for _ in range(2)]
    try:
        assert {holder.stdout.readline() for holder in holders} == {"3\n", "5\n"}
        third = [ONE_GPU, "printenv", "CUDA_VISIBLE_DEVICES"]
        assert subprocess.run(third, capture_output=True, env=own).returncode == 3
        holders[0].kill()
        holders[0].wait()
        assert subprocess.run(third, **options).stdout in ("3\n", "5\n")
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()
