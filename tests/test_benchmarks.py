"""The harness of the benchmarks works with whatever peers there are; no time is judged."""

import json
import sys
from functools import cache, partial

import pandas as pd
import pytest
import torch

from benchmarks import clock, fits, images, pairs, pipeline, records, results, scale, steps, tables
from benchmarks.__main__ import main
from vixlib import attention, build, data, list_systems, measure, paths
from vixlib.errors import BadInput
from vixlib.paper import show
from vixlib.systems import RESULTS

QUICK = ["--quick", "--only", "layers/softmax/256", "small/fourier", "scaling/naive*"]
COLUMNS = {"cell", "mechanism", "peer", "tokens", "batch", "direction", "ratio_median"} | {
    *("ratio_q25", "ratio_q75", "ours_ms", "peer_ms", "ours_peak_mb", "peer_peak_mb", "equal_to"),
    *("note", "rounds", "threads", "allocator", "device", "clock", "versions", "source", "date"),
}


@pytest.mark.parametrize("written_out", [False, True])
def test_bytes_of_a_step_are_those_on_file(written_out):
    """And they are near to what its tensors say: a matrix of scores and one of weights a head."""
    form = "written out" if written_out else "fused"
    table = pd.read_csv(paths.CHECKOUT / "figures" / steps.FILE, index_col=["system", "softmax"])
    found = steps.step_memory("CvT", written_out=written_out)
    assert found == pytest.approx(table.loc[("CvT", form), "megabytes"], rel=0.05)
    extra = table["megabytes"]["ViT", "written out"] - table["megabytes"]["ViT", "fused"]
    matrix = steps.IMAGES * 4 * 4 * 1025**2 * 4 / 1e6  # blocks, heads, places, bytes
    assert matrix < extra < 3 * matrix


def rows_of(folder):
    return [row for file in sorted(folder.rglob("*.json")) for row in records.read(file)]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The folder of a quick run of three cells."""
    folder = tmp_path_factory.mktemp("benchmarks")
    assert main([*QUICK, "--records", str(folder)]) == 0
    return folder


def test_rows_explain_themselves(quick):
    timed = [row for row in rows_of(quick) if "ratio_median" in row]
    assert {row["peer"] for row in timed} >= {"naive form", "plain form"}
    for row in timed:
        assert row.keys() >= COLUMNS
        assert 0 < row["ratio_q25"] <= row["ratio_median"] <= row["ratio_q75"]
        assert row["equal_to"] <= pairs.TOLERANCE
        assert 0 < row["ours_peak_mb"] <= row["peer_peak_mb"]


def test_growth_is_fitted(quick):
    rows = [row for row in rows_of(quick) if row["cell"].startswith("scaling")]
    assert {row["tokens"] for row in rows} == {64, 256}
    assert all(row["exponent_median"] > 0 for row in rows)


def test_what_is_recorded_is_not_measured_again(quick, monkeypatch):
    before = rows_of(quick)
    monkeypatch.setattr(clock.Clock, "interleaved", lambda *_: pytest.fail("measured again"))
    main([*QUICK, "--records", str(quick)])
    assert rows_of(quick) == before


def test_changed_code_is_measured_again(quick, tmp_path, monkeypatch):
    file = next(quick.rglob("small.json"))
    copy = tmp_path / file.relative_to(quick)
    copy.parent.mkdir(parents=True)
    copy.write_text(file.read_text())
    monkeypatch.setattr(records, "source", lambda table: "other")
    main(["--quick", "--only", "small/fourier", "--records", str(tmp_path)])
    assert {row["source"] for row in rows_of(tmp_path)} == {"other"}
    assert len(records.read(copy)) == len(records.read(file))


def test_the_hash_is_blind_to_docstrings_only(tmp_path, monkeypatch):
    hashes = []
    for text in ('"""Old."""\nx = 1', '"""New."""\nx = 1  # why', '"""Old."""\nx = 2'):
        for file in (*records.MEASURED, *records.SOURCES["layers"]):
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_text(text)
        monkeypatch.setattr(records, "ROOT", tmp_path)
        hashes.append(records.source("layers"))
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_missing_peer_is_named(tmp_path, monkeypatch):
    for name in ("timm", "timm.layers", "timm.layers.attention"):
        monkeypatch.setitem(sys.modules, name, None)
    main(["--quick", "--only", "layers/softmax/64", "--records", str(tmp_path)])
    timm, naive = rows_of(tmp_path)[:2]
    assert timm["note"].startswith("not timed: ModuleNotFoundError")
    assert timm["ours_ms"] > 0
    assert "peer_ms" not in timm
    assert naive["peer_ms"] > 0


# with 256 landmarks or mixtures 256 tokens would be too few
CONTESTS = [c for c in (*pairs.LAYERS, *pairs.MODELS) if not c.name.endswith("256")]


@pytest.mark.parametrize("contest", CONTESTS, ids=lambda contest: contest.name)
def test_the_same_weights_give_the_same(contest):
    """Every peer that is installed, at 256 tokens."""
    settings = tables.Settings(quick=True)
    size = (15, 17) if contest in pairs.MODELS else 256
    for peer, columns in tables._agreements(settings, contest, size).items():
        assert "Unequal" not in columns["note"], peer


def test_other_functions_are_not_timed(monkeypatch):
    """A peer that differs by a part in a million is seen."""
    contest = pairs.SMALL[0]
    (peer,) = contest.peers

    def other(tokens):
        module = peer.make(tokens)
        module.mechanism.register_forward_hook(lambda *args: args[-1] * (1 + 1e-6))
        return module

    x = torch.randn(1, 64, pairs.DIM)
    assert pairs.agreement(contest, peer, 64, x)["equal_to"] <= pairs.TOLERANCE
    with pytest.raises(pairs.Unequal, match="plain form"):
        pairs.agreement(contest, peer._replace(make=other), 64, x)


def test_crops_are_torchvisions(monkeypatch):
    images = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    assert pipeline.agreement(images)["equal_to"] <= 1e-6
    monkeypatch.setattr(pipeline, "augment", lambda images, padding: images.flip(2))
    with pytest.raises(pairs.Unequal):
        pipeline.agreement(images)


def test_peak_memory_is_that_of_a_call():
    def call():
        return torch.empty(250_000).add(1)

    assert measure.peak_memory(call, torch.device("cpu")) == pytest.approx(2, rel=0.01)


def test_turns_rotate(monkeypatch):
    order = []

    def slow(self, call, times=1):
        order.append(call())
        return 2000.0

    monkeypatch.setattr(clock.Clock, "__call__", slow)
    calls = {name: partial(str, name) for name in "abc"}
    seen = clock.Clock(torch.device("cpu"), 1).interleaved(calls, 3)
    assert seen == dict.fromkeys("abc", [2000.0] * 3)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"  # the first are not counted


def test_unknown_cells_are_refused(tmp_path):
    with pytest.raises(BadInput, match="no cell"):
        main(["--only", "nothing", "--records", str(tmp_path)])


def test_every_system_has_its_step(tmp_path):
    main(["--quick", "--only", "systems", "--records", str(tmp_path)])
    rows = rows_of(tmp_path)
    assert [row["mechanism"] for row in rows] == RESULTS[::13]
    for row in rows:
        assert row["microseconds_an_image"] == pytest.approx(125 * row["ours_ms"], abs=0.2)
        assert row["ours_peak_mb"] > 1
    cells = {cell.name for cell in tables.every_system(tables.Settings())}
    assert cells == set(list_systems())


# ---- what fits ----

CPU = torch.device("cpu"), "float32"


def small(image_size):
    return build("ViT", image_size=image_size, dim=32, depth=2, attention=attention.Softmax)


@pytest.mark.parametrize(("batch", "side"), [(1, 8), (3, 16), (1, 20)])
def test_counted_is_what_is_measured(batch, side):
    """To a part in a thousand; a copy of one attention matrix would be 3 % and more."""
    step = small, batch, side, *CPU
    assert fits.counted(*step) == pytest.approx(fits.measured(*step), rel=1e-3)


def test_what_is_freed_is_not_counted():
    with fits.Live() as live:
        torch.zeros(250)
        x = torch.zeros(1000)
        y = x.view(10, 100).add_(1).T
        assert live.now == live.peak == 4000
        del x
        assert live.now == 4000
        del y
        assert live.now == 0


@pytest.mark.parametrize("attention", ["softmax", "performer", "nystrom"])
def test_many_images_cost_what_some_do(attention):
    """The line beyond 32 images, held against counting them."""

    @cache
    def count(batch):
        make = partial(build, "ViT", attention=attention, dim=32, depth=1)
        return fits.counted(make, batch, fits.SIDE, *CPU)

    assert fits.of_batch(count, 20) == count(20)
    assert fits.of_batch(count, 45) == pytest.approx(count(45), rel=1e-6)


@pytest.mark.parametrize("power", [1, 2, 4])
def test_the_largest_fits_and_one_more_does_not(power):
    def peak(size):
        return 5 + 0.01 * size**power

    for most in (5.02, 70, 1234.5):
        size = fits.largest(peak, most, 1)
        assert peak(size) <= most < peak(size + 1)


def test_the_largest_batch_and_side_are_recorded(tmp_path):
    main(["--quick", "--only", "fits/FNet", "--records", str(tmp_path)])
    check, *line, batch, side = rows_of(tmp_path)
    assert [row["tokens"] for row in line] == [65, 257]
    assert check["counted_mb"] == pytest.approx(check["measured_mb"], rel=1e-3)
    for row, more in ((batch, (1, 0)), (side, (0, 1))):
        assert row["counted_mb"] <= 1e3 * row["budget_gb"]
        larger = row["batch"] + more[0], row["side"] + more[1]
        assert fits.counted(fits.MODELS["FNet"], *larger, *CPU) > 1e3 * row["budget_gb"]
    assert (batch["quantity"], side["quantity"]) == ("batch", "side")


# ---- what notebooks and README read ----


def recorded(name, peer, ratio, tokens=1024, **columns):
    mechanism, about = name.split("/")[1], {"direction": "training", "rounds": 5, "note": ""}
    row = {"cell": name, "mechanism": mechanism, "peer": peer, "tokens": tokens, **about}
    row |= {"ratio_median": ratio, "ratio_q25": ratio, "ratio_q75": ratio}
    row |= {"ours_peak_mb": 2.0, "peer_peak_mb": 6.0, "versions": "torch 2, timm 1, linformer 3"}
    row |= {"device": "A CPU", "clock": "process CPU time", "precision": "float32"}
    return row | {"compiled": False, "threads": 1, "allocator": "glibc"} | columns


GPU = {"device": "A GPU", "clock": "CUDA events", "precision": "bfloat16", "compiled": True}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with the committed targets, and a function that records rows."""
    monkeypatch.setenv("VIXLIB_ROOT", str(tmp_path))
    (tmp_path / "benchmarks").mkdir()
    targets = records.ROOT / "benchmarks" / "targets.csv"
    (tmp_path / "benchmarks" / "targets.csv").write_text(targets.read_text())

    def write(table, *rows):
        for row in rows:
            file = records.place(tmp_path / "benchmarks" / "records", row["device"], table)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps([*records.read(file), row]))

    return write


def test_all_tables_can_be_read():
    assert set(tables.TABLES) == set(records.SOURCES)


def test_records_are_read_by_machine(project):
    assert results.benchmark("layers").empty
    assert results.best_peers(results.benchmark("layers", "cpu")).empty
    project("layers", recorded("layers/softmax/1024", "timm", 1.5))
    project("layers", recorded("layers/softmax/1024", "timm", 3.0, **GPU))
    assert list(results.benchmark("layers")["machine"]) == [
        "A CPU, float32, 1 thread",
        "A GPU, bfloat16, compiled",
    ]
    for kind, ratio in (("cpu", 1.5), ("cuda", 3.0)):
        (row,) = results.benchmark("layers", kind).to_dict("records")
        assert (row["ratio_median"], row["memory"]) == (ratio, 3.0)
    with pytest.raises(BadInput, match="table"):
        results.benchmark("layer")


def test_the_fastest_package_is_the_best_peer(project):
    for peer, ratio in (("timm", 1.5), ("linformer", 0.8), ("fused softmax", 0.1)):
        project("layers", recorded("layers/x/64", peer, ratio, 64))
    project("layers", recorded("layers/x/256", "linformer", None, 256, note="not timed: ..."))
    best = results.best_peers(results.benchmark("layers"))
    assert list(best["peer"]) == ["linformer"]


def test_targets_are_judged_by_the_worst(project):
    table = results.targets()
    assert set(table["verdict"]) == {"not measured"}

    def verdict(mechanism, tokens, quantity):
        seen = results.targets().query(
            "mechanism == @mechanism and tokens == @tokens and quantity == @quantity"
        )
        return tuple(seen[["seen", "verdict"]].iloc[0])

    about = "linformer k 256", "4096 16384", "times faster"
    project("layers", recorded("layers/linformer k 256/4096", "linformer", 2.5, 4096))
    assert verdict(*about) == ("2.50", "not measured")
    project("layers", recorded("layers/linformer k 256/16384", "linformer", 1.7, 16384))
    assert verdict(*about) == ("2.50 · 1.70", "reached")
    project("layers", recorded("layers/fourier/1024", "one fftn", 1.49))
    assert verdict("fourier", "1024", "times faster") == ("1.49", "missed")
    for way, exponent in (("forward", 1.0), ("training", 1.2)):
        row = {"direction": way, "exponent_median": exponent}
        project("scaling", recorded("scaling/performer", "", None, 16384, **row))
    assert verdict("performer", "16384", "exponent") == ("1.00 · 1.20", "missed")


def test_targets_name_what_is_measured():
    """Cells, peers and directions that the tables have: a typing error would stay unmeasured."""
    cells = {f"{table}/{cell.name}" for table in tables.TABLES for cell in of(table)}
    forms = {peer.name for contest in (*pairs.LAYERS, *pairs.SMALL) for peer in contest.peers}
    for row in results.targets().to_dict("records"):
        name = f"{row['table']}/{row['mechanism']}"
        each = [f"{name}/{n}" for n in row["tokens"].split()] + [name]
        assert cells & set(each), row
        if row["table"] in ("layers", "small"):
            assert set(each[:-1]) <= cells, row
        assert row["peer"] in forms | {"package", ""}, row


def of(table):
    return tables.TABLES[table](tables.Settings())


def test_measured_and_crossovers_as_tables(project):
    project("layers", recorded("layers/softmax/1024", "timm", 1.5))
    rows = results.benchmark("layers")
    assert show.measured(rows).to_dict() == {1024: {("softmax", "timm"): "1.50 (1.50–1.50)"}}
    assert show.measured(rows, "memory").iloc[0, 0] == "3.00"
    assert show.measured(rows[:0]).empty
    line = [{"tokens": n, "mechanism": "softmax", "ours_ms": n * n} for n in (64, 256)]
    line += [{"tokens": n, "mechanism": "performer", "ours_ms": 100 * n} for n in (64, 256)]
    table = show.crossovers(pd.DataFrame(line), "ours_ms", {"softmax": "faster", "naive": "than"})
    assert table.to_dict("index") == {"performer": {"faster": "100 to 256", "than": "not measured"}}


def test_readme_has_a_row_of_each_mechanism(project):
    project("layers", recorded("layers/nystrom m 64/1024", "timm", 1.5))
    project("layers", recorded("layers/nystrom m 64/4096", "timm", 0.5, 4096))
    project("models", recorded("models/ViT", "timm", 2.5, 1025))
    assert results.readme_lines()[2:] == [
        "| Nyström m 64 | timm | 1.50 | 0.50 | 3.00 |",
        "| ViT, a whole step | timm | 2.50 | – | 3.00 |",
    ]


# ---- many files, and what ImageNet would cost ----


def test_many_files_are_read_and_measured(tmp_path):
    main(["--quick", "--only", "images/held out/2000", "--records", str(tmp_path)])
    (row,) = rows_of(tmp_path)
    assert (row["files"], row["workers"], row["steps"]) == (2000, 2, 5)
    assert row["start_mb"] < row["first_look_mb"] <= row["main_mb"]
    assert 50 < row["worker_mb"] <= row["main_mb"]
    assert 0 < row["waiting"] < 1 < row["images_a_second"]


@pytest.mark.parametrize("split", images.SPLITS)
def test_the_files_are_those_of_some_images(tmp_path, split):
    images.generated(tmp_path, 2000, split)
    files = [*tmp_path.rglob("*.jpeg")]
    assert len(files) == 2000
    assert len({file.stat().st_ino for file in files}) == images.KINDS
    found = data.dataset(tmp_path, size=8, gigabytes=0, workers=1)
    assert isinstance(found.train_images, data.Pictures)
    assert len(found.classes) == images.CLASSES
    assert (len(found.train_labels), found.skipped) == (
        {images.SPLITS[0]: 1800}.get(split, 1600),
        (),
    )


def test_the_page_of_scale_is_drawn_from_the_records():
    text = (records.ROOT / "docs" / "scale.md").read_text()
    assert scale.rendered(text) == text
    costs = scale.measured().query("quantity == 'cost'")
    assert set(costs["model"]) == {*scale.SYSTEMS, *scale.FIXED}
    transformers = costs[~costs["model"].str.match("ResNet|ConvMixer")]
    assert set(transformers["tokens"]) == {56 * 56}


def test_hours_and_waits_by_hand():
    """3 x 1e9 FLOPs x 1,281,167 images x 300 epochs at 50 TFLOP/s: 6.4 hours; and so on."""
    row = {"model": "ViT", "quantity": "cost", "parameters": 25e6, "flops": 1e9}
    line = {"model": "ViT", "quantity": "line", "fixed_mb": 500.0, "image_mb": 10.0}
    rows = pd.DataFrame([row, line, {"quantity": "reading", "ours_ms": 4.0}])
    assert [*scale.cost_lines(rows)][2] == "| ViT | 25,000,000 | 1.0 | 6 | 1.8 |"
    # a step of 128 images: 7.68 ms; 64 GPUs: 1,066,667 images a second, each 4 ms and 110 kB
    last = "| ViT | 7.7 | 1,066,667 | 4,267 | 117.33 | 196.9 MB, 102.54% |"
    assert [*scale.stall_lines(rows)][2] == last


def test_an_error_of_the_formula_is_that_of_time():
    """Twice the FLOPs in four times the time: foretold half of what it took."""
    rows = [
        {"model": "ViT", "quantity": "check", "side": side, "flops": n * 1e9, "ours_ms": ms}
        for side, n, ms in ((112, 1, 100), (168, 2, 400), (224, 4, 400))
    ]
    rows.append({"model": "ViT", "quantity": "memory", "counted_mb": 99.0, "measured_mb": 100.0})
    assert [*scale.check_lines(pd.DataFrame(rows))][2] == "| ViT | 30 | −50.0% | +0.0% | −1.0% |"


def test_many_files_on_the_page():
    text = (records.ROOT / "benchmarks" / "README.md").read_text()
    assert results.rendered_page(text) == text


def test_what_a_file_costs_is_beyond_the_smallest_folder(project):
    for files, mb in ((10_000, 400), (110_000, 430)):
        columns = {
            "split": "held out",
            "files": files,
            "main_mb": mb,
            "worker_mb": 200 + files / 1e4,
        }
        columns |= {"first_look_seconds": 9, "first_look_mb": 300, "waiting": 0.25}
        project("images", recorded(f"images/{files}", "", None, **columns, images_a_second=50))
    assert results.image_lines()[2:] == [
        "| held out | 10,000 | 9 | 300 | 400 | 201 |  |  | 50 | 25.0% |",
        "| held out | 110,000 | 9 | 300 | 430 | 211 | 300 | 100 | 50 | 25.0% |",
    ]
