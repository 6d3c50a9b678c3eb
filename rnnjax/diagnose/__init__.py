"""Diagnosis of models, of cells and of training along time: a summary, laws, Jacobians, gradients, fixed points."""

from importlib import import_module
from types import ModuleType

from .cell_report import CellReport as CellReport
from .cell_report import Verdict as Verdict
from .cell_report import check_cell as check_cell
from .fixed_point_table import FixedPoints as FixedPoints
from .fixed_points import fixed_points as fixed_points
from .gates import gates as gates
from .gates import stuck as stuck
from .gradient import gradient_by_input as gradient_by_input
from .gradient import gradient_by_lag as gradient_by_lag
from .jacobian import jacobians as jacobians
from .jacobian import product_norms as product_norms
from .jacobian import singular_values as singular_values
from .linearise import Linearisation as Linearisation
from .linearise import Modes as Modes
from .linearise import linearise as linearise
from .lyapunov import lyapunov_exponents as lyapunov_exponents
from .report import Finding as Finding
from .report import Report as Report
from .report import examine as examine
from .summary import Summary as Summary
from .summary import count as count
from .summary import summary as summary


def __getattr__(name: str) -> ModuleType:
    """`plot`, imported when it is first used: it needs matplotlib, which the library itself does not."""
    if name != "plot":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.plot")
