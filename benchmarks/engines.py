"""Time, compile time and memory of every engine, by cell and shape: `python -m benchmarks.engines [--quick]`."""

from pathlib import Path

from common.command_line import command_line
from tqdm import tqdm

from benchmarks import measure, report
from benchmarks.cases import CASES, ENGINES, QUICK_CASES, Case, draw, refusal
from benchmarks.measure import Record
from benchmarks.report import JSON, PLOT, QUICK

DIRECTIONS = {"forward": measure.forward, "gradient": measure.gradient}


parse = command_line(__doc__, JSON, QUICK, PLOT)


def main() -> None:
    options = parse()
    print(report.heading(), flush=True)
    records = run(QUICK_CASES, 0.2) if options.quick else run(CASES, 1.0)
    measure.write(options.json, records)
    if options.plot:
        plot(options.plot, records)


def run(cases: tuple[Case, ...], seconds: float) -> list[Record]:
    """Measure every case in every direction, and print a line as each is done."""
    print(measure.TABLE_LEGEND)
    print(measure.TABLE_HEAD, flush=True)
    records, skipped = [], {}
    for case, direction in tqdm([(case, direction) for case in cases for direction in DIRECTIONS], unit="case"):
        cell, _ = draw(case)
        reasons = {label: refusal(engine, cell, case) for label, engine in ENGINES.items()}
        skipped |= dict.fromkeys(reason for reason in reasons.values() if reason)
        engines = {label: engine for label, engine in ENGINES.items() if reasons[label] is None}
        for record in measure.measure(case, direction, DIRECTIONS[direction], engines, seconds):
            records.append(record)
            tqdm.write(measure.row(record))
    for reason in skipped:
        print(f"skipped: {reason}")
    return records


def plot(path: Path, records: list[Record]) -> None:
    """One panel per direction, one line per case, one point per engine or peer."""
    labels = list(dict.fromkeys(label(record) for record in records))
    contestants = list(dict.fromkeys(contestant(record) for record in records))
    from matplotlib.figure import Figure  # only a run with --plot needs it

    figure = Figure(figsize=(10, 1.5 + 0.28 * len(labels)), layout="constrained")
    panels = figure.subplots(1, len(DIRECTIONS), sharex=True, sharey=True)
    for panel, direction in zip(panels, DIRECTIONS, strict=True):
        for name in contestants:
            points = [record for record in records if (contestant(record), record.direction) == (name, direction)]
            ratios = [record.ratio_to_scan for record in points]
            panel.plot(ratios, [labels.index(label(record)) for record in points], "o", label=name)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set(title=direction, xlabel="time / time of Scan (below 1: faster than Scan)")
        panel.grid(axis="x", alpha=0.3)
    ratios = [record.ratio_to_scan for record in records]
    panels[0].set_xlim(min(0.45, 0.9 * min(ratios)), max(2.2, 1.1 * max(ratios)))
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].invert_yaxis()
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(contestants), frameon=False
    )
    figure.savefig(path, dpi=150)


def label(record: Record) -> str:
    return f"{record.cell}  B={record.B} T={record.T} I={record.I} H={record.H}"


def contestant(record: Record) -> str:
    return record.peer or record.engine


if __name__ == "__main__":
    main()
