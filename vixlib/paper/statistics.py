"""What several seeds say: intervals, pairs and contrasts, verdicts on claims.

Two runs of one seed saw the same images in the same batches, so systems are compared seed by seed.
Differences are in the unit of what is compared, points of accuracy; intervals are of 95 %.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit
from scipy.stats import kendalltau

from vixlib.errors import BadInput, checked, number, one_of, whole

ONE_SEED = 3.0  # points that a single seed resolves, by what the spread of several showed
LEVEL = 0.05
KEPT = 0.5  # points within which a system keeps another's accuracy
VERDICTS = HOLDS, FAILS, OPEN, UNTESTED = "holds", "does not hold", "not resolved", "not tested yet"
DEPENDS = "depends on the budget"
CLAIMS = ABOVE, BELOW, KEEPS = ">", "<", "keeps"


class Effect(NamedTuple):
    """A difference `value` ± `half`, and the two-sided p of its being 0 by Student's t.

    `agreeing` of its `pairs` of one seed each differ in the direction of `value`; `freedom` is
    what was left to estimate the spread from. Without a spread, from one seed, half and p are NaN.
    """

    value: float
    half: float
    p: float
    pairs: int
    agreeing: int
    freedom: int

    @property
    def error(self) -> float:
        """The standard error of `value`: half / t(0.975)."""
        return self.half / stdtrit(self.freedom, 1 - LEVEL / 2)

    def tail(self, distance: float) -> float:
        """P(T > distance / error), one-sided; NaN for no distance without any error."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(stdtr(self.freedom, -np.divide(distance, self.error)))


def interval(values: Iterable[float]) -> float:
    """Half the width of the 95 % interval of the mean, by Student's t; NaN for a single value."""
    values = pd.Series([*values], dtype=float)
    return stdtrit(len(values) - 1, 1 - LEVEL / 2) * values.sem(skipna=False)


def noise(a: pd.Series, b: pd.Series) -> float:
    """Half the 95 % interval of the difference of two means; ONE_SEED where one is of one seed."""
    half = math.hypot(interval(a), interval(b))
    return ONE_SEED if math.isnan(half) else half


@checked
def paired(a: pd.Series, b: pd.Series) -> Effect:
    """The mean of a - b over the seeds that both have: values by seed, NaN for a run without one.

    Student's t of the differences d (1908): mean(d) ± t(0.975, n - 1) s(d) / sqrt(n).
    """
    difference = (_once("a", a) - _once("b", b)).dropna()
    if difference.empty and a.count() and b.count():
        seeds = (", ".join(map(str, values.dropna().index)) for values in (a, b))
        raise BadInput("a and b: expected a seed in common, got {} and {}".format(*seeds))
    return _effect(difference.to_numpy(float), interval(difference), max(len(difference) - 1, 0))


def _once(name: str, values: pd.Series) -> pd.Series:
    """The values; BadInput where several have one name."""
    if not values.index.is_unique:
        twice = values.index[values.index.duplicated()][0]
        raise BadInput(f"{name}: expected a value each, got several of {twice}")
    return values


def _effect(each: np.ndarray, half: float, freedom: int) -> Effect:
    """The effect whose value is the mean of these, one a seed."""
    value = float(each.mean()) if len(each) else math.nan
    effect = Effect(value, float(half), math.nan, len(each), int((each * value > 0).sum()), freedom)
    return effect._replace(p=2 * effect.tail(abs(value)))


@checked
def contrast(frame: pd.DataFrame, response: str, weights: Mapping, cell: str, block: str) -> Effect:
    """A weighted sum of cells' means, in blocks (Fisher, 1935): y = block + cell + e.

    All cells of the frame, each seen once in every block, tell how far e spreads, not those with a
    weight alone: (blocks - 1) (cells - 1) degrees of freedom are left. One spread serves all: where
    cells spread unequally, or a seed shifts some cells more than others, the interval of one
    contrast is too narrow and of another too wide; `paired` has its own.
    """
    for name in (response, cell, block):
        one_of("column", name, list(frame))
    cells = [*frame[cell].unique()]
    for name in weights:
        one_of(cell, name, cells)
    y = _cells(frame, response, cell, block)
    return _contrast(y, np.array([weights.get(name, 0.0) for name in cells]))


def _contrast(y: np.ndarray, weights: np.ndarray) -> Effect:
    """A weighted sum of y (cells, blocks), its spread from what cells and blocks leave of y."""
    cells, blocks = y.shape
    freedom = (cells - 1) * (blocks - 1)
    noise = y - y.mean(1, keepdims=True) - y.mean(0) + y.mean()
    with np.errstate(divide="ignore", invalid="ignore"):  # one block
        square = np.divide(np.sum(noise**2), freedom)
    half = stdtrit(freedom, 1 - LEVEL / 2) * (square * (weights @ weights) / blocks) ** 0.5
    return _effect(weights @ y, half, freedom)


def _cells(frame: pd.DataFrame, response: str, cell: str, block: str) -> np.ndarray:
    """The response (cells, blocks); BadInput names cells that miss or are doubled."""
    cells, blocks = frame[cell].unique(), sorted(frame[block].unique())
    whole(f"number of {block}", len(blocks))
    given = frame.dropna(subset=[response]).set_index([cell, block])[response]
    wanted = pd.MultiIndex.from_product([cells, blocks])
    counts = given.index.value_counts().reindex(wanted, fill_value=0)
    for what, found in (("missing", wanted[counts == 0]), ("twice", wanted[counts > 1])):
        if len(found):
            said = ", ".join(f"{name} ({block} {one})" for name, one in found[:4])
            more = f" and {len(found) - 4} more" if len(found) > 4 else ""
            raise BadInput(f"cells {what}: {said}{more}")
    return given.reindex(wanted).to_numpy(float).reshape(len(cells), -1)


@checked
def equivalent(effect: Effect, margin: float = KEPT) -> float:
    """The p of two one-sided tests that a difference lies within ± margin (Schuirmann, 1987).

    p = max(P(T > (value + margin) / error), P(T < (value - margin) / error)), below 5 % where the
    90 % interval lies within.
    """
    return effect.tail(margin - abs(effect.value))


def holm(p_values: Iterable[float]) -> np.ndarray:
    """p-values adjusted for that there are m of them (Holm, 1979), in the order they came in.

    The i-th smallest becomes the largest (m - j + 1) p_j of j <= i, at most 1. NaN stays NaN and
    counts among the m: of a claim that is registered and not tested yet, p could be anything.
    """
    p = pd.Series([*p_values], dtype=float)
    if ((p < 0) | (p > 1)).any():
        raise BadInput(f"p_values: expected 0 to 1, got {p.tolist()}")
    steps = p.sort_values() * np.arange(len(p), 0, -1)  # NaN last
    return steps.cummax().clip(upper=1).sort_index().to_numpy()


class Interval(NamedTuple):
    """A difference and its 95 % interval."""

    value: float
    low: float
    high: float


@checked
def bootstrap(
    bits_a: np.ndarray, bits_b: np.ndarray, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """The difference of two accuracies, in points, by resampling seeds and images at once.

    `bits` (seeds, images) say what was right, both systems in the same order. Each resample draws
    seeds and images with replacement, independently of each other and alike for both systems: the
    pigeonhole bootstrap of Owen (2007), here with the interval's percentiles. It sees what `paired`
    does not, that other images could have been tested on. It takes the variance over S seeds for
    (S - 1) / S of itself, and its normal rather than Student's quantiles. So where seeds differ
    more than images explain, it covers too rarely: about 75 % for 3 seeds, 85 % for 5, rather than
    95 %. What is of one seed and image alone it counts up to three times: there it covers more than
    95 %. One seed says nothing about others: its bounds are NaN.
    """
    for name, bits in (("bits_a", bits_a), ("bits_b", bits_b)):
        if bits.ndim != 2 or not bits.size or not np.isin(bits, (0, 1)).all():
            raise BadInput(f"{name}: expected (seeds, images) of 0 and 1, got {bits.shape}")
    if bits_a.shape != bits_b.shape:
        raise BadInput(f"bits: expected the same of both, got {bits_a.shape} and {bits_b.shape}")
    gap = 100.0 * bits_a - 100.0 * bits_b
    seeds, images = gap.shape
    if seeds < 2:
        return Interval(float(gap.mean()), math.nan, math.nan)
    generator = np.random.default_rng(seed)
    # images that are alike for all seeds are drawn by their number: few kinds, the same law
    kinds, count = np.unique(gap, axis=1, return_counts=True)
    drawn = generator.multinomial(seeds, np.full(seeds, 1 / seeds), resamples)
    sums = [
        np.sum(generator.multinomial(images, count / images, len(part)) @ kinds.T * part, axis=1)
        for part in np.array_split(drawn, 20)  # of many seeds the kinds are many: memory
    ]
    low, high = np.quantile(np.concatenate(sums) / gap.size, [LEVEL / 2, 1 - LEVEL / 2])
    return Interval(float(gap.mean()), float(low), float(high))


class Agreement(NamedTuple):
    """Kendall's tau-b of two orders, its two-sided p, and how many things were ordered."""

    tau: float
    p: float
    ordered: int


@checked
def kendall(one: pd.Series, other: pd.Series) -> Agreement:
    """How far two measures order the same things alike: Kendall's tau-b (1945), by their index.

    tau = (concordant - discordant pairs) / sqrt(pairs untied in one, times untied in the other).
    p is exact for few things without ties, else by the normal law, rough below ten.
    """
    both = pd.concat([_once("one", one), _once("other", other)], axis=1).dropna()
    if len(both) < 2:
        raise BadInput(f"expected two things or more in both orders, got {len(both)}")
    tau, p = kendalltau(*both.to_numpy(float).T, variant="b")
    return Agreement(float(tau), float(p), len(both))


def p_value(effect: Effect, says: str, margin: float) -> float:
    """The p by which a claim is decided: what `holm` takes of all that are registered.

    Two-sided against `margin` for a difference that is > or < of it, of either sign; that of
    `equivalent` for one that keeps within ± margin.
    """
    number("margin", abs(margin))
    if one_of("claim", says, CLAIMS) == KEEPS:
        return equivalent(effect, margin)
    return 2 * effect.tail(abs(effect.value - margin))


def decides(effect: Effect, says: str, margin: float, seeds: int = 3, adjusted: float = 0) -> str:
    """The verdict on a claim: that a difference is > or < of a margin, or keeps within ± margin.

    It holds, or where a direction is claimed the other one does, if `p_value` is below 5 % and so
    is `adjusted`, the same after `holm`. A claim to keep does not hold where all of the 95 %
    interval lies beyond the margin. Fewer pairs than `seeds` are no test.
    """
    p, value = np.maximum(p_value(effect, says, margin), adjusted), effect.value
    if effect.pairs < seeds:
        return UNTESTED
    if says == KEEPS:
        beyond = abs(value) - effect.half > margin
        return HOLDS if p < LEVEL else FAILS if beyond else OPEN
    claimed = value > margin if says == ABOVE else value < margin
    return OPEN if not p < LEVEL else HOLDS if claimed else FAILS


@checked
def stands(verdicts: Mapping) -> str:
    """The verdict that a claim has at every budget of training, be it one: verdicts by epochs.

    Where they differ it depends on the budget, as far as is known: resolved at one and not at the
    other is no proof that they differ.
    """
    words = {one_of("verdict", word, VERDICTS) for word in verdicts.values()}
    if UNTESTED in words:
        return UNTESTED
    return words.pop() if len(words) == 1 else DEPENDS
