"""Lets torchvision be imported beside a CPU-only torch.

The torchvision wheel on PyPI is built against CUDA. Where its compiled part cannot load, the two
operators that its Python part asks for are declared, so that datasets and transforms work;
`torchvision.ops.nms` itself then raises. Where it loads, nothing is declared: twice would abort.
"""

from importlib.util import find_spec
from pathlib import Path

import torch

try:
    for _compiled in Path(find_spec("torchvision").origin).parent.glob("_C*.so"):
        torch.ops.load_library(str(_compiled))
except OSError:
    _library = torch.library.Library("torchvision", "DEF")  # kept: the operators vanish with it
    for _operator in ("nms", "qnms"):
        _library.define(f"{_operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
