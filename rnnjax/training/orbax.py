"""The store for runs that span hosts: sharded, asynchronous, the last checkpoints kept, written by Orbax."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from .. import check
from ..checked import Checked
from .checkpoint import CheckpointError, Stored, check_dtype, check_same, load_from_run, stored_form
from .description import describe, is_key, named_leaves
from .devices import AbstractDevices
from .orbax_folder import Arrays, OrbaxFolder
from .run import Run, place
from .store import AbstractCheckpoints, AbstractStore

Model = TypeVar("Model")


@dataclass(frozen=True)
class Orbax(AbstractStore):
    """Checkpoints by Orbax (https://github.com/google/orbax), for `fit(..., folder=folder, store=Orbax())`.

    keep    how many checkpoints stay, the last ones; an older one is removed when the next is whole

    Each process writes its own parts of the arrays into `folder / "checkpoint"`, which all processes can reach, while
    the next steps run; a checkpoint waits for the one before it. `fit` returns when all are on disk. A kill at any
    moment leaves the last one that was whole, and `resume=True` goes on from it bit for bit; the steps since then are
    run again. A checksum of each array is compared when it is read.

        fit(..., folder="runs/a", store=Orbax(keep=3), resume=True, mesh=mesh)
        model = Orbax().load("runs/a", model)

    For one process the single file that `fit` writes without a store is simpler, and safe from a loss of power, too.
    It needs `pip install 'rnnjax[orbax]'`.
    """

    keep: Checked[int] = 3

    def __post_init__(self) -> None:
        check.count("keep", self.keep)

    def open(self, folder: Path, devices: AbstractDevices) -> AbstractCheckpoints:
        """The checkpoints of the run in `folder`. Raises ImportError where Orbax is missing."""
        if jax.process_count() > 1 and not devices.several:
            raise ValueError(
                f"store: expected a mesh over all {jax.process_count()} processes, which write together, got one over "
                "this process alone. Pass mesh=jax.make_mesh((jax.device_count(),), ('batch',)), or leave store out"
            )
        return _Checkpoints(folder, devices, self.keep)

    def load(self, folder: str | Path, model: Model, step: int | None = None) -> Model:
        """The model that `fit` would have returned after a checkpoint of its run in `folder`.

        It is the best by validation, or the last without any.

        model    one built as that of the run, or its shapes alone
        step     of one of the checkpoints that are kept; None: the last

        Raises FileNotFoundError where there is none, and CheckpointError where it is damaged or of another model.
        """
        files = OrbaxFolder(Path(folder) / "checkpoint", None)
        steps = files.steps()
        if not steps:
            raise FileNotFoundError(
                f"folder: expected a run with store=Orbax(), found no checkpoint in {files.path}. "
                "Pass the `folder` of `fit`; the file of a run without a store is read by rnnjax.load"
            )
        if step is not None and step not in steps:
            raise ValueError(f"step: expected one of those kept, {steps}, got {step!r}. Pass one, or None for the last")
        try:
            return _load(files, steps[-1] if step is None else step, model)
        finally:
            files.close()


class _Checkpoints(AbstractCheckpoints):
    def __init__(self, folder: Path, devices: AbstractDevices, keep: int):
        self.folder = folder
        self.path = folder / "checkpoint"
        self.devices = devices
        self.files = OrbaxFolder(self.path, keep)

    def exist(self) -> bool:
        if self.path.is_file():
            raise CheckpointError(
                f"checkpoint: expected a folder at {self.path}, found a file, such as `fit` writes without a store. "
                "Leave store out to go on with its run, or pass another folder; nothing was overwritten"
            )
        return bool(self.files.steps())

    def call(self) -> str:
        return f"rnnjax.training.Orbax().load({str(self.folder)!r}, model)"

    def read(self, run: Run) -> Run:
        step = self.files.steps()[-1]
        description, sums = self.files.describe(step)
        check_same(self.files.path / str(step), run, description)
        run = jax.tree.map(jnp.asarray, place(run, self.devices))  # a model may hold arrays of NumPy
        return _with_arrays(run, self.files.read(step, _arrays(run), sums))

    def write(self, run: Run) -> None:
        self.files.write(int(run.step), _arrays(run), describe(run))

    def wait(self) -> None:
        self.files.wait()

    def close(self) -> None:
        self.files.close()


def _arrays(run: Run) -> Arrays:
    """The arrays of a run by their paths in it: random keys as their bits, and none that is empty."""
    leaves = {name: leaf for name, leaf in named_leaves(run).items() if leaf.size}
    for name, leaf in leaves.items():
        check_dtype(name, leaf)
    return {name: jax.random.key_data(leaf) if is_key(leaf) else leaf for name, leaf in leaves.items()}


def _with_arrays(run: Run, arrays: Arrays) -> Run:
    """The run with these arrays in place of its own."""

    def fill(name: str, leaf: Any) -> Any:
        found: Any = arrays.get(name, leaf)
        return jax.random.wrap_key_data(found, impl=jax.random.key_impl(leaf)) if is_key(leaf) else found

    return jax.tree.unflatten(jax.tree.structure(run), [fill(*each) for each in named_leaves(run).items()])


def _load(files: OrbaxFolder, step: int, model: Model) -> Model:
    description, sums = files.describe(step)
    names = [name for name in description.arrays if name.split(".")[0] in ("weights", "best", "best_loss")]
    arrays = files.read_here(step, [name for name in names if name in sums], sums)
    arrays |= {name: _empty(description.arrays[name]) for name in names if name not in sums}
    whole = {name: stored_form(name, arrays[name]) for name in names}
    found = {name: Stored(array.dtype.name, array.shape, array.tobytes()) for name, array in whole.items()}
    return load_from_run(files.path / str(step), found, description, model)


def _empty(form: str) -> np.ndarray:
    """The array of a form such as float32[0,3]."""
    dtype, _, sizes = form.rstrip("]").partition("[")
    return np.empty(tuple(map(int, filter(None, sizes.split(",")))), np.dtype(dtype))
