"""Data parallelism: the only file that knows how devices are arranged.

Every device function has one contract, `fn(replicated, sharded) -> replicated`:
a per-device function whose collectives name `AXIS`, perhaps with more replicated
arguments. Placement, compilation and donation happen here; the function itself is
the same for every backend.
"""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from trainer.errors import ConfigError, unknown_name

AXIS = "batch"


# How device functions may take an argument: a copy on each device, or the device's part of it.
REPLICATED, SHARDED = "replicated", "sharded"


def _pmap(fn, *, mesh, takes, donate):
    axes = tuple({REPLICATED: None, SHARDED: 0}[how] for how in takes)
    return jax.pmap(
        fn, axis_name=AXIS, in_axes=axes, out_axes=None, devices=list(mesh.devices.flat), donate_argnums=donate
    )


def _shard_map(fn, *, mesh, takes, donate):
    specs = tuple({REPLICATED: PartitionSpec(), SHARDED: PartitionSpec(AXIS)}[how] for how in takes)
    mapped = jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
    return jax.jit(mapped, donate_argnums=donate)


BACKENDS = {"pmap": _pmap, "shard_map": _shard_map}


class DataParallel:
    """One batch cut over all devices, one copy of everything else on each.

    `backend` names how device functions are compiled (see `BACKENDS`); `devices`
    are the devices to use. The numbers do not depend on the backend.
    """

    def __init__(self, backend: str, *, devices: list[jax.Device]):
        if backend not in BACKENDS:
            raise ConfigError(unknown_name("parallel.backend", backend, BACKENDS))
        self._backend = backend
        self._mesh = Mesh(np.array(devices), (AXIS,))
        self._replicated = NamedSharding(self._mesh, PartitionSpec())
        self._sharded = NamedSharding(self._mesh, PartitionSpec(AXIS))

    @property
    def num_devices(self) -> int:
        return self._mesh.size

    def compile(self, fn, *, donate: bool, takes: tuple[str, ...] = (REPLICATED, SHARDED)):
        """Compiles `fn(replicated, sharded) -> replicated`, or with the arguments that `takes` names, in order.

        `donate` gives up the first argument's buffers.
        """
        return BACKENDS[self._backend](fn, mesh=self._mesh, takes=takes, donate=(0,) if donate else ())

    def replicate(self, tree):
        """A copy of each array of `tree` on every device."""
        return jax.device_put(tree, self._replicated)

    def shard(self, batch):
        """Cuts each host array [B, ...] of `batch` over the devices, along B.

        The number of devices must divide B: see `check_divides`.
        """
        return jax.device_put(jax.tree.map(self._cut, batch), self._sharded)

    def check_divides(self, batch_size: int, *, key: str, parts: int):
        """Raises ConfigError unless `batch_size`, of config key `key`, falls into `parts` equal parts a device."""
        pieces = self.num_devices * parts
        if batch_size % pieces:
            below = batch_size // pieces * pieces
            near = f"{below} or {below + pieces}" if below else str(pieces)
            each = f" in {parts} parts each" if parts > 1 else ""
            raise ConfigError(f"{key}={batch_size} does not divide over {self.num_devices} devices{each}; use {near}")

    def _cut(self, array):
        if self._backend == "pmap":  # pmap wants the devices as an axis of their own
            return array.reshape(self.num_devices, -1, *array.shape[1:])
        return array
