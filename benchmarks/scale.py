"""What each system would cost on ImageNet-1k at 224 x 224: counted, checked here, told by a page.

python -m benchmarks.scale      renders docs/scale.md from the records
"""

import io
import statistics
from collections.abc import Iterator, Sequence
from functools import partial

import pandas as pd
import torch
from PIL import Image
from torch._subclasses import FakeTensorMode
from torch.nn import CrossEntropyLoss

from benchmarks import fits, records
from benchmarks.clock import Clock
from benchmarks.results import benchmark
from vixlib import build
from vixlib.distributed import Team, recompute_blocks
from vixlib.images import read_image
from vixlib.measure import flops, mechanism_flops, parameters
from vixlib.paper.figures import written
from vixlib.paper.readme import between
from vixlib.paper.tables import crossovers
from vixlib.systems import MECHANISMS, RESULTS, system
from vixlib.train import autocast, descend, tokens_of

SIDE, CLASSES = 224, 1000
# the first tokens are those of 4 x 4 pixels, 56 x 56 of them, as in CvT's and Swin's first stage
AT_224 = {
    "ViX": {"patch_size": 4},
    "LeViX": {"stem": (2, 2, 1)},
    "CCX": {"stem": (2, 2, 1)},
    "CvX": {"strides": (4, 1, 2)},
    "ConvMixer": {"patch_size": 4},
    "ResNet": {},
}
SYSTEMS = [name for name in RESULTS if not name.endswith("-released")]
FIXED = {name: fits.MODELS[name] for name in ("ViL, rank 64", "ViN, 64 landmarks")}
CHECKED = "ViT", "ViL", "ViP", "ViN"
FIRST = *CHECKED, *FIXED, "FNet", "CvT", "CvN", "CCT", "CCN", "LeViT", "LeViN"  # of memory
FITTED, HELD = 112, (168, 224)  # sides: the rate of a check is fitted at one, and held to others
FACTOR = 3  # a training step's FLOPs by those of its forward pass: two products backward for one
PHOTO = 500, 375  # ImageNet's usual size
# what is assumed and nowhere measured by us
IMAGES, EPOCHS, RATE = 1_281_167, 300, 50e12
GPUS, BATCH, LINK, JPEG = 64, 128, 25e9, 110e3
# sides and images of a step that is spared memory, and how: pieces of the batch, blocks twice
SPARED = (224, 16), (1024, 4)
WAYS = {"as it is": (1, False), "in 4 pieces": (4, False)}
WAYS |= {"blocks computed twice": (1, True), "both": (4, True)}
STATE = 16  # bytes a parameter: weight, gradient and Adam's two moments in float32
CARDS = 16e9, 24e9, 80e9


def made(name: str, side: int = SIDE) -> torch.nn.Module:
    """A system, or one of FIXED, for a square image, with the first tokens of 4 x 4 pixels."""
    if name in FIXED:
        return FIXED[name](image_size=side, num_classes=CLASSES, patch_size=4)
    options = AT_224[system(name).family.host.__name__]
    return build(name, image_size=side, num_classes=CLASSES, **options)


def counted(name: str, side: int, batch: int, device: torch.device, precision: str) -> float:
    """MB of two training steps at their peak."""
    make = lambda image_size: made(name, image_size)  # noqa: E731
    return fits.counted(make, batch, side, device, precision)


def cost(name: str) -> dict:
    """Of a system at 224 x 224: parameters, and FLOPs of an image."""
    with torch.device("meta"):
        model = made(name)
    row = {"model": name, "quantity": "cost", "side": SIDE, "parameters": parameters(model)}
    return row | {"tokens": tokens_of(model), "flops": flops(lambda: model, (1, 3, SIDE, SIDE))}


def costs(names: Sequence[str]) -> list[dict]:
    return [cost(name) for name in names]


def memory(name: str, device: torch.device, precision: str) -> list[dict]:
    """Of a system at 224 x 224: the memory of training as a line through two batches."""
    # BatchNorm in a head refuses one image
    two, three = (counted(name, SIDE, batch, device, precision) for batch in (2, 3))
    row = {"model": name, "quantity": "line", "side": SIDE}
    return [row | {"image_mb": round(three - two, 2), "fixed_mb": round(3 * two - 2 * three, 2)}]


def check(name: str, clock: Clock, device: torch.device, precision: str) -> list[dict]:
    """Of a system at some sides: milliseconds of a training step of one image, and memory of 4."""
    found = []
    for side in (FITTED, *HELD):
        torch.manual_seed(0)
        model, images = made(name, side).train(), torch.randn(1, 3, side, side)
        optimizer, label = torch.optim.AdamW(model.parameters(), fused=True), torch.tensor([7])
        call = partial(lambda m, i, o, t: descend(o, m(i), t), model, images, optimizer, label)
        times = clock.interleaved({"ours": call}, 3)["ours"]
        row = {"model": name, "quantity": "check", "side": side, "batch": 1}
        row["flops"] = flops(partial(made, name, side), (1, 3, side, side))
        found.append(row | {"ours_ms": round(statistics.median(times), 1)})
    one, two = (counted(name, FITTED, batch, device, precision) for batch in (1, 2))
    step = (lambda image_size: made(name, image_size)), 4, FITTED, device, precision
    row = {"model": name, "quantity": "memory", "side": FITTED, "batch": 4}
    row |= {"counted_mb": round(2 * two - one + (two - one), 2)}
    return [*found, row | {"measured_mb": round(fits.measured(*step), 2)}]


def spared(name: str, device: torch.device, precision: str) -> list[dict]:
    """Of a system at some sides: MB of two training steps, by how they are taken."""
    found = []
    for side, batch in SPARED:
        for way, (pieces, twice) in WAYS.items():
            with FakeTensorMode(), fits.Live() as live, device:
                model, team = made(name, side), Team(pieces)
                if twice:
                    recompute_blocks(model)
                images, labels = torch.zeros(batch, 3, side, side), torch.zeros(batch).long()
                optimizer = torch.optim.AdamW(model.parameters(), fused=True)
                for _ in range(2):
                    with autocast(device, precision):
                        team.step(
                            model, optimizer, images, labels, batch, model, CrossEntropyLoss()
                        )
            row = {"model": name, "quantity": "spared", "side": side, "batch": batch, "way": way}
            found.append(row | {"counted_mb": round(live.peak / 1e6, 1)})
    return found


def reading(clock: Clock) -> list[dict]:
    """Milliseconds of one core to read a photo's JPEG as 224 x 224 pixels."""
    low = torch.rand(3, 15, 20, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(low[None], PHOTO[::-1], mode="bicubic")[0]
    noise = torch.randn(smooth.shape, generator=torch.Generator().manual_seed(1))
    pixels = (255 * (smooth + 0.04 * noise).clamp(0, 1)).byte().permute(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "JPEG", quality=90)

    def call() -> None:
        with Image.open(io.BytesIO(file.getvalue())) as image:
            read_image(image, (SIDE, SIDE))

    ms = statistics.median(clock.interleaved({"ours": call}, 5)["ours"])
    row = {"quantity": "reading", "side": SIDE, "bytes": len(file.getvalue())}
    return [row | {"ours_ms": round(ms, 2)}]


# --- the page ------------------------------------------------------------------------------------


def measured() -> pd.DataFrame:
    """The rows of the first machine on CPU."""
    files = sorted(records.COMMITTED.glob("*/scale.json"))
    return pd.DataFrame(records.read(files[0]))


def cost_lines(rows: pd.DataFrame) -> Iterator[str]:
    yield "| system | parameters | GFLOPs an image | GPU hours | GB of 128 images |"
    yield "|---|--:|--:|--:|--:|"
    held = rows[rows["quantity"] == "line"].set_index("model")
    held = (held["fixed_mb"] + BATCH * held["image_mb"]) / 1e3
    for row in rows[rows["quantity"] == "cost"].to_dict("records"):
        hours = FACTOR * row["flops"] * IMAGES * EPOCHS / RATE / 3600
        known = f"{held[row['model']]:,.1f}" if row["model"] in held else "–"
        cells = f"{row['parameters']:,.0f}", f"{row['flops'] / 1e9:.1f}", f"{hours:,.0f}"
        yield f"| {row['model']} | {' | '.join((*cells, known))} |"


def check_lines(rows: pd.DataFrame) -> Iterator[str]:
    """The formula's errors: each rate is fitted at one side and held to the others."""
    heads = [f"{side} x {side}" for side in HELD]
    yield f"| system | GFLOP/s at {FITTED} x {FITTED} | {' | '.join(heads)} | memory |"
    yield f"|---|--:|{'--:|' * len(HELD)}--:|"
    for name, own in rows[rows["quantity"].isin(["check", "memory"])].groupby("model", sort=False):
        seen = own[own["quantity"] == "check"].set_index("side")
        rate = FACTOR * seen["flops"] / seen["ours_ms"] * 1e3
        errors = [rate[side] / rate[FITTED] - 1 for side in HELD]  # foretold by seen, less 1
        memory = own[own["quantity"] == "memory"].iloc[0]
        errors.append(memory["counted_mb"] / memory["measured_mb"] - 1)
        cells = f"{rate[FITTED] / 1e9:.0f}", *(f"{error:+.1%}" for error in errors)
        yield f"| {name} | {' | '.join(cells)} |".replace("-", "−")


def pays_lines() -> list[str]:
    """From how many tokens on each mechanism is cheaper than softmax, by three measures."""
    sides = fits.LINE[1]
    tokens = [side**2 for side in sides]
    counts = [
        {"mechanism": name, "tokens": n, "flops": mechanism_flops(kind, n)}
        for name, kind in MECHANISMS.items()
        for n in tokens
    ]
    times = benchmark("scaling", "cpu").query("direction == 'training'")
    held = benchmark("fits", "cpu").query("quantity == 'line'").copy()
    names = {"ViT": "softmax", "ViL": "linformer", "ViP": "performer", "ViN": "nystrom"}
    names |= {"ViL, rank 64": "linformer k 64", "ViN, 64 landmarks": "nystrom m 64"}
    held["mechanism"] = held["model"].map(names)
    parts = [
        (pd.DataFrame(counts), "flops", "fewer FLOPs"),
        (times, "ours_ms", "faster here"),
        (held.dropna(subset=["mechanism"]), "counted_mb", "less memory, whole model"),
    ]
    tables = [crossovers(rows, what, {"softmax": title}) for rows, what, title in parts]
    table = pd.concat(tables, axis=1).fillna("–").drop("naive softmax", errors="ignore")
    lines = [f"| mechanism | {' | '.join(table)} |", f"|---|{'---|' * len(table.columns)}"]
    return lines + [f"| {written(name)} | {' | '.join(row)} |" for name, *row in table.itertuples()]


def spared_lines(rows: pd.DataFrame) -> list[str]:
    """MB of a step by how it is taken, a column a way."""
    own = rows[rows["quantity"] == "spared"]
    own = own.assign(size=[f"{s:.0f} x {s:.0f}" for s in own["side"]])
    table = own.pivot_table("counted_mb", ["model", "size", "batch"], "way", sort=False)
    lines = [
        f"| system | images | {' | '.join(table)} |",
        f"|---|---|{'--:|' * len(table.columns)}",
    ]
    for (model, size, batch), row in table.iterrows():
        cells = [f"{mb:,.0f} MB" for mb in row]
        lines.append(f"| {model} | {batch:.0f} of {size} | {' | '.join(cells)} |")
    return lines


def stall_lines(rows: pd.DataFrame) -> Iterator[str]:
    """What 64 GPUs need of input and network while they compute."""
    ms = rows.loc[rows["quantity"] == "reading", "ours_ms"].iloc[0]
    yield "| system | step, ms | images a second | cores that read | GB/s read | all-reduce |"
    yield "|---|--:|--:|--:|--:|--:|"
    for row in rows[rows["quantity"] == "cost"].to_dict("records"):
        if row["model"] not in (*CHECKED, "CvT", "CCT", "LeViT", "MLPMixer"):
            continue
        step = FACTOR * row["flops"] * BATCH / RATE
        images = GPUS * BATCH / step
        sent = 2 * (GPUS - 1) / GPUS * 4 * row["parameters"]
        cells = f"{1e3 * step:,.1f}", f"{images:,.0f}", f"{images * ms / 1e3:,.0f}"
        last = f"{images * JPEG / 1e9:.2f}", f"{sent / 1e6:.1f} MB, {sent / LINK / step:.2%}"
        yield f"| {row['model']} | {' | '.join((*cells, *last))} |"


def sharded_lines(rows: pd.DataFrame) -> Iterator[str]:
    largest = rows.loc[rows[rows["quantity"] == "cost"]["parameters"].idxmax()]
    size = largest["parameters"]
    held = (
        f"{size * 4 / 1e6:.1f} MB of weights, {size * STATE / 1e6:.0f} MB with gradients and Adam"
    )
    yield f"{largest['model']}, the largest, has {size / 1e6:.1f} million parameters: {held}."
    yield ""
    yield "| GPU memory | parameters whose state fills half of it | times the largest |"
    yield "|--:|--:|--:|"
    for card in CARDS:
        most = card / 2 / STATE
        yield f"| {card / 1e9:.0f} GB | {most / 1e9:.2f} billion | {most / size:,.0f} |"


def rendered(text: str) -> str:
    """The page with its tables drawn from today's records."""
    rows = measured()
    ms, size = rows.loc[rows["quantity"] == "reading", ["ours_ms", "bytes"]].iloc[0]
    read = (
        f"One core here reads a photo of {PHOTO[0]} x {PHOTO[1]} ({size / 1e3:.0f} kB of JPEG) as"
    )
    read += f" {SIDE} x {SIDE} pixels in {ms:.1f} ms."
    parts = {
        "costs": cost_lines(rows),
        "errors": check_lines(rows),
        "pays": pays_lines(),
        "stalls": [*stall_lines(rows), "", read],
        "sharded": sharded_lines(rows),
        "spared": spared_lines(rows),
    }
    for name, lines in parts.items():
        text = between(text, name, lines)
    return text
