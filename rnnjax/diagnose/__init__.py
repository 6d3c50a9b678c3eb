"""Where the gradient goes: Jacobians, lags, Lyapunov exponents, a report, plots; and whether a cell obeys the laws."""

from .cell_report import CellReport as CellReport
from .cell_report import Verdict as Verdict
from .cell_report import check_cell as check_cell
from .gates import gates as gates
from .gates import stuck as stuck
from .gradient import gradient_by_input as gradient_by_input
from .gradient import gradient_by_lag as gradient_by_lag
from .jacobian import jacobians as jacobians
from .jacobian import product_norms as product_norms
from .jacobian import singular_values as singular_values
from .lyapunov import lyapunov_exponents as lyapunov_exponents
from .report import Finding as Finding
from .report import Report as Report
from .report import examine as examine
