"""Replays of recorded trainings: does today's code, on this machine, begin them as they began?"""

import json
import re
from datetime import date
from pathlib import Path

from vixlib.errors import RecordError, checked
from vixlib.paper.provenance import origin
from vixlib.paper.records import DIFFERENT, EQUAL, ROUNDED, unlike, write
from vixlib.paper.runs import Run
from vixlib.paper.training import replay

# By how much losses may be apart, relatively: other processors and numbers of threads round sums
# otherwise, and BatchNorm and Adam carry that on. Seen with vector units off, 14 systems of quick:
# 1e-7 in the first step, and in ResNet-20 a hundred times as much every two steps, up to 6e-3.
ROUNDING = {"float32": 1e-6, "bfloat16": 1e-2}  # in the first step
GROWTH, MOST = 10, 1e-2


def rebuilt(path: Path) -> tuple[Run, dict]:
    """The run of a record, and the record; RecordError where today's code has no such run."""
    try:
        record = json.loads(path.read_text())
        names = re.findall(r"([\w.]+)=", record["overrides"])
        who = (record[key] for key in ("system", "profile", "recipe", "seed"))
        run = Run(*who, tuple((name, record[name]) for name in names))
        moved = {"name": run.name} if run.name != record["name"] else unlike(run, record)
        if moved:
            raise ValueError(
                ", ".join(f"{n} was {record[n]}, is {now}" for n, now in moved.items())
            )
        if "first_losses" not in record:
            raise ValueError("it has no first losses")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"cannot replay {path}: {error}") from error
    return run, record


@checked
def verify(
    path: Path, *, folder: str | Path | None = None, device: str | None = None, note: bool = False
) -> tuple[str, str]:
    """Train the beginning of a record's run again: one of RESULTS, and what was compared.

    With `note` the record keeps what was found.
    """
    run, record = rebuilt(path)
    made_by, then, first = origin(), record["first_losses"], ROUNDING[run.settings["precision"]]
    now = replay(run, folder=folder, device=device)
    allowed = [min(MOST, first * GROWTH**i) * abs(loss) for i, loss in enumerate(then)]
    gaps = [abs(a - b) for a, b in zip(then, now, strict=False)]
    near = len(then) == len(now) and all(a <= b for a, b in zip(gaps, allowed, strict=False))
    result = EQUAL if then == now else ROUNDED if near else DIFFERENT
    if note:
        seen = {"date": f"{date.today()}", "commit": made_by["commit"], "result": result}
        known = {"code": made_by["code"]} if result != DIFFERENT else {}
        write(path, record | known | {"verified": seen})
    return result, f"{len(now)} losses" + (
        f", up to {max(gaps, default=0):.1e} apart" if result != EQUAL else ""
    )
