"""What notebooks show with, under one name: tables, figures, and what is said beside them."""

from vixlib.paper.figures import against, attention_maps, cost, curves, forest, images
from vixlib.paper.figures import kind, tokens, tradeoff, written
from vixlib.paper.notebook import conclude, effect, gap, guess, source, studied, verdict
from vixlib.paper.statistics import ONE_SEED, interval
from vixlib.paper.tables import LABELS, crossovers, machine, measured, plan, results, sizes
