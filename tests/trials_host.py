"""Trials of whole systems: no sample sees another, no step waits, a killed training goes on.

Free of pytest: `proof.py` runs them.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file
from small import small
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException

from vixlib import build
from vixlib.data import batches
from vixlib.paper.records import VOLATILE, files
from vixlib.paper.runs import Run
from vixlib.paths import root as here
from vixlib.train import learn

KILLED = "ViT", "ViN", "CCP", "LeViL"  # with BatchNorm, stochastic depth, features drawn at random
TIMES, KILLS = 3, 6
PRECISIONS = "float32", "bfloat16"


def alone_trial(name: str, count: int = 3) -> dict:
    """The largest difference that neighbours, also a thousandfold, make to an image's scores."""
    torch.manual_seed(0)
    model = build(name).double()
    with torch.no_grad():
        model.train()(torch.randn(4, 3, *model.size, dtype=torch.float64))
        model.eval()
        seen = {}
        for gain in (1, 2):
            for parameter in model.parameters():
                parameter *= gain
            worst = 0.0
            for _ in range(count):
                x = torch.randn(4, 3, *model.size, dtype=torch.float64)
                alone = model(x[:1])
                for beside in (x, torch.cat([x[:1], 1e3 * x[1:]])):
                    difference = (model(beside)[:1] - alone).abs().max() / alone.abs().max()
                    worst = max(worst, difference.item())
            seen[f"weights x {gain}"] = worst
    return {"batches": 2 * count, "relative_difference": seen}


def alone_holds(seen: dict) -> bool:
    return max(seen["relative_difference"].values()) < 1e-10


def waits_trial(name: str, precisions: Sequence[str] = PRECISIONS) -> dict:
    """Whether a step asks for the value of a tensor, for which a GPU would have to be waited for.

    Tensors without numbers: whoever asks for one gets an error.
    """
    waits = {}
    for precision in precisions:
        try:
            with FakeTensorMode():
                model = small(name)
                pixels = torch.empty(6, 3, *model.size, dtype=torch.uint8)
                labels, chosen = torch.zeros(6, dtype=torch.long), torch.arange(4)
                few = SimpleNamespace(classes=range(10))
                optimizer = torch.optim.SGD(model.parameters(), 0.1)
                ((some, truth),) = batches(pixels, labels, [chosen])
                loss, correct = learn(model, optimizer, few, some, truth, True, precision)
            waits[precision] = False
        except DataDependentOutputException:
            waits[precision] = True
            continue
        learned = all(p.grad is not None for p in model.parameters() if p.numel())
        if (loss.shape, correct.shape) != ((), ()) or not learned:
            raise RuntimeError(f"no step: {loss.shape}, {correct.shape}, gradients: {learned}")
    return {"waits": waits}


def waits_holds(seen: dict) -> bool:
    return bool(seen["waits"]) and not any(seen["waits"].values())


def kill_trial(name: str, seed: int) -> dict:
    """Train with `vix train`, kill it at random moments, go on; beside a training left alone."""
    run = Run(name, "quick", seed=seed, overrides=(("epochs", 30), ("train_images", 200)))
    command = [sys.executable, "-P", "-m", "vixlib", *run.command.split()[1:]]
    chance = random.Random(seed)

    def folder(root: str) -> tuple[dict, Path, Path]:
        environment = os.environ | {"VIXLIB_ROOT": root, "TQDM_DISABLE": "1"}
        inside = Path(root, files(run).record.relative_to(here()))
        weights = Path(root, files(run).weights.relative_to(here()))
        return environment, inside, weights

    def finish(environment: dict) -> float:
        began = time.monotonic()
        subprocess.run(command, env=environment, check=True, capture_output=True)
        return time.monotonic() - began

    with tempfile.TemporaryDirectory() as left, tempfile.TemporaryDirectory() as killed:
        environment, record, weights = folder(left)
        whole = finish(environment)
        wanted = json.loads(record.read_text()), load_file(weights)
        environment, record, weights = folder(killed)
        kills = 0
        while kills < KILLS and not record.exists():
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
            time.sleep(chance.uniform(0, whole))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
            process.wait()
        finish(environment)
        seen = json.loads(record.read_text()), load_file(weights)
        parts = [path.name for path in Path(killed).rglob("*.part")]
    records = [{k: v for k, v in r.items() if k not in VOLATILE} for r in (seen[0], wanted[0])]
    tensors = seen[1].keys() == wanted[1].keys() and all(
        torch.equal(seen[1][key], wanted[1][key]) for key in wanted[1]
    )
    return {
        "kills": kills,
        "record_equal": records[0] == records[1],
        "weights_equal": tensors,
        "half_written_files_left": len(parts),
    }


def kill_holds(seen: dict) -> bool:
    return seen["kills"] > 0 and seen["record_equal"] and seen["weights_equal"]


def report(alone: dict[str, dict], killed: dict[str, dict]) -> list[str]:
    """Lines for the page."""
    lines = []
    differences = [
        (difference, name.split("/")[1])
        for name, result in alone.items()
        for difference in result["seen"].get("relative_difference", {}).values()
    ]
    if differences:
        worst, name = max(differences)
        lines += ["", "## No sample sees another", ""]
        lines += [
            f"The largest relative difference of scores: {worst:.0e} ({name}); 1e-10 allowed."
        ]
    kills = sum(result["seen"].get("kills", 0) for result in killed.values())
    if killed:
        lines += ["", "## Killed and resumed", "", f"{kills} kills in {len(killed)} trainings."]
    return lines
