"""README's tables: what is claimed and seen, what departures are worth, results; from records."""

import json
import re
from collections.abc import Iterable

import pandas as pd

from vixlib import paths
from vixlib.paper import claims as claims_of_paper
from vixlib.paper import study
from vixlib.paper.runs import queue, runs
from vixlib.paper.tables import results
from vixlib.paper.training import read
from vixlib.systems import NOTEBOOKS, RESULTS, system

DEFAULT = "laptop"  # the profile that the committed notebooks show


def rendered_readme(text: str) -> str:
    """README with its tables drawn from today's records of the study and the default profile."""
    records = read(queue("study"))
    judged, costs = study.verdicts(records), study.costs(records)
    done = f"{(records['status'] != 'missing').sum()} of {len(records)} runs"
    spent = f"{costs['core-hours'].sum():.1f} of about {costs['estimated for all'].sum():.0f}"
    departs = judged["part"] == "F"
    cost = ["", f"So far {done} are there; they took {spent} core-hours."]
    text = between(text, "claims", claims(judged[~departs]) + cost)
    text = between(text, "departures", claims(judged[departs]))
    text = between(text, "pretrained", markdown("system", shipped(records), "|---|--:|--:|---|"))
    ledger = claims_of_paper.ledger()
    memory = ledger[ledger["quantity"].isin(claims_of_paper.STEPS)].to_dict("records")
    found = [claims_of_paper.verdict(row, records) for row in memory]
    table = pd.DataFrame(found, [row["says"] for row in memory], ["verdict", "times the memory"])
    text = between(text, "memory", markdown("claim", table, "|---|---|---|"))
    table = results(read(runs(RESULTS, DEFAULT)))[["logged", "ours", "peak MB", "parameters"]]
    notebooks = [NOTEBOOKS[system(name).family.table] for name in table.index]
    links = [f"[{notebook}](notebooks/{notebook}.ipynb)" for notebook in notebooks]
    lines = markdown("system", table.assign(notebook=links), "|---|--:|--:|--:|--:|---|")
    return between(text, "results", lines)


def shipped(records: pd.DataFrame) -> pd.DataFrame:
    """Trained models that ship: accuracy, with the interval of its test images alone, and run."""
    kept = json.loads((paths.PACKAGE / "pretrained" / "runs.json").read_text())
    runs = records.set_index("name").loc[[*kept.values()]].set_axis([*kept])
    share = runs["top1"] / 100
    half = (196 * (share * (1 - share) / runs["test_images"]) ** 0.5).map("{:.1f}".format)
    table = {"top-1 (%)": runs["top1"].map("{:.1f}".format) + " ± " + half}
    table["parameters"] = runs["parameters"].map("{:,.0f}".format)
    return pd.DataFrame(table | {"trained by": "`" + runs["command"] + "`"})


def claims(judged: pd.DataFrame) -> list[str]:
    """Verdicts as lines of a table."""
    return markdown("claim", study.told(judged), "|---|--:|---|---|---|")


def markdown(first: str, table: pd.DataFrame, rule: str) -> list[str]:
    """A table of text as lines, row names under `first`, its columns aligned as a rule says."""
    rows = [first, *table], *table.itertuples(name=None)
    head, *body = [f"| {' | '.join(cells)} |" for cells in rows]
    return [head, rule, *body]


def between(text: str, name: str, lines: Iterable[str]) -> str:
    """The text with these lines between the markers of a name."""
    head, begin, rest = re.split(f"(<!-- {name}: .* -->\n)", text)
    end = f"<!-- end of {name} -->"
    return "\n".join([head + begin, *lines, "", end]) + rest.split(end)[1]
