"""CCX: the compact convolutional transformer with any attention (CCT, CCL, CCP, CCN)."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from vixlib.attention import Grid, Maker
from vixlib.fused import Softmax
from vixlib.layers import FRESH_STD, Positions, Residual, mlp, shrunk, tokens_of
from vixlib.models.host import Host, TokenMixer, self_attention


class CCX(Host):
    """Convolutions and max-pools make tokens; blocks normalise between attention and MLP.

    Hassani et al. 2021. Kept with every mechanism: tokenizer, learned positions, the block's norm
    between its two halves, stochastic depth (up to `drop_path`, linearly in depth), sequence
    pooling. A dropout inside attention, 0.1 in the original, is left out: linear mechanisms hold no
    matrix to drop from. Called with images (b 3 H W), returns logits (b num_classes).
    """

    def __init__(
        self,
        *,
        mechanism: Maker = Softmax,
        mixer: TokenMixer | None = None,
        image_size: int | tuple[int, int] = 32,
        num_classes: int = 10,
        stem: Sequence[int] = (1, 1, 1),
        pool: int = 1,
        dim: int = 128,
        depth: int = 4,
        dim_head: int = 32,
        mlp_ratio: int = 4,
        drop_path: float = 0.1,
        std: float = FRESH_STD,
    ):
        super().__init__(image_size)
        mixer = mixer or partial(self_attention, mechanism=mechanism, dim_head=dim_head)
        self.tokenizer, grid = nn.Sequential(), Grid(*self.size)
        widths = 3, *[64] * (len(stem) - 1), dim
        for i, stride in enumerate(stem):
            conv = nn.Conv2d(widths[i], widths[i + 1], 3, stride, padding=1, bias=False)
            self.tokenizer.extend([conv, nn.ReLU(), nn.MaxPool2d(3, pool, padding=1)])
            grid = shrunk(shrunk(grid, stride), pool)
        self.grid = grid
        self.positions = Positions(dim, grid, std)
        self.blocks = nn.Sequential()
        for i in range(depth):
            rate = drop_path * i / max(1, depth - 1)
            tokens = Residual(nn.LayerNorm(dim), mixer(dim, grid), drop_path=rate)
            channels = Residual(mlp(dim, mlp_ratio * dim), drop_path=rate)
            self.blocks.extend([tokens, nn.LayerNorm(dim), channels])
        self.norm = nn.LayerNorm(dim)
        self.importance = nn.Linear(dim, 1)
        self.head = nn.Linear(dim, num_classes)

    def logits(self, images: Tensor) -> Tensor:
        x = self.positions(tokens_of(self.tokenizer(images)))
        x = self.norm(self.blocks(x))
        weights = self.importance(x).softmax(1)  # sequence pooling: equation 3
        return self.head((weights.mT @ x)[:, 0])
