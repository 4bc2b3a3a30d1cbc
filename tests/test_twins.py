"""Given the same weights, our hosts give what timm, transformers and vit-pytorch give.

Every weight, table and statistic is drawn anew, queries and keys large, in float64: at random
initialisation a host whose bias is transposed, or whose norms divide by another epsilon, would pass
(its logits differ by 1e-5). `MUTANTS` are such mistakes, and each of them must be seen.
"""

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from functools import cache, partial
from typing import NamedTuple

import pytest
import torch
from small import images, random, randomise
from torch import Tensor, nn

from vixlib import measure  # before the twins: lets torchvision be imported beside a CPU torch
from vixlib.attention import Mechanism
from vixlib.layers import MultiHead, OffsetBias, Residual, Subsample
from vixlib.models.cct import CCX
from vixlib.models.cvt import ConvolutionalProjection, CvX
from vixlib.models.levit import LeViX

TOLERANCE = 1e-9  # of the largest logit


class Host(NamedTuple):
    """A published model: how the twin is built, its tensors in our order, ours, their size."""

    twin: Callable[[], nn.Module]
    in_our_order: Callable[[nn.Module], Iterator[Tensor]]
    ours: Callable[[], nn.Module]
    parameters: int | None = None


def package(name: str) -> object:
    return pytest.importorskip(name, reason=f"{name.split('.')[0]}: pip install '.[twins]'")


def tensors(*modules: nn.Module) -> list[Tensor]:
    """Everything that modules hold, as views, but for the counts of batches."""
    return [t for module in modules for t in module.state_dict().values() if t.ndim]


# --- what stands where ---------------------------------------------------------------------------


def timm_levit() -> nn.Module:
    levit = package("timm.models.levit")
    return levit.Levit(**levit.model_cfgs["levit_128s"])  # one head; create_model gives it two


def from_timm(twin: nn.Module) -> Iterator[Tensor]:
    """Queries, keys and values are one projection, head by head; biases come first, and flat."""

    def cut(projection: nn.Module, *widths: int) -> Iterator[Tensor]:
        parts = [t.unflatten(0, (heads, -1)).split(widths, 1) for t in tensors(projection)]
        return (part for of_one in zip(*parts, strict=True) for part in of_one)

    yield from tensors(twin.stem)
    for block in (m for m in twin.modules() if hasattr(m, "mlp")):
        attention = next(block.children())
        heads, d, e = attention.num_heads, attention.key_dim, attention.val_dim
        if hasattr(attention, "qkv"):
            yield from cut(attention.qkv, d, d, e)
        else:
            yield from tensors(attention.q)
            yield from cut(attention.kv, d, e)
        yield from tensors(attention.proj)
        yield attention.attention_biases.unflatten(1, attention.resolution)
        yield from tensors(block.mlp)
    yield from tensors(twin.head)


def transformers_cvt() -> nn.Module:
    transformers = package("transformers")
    return transformers.CvtForImageClassification(transformers.CvtConfig(num_labels=1000))


def from_transformers(twin: nn.Module) -> Iterator[Tensor]:
    """Each stage holds its embedding and norm; convolutions come before all linear maps."""
    stages = twin.cvt.encoder.stages
    embeddings = [stage.embedding.convolution_embeddings for stage in stages]
    yield stages[-1].cls_token[0]
    yield from tensors(*(e.projection for e in embeddings))
    yield from tensors(*(e.normalization for e in embeddings))
    for layer in (layer for stage in stages for layer in stage.layers):
        yield from tensors(layer.layernorm_before)
        for name in ("projection_query", "projection_key", "projection_value"):
            for kind in ("convolution_", ""):
                yield from tensors(getattr(layer.attention.attention, kind + name))
        yield from tensors(layer.attention.output, layer.layernorm_after)
        yield from tensors(layer.intermediate, layer.output)
    yield from tensors(twin.layernorm, twin.classifier)


def vit_pytorch_cct(name: str, convolutions: int) -> Callable[[], nn.Module]:
    sizes = {"img_size": 32, "num_classes": 10, "n_conv_layers": convolutions}
    learned = {"positional_embedding": "learnable"}
    return lambda: getattr(package("vit_pytorch.cct"), name)(**sizes, **learned)


def from_vit_pytorch(twin: nn.Module, rows: int) -> Iterator[Tensor]:
    """Queries, keys and values are one matrix; positions are tokens, ours an image."""
    body = twin.classifier
    yield from tensors(twin.tokenizer)
    yield body.positional_emb[0].mT.unflatten(1, (rows, -1))
    for block in body.blocks:
        yield from tensors(block.pre_norm)
        yield from block.self_attn.qkv.weight.chunk(3)
        yield from tensors(block.self_attn.proj, block.norm1, block.linear1, block.linear2)
    yield from tensors(body.norm, body.attention_pool, body.fc)


HOSTS = {
    "LeViT-128S": Host(
        timm_levit,
        from_timm,
        lambda: LeViX(
            image_size=224,
            num_classes=1000,
            stem=(2, 2, 2, 2),
            widths=(128, 256, 384),
            heads=(4, 6, 8),
            depths=(2, 3, 4),
        ),
        7_391_290,
    ),
    "CvT-13": Host(
        transformers_cvt,
        from_transformers,
        lambda: CvX(
            image_size=224,
            num_classes=1000,
            strides=(4, 2, 2),
            kernels=(7, 3, 3),
            widths=(64, 192, 384),
            heads=(1, 3, 6),
            depths=(1, 2, 10),
        ),
        19_997_480,
    ),
    "CCT-2/3x2": Host(
        vit_pytorch_cct("cct_2", 2),
        partial(from_vit_pytorch, rows=8),
        lambda: CCX(stem=(1, 1), pool=2, dim=128, depth=2, dim_head=64, mlp_ratio=1),
        283_723,
    ),
    "CCT-7/3x1": Host(
        vit_pytorch_cct("cct_7", 1),
        partial(from_vit_pytorch, rows=16),
        lambda: CCX(stem=(1,), pool=2, dim=256, depth=7, dim_head=64, mlp_ratio=2),
        3_760_139,
    ),
}


def small_levit() -> nn.Module:
    sizes = {"embed_dim": (32, 48, 64), "num_heads": (2, 3, 4), "depth": (1, 1, 2), "key_dim": 16}
    return package("timm.models.levit").Levit(img_size=(96, 176), num_classes=7, **sizes)


def small_cvt() -> nn.Module:
    transformers = package("transformers")
    sizes = {"embed_dim": [16, 32, 64], "num_heads": [1, 2, 4], "depth": [1, 2, 3]}
    config = transformers.CvtConfig(num_labels=7, drop_path_rate=[0.0] * 3, **sizes)
    return transformers.CvtForImageClassification(config)


def small_cct() -> nn.Module:
    sizes = {"embedding_dim": 64, "num_layers": 2, "num_heads": 2, "mlp_ratio": 2}
    sizes |= {"kernel_size": 3, "stride": 1, "padding": 1, "n_conv_layers": 2}
    without = {"attention_dropout": 0.0, "stochastic_depth_rate": 0.0}
    sizes |= {"positional_embedding": "learnable", "img_size": (23, 36), "num_classes": 7}
    return package("vit_pytorch.cct").CCT(**sizes, **without)


RECTANGLES = {  # small ones, for images whose sides differ, in every stage
    "LeViT": Host(
        small_levit,
        from_timm,
        lambda: LeViX(
            image_size=(96, 176),
            num_classes=7,
            stem=(2, 2, 2, 2),
            widths=(32, 48, 64),
            heads=(2, 3, 4),
            depths=(1, 1, 2),
        ),
    ),
    "CvT": Host(
        small_cvt,
        from_transformers,
        lambda: CvX(
            image_size=(64, 100),
            num_classes=7,
            strides=(4, 2, 2),
            kernels=(7, 3, 3),
            widths=(16, 32, 64),
            heads=(1, 2, 4),
            depths=(1, 2, 3),
        ),
    ),
    "CCT": Host(
        small_cct,
        partial(from_vit_pytorch, rows=6),
        lambda: CCX(
            image_size=(23, 36),
            num_classes=7,
            stem=(1, 1),
            pool=2,
            dim=64,
            depth=2,
            mlp_ratio=2,
            drop_path=0.0,
        ),
    ),
}

# --- the comparison ------------------------------------------------------------------------------


def pour(ours: nn.Module, into: Iterable[Tensor]) -> None:
    """Copies our weights, in order, into a twin's; there the axis of heads may be apart."""
    for mine, theirs in zip(held(ours), into, strict=True):
        assert theirs.flatten(0, theirs.ndim - mine.ndim).shape == mine.shape
        theirs.copy_(mine.view(theirs.shape))


class Pair(NamedTuple):
    """Our model, how many parameters its twin has, and what the twin says of images."""

    ours: nn.Module
    parameters: int
    images: Tensor
    scores: Tensor

    def distance(self, model: nn.Module) -> float:
        """How far a model's scores are from the twin's, in parts of the twin's largest."""
        with torch.no_grad():
            scores = model(self.images)
        return ((scores - self.scores).abs().max() / self.scores.abs().max()).item()


@pytest.fixture(scope="module")
def pair():
    """The Pair of a host, made once."""

    @cache
    @torch.no_grad()
    def make(name: str) -> Pair:
        host = HOSTS[name]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            twin, ours = host.twin().double().eval(), host.ours().double().eval()
            randomise(ours)
            pour(ours, host.in_our_order(twin))
            x = images(*ours.size, batch=2)
        scores = twin(x)
        return Pair(ours, measure.parameters(twin), x, getattr(scores, "logits", scores))

    return make


@pytest.mark.parametrize("name", HOSTS)
def test_same_size(pair, name):
    ours, parameters, *_ = pair(name)
    assert measure.parameters(ours) == parameters == HOSTS[name].parameters


@pytest.mark.parametrize("name", HOSTS)
def test_same_scores(pair, name):
    assert pair(name).distance(pair(name).ours) <= TOLERANCE


def held(model: nn.Module) -> list[Tensor]:
    return [tensor for tensor in tensors(model) if tensor.numel()]


def step(model: nn.Module, in_our_order: Callable, x: Tensor, towards: Tensor) -> list[Tensor]:
    """Scores, gradient of the images, then a gradient or a statistic for each of our tensors."""
    x = x.clone().requires_grad_()
    scores = model(x)
    scores = getattr(scores, "logits", scores)
    scores.backward(towards)
    for parameter in model.parameters():
        without = torch.zeros_like(parameter)
        parameter.data = without if parameter.grad is None else parameter.grad
    return [scores.detach(), x.grad, *in_our_order(model)]


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", RECTANGLES)
def test_same_gradients_and_statistics_for_rectangles(name, training):
    """In training, norms are by the batch, which goes into what they keep."""
    host = RECTANGLES[name]
    twin, ours = (model().double().train(training) for model in (host.twin, host.ours))
    randomise(ours)
    with torch.no_grad():
        pour(ours, host.in_our_order(twin))
    x, towards = images(*ours.size, batch=3), random(3, 7)
    assert measure.parameters(ours) == measure.parameters(twin)
    expected = step(twin, host.in_our_order, x, towards)
    seen = step(ours, held, x, towards)
    most = max(tensor.abs().max() for tensor in expected[2:])
    for mine, theirs in zip(seen, expected, strict=True):
        far = (mine - theirs.reshape(mine.shape)).abs().max()
        assert far <= TOLERANCE * max(theirs.abs().max(), most / 1000)


# --- the comparison itself -----------------------------------------------------------------------

Mutant = Callable[[nn.Module], None]
BatchNorm = nn.BatchNorm1d, nn.BatchNorm2d


def each(kind: type | tuple, change: Mutant = lambda module: None, **attributes) -> Mutant:
    """Changes every module of a kind, or sets its attributes."""

    def mutant(model: nn.Module) -> None:
        for module in [m for m in model.modules() if isinstance(m, kind)]:
            change(module)
            for name, value in attributes.items():
                assert hasattr(module, name)
                setattr(module, name, value)

    return mutant


def replace(kind: type, new: nn.Module) -> Mutant:
    """Puts another module in the place of every one of a kind."""

    def change(parent: nn.Module) -> None:
        for name, child in parent.named_children():
            if isinstance(child, kind):
                setattr(parent, name, new)

    return each(nn.Module, change)


def exchange(table: Tensor) -> None:
    """Rows for columns."""
    table.copy_(table.mT.clone())


def queries_beside_each_other(bias: OffsetBias) -> None:
    if len(bias.of_queries) < len(bias.of_keys):
        bias.of_queries.div_(2)


def odd_keys(projection: ConvolutionalProjection) -> None:
    if projection.depthwise[0].stride == (2, 2):
        projection.depthwise[0].padding = 0, 0
        projection.depthwise.insert(0, nn.ZeroPad2d((0, 2, 0, 2)))


def cls_convolved(projection: ConvolutionalProjection) -> None:
    def convolve(_, inputs):
        cls, image = inputs[0].split([1, inputs[0].shape[1] - 1], 1)
        return torch.cat([projection.depthwise(cls.mT[..., None])[..., 0].mT, image], 1)

    if projection.grid.prefix_tokens:
        projection.register_forward_pre_hook(convolve)


def cls_no_key(mechanism: Mechanism) -> None:
    if mechanism.keys.prefix_tokens:
        mechanism.keys = mechanism.keys._replace(prefix_tokens=0)
        mechanism.register_forward_pre_hook(lambda _, x: (x[0], x[1][:, :, 1:], x[2][:, :, 1:]))


def norm_on_the_branch(cct: CCX) -> None:
    for i in range(1, len(cct.blocks), 3):
        cct.blocks[i + 1].insert(0, cct.blocks[i])
        cct.blocks[i] = nn.Identity()


MUTANTS = {
    "LeViT": {
        "bias zero": each(OffsetBias, lambda m: m.table.zero_()),
        "bias of columns for rows": each(OffsetBias, lambda m: exchange(m.table)),
        "bias without stride": each(OffsetBias, queries_beside_each_other),
        "queries of the next place": each(
            Subsample, lambda m: m.register_forward_pre_hook(lambda _, x: x[0].roll(-1, 1))
        ),
        "batch norm eps 1e-6": each(BatchNorm, eps=1e-6),
        "batch norm eps 1e-3": each(BatchNorm, eps=1e-3),
        "relu for hardswish": replace(nn.Hardswish, nn.ReLU()),
        "hardswish after the stem": lambda model: model.stem.append(nn.Hardswish()),
    },
    "CvT": {
        "scores over the root of a head": each(MultiHead, scale=1.0),
        "odd keys": each(ConvolutionalProjection, odd_keys),
        "CLS convolved": each(ConvolutionalProjection, cls_convolved),
        "CLS no key": each(Mechanism, cls_no_key),
        "CLS normalised": lambda model: model.cls.copy_(model.norms[-1](model.cls)),
        "mean for CLS": lambda model: model.stages[-1].register_forward_hook(
            lambda _, inputs, x: x.mean(1, keepdim=True)
        ),
        "norm after the branch": each(Residual, lambda m: m.append(m.pop(0))),
        "batch norm eps 1e-6": each(BatchNorm, eps=1e-6),
        "batch norm eps 1e-3": each(BatchNorm, eps=1e-3),
        "layer norm eps 1e-6": each(nn.LayerNorm, eps=1e-6),
        "layer norm eps 1e-12": each(nn.LayerNorm, eps=1e-12),
        "gelu by tanh": each(nn.GELU, approximate="tanh"),
    },
    "CCT": {
        "mean for sequence pooling": lambda model: model.importance.weight.zero_(),
        "norm on the branch": norm_on_the_branch,
        "columns for rows": lambda model: exchange(model.positions.table),
        "mean for max-pool": replace(nn.MaxPool2d, nn.AvgPool2d(3, 2, padding=1)),
        "queries for keys": each(MultiHead, lambda m: m._modules.update(q=m.k, k=m.q)),
        "layer norm eps 1e-6": each(nn.LayerNorm, eps=1e-6),
        "gelu by tanh": each(nn.GELU, approximate="tanh"),
    },
}


@pytest.mark.proof
@pytest.mark.parametrize(
    ("name", "mutant"), [(name, of) for name in HOSTS for of in MUTANTS[name.split("-")[0]]]
)
@torch.no_grad()
def test_mutant_is_seen(pair, name, mutant):
    model = deepcopy(pair(name).ours)
    MUTANTS[name.split("-")[0]][mutant](model)
    assert pair(name).distance(model) > 100 * TOLERANCE
