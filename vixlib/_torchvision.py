"""Lets torchvision be imported beside a CPU-only torch.

The torchvision wheel on PyPI is built against CUDA. Where its compiled part cannot load, the two
operators that its Python part asks for are declared, so that datasets and transforms work;
`torchvision.ops.nms` itself then raises. Where it loads, nothing is declared: twice would abort.
"""

from importlib.util import find_spec
from pathlib import Path

import torch

_library = None  # kept alive: the operators vanish with it


def _guard() -> None:
    global _library
    found = find_spec("torchvision")
    if found is None or found.origin is None:
        return
    try:
        for compiled in Path(found.origin).parent.glob("_C*.so"):
            torch.ops.load_library(str(compiled))
    except OSError:
        _library = torch.library.Library("torchvision", "DEF")
        _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_guard()
