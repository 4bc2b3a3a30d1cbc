"""The study's statistics: held to scipy, statsmodels and plain loops, then to simulated truth.

The simulations have fixed seeds; what they count is held to binomial bounds around its nominal
rate, so that a rate that is off by a few per cent is noticed and chance is not.
"""

import itertools
import math
from collections import Counter
from functools import cache, partial, reduce

import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from vixlib.errors import BadInput
from vixlib.paper import claims, notebook, statistics
from vixlib.paper.statistics import (
    Effect,
    bootstrap,
    decides,
    equivalent,
    holm,
    interval,
    kendall,
    p_value,
    paired,
    stands,
)

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")  # of numpy
close = partial(assert_allclose, rtol=1e-9, atol=1e-12)
# numbers drawn from a seed are no simpler when the seed is smaller: no shrinking
few = settings(max_examples=40, deadline=None, derandomize=True, phases=[Phase.generate])
seeds, sizes = st.integers(0, 2**31 - 1), st.integers(2, 9)


def by_seed(*values: float) -> pd.Series:
    return pd.Series(values, dtype=float)


def accuracies(seed: int, size: int) -> tuple[pd.Series, pd.Series]:
    """Of two systems: what a seed does to both, and what it does to each."""
    draw = np.random.default_rng(seed).normal
    shared = 60 + draw(scale=3, size=size)
    return tuple(pd.Series(shared + shift + draw(size=size)) for shift in (draw(), 0))


def expected(hits: int, trials: int, rate: float) -> bool:
    """Whether a count is one that this rate gives, but in one of a thousand simulations."""
    return stats.binomtest(int(hits), trials, rate).pvalue > 1e-3


# ---- one system, and two by their seeds ----


@few
@given(seeds, sizes)
def test_an_interval_is_student_s(seed, size):
    values = np.random.default_rng(seed).normal(60, 3, size)
    low, high = stats.t.interval(0.95, size - 1, values.mean(), stats.sem(values))
    close(interval(values), (high - low) / 2)


def test_a_single_seed_has_no_interval():
    assert math.isnan(interval([60.0]))


@few
@given(seeds, sizes)
def test_pairs_are_judged_by_their_differences(seed, size):
    a, b = accuracies(seed, size)
    effect, trusted = paired(a, b), stats.ttest_rel(a, b)
    low, high = trusted.confidence_interval(0.95)
    close(effect[:3], (a.mean() - b.mean(), (high - low) / 2, trusted.pvalue))
    close(effect.error, stats.sem(a - b))
    ahead = sum(one > other for one, other in zip(a, b, strict=True))
    agreeing = ahead if a.mean() > b.mean() else size - ahead
    assert effect[3:] == (size, agreeing, size - 1)


def test_pairs_are_found_by_their_seed():
    a = pd.Series({3: 65.0, 0: 61.0, 2: math.nan, 1: 63.0, 4: 50.0})
    b = pd.Series({0: 60.0, 1: 60.0, 2: 90.0, 3: 60.0, 7: 0.0})
    effect = paired(a, b)
    assert (effect.value, effect.pairs, effect.freedom) == (3, 3, 2)
    close(effect.p, stats.ttest_1samp([1, 3, 5], 0).pvalue)


@pytest.mark.parametrize(
    ("differences", "agreeing"),
    [((2, 1, 0, -1), 2), ((-2, -1, 0, 1), 2), ((9, -1, -1, -1), 1), ((1, 1, 1, 1), 4)],
)
def test_seeds_agree_with_the_mean_not_with_each_other(differences, agreeing):
    assert paired(by_seed(*differences), by_seed(0, 0, 0, 0)).agreeing == agreeing


def test_without_a_spread_any_difference_is_certain_and_none_is_nothing():
    same = by_seed(60, 61, 62)
    assert paired(same + 1, same) == Effect(1.0, 0.0, 0.0, 3, 3, 2)
    value, half, p, *rest = paired(same, same)
    assert (value, half, rest) == (0, 0, [3, 0, 2])
    assert math.isnan(p)


@pytest.mark.parametrize("values", [(), (60.0,)], ids=["none", "one"])
def test_too_few_pairs_have_no_interval(values):
    own, other = pd.Series(values), by_seed(59, 58, 57)
    effect = paired(own, other)
    assert paired(other, own)[3:] == effect[3:]
    assert (effect.pairs, effect.agreeing, effect.freedom) == (len(values), len(values), 0)
    assert math.isnan(effect.half)
    assert math.isnan(effect.p)
    assert math.isnan(effect.value) == (not values)
    assert decides(effect, ">", 0) == decides(effect, "keeps", 0.5) == "not tested yet"
    assert math.isnan(equivalent(effect))


# ---- factorials ----

STUDY = {  # no reference is the first of the alphabet
    "position": ["learned", "rotary"],
    "embedding": ["patch", "convolution"],
    "mechanism": ["softmax", "linformer", "performer", "nystrom"],
}
DESIGNS = {
    "the study": (STUDY, 3),
    "two by two": ({"a": ["y", "x"], "b": ["2", "1"]}, 5),
    "three by four": ({"a": ["y", "x", "z"], "b": ["v", "u", "w", "t"]}, 2),
    "one factor": ({"a": ["y", "z", "x"]}, 4),
    "four factors": ({name: ["y", "x"] for name in "abcd"}, 2),
}


def table(factors: dict, blocks: int, y=0.0) -> pd.DataFrame:
    """A row a seed and cell."""
    rows = itertools.product(range(blocks), *factors.values())
    return pd.DataFrame(rows, columns=["seed", *factors]).assign(top1=y)


def terms(factors: dict) -> list[tuple]:
    sizes = range(1, len(factors) + 1)
    return [term for size in sizes for term in itertools.combinations(factors, size)]


def factorial(frame: pd.DataFrame, response: str, factors: dict, block: str) -> dict[str, dict]:
    """Every effect of a factorial as the contrast of its cells that Kronecker products give."""
    cells = pd.MultiIndex.from_product(factors.values(), names=[*factors]).map(" ".join)
    frame = frame.assign(cell=frame[[*factors]].agg(" ".join, axis=1))
    order = [[*frame["cell"].unique()].index(cell) for cell in cells]
    y = statistics._cells(frame, response, "cell", block)[order]
    ones, effects = {name: np.eye(len(levels)) for name, levels in factors.items()}, {}
    for term in terms(factors):
        parts = (one[1:] - one[0] if name in term else one.mean(0) for name, one in ones.items())
        labels = map(" x ".join, itertools.product(*(factors[name][1:] for name in term)))
        weights = zip(labels, reduce(np.kron, parts), strict=True)
        effects[" x ".join(term)] = {label: statistics._contrast(y, w) for label, w in weights}
    return effects


def trained(factors: dict, blocks: int, draw: np.random.Generator) -> pd.DataFrame:
    """Cells that differ, seeds that differ, noise; rows in any order."""
    frame = table(factors, blocks)
    cells = frame.groupby([*factors]).ngroup()
    y = draw.normal(size=cells.max() + 1)[cells] + draw.normal(scale=3, size=blocks)[frame["seed"]]
    return frame.assign(top1=60 + y + draw.normal(size=len(frame))).sample(
        frac=1, random_state=draw
    )


def fitted(frame: pd.DataFrame, factors: dict):
    crossed = " * ".join(f"C({name}, Sum)" for name in factors)
    return ols(f"top1 ~ C(seed, Sum) + {crossed}", frame).fit()


def contrast(model, factors: dict, chosen: dict) -> np.ndarray:
    """By means of the design's rows: the difference of differences of the levels from the first."""
    data = model.model.data.frame
    total = 0
    for picked in itertools.product(*([(name, 1), (name, -1)] for name in chosen)):
        levels = {n: chosen[n] if sign > 0 else factors[n][0] for n, sign in picked}
        rows = np.all([data[n] == level for n, level in levels.items()], axis=0)
        total = total + math.prod(sign for _, sign in picked) * model.model.exog[rows].mean(0)
    return total


@pytest.mark.parametrize("design", DESIGNS)
def test_a_factorial_is_the_linear_model_in_sum_coding(design):
    factors, blocks = DESIGNS[design]
    frame = trained(factors, blocks, np.random.default_rng(1))
    ours, model = factorial(frame, "top1", factors, "seed"), fitted(frame, factors)
    assert [*ours] == [" x ".join(term) for term in terms(factors)]
    for typ, term in itertools.product((2, 3), terms(factors)):
        trusted = anova_lm(model, typ=typ).loc[":".join(f"C({name}, Sum)" for name in term)]
        effects = [*ours[" x ".join(term)].values()]
        assert len(effects) == trusted["df"]
        assert {own.freedom for own in effects} == {model.df_resid}
        if len(effects) == 1:  # the test of a term is that of its effect
            ((value, half, p, *_),) = effects
            t = value / (half / stats.t.ppf(0.975, model.df_resid))
            assert_allclose((t**2, p), (trusted["F"], trusted["PR(>F)"]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("design", DESIGNS)
def test_effects_are_differences_from_the_reference(design):
    factors, blocks = DESIGNS[design]
    frame = trained(factors, blocks, np.random.default_rng(2))
    ours, model = factorial(frame, "top1", factors, "seed"), fitted(frame, factors)
    for term in terms(factors):
        combinations = [*itertools.product(*(factors[name][1:] for name in term))]
        effects = ours[" x ".join(term)]
        assert [*effects] == [" x ".join(levels) for levels in combinations]
        for levels, effect in zip(combinations, effects.values(), strict=True):
            chosen = dict(zip(term, levels, strict=True))
            trusted = model.t_test(contrast(model, factors, chosen))
            low, high = trusted.conf_int()[0]
            close(effect.value, trusted.effect[0], atol=1e-9)
            close((effect.half, effect.p), ((high - low) / 2, trusted.pvalue), atol=1e-9)
            close(effect.error, trusted.sd[0, 0])
            assert effect.freedom == model.df_resid


@pytest.mark.parametrize("weights", [{"b": 1, "a": -1}, {"a": 1, "b": -1, "c": -2, "d": 2}])
@pytest.mark.parametrize("blocks", [2, 3, 6])
def test_a_contrast_is_that_of_the_linear_model(weights, blocks):
    """With one factor and blocks; every cell tells of the spread, those without a weight, too."""
    arms = {"arm": [*"cbdae"]}
    frame = trained(arms, blocks, np.random.default_rng(blocks))
    ours = statistics.contrast(frame, "top1", weights, "arm", "seed")
    model = ols("top1 ~ C(seed, Sum) + C(arm, Sum)", frame).fit()
    rows = [
        w * model.model.exog[(frame["arm"] == a).to_numpy()].mean(0) for a, w in weights.items()
    ]
    trusted = model.t_test(sum(rows))
    low, high = trusted.conf_int()[0]
    close((ours.value, ours.half, ours.p), (trusted.effect[0], (high - low) / 2, trusted.pvalue))
    assert ours.freedom == model.df_resid == (blocks - 1) * 4
    assert ours.pairs == blocks
    wide = frame.pivot_table("top1", "seed", "arm")
    by_hand = sum(w * wide[a] for a, w in weights.items())
    assert ours.agreeing == (by_hand * ours.value > 0).sum()


def test_a_contrast_of_two_arms_alone_is_paired():
    frame = trained({"arm": [*"ab"]}, 4, np.random.default_rng(0))
    wide = frame.pivot_table("top1", "seed", "arm")
    ours = statistics.contrast(frame, "top1", {"a": 1, "b": -1}, "arm", "seed")
    close([*ours], [*paired(wide["a"], wide["b"])])


def test_an_effect_counts_the_seeds_that_agree():
    frame = trained(STUDY, 5, np.random.default_rng(3))
    mean = frame.groupby(["seed", "position", "mechanism"])["top1"].mean()
    gap = mean[:, "rotary"] - mean[:, "learned"]
    gap = gap[:, "nystrom"] - gap[:, "softmax"]
    out = factorial(frame, "top1", STUDY, "seed")
    effect = out["position x mechanism"]["rotary x nystrom"]
    close(effect.value, gap.mean())
    assert (effect.pairs, effect.agreeing) == (5, sum(gap * gap.mean() > 0))
    assert 0 < effect.agreeing < 5


def test_effects_that_were_put_in_come_out():
    frame = table(STUDY, 3)
    rotary, convolution = frame["position"] == "rotary", frame["embedding"] == "convolution"
    nystrom = frame["mechanism"] == "nystrom"
    y = 60 + frame["seed"] + 2.0 * rotary - 3.0 * convolution + 1.0 * (rotary & convolution)
    out = factorial(frame.assign(top1=y + 4.0 * (rotary & nystrom)), "top1", STUDY, "seed")
    got = {name: {k: e.value for k, e in term.items()} for name, term in out.items()}
    assert got["position"]["rotary"] == pytest.approx(2 + 0.5 + 1)  # over the other factors' levels
    assert got["embedding"]["convolution"] == pytest.approx(-3 + 0.5)
    assert got["position x embedding"]["rotary x convolution"] == pytest.approx(1)
    wanted = {"linformer": 0, "performer": 0, "nystrom": 2}
    assert got["mechanism"] == pytest.approx(wanted, abs=1e-9)
    wanted = {f"rotary x {name}": 2 * value for name, value in wanted.items()}
    assert got["position x mechanism"] == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("blocks", [1, 3])
def test_without_a_spread_a_factorial_has_effects_and_no_tests(blocks):
    frame = table(STUDY, blocks, y=60.0)
    for term in factorial(frame, "top1", STUDY, "seed").values():
        for effect in term.values():
            assert effect.freedom == (blocks - 1) * 15
            assert (effect.value, effect.pairs, effect.agreeing) == (0, blocks, 0)
            assert math.isnan(effect.half) == (blocks == 1)
            assert math.isnan(effect.p)


# ---- equivalence ----


@few
@given(seeds, sizes, st.floats(0.01, 3))
def test_equivalence_is_two_one_sided_tests(seed, size, margin):
    a, b = accuracies(seed, size)
    p = equivalent(paired(a, b), margin)
    close(p, ttost_paired(a.to_numpy(), b.to_numpy(), -margin, margin)[0])
    low, high = stats.ttest_rel(a, b).confidence_interval(0.90)
    assert (p < 0.05) == (-margin < low and high < margin)


def test_equivalence_of_a_factorial_has_its_degrees_of_freedom():
    frame = trained(STUDY, 3, np.random.default_rng(4))
    effect = factorial(frame, "top1", STUDY, "seed")["mechanism"]["performer"]
    model = fitted(frame, STUDY)
    row = contrast(model, STUDY, {"mechanism": "performer"})
    one, other = (model.t_test((row, np.array([m]))).tvalue.item() for m in (-2, 2))
    p = max(stats.t.sf(one, 30), stats.t.cdf(other, 30))
    close(equivalent(effect, 2), p)


def test_a_difference_of_the_margin_is_not_within_it():
    at, inside = (Effect(value, 0.0, 0.0, 3, 3, 2) for value in (0.5, 0.499))
    for sign in (1, -1):
        assert not equivalent(at._replace(value=sign * at.value)) < 0.05
        assert equivalent(inside._replace(value=sign * inside.value)) == 0
    assert statistics.KEPT == 0.5


# ---- many claims ----


@pytest.mark.parametrize("size", [1, 2, 12, 300])
def test_holm_is_holm(size):
    p = np.random.default_rng(size).random(size) ** 3
    p[size // 2 :: 3] = 0.01  # ties
    close(holm(p), multipletests(p, method="holm")[1])


def test_holm_by_hand():
    close(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    close(holm(iter([0.6, 0.9])), [1, 1])
    assert holm([]).shape == (0,)


def test_a_claim_without_p_stays_one_and_counts():
    close(holm([math.nan, 0.01, 0.03, math.nan]), [math.nan, 0.04, 0.09, math.nan])
    assert np.isnan(holm([math.nan])).all()


# ---- seeds and images ----


def resampled(a: np.ndarray, b: np.ndarray, times: int) -> np.ndarray:
    """Two-way resampling, a loop: the same seeds and images for both systems."""
    draw, (rows, columns) = np.random.default_rng(99), a.shape
    means = []
    for _ in range(times):
        r, c = draw.integers(rows, size=rows), draw.integers(columns, size=columns)
        means.append(a[r][:, c].mean() - b[r][:, c].mean())
    return 100 * np.array(means)


def bits(draw, seeds, images, *, a=0.0, b=0.0, image=0.0, seed=0.0, noise=0.0, shared=1.0):
    """Right or wrong of two systems with thresholds a and b, and the true difference in points.

    Normal latents: of an image (shared) and what a system makes of it (image), of a system's seed,
    of noise. Over all that is drawn, a system is right with Phi(threshold / their spread).
    """
    spread = math.sqrt(shared**2 + image**2 + seed**2 + noise**2)
    common = draw.normal(scale=shared, size=images)
    right = []
    for threshold in (a, b):
        latent = threshold + common + draw.normal(scale=image, size=images)
        latent = latent + draw.normal(scale=seed, size=(seeds, 1))
        right.append(latent + draw.normal(scale=noise, size=(seeds, images)) > 0)
    return *right, 100 * (stats.norm.cdf(a / spread) - stats.norm.cdf(b / spread))


@pytest.mark.parametrize(
    "spread",
    [{"seed": 0.6}, {"image": 1.0}, {"noise": 1.0}, {"seed": 0.3, "image": 0.5, "noise": 0.5}],
    ids="+".join,
)
def test_the_bootstrap_resamples_seeds_and_images_of_both(spread):
    a, b, _ = bits(np.random.default_rng(5), 5, 60, a=0.4, **spread)
    ours, trusted = bootstrap(a, b, 8000), resampled(a, b, 4000)
    close(ours.value, 100 * (a.mean() - b.mean()))
    low, high = np.quantile(trusted, [0.025, 0.975])
    wide = 0.05 * (high - low)  # quantiles of 4,000 draws are that sure
    assert_allclose((ours.low, ours.high), (low, high), atol=wide)


def test_the_bootstrap_of_alike_seeds_is_binomial():
    a = np.arange(50) < np.full((3, 1), 20)
    ours = bootstrap(a, np.zeros_like(a), 20_000)
    assert_allclose(ours[1:], 2 * stats.binom.ppf([0.025, 0.975], 50, 0.4), atol=2)


def test_the_bootstrap_of_alike_images_is_of_seeds():
    a = np.broadcast_to(np.array([[1], [0], [0]]), (3, 40))
    assert bootstrap(a, np.zeros_like(a)) == (pytest.approx(100 / 3), 0, 100)
    two = np.array([[1, 1], [0, 1]]), np.array([[0, 1], [0, 1]])
    assert bootstrap(*two) == (25, 0, 100)


def test_the_bootstrap_repeats_by_its_seed():
    a, b, _ = bits(np.random.default_rng(6), 3, 200, a=0.3, seed=0.3, noise=1.0)
    np.random.seed(0)  # noqa: NPY002
    first = bootstrap(a, b, 500)
    np.random.seed(1)  # noqa: NPY002
    assert bootstrap(a, b, 500) == first == bootstrap(a * 1, b * 1, 500, seed=0)
    assert bootstrap(a, b, 500, seed=1) != first
    value, low, high = bootstrap(b, a, 500)
    assert_allclose((value, high, low), [-each for each in first], atol=1.5)


def test_a_single_seed_bounds_nothing():
    value, low, high = bootstrap(np.array([[1, 1, 0, 1]]), np.array([[0, 1, 0, 0]]))
    assert value == 50
    assert math.isnan(low)
    assert math.isnan(high)


# ---- two orders ----


def tau_b(x, y) -> float:
    """Kendall's formula, pair by pair."""
    total = untied_x = untied_y = 0
    for i, j in itertools.combinations(range(len(x)), 2):
        one, other = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
        total, untied_x, untied_y = total + one * other, untied_x + one**2, untied_y + other**2
    return total / math.sqrt(untied_x * untied_y)


@few
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=12))
def test_tau_counts_pairs(points):
    x, y = map(list, zip(*points, strict=True))
    if len(set(x)) > 1 < len(set(y)):
        tau, _, ordered = kendall(by_seed(*x), by_seed(*y))
        close(tau, tau_b(x, y))
        assert ordered == len(points)


@pytest.mark.parametrize("seed", range(5))
def test_its_p_is_that_of_all_orders(seed):
    y = np.random.default_rng(seed).permutation(5)
    taus = [abs(tau_b(range(5), order)) for order in itertools.permutations(y)]
    p = np.mean(np.array(taus) > abs(tau_b(range(5), y)) - 1e-9)
    close(kendall(by_seed(*range(5)), by_seed(*y))[:2], (tau_b(range(5), y), p))


def test_its_p_with_ties_is_normal():
    x, y = [1, 1, 2, 3, 4, 5, 5, 6, 7, 8], [2, 1, 1, 5, 3, 4, 8, 8, 8, 9]
    n, s = len(x), 0
    for i, j in itertools.combinations(range(n), 2):
        s += np.sign(x[i] - x[j]) * np.sign(y[i] - y[j])
    t, u = ([v.count(k) for k in set(v)] for v in (x, y))  # Kendall (1970), the variance of s
    v0, vt, vu = (sum(k * (k - 1) * (2 * k + 5) for k in of) for of in ([n], t, u))
    pairs, triples = ([sum(math.perm(k, least) for k in of) for of in (t, u)] for least in (2, 3))
    variance = (v0 - vt - vu) / 18 + math.prod(pairs) / (2 * n * (n - 1))
    variance += math.prod(triples) / (9 * n * (n - 1) * (n - 2))
    close(kendall(by_seed(*x), by_seed(*y)).p, 2 * stats.norm.sf(abs(s) / variance**0.5))


def test_orders_are_of_what_both_have():
    ours = pd.Series({"ViT": 48, "ViL": 44, "ViN": 47, "CCT": 51, "LeViT": math.nan, "ViP": 49})
    logged = pd.Series({"ViP": 60, "ViT": 56, "ViL": 50, "CCT": 70, "LeViT": 80, "ViN": math.nan})
    assert kendall(ours, logged)[::2] == (1, 4)
    assert kendall(ours, -logged)[::2] == (-1, 4)


# ---- verdicts ----

SURE = Effect(2.0, 0.4, 0.001, 3, 3, 2)  # 1.6 to 2.4


@pytest.mark.parametrize(
    ("effect", "says", "margin", "word"),
    [
        (SURE, ">", 0, "holds"),
        (SURE, ">", 1.5, "holds"),
        (SURE, ">", 1.7, "not resolved"),
        (SURE, ">", 2.3, "not resolved"),
        (SURE, ">", 2.5, "does not hold"),
        (SURE, ">", -3, "holds"),
        (SURE, "<", 0, "does not hold"),
        (SURE, "<", 1.5, "does not hold"),
        (SURE, "<", 1.7, "not resolved"),
        (SURE, "<", 2.5, "holds"),
        (SURE, "<", -3, "does not hold"),
        (SURE._replace(value=-2.0), ">", 0, "does not hold"),
        (SURE._replace(value=-2.0), "<", 0, "holds"),
        (SURE._replace(value=-2.0), "<", -1.5, "holds"),
        (SURE._replace(value=0.1), ">", 0, "not resolved"),
        (SURE._replace(value=0.1), "<", 0, "not resolved"),
        (SURE, "keeps", 0.5, "does not hold"),
        (SURE, "keeps", 1.5, "does not hold"),
        (SURE, "keeps", 1.7, "not resolved"),
        (SURE, "keeps", 2.2, "not resolved"),  # the 90 % interval ends at 2.27
        (SURE, "keeps", 2.35, "holds"),  # and the 95 % one at 2.4
        (SURE._replace(value=-2.0), "keeps", 2.35, "holds"),
        (SURE._replace(value=-2.0), "keeps", 2.2, "not resolved"),
        (SURE._replace(value=-2.0), "keeps", 0.5, "does not hold"),
    ],
)
def test_verdicts(effect, says, margin, word):
    assert decides(effect, says, margin) == word
    lost = effect._replace(pairs=2)
    assert decides(lost, says, margin) == "not tested yet"
    assert decides(lost, says, margin, seeds=2) == word
    assert decides(effect, says, margin, seeds=4) == "not tested yet"


@pytest.mark.parametrize("says", [">", "<", "keeps"])
def test_a_difference_at_the_margin_or_without_interval_is_not_resolved(says):
    at = Effect(0.5, 0.0, 0.0, 3, 3, 2)
    assert decides(at, says, 0.5) == "not resolved"
    single = paired(by_seed(60), by_seed(50))
    assert decides(single, says, 0.5) == "not tested yet"
    assert decides(single, says, 0.5, seeds=1) == "not resolved"


def test_other_claims_make_a_verdict_harder_never_easier():
    for says, margin, word in [(">", 0, "holds"), ("<", 0, "does not hold"), ("keeps", 3, "holds")]:
        assert decides(SURE, says, margin, adjusted=0.049) == word
        assert decides(SURE, says, margin, adjusted=0.05) == "not resolved"
        assert decides(SURE, says, margin, adjusted=math.nan) == "not resolved"
    assert decides(SURE, ">", 1.7, adjusted=0.001) == "not resolved"


@few
@given(seeds, sizes, st.floats(-3, 3))
def test_the_p_of_a_claim_is_against_its_margin(seed, size, margin):
    a, b = accuracies(seed, size)
    effect, trusted = paired(a, b), stats.ttest_rel(a, b + margin)
    for says, low, high in [(">", "does not hold", "holds"), ("<", "holds", "does not hold")]:
        close(p_value(effect, says, margin), trusted.pvalue)
        word = low if trusted.statistic < 0 else high
        assert decides(effect, says, margin, 2) == (
            word if trusted.pvalue < 0.05 else "not resolved"
        )
    margin = abs(margin)
    tost = ttost_paired(a.to_numpy(), b.to_numpy(), -margin, margin)[0]
    close(p_value(effect, "keeps", margin), tost)


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (("holds", "holds"), "holds"),
        (("does not hold", "does not hold"), "does not hold"),
        (("not resolved", "not resolved"), "not resolved"),
        (("holds", "does not hold"), "depends on the budget"),
        (("holds", "not resolved"), "depends on the budget"),
        (("does not hold", "not resolved"), "depends on the budget"),
        (("holds", "not tested yet"), "not tested yet"),
        (("holds", "holds", "does not hold"), "depends on the budget"),
        (("holds",), "holds"),  # at one
        (("not tested yet",), "not tested yet"),
    ],
)
def test_a_claim_stands_at_every_budget(words, word):
    for order in (words, words[::-1]):
        assert stands(dict(zip((4, 12, 36), order, strict=False))) == word


def test_the_ledger_speaks_the_same_words():
    assert claims.VERDICTS is statistics.VERDICTS
    words = (claims.HOLDS, claims.FAILS, claims.OPEN, claims.UNTESTED)
    assert words == ("holds", "does not hold", "not resolved", "not tested yet")
    assert claims.noise is notebook.noise
    one, two = by_seed(60), by_seed(60, 61, 62)
    assert claims.noise(one, two) == claims.noise(two, one) == statistics.ONE_SEED == 3.0
    assert claims.noise(two, two) == pytest.approx(2**0.5 * interval(two))


# ---- what is refused ----

FRAME = table(STUDY, 2)
A_SEED = FRAME["seed"] == 1
LINFORMER = (FRAME["mechanism"] == "linformer") & (FRAME["position"] == "rotary")
CELLS = FRAME.assign(cell=FRAME[[*STUDY]].agg(" ".join, axis=1))
study = partial(statistics.contrast, response="top1", weights={}, cell="cell", block="seed")
RIGHT = np.ones((3, 4))
BAD = [
    (lambda: paired([1, 2], [3, 4]), r"a: expected Series, got \[1, 2\]"),
    (
        lambda: paired(by_seed(1, 2), pd.Series({5: 1.0, 6: 2.0})),
        r"seed in common, got 0, 1 and 5, 6",
    ),
    (
        lambda: paired(by_seed(1), pd.Series([1.0, 2.0], [3, 3])),
        r"b: expected a value each, got several of 3",
    ),
    (lambda: study(CELLS[["seed"]]), r"unknown column 'top1'"),
    (lambda: study(CELLS[:0]), r"number of seed: expected at least 1, got 0"),
    (
        lambda: study(CELLS[~(A_SEED & LINFORMER)]),
        r"cells missing: rotary patch linformer \(seed 1\), rotary convolution .* \(seed 1\)$",
    ),
    (lambda: study(CELLS.assign(top1=CELLS["top1"].mask(LINFORMER))), r"missing: .*seed 1\)$"),
    (
        lambda: study(CELLS.assign(top1=None)),
        r"missing: learned patch softmax \(seed 0\).* 28 more",
    ),
    (lambda: study(CELLS[2:]), r"missing: learned patch .* \(seed 0\), .* \(seed 0\)$"),
    (
        lambda: study(pd.concat([CELLS, CELLS[A_SEED & LINFORMER]])),
        r"cells twice: rotary patch linformer \(seed 1\)",
    ),
    (lambda: study(CELLS, block="round"), r"unknown column 'round'"),
    (
        lambda: statistics.contrast(FRAME, "top1", {"tanh": 1}, "mechanism", "seed"),
        r"unknown mechanism 'tanh'",
    ),
    (
        lambda: statistics.contrast(FRAME, "top1", {"softmax": 1}, "kernel", "seed"),
        r"unknown column 'kernel'",
    ),
    (lambda: equivalent(SURE, -1), r"margin: expected at least 0"),
    (lambda: equivalent(0.5), r"effect: expected Effect, got 0\.5"),
    (lambda: holm([0.5, 1.5]), r"p_values: expected 0 to 1, got \[0\.5, 1\.5\]"),
    (lambda: holm([-0.1]), r"p_values: expected 0 to 1"),
    (lambda: bootstrap(RIGHT, RIGHT[:2]), r"same of both, got \(3, 4\) and \(2, 4\)"),
    (lambda: bootstrap(RIGHT, RIGHT[:, :2]), r"same of both, got \(3, 4\) and \(3, 2\)"),
    (lambda: bootstrap(RIGHT[0], RIGHT[0]), r"bits_a: expected \(seeds, images\).*\(4,\)"),
    (lambda: bootstrap(RIGHT, RIGHT / 2), r"bits_b: expected .* of 0 and 1"),
    (lambda: bootstrap(RIGHT[:0], RIGHT[:0]), r"bits_a: expected .*\(0, 4\)"),
    (lambda: bootstrap(RIGHT, RIGHT, 0), r"resamples: expected at least 1, got 0"),
    (lambda: kendall(by_seed(1, 2), by_seed(1)), r"two things or more in both orders, got 1"),
    (
        lambda: kendall(pd.Series([1.0, 2.0], ["ViT", "ViT"]), by_seed(1)),
        r"one: expected a value each, got several of ViT",
    ),
    (lambda: decides(SURE, "=", 0), r"unknown claim '='; legal: >, <, keeps"),
    (lambda: decides(SURE, "keeps", -0.5), r"margin: expected at least 0"),
    (lambda: decides(SURE, ">", math.nan), r"margin: expected at least 0.*nan"),
    (lambda: decides(SURE, "<", -math.inf), r"margin: expected at least 0.*inf"),
    (lambda: stands({4: "holds", 12: "perhaps"}), r"unknown verdict 'perhaps'"),
]


@pytest.mark.parametrize(("call", "said"), BAD, ids=[said for _, said in BAD])
def test_bad_input_is_refused_in_a_line(call, said):
    with pytest.raises(BadInput, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


# ---- simulated truth ----

TIMES = 1000


@cache
def differences(size: int, shift: float = 0.0) -> list[Effect]:
    """Comparisons of systems that differ by `shift`, and by 1.4 from seed to seed."""
    draw = np.random.default_rng(size).normal
    shared = draw(60, 5, (TIMES, size))  # what a seed does to both is more than that
    a, b = shared + shift + draw(size=shared.shape), shared + draw(size=shared.shape)
    return [paired(pd.Series(one), pd.Series(other)) for one, other in zip(a, b, strict=True)]


def moved(size: int, shift: float) -> list[Effect]:
    """The same comparisons, had the systems differed by `shift`; p is still that of none."""
    return [effect._replace(value=effect.value + shift) for effect in differences(size)]


@pytest.mark.parametrize(("size", "shift"), [(3, 4.0), (5, 1.8)])
def test_pairs_cover_the_truth_and_find_it_at_their_power(size, shift):
    true, null = (np.array(differences(size, each)) for each in (shift, 0.0))
    for effects, truth in ((true, shift), (null, 0.0)):
        covered = np.mean(np.abs(effects[:, 0] - truth) < effects[:, 1])
        assert 0.93 < covered < 0.97
    power = TTestPower().power(shift / 2**0.5, size, 0.05)
    assert 0.3 < power < 0.9
    assert expected(np.sum(true[:, 2] < 0.05), TIMES, power)
    assert expected(np.sum(null[:, 2] < 0.05), TIMES, 0.05)


@pytest.mark.parametrize("size", [3, 5])
def test_verdicts_err_at_their_rates(size):
    at = moved(size, 1.0)
    for says in (">", "<"):
        words = [decides(effect, says, 1.0) for effect in at]
        assert expected(words.count("holds"), TIMES, 0.025)
        assert expected(words.count("does not hold"), TIMES, 0.025)
    words = [decides(effect, "keeps", 1.0) for effect in at]
    assert words.count("holds") <= 0.05 * TIMES
    assert expected(words.count("does not hold"), TIMES, 0.025)


@pytest.mark.parametrize("side", [1, -1])
def test_equivalence_has_its_size_at_the_margin(side):
    margin = 20.0  # the other side is far: the size is reached
    found = sum(equivalent(effect, margin) < 0.05 for effect in moved(5, side * margin))
    assert expected(found, TIMES, 0.05)


def test_equivalence_has_its_power_within_the_margin():
    size, margin, draws = 5, 2.5, 4000
    found = sum(equivalent(effect, margin) < 0.05 for effect in differences(size))
    # Phillips (1990): |mean| < margin - t s / sqrt(n), over the law of s
    t, error = stats.t.ppf(0.95, size - 1), (2 / size) ** 0.5
    law = stats.chi2.ppf((np.arange(draws) + 0.5) / draws, size - 1)
    room = margin / error - t * np.sqrt(law / (size - 1))
    power = np.mean(np.maximum(2 * stats.norm.cdf(room) - 1, 0))
    assert 0.3 < power < 0.98
    assert expected(found, TIMES, power)


def test_a_factorial_covers_the_truth_and_finds_it_at_its_power():
    mains = {"rotary": 0.8, "convolution": 0.0, "linformer": -1.0, "performer": 0.7, "nystrom": 0.0}
    times, draw, frame = 400, np.random.default_rng(9), table(STUDY, 3)
    truth = sum(value * (frame == level).any(axis=1).to_numpy() for level, value in mains.items())
    found, covered = Counter(), 0
    for _ in range(times):
        seeds = draw.normal(60, 3, size=3)[frame["seed"]]
        trial = frame.assign(top1=truth + seeds + draw.normal(size=len(frame)))
        out = factorial(trial, "top1", STUDY, "seed")
        effects = {level: own for term in out.values() for level, own in term.items()}
        found.update({level: own.p < 0.05 for level, own in effects.items()})
        covered += sum(
            abs(effects[level].value - mains[level]) < effects[level].half for level in mains
        )
    assert 0.93 < covered / (5 * times) < 0.97
    for level, rows in (("rotary", 24), ("linformer", 12), ("performer", 12)):  # of each mean
        law, t = stats.nct(30, mains[level] / (2 / rows) ** 0.5), stats.t.ppf(0.975, 30)
        power = law.sf(t) + law.cdf(-t)
        assert 0.3 < power < 0.98
        assert expected(found.pop(level), times, power)
    assert all(expected(hits, times, 0.05) for hits in found.values())


def test_a_factorial_shares_one_spread_and_pairs_have_their_own():
    """What the docstring warns of: a seed that moves rotary systems apart from learned ones."""
    times, draw, frame = 150, np.random.default_rng(10), table(STUDY, 3)
    rotary, covered = frame["position"].to_numpy() == "rotary", {"shared": 0, "own": 0}
    for _ in range(times):
        y = draw.normal(size=3)[frame["seed"]] * rotary + draw.normal(size=len(frame))
        out = factorial(frame.assign(top1=y), "top1", STUDY, "seed")
        means = (pd.Series(y[of].reshape(3, -1).mean(1)) for of in (rotary, ~rotary))
        for key, effect in (("shared", out["position"]["rotary"]), ("own", paired(*means))):
            covered[key] += abs(effect.value) < effect.half
    assert covered["shared"] / times < 0.85
    assert expected(covered["own"], times, 0.95)


def test_holm_errs_in_one_family_of_twenty():
    """Six claims that are not so among ten: strong control, and not more than is asked."""
    times, draw = 4000, np.random.default_rng(11)
    t = draw.normal(size=(times, 10, 4)) + np.where(np.arange(10) < 4, 8, 0)[:, None]
    p = stats.ttest_1samp(t, 0, axis=2).pvalue
    wrong = sum((holm(family)[4:] < 0.05).any() for family in p)
    assert wrong <= 0.05 * times or expected(wrong, times, 0.05)
    single = sum((10 * family[4:] < 0.05).any() for family in p)  # Bonferroni's
    assert single < wrong


@pytest.mark.parametrize(
    ("seeds", "spread", "low", "high"),
    [
        (3, {"seed": 0.5}, 0.70, 0.80),  # as the docstring says: 75 %
        (5, {"seed": 0.5}, 0.80, 0.90),  # 85 %
        (3, {"image": 1.0, "noise": 0.1}, 0.93, 0.97),
        (3, {"noise": 1.0}, 0.98, 1.0),
    ],
    ids=["3 seeds", "5 seeds", "images", "noise"],
)
def test_what_the_bootstrap_covers(seeds, spread, low, high):
    times, draw, covered = 300, np.random.default_rng(12), 0
    for _ in range(times):
        a, b, truth = bits(draw, seeds, 200, a=0.2, **spread)
        own = bootstrap(a, b, 300)
        covered += own.low <= truth <= own.high
    assert low <= covered / times <= high
    if "seed" in spread:  # normal quantiles of (S - 1) / S of the variance, of a t
        normal = 1.96 * math.sqrt((seeds - 1) / seeds)
        assert abs(covered / times - (1 - 2 * stats.t.sf(normal, seeds - 1))) < 0.05
