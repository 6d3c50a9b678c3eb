"""A run over two devices, of one process or of two, with everything to hand on from a killed one.

`python processes_run.py FOLDER [resume] [kill] [orbax]`, alone or by `rnnjax.training.launch`.
"""

import os
import signal
import sys

import jax
import numpy as np
import optax

import rnnjax

STEPS = 8
FATAL = 4 if "orbax" in sys.argv else 5  # by Orbax, the checkpoint of the fourth step is being written then
TOKENS = np.random.default_rng(0).integers(0, 7, 150)


def batches(step: int) -> rnnjax.training.Chunk:
    """The batch of a step; in the run that is to be killed, the last process is, on the way to it."""
    if "kill" in sys.argv and step == FATAL and jax.process_index() == jax.process_count() - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return rnnjax.training.streams(TOKENS, 4, 6)(step)


def validate(model: rnnjax.models.LanguageModel) -> float:
    """A number that sees the weights."""
    return float(np.sum(np.asarray(model.embedding.weight) ** 2))


def main() -> None:
    cell = rnnjax.Elman(6, 8, key=jax.random.key(1))
    model = rnnjax.models.LanguageModel(7, cell, key=jax.random.key(2))
    fitted = rnnjax.training.fit(
        model,
        rnnjax.models.language_loss,
        batches,
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01)),
        steps=STEPS,
        key=jax.random.key(4),
        carry=rnnjax.models.batch_of_states(model, 4),
        validate=validate,
        every=2,
        folder=sys.argv[1],
        **({"store": rnnjax.training.Orbax(keep=2)} if "orbax" in sys.argv else {}),
        resume="resume" in sys.argv,
        progress=False,
        mesh=jax.make_mesh((2,), ("batch",)),
    )
    carried = [np.asarray(leaf).shape for leaf in jax.tree.leaves(fitted.carry)]  # whole, in every process
    print(f"process {jax.process_index()} of {jax.process_count()} took {fitted.steps} steps, carries {carried}")


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 1 if jax.distributed.is_initialized() else 2)
    main()
