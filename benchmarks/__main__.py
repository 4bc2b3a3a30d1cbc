"""The command line: python -m benchmarks [--only layers/nystrom* models] [--device cuda] ..."""

import argparse
import datetime
from fnmatch import fnmatch
from pathlib import Path

import torch

from benchmarks import records
from benchmarks.tables import TABLES, Settings
from vixlib.errors import BadInput
from vixlib.train import PRECISIONS


def main(arguments: list[str] | None = None) -> int:
    """Measure what has no record of this code on this machine; a cell is recorded when done."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=main.__doc__)
    only = f"cells, such as models or layers/nystrom*; tables: {', '.join(TABLES)}"
    parser.add_argument("--only", nargs="+", default=["*"], metavar="CELL", help=only)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="float32", choices=PRECISIONS)
    parser.add_argument("--compile", action="store_true", help="torch.compile for both sides")
    parser.add_argument("--threads", type=int, default=1, help="1: CPU time is the clock")
    parser.add_argument("--rounds", type=int, default=0, help="2 or more, instead of 5 to 20")
    parser.add_argument("--quick", action="store_true", help="two rounds, small: does it work?")
    parser.add_argument("--again", action="store_true", help="also what has a record")
    parser.add_argument("--records", type=Path, help="folder to write to")
    parser.add_argument("--readme", action="store_true", help="only render pages from records")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device")
    if options.readme:
        from benchmarks import results, scale  # pandas, which a machine may lack

        for page, rendered in (
            ("README.md", results.rendered_readme),
            ("benchmarks/README.md", results.rendered_page),
            ("docs/scale.md", scale.rendered),
        ):
            file = records.ROOT / page
            file.write_text(rendered(file.read_text()))
        return 0
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    how = options.precision, options.compile, options.quick, options.rounds
    settings = Settings(device, options.threads, *how)
    folder = options.records or records.COMMITTED
    if options.quick and options.records is None:
        folder = records.ROOT / "build" / "benchmarks"
    found = False
    for table, cells in TABLES.items():
        source, columns = records.source(table), settings.columns()
        file = records.place(folder, columns["device"], table)
        for cell in cells(settings):
            name = f"{table}/{cell.name}"
            if not any(fnmatch(name, some) or fnmatch(name, f"{some}/*") for some in options.only):
                continue
            found = True
            about = {"cell": name, **columns, "source": source}
            known = any(about.items() <= row.items() for row in records.read(file))
            if known and not options.again:
                print(f"{name}: recorded", flush=True)
                continue
            date = datetime.datetime.now(datetime.UTC).date().isoformat()
            rows = [{"cell": name, **row, **about, "date": date} for row in cell.measure()]
            records.replace(file, rows)
            for row in rows:
                print(told(row), flush=True)
    if not found:
        raise BadInput(f"no cell matches {' '.join(options.only)}")
    return 0


def told(row: dict) -> str:
    """A row in a line."""
    parts = [row["cell"], row.get("direction", ""), row.get("peer", "")]
    if "ratio_median" in row:
        parts.append(f"{row['ratio_median']:.2f}x ({row['ratio_q25']:.2f}-{row['ratio_q75']:.2f})")
        parts.append(f"{row['ours_ms']:.1f} ms, {row['peer_ms']:.1f} ms")
        parts.append(f"{row['ours_peak_mb']:.1f} MB, {row['peer_peak_mb']:.1f} MB")
    elif "microseconds_an_image" in row:
        parts.append(
            f"{row['microseconds_an_image']:.0f} us an image, {row['ours_peak_mb']:.0f} MB"
        )
    elif "images_a_second" in row:
        parts.append(f"{row['main_mb']:.0f} MB, a worker {row['worker_mb']:.0f} MB")
        parts.append(f"{row['images_a_second']:.0f} images a second, {row['waiting']:.1%} waiting")
    elif "exponent_median" in row:
        parts.append(f"{row['tokens']} tokens: {row['ours_ms']:.1f} ms")
        parts.append(f"exponent {row['exponent_median']:.2f}")
    elif "largest" in row:
        parts.append(f"{row['budget_gb']:g} GB: {row['quantity']} {row['largest']:,}")
        parts.append(f"{row['counted_mb']:.1f} MB")
    elif "counted_mb" in row:
        parts.append(f"batch {row['batch']}, side {row['side']}: {row['counted_mb']:.1f} MB")
        parts.append(f"{row['measured_mb']:.1f} MB measured" if "measured_mb" in row else "")
    elif "note" in row:
        parts.append(row["note"])
    return "  ".join(filter(None, parts))


if __name__ == "__main__":
    raise SystemExit(main())
