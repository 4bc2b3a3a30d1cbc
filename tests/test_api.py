"""Calls that once ended in a traceback of torch's or in silence, and what is kept of a swap."""

import re
import warnings
from functools import partial

import numpy as np
import pytest
import torch

from vixlib import Grid, Nystrom, build, resized, self_attention
from vixlib.errors import BadInput
from vixlib.fused import Softmax
from vixlib.maps import attention_maps, rollout
from vixlib.models.host import mechanism_for

SIZES = {"image_size": 16, "patch_size": 2, "dim": 32, "depth": 1}
VIT, FNET, X = build("ViT", **SIZES), build("FNet", **SIZES), torch.randn(2, 3, 16, 16)
MAPS = attention_maps(VIT, X)
FEW = {**SIZES, "patch_size": 4}  # 17 tokens

BAD = [
    (lambda: self_attention(64, Grid(2, 2), mechanism=7), "mechanism: expected Callable, got 7"),
    (
        lambda: mechanism_for(7, 2, 16, Grid(2, 2), Grid(2, 2)),
        "mechanism: expected Callable, got 7",
    ),
    (lambda: VIT(X.double()), "images: expected torch.float32 as the weights, got torch.float64"),
    (lambda: VIT(X.half()), "images: expected torch.float32 as the weights, got torch.float16"),
    (lambda: VIT(X.numpy()), "images: expected a tensor of normalised floats, got float32"),
    (lambda: FNET(X[:0]), "expected (batch, 3, 16, 16), got (0, 3, 16, 16)"),
    (lambda: attention_maps(VIT, X * 1000), "expected normalised floats, about -1 to 1, got -"),
    (lambda: attention_maps(VIT, X * np.nan), "expected normalised floats, about -1 to 1, got nan"),
    (lambda: MAPS[0].image(head="a"), "head: expected 0 to 0, got 'a'"),
    (lambda: MAPS[0].image(head=1), "head: expected 0 to 0, got 1"),
    (lambda: rollout(torch.zeros(3)), "maps: expected Sequence, got tensor"),
    (lambda: rollout([torch.zeros(3)]), "maps: expected AttentionMap, got tensor"),
    (lambda: resized(VIT, 10**6), "image_size: 1000000: "),
    (lambda: Grid(-1, 2), "rows: expected at least 0, got -1"),
    (lambda: Grid(1, 2, 0.5), "prefix_tokens: expected a whole number, got 0.5"),
    (lambda: build("ViT", attention=Nystrom, **FEW), "softmax is kept, over fewer than 64 tokens"),
    (
        lambda: build("LeViT", attention=partial(Nystrom), stem=(4, 4), image_size=32),
        'few_tokens="softmax" acc',
    ),
    (lambda: build("ViT", few_tokens="keep"), "unknown few_tokens 'keep'; legal: softmax"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_calls_are_a_line(call, message):
    with pytest.raises(BadInput, match=re.escape(message)) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_few_tokens_keep_softmax_but_not_in_silence():
    """A warning for a name of ours, none where that was accepted or softmax asked for."""
    with pytest.warns(UserWarning, match="^ViN: softmax is kept, over fewer than 64 tokens"):
        build("ViN", **FEW)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for attention in (Nystrom, partial(Nystrom, landmarks=4), "nystrom"):
            model = build("ViT", attention=attention, few_tokens="softmax", **FEW)
            assert isinstance(model.blocks[0][1].mechanism, Softmax)
        build("ViT", **FEW)
        build("ViT", attention=Softmax, **FEW)
        build("FNet", **FEW)
        build("ViN", **SIZES)
        build("LeViN", image_size=16, stem=(2, 1, 1))  # its first layers have 64


def test_any_precision_of_weights_and_autocast():
    assert build("ViN", **SIZES).double()(X.double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert VIT(X).dtype == torch.bfloat16
        assert VIT(X.bfloat16()).shape == (2, 10)
