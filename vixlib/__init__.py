"""Vision Xformers: linear attention for image classification, one contract for every mechanism."""

import os
from pathlib import Path

from vixlib import _torchvision  # noqa: F401  must come before anything imports torchvision
from vixlib.models.host import resized
from vixlib.models.zoo import build, systems

__all__ = ["ROOT", "build", "resized", "systems"]
__version__ = "0.1.0"

# The project: figures, records and notebooks lie here.
ROOT = Path(os.environ.get("VIXLIB_ROOT") or Path(__file__).resolve().parents[1])
