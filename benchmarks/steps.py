"""Megabytes of a training step at the paper's size, which decide the claims of memory.

    python -m benchmarks.steps

writes figures/step_memory.csv: for each system that a claim of memory names, the peak beyond model
and images of one step of AdamW in float32, by torch's own record of every allocation on a CPU; for
softmax by the fused kernel, and written out, as the paper had it.
"""

import torch

from vixlib import attention, fused, measure, paths
from vixlib.paper import claims
from vixlib.paper.runs import Run
from vixlib.systems import RESULTS, system

IMAGES = 8
FILE = "step_memory.csv"
HEAD = "system,softmax,images,megabytes\n"


def step_memory(name: str, *, written_out: bool = False) -> float:
    """Peak MB of a step of IMAGES images; the softmax fused, or `written_out`."""
    model = Run(name, "paper").build()
    for module in model.modules():
        if written_out and type(module) is fused.Softmax:
            module.__class__ = attention.Softmax
    images, labels = torch.randn(IMAGES, 3, *model.size), torch.zeros(IMAGES, dtype=torch.long)
    return measure.training_memory(model, images, labels)


def main() -> None:
    ledger = claims.ledger()
    rows = ledger[ledger["quantity"].isin(claims.STEPS)]
    named = {name for pair in rows[["better", "worse"]].stack() for name in pair.split()}
    lines = [HEAD]
    for name in (name for name in RESULTS if name in named):
        for written_out in (False, True) if system(name).mixer == "softmax" else (False,):
            found = step_memory(name, written_out=written_out)
            form = "written out" if written_out else "fused"
            lines.append(f"{name},{form},{IMAGES},{found:.1f}\n")
            print(lines[-1], end="", flush=True)
    file = paths.CHECKOUT / "figures" / FILE
    paths.atomic_write(file, lambda path: path.write_text("".join(lines)))


if __name__ == "__main__":
    main()
