"""Vision Xformers: linear attention for image classification, one contract for every mechanism."""

from vixlib import _torchvision  # noqa: F401  must come before anything imports torchvision
from vixlib.attention import Grid, Mechanism
from vixlib.fused import Linformer, Nystrom, Performer, Softmax
from vixlib.models.host import resized, self_attention
from vixlib.systems import build, list_systems
from vixlib.weights import export, load, predict, save

__all__ = ["Grid", "Linformer", "Mechanism", "Nystrom", "Performer", "Softmax"]
__all__ += ["build", "export", "list_systems", "load", "predict", "resized", "save"]
__all__ += ["self_attention"]
__version__ = "0.2.0"
