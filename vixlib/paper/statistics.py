"""What several seeds say: intervals."""

import math
from collections.abc import Iterable

import numpy as np
from scipy.special import stdtrit

ONE_SEED = 3.0  # points that a single seed resolves, by what the spread of several showed


def interval(values: Iterable[float]) -> float:
    """Half the width of the 95 % interval of the mean, by Student's t; NaN for a single value."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return math.nan
    return stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / len(values) ** 0.5
