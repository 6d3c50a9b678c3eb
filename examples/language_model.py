"""Train a character language model on real text, the manual that comes with Python, and sample from it.

python examples/language_model.py                       about two minutes on two cores
python examples/language_model.py --text book.txt --cell gru --minutes 10
python examples/language_model.py --resume              go on with the newest run
python examples/language_model.py --sample "The yield"  let its model write on
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from common.command_line import choice, command_line, option
from common.text import Corpus, compressed_bits, entropy_bits, primed_bits, read_text
from jaxtyping import PyTree

import rnnjax
from rnnjax.training.atomic import write_atomically
from rnnjax.training.plot import draw_curve

CELLS = {"lstm": rnnjax.LSTM, "gru": rnnjax.GRU, "elman": rnnjax.Elman, "mingru": rnnjax.MinGRU}
LAYERS = {"mingru": 3}  # a linear layer cannot compare; three of them, with nonlinear outputs between, can
ENGINES = {
    "auto": rnnjax.Auto(),
    "scan": rnnjax.Scan(),
    "fused": rnnjax.Fused(),
    "unrolled": rnnjax.Unrolled(),
    "checkpointed": rnnjax.Checkpointed(),
    "associative": rnnjax.Associative(),
}
EMBEDDING, HIDDEN, STREAMS, CHUNK = 64, 256, 16, 64
LEARNING_RATE, CLIP = 4e-3, 1.0
EVALUATIONS = 10
VALIDATION_STREAMS = 16


class Plan(NamedTuple):
    """What a run was begun with, and must be resumed with; kept beside its checkpoint."""

    text: str | None
    cell: str
    engine: str
    steps: int
    vocabulary: str


def main() -> None:
    """Train, resume or sample, as the command line says."""
    arguments = parse()
    try:
        if arguments.sample is not None:
            folder = arguments.folder or newest(arguments.runs)
            plan = read_plan(folder)
            print(arguments.sample + write_on(restore(plan, folder), plan, arguments.sample, 600))
        elif arguments.resume:
            resume(arguments.folder or newest(arguments.runs))
        else:
            begin(arguments, arguments.folder or next_folder(arguments.runs))
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        sys.exit(str(error))


parse = command_line(
    __doc__,
    option("--text", metavar="FILE", help="a text in UTF-8; default: Python's manual, pydoc_data.topics"),
    choice("--cell", CELLS, "lstm"),
    choice("--engine", ENGINES, "auto"),
    option("--minutes", type=float, default=1.6, help="how long to train, after compiling (default 1.6)"),
    option("--resume", action="store_true", help="go on with the newest run, or with --folder"),
    option("--sample", metavar="PROMPT", help="write on from this, with the model of that run"),
    option("--folder", type=Path, help="the run's folder; default: a new one, or the newest, in --runs"),
    option("--runs", type=Path, default=Path("runs"), help="where runs are kept (default ./runs)"),
)


def begin(arguments: argparse.Namespace, folder: Path) -> None:
    """A new run in `folder`."""
    if (folder / "plan.json").exists():
        raise FileExistsError(f"--folder: expected a new one, got {folder}, which holds a run. Add --resume")
    corpus = Corpus(read_text(arguments.text))
    steps = count_steps(arguments, corpus)
    text = arguments.text and str(Path(arguments.text).resolve())
    plan = Plan(text, arguments.cell, arguments.engine, steps, corpus.vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "plan.json", json.dumps(plan._asdict()).encode())
    train(plan, corpus, folder, resume=False)


def resume(folder: Path) -> None:
    """The run in `folder` from its last checkpoint, or from the start if it has none yet."""
    plan = read_plan(folder)
    train(plan, Corpus(read_text(plan.text), plan.vocabulary), folder, resume=True)


def train(plan: Plan, corpus: Corpus, folder: Path, *, resume: bool) -> None:
    """Fit the model, compare it with compressors, and leave a sample, the curve and the model in the folder."""
    print(f"{len(corpus.training):,} characters to train on, {len(corpus.held_out):,} held out throughout the text")
    model = build(plan)
    begun = time.perf_counter()
    fitted = rnnjax.training.fit(
        model,
        partial(rnnjax.models.language_loss, engine=ENGINES[plan.engine]),
        batches(corpus),
        optimiser(plan.steps),
        steps=plan.steps,
        key=jax.random.key(1),
        carry=rnnjax.models.batch_of_states(model, STREAMS),
        validate=partial(validation_loss, corpus=corpus),
        every=-(-plan.steps // EVALUATIONS),
        folder=folder,
        resume=resume,
    )
    report(fitted.model, plan, corpus, folder, time.perf_counter() - begun)


def build(plan: Plan) -> rnnjax.models.LanguageModel:
    """A model of the plan's cell, its weights as drawn."""
    keys = jax.random.split(jax.random.key(0), 4)
    cells = [CELLS[plan.cell](EMBEDDING, HIDDEN, key=keys[0])]
    for key in keys[1 : LAYERS.get(plan.cell, 1)]:
        cells.append(rnnjax.residual(CELLS[plan.cell](HIDDEN, HIDDEN, key=key)))
    return rnnjax.models.LanguageModel(len(plan.vocabulary), rnnjax.Stack(cells), key=keys[3])


def batches(corpus: Corpus):
    """Consecutive chunks of the training text."""
    return rnnjax.training.streams(corpus.training, STREAMS, CHUNK)


def optimiser(steps: int) -> optax.GradientTransformation:
    """Adam, clipped, warmed up and cooled down over the run."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, min(50, steps // 10), steps, LEARNING_RATE / 50)
    return optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(schedule))


def count_steps(arguments: argparse.Namespace, corpus: Corpus) -> int:
    """How many steps fill the minutes, by the time of a few on a model that is thrown away.

    The number is settled before the run, and kept with it: a schedule that followed the clock could not be resumed.
    """
    step = rehearsal(Plan(arguments.text, arguments.cell, arguments.engine, 100, corpus.vocabulary), corpus)
    jax.block_until_ready(step())
    seconds = []
    for _ in range(10):
        begun = time.perf_counter()
        jax.block_until_ready(step())
        seconds.append(time.perf_counter() - begun)
    return max(1, int(arguments.minutes * 60 / np.median(seconds)))


def rehearsal(plan: Plan, corpus: Corpus) -> Callable[[], PyTree]:
    """The first step of training, to be timed as often as one likes: nothing is kept of it."""
    model = build(plan)
    weights, static = eqx.partition(model, eqx.is_inexact_array)
    carry, chunk = rnnjax.models.batch_of_states(model, STREAMS), batches(corpus)(0)
    update = optimiser(plan.steps)

    @jax.jit
    def step(weights, state):
        objective = lambda weights: rnnjax.models.language_loss(  # noqa: E731
            eqx.combine(weights, static), carry, chunk, None, engine=ENGINES[plan.engine]
        )
        gradient, _ = jax.grad(objective, has_aux=True)(weights)
        updates, state = update.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state

    return partial(step, weights, update.init(weights))


def validation_loss(model: rnnjax.models.LanguageModel, corpus: Corpus) -> jax.Array:
    """Nats per character on the held-out text, read as a few long streams, the state carried through each."""
    return _validation_loss(
        model,
        rnnjax.training.streams(corpus.held_out, VALIDATION_STREAMS, (len(corpus.held_out) - 1) // VALIDATION_STREAMS)(
            0
        ),
    )


@eqx.filter_jit
def _validation_loss(model: rnnjax.models.LanguageModel, chunk: rnnjax.training.Chunk) -> jax.Array:
    states = rnnjax.models.batch_of_states(model, VALIDATION_STREAMS)
    return rnnjax.models.language_loss(model, states, chunk, None)[0]


def write_on(model: rnnjax.models.LanguageModel, plan: Plan, prompt: str, length: int) -> str:
    """What the model writes after `prompt`."""
    tokens = Corpus.encode(prompt, plan.vocabulary)
    written = rnnjax.models.sample(model, jnp.asarray(tokens), length, key=jax.random.key(2), temperature=0.7)
    return "".join(plan.vocabulary[token] for token in np.asarray(written))


def report(model: rnnjax.models.LanguageModel, plan: Plan, corpus: Corpus, folder: Path, seconds: float) -> None:
    """Print bits per character beside what compressors reach, and say where everything is."""
    rnnjax.save(folder / "model", model)
    draw_curve(folder / "metrics.jsonl", folder / "curve.png", scale=1 / math.log(2), unit="bits per character")
    prompt = corpus.decode(corpus.held_out[:40])
    sample = prompt + write_on(model, plan, prompt, 600)
    (folder / "sample.txt").write_text(sample + "\n")

    held_out = corpus.decode(corpus.held_out)
    rows = {f"{plan.cell}, this run": float(validation_loss(model, corpus)) / math.log(2)}
    rows |= {f"order-{order} entropy": entropy_bits(corpus, order) for order in (0, 2)}
    rows |= {name: compressed_bits(name, held_out) for name in ("bz2", "lzma")}
    rows["lzma, having read the training text"] = primed_bits("lzma", corpus.decode(corpus.training), held_out)
    print(f"\n{sample}\n\nbits per character on {len(held_out):,} held-out characters")
    for name, bits in rows.items():
        print(f"  {name:<36} {bits:6.3f}")
    print(f"{plan.steps} steps, {seconds:.0f} s. In {folder}: model, checkpoint, metrics.jsonl, curve.png, sample.txt")


def restore(plan: Plan, folder: Path) -> rnnjax.models.LanguageModel:
    """The model that a finished run left."""
    return rnnjax.load(folder / "model", build(plan))


def read_plan(folder: Path) -> Plan:
    """The plan of the run in `folder`."""
    path = folder / "plan.json"
    if not path.is_file():
        raise FileNotFoundError(f"--folder: expected a run, found no plan.json in {folder}")
    try:
        return Plan(**json.loads(path.read_bytes()))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"--folder: expected the plan of a run in {path}, got what cannot be read: {error}") from error


def newest(runs: Path) -> Path:
    """The run begun last."""
    found = sorted(runs.glob("language_model-*/plan.json"), key=lambda plan: plan.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f"--runs: expected a run in {runs}, found none. Train one first: leave out --resume")
    return found[-1].parent


def next_folder(runs: Path) -> Path:
    """A folder for a new run."""
    names = [path.name.removeprefix("language_model-") for path in runs.glob("language_model-*")]
    return runs / f"language_model-{max((int(name) for name in names if name.isdigit()), default=0) + 1}"


if __name__ == "__main__":
    main()
