"""A run over two devices, of one process or of two, with everything to hand on from a killed one.

`python processes_run.py FOLDER [resume] [kill] [orbax]`, alone or by `rnnjax.training.launch`; more runs follow a `--`.
"""

import os
import signal
import sys
from collections.abc import Callable

import equinox as eqx
import jax
import numpy as np
import optax

import rnnjax

STEPS = 8
TOKENS = np.random.default_rng(0).integers(0, 7, 150)


def batches(fatal: int | None) -> Callable[[int], rnnjax.training.Chunk]:
    """The batches of a run, of which the last process is killed on the way to step `fatal`."""

    def batch(step: int) -> rnnjax.training.Chunk:
        if step == fatal and jax.process_index() == jax.process_count() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return rnnjax.training.streams(TOKENS, 4, 6)(step)

    return batch


def validate(model: rnnjax.models.LanguageModel) -> float:
    """A number that sees the weights."""
    return float(np.sum(np.asarray(model.embedding.weight) ** 2))


def main(folder: str, *words: str) -> None:
    by_orbax = "orbax" in words
    fatal = 4 if by_orbax else 5  # by Orbax, while the checkpoint of four steps is written
    cell = rnnjax.Elman(6, 8, key=jax.random.key(1))
    model = rnnjax.models.LanguageModel(7, cell, key=jax.random.key(2))
    fitted = rnnjax.training.fit(
        model,
        rnnjax.models.language_loss,
        batches(fatal if "kill" in words else None),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01)),
        steps=STEPS,
        key=jax.random.key(4),
        carry=rnnjax.models.batch_of_states(model, 4),
        validate=validate,
        every=2,
        folder=folder,
        **({"store": rnnjax.training.Orbax(keep=2)} if by_orbax else {}),
        resume="resume" in words,
        progress=False,
        mesh=jax.make_mesh((2,), ("batch",)),
    )
    if by_orbax:  # each process reads alone
        assert eqx.tree_equal(rnnjax.training.Orbax().load(folder, model), fitted.model)
    carried = [np.asarray(leaf).shape for leaf in jax.tree.leaves(fitted.carry)]  # whole, in every process
    print(f"process {jax.process_index()} of {jax.process_count()} took {fitted.steps} steps, carries {carried}")


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 1 if jax.distributed.is_initialized() else 2)
    for words in " ".join(sys.argv[1:]).split(" -- "):
        main(*words.split())
