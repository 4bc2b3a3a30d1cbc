"""Trials of compiling and exporting: what leaves torch's eager mode equals it, for any batch.

Free of pytest: `test_export.py` runs the quick ones, `proof.py` all. A trial builds one small model
with weights away from their start, and returns how far each way of running it is from eager.
"""

import copy
import math

import torch
import torch._inductor.config
from small import sizes_of
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from vixlib import build
from vixlib.systems import SYSTEMS

# One block of each kind, since each costs a second of tracing; all keep their mechanism.
SHALLOW = {
    "LeVi{}": {"widths": (32, 64), "heads": (1, 2), "depths": (1, 1)},
    "CC{}": {"depth": 2},  # the first block drops nothing
    "Cv{}": {"strides": (2, 1), "kernels": (3, 3), "widths": (32, 64), "heads": (1, 2)}
    | {"depths": (1, 1)},
    "Cv{}-released": {"strides": (2,), "kernels": (3,), "widths": (32,), "heads": (1,)}
    | {"depths": (1,)},
    "ResNet-20": {},
    "ResNet-56": {},
}
# Largest relative difference. Eager's graph was equal to the last bit wherever it was tried. With
# inductor up to 6e-6 was seen; a rounding that moves one value across the kink of a ReLU would give
# far more in the gradient (float32 beside float64 on ResNet-56: 0.1).
LIMITS = {"eager": 1e-6, "inductor": 1e-4, "torch.export": 1e-6, "onnxruntime": 1e-4}


def shallow(name: str) -> dict:
    """The keywords that make a system small and shallow."""
    return sizes_of(name) | SHALLOW.get(SYSTEMS[name].family.name, {"depth": 1})


def moved(name: str, sizes: dict | None = None) -> nn.Module:
    """A model whose weights have left their start, and whose BatchNorms have seen a batch.

    Small and shallow unless sizes are given; {} is the paper's.
    """
    torch.manual_seed(0)
    model = build(name, **(shallow(name) if sizes is None else sizes))
    with torch.no_grad():
        for parameter in model.parameters():  # LeViT's branches start at zero
            parameter += 0.1 * torch.randn_like(parameter)
        model(torch.randn(8, 3, *model.size))
    return model


def far(seen: list[Tensor | None], wanted: list[Tensor | None]) -> float:
    """The largest difference of two tensors, relative to the largest value in all of them.

    Not each to its own: some gradients are zero but for rounding (a bias before a softmax).
    Infinite where shapes differ, one has a tensor and the other None, or any is NaN.
    """
    if [t if t is None else t.shape for t in seen] != [t if t is None else t.shape for t in wanted]:
        return math.inf
    pairs = [(a, b) for a, b in zip(seen, wanted, strict=True) if b is not None]
    differences = [(a - b).abs().max().item() for a, b in pairs]
    if any(map(math.isnan, differences)):
        return math.inf
    largest = max((b.abs().max().item() for _, b in pairs), default=0.0)
    return max(differences, default=0.0) / (largest or 1.0)


def step(model: nn.Module, images: Tensor) -> dict[str, list[Tensor | None]]:
    """Scores in evaluation; scores, gradients and statistics of a training step."""
    with torch.no_grad():
        seen = {"evaluation": [model.eval()(images)]}
    torch.manual_seed(0)  # stochastic depth drops the same
    scores = model.train()(images)
    back = torch.linspace(-1, 1, scores.numel()).view_as(scores)
    parameters = [p for p in model.parameters() if p.numel()]
    gradients = torch.autograd.grad(scores, parameters, back, allow_unused=True)
    statistics = [buffer.clone() for buffer in model.buffers() if buffer.numel()]
    return seen | {
        "training": [scores.detach()],
        "gradients": list(gradients),
        "statistics": statistics,
    }


def compile_trial(name: str, backend: str = "eager", sizes: dict | None = None) -> dict:
    """torch.compile of a system without a graph break, beside eager, on batches of 4 and 7.

    `graphs` counts what was compiled: one for evaluation and one for training serve any batch.
    """
    eager = moved(name, sizes)
    torch.compiler.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True, backend=counter)
    differences = []
    for batch in (4, 7):
        images = torch.randn(batch, 3, *eager.size)
        wanted = step(eager, images)
        torch._dynamo.mark_dynamic(images, 0)
        with torch._inductor.config.patch(fallback_random=True):  # the same draws as in eager
            seen = step(compiled, images)
        differences.append({part: far(seen[part], wanted[part]) for part in wanted})
    return {
        "system": name,
        "backend": backend,
        "graphs": counter.frame_count,
        "relative_difference": {part: max(d[part] for d in differences) for part in wanted},
    }


def compile_holds(seen: dict) -> bool:
    """Whether two graphs served all, and gave what eager gives."""
    worst = max(seen["relative_difference"].values())
    return seen["graphs"] == 2 and worst <= LIMITS[seen["backend"]]


def export_trial(name: str, sizes: dict | None = None) -> dict:
    """torch.export of a system with any batch, then ONNX, beside eager, on batches of 1 and 5."""
    import onnxruntime  # here, so that the other trials need no extra package

    model = moved(name, sizes).eval()
    images = torch.randn(3, 3, *model.size)
    batch = {"images": {0: torch.export.Dim("batch")}}
    program = torch.export.export(model, (images,), dynamic_shapes=batch)
    batch = {"images": {0: "batch"}}
    exported = torch.onnx.export(program, dynamo=True, dynamic_shapes=batch, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    content = exported.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    differences = []
    for batch in (1, 5):
        images = torch.randn(batch, 3, *model.size)
        with torch.no_grad():
            wanted, seen = model(images), program.module()(images)
        (scores,) = session.run(None, {"images": images.numpy()})
        both = {"torch.export": seen, "onnxruntime": torch.from_numpy(scores)}
        differences.append({way: far([seen], [wanted]) for way, seen in both.items()})
    return {
        "system": name,
        "axes": session.get_inputs()[0].shape,
        "relative_difference": {way: max(d[way] for d in differences) for way in both},
    }


def export_holds(seen: dict) -> bool:
    """Whether the batch is free and both ways gave what eager gives."""
    near = [worst <= LIMITS[way] for way, worst in seen["relative_difference"].items()]
    return seen["axes"][0] == "batch" and all(near)
