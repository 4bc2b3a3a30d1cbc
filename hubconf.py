"""Every system for torch.hub: torch.hub.load(REPOSITORY, "ViN", pretrained=True)."""

from functools import partial

import vixlib

dependencies = ["torch", "torchvision", "einops", "numpy", "safetensors", "tqdm", "PIL", "filelock"]
globals().update({name: partial(vixlib.build, name) for name in vixlib.list_systems()})
