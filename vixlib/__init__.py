"""Vision Xformers: linear attention for image classification, one contract for every mechanism."""

from vixlib import _torchvision  # noqa: F401  must come before anything imports torchvision
from vixlib.attention import Grid, Mechanism
from vixlib.fused import Linformer, Nystrom, Performer, Softmax
from vixlib.models.host import resized, self_attention
from vixlib.systems import build, list_systems

__all__ = ["Grid", "Linformer", "Mechanism", "Nystrom", "Performer", "Softmax"]
__all__ += ["build", "list_systems", "resized", "self_attention"]
__version__ = "0.1.0"
