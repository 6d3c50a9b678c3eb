"""Engines: ways to run a cell along time."""

from ..engine import AbstractEngine as AbstractEngine
from ..engine import Plan as Plan
from ..engine import scan_body as scan_body
from ..marks import Marks as Marks
from ..marks import StepMarks as StepMarks
from ..refusal import Refusal as Refusal
from .associative import Associative as Associative
from .auto import Auto as Auto
from .checkpointed import Checkpointed as Checkpointed
from .chunked.chunked import Chunked as Chunked
from .fused import Fused as Fused
from .newton.dense import Dense as Dense
from .newton.diagonal import Diagonal as Diagonal
from .newton.newton import Newton as Newton
from .newton.solver import Solution as Solution
from .scan import Scan as Scan
from .sharded import Sharded as Sharded
from .unrolled import Unrolled as Unrolled
