"""The paper's experiments: their rows, their configs on COCO or on embedded data, their report.

``python -m ablations`` is the command. Not installed with the package.
"""

from .configs import DATA, load_row_config
from .document import write_document
from .execution import command, execute, locked
from .positives import measure_positives
from .report import Measurement, collect
from .rows import QUALITY_ROWS, ROWS, RPN_ROWS, TABLES, Row, find_row, select_rows
from .runs import Result, Run, plan_runs, read_results

__all__ = [
    "DATA",
    "QUALITY_ROWS",
    "ROWS",
    "RPN_ROWS",
    "TABLES",
    "Measurement",
    "Result",
    "Row",
    "Run",
    "collect",
    "command",
    "execute",
    "find_row",
    "load_row_config",
    "locked",
    "measure_positives",
    "plan_runs",
    "read_results",
    "select_rows",
    "write_document",
]
