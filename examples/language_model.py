"""Train a character language model on real text, the manual that comes with Python, and sample from it.

    python examples/language_model.py                       two to three minutes on two cores
    python examples/language_model.py --text book.txt --cell lstm --minutes 10
    python examples/language_model.py --resume              go on with the newest run
    python examples/language_model.py --sample "The yield"  let its model write on

The text is small, and is read many times. `Recipe` lists what keeps the model from learning it by heart;
`python -m benchmarks.regularisation` measures what each part of it buys.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from common.command_line import command_line, option
from common.runs import newest, next_folder
from common.text import Corpus, compressed_bits, entropy_bits, primed_bits, read_text
from jaxtyping import PyTree

import rnnjax
from rnnjax.training.atomic import write_atomically
from rnnjax.training.plot import draw_curve

CELLS = {"lstm": rnnjax.LSTM, "gru": rnnjax.GRU, "elman": rnnjax.Elman, "mingru": rnnjax.MinGRU}
WITH_RECURRENT_WEIGHTS = ("lstm", "gru", "elman")
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
STEPS, LEARNING_RATE, WARMUP, CLIP = 6800, 4e-3, 50, 1.0
EVALUATIONS, REHEARSED = 10, 20
VALIDATION_STREAMS = 16
NAME = "language_model"  # of the folders of runs


class Recipe(NamedTuple):
    """Regularisation; zeros leave it out."""

    weight_dropout: float = 0.25  # of the recurrent weights, anew at each step of training
    output_dropout: float = 0.2  # of the network's outputs, with one mask for all characters of a chunk
    weight_decay: float = 0.1  # of the matrices


RECIPE = Recipe()


class Plan(NamedTuple):
    """What a run was begun with, and must be resumed with; kept beside its checkpoint."""

    vocabulary: str
    text: str | None = None
    cell: str = "gru"
    engine: str = "auto"
    steps: int = STEPS
    seed: int = 0


# Defaults of the options that a plan keeps.
CHOSEN = {name: Plan._field_defaults[name] for name in ("text", "cell", "engine", "seed")}


def main() -> None:
    """Train, resume or sample, as the command line says."""
    arguments = parse()
    try:
        if arguments.sample is not None:
            folder = arguments.folder or newest(arguments.runs, NAME)
            plan = read_plan(folder)
            print(arguments.sample + write_on(restore(plan, folder), plan, arguments.sample, 600))
        elif arguments.resume:
            resume(arguments.folder or newest(arguments.runs, NAME))
        else:
            begin(arguments, arguments.folder or next_folder(arguments.runs, NAME))
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        sys.exit(str(error))


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Options of a new run are settled when it begins."""
    if options.resume or options.sample is not None:
        for name in ("minutes", *CHOSEN):
            if getattr(options, name) is not None:
                parser.error(f"--{name}: expected a new run, got --resume or --sample. Leave out one of them")
    for name, default in CHOSEN.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    if options.minutes is not None and not 0 < options.minutes < math.inf:
        parser.error(f"--minutes: expected more than 0, got {options.minutes}. Leave it out for {STEPS:,} steps")


parse = command_line(
    __doc__,
    option("--text", metavar="FILE", help="a text in UTF-8; default: Python's manual, pydoc_data.topics"),
    option("--cell", choices=CELLS, help=f"default: {CHOSEN['cell']}"),
    option("--engine", choices=ENGINES, help=f"default: {CHOSEN['engine']}"),
    option("--minutes", type=float, help=f"how long to train, after compiling; default: {STEPS:,} steps"),
    option("--seed", type=int, help=f"of initial weights, batches and dropout ({CHOSEN['seed']})"),
    option("--resume", action="store_true", help="go on with the newest run, or with --folder"),
    option("--sample", metavar="PROMPT", help="write on from this, with the model of that run"),
    option("--folder", type=Path, help="the run's folder; default: a new one, or the newest, in --runs"),
    option("--runs", type=Path, default=Path("runs"), help="where runs are kept (default ./runs)"),
    check=check_options,
)


def begin(arguments: argparse.Namespace, folder: Path) -> None:
    """A new run in `folder`."""
    if (folder / "plan.json").exists():
        raise FileExistsError(f"--folder: expected a new one, got {folder}, which holds a run. Add --resume")
    corpus = Corpus(read_text(arguments.text))
    text = arguments.text and str(Path(arguments.text).resolve())
    plan = Plan(corpus.vocabulary, text, arguments.cell, arguments.engine, STEPS, arguments.seed)
    if arguments.minutes is not None:
        plan = plan._replace(steps=count_steps(plan, corpus, arguments.minutes))
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
    begun = time.perf_counter()
    model = fit(plan, corpus, folder=folder, resume=resume)
    report(model, plan, corpus, folder, time.perf_counter() - begun)


def fit(plan: Plan, corpus: Corpus, recipe: Recipe = RECIPE, **options: Any) -> rnnjax.models.LanguageModel:
    """The model that was best on the held-out text; further options are those of `rnnjax.training.fit`."""
    model = build(plan)
    return rnnjax.training.fit(
        model,
        loss(plan, recipe),
        batches(corpus),
        optimiser(plan.steps, recipe),
        steps=plan.steps,
        key=jax.random.key(plan.seed + 1),
        carry=rnnjax.models.batch_of_states(model, STREAMS),
        validate=partial(nats_per_character, text=corpus.held_out),
        every=-(-plan.steps // EVALUATIONS),
        **options,
    ).model


def build(plan: Plan) -> rnnjax.models.LanguageModel:
    """A model of the plan's cell, its weights as drawn."""
    keys = jax.random.split(jax.random.key(plan.seed), 4)
    cells = [CELLS[plan.cell](EMBEDDING, HIDDEN, key=keys[0])]
    for key in keys[1 : LAYERS.get(plan.cell, 1)]:
        cells.append(rnnjax.residual(CELLS[plan.cell](HIDDEN, HIDDEN, key=key)))
    return rnnjax.models.LanguageModel(len(plan.vocabulary), rnnjax.Stack(cells), key=keys[3])


def batches(corpus: Corpus):
    """Consecutive chunks of the training text."""
    return rnnjax.training.streams(corpus.training, STREAMS, CHUNK)


def loss(plan: Plan, recipe: Recipe) -> Callable[..., Any]:
    """The loss of training: cross-entropy, with the dropout of Merity et al. 2018 and without their penalties."""
    return partial(
        rnnjax.models.awd_loss,
        weight_dropout=recipe.weight_dropout if plan.cell in WITH_RECURRENT_WEIGHTS else 0.0,
        embedding_dropout=0.0,
        output_dropout=recipe.output_dropout,
        activation=0.0,
        temporal=0.0,
        engine=ENGINES[plan.engine],
    )


def optimiser(steps: int, recipe: Recipe = RECIPE) -> optax.GradientTransformation:
    """AdamW, clipped, warmed up, and cooled down over the whole run."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, LEARNING_RATE, min(WARMUP, steps // 10), steps, LEARNING_RATE / 50
    )
    decayed = partial(jax.tree.map, lambda weight: weight.ndim > 1)
    return optax.chain(
        optax.clip_by_global_norm(CLIP), optax.adamw(schedule, weight_decay=recipe.weight_decay, mask=decayed)
    )


def count_steps(plan: Plan, corpus: Corpus, minutes: float) -> int:
    """How many steps fill the minutes, by the time of a few on a model that is thrown away.

    The least of their times counts: other work on the machine can only make a step slower. The number is settled before
    the run, and kept with it: a schedule that followed the clock could not be resumed.
    """
    step = rehearsal(plan, corpus)
    jax.block_until_ready(step())
    seconds = []
    for _ in range(REHEARSED):
        begun = time.perf_counter()
        jax.block_until_ready(step())
        seconds.append(time.perf_counter() - begun)
    return max(1, int(minutes * 60 / min(seconds)))


def rehearsal(plan: Plan, corpus: Corpus) -> Callable[[], PyTree]:
    """The first step of training, to be timed as often as one likes: nothing is kept of it."""
    model = build(plan)
    weights, static = eqx.partition(model, eqx.is_inexact_array)
    carry, chunk = rnnjax.models.batch_of_states(model, STREAMS), batches(corpus)(0)
    update, objective = optimiser(plan.steps), loss(plan, RECIPE)

    @jax.jit
    def step(weights, state, key):
        gradient, _ = jax.grad(
            lambda weights: objective(eqx.combine(weights, static), carry, chunk, key), has_aux=True
        )(weights)
        updates, state = update.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state

    return partial(step, weights, update.init(weights), jax.random.key(0))


def bits_per_character(model: rnnjax.models.LanguageModel, text: np.ndarray) -> float:
    """The cross-entropy on the characters of a text."""
    return float(nats_per_character(model, text)) / math.log(2)


def nats_per_character(model: rnnjax.models.LanguageModel, text: np.ndarray) -> jax.Array:
    """The same in nats. The text is read as a few long streams, with the state carried through each."""
    chunk = rnnjax.training.streams(text, VALIDATION_STREAMS, (len(text) - 1) // VALIDATION_STREAMS)(0)
    return _cross_entropy(model, rnnjax.models.batch_of_states(model, VALIDATION_STREAMS), chunk)


@eqx.filter_jit
def _cross_entropy(model: rnnjax.models.LanguageModel, states: PyTree, chunk: rnnjax.training.Chunk) -> jax.Array:
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
    rows = {f"{plan.cell}, this run": bits_per_character(model, corpus.held_out)}
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


if __name__ == "__main__":
    main()
