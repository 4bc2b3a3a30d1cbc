"""Trials of the Snakefile: killed jobs and schedulers, lost records, other code, Slurm.

Free of pytest: `proof.py` runs them.
"""

import contextlib
import functools
import importlib.util
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trials_lost
from trials_lost import environment, inside

from vixlib.paper.records import VOLATILE
from vixlib.paper.runs import queue
from vixlib.paths import CHECKOUT

FILES = "vixlib", "tests/trials_cluster.py", "workflow/Snakefile"
PATIENCE = 900  # seconds that anything may take on a busy machine
# the shortest runs of quick: 16 tokens
RUNS = [run for run in queue("quick") if run.overrides == (("patch_size", 4),)]
IDLE = "Nothing to be done"


def snakemake(root: str, *more: str, only: bool = True) -> list[str]:
    """A call of the Snakefile for RUNS, or for all of quick; each root has its own notes."""
    records = [str(inside(root, run, "record")) for run in RUNS if only]
    start = [sys.executable, "-m", "snakemake", "--directory", f"{root}/grid"]
    start += ["--snakefile", str(CHECKOUT / "workflow" / "Snakefile")]
    return [*start, "--config", "profile=quick", *more, "--", *records]


def call(root: str, *more: str, only: bool = True) -> subprocess.CompletedProcess:
    """The call, to its end; what it said is in stdout."""
    options = {"env": environment(root), "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    options |= {"timeout": PATIENCE if only else None}  # of all of quick no machine's time is known
    return subprocess.run(snakemake(root, *(more or ("-c2",)), only=only), text=True, **options)


def started(root: str, *more: str) -> subprocess.Popen:
    """The call, once every run has a checkpoint."""
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(
        snakemake(root, *more), env=environment(root), start_new_session=True, **options
    )
    wait(lambda: all(inside(root, run, "checkpoint").exists() for run in RUNS))
    return process


def wait(until) -> None:
    end = time.monotonic() + PATIENCE
    while not until():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.1)


def records(root: str) -> list[dict]:
    """What RUNS left, without what may differ."""
    return [steady(inside(root, run, "record")) for run in RUNS]


def steady(path: Path) -> dict:
    record = json.loads(path.read_text()) if path.exists() else {}
    return {key: value for key, value in record.items() if key not in VOLATILE}


@functools.cache
def left_alone() -> list[dict]:
    """The records of `vix train`."""
    with tempfile.TemporaryDirectory() as root:
        for run in RUNS:
            command = [sys.executable, "-m", "vixlib", *run.command.split()[1:]]
            subprocess.run(command, env=environment(root), check=True, capture_output=True)
        return records(root)


def children(pid: int) -> list[int]:
    """Of a process, and theirs."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *children(child)]
    return found


def trainings(pids: list[int]) -> list[int]:
    """Those that are `vix train` itself."""
    return [p for p in pids if b"\0-m\0vixlib\0" in Path(f"/proc/{p}/cmdline").read_bytes()]


def ended(root: str, last: subprocess.CompletedProcess) -> dict:
    """What is there after the last call, and that another has nothing to do."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began, again = time.monotonic(), call(root)
    took, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seen = {"last": last.returncode, "equal": records(root) == left_alone()}
    seen |= {"idle": IDLE in again.stdout, "idle_seconds": took, "idle_cpu_seconds": cpu}
    return seen | {"left": trials_lost.leftovers(root)}


def holds(seen: dict) -> bool:
    fast = seen["idle_cpu_seconds"] < 8  # 4 where nothing else runs
    return seen["last"] == 0 and seen["equal"] and seen["idle"] and fast and not seen["left"]


# --- this machine --------------------------------------------------------------------------------


def job_trial() -> dict:
    """A training is killed while it runs."""
    with tempfile.TemporaryDirectory() as root:
        process = started(root, "-c2")
        os.kill(trainings(children(process.pid))[0], signal.SIGKILL)
        failed = process.wait()
        return {"failed": failed} | ended(root, call(root))


def scheduler_trial() -> dict:
    """The scheduler alone is killed; its trainings go on, and the next call waits for them."""
    with tempfile.TemporaryDirectory() as root:
        process = started(root, "-c2")
        orphans = trainings(children(process.pid))
        process.kill()
        process.wait()
        last = call(root)
        return {"orphans": len(orphans)} | ended(root, last)


def record_trial() -> dict:
    """A record is deleted, one is of other code, one of other code began with other losses."""
    with tempfile.TemporaryDirectory() as root:
        call(root).check_returncode()
        deleted, other = (inside(root, run, "record") for run in RUNS)
        deleted.unlink()
        kept = json.loads(other.read_text())
        other.write_text(json.dumps(kept | {"code": "older"}))
        call(root)
        trained = deleted.exists()
        now = json.loads(other.read_text())
        noted = now.pop("verified", {}).get("result"), now == kept
        losses = [loss + 1 for loss in kept["first_losses"]]
        other.write_text(json.dumps(kept | {"code": "older", "first_losses": losses, "top1": 1.0}))
        anew = call(root)
        seen = {"verified": noted, "different": anew.stdout.count(": different, ")}
        return seen | {"trained": trained} | ended(root, anew)


def record_holds(seen: dict) -> bool:
    first = tuple(seen["verified"]) == ("equal", True) and seen["trained"]
    return first and seen["different"] == 1 and holds(seen)


def whole_trial() -> dict:
    """All of quick, notebooks too, beside `vix reproduce`, record for record."""
    with tempfile.TemporaryDirectory() as ours, tempfile.TemporaryDirectory() as theirs:
        for root in (ours, theirs):
            Path(root, "notebooks").symlink_to(CHECKOUT / "notebooks")
        done = call(ours, "-c2", only=False)
        command = [sys.executable, "-m", "vixlib", "reproduce", "--profile", "quick"]
        subprocess.run(command, env=environment(theirs), check=True, capture_output=True)
        folders = [Path(root, "build/quick/records") for root in (ours, theirs)]
        both = [{p.name: steady(p) for p in folder.glob("*.json")} for folder in folders]
        folders = [Path(root, "build/quick/notebooks").glob("*.ipynb") for root in (ours, theirs)]
        names = [sorted(path.name for path in folder) for folder in folders]
        again = call(ours, "-c2", only=False)
        seen = {"last": done.returncode, "records": len(both[0]), "notebooks": len(names[0])}
        seen["equal"] = both[0] == both[1] and names[0] == names[1]
        return seen | {"idle": IDLE in again.stdout}


def whole_holds(seen: dict) -> bool:
    there = seen["records"] == len(queue("quick")) and seen["notebooks"]
    return there and seen["last"] == 0 and seen["equal"] and seen["idle"]


# --- Slurm ---------------------------------------------------------------------------------------

CONFIG = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthInfo=socket={folder}/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait=10
MinJobAge=3600
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""
PLACE = Path("/etc/slurm/slurm.conf")  # jobs do not hear of another
SLURM = [
    *("--workflow-profile", "slurm", "--set-resources", "train:gpu=0"),
    *("--default-resources", "mem_mb=1000", "runtime=30", "--slurm-status-command", "squeue"),
    *("--slurm-init-seconds-before-status-checks", "5"),
]


@contextlib.contextmanager
def slurm():
    """A Slurm of one node, this one, from Debian's slurmctld, slurmd and munge; needs root."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        Path(folder).chmod(0o755)
        for name in ("state", "spool"):
            Path(folder, name).mkdir()
        (key := Path(folder, "key")).write_bytes(os.urandom(1024))
        key.chmod(0o400)
        config = Path(folder, "slurm.conf")
        config.write_text(CONFIG.format(host=os.uname().nodename, folder=folder))
        PLACE.symlink_to(config)  # FileExistsError where there is a Slurm: not ours to change
        stack.callback(PLACE.unlink)
        munge = [f"--{name}={folder}/{name}" for name in ("pid-file", "log-file", "seed-file")]
        munge += [f"--key-file={key}", f"--socket={folder}/munge", "--foreground", "--force"]
        for command in (["munged", *munge], ["slurmctld", "-D"], ["slurmd", "-D"]):
            with Path(folder, command[0]).open("w") as log:
                process = subprocess.Popen(command, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            time.sleep(1)
        wait(lambda: "idle" in told("sinfo", "--noheader"))
        stack.callback(told, "scancel", "--full", "--user=root")
        yield


def told(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout


def jobs(state: str = "all") -> list[str]:
    return told("squeue", "--noheader", "--format=%i", f"--states={state}").split()


def requeue_trial() -> dict:
    """Each run leaves a checkpoint after some seconds, is queued again, and goes on."""
    began = time.monotonic()
    left_alone.cache_clear()
    left_alone()
    # too short for a run, and long enough to start: else it would never get on
    minutes = 0.7 * (time.monotonic() - began) / len(RUNS) / 60
    with slurm(), tempfile.TemporaryDirectory() as root:
        options = f"options=--minutes={minutes:.3f}"
        process = subprocess.Popen(
            snakemake(root, *SLURM, "--config", "profile=quick", options),
            env=environment(root),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None:  # Slurm would begin them two minutes later
            for job in jobs("pending"):
                told("scontrol", "update", f"JobId={job}", "StartTime=now")
            time.sleep(2)
        shown = [told("scontrol", "show", "job", job) for job in jobs()]
        restarts = [int(text.split("Restarts=")[1].split()[0]) for text in shown]
        last = subprocess.CompletedProcess([], process.returncode)
        return {"restarts": restarts} | ended(root, last)


def requeue_holds(seen: dict) -> bool:
    return len(seen["restarts"]) == len(RUNS) and min(seen["restarts"]) >= 1 and holds(seen)


def cancelled_trial() -> dict:
    """A job is cancelled, and the scheduler killed while another job runs."""
    with slurm(), tempfile.TemporaryDirectory() as root:
        process = started(root, *SLURM)
        told("scancel", jobs("running")[0])
        failed = process.wait()
        first = len(jobs())
        for run in RUNS:
            inside(root, run, "record").unlink(missing_ok=True)
        process = started(root, *SLURM)
        process.kill()
        process.wait()
        seen = {"failed": failed, "first": first, "going_on": len(jobs("running"))}
        last = call(root, *SLURM)
        return seen | ended(root, last)


def cancelled_holds(seen: dict) -> bool:
    return seen["failed"] == 1 and seen["going_on"] >= 1 and holds(seen)


# --- the page ------------------------------------------------------------------------------------


def trials() -> dict[str, tuple]:
    """Each trial's name, with what is run and how it is judged; none where Snakemake is missing."""
    found = {
        "grid/a job killed": (job_trial, holds, ()),
        "grid/the scheduler killed": (scheduler_trial, holds, ()),
        "grid/records lost and old": (record_trial, record_holds, ()),
        "grid/all of quick": (whole_trial, whole_holds, ()),
        "slurm/queued again": (requeue_trial, requeue_holds, ()),
        "slurm/cancelled, the scheduler killed": (cancelled_trial, cancelled_holds, ()),
    }
    there = {
        "grid": importlib.util.find_spec("snakemake"),
        "slurm": importlib.util.find_spec("snakemake_executor_plugin_slurm")
        and all(map(shutil.which, ("slurmctld", "slurmd", "munged"))),
    }
    return {name: trial for name, trial in found.items() if there[name.split("/")[0]]}
