"""What a notebook says beside tables and figures: sources, guesses, verdicts, differences."""

import html
import inspect
import math
import textwrap
from functools import partial
from operator import eq

import numpy as np
import pandas as pd

from vixlib.errors import checked
from vixlib.paper.statistics import noise
from vixlib.paper.tables import having, lost
from vixlib.systems import system


@checked
def gap(records: pd.DataFrame, one: str, other: str) -> None:
    """Prints how far `one` is ahead of `other` in top-1, and whether the seeds resolve that."""
    system(one), system(other)
    own = having(records).query("system in [@one, @other]")
    a, b = (own.query("system == @name")["top1"].dropna() for name in (one, other))
    if lost(own) or a.empty or b.empty:
        return print(f"{one} − {other}: {lost(own) or 'no records yet'}")
    points, margin, seeds = a.mean() - b.mean(), noise(a, b), min(len(a), len(b))
    number = f"{points:+.1f}".replace("-", "−")
    verdict = "beyond" if abs(points) > margin else "within"
    of = "one seed, about" if seeds == 1 else f"{seeds} seeds,"
    print(f"{one} − {other}: {number} points, {verdict} the noise of {of} ±{margin:.1f}")


def verdict(answer: object, right: object) -> None:
    """Prints whether an exercise's answer is right: a value, numbers to 1 %, or a predicate."""
    if answer is None:
        return print("not tried yet")
    if not callable(right):
        number = isinstance(right, int | float) and not isinstance(right, bool)
        right = partial(math.isclose, right, rel_tol=0.01) if number else partial(eq, right)
    print("right" if right(answer) else "not yet")


def source(*objects) -> None:
    """The library's own source of classes or functions."""
    from IPython.display import Markdown

    for thing in objects:
        code = textwrap.dedent(inspect.getsource(thing)).rstrip()
        file = thing.__module__.replace(".", "/") + ".py"
        display(Markdown(f"```python\n{code}\n```\n<sub>{file}</sub>"))


def guess(
    value: object, text: str = "Your guess first; then hover, tap or press Enter here."
) -> None:
    """A question's answer, hidden until the reader hovers over it, focuses or taps it."""
    from IPython.display import HTML

    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    answer = html.escape(f"{value:,}" if whole else str(value))
    # a closed <details> hides its content even where a viewer strips the style
    style = ".vix-guess:is(:hover, :focus-within)::details-content{content-visibility:visible}"
    closed = f"<details class='vix-guess'><summary>{html.escape(text)}</summary>"
    display(HTML(f"<style>{style}</style>{closed}<strong>{answer}</strong></details>"))


def display(thing: object) -> None:
    from IPython.display import display as show

    show(thing)
