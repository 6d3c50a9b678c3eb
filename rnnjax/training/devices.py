"""The devices of `fit`: one device, or data parallel over a mesh, in one process or in several."""

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ..arrays import PyTree
from ..check import show


class AbstractDevices(abc.ABC):
    """The operations that `fit` needs of its devices."""

    writes: bool = True  # whether this process writes the files of the run
    several: bool = False  # whether they are those of several processes

    @abc.abstractmethod
    def over_batch(self, gradient: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """`gradient(weights, carry, batch, key) -> ((measured, carry), gradient)` of a whole batch, or None by it."""

    @abc.abstractmethod
    def share(self, name: str, tree: PyTree) -> PyTree:
        """`tree` on every device; `name` is the argument's, for messages."""

    @abc.abstractmethod
    def split(self, name: str, tree: PyTree) -> PyTree:
        """`tree` with its leading axis over the devices."""

    @abc.abstractmethod
    def gather(self, tree: PyTree) -> PyTree:
        """`tree`, shared or split, as whole arrays of this process."""

    @abc.abstractmethod
    def wait(self) -> None:
        """Wait until all processes have called it."""


class OneDevice(AbstractDevices):
    """JAX's default device."""

    def over_batch(self, gradient: Callable[..., PyTree]) -> Callable[..., PyTree]:
        return gradient

    def share(self, name: str, tree: PyTree) -> PyTree:
        del name
        return tree

    def split(self, name: str, tree: PyTree) -> PyTree:
        del name
        return tree

    def gather(self, tree: PyTree) -> PyTree:
        return tree

    def wait(self) -> None:
        pass


class DataParallel(AbstractDevices):
    """Batch and carry split over the first axis of a mesh; weights, optimiser and all else on every device."""

    def __init__(self, mesh: Mesh):
        if not isinstance(mesh, Mesh):
            raise TypeError(
                f"mesh: expected a jax.sharding.Mesh, as jax.make_mesh makes, got {mesh!r}. "
                "Write jax.make_mesh((jax.device_count(),), ('batch',))"
            )
        if not mesh.axis_names:
            raise ValueError(
                "mesh: expected one with an axis to split the batch over, got one without axes. "
                "Write jax.make_mesh((jax.device_count(),), ('batch',))"
            )
        processes = {device.process_index for device in mesh.devices.flat}
        if processes not in ({jax.process_index()}, set(range(jax.process_count()))):
            raise ValueError(
                f"mesh: expected the devices of this process alone, jax.local_devices(), or of all "
                f"{jax.process_count()} processes, jax.devices(); got those of {sorted(processes)}. "
                "Make the mesh of one of the two"
            )
        self.several = len(processes) > 1
        self.writes = not self.several or jax.process_index() == 0
        self.mesh = Mesh(mesh.devices, mesh.axis_names)  # with axes of the type Auto, whatever theirs are
        self.axis = mesh.axis_names[0]
        self.everywhere = NamedSharding(self.mesh, P())
        self.everything = jax.jit(lambda tree: tree, out_shardings=self.everywhere)

    def over_batch(self, gradient: Callable[..., PyTree]) -> Callable[..., PyTree]:
        def of_part(weights: PyTree, carry: PyTree, batch: PyTree, key: Any) -> Any:
            key = jax.random.fold_in(key, jax.lax.axis_index(self.axis))
            (measured, carry), slope = gradient(weights, carry, batch, key)
            measured, slope = jax.lax.pmean((measured, slope), self.axis)
            return (measured, carry), slope

        parts = P(self.axis)
        # Losses do not have to state which of their arrays vary from device to device.
        return jax.shard_map(
            of_part,
            mesh=self.mesh,
            in_specs=(P(), parts, parts, P()),
            out_specs=((P(), parts), P()),
            axis_names={self.axis},
            check_vma=False,
        )

    def share(self, name: str, tree: PyTree) -> PyTree:
        del name
        return jax.tree.map(lambda leaf: _spread(leaf, self.everywhere), tree)

    def split(self, name: str, tree: PyTree) -> PyTree:
        devices = self.mesh.shape[self.axis]
        for leaf in jax.tree.leaves(tree):
            if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] % devices or not jnp.shape(leaf)[0]:
                raise ValueError(
                    f"{name}: expected arrays whose first axis, the batch's, the {devices} devices of the mesh divide, "
                    f"got {show(leaf)}. Take batches of a multiple of {devices}, or a mesh of fewer devices"
                )
        sharding = NamedSharding(self.mesh, P(self.axis))
        return jax.tree.map(lambda leaf: _spread(leaf, sharding), tree)

    def gather(self, tree: PyTree) -> PyTree:
        return jax.tree.map(_local, self.everything(tree))

    def wait(self) -> None:
        if self.several:
            multihost_utils.sync_global_devices("rnnjax.training.fit")


def _spread(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """An array that every process has in full, split over the devices; each process creates its own parts."""
    if _is_key(leaf):
        return jax.random.wrap_key_data(_spread(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    dtype = jax.dtypes.canonicalize_dtype(jnp.result_type(leaf))
    whole = np.asarray(leaf).astype(dtype, copy=False)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def _local(leaf: jax.Array) -> jax.Array:
    """An array that every device has in full, on this process' default device alone."""
    if _is_key(leaf):
        return jax.random.wrap_key_data(_local(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
    return jnp.asarray(np.asarray(leaf))


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
