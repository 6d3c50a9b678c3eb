"""Breaks the library on purpose, one fault at a time, to see if the tests notice: `python tests/mutations.py`.

Each of the 30 mutations below is one small change of `rnnjax/` that would hurt a user. For each, the tests run on a
copy of the repository that has this one change; nothing is ever changed in the repository itself. A mutation is CAUGHT
where a test fails, or where the tests hang; it has SURVIVED where all pass. What keeps the tests from running at all is
an ERROR, and proves nothing. It needs rnnjax installed, and Git; for mutations in C++ also CMake and a compiler.

    python tests/mutations.py                      all of them
    python tests/mutations.py gru_inner_bias ...   these
    python tests/mutations.py --list               what there is
    python tests/mutations.py --check              only whether each still fits the code
    python tests/mutations.py --all                by the whole suite, not by its quick tier; see also --minutes
    python tests/mutations.py --control            first the copy without any mutation: there, no test may fail
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple


class Mutation(NamedTuple):
    """`new` in the place of `old`, which stands once in the file; `likely` is a `-k` for the tests to try first."""

    name: str
    path: str
    old: str
    new: str
    likely: str = ""


class Outcome(NamedTuple):
    """CAUGHT, SURVIVED or ERROR; and by which test, or why."""

    verdict: str
    what: str


ROOT = Path(__file__).resolve().parents[1]
VARIABLE = "RNNJAX_CPU_KERNEL"
SOURCE = "rnnjax/kernels/native"
LIBRARY = "rnnjax/kernels/native/librnnjax_cpu.so"

MUTATIONS = (
    # Marks
    Mutation(  # a padded sequence in reverse begins with its padding
        "reverse_from_the_padding",
        "rnnjax/marks.py",
        "shift = 0 if length is None else length",
        "shift = 0",
        "test_law and reverse_flips",
    ),
    Mutation(  # a NaN in the first step, which fills the padding, spoils the last state past the reset that ends it
        "padding_counts_as_bad",
        "rnnjax/marks.py",
        "seen = bad if length is None else bad & valid_steps(length, T)",
        "seen = bad",
        "test_unroll and padding",
    ),
    # Cells
    Mutation(  # the candidate's bias outside of the reset: imported weights give other outputs
        "gru_inner_bias",
        "rnnjax/cells/gru.py",
        "v_n = v_n + bias",
        "u_n = u_n + bias",
        "test_cells and equations and gru",
    ),
    Mutation(  # the input gate looks through the peephole of the output gate
        "lstm_other_peephole",
        "rnnjax/cells/lstm.py",
        "i = i + peepholes.i * c",
        "i = i + peepholes.o * c",
        "test_cells and equations and lstm_peepholes",
    ),
    Mutation(  # gamma is sqrt(1 - |lambda|) at first: states of a long memory start too small
        "lru_gamma",
        "rnnjax/cells/lru.py",
        "expm1(2 * log_radius)",
        "expm1(log_radius)",
        "test_linear_cells and lru",
    ),
    Mutation(  # the highway is open when the gate is, and no more the other way round
        "sru_highway",
        "rnnjax/cells/sru.py",
        "sigmoid(-r) * highway",
        "sigmoid(r) * highway",
        "test_linear_cells and sru or test_cells and sru",
    ),
    # Networks
    Mutation(  # packed sequences: the backward part keeps the state of the next one for one step
        "reversed_resets_unshifted",
        "rnnjax/networks/bidirectional.py",
        "jnp.roll(options.resets, -1)",
        "jnp.roll(options.resets, 0)",
        "test_law and (reversed or bidirectional)",
    ),
    Mutation(  # a convolution of a padded chunk hands padding on to the next chunk
        "window_remembers_padding",
        "rnnjax/networks/window.py",
        "end = T if options.length is None else options.length",
        "end = T",
        "test_causal_law and convolution",
    ),
    # Engines
    Mutation(  # nothing is forgotten: the gradient takes the memory that the engine is there to save
        "checkpointed_keeps_all",
        "rnnjax/segments.py",
        "jax.lax.scan(jax.checkpoint(partial(run_segment, segment))",
        "jax.lax.scan(jax.jit(partial(run_segment, segment))",
        "test_memory",
    ),
    Mutation(  # a reset leads to zero, and not to the initial state that was learned (a mark, too)
        "associative_reset_to_zero",
        "rnnjax/engines/associative.py",
        "(jnp.zeros_like(a), a * leading(initial, a.ndim) + b)",
        "(jnp.zeros_like(a), b)",
        "test_law and lru",
    ),
    Mutation(  # fall_back=True returns what has not converged
        "newton_falls_back_to_the_unsolved",
        "rnnjax/engines/newton/trajectory.py",
        "select(solved.converged, solved.states, states)",
        "select(solved.converged, states, solved.states)",
        "test_newton",
    ),
    Mutation(  # every device takes the length of the whole for that of its part
        "sharded_length_of_the_whole",
        "rnnjax/engines/sharded.py",
        "jnp.clip(marks.length - first, 0, steps)",
        "jnp.clip(marks.length, 0, steps)",
        "test_devices",
    ),
    # The rules of the primitive that kernels run
    Mutation(  # the gradient of a weight that several groups share is their mean
        "shared_gradient_is_a_mean",
        "rnnjax/kernels/recurrence/primitive.py",
        "cotangent.sum(0, keepdims=True)",
        "cotangent.mean(0, keepdims=True)",
        "test_fused and nesting",
    ),
    Mutation(  # under two vmaps the answers of the sequences are mixed up
        "fold_mixes_sequences",
        "rnnjax/kernels/recurrence/batching.py",
        "leaf.reshape(self.S, self.size, self.B, *leaf.shape[2:]), 1",
        "leaf.reshape(self.S, self.B, self.size, *leaf.shape[2:]), 2",
        "test_grid and vmap_vmap and fused",
    ),
    Mutation(  # forward mode: nothing moves with the initial state
        "tangent_without_the_state",
        "rnnjax/kernels/recurrence/functions.py",
        "Sequences.of(at, marks), 0, used_outputs)",
        "Sequences.of(at._replace(state=primals.state), marks), 0, used_outputs)",
        "test_fused",
    ),
    # The CPU kernel
    Mutation(  # a core goes on without the h that the others have yet to write
        "forward_without_a_barrier",
        "rnnjax/kernels/native/forward_step.h",
        "    this->meet(phase);\n    if (pass.ROUNDED) round_h(active);",
        "    if (pass.ROUNDED) round_h(active);",
        "test_cpu",
    ),
    Mutation(  # the gradient goes on past a reset
        "backward_past_a_reset",
        "rnnjax/kernels/native/backward_step.h",
        "          store(to, load(to) + load(from));\n          store(from, V<E>{});",
        "          store(to, load(to) + load(from));",
        "test_law and lstm_options",
    ),
    Mutation(  # where time is cut, states below zero are not handed on to the next part
        "linear_scan_drops_the_negative",
        "rnnjax/kernels/native/linear_scan.h",
        "carry[k] < SMALLEST && carry[k] > -SMALLEST",
        "carry[k] < SMALLEST",
        "test_cpu and linear_scan",
    ),
    Mutation(  # a program may read one register beyond the last: memory of somebody else
        "handler_off_by_one",
        "rnnjax/kernels/native/arguments.h",
        "code[k + operand] < 0 || code[k + operand] >= attributes.registers",
        "code[k + operand] < 0 || code[k + operand] > attributes.registers",
        "test_cpu and corrupt",
    ),
    Mutation(  # the maximum of NaN and zero is zero: a relu hides what went wrong
        "maximum_hides_nan",
        "rnnjax/kernels/native/program.h",
        "choose<E>((x > y) | (x != x), x, y)",
        "choose<E>(x > y, x, y)",
        "test_program or test_cpu",
    ),
    # The Pallas kernels
    Mutation(  # units that are there twice, to fill a tile, are counted twice in the gradient
        "gpu_counts_clones",
        "rnnjax/kernels/recurrence/gpu/coordinates.py",
        "return array if self.mask is None else jnp.where(self.mask, array, 0.0)",
        "return array",
        "test_pallas",
    ),
    Mutation(  # backward, a block of time reads the resets of another one
        "tpu_resets_of_another_block",
        "rnnjax/kernels/recurrence/tpu/layout.py",
        "(s, last - t if backward else t, b, 0))",
        "(s, t, b, 0))",
        "test_pallas",
    ),
    # The elementwise program
    Mutation(  # infinity is finite: a cell that guards against it does not
        "infinity_is_finite",
        "rnnjax/kernels/recurrence/pointwise/primitives.py",
        'graph.node("lt", graph.node("abs", x), graph.constant(np.inf))',
        'graph.node("le", graph.node("abs", x), graph.constant(np.inf))',
        "test_program",
    ),
    # Training
    Mutation(  # every step of training drops the same units
        "fit_one_key_for_all_steps",
        "rnnjax/training/update.py",
        "key = jax.random.fold_in(run.key, run.step)",
        "key = run.key",
        "test_training",
    ),
    Mutation(  # a kill while a checkpoint is written destroys the last good one
        "checkpoint_written_in_place",
        "rnnjax/training/atomic.py",
        'partial = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")',
        "partial = path",
        "test_training",
    ),
    Mutation(  # an example as long as its bound is padded to the next; the longest ones are never seen
        "buckets_skip_the_longest",
        "rnnjax/training/buckets.py",
        "np.searchsorted(bounds, lengths)",
        'np.searchsorted(bounds, lengths, side="right")',
        "test_training",
    ),
    # Models
    Mutation(  # all hypotheses of a beam are the same one: it is no better than greedy
        "beam_of_one_hypothesis",
        "rnnjax/models/beam.py",
        "jnp.where(jnp.arange(width) == 0, 0, -jnp.inf)",
        "jnp.where(jnp.arange(width) == 0, 0, 0)",
        "test_seq2seq or test_captioner",
    ),
    Mutation(  # attention looks at the padding
        "attention_without_its_mask",
        "rnnjax/models/attention.py",
        "jnp.exp(jnp.where(memory.mask, scores - stop_gradient(largest), -jnp.inf))",
        "jnp.exp(scores - stop_gradient(largest))",
        "test_seq2seq",
    ),
    # Trees
    Mutation(  # the gradient of a first child goes to all children of its node
        "trees_first_child_for_all",
        "rnnjax/trees/pack.py",
        "parents[below] = rows * arity + place",
        "parents[below] = rows * arity",
        "test_tree",
    ),
    # Gradients
    Mutation(  # the estimate is biased: its mean is not the gradient
        "uoro_biased",
        "rnnjax/gradients/uoro.py",
        "old / p + new / q",
        "old * p + new / q",
        "test_gradients",
    ),
)


def misfits() -> list[str]:
    """What of the mutations does not fit the code as it is."""
    counts = {each: (ROOT / each.path).read_text().count(each.old) for each in MUTATIONS}
    return [f"{each.name}: {each.path} has it {n} times, not once: {each.old}" for each, n in counts.items() if n != 1]


# Python runs this file at its start. An editable installation takes imports before any path is looked at: not here.
OF_THE_COPY = """import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "rnnjax" not in type(finder).__module__]
"""


def copy_repository(to: Path, settings: dict[str, str]) -> None:
    """The tracked files as they are now, and what makes Python import them and no others."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    (to / "sitecustomize.py").write_text(OF_THE_COPY)
    command = [sys.executable, "-c", "import importlib.util as u; print(u.find_spec('rnnjax').origin)"]
    found = subprocess.run(command, cwd=to.parent, env=settings, check=True, capture_output=True, text=True).stdout
    if Path(found.strip()).resolve() != (to / "rnnjax/__init__.py").resolve():
        raise SystemExit(f"expected the rnnjax of the copy to be imported, got {found.strip()}")


def installed_library() -> str:
    """The CPU kernel as it was built when rnnjax was installed."""
    library = os.environ.get(VARIABLE) or str(distribution("rnnjax").locate_file(LIBRARY))
    if not Path(library).is_file():
        raise SystemExit(f"expected the CPU kernel at {library}. Install rnnjax where there is a compiler")
    return library


def run(command: list[str], cwd: Path, settings: dict[str, str], seconds: float) -> tuple[int | None, str]:
    """The exit status of a command and what it said; None, once all that it started has been ended, if it hangs."""
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(
            command, cwd=cwd, env=settings, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        status = None
        try:
            with suppress(subprocess.TimeoutExpired):
                status = process.wait(seconds)
        finally:
            if status is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        said.seek(0)
        return status, said.read()


FAILING = re.compile(r"^(?:FAILED|ERROR) (\S+?::.+?)(?: - .*)?$", re.MULTILINE)


def judge(status: int | None, said: str) -> Outcome:
    """What a run of pytest means. Spread over processes, -x ends with 2 where a test fails, not with 1."""
    if status is None:
        return Outcome("CAUGHT", "no end in time")
    if status == 0:
        return Outcome("SURVIVED", "")
    failing = FAILING.search(said)
    if failing and status in (1, 2):
        return Outcome("CAUGHT", failing[1])
    return Outcome("ERROR", f"pytest ended with {status}: {reason(said)}")


def reason(said: str) -> str:
    """The last line that speaks of an error; if none does, the last line."""
    lines = said.strip().splitlines()
    errors = [line for line in lines if line.startswith("ERROR ") or "error: " in line]
    return (errors or lines or ["it said nothing"])[-1]


def test(copy: Path, likely: str, settings: dict[str, str], options: argparse.Namespace) -> Outcome:
    """The tests of the copy as it is: first the likely ones, then all of the tier."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--color=no", "-n", str(options.jobs), "--dist", "loadgroup"]
    command += ["--all"] * options.all
    outcome = Outcome("SURVIVED", "")
    for chosen in ([["-k", likely]] if likely else []) + [[]]:
        outcome = judge(*run([*command, *chosen], copy, settings, 60 * options.minutes))
        if outcome.verdict != "SURVIVED":
            break
    return outcome


def build(copy: Path, folder: str, settings: dict[str, str], options: argparse.Namespace) -> str:
    """Build the CPU kernel of the copy, as .ci/sanitize does; what went wrong, if something did."""
    configure = ["cmake", "-S", SOURCE, "-B", folder]
    for command in (configure, ["cmake", "--build", folder, "--parallel"]):
        status, said = run(command, copy, settings, 60 * options.minutes)
        if status != 0:
            return f"cmake ended with {status}: {reason(said)}"
    return ""


def attempt(mutation: Mutation, copy: Path, settings: dict[str, str], options: argparse.Namespace) -> Outcome:
    """The copy with a mutation, and after that without it again."""
    file = copy / mutation.path
    whole = file.read_text()
    if whole.count(mutation.old) != 1:
        return Outcome("ERROR", f"{mutation.path} has changed")
    with tempfile.TemporaryDirectory() as folder:
        try:
            file.write_text(whole.replace(mutation.old, mutation.new))
            if mutation.path.startswith(SOURCE):
                fault = build(copy, folder, settings, options)
                if fault:
                    return Outcome("ERROR", fault)
                settings = settings | {VARIABLE: f"{folder}/librnnjax_cpu.so"}
            return test(copy, mutation.likely, settings, options)
        finally:
            file.write_text(whole)


def try_all(mutations: list[Mutation], options: argparse.Namespace) -> bool:
    """A line for each mutation, and one for all; whether all were caught."""
    caught = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "repository"
        settings = os.environ | {"PYTHONPATH": str(copy), VARIABLE: installed_library()}
        copy.mkdir()
        copy_repository(copy, settings)
        if options.control:
            outcome = test(copy, "", settings, options)
            if outcome.verdict != "SURVIVED":
                raise SystemExit(f"without a mutation, too, the tests do not pass: {outcome.what}")
        for mutation in mutations:
            begun = time.perf_counter()
            outcome = attempt(mutation, copy, settings, options)
            caught += outcome.verdict == "CAUGHT"
            seconds = round(time.perf_counter() - begun)
            print(f"{mutation.name:36}{outcome.verdict:10}{seconds:5} s  {outcome.what}", flush=True)
    print(f"{caught} of {len(mutations)} caught")
    return caught == len(mutations)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="which mutations; all if none is named")
    parser.add_argument("--list", action="store_true", help="say which there are")
    parser.add_argument("--check", action="store_true", help="only see whether each fits the code")
    parser.add_argument("--all", action="store_true", help="run the whole suite, not its quick tier")
    parser.add_argument("--jobs", type=int, default=2, help="how many processes run the tests (2)")
    parser.add_argument("--minutes", type=float, default=30, help="after so many, the tests hang (30)")
    parser.add_argument("--control", action="store_true", help="first see that the tests pass without a mutation")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - {mutation.name for mutation in MUTATIONS})
    if unknown:
        parser.error(f"no such mutation: {', '.join(unknown)}")
    chosen = [mutation for mutation in MUTATIONS if not options.names or mutation.name in options.names]
    if options.list:
        print("\n".join(f"{mutation.name:36}{mutation.path}" for mutation in chosen))
        return
    found = misfits()
    if found:
        raise SystemExit("\n".join(found))
    if not options.check:
        raise SystemExit(0 if try_all(chosen, options) else 1)


if __name__ == "__main__":
    main()
