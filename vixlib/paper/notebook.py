"""What a notebook says beside tables and figures: sources, guesses, verdicts, differences."""

import html
import inspect
import json
import math
import re
import textwrap
from collections.abc import Collection, Mapping
from functools import partial
from operator import eq

import numpy as np
import pandas as pd

from vixlib import paths
from vixlib.errors import checked
from vixlib.paper import study, training
from vixlib.paper.runs import queue, registered
from vixlib.paper.statistics import OPEN, interval, noise
from vixlib.paper.tables import having, lost, results
from vixlib.systems import system


@checked
def gap(records: pd.DataFrame, one: str, other: str) -> None:
    """Prints how far `one` is ahead of `other` in top-1, and whether the seeds resolve that."""
    system(one), system(other)
    own = having(records).query("system in [@one, @other]")
    a, b = (own.query("system == @name")["top1"].dropna() for name in (one, other))
    if lost(own) or a.empty or b.empty:
        return print(f"{one} − {other}: {lost(own) or 'no records yet'}")
    gain, margin, seeds = a.mean() - b.mean(), noise(a, b), min(len(a), len(b))
    verdict = "beyond" if abs(gain) > margin else "within"
    of = "one seed, about" if seeds == 1 else f"{seeds} seeds,"
    print(
        f"{one} − {other}: {study.points(gain)} points, {verdict} the noise of {of} ±{margin:.1f}"
    )


@checked
def effect(records: pd.DataFrame, says: str, pairs: Mapping) -> None:
    """Prints in a sentence what the first of each pair of systems gains in top-1, {one: other}.

    The 95 % interval is over seeds, each the mean of the pairs. Of one seed it is over the pairs,
    as if others had been possible: another seed may move them all.
    """
    own = having(records)
    own = own[own["system"].isin({*pairs, *pairs.values()})]
    table = own.dropna(subset="top1").pivot_table("top1", "seed", "system")
    known = [(one, other) for one, other in pairs.items() if {one, other} <= {*table}]
    gains = pd.DataFrame([table[one] - table[other] for one, other in known]).dropna(axis="columns")
    each = gains.mean() if gains.shape[1] > 1 else gains.mean(axis="columns")
    if len(each) < 2 or lost(own):
        return print(f"{says}: {lost(own) or 'too few records yet'}.")
    gain, half = each.mean(), interval(each)
    word = "accuracy rises" if gain > half else "accuracy falls" if gain < -half else OPEN
    agree = f"{(gains.mean(axis='columns') * gain > 0).sum()} of {len(gains)} pairs"
    of = f"{gains.shape[1]} seeds" if gains.shape[1] > 1 else "one seed, ± over its pairs"
    scope = [f"{own[name].median():,.0f} {name}" for name in ("tokens", "epochs")]
    seen = f"{word}, {study.points(gain)} ± {half:.1f} points, {agree} of this sign"
    print(f"{says}: {seen} ({', '.join([*scope, of])}).")


def conclude(*hypotheses: str) -> None:
    """Prints what the study says of some hypotheses of its register, a sentence each."""
    judged = study.verdicts(training.known(queue("study"))).set_index("hypothesis")
    for row in judged.loc[[*hypotheses]].to_dict("records"):
        print(study.sentence(row))


def studied(systems: Collection[str]) -> pd.DataFrame:
    """What has been trained of the study's factorial, part A, for some systems."""
    runs = [run for run in registered()["A"] if run.system in systems]
    return results(training.known(runs)).drop(columns="logged")  # another experiment


def verdict(answer: object, right: object) -> None:
    """Prints whether an exercise's answer is right: a value, fractions to 1 %, or a predicate."""
    if answer is None:
        return print("not tried yet")
    if not callable(right):
        number = isinstance(right, int | float) and not isinstance(right, bool)
        within = 0.01 if isinstance(right, float) else 0  # of a count one more can be the point
        right = partial(math.isclose, right, rel_tol=within) if number else partial(eq, right)
    try:
        print("right" if right(answer) else "not yet")
    except Exception as error:  # whatever a reader's answer comes to
        print(f"not yet: this {type(answer).__name__} cannot be judged, {error}")


def source(*objects) -> None:
    """The library's own source of classes or functions."""
    from IPython.display import Markdown

    for thing in objects:
        code = textwrap.dedent(inspect.getsource(thing)).rstrip()
        file = thing.__module__.replace(".", "/") + ".py"
        display(Markdown(f"```python\n{code}\n```\n<sub>{file}</sub>"))


def guess(
    value: object,
    text: str = "Your guess first; then hover, tap or press Enter here.",
    *,
    yours: float | str | None = None,
) -> None:
    """A question's answer, hidden until the reader hovers over it, focuses or taps it.

    What the reader says before is right where it is a part of the answer, or within a tenth of a
    number there; build/guesses.json knows how often.
    """
    from IPython.display import HTML

    if yours is not None:
        told, kept = str(value).replace(",", "").lower(), paths.root() / "build" / "guesses.json"
        if isinstance(yours, str):
            right = yours.lower() in told
        else:
            there = map(float, re.findall(r"\d+\.?\d*", told))
            right = any(math.isclose(yours, number, rel_tol=0.1) for number in there)
        known = (json.loads(kept.read_text()) if kept.exists() else {}) | {f"{text} {told}": right}
        paths.atomic_write(kept, lambda path: path.write_text(json.dumps(known)))
        of = f"{sum(known.values())} of {len(known)} guesses were right so far"
        print(f"{'right' if right else 'not quite'}: {of}")
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    answer = html.escape(f"{value:,}" if whole else str(value))
    # a closed <details> hides its content even where a viewer strips the style
    style = ".vix-guess:is(:hover, :focus-within)::details-content{content-visibility:visible}"
    closed = f"<details class='vix-guess'><summary>{html.escape(text)}</summary>"
    display(HTML(f"<style>{style}</style>{closed}<strong>{answer}</strong></details>"))


def display(thing: object) -> None:
    from IPython.display import display as show

    show(thing)
