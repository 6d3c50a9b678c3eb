"""What a Python loop over time costs: compile and run time of Unrolled against Scan, over T."""

from pathlib import Path

from common.command_line import command_line, option
from tqdm import tqdm

from benchmarks import measure, report
from benchmarks.cases import Case
from benchmarks.measure import Record
from benchmarks.report import JSON
from rnnjax import AbstractEngine, Scan, Unrolled

BOTH = (4, 8, 16, 32, 64, 128)
SCAN_ALONE = (256, 512, 1024)
B, SIZE = 16, 128


parse = command_line(
    __doc__, JSON, option("--plot", type=Path, metavar="FILE", help="draw compile and run time over T")
)


def main() -> None:
    options = parse()
    print(report.heading())
    print(measure.TABLE_LEGEND)
    print(measure.TABLE_HEAD, flush=True)
    records = run()
    measure.write(options.json, records)
    if options.plot:
        plot(options.plot, records)


def run() -> list[Record]:
    """Measure both engines up to the length that Unrolled can be compiled for, then Scan alone."""
    records = []
    for T in tqdm(BOTH + SCAN_ALONE, unit="length"):
        engines: dict[str, AbstractEngine] = {"Scan": Scan()}
        if T in BOTH:
            engines["Unrolled"] = Unrolled()
        for record in measure.measure(Case("LSTM", B, T, SIZE, SIZE), "gradient", measure.gradient, engines):
            records.append(record)
            tqdm.write(measure.row(record))
    return records


def plot(path: Path, records: list[Record]) -> None:
    """Two panels over T: seconds to compile, milliseconds per call."""
    from matplotlib.figure import Figure  # only a run with --plot needs it

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    compiling, running = figure.subplots(1, 2)
    for engine in dict.fromkeys(record.engine for record in records):
        own = [record for record in records if record.engine == engine]
        lengths = [record.T for record in own]
        compiling.plot(lengths, [record.compile_seconds for record in own], "o-", label=engine)
        running.plot(lengths, [record.milliseconds for record in own], "o-", label=engine)
    compiling.set(title="compile time", ylabel="seconds")
    running.set(title="run time", ylabel="milliseconds per call")
    for panel in (compiling, running):
        panel.set(xscale="log", yscale="log", xlabel="T (steps)")
        panel.set_xticks(BOTH + SCAN_ALONE, BOTH + SCAN_ALONE)
        panel.minorticks_off()
        panel.yaxis.set_major_formatter("{x:g}")
        panel.grid(alpha=0.3)
        panel.legend(frameon=False)
    figure.suptitle(f"Gradient of an LSTM, B = {B}, I = H = {SIZE}, {records[0].machine}, {records[0].cores} cores")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
