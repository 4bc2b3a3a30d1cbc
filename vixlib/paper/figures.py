"""Figures: each drawn once, as PNG, written where `save` says, displayed where there is a notebook.

Plot functions return None.
"""

import io
import math
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import matplotlib.style
import numpy as np
import pandas as pd
import seaborn as sns
from einops import rearrange
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image as Picture
from torch import Tensor

from vixlib import paths
from vixlib.attention import Grid
from vixlib.errors import BadInput, checked, one_of
from vixlib.paper.notebook import display
from vixlib.paper.statistics import interval
from vixlib.paper.tables import COST_LABELS, LABELS, crossings, having, lost, title
from vixlib.systems import KINDS, MIXERS, SYSTEMS, system

YOURS = "#56B4E9"  # a reader's own mechanism
LINES = "solid", "dashed", "dotted"  # of what is compared within a figure
WIDTH, DPI, SMALL = 7, 200, 8.5  # inches, dots an inch, points
GREY = "0.45"
ROUND = 1, 2, 5, 10  # digits of ticks
File = str | Path | None

# the look of every figure and table, the same on every machine
sns.set_theme(style="ticks", font="DejaVu Sans")
matplotlib.style.use(paths.PACKAGE / "paper" / "figures.mplstyle")
pd.set_option("display.max_colwidth", None, "display.max_columns", None)
pd.set_option("display.max_rows", 100, "display.width", 160)


def kind(name: str) -> str:
    """What a system is in figures, such as "hybrid": a key of KINDS."""
    return system(name).family.kind


def color(name: str) -> str:
    """The colour of a system: its token mixer's."""
    return MIXERS[system(name).mixer].color


def _band(values: pd.Series) -> tuple[float, float]:
    return values.mean() - interval(values), values.mean() + interval(values)


@checked
def images(
    batch: Tensor,
    labels: Tensor | Sequence | None = None,
    names: Sequence[str] | None = None,
    save: File = None,
    caption: str = "",
) -> None:
    """Small pictures (b c h w), uint8 or normalised to [-1, 1], ten a row, their labels above."""
    pictures, columns = _pixels(batch), min(len(batch), 10)
    fig, axes = _pictures(len(batch), columns, min(WIDTH / columns, 0.9) + 0.2, caption)
    for i, (ax, picture) in enumerate(zip(axes, pictures, strict=False)):
        ax.imshow(picture)
        if labels is not None:
            label = int(labels[i])
            ax.set_title(names[label] if names else label, size=SMALL, loc="center", pad=3)
    _finish(fig, save)


@checked
def tokens(
    image: Tensor, patch: int, cls: bool = True, save: File = None, caption: str = ""
) -> None:
    """An image (c h w) under its grid of patches, and the patches as a model reads them."""
    picture = _pixels(image[None])[0]
    height, width = picture.shape[:2]
    if height % patch or width % patch:
        raise BadInput(f"patch: expected to divide {height} x {width}, got {patch}")
    across = 2 * width // patch  # lines twice as long as the image's show the raster order
    dots = picture.repeat(4, 0).repeat(4, 1)  # so that a gap may be a quarter of a pixel
    parts = rearrange(dots, "(r p) (c q) k -> (r c) p q k", p=4 * patch, q=4 * patch)
    count = len(parts)
    parts = np.concatenate([np.full_like(parts[:cls], 115), parts])
    sides = (0, -len(parts) % across), (0, patch), (0, patch), (0, 0)
    parts = np.pad(parts, sides, constant_values=255)
    strip = rearrange(parts, "(y x) p q k -> (y p) (x q) k", x=across)
    fig, (left, right) = _figure(2.6, caption, 1, 2, width_ratios=(2, 4.6))
    left.imshow(picture)
    left.vlines(np.arange(patch, width, patch) - 0.5, -0.5, height - 0.5, "white", lw=0.7)
    left.hlines(np.arange(patch, height, patch) - 0.5, -0.5, width - 0.5, "white", lw=0.7)
    left.set_title(f"{height} × {width} pixels")
    right.imshow(strip)
    right.set_title(f"{count:,} tokens" + cls * " + CLS (grey)")
    for ax in (left, right):
        ax.set_anchor("NW")
        ax.axis("off")
    _finish(fig, save)


@checked
def attention_maps(
    maps: dict[str, Tensor],
    grid: tuple,
    query: tuple[int, int] | None = None,
    save: File = None,
    caption: str = "each map has its own scale",
) -> None:
    """Maps (n m) side by side; for a `query` (row, column) its weights as an image instead."""
    grid, columns = Grid(*grid), min(max(len(maps), 3), 4)
    if query and not (0 <= query[0] < grid.rows and 0 <= query[1] < grid.columns):
        raise BadInput(f"query: expected a place of {grid}, got {query}")
    fig, axes = _pictures(len(maps), columns, WIDTH / columns + 0.5, caption)
    for ax, (name, weights) in zip(axes, maps.items(), strict=False):
        weights = weights.detach().cpu().double().numpy()
        if query is not None:
            of = grid.prefix_tokens + query[0] * grid.columns + query[1]
            weights = weights[of, grid.prefix_tokens :].reshape(grid.rows, grid.columns)
        # a few large weights would leave the rest of a matrix blank
        top = np.quantile(abs(weights), 0.995 if query is None else 1) or abs(weights).max() or 1
        low = -top if (weights < 0).any() else 0
        picture = ax.imshow(weights, cmap="RdBu_r", vmin=-top, vmax=top)
        title, tint = _look(name)
        ax.set_title(title, color=_ink(tint), loc="center")
        for edge, width in (("white", 3.5), ("black", 1.5)) if query is not None else ():
            ax.plot(*query[::-1], "s", ms=8, mfc="none", mec=edge, mew=width)
        bar = fig.colorbar(picture, ax=ax, location="bottom", shrink=0.9, pad=0.03, aspect=18)
        bar.ax.set_xlim(low, top)
        bar.set_ticks([-top, 0, top] if low else [0, top])
        bar.ax.xaxis.set_major_formatter(lambda x, _: f"{x:.2g}".replace("-", "−"))
        bar.ax.get_xticklabels()[0].set_ha("left")
        bar.ax.get_xticklabels()[-1].set_ha("right")
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0, labelsize=SMALL)
    _finish(fig, save)


@checked
def curves(records: pd.DataFrame, quantity: str = "top1", save: File = None) -> None:
    """Training loss and `quantity` against epochs, a row of panels for each host family."""
    one_of("quantity", quantity, LABELS)
    have = having(records, "curve")
    have = have[have["curve"].map(bool)]  # empty where a run diverged in its first epoch
    if have.empty:
        return _nothing(records, save)
    rows = have.explode("curve", ignore_index=True)
    points = pd.DataFrame([*rows["curve"]]).assign(system=rows["system"])
    hosts = points["system"].map(kind)
    families = [family for family in KINDS if family in set(hosts)]
    every = math.ceil(points["epoch"].max() / 12)
    marked = (points["epoch"].max() - 1) % every, every  # a dozen markers, one at the end
    height, caption = max(3.7, 0.8 + 2.1 * len(families)), _of(have, lost(records))
    shared = {"squeeze": False, "sharex": True, "sharey": "col"}
    fig, grid = _figure(height, caption, len(families), 2, **shared)
    for family, axes in zip(families, grid, strict=True):
        look = {"marker": KINDS[family][0], "linestyle": KINDS[family][1:], "markevery": marked}
        look |= {"markersize": 5, "markeredgewidth": 0, "errorbar": _band, "legend": False}
        for ax, y in zip(axes, ("loss", quantity), strict=True):
            for name, own in points[hosts == family].groupby("system", sort=False):
                sns.lineplot(own, x="epoch", y=y, color=color(name), label=name, ax=ax, **look)
            ax.set(xlabel="epoch" if family == families[-1] else "", ylabel=LABELS[y])
            ax.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
            ax.yaxis.set_major_locator(ticker.MaxNLocator(6, steps=ROUND))
        axes[0].set_title(family if len(families) > 1 else "")
    fig.draw_without_rendering()
    for ax in grid[:, 1]:
        _label_ends(ax, ax.get_lines())
    _finish(fig, save)


@checked
def tradeoff(records: pd.DataFrame, x: str = "peak_memory_mb", save: File = None) -> None:
    """Accuracy against a cost: colour of the mechanism, marker of the host, best for its cost."""
    one_of("quantity", x, LABELS)
    have = having(records, x, "top1")
    if have.empty:
        return _nothing(records, save)
    means = have.groupby("system", sort=False)[[x, "top1"]].mean()
    best = means.sort_values([x, "top1"]).cummax()
    steps = best[best["top1"].diff() != 0].to_numpy().repeat(2, axis=0)
    line = "grey line: the best for at most that cost" * (len(steps) > 2)  # not of one alone
    fig, ax = _figure(5.2, _of(have, lost(records), line))
    ax.plot(steps[1:, 0], steps[:-1, 1], color="0.82", zorder=0)
    marks = []
    for name, at, mean in means.itertuples():
        look = {"color": color(name), "ms": 8.5, "mec": "white", "label": name}
        ax.plot([at, at], _band(have.query("system == @name")["top1"]), color=color(name), lw=1.2)
        marks += ax.plot(at, mean, KINDS[kind(name)][0], **look)
    ax.margins(0.1, 0.08)
    low, high = ax.get_ylim()
    few = max(0, 4 - (high - low)) / 2  # an axis of at least 4 points enlarges no trifle
    ax.set_ylim(low - few, high + few)
    _quantities(ax, x, "top1", log=means[x].max() > 10 * means[x].min())
    _legends(ax, [*means.index])
    _label_points(ax, marks)
    _finish(fig, save)


@checked
def against(
    records: pd.DataFrame,
    x: str = "tokens",
    y: str = "top1",
    style: str | None = None,
    save: File = None,
    caption: str = "",
) -> None:
    """A quantity against another: a line a system, or one for each value of a column `style`.

    `caption` stands where that of records would. Where x is not tokens, markers grow with them.
    """
    for quantity in (x, y):
        one_of("quantity", quantity, LABELS)
    have = having(records, x, y)
    if have.empty:
        return _nothing(records, save)
    have["style"] = have[one_of("column", style, have)] if style else ""
    lines = dict(zip(have["style"].unique(), LINES, strict=False))
    if have["style"].nunique() > len(LINES):
        raise BadInput(f"style: at most {len(LINES)} values, got {have['style'].nunique()}")
    said = [f"{line}: {value}" for value, line in lines.items() if style]
    said += ["larger marker: more tokens"] if x != "tokens" else []
    caption = caption or _of(have, lost(records))
    fig, ax = _figure(4.4, "\n".join(filter(None, [caption, " · ".join(said)])))
    ends = {}
    for (name, value), own in have.groupby(["system", "style"], sort=False):
        line, tint = own.groupby("tokens")[[x, y]].mean(), color(name)
        (ends[name],) = ax.plot(line[x], line[y], ls=lines[value], color=tint, zorder=1, label=name)
        for (tokens, at), same in own.groupby(["tokens", x]):
            size = 6 if x == "tokens" else 4.5 + math.log2(tokens / have["tokens"].min())
            ax.plot([at, at], _band(same[y]), color=tint, lw=1.2)
            ax.plot(at, same[y].mean(), KINDS[kind(name)][0], color=tint, ms=size, mec="white")
    counts = ticker.FixedLocator(sorted(set(have["tokens"]))) if x == "tokens" else None
    _quantities(ax, x, y, log=True, at=counts)
    fig.draw_without_rendering()
    _label_ends(ax, [*ends.values()])
    _finish(fig, save)


@checked
def cost(
    costs: pd.DataFrame,
    save: File = None,
    caption: str = "the mechanism alone, one image, 2 FLOPs a multiply-add · ring: same as softmax",
    quantity: str = "flops",
    against: str = "softmax",
) -> None:
    """A cost against tokens for each mechanism, with a ring where one crosses `against`.

    Of a mechanism's variants, such as "nystrom m 64" and "nystrom m 256", only one is solid.
    """
    one_of("quantity", quantity, COST_LABELS)
    for column in ("tokens", "mechanism", quantity):
        one_of("column", column, costs)
    if costs.empty:
        return _nothing(costs, save, "make bench")
    table = costs.pivot_table(index="tokens", columns="mechanism", values=quantity)
    fig, ax = _figure(4.4, caption)
    ends, rings, variants = [], [], Counter()
    for mechanism in sorted(table, key=lambda name: (_known(name), len(name))):  # k 64 before k 256
        name, tint = _look(mechanism)
        line = table[mechanism].dropna()
        look = {"color": tint, "ls": LINES[variants[tint] % len(LINES)], "label": name}
        ends += ax.plot(line, marker="o", ms=4, lw=2.6 if mechanism == "softmax" else 1.8, **look)
        variants[tint] += 1
        for at in crossings(table.get(against, table[mechanism]), table[mechanism]):
            look = {"color": tint, "label": f"{float(f'{at[0]:.3g}'):,.0f} tokens"}
            rings += ax.plot(*at, "o", ms=12, mfc="none", mew=1.8, **look)
    ax.set(xlabel="tokens", ylabel=COST_LABELS[quantity], xscale="log", yscale="log")
    _ticks(ax.xaxis, ticker.FixedLocator(table.index[:: math.ceil(len(table) / 8)]), "tokens")
    _ticks(ax.yaxis, ticker.LogLocator(), quantity)
    fig.draw_without_rendering()
    _label_ends(ax, ends)
    _label_points(ax, rings)
    _finish(fig, save)


@checked
def forest(judged: pd.DataFrame, save: str | Path | None = None, caption: str = "") -> None:
    """Effects with their 95 % intervals, a row a hypothesis; shaded is where it would hold.

    `judged` are rows of study.verdicts. While seeds are missing a ring is what the others give,
    without an interval; of what has none only the name is drawn.
    """
    one_of("column", "effect", judged)
    ends = judged["effect"].abs() + judged["half"].fillna(0)  # NaN where nothing was tested
    reach = 1.15 * np.nanmax([1.0, *judged["margin"], *ends])
    fig, ax = _figure(0.9 + 0.5 * len(judged), caption)
    for y, row in enumerate(judged.itertuples()):
        holds = {">": (row.margin, reach), "<": (-reach, -row.margin)}
        between = holds.get(row.test, (-row.margin, row.margin))
        ax.fill_betweenx([y - 0.42, y + 0.42], *between, color=YOURS, alpha=0.2, lw=0)
        ink = GREY if row.overall == "not resolved" else "black"
        inner = ink if row.half >= 0 else "none"
        look = {"fmt": "o", "color": ink, "mfc": inner, "ms": 6, "capsize": 3}
        ax.errorbar(row.effect, y, xerr=row.half, **look)
        word = textwrap.fill(row.overall, 16)
        ax.text(1.02, y, word, transform=ax.get_yaxis_transform(), va="center", size=SMALL)
    ax.axvline(0, color="0.6", lw=1, zorder=0)
    names = [textwrap.fill(row.says, 42) for row in judged.itertuples()]
    ax.set_yticks(range(len(names)), names, size=SMALL)
    ax.set(xlim=(-reach, reach), ylim=(len(judged) - 0.5, -0.5))
    ax.set_xlabel("difference in test accuracy (points)")
    ax.grid(axis="y", visible=False)
    _finish(fig, save)


def spread(places: Sequence[float], gap: float, low: float = 0, high: float = 1) -> np.ndarray:
    """The places moved as little as keeps their order, `gap` between any two, and low..high."""
    from sklearn.isotonic import isotonic_regression

    places = np.asarray(places, float)
    order, steps = places.argsort(kind="stable"), gap * np.arange(len(places))
    moved = isotonic_regression(places[order] - steps, y_min=low, y_max=high - steps[-1])
    return (moved + steps)[order.argsort()]


def _figure(height: float, caption: str, *panels: int, **layout) -> tuple[Figure, Axes]:
    fig = Figure((WIDTH, height))  # no pyplot: nothing to close
    fig.supxlabel(caption, x=0.01, ha="left", color=GREY)
    return fig, fig.subplots(*panels, **layout)


def _pictures(count: int, columns: int, height: float, caption: str) -> tuple[Figure, list[Axes]]:
    """Axes without an axis in rows of this height, at least `count`."""
    rows = math.ceil(count / columns)
    fig, grid = _figure(rows * height + 0.3, caption, rows, columns, squeeze=False)
    for ax in grid.flat:
        ax.axis("off")
    return fig, [*grid.flat]


def _ticks(axis: Axis, locator: ticker.Locator, quantity: str) -> None:
    """Ticks with whole numbers and none between them; FLOPs by their prefixes, as 10 M."""
    digits = ticker.EngFormatter() if "flops" in quantity else "{x:,.9g}"
    axis.set(major_locator=locator, minor_locator=ticker.NullLocator(), major_formatter=digits)


def _quantities(ax: Axes, x: str, y: str, log: bool, at: ticker.Locator | None = None) -> None:
    """Labels, scale and ticks of one quantity against another."""
    ax.set(xlabel=LABELS[x], ylabel=LABELS[y], xscale="log" if log else "linear")
    usual = ticker.LogLocator(subs=(1, 2, 5)) if log else ticker.MaxNLocator(8, steps=ROUND)
    _ticks(ax.xaxis, at or usual, x)
    ax.yaxis.set_major_locator(ticker.MaxNLocator(8, steps=ROUND))


def _finish(fig: Figure, save: File) -> None:
    """The figure as PNG without a date or version, to a file and to a notebook, if there is one.

    In 256 colours: a third of the bytes, and no difference to the eye.
    """
    drawn, buffer = io.BytesIO(), io.BytesIO()
    fig.savefig(drawn, format="png", dpi=DPI)
    ways = {"method": Picture.Quantize.MAXCOVERAGE, "dither": Picture.Dither.NONE}
    few = Picture.open(drawn).convert("RGB").quantize(256, **ways)
    few.save(buffer, "png", optimize=True, dpi=(DPI, DPI))
    if save is not None:
        if Path(save).suffix != ".png":
            raise BadInput(f"save: expected a name that ends in .png, got {save}")
        paths.atomic_write(Path(save), lambda path: path.write_bytes(buffer.getvalue()))
    if "ipykernel" in sys.modules:
        from IPython.display import Image

        display(Image(buffer.getvalue(), width=100 * WIDTH))


def _nothing(records: pd.DataFrame, save: File, command: str = "vix reproduce") -> None:
    command = records["command"].iloc[0] if len(records) else command
    fig, ax = _figure(2.2, "")
    ax.set(xticks=[], yticks=[])
    text = lost(records) or f"no records yet:\n{command}"
    ax.text(0.5, 0.5, text, ha="center", va="center", color=GREY)
    _finish(fig, save)


def _of(records: pd.DataFrame, *more: str) -> str:
    """The caption of records: their profile, dataset, seeds and recipe, and what else is said."""
    runs = records.groupby("system")
    seeds = sorted(set(runs["seed"].nunique() if "seed" in records else runs.size()))
    number = "–".join(map(str, {seeds[0]: 0, seeds[-1]: 0}))
    keys = "profile", "dataset", "recipe"
    profile, data, recipe = (" and ".join(records[key].unique()) for key in keys)
    seed = "seed" if number == "1" else "seeds: mean and 95 % interval"
    parts = f"{profile} profile", title(data), f"{number} {seed}", f"recipe {recipe}"
    doubts = [f"some {word}" for word in ("stale", "unverified") if word in set(records["status"])]
    return " · ".join(filter(None, [*parts, *doubts, *more]))


def _pixels(batch: Tensor) -> np.ndarray:
    """Images (b c h w) as bytes (b h w 3)."""
    if batch.ndim != 4 or batch.shape[1] not in (1, 3) or not len(batch):
        raise BadInput(f"images: expected (batch, 1 or 3, height, width), got {tuple(batch.shape)}")
    batch = batch.detach().cpu()
    if batch.is_floating_point():
        batch = ((batch + 1) * 127.5).round().clamp(0, 255).byte()
    return batch.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()


def _look(mechanism: str) -> tuple[str, str]:
    """How a mechanism or system is written, and its colour; a reader's own ones share one."""
    known = _known(mechanism)
    if known in SYSTEMS:
        return mechanism, color(known)
    if known in MIXERS:
        return mechanism.replace(known, MIXERS[known].title), MIXERS[known].color
    return mechanism, YOURS


def written(mechanism: str) -> str:
    """A mechanism or system as figures and tables write it."""
    return _look(mechanism)[0]


def _known(mechanism: str) -> str:
    """The mechanism or system of a variant, as "nystrom m 64" or "ViL, rank 64"; else itself."""
    words = re.split(r",? ", mechanism)
    return next((word for word in words if word in MIXERS or word in SYSTEMS), mechanism)


def _ink(color: str) -> tuple[float, ...]:
    """A colour dark enough for text."""
    return tuple(0.72 * part for part in to_rgb(color))


def _legends(ax: Axes, names: list[str]) -> None:
    """A line of colours and, where hosts differ, one of markers above the axes."""
    mixers, kinds = {system(name).mixer for name in names}, {kind(name) for name in names}
    looks = [[(KINDS[k][0], "0.5", k) for k in KINDS if k in kinds]] if len(kinds) > 1 else []
    drawn = [("o", row.color, row.title) for m, row in MIXERS.items() if m in mixers]
    looks += [drawn[4:], drawn[:4]] if len(drawn) > 7 else [drawn]  # what one line holds
    for line, look in enumerate(looks):
        handles = [Line2D([], [], ls="", marker=marker, color=tint) for marker, tint, _ in look]
        place = {"loc": "lower left", "bbox_to_anchor": (-0.12, 1 + 0.065 * line)}
        place |= {"ncols": len(look), "fontsize": 10 if len(look) < 7 else SMALL}
        legend = Legend(ax, handles, [name for *_, name in look], **place)
        ax.add_artist(legend).set_clip_on(False)


def _label_ends(ax: Axes, lines: Sequence[Line2D]) -> None:
    """The names of lines right of the axes, each tied to the end of its own."""
    ends = np.array([line.get_xydata()[-1] for line in lines])
    heights = (ax.transData.transform(ends)[:, 1] - ax.bbox.y0) / ax.bbox.height
    apart = 1.25 * ax.xaxis.label.get_size() * ax.figure.dpi / 72 / ax.bbox.height
    for line, end, height in zip(lines, ends, spread(heights, apart), strict=True):
        tie = {"arrowstyle": "-", "color": line.get_color(), "lw": 0.8, "shrinkA": 0}
        tie |= {"relpos": (0, 0.5)}
        tie |= {"ls": ":"} if end[0] < ends[:, 0].max() else {}  # across: not part of the line
        look = {"textcoords": "axes fraction", "va": "center", "color": _ink(line.get_color())}
        place = {"xytext": (1.04, height), "annotation_clip": False}
        ax.annotate(line.get_label(), end, arrowprops=tie, **place, **look)


def _label_points(ax: Axes, marks: Sequence[Line2D]) -> None:
    """The names of marks close to them, off all that is drawn and each other."""
    ax.figure.draw_without_rendering()  # names beside the axes left them less room
    point, frame, texts = ax.figure.dpi / 72, ax.get_window_extent(), []
    drawn = [line.get_path().transformed(ax.transData).interpolated(12) for line in ax.get_lines()]
    spots = np.concatenate([path.vertices for path in drawn])
    around = [*product((8, 14, 21, 30, 42, 58, 80), np.arange(0, 2 * np.pi, np.pi / 8))]
    for mark in marks:
        (at,) = mark.get_xydata()
        spot = ax.transData.transform(at)
        look = {"ha": "center", "va": "center", "color": _ink(mark.get_color())}
        tie = {"arrowstyle": "-", "color": mark.get_color(), "lw": 0.6, "shrinkA": 0, "shrinkB": 4}
        offset = {"xytext": (0, 0), "textcoords": "offset points", "in_layout": False}
        text = ax.annotate(mark.get_label(), at, arrowprops=tie, **offset, **look)
        size = np.array(Text.get_window_extent(text).size)
        ways = [np.array([np.cos(a), np.sin(a)]) * (size / 2 + d * point) for d, a in around]
        boxes = [Bbox([spot + way - size / 2, spot + way + size / 2]) for way in ways]
        clashes = [
            box.padded(5 * point).count_contains(spots)
            + 9 * box.count_overlaps(texts)
            + 9 * (frame.count_contains(box.corners()) < 4)
            for box in boxes
        ]
        best = np.argmin(clashes)  # the first of equals is the nearest
        texts.append(boxes[best].padded(1.5 * point))
        text.xyann = ways[best] / point
        text.arrow_patch.set_visible(around[best][0] > 8)
