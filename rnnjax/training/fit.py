"""The training loop: any model, any loss, any optax optimiser; watched, stopped early, killed and resumed."""

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from .. import check
from ..arrays import PyTree
from ..checked import Checked
from ..gradients.estimator import AbstractEstimator
from ..hints import OF_TRAINING, instead
from .devices import AbstractDevices, DataParallel, OneDevice
from .finite import check_finite, check_judged, check_loss, summarise
from .log import Log, Metrics
from .metrics import Answer, of_validation
from .objective import Loss, StepLoss, choose_objective
from .one_file import OneFile
from .run import Run, place
from .source import Batches, source
from .store import AbstractStore
from .update import Optimiser, compile_update

Model = TypeVar("Model")


class Fitted(NamedTuple, Generic[Model]):
    """The trained model (the best by validation, where there was one; else the last), the carry, the steps taken."""

    model: Model
    carry: PyTree
    steps: int


@instead(OF_TRAINING)
def fit(
    model: Model,
    loss: Loss | StepLoss,
    batches: Checked[Batches],
    optimiser: Optimiser,
    *,
    steps: int,
    key: PRNGKeyArray,
    gradient: AbstractEstimator | None = None,
    carry: PyTree = None,
    validate: Checked[Callable[[Model], Answer] | None] = None,
    every: int = 100,
    patience: int | None = None,
    report: Checked[Callable[[Mapping[str, float]], object] | None] = None,
    folder: Checked[str | Path | None] = None,
    store: Checked[AbstractStore] = OneFile(),
    resume: bool = False,
    progress: bool = True,
    mesh: Mesh | None = None,
) -> Checked[Fitted[Model]]:  # a generic NamedTuple, of which a checker at run time knows nothing
    """Take `steps` steps of `optimiser` down `loss`.

    model       any pytree; its floating-point arrays are trained
    loss        `(model, carry, batch, key) -> (scalar, carry)`, or `(scalar, carry, metrics)`. The carry is handed from
                one step to the next and never differentiated through: with a recurrent state in it and consecutive
                chunks as batches (see `streams`) that is truncated BPTT. Return the carry you were given (None) where
                there is none. Metrics are scalars by name, `{"accuracy": share}`: their means are written with the loss
    batches     step -> batch. A function of the step alone, so that a resumed run sees what the killed one would have.
                Or any iterable of batches, which cannot be resumed: a list or a torch DataLoader begins again at its
                end; at the end of a generator the run ends, and `Fitted.steps` says when. Batches that no step
                uses stay in it
    optimiser   all that optax composes. Clipping by global norm: `optax.chain(optax.clip_by_global_norm(1.0), ...)`; by
                value: `optax.clip(1.0)`; accumulation over k batches: `optax.MultiSteps(optimiser, k)`. It also gets
                the loss, as `value`, `grad` and `value_fn`: for reduce on plateau, Polyak steps, L-BFGS. Labels that
                have the form of a `Classifier` or another callable model go into `optax.multi_transform` as
                `lambda _: labels`, since optax calls what can be called
    key         randomness: step t gets `jax.random.fold_in(key, t)`
    gradient    None: JAX differentiates `loss`. An estimator, such as `RTRL()`: see below
    validate    `model -> scalar`, called every `every` steps; the model with the least value is returned. Or
                `model -> {"validation": scalar, ...}`: the entry `validation` decides, the others are written with it
    patience    stop after so many validations without a new least
    report      called with each line of metrics, a dictionary with `step`, `loss`, `gradient_norm`, those of the loss
                and of `validate`, and `seconds`, once it is written, by the process that writes

                    report=lambda line: wandb.log(line, step=line["step"])
                    report=lambda line: [board.add_scalar(name, value, line["step"]) for name, value in line.items()]

    folder      where `metrics.jsonl` and `checkpoint` are written, every `every` steps; None: nowhere. Of a run that
                was killed, `rnnjax.load(folder / "checkpoint", model)` gives the model; with a `store`,
                `Orbax().load(folder, model)`
    store       how checkpoints are kept in `folder`: as one file, unless this is `Orbax(keep=3)`, for runs that span
                hosts: sharded, written while the next steps run, the last ones kept
    resume      go on from the checkpoint in `folder`, bit for bit as if the run had not been interrupted; where there
                is none yet the run starts, and a warning is logged: a job that may be killed always passes True
    mesh        data parallel: batch and carry, which lead with the batch, are split over the first axis of this mesh.
                The loss sees one device's part, and is to be a mean over examples: loss, metrics and gradient are
                averaged over the devices, and so are those of one device, in another order of summation. The key is
                another one on each device. A token outside the vocabulary makes the loss NaN, as no device may raise by
                itself. Further axes are left to the loss, for `Sharded`. Where the mesh spans processes, all call `fit`
                alike, each with the whole batch; the first one writes, into a folder that all can read. With `Orbax`
                each process writes its part

    With an estimator four of these have another form; checkpoints, validation and all else stay the same.

    model       a pair `(cell, head)`
    loss        `(head, y, target) -> scalar`, of one step of one sequence. Losses and gradients are summed over the
                steps of a chunk and averaged over the sequences of a batch
    batches     `(xs, targets, starts)` at each step: arrays [B, T, ...], T steps of each of B sequences, and booleans
                [B]. Where `starts` is true, a sequence begins at the first of these steps, with a new memory; elsewhere
                they follow those of the batch before, in the same row. Separate sequences: `np.ones(B, bool)` at every
                step
    carry       B memories, such as those that an earlier `fit` returned. None: all start, with B from the first batch

    An optimiser then gets `value` and `grad` but no `value_fn`, so L-BFGS with its line search cannot run. The gradient
    of each sequence is computed by itself: for BPTT of whole sequences, gradient=None is two or three times faster.

    Raises FloatingPointError when loss, weights or carry are not finite (the last checkpoint is from before): a loss
    as soon as the step after it has begun, weights and carry before they are kept;
    FileExistsError when `folder` holds a run and `resume` is false, or is held by a run that still lives;
    FileNotFoundError and CheckpointError when it holds not this one, ValueError and TypeError for arguments that make
    no sense.
    """
    check.flags(resume=resume, progress=progress)
    _check_arguments(steps, every, patience, validate, report)
    _check_folder(folder, store, resume)
    supply = source(batches, resume)
    objective = choose_objective(model, loss, gradient)
    devices = OneDevice() if mesh is None else DataParallel(mesh)
    weights, static = eqx.partition(model, eqx.is_inexact_array)
    run = _start(weights, optimiser, objective.begin(model, carry, supply, key), key)
    from tqdm import tqdm  # by training alone: a checkout can be imported without it

    with nullcontext() if folder is None else Log(Path(folder), store, devices) as log:
        run = place(run, devices) if log is None else log.open(run, resume)
        update = compile_update(objective, optimiser, static, devices)
        measured, begun = [], time.perf_counter()
        with tqdm(total=steps, initial=int(run.step), disable=not (progress and devices.writes), unit="step") as bar:
            for step in range(int(run.step), steps):
                if patience is not None and int(run.waited) >= patience:
                    break
                run, now = update(run, devices.split("batches", supply(step)))
                if measured:
                    check_loss(measured[-1], step - 1, log)  # of the step before, while this one runs
                    measured[-1] = jax.tree.map(float, jax.device_get(measured[-1]))  # an array takes kilobytes
                measured.append(now)
                bar.update()
                is_last = step + 1 == steps
                if (step + 1) % every and not is_last:
                    is_last = supply.ends(step)
                    if not is_last:
                        continue
                check_loss(now, step, log)
                line: Metrics = {"step": step + 1, **summarise(measured)}
                check_finite(run, devices, log)
                if validate is not None:
                    line |= of_validation(validate(eqx.combine(devices.gather(run.weights), static)), line)
                    check_judged(line["validation"], step + 1, log)
                    run = _judge(run, line["validation"], devices)
                bar.set_postfix({name: f"{number:.4g}" for name, number in line.items() if name != "step"})
                line["seconds"] = round(time.perf_counter() - begun, 3)
                if log is not None:
                    log.write(run, line)
                if report is not None and devices.writes:
                    report(dict(line))
                measured = []
                impatient = patience is not None and int(run.waited) >= patience  # an iterator keeps its next batch
                if is_last or impatient or supply.ends(step):
                    break
        kept = run.best if run.best_loss < jnp.inf else run.weights  # infinite: nothing was judged, or all as infinite
        kept, carry = devices.gather((kept, run.carry))
        return Fitted(eqx.combine(kept, static), carry, int(run.step))


def _check_arguments(steps: int, every: int, patience: int | None, validate: Any, report: Any) -> None:
    if patience is not None and validate is None:
        raise ValueError(
            "patience: expected a `validate` to be patient about, got none. Pass `validate`, or leave `patience` out"
        )
    if report is not None and not callable(report):
        raise TypeError(
            f"report: expected a function of a line of metrics, got {report!r}. "
            "Write report=lambda line: print(line), or leave it out"
        )
    check.count("steps", steps, least=0)
    check.count("every", every)
    if patience is not None:
        check.count("patience", patience)


def _check_folder(folder: Any, store: Any, resume: bool) -> None:
    if not isinstance(store, AbstractStore):
        raise TypeError(
            f"store: expected rnnjax.training.Orbax(), got {store!r}. Pass one, or leave store out for a single file"
        )
    if folder is None and store != OneFile():
        raise ValueError(
            f"store: expected a `folder` to keep checkpoints in, got none with {store!r}. "
            "Pass `folder`, or leave `store` out"
        )
    if folder is not None and "://" in str(folder):
        raise ValueError(
            f"folder: expected a path of the file system, got the address {str(folder)!r}. "
            "Pass the path under which that storage is mounted"
        )
    if resume and folder is None:
        raise ValueError(
            "resume: expected a `folder` to resume from, got none. "
            "Pass the `folder` of the run to go on with, or leave `resume` out"
        )


def _start(weights: PyTree, optimiser: Optimiser, carry: PyTree, key: PRNGKeyArray) -> Run:
    state = jax.tree.map(jnp.asarray, optimiser.init(weights))
    zero = jnp.zeros((), jnp.int32)
    infinity = jnp.asarray(jnp.inf, jnp.float32)
    return Run(weights, state, carry, zero, key, weights, infinity, zero)


def _judge(run: Run, value: float, devices: AbstractDevices) -> Run:
    """The run with its best weights and its patience brought up to date."""
    rounded = jnp.asarray(value, jnp.float32)  # as the best one is, or its like would pass for better
    if rounded < run.best_loss:
        best_loss, waited = devices.share("validate", (rounded, jnp.zeros((), jnp.int32)))
        return run._replace(best=run.weights, best_loss=best_loss, waited=waited)
    return run._replace(waited=run.waited + 1)
