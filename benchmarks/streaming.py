"""One step at a time, B = 1: prepared cells beside Scan, Fused, torch's cells, torch in int8, and ONNX Runtime.

The part of `benchmarks.peers` that has single steps, and with more time for each of them. Each step is a call from
Python, whose results are there before the next begins.
"""

from itertools import product

from common.command_line import command_line, option

from benchmarks import measure, peers, report
from benchmarks.cases import GATES, STEP_SIZES, Case
from benchmarks.layers.layer import STEP
from benchmarks.report import JSON
from benchmarks.summary import summary

parse = command_line(
    __doc__,
    JSON,
    option("--cells", nargs="+", choices=GATES, default=["LSTM"], help="which cells"),
    option("--sizes", nargs="+", type=int, default=STEP_SIZES, help="inputs and units, as many of each"),
    option("--seconds", type=float, default=20.0, help="for all contestants of a size (%(default)s)"),
)


def main() -> None:
    options = parse()
    print(report.heading(), flush=True)
    cases = [Case(cell, 1, 1, size, size) for cell, size in product(options.cells, options.sizes)]
    records = peers.run([(case, STEP) for case in cases], options.seconds)
    print("\n".join(summary(records)))
    measure.write(options.json, records)


if __name__ == "__main__":
    main()
