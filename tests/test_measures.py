"""What a model costs, by other methods: FLOPs by hand from shapes, memory by the tensors alive.

The formulas count multiplications by 2, for the addition that goes with each: of products of
matrices and of convolutions, of one image. Letters: n queries, m keys, h heads, d e widths of keys
and values, r what is kept of the tokens, or Performer's features, c channels.
"""

import math
import os
import platform
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vixlib import Grid, Linformer, Nystrom, Performer, Softmax, build, measure, self_attention
from vixlib.data import Dataset
from vixlib.errors import BadInput
from vixlib.layers import mlp
from vixlib.paper.runs import Run
from vixlib.paper.training import _costs, _of_curve

CPU = torch.device("cpu")
CLASSES = 10

# --- FLOPs by hand -------------------------------------------------------------------------------


def product(rows, inner, columns):
    return 2 * rows * inner * columns


def convolution(places, into, out, kernel, groups=1):
    """At each place that it leaves, for each channel that it makes."""
    return 2 * places * out * (into // groups) * kernel**2


def strided(side, stride):
    return math.ceil(side / stride)


def softmax(n, m, h, d, e):
    return h * (product(n, d, m) + product(n, m, e))


def linformer(n, m, h, d, e, r, projected_before=False):
    """E k and E v, unless the host has applied E; then softmax over r keys."""
    mixed = 0 if projected_before else h * (product(r, m, d) + product(r, m, e))
    return mixed + softmax(n, r, h, d, e)


def performer(n, m, h, d, e, r):
    """Features of queries and keys; their sums of values and of a one beside them, and back."""
    features = product(n, d, r) + product(m, d, r)
    return h * (features + product(r, m, e + 1) + product(n, r, e + 1))


def nystrom(n, m, h, d, e, r, kernel=33):
    """Three softmaxes, the third's output taken through 6 steps of the inverse, a convolution.

    A step squares x and multiplies w twice; all but the last make the next x. Before them stand
    a a^T and two reflections of a and w, after them a^T w.
    """
    x, w = product(r, r, r), product(r, r, e)
    reflected = 2 * product(1, r, r) + 2 * product(1, r, e)
    inverse = x + 6 * (x + 2 * w) + 5 * x + w + reflected
    attended = product(r, d, r) + softmax(r, m, 1, d, e) + softmax(n, r, 1, d, e)
    return h * (attended + inverse + 2 * m * e * kernel)


def mixing(mechanism, n, m, h, d, e=None, kernel=33):
    """A mechanism with what it keeps unless told."""
    e, r = e or d, max(1, max(n, m) // 16)
    if mechanism == "softmax":
        return softmax(n, m, h, d, e)
    if mechanism == "linformer":
        return linformer(n, m, h, d, e, r)
    if mechanism == "performer":
        return performer(n, m, h, d, e, int(d * math.log(d)))
    return nystrom(n, m, h, d, e, r, kernel)


def attention(mechanism, n, c, d):
    """Projections of c channels to heads of d, the mechanism, the projection back."""
    h = c // d
    if mechanism == "linformer":
        r = max(1, n // 16)
        late = 2 * product(n, c, c) + 2 * h * product(r, n, d)
        early = product(r, n, c) + 2 * product(r, c, c)
        return product(n, c, c) + min(late, early) + softmax(n, r, h, d, d) + product(n, c, c)
    return 4 * product(n, c, c) + mixing(mechanism, n, n, h, d)


def two_layers(n, c, hidden):
    return product(n, c, hidden) + product(n, hidden, c)


MECHANISMS = {
    "softmax": Softmax,
    "linformer": Linformer,
    "performer": Performer,
    "nystrom": Nystrom,
}
every_mechanism = pytest.mark.parametrize("mechanism", MECHANISMS)


@pytest.mark.parametrize(("n", "h", "d"), [(256, 4, 32), (1025, 3, 16), (8, 1, 64)])
@every_mechanism
def test_flops_of_a_mechanism(mechanism, n, h, d):
    got = measure.mechanism_flops(MECHANISMS[mechanism], n, heads=h, dim_head=d)
    assert got == mixing(mechanism, n, n, h, d)


def test_a_mechanism_has_four_heads_of_32_unless_told():
    assert measure.mechanism_flops(Softmax, 100) == softmax(100, 100, 4, 32, 32)


@pytest.mark.parametrize(
    ("options", "mixed"), [({}, 2), ({"shared": True}, 2), ({"kv_heads": 1}, 2)], ids=str
)
def test_flops_of_linformers_own_forms(options, mixed):
    """Called with keys and values apart, shared or not, E is applied to both."""
    n, h, d, r = 128, 4, 16, 24
    grid, kv = Grid(1, n), options.get("kv_heads", h)
    shapes = (1, h, n, d), (1, kv, n, d), (1, kv, n, d)
    make = partial(Linformer, h, d, grid, grid, rank=r, **options)
    assert measure.flops(make, *shapes) == mixed * kv * product(r, n, d) + softmax(n, r, h, d, d)


@pytest.mark.parametrize(("n", "c", "d"), [(256, 128, 32), (100, 48, 16)])
@every_mechanism
def test_flops_of_an_attention_with_its_projections(mechanism, n, c, d):
    make = partial(self_attention, c, Grid(1, n), mechanism=MECHANISMS[mechanism], dim_head=d)
    assert measure.flops(make, (1, n, c)) == attention(mechanism, n, c, d)


@pytest.mark.parametrize("shape", [(1, 50, 24), (1, 7, 24)])
def test_flops_of_a_channel_mlp(shape):
    assert measure.flops(lambda: mlp(24, 72), shape) == two_layers(shape[1], 24, 72)


def vix(mechanism, height, width, patch, c, depth, d, ratio, hybrid=False):
    """With CLS; as ViL has one head of keys that are the values, it is written out."""
    places = (height // patch) * (width // patch)
    n = places + 1
    if hybrid:
        sides, into, embedded = (height, width), 3, 0
        for i, out in enumerate((c // 4, c // 2, c)):
            sides = [strided(side, 2 if i < math.log2(patch) else 1) for side in sides]
            embedded += convolution(math.prod(sides), into, out, 3)
            into = out
    else:
        embedded = convolution(places, 3, c, patch)
    if mechanism == "linformer":
        r, kv = n // 16, c if hybrid else d
        late, early = product(n, c, kv) + product(r, n, kv), product(r, n, c) + product(r, c, kv)
        mixed = 2 * product(n, c, c) + min(late, early) + softmax(n, r, c // d, d, d)
    else:
        mixed = attention(mechanism, n, c, d)
    return embedded + depth * (mixed + two_layers(n, c, ratio * c)) + product(1, c, CLASSES)


def ccx(mechanism, height, width, stem, pool, c, depth, d, ratio):
    """Convolutions and pools, blocks, the importance of each token and their weighted sum."""
    sides, into, total = (height, width), 3, 0
    for out, stride in zip([64] * (len(stem) - 1) + [c], stem, strict=True):
        sides = [strided(side, stride) for side in sides]
        total += convolution(math.prod(sides), into, out, 3)
        sides, into = [strided(side, pool) for side in sides], out
    n = math.prod(sides)
    total += depth * (attention(mechanism, n, c, d) + two_layers(n, c, ratio * c))
    return total + product(n, c, 1) + product(1, n, c) + product(1, c, CLASSES)


def cvx(mechanism, height, width, strides, kernels, widths, heads, depths, ratio):
    """Depthwise convolutions before the projections, of keys and values at every second place."""
    sides, into, total = (height, width), 3, 0
    for i, c in enumerate(widths):
        sides = [strided(side, strides[i]) for side in sides]
        total += convolution(math.prod(sides), into, c, kernels[i])
        cls = int(i == len(widths) - 1)
        places, fewer = math.prod(sides), math.prod(strided(side, 2) for side in sides)
        n, m, h = places + cls, fewer + cls, heads[i]
        chosen = mechanism if n >= 64 else "softmax"
        block = convolution(places, c, c, 3, groups=c) + 2 * convolution(fewer, c, c, 3, groups=c)
        block += 2 * product(n, c, c) + 2 * product(m, c, c)  # queries and output, keys and values
        block += mixing(chosen, n, m, h, c // h, kernel=0)  # other grids: no token convolution
        total += depths[i] * (block + two_layers(n, c, ratio * c))
        into = c
    return total + product(1, into, CLASSES)


def levix(mechanism, height, width, stem, widths, heads, depths, d, ratio):
    """Values are twice as wide as keys, four times where queries are every second row, column."""
    sides, into, total = (height, width), 3, 0
    for i, stride in enumerate(stem):
        out = widths[0] // 2 ** (len(stem) - 1 - i)
        sides = [strided(side, stride) for side in sides]
        total += convolution(math.prod(sides), into, out, 3)
        into = out

    def mixed(n, m, c, out, h, e):
        chosen = mechanism if max(n, m) >= 64 else "softmax"
        projected = product(n, c, h * d) + product(m, c, h * d) + product(m, c, h * e)
        kernel = 33 if n == m else 0
        return projected + mixing(chosen, n, m, h, d, e, kernel) + product(n, h * e, out)

    for stage, (c, depth) in enumerate(zip(widths, depths, strict=True)):
        m = n = math.prod(sides)
        if stage:
            sides = [strided(side, 2) for side in sides]
            n = math.prod(sides)
            total += mixed(n, m, into, c, into // d, 4 * d) + two_layers(n, c, ratio * c)
        total += depth * (mixed(n, n, c, c, heads[stage], 2 * d) + two_layers(n, c, ratio * c))
        into = c
    return total + product(1, into, CLASSES)


def resnet(height, width, pairs, widths):
    sides, into = (height, width), widths[0]
    total = convolution(height * width, 3, into, 3)
    for stage, c in enumerate(widths):
        for i in range(pairs):
            sides = [strided(side, 2 if stage and not i else 1) for side in sides]
            places = math.prod(sides)
            total += convolution(places, into, c, 3) + convolution(places, c, c, 3)
            into = c
    return total + product(1, into, CLASSES)


def convmixer(height, width, patch, c, depth, kernel):
    places = (height // patch) * (width // patch)
    block = convolution(places, c, c, kernel, groups=c) + product(places, c, c)
    return convolution(places, 3, c, patch) + depth * block + product(1, c, CLASSES)


def flops_of(name, height, width, **options):
    make = partial(build, name, image_size=(height, width), num_classes=CLASSES, **options)
    return measure.flops(make, (1, 3, height, width))


LETTERS = {"softmax": "T", "linformer": "L", "performer": "P", "nystrom": "N"}


@pytest.mark.parametrize(
    ("height", "width", "patch", "c", "depth", "d", "ratio"),
    [(32, 32, 1, 128, 4, 32, 2), (24, 40, 2, 48, 3, 16, 3)],
)
@pytest.mark.parametrize("hybrid", [False, True])
@every_mechanism
def test_flops_of_a_vix(mechanism, hybrid, height, width, patch, c, depth, d, ratio):
    name = f"{'Hybrid' * hybrid}Vi{LETTERS[mechanism]}"
    sizes = {"patch_size": patch, "dim": c, "depth": depth, "dim_head": d, "mlp_ratio": ratio}
    hand = vix(mechanism, height, width, patch, c, depth, d, ratio, hybrid)
    assert flops_of(name, height, width, **sizes) == hand


@pytest.mark.parametrize(
    ("height", "width", "stem", "pool", "c", "depth", "d", "ratio"),
    [(32, 32, (1, 1, 1), 1, 128, 4, 32, 4), (32, 50, (1, 1), 2, 96, 2, 48, 3)],
)
@every_mechanism
def test_flops_of_a_ccx(mechanism, height, width, stem, pool, c, depth, d, ratio):
    sizes = {"stem": stem, "pool": pool, "dim": c, "depth": depth, "dim_head": d}
    got = flops_of(f"CC{LETTERS[mechanism]}", height, width, **sizes, mlp_ratio=ratio)
    assert got == ccx(mechanism, height, width, stem, pool, c, depth, d, ratio)


@pytest.mark.parametrize(
    ("height", "width", "sizes"),
    [
        (32, 32, ((1, 1, 2), (3, 3, 3), (64, 96, 128), (2, 3, 4), (1, 1, 2), 4)),
        (36, 44, ((2, 1, 2), (7, 3, 3), (32, 32, 48), (1, 2, 3), (2, 1, 1), 2)),
    ],
)
@every_mechanism
def test_flops_of_a_cvx(mechanism, height, width, sizes):
    names = "strides", "kernels", "widths", "heads", "depths", "mlp_ratio"
    got = flops_of(f"Cv{LETTERS[mechanism]}", height, width, **dict(zip(names, sizes, strict=True)))
    assert got == cvx(mechanism, height, width, *sizes)


@pytest.mark.parametrize(
    ("height", "width", "sizes"),
    [
        (32, 32, ((1, 1, 1), (64, 96, 128), (2, 3, 4), (2, 2, 2), 16, 2)),
        (31, 44, ((2, 1), (48, 64), (3, 2), (1, 3), 8, 3)),
    ],
)
@every_mechanism
def test_flops_of_a_levix(mechanism, height, width, sizes):
    names = "stem", "widths", "heads", "depths", "dim_head", "mlp_ratio"
    got = flops_of(
        f"LeVi{LETTERS[mechanism]}", height, width, **dict(zip(names, sizes, strict=True))
    )
    assert got == levix(mechanism, height, width, *sizes)


@pytest.mark.parametrize(
    ("name", "pairs", "height", "width", "widths"),
    [("ResNet-20", 3, 32, 32, (16, 32, 64)), ("ResNet-56", 9, 25, 30, (8, 8, 24))],
)
def test_flops_of_a_resnet(name, pairs, height, width, widths):
    assert flops_of(name, height, width, widths=widths) == resnet(height, width, pairs, widths)


@pytest.mark.parametrize(
    ("height", "width", "sizes"), [(32, 32, (2, 256, 8, 5)), (24, 36, (4, 40, 3, 7))]
)
def test_flops_of_a_convmixer(height, width, sizes):
    names = "patch_size", "dim", "depth", "kernel"
    got = flops_of("ConvMixer-256/8", height, width, **dict(zip(names, sizes, strict=True)))
    assert got == convmixer(height, width, *sizes)


@pytest.mark.parametrize(
    ("name", "mixed"), [("FNet", 0), ("MLPMixer", 2 * product(48, 256, 256))], ids=str
)
def test_flops_of_other_mixers(name, mixed):
    """A Fourier transform is no product; an MLP over 256 tokens is, for each of 48 channels."""
    n, ratio = (257, 2) if name == "FNet" else (256, 1)
    hand = convolution(256, 3, 48, 2) + 3 * (mixed + two_layers(n, 48, ratio * 48))
    got = flops_of(name, 32, 32, patch_size=2, dim=48, depth=3)
    assert got == hand + product(1, 48, CLASSES)


def test_flops_are_those_of_the_images_that_are_asked_for():
    one, three = (measure.flops(partial(build, "ViN"), (b, 3, 32, 32)) for b in (1, 3))
    assert three == 3 * one


def test_flops_count_an_evaluation_that_computes_nothing():
    seen = []

    class Watched(nn.Linear):
        def forward(self, x, y):
            seen.append((self.training, torch.is_grad_enabled(), x.is_meta, self.weight.is_meta))
            return super().forward(x) + y

    assert measure.flops(lambda: Watched(5, 7), (4, 5), (4, 7)) == product(4, 5, 7)
    assert seen == [(False, False, True, True)]


def test_flops_are_counted_in_silence(capfd):
    measure.flops(lambda: nn.Linear(5, 7), (4, 5))
    assert capfd.readouterr() == ("", "")


def test_what_makes_no_model_has_no_flops():
    with pytest.raises(BadInput, match=r"^made model: expected Module, got "):
        measure.flops(lambda: torch.zeros(1), (1, 2))


def test_parameters_are_counted_once_and_buffers_not():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = nn.Parameter(torch.zeros(2, 3))
            self.layers = nn.ModuleList([nn.Linear(4, 5), nn.BatchNorm1d(7)])
            self.tied = self.layers[0].weight
            self.frozen = nn.Parameter(torch.zeros(11), requires_grad=False)

    assert measure.parameters(Odd()) == 2 * 3 + (4 * 5 + 5) + 2 * 7 + 11


def test_parameters_of_a_vit_by_hand():
    c, classes, patch, places = 48, 7, 2, 64
    embedded = 3 * patch**2 * c + c + c + (places + 1) * c  # with CLS and positions
    block = 2 * 2 * c + 3 * c * c + (c * c + c) + (c * 2 * c + 2 * c) + (2 * c * c + c)
    sizes = {"image_size": 16, "patch_size": patch, "dim": c, "depth": 3, "dim_head": 16}
    made = build("ViT", num_classes=classes, **sizes)
    assert measure.parameters(made) == embedded + 3 * block + 2 * c + c * classes + classes


# --- memory by the tensors that are alive --------------------------------------------------------


class Alive(TorchDispatchMode):
    """The most bytes of tensors made by operations that were alive after one of them."""

    def __init__(self):
        super().__init__()
        self.made, self.peak = {}, 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        before = {t.untyped_storage()._cdata for t in tensors([arguments, options])}
        made = operation(*arguments, **(options or {}))
        for tensor in tensors(made):
            storage = tensor.untyped_storage()
            if storage._cdata not in before:  # neither a view nor written in place
                self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.made = {key: pair for key, pair in self.made.items() if not pair[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.made.values()))
        return made


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def peaks(model, images, labels):
    """MB alive at most in a forward pass, and in a whole step of AdamW."""
    with Alive() as forward:
        kept = model(images)
    del kept
    with Alive() as step:
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        logits = model(images)  # held to the end, as by whoever counts what was right
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
    return forward.peak / 1e6, step.peak / 1e6


def batch(count, *shape):
    return torch.randn(count, *shape), torch.randint(CLASSES, (count,))


def chain(layers, c):
    """Of each pair the ReLU's output is kept, and nothing else."""
    pairs = ([nn.Linear(c, c, bias=False), nn.ReLU()] for _ in range(layers))
    return nn.Sequential(*(module for pair in pairs for module in pair), nn.Linear(c, CLASSES))


def test_memory_of_a_step_holds_what_backward_needs():
    """Forward holds a kept output a layer and one that is not; backward two gradients beside.

    And the logits, to the end.
    """
    layers, b, c = 4, 8192, 32
    model, (images, labels) = chain(layers, c), batch(b, c)
    one = 4 * b * c / 1e6
    forward, step = peaks(model, images, labels)
    assert forward == pytest.approx((layers + 1) * one, rel=0.01)
    assert step == pytest.approx((layers + 2) * one + 4 * b * CLASSES / 1e6, rel=0.01)
    got = measure.training_memory(model, images, labels)
    assert got == pytest.approx(step, rel=0.01)
    assert measure.peak_memory(lambda: model(images), CPU) == pytest.approx(forward, rel=0.01)


def test_memory_of_a_step_holds_gradients_and_both_averages_of_adam():
    c = 600
    model = chain(1, c)
    held = 3 * 4 * sum(p.numel() for p in model.parameters()) / 1e6
    got = measure.training_memory(model, *batch(1, c))
    assert got == pytest.approx(held, rel=0.01)
    assert peaks(chain(1, c), *batch(1, c))[1] == pytest.approx(held, rel=0.01)


def test_memory_of_a_step_is_beyond_model_and_batch():
    class First(nn.Linear):
        def __init__(self):
            super().__init__(3, CLASSES)
            self.register_buffer("large", torch.zeros(2_000_000))

        def forward(self, x):
            return super().forward(x[:, :, 0, 0])

    images, labels = batch(16, 3, 200, 200)  # 7.7 MB
    assert measure.training_memory(First(), images, labels) < 0.01


@pytest.mark.parametrize("name", ["ViT", "HybridViL", "CCT", "CvT", "LeViT", "ResNet-20"])
def test_memory_of_a_system_is_that_of_its_live_tensors(name):
    """To a few percent: within an operation there is more than between two."""
    model = Run(name, "quick").build()
    images, labels = batch(32, 3, 16, 16)
    forward, step = peaks(Run(name, "quick").build(), images, labels)
    assert step >= forward
    assert measure.training_memory(model, images, labels) == pytest.approx(step, rel=0.06)


def test_the_measured_model_has_taken_one_step_of_adam():
    model, (images, labels) = chain(1, 8), batch(6, 8)
    before = [p.detach().clone() for p in model.parameters()]
    measure.training_memory(model, images, labels)
    for was, p in zip(before, model.parameters(), strict=True):
        # weight decay of 0.01 at a rate of 0.001, then a step of the rate against the sign
        moved = was * (1 - 1e-5) - 1e-3 * p.grad.sign() * (p.grad.abs() > 1e-4)
        there = p.grad.abs() > 1e-4
        torch.testing.assert_close(p.detach()[there], moved[there], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("sizes", "peak"),
    [
        ([(3,), (1,)], 3.0),  # one after another
        ([(1,), (3,)], 3.0),
        ([(1, 2), (2,)], 3.0),  # at once
    ],
    ids=str,
)
def test_peak_memory_is_the_most_at_once(sizes, peak):
    def call():
        for some in sizes:
            kept = [torch.zeros(mb * 250_000) for mb in some]
            del kept

    assert measure.peak_memory(call, CPU) == pytest.approx(peak, abs=1e-3)


def test_a_megabyte_is_a_million_bytes():
    got = measure.peak_memory(lambda: torch.zeros(250_000), CPU)
    assert got == pytest.approx(1, rel=1e-9)


def test_peak_memory_on_a_gpu_is_that_of_its_allocator(monkeypatch):
    told = []
    for name, answer in {
        "synchronize": None,
        "reset_peak_memory_stats": None,
        "memory_allocated": 5_000_000,
        "max_memory_allocated": 7_500_000,
    }.items():
        tell = lambda of, name=name, answer=answer: told.append((name, of)) or answer  # noqa: E731
        monkeypatch.setattr(torch.cuda, name, tell)
    second = torch.device("cuda:1")
    got = measure.peak_memory(lambda: told.append(("call", second)), second)
    assert {of for _, of in told} == {second}
    told = [name for name, _ in told]
    assert got == 2.5
    before = told[: told.index("call")]
    assert sorted(before) == ["memory_allocated", "reset_peak_memory_stats", "synchronize"]
    assert told[len(before) :] == ["call", "max_memory_allocated"]


def test_measuring_leaves_standard_error_as_it_was(capfd):
    open_before = os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd") else []

    def call():
        os.write(2, b"lost")
        raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError):
            measure.peak_memory(call, CPU)
        os.write(2, b"heard ")
    assert capfd.readouterr() == ("", "heard heard ")
    if open_before:
        assert len(os.listdir("/proc/self/fd")) == len(open_before)


def test_a_device_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    assert measure.device_name(torch.device("cuda:1")) == "GPU of cuda:1"
    with open("/proc/cpuinfo") as file:
        models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    if models:
        assert measure.device_name(CPU) == models[0]


@pytest.mark.parametrize("told", [None, "vendor_id : none\n"])
def test_a_processor_without_a_name_is_named_by_its_kind(told, monkeypatch, tmp_path):
    if told:
        (tmp_path / "cpuinfo").write_text(told)
    monkeypatch.setattr(measure, "Path", lambda path: tmp_path / "cpuinfo")
    assert measure.device_name(CPU) == platform.machine()


# --- columns of records --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset():
    torch.manual_seed(0)
    images = torch.randint(256, (300, 3, 16, 16), dtype=torch.uint8)
    labels = torch.randint(CLASSES, (300,))
    return Dataset(images, labels, images[:9], labels[:9], tuple("abcdefghij"), "digits")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_costs_of_a_run(dataset, precision):
    """FLOPs of one image, memory of one batch, at the run's precision."""
    run = Run("ViT", "quick", overrides=(("batch", 100), ("precision", precision)))
    costs = _costs(run, dataset, CPU)
    c, n = 32, 65
    block = 2 * 2 * c + 3 * c * c + (c * c + c) + (c * 2 * c + 2 * c) + (2 * c * c + c)
    whole = 3 * 4 * c + c + c + n * c + 2 * block + 2 * c + 10 * c + 10
    assert costs["parameters"] == whole
    assert costs["flops"] == vix("softmax", 16, 16, 2, c, 2, 32, 2)
    images = (dataset.train_images[:100].float() - 127.5) / 127.5
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        _, step = peaks(run.build(), images, dataset.train_labels[:100])
    assert costs["peak_memory_mb"] == pytest.approx(step, rel=0.06)
    assert costs["peak_memory_mb"] == round(costs["peak_memory_mb"], 1)
    units = torch.backends.cpu.get_cpu_capability()
    assert costs["device"] == f"CPU, 1 thread(s): {measure.device_name(CPU)}, {units}"


def row(epoch, top1, seconds, loss=0.5, train_accuracy=60.0):
    return {"epoch": epoch, "loss": loss, "train_accuracy": train_accuracy} | {
        "top1": top1,
        "seconds": seconds,
        "cpu_seconds": seconds + 0.04,
    }


CURVE = [row(1, 50.0, 9.0), row(2, 72.0, 1.0), row(3, 72.0, 2.0), row(4, 61.0, 3.001, 0.25, 81.0)]


def test_a_record_holds_the_last_epoch_and_the_first_best():
    told = _of_curve(CURVE, diverged=False, best_on_test=True)
    curve = told.pop("curve")
    assert told == {
        "top1_best": 72.0,
        "epoch_best": 2,
        "train_accuracy": 81.0,
        "loss": 0.25,
        "seconds_per_epoch": 2.5,  # the median: the mean would be 3.75
        "cpu_seconds": 15.2,  # the sum, to tenths
    }
    assert [sorted(each) for each in curve] == [["epoch", "loss", "top1", "train_accuracy"]] * 4
    assert [each["epoch"] for each in curve] == [1, 2, 3, 4]
    assert [each["top1"] for each in curve] == [50.0, 72.0, 72.0, 61.0]
    assert CURVE[0]["seconds"] == 9.0  # the curve itself keeps them


def test_no_best_epoch_unless_it_is_asked_for():
    told = _of_curve(CURVE, diverged=False, best_on_test=False)
    assert (told["top1_best"], told["epoch_best"], told["loss"]) == (None, None, 0.25)


def test_seconds_of_an_epoch_are_a_median_to_hundredths():
    told = _of_curve([row(1, 1.0, s) for s in (0.126, 7.0, 0.1)], False, False)
    assert told["seconds_per_epoch"] == 0.13


def test_a_run_that_diverged_has_no_last_epoch_but_its_curve():
    told = _of_curve(CURVE[:2], diverged=True, best_on_test=True)
    assert told.pop("curve") == [{k: v for k, v in r.items() if "sec" not in k} for r in CURVE[:2]]
    assert (told.pop("seconds_per_epoch"), told.pop("cpu_seconds")) == (5.0, 10.1)
    assert set(told.values()) == {None}


def test_a_run_that_diverged_at_once_has_no_seconds():
    told = _of_curve([], diverged=True, best_on_test=True)
    assert (told.pop("curve"), told.pop("cpu_seconds")) == ([], 0)
    assert set(told.values()) == {None}
