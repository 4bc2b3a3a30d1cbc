"""What a reader sees: tables hold what records say, figures are drawn whole and always alike."""

import json
import math
import re
import subprocess
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

from vixlib import list_systems, measure, paths
from vixlib.attention import Grid
from vixlib.errors import BadInput
from vixlib.fused import Linformer, Nystrom, Performer, Softmax
from vixlib.paper import figures, notebook, runs, tables
from vixlib.systems import KINDS, MIXERS, SYSTEMS


def record(name, seed=0, top1=40.0, **other):
    curve = [
        {"epoch": e, "loss": 2 - 0.1 * e, "train_accuracy": top1, "top1": top1 - 3 + e}
        for e in (1, 2, 3)
    ]
    known = {"system": name, "seed": seed, "top1": top1, "curve": curve, "status": "read"}
    known |= {"dataset": "cifar10", "profile": "laptop", "recipe": "fair", "flops": 1_234_567_890}
    known |= {"parameters": 662_298, "peak_memory_mb": 1234.5, "command": f"vix train {name}"}
    return known | {"seconds_per_epoch": 12.0} | other


def missing(name, seed=0):
    keys = "system", "seed", "dataset", "profile", "recipe", "command"
    known = record(name, seed)
    return {key: known[key] for key in keys} | {"status": "missing"}


def diverged(name, seed=0, epochs=1):
    known = record(name, seed, status="diverged", diverged_epoch=epochs + 1, diverged_step=7)
    lost = dict.fromkeys(("top1", "train_accuracy", "loss", "top1_best"))
    return known | lost | {"curve": known["curve"][:epochs]}


@pytest.fixture
def logs(monkeypatch):
    rows = [("ViT", "cifar10", "top1_best", "56.82"), ("ViT", "cifar10", "top1_last", "54.92")]
    rows += [("ViL", "cifar10", "top1_best", "50.65"), ("ViT", "tiny-imagenet", "top1_best", "9")]
    table = pd.DataFrame(rows, columns=["system", "dataset", "quantity", "value"])
    monkeypatch.setattr(tables, "published", lambda: table)


def row(table, name):
    return table.loc[name].to_dict()


# ---- tables ----


def test_one_seed_shows_no_spread(logs):
    table = tables.results(pd.DataFrame([record("ViT", top1=43.21)]))
    assert table.columns.name == "system"
    assert row(table, "ViT") == {
        "logged": "56.82",
        "ours": "43.2",
        "parameters": "662,298",
        "MFLOPs": "1,235",
        "peak MB": "1,234",
        "status": "",
    }


def test_several_seeds_show_the_t_interval_and_their_number(logs):
    table = tables.results(pd.DataFrame([record("ViT", s, t) for s, t in enumerate((40, 42, 44))]))
    # t(2 degrees of freedom, 97.5 %) = 4.3027; the standard deviation is 2
    assert row(table, "ViT")["ours"] == f"42.0 ± {4.3027 * 2 / math.sqrt(3):.1f} (3)"


def test_missing_and_stale_are_told(logs):
    rows = [record("ViT", status="stale"), missing("ViN"), record("ViL"), missing("ViL", 1)]
    table = tables.results(pd.DataFrame(rows))
    assert list(table.index) == ["ViT", "ViN", "ViL"]
    assert list(table["status"]) == ["stale", "vix train ViN", "vix train ViL"]
    assert set(row(table, "ViN").values()) == {"", "vix train ViN"}
    assert row(table, "ViL")["ours"] == "40.0"


def test_divergence_stands_where_the_number_would(logs):
    rows = [record("ViT"), diverged("ViN"), diverged("ViL"), diverged("ViL", 1)]
    rows += [record("ViP", s, t) for s, t in enumerate((40, 42, 44))] + [diverged("ViP", 3)]
    table = tables.results(pd.DataFrame(rows))
    several = f"42.0 ± {4.3027 * 2 / math.sqrt(3):.1f} (3), 1 diverged"
    assert list(table["ours"]) == ["40.0", "diverged", "2 diverged", several]
    assert row(table, "ViL")["logged"] == "50.65"
    assert row(table, "ViN")["peak MB"] == "1,234"
    alone = tables.results(pd.DataFrame([diverged("ViN")]))
    assert list(alone["ours"]) == ["diverged"]
    stale = tables.results(pd.DataFrame([record("ViT"), diverged("ViN") | {"status": "stale"}]))
    assert list(stale["ours"]) == ["40.0", "diverged"]
    assert list(stale["status"]) == ["", "stale"]
    best = tables.results(pd.DataFrame([record("ViT", top1_best=57.0), diverged("ViN")]))
    assert list(best["ours best"]) == ["57.0", "diverged"]


def test_results_without_any_record(logs):
    table = tables.results(pd.DataFrame([missing("ViT"), missing("ViN")]))
    assert list(table["ours"]) == ["", ""]
    assert row(table, "ViT")["logged"] == "56.82"
    assert list(table["status"]) == ["vix train ViT", "vix train ViN"]


def test_a_system_without_a_log_has_none(logs):
    assert tables.results(pd.DataFrame([record("ViN")])).loc["ViN", "logged"] == ""


def test_another_dataset_is_not_compared(logs):
    table = tables.results(pd.DataFrame([record("ViT", dataset="digits", profile="quick")]))
    assert table.loc["ViT", "logged"] == ""


def test_like_stands_beside_like(logs):
    """As released, the best epoch on the test set stands beside the last one."""
    records = pd.DataFrame([record("ViT", top1=54.0, top1_best=57.0, recipe="as-released")])
    best, last = tables.results(records), tables.results(records, quantity="top1_last")
    assert row(best, "ViT")["ours best"] == "57.0"
    assert list(best)[:3] == ["logged", "ours", "ours best"]
    assert "ours best" not in last
    assert row(last, "ViT")["logged"] == "54.92"


def test_the_real_log_is_read():
    assert tables.results(pd.DataFrame([record("ViT")])).loc["ViT", "logged"] == "56.82"


def test_a_yes_is_no_number(capsys):
    notebook.verdict(0.995, True)
    notebook.verdict("yes", True)
    notebook.verdict(True, True)
    assert capsys.readouterr().out == "not yet\nnot yet\nright\n"


def test_plan():
    table = tables.plan(runs.runs(["ViT", "ViN"], "laptop", seeds=2))
    assert len(table) == 4
    first = table.iloc[0].to_dict()
    assert (first["system"], first["dataset"], first["seed"]) == ("ViT", "CIFAR-10", 0)
    assert (first["tokens"], first["epochs"], first["recipe"]) == ("256", 6, "fair")


@pytest.mark.parametrize("profile", runs.PROFILES)
def test_machine_says_what_a_profile_means(profile):
    table = tables.machine(profile)
    assert table.loc["profile", ""] == profile
    titles = {"quick": "digits", "own": "own, all"}
    assert titles.get(profile, "CIFAR-10") in table.loc["images", ""]


def test_machine_refuses_an_unknown_profile():
    with pytest.raises(BadInput, match="quick, laptop, study, paper"):
        tables.machine("labtop")


# ---- text ----


@pytest.fixture
def shown(monkeypatch):
    seen = []
    for module in (notebook, figures):
        monkeypatch.setattr(module, "display", seen.append)
    return seen


def test_guess_hides_its_answer(shown):
    assert notebook.guess(1025**2) is None
    html = shown[0].data
    assert "1,050,625" in html
    summary, answer = re.search(r"<summary>(.*)</summary>(.*)</details>", html).groups()
    assert "1,050,625" in answer
    assert "1,050,625" not in summary
    assert "<details class" in html  # closed: no `open`
    assert ":hover" in html
    assert ":focus-within" in html


@pytest.mark.parametrize(("value", "text"), [(True, "True"), ("a < b", "a &lt; b"), (0.5, "0.5")])
def test_guess_shows_any_answer(shown, value, text):
    notebook.guess(value)
    assert f"<strong>{text}</strong>" in shown[0].data


def test_a_guess_is_judged_and_counted(shown, capsys, root):
    """Within a tenth of a number of the answer, or a part of it; the same question counts once."""
    for value, yours, told in (
        (1025**2, 10**6, "right: 1 of 1"),
        (1025**2, 9e5, "not quite: 0 of 1"),
        ("7 × 7 = 49: a pixel each", 50, "right: 1 of 2"),
        ("ViL: 1,234.5 points", 1200, "right: 2 of 3"),
        ("ViL and ViN", "vin", "right: 3 of 4"),
        ("ViL and ViN", "ViT", "not quite: 2 of 4"),
    ):
        notebook.guess(value, yours=yours)
        assert capsys.readouterr().out == f"{told} guesses were right so far\n"
    assert [*json.loads((root / "build" / "guesses.json").read_text()).values()].count(True) == 2
    notebook.guess(5)
    assert capsys.readouterr().out == ""


def test_source_is_the_library_s_own(shown):
    notebook.source(Performer, Performer.mix)
    whole, method = (markdown.data for markdown in shown)
    assert whole.startswith("```python\nclass Performer(attention.Performer):")
    assert method.startswith("```python\ndef mix(self")
    for text in (whole, method):
        assert text.endswith("```\n<sub>vixlib/fused.py</sub>")
        assert str(paths.CHECKOUT) not in text


def test_the_library_works_without_ipython():
    code = "import sys; sys.modules['IPython'] = None; import vixlib.paper.show as s; s.curves"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=paths.CHECKOUT)


# ---- figures ----


def test_every_system_has_a_colour_and_a_host():
    mixers = {row.mixer for row in SYSTEMS.values()}
    assert mixers == set(MIXERS)
    assert len({figures.YOURS, *(row.color for row in MIXERS.values())}) == len(MIXERS) + 1
    assert len({row.title for row in MIXERS.values()}) == len(MIXERS)
    assert len(set(KINDS.values())) == len(KINDS)
    assert {figures.kind(name) for name in list_systems()} == set(KINDS)
    assert len({look[0] for look in KINDS.values()}) == len(KINDS)
    assert figures.color("HybridViN-RoPE") == figures.color("ViN") == MIXERS["nystrom"].color


GRID = Grid(4, 4, 1)
MAPS = {"softmax": torch.rand(17, 17), "nystrom": torch.randn(17, 17), "mine": torch.rand(17, 17)}
COSTS = pd.DataFrame(
    [(n, "softmax", 1.0 * n * n) for n in (64, 256, 1024)]
    + [(n, "performer", 300 * n) for n in (64, 256, 1024)]
    + [(n, "mine", 7 * n) for n in (256, 1024)],
    columns=["tokens", "mechanism", "flops"],
)
TIMES = pd.DataFrame(
    [(n, "softmax", 1.0 * n * n) for n in (64, 256, 1024)]
    + [(n, "naive softmax", 4.0 * n * n) for n in (64, 256)]
    + [(n, "nystrom m 64", 300.0 * n) for n in (256, 1024)]
    + [(n, "nystrom m 256", 900.0 * n) for n in (1024,)],
    columns=["tokens", "mechanism", "ours_ms"],
)
RECORDS = pd.DataFrame([record(name, top1=30.0 + i) for i, name in enumerate(list_systems())])
SEEDS = pd.DataFrame([record(name, s, 40.0 + s) for name in ("ViT", "ViN") for s in range(3)])
PARTLY = pd.DataFrame([record("ViT", status="stale"), missing("ViN")])
NONE = pd.DataFrame([missing("ViT")])
LOST = pd.DataFrame([record("ViT"), diverged("ViN"), diverged("ViL", epochs=0), missing("ViP")])
LENGTHS = pd.DataFrame(
    [
        record(name, s, 30 + 2 * i + s, tokens=tokens, equal=equal)
        for name in ("ViT", "ViN")
        for i, (tokens, equal) in enumerate(
            [(16, "epochs"), (64, "epochs"), (16, "cost"), (64, "cost")]
        )
        for s in range(3)
    ]
)
PICTURE = torch.randint(256, (3, 16, 16), dtype=torch.uint8)
PLOTS = {
    "images": lambda save: figures.images(PICTURE.expand(12, 3, 16, 16), range(12), save=save),
    "images, normalised": lambda save: figures.images(torch.rand(2, 3, 8, 8) * 2 - 1, save=save),
    "tokens": lambda save: figures.tokens(PICTURE, 4, save=save),
    "tokens, no CLS": lambda save: figures.tokens(PICTURE, 1, cls=False, save=save),
    "maps": lambda save: figures.attention_maps(MAPS, GRID, save=save),
    "maps of a query": lambda save: figures.attention_maps(MAPS, GRID, query=(1, 2), save=save),
    "curves": lambda save: figures.curves(RECORDS, save=save),
    "curves of seeds": lambda save: figures.curves(SEEDS, "train_accuracy", save=save),
    "curves, partly": lambda save: figures.curves(PARTLY, save=save),
    "curves, none": lambda save: figures.curves(NONE, save=save),
    "curves, nothing": lambda save: figures.curves(pd.DataFrame(), save=save),
    "curves, some diverged": lambda save: figures.curves(LOST, save=save),
    "curves, all diverged": lambda save: figures.curves(LOST[2:3], save=save),
    "tradeoff, some diverged": lambda save: figures.tradeoff(LOST, save=save),
    "tradeoff, all diverged": lambda save: figures.tradeoff(LOST[1:3], save=save),
    "tradeoff": lambda save: figures.tradeoff(RECORDS, save=save),
    "tradeoff of FLOPs": lambda save: figures.tradeoff(SEEDS, "flops", save=save),
    "tradeoff, none": lambda save: figures.tradeoff(NONE, save=save),
    "cost": lambda save: figures.cost(COSTS, save=save),
    "cost in time": lambda save: figures.cost(
        TIMES, save, quantity="ours_ms", against="naive softmax"
    ),
    "cost, none": lambda save: figures.cost(TIMES[:0], save, quantity="ours_ms"),
    "against": lambda save: figures.against(LENGTHS, save=save),
    "against FLOPs": lambda save: figures.against(
        LENGTHS.assign(training_flops=LENGTHS["tokens"] * 1e9),
        "training_flops",
        "top1",
        "equal",
        save,
    ),
    "against, some diverged": lambda save: figures.against(LOST.assign(tokens=64), save=save),
    "against, none": lambda save: figures.against(NONE, save=save),
    "against, of no records": lambda save: figures.against(
        LENGTHS[["system", "tokens", "flops"]], y="flops", save=save, caption="counted"
    ),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_is_one_png(name, tmp_path, monkeypatch):
    plot, file = PLOTS[name], tmp_path / "new" / "00_plot.png"
    if name != "curves":  # in full, one is enough
        monkeypatch.setattr(figures, "DPI", 100)
    assert plot(file) is None
    with Image.open(file) as png:
        assert png.format == "PNG"
        assert png.info["dpi"] == pytest.approx([figures.DPI] * 2, abs=0.1)
        assert "Software" not in png.info
        assert png.width == 7 * figures.DPI
        edge = np.asarray(png.convert("L"))
        assert edge.min() < 200
        assert min(edge[[0, -1]].min(), edge[:, [0, -1]].min()) > 250  # nothing reaches the edge
    assert [path.name for path in file.parent.iterdir()] == ["00_plot.png"]


@pytest.mark.parametrize("name", ["curves of seeds", "tradeoff", "cost"])
def test_a_figure_is_the_same_bytes_each_time(name, tmp_path):
    for i in range(2):
        PLOTS[name](tmp_path / f"{i}.png")
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()


def test_a_plot_is_displayed_once_and_only_in_a_notebook(shown, monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    figures.cost(COSTS)
    assert not shown
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    figures.cost(COSTS)
    assert len(shown) == 1
    assert shown[0].data.startswith(b"\x89PNG")


def test_only_png(tmp_path):
    with pytest.raises(BadInput, match=r"\.png"):
        figures.cost(COSTS, save=tmp_path / "cost.svg")


def test_variants_of_a_mechanism_are_told_apart(monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "_finish", lambda fig, save: drawn.append(fig))
    figures.cost(TIMES, quantity="ours_ms")
    lines = [line for line in drawn[0].axes[0].get_lines() if line.get_linestyle() != "None"]
    looks = {(line.get_color(), line.get_linestyle()) for line in lines}
    assert len(looks) == 4
    assert {style for tint, style in looks if tint == MIXERS["softmax"].color} == {"-", "--"}
    assert drawn[0].axes[0].get_ylabel() == "time (ms)"
    with pytest.raises(BadInput, match="quantity"):
        figures.cost(TIMES, quantity="euros")


def test_labels_of_crossings_stay_within_the_axes(monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "_finish", lambda fig, save: drawn.append(fig))
    ways = {"softmax": (Softmax, 0), "performer": (Performer, 0)}
    ways |= {f"linformer k {r}": (partial(Linformer, rank=r), r) for r in (64, 256)}
    ways |= {f"nystrom m {m}": (partial(Nystrom, landmarks=m), m) for m in (64, 256)}
    costs = [
        (n, name, measure.mechanism_flops(way, n))
        for name, (way, reduced) in ways.items()
        for n in (2**i for i in range(6, 15))
        if n > reduced
    ]
    figures.cost(pd.DataFrame(costs, columns=["tokens", "mechanism", "flops"]))
    (fig,) = drawn
    fig.draw_without_rendering()  # the last layout, names beside the axes taken into account
    (ax,) = fig.axes
    labels = [text for text in ax.texts if text.get_text().endswith("tokens")]
    assert len(labels) == 5
    for text in labels:
        box = Text.get_window_extent(text)
        assert all(ax.get_window_extent().contains(*corner) for corner in box.corners())


def test_captions_tell_seeds_and_staleness():
    assert "· 3 seeds: mean" in figures._of(SEEDS.drop(columns="seed"))
    assert figures._of(RECORDS) == "laptop profile · CIFAR-10 · 1 seed · recipe fair"
    assert "· 3 seeds: mean and 95 % interval ·" in figures._of(SEEDS)
    assert figures._of(PARTLY[:1]).endswith("some stale")


def test_figures_tell_divergence(monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "_finish", lambda fig, save: drawn.append(fig))
    for plot in (figures.curves, figures.tradeoff):
        plot(LOST)
        plot(LOST[2:3])
        some, every = drawn[-2:]
        assert "diverged: ViN, ViL" in some._supxlabel.get_text()
        assert "ViL" not in [text.get_text() for ax in some.axes for text in ax.texts]
        assert [text.get_text() for text in every.axes[0].texts] == ["diverged: ViL"]
    lines = drawn[0].axes[1].get_lines()  # each as far as it went
    assert sorted(len(line.get_xdata()) for line in lines) == [1, 3]


def test_a_line_a_system_and_a_style(monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "_finish", lambda fig, save: drawn.append(fig))
    epochs = LENGTHS.query("equal == 'epochs'")
    figures.against(epochs)
    figures.against(LENGTHS, style="equal")
    for fig, styles in zip(drawn, (1, 2), strict=True):
        (ax,) = fig.axes
        lines = [line for line in ax.get_lines() if len(set(line.get_xdata())) > 1]
        assert len(lines) == 2 * styles
        assert list(lines[0].get_xdata()) == [16, 64]
        assert list(lines[0].get_ydata()) == [31, 33]  # the means of three seeds
        marks = [line.get_xydata()[0] for line in ax.get_lines() if len(line.get_xdata()) == 1]
        assert {*map(tuple, marks)} == {tuple(xy) for line in lines for xy in line.get_xydata()}
        assert [text.get_text() for text in ax.texts] == ["ViT", "ViN"]
        assert [label.get_text() for label in ax.get_xticklabels()] == ["16", "64"]
        assert "· 3 seeds" in fig._supxlabel.get_text()
    assert drawn[1]._supxlabel.get_text().endswith("solid: epochs · dashed: cost")
    with pytest.raises(BadInput, match="at most 3 values"):
        figures.against(LENGTHS.assign(equal=range(len(LENGTHS))), style="equal")
    with pytest.raises(BadInput, match="quantity"):
        figures.against(LENGTHS, y="luck")


def test_spread_keeps_order_distance_and_bounds():
    places = [0.5, 0.51, 0.9, 0.49, 1.2]
    moved = figures.spread(places, 0.1)
    assert list(np.argsort(moved)) == list(np.argsort(places))
    assert np.diff(np.sort(moved)).min() > 0.1 - 1e-9
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert figures.spread([0.2, 0.8], 0.1) == pytest.approx([0.2, 0.8])


def test_labels_do_not_overlap(monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "_finish", lambda fig, save: drawn.append(fig))
    draw = np.random.default_rng(0)
    some = RECORDS.head(40)
    for _ in range(3):  # crowded at low costs
        cost, top1 = draw.lognormal(4.5, 0.4, len(some)), draw.uniform(38, 55, len(some))
        figures.tradeoff(some.assign(peak_memory_mb=cost, top1=top1))
    figures.curves(RECORDS)
    for fig in drawn:
        fig.draw_without_rendering()
        for ax in fig.axes:
            boxes = [Text.get_window_extent(text).padded(-1) for text in ax.texts]
            for i, box in enumerate(boxes):
                assert not box.count_overlaps(boxes[:i])


def test_crossings_are_found_between_points():
    n = np.array([16.0, 64, 256, 1024])
    square, line = pd.Series(n**2, n), pd.Series(100 * n, n)
    assert tables.crossings(square, line) == [pytest.approx((100, 10_000))]
    assert tables.crossings(square, square) == []


def test_gap_says_what_the_seeds_resolve(capsys):
    frame = pd.DataFrame({"system": ["ViT", "ViN", "ViL"], "top1": [48.0, 46.6, 42.0]})
    for one in ("ViN", "ViL", "ViP"):
        notebook.gap(frame, one, "ViT")
    assert capsys.readouterr().out.splitlines() == [
        "ViN − ViT: −1.4 points, within the noise of one seed, about ±3.0",
        "ViL − ViT: −6.0 points, beyond the noise of one seed, about ±3.0",
        "ViP − ViT: no records yet",
    ]
    notebook.gap(LOST, "ViT", "ViN")  # two seeds of three would be a choice by the outcome
    assert capsys.readouterr().out == "ViT − ViN: diverged: ViN\n"
    several = pd.DataFrame({"system": ["ViT"] * 3 + ["ViN"] * 3})
    several["top1"] = [48.0, 48.1, 47.9, 47.0, 47.1, 46.9]
    notebook.gap(several, "ViN", "ViT")
    said = "ViN − ViT: −1.0 points, beyond the noise of 3 seeds, ±0.4\n"
    assert capsys.readouterr().out == said


def test_an_effect_is_said_by_pairs_or_by_seeds(capsys):
    """By pairs of one seed, by seeds of several; without two of either, that they are too few."""
    gains = {"ViT": -1.0, "ViL": -2.0, "ViP": -1.5, "ViN": 0.5}
    rows = [{"system": name, "seed": 0, "top1": 50.0} for name in gains]
    rows += [{"system": f"{n}-RoPE", "seed": 0, "top1": 50 + gain} for n, gain in gains.items()]
    one = pd.DataFrame(rows).assign(tokens=256, epochs=6, status="read")
    pairs = {f"{name}-RoPE": name for name in gains}

    def said(records, pairs=pairs):
        notebook.effect(records, "RoPE", pairs)
        return capsys.readouterr().out

    # by hand: mean -1, s = sqrt(3.5 / 3), t(0.975, 3) = 3.182, half = t s / 2
    scope = "256 tokens, 6 epochs, one seed, ± over its pairs"
    seen = f"−1.0 ± {3.18245 * np.sqrt(3.5 / 3) / 2:.1f} points, 3 of 4 pairs of this sign"
    assert said(one) == f"RoPE: not resolved, {seen} ({scope}).\n"
    clear = one.assign(top1=one["top1"].replace(50.5, 48.5))
    assert said(clear).startswith("RoPE: accuracy falls, −1.5 ± 0.6 points, 4 of 4 pairs of this")
    flipped = clear.assign(top1=100 - clear["top1"])
    assert said(flipped).startswith("RoPE: accuracy rises, +1.5 ± 0.6 points, 4 of 4 pairs of this")
    shift = {0: 0.0, 1: 0.2, 2: -0.2}  # of all that RoPE has, a seed; by hand: t(0.975, 2) = 4.303
    rope = one["system"].str.endswith("RoPE")
    several = [clear.assign(seed=s, top1=clear["top1"] + rope * by) for s, by in shift.items()]
    seen = f"falls, −1.5 ± {4.30265 * 0.2 / np.sqrt(3):.1f} points, 4 of 4 pairs of this sign"
    assert said(pd.concat(several)) == f"RoPE: accuracy {seen} (256 tokens, 6 epochs, 3 seeds).\n"
    assert said(one, {"ViT-RoPE": "ViT"}) == "RoPE: too few records yet.\n"
    assert said(one.iloc[:5]) == "RoPE: too few records yet.\n"
    assert said(one.iloc[:0]) == "RoPE: too few records yet.\n"
    gone = one.assign(diverged_step=[None] * 7 + [3])  # of the others alone would be a choice
    assert said(gone) == "RoPE: diverged: ViN-RoPE.\n"


def test_what_the_study_says_is_asked_for_by_hypothesis(capsys):
    notebook.conclude("convolution", "rope")
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert first.startswith("Convolutions in place of the linear embedding raise accuracy. ")
    assert second.startswith("Rotary positions instead of learned ones raise accuracy. ")


def test_where_nothing_was_run_the_study_says_so(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("VIXLIB_ROOT", str(tmp_path))
    notebook.conclude("rope")
    assert "raise accuracy. Not tested yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "right", "said"),
    [
        (None, 7, "not tried yet"),
        (1025**2, 1025**2, "right"),
        (1025**2 - 1, 1025**2, "not yet"),
        (1.05, 1.050625, "right"),
        (1.06, 1.0, "not yet"),
        (2, 2.01, "right"),
        ("nystrom", "nystrom", "right"),
        (True, False, "not yet"),
        ([1, 2], lambda answer: sum(answer) == 3, "right"),
        ("7", 7, "not yet: this str cannot be judged, must be real number, not str"),
        (
            7,
            lambda answer: answer.shape,
            "not yet: this int cannot be judged, 'int' object has no attribute 'shape'",
        ),
    ],
)
def test_verdict(answer, right, said, capsys):
    notebook.verdict(answer, right)
    assert capsys.readouterr().out == f"{said}\n"


def test_where_a_line_is_cheaper_is_said():
    n = np.array([64.0, 256, 1024, 4096])
    square, line = pd.Series(n**2, n), pd.Series(400 * n, n)
    assert tables.cheaper(line, square) == "400 to 4,096"
    assert tables.cheaper(square, line) == "64 to 400"
    assert tables.cheaper(line[2:], square) == "1,024 to 4,096"
    assert tables.cheaper(square[2:], line) == "nowhere to 4,096"
    assert tables.cheaper(square, square) == "nowhere to 4,096"
    assert tables.cheaper(pd.Series([1.0, 9, 1, 1], n), pd.Series([2.0] * 4, n)) == (
        "64 to 99 and 661 to 4,096"
    )
    assert tables.cheaper(line[:0], square) == "not measured"


def test_variants_keep_their_mechanisms_colour():
    assert figures._look("nystrom m 64") == ("Nyström m 64", MIXERS["nystrom"].color)
    assert figures._look("naive softmax") == ("naive softmax", MIXERS["softmax"].color)
    assert figures._look("ViL, rank 64") == ("ViL, rank 64", MIXERS["linformer"].color)
    assert figures._look("mine") == ("mine", figures.YOURS)
