"""Two sets of records to verdicts that can be believed: identity, statistics, then losses and times together."""

from harness.compare.comparison import Comparison, Pair, compare
from harness.compare.identity import Difference, NotComparable, check_axes
from harness.compare.loss import Losses
from harness.compare.measure import MARGIN, Measure
from harness.compare.table import Cell, Row, Table, side_by_side

__all__ = [
    "MARGIN",
    "Cell",
    "Comparison",
    "Difference",
    "Losses",
    "Measure",
    "NotComparable",
    "Pair",
    "Row",
    "Table",
    "check_axes",
    "compare",
    "side_by_side",
]
