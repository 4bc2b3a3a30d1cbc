"""What notebooks read and train, under one name: runs, their records, what is published."""

from vixlib.paper.records import figures, load
from vixlib.paper.runs import LONGER, PROFILES, RECIPES, Run
from vixlib.paper.runs import longer, published, queue, registered, runs
from vixlib.paper.training import read, trained
