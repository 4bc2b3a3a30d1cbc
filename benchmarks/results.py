"""What was measured, as tables: ours beside the best peers, targets asked and seen, README's."""

import pandas as pd

from benchmarks import records
from vixlib import paths
from vixlib.errors import checked, one_of
from vixlib.paper.figures import written
from vixlib.paper.readme import between

# a table has them all, measured or not
COLUMNS = [
    *("machine", "cell", "mechanism", "peer", "tokens", "batch", "direction", "note"),
    *(
        "ratio_median",
        "ratio_q25",
        "ratio_q75",
        "ours_ms",
        "peer_ms",
        "ours_peak_mb",
        "peer_peak_mb",
    ),
    *("exponent_median", "exponent_q25", "exponent_q75", "microseconds_an_image", "model"),
    *("quantity", "budget_gb", "largest", "side", "counted_mb", "measured_mb"),
    *("files", "split", "workers", "first_look_seconds", "first_look_mb", "main_mb", "worker_mb"),
    *("images_a_second", "waiting"),
    *("device", "clock", "precision", "compiled", "threads", "allocator", "versions"),
]
# of targets: the column, and whether more is better
TARGETS = {"times faster": ("ratio_median", True), "times less memory": ("memory", True)}
TARGETS["exponent"] = ("exponent_median", False)


@checked
def benchmark(table: str, kind: str | None = None) -> pd.DataFrame:
    """A table of benchmarks/records: all machines, or the first of a kind ("cpu", "cuda").

    A machine is a device with its settings. `package`: the peer is an installed package that
    computes what ours does, not a plain form or another mechanism; `memory`: how many times less
    ours holds. Empty where nothing was measured.
    """
    one_of("table", table, records.SOURCES)
    files = sorted((paths.root() / "benchmarks" / "records").glob(f"*/{table}.json"))
    rows = [row for file in files for row in records.read(file)]
    for row in rows:
        threads = f"{row['threads']} thread" + "s" * (row["threads"] != 1)
        parts = [row["device"], row["precision"], "compiled" * row["compiled"]]
        parts += [threads] * (row["clock"] != "CUDA events")
        parts += [row["allocator"]] * (row["allocator"] not in ("glibc", "torch"))
        row["machine"] = ", ".join(filter(None, parts))
    frame = pd.DataFrame(rows).reindex(columns=COLUMNS)
    frame["memory"] = frame["peer_peak_mb"] / frame["ours_peak_mb"]
    text = frame[["peer", "versions"]].astype(object).fillna("-")
    named = text.itertuples(index=False)
    frame["package"] = pd.Series([peer in versions for peer, versions in named], dtype=bool)
    if kind is not None:
        cuda = one_of("kind", kind, ("cpu", "cuda")) == "cuda"
        frame = frame[(frame["clock"] == "CUDA events") == cuda]
        frame = frame[frame["machine"] == min(frame["machine"], default="")]
    return frame.reset_index(drop=True)


def best_peers(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each cell and direction the row of the fastest package."""
    timed = rows[rows["package"]].dropna(subset=["ratio_median"])
    fastest = timed.groupby(["cell", "direction"], sort=False)["ratio_median"].idxmin()
    return timed.loc[fastest]


@checked
def targets(kind: str = "cpu") -> pd.DataFrame:
    """benchmarks/targets.csv, and what was seen: a row of text for each.

    Where a row names several numbers of tokens or directions, the worst of what was seen has to
    keep what was asked. A peer "package" is the fastest one.
    """
    names = "table", "mechanism", "tokens", "direction", "peer", "quantity", "asked", "stretch"
    file = paths.root() / "benchmarks" / "targets.csv"
    asked = pd.read_csv(file, dtype=str, keep_default_na=False) if file.exists() else None
    asked = pd.DataFrame(columns=names) if asked is None else asked
    measured = {table: benchmark(table, kind) for table in set(asked["table"])}
    found = [_seen(row, measured[row["table"]]) for row in asked.to_dict("records")]
    return asked.assign(**{n: [row[n] for row in found] for n in ("seen", "verdict")})


def _seen(target: dict, rows: pd.DataFrame) -> dict:
    column, more = TARGETS[one_of("quantity", target["quantity"], TARGETS)]
    if target["peer"] == "package":
        rows = best_peers(rows)
    elif target["peer"]:
        rows = rows[rows["peer"] == target["peer"]]
    rows = rows[(rows["mechanism"] == target["mechanism"]) & rows[column].notna()]
    tokens, ways = target["tokens"].split() or [""], target["direction"].split(", ")
    values = []
    for n in tokens:
        for way in ways:
            here = rows[(rows["direction"] == way) & ((rows["tokens"] == float(n)) if n else True)]
            values += here[column].tolist()[:1]
    verdict = "not measured"
    if len(values) == len(tokens) * len(ways):
        bounds = [float(target[name]) for name in ("asked", "stretch") if target[name]]
        kept = [min(values) >= x if more else max(values) <= x for x in bounds]
        verdict = ("missed", "reached", "stretch reached")[sum(kept)]
    return {"seen": " · ".join(f"{value:.2f}" for value in values), "verdict": verdict}


def rendered_readme(text: str) -> str:
    """README with its table of benchmarks drawn from today's records."""
    return between(text, "benchmarks", readme_lines())


def rendered_page(text: str) -> str:
    """benchmarks/README.md with its table of many files drawn from today's records."""
    return between(text, "images", image_lines())


def image_lines() -> list[str]:
    """A row of each folder, and what a file more costs each process, from the smallest to it."""
    columns = "test images", "files", "first look, s", "MB after it", "main, MB", "worker, MB"
    columns += ("bytes a file: main", "worker", "images a second", "waiting")
    lines = [f"| {' | '.join(columns)} |", f"|---|{'--:|' * (len(columns) - 1)}"]
    for split, own in benchmark("images", "cpu").groupby("split", sort=False):
        own = own.sort_values("files")
        first = own.iloc[0]
        for _, row in own.iterrows():
            more = row["files"] - first["files"]
            sizes = [f"{row[name]:,.0f}" for name in ("first_look_mb", "main_mb", "worker_mb")]
            grown = [row[name] - first[name] for name in ("main_mb", "worker_mb")]
            grown = [f"{1e6 * mb / more:,.0f}" if more else "" for mb in grown]
            cells = split, f"{row['files']:,.0f}", f"{row['first_look_seconds']:,.0f}", *sizes
            last = f"{row['images_a_second']:,.0f}", f"{row['waiting']:.1%}"
            lines.append(f"| {' | '.join((*cells, *grown, *last))} |")
    return lines


def readme_lines() -> list[str]:
    """README's table of ours beside the fastest package; a dash where nothing was measured."""
    layers, models, pipeline = (
        best_peers(benchmark(table, "cpu")) for table in ("layers", "models", "pipeline")
    )
    layers = layers[layers["direction"] == "training"]
    columns = "mechanism or model", "beside", "faster", "at 4,096 tokens", "times less memory"
    lines = [f"| {' | '.join(columns)} |", "|---|---|--:|--:|--:|"]
    for rows, label in ((layers, "{}"), (models, "{}, a whole step"), (pipeline, "{}")):
        for name, own in rows.groupby("mechanism", sort=False):
            shorter, longer = (own[own["tokens"] == n] for n in (1024, 4096))
            first = own if rows is not layers else shorter
            if first.empty:
                continue
            ratios = [_times(row, "ratio_median") for row in (first, longer)]
            what = label.format(written(name))
            cells = what, first["peer"].iloc[0], *ratios, _times(first, "memory")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _times(rows: pd.DataFrame, column: str) -> str:
    return f"{rows[column].iloc[0]:.2f}" if len(rows) else "–"
