"""Where the authors' released code is unlike its papers, as parts and options that rows can name.

Options of a mechanism that are so (`batch_wide`, `padded`, `shared`) stand with the mechanism.
"""

import torch
from torch import Tensor, nn

from vixlib.attention import widened


class StdNorm(nn.LayerNorm):
    """A layer norm that divides by std + eps, not by the root of var + eps: (... c) -> same.

    What stands in the released CvN and CvP.
    """

    def forward(self, x: Tensor) -> Tensor:
        wide = widened(x)
        std, mean = torch.std_mean(wide, -1, correction=0, keepdim=True)
        normal = (wide - mean) / (std + self.eps) * self.weight + self.bias
        return normal.to(self.weight.dtype)  # under autocast float32, as nn.LayerNorm


def compact_start(model: nn.Module) -> None:
    """Weights as the released CCX starts them, positions aside: not as torch's defaults."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
