"""Data parallelism: the only file that knows how devices are arranged.

Every device function has one contract, `fn(replicated, sharded) -> replicated`, perhaps with more replicated arguments.
It runs per device, and its collectives name `AXIS`. Placement, compilation and donation happen here; the function is
the same for every backend. The devices may belong to several processes: each passes its own rows of a batch.
"""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from linseed.trainer.errors import ConfigError, DistributedError, unknown_name

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
    """Splits each batch over all devices and keeps a copy of everything else on each.

    `backend` names how device functions are compiled (see `BACKENDS`); `devices` are the devices to use. The numbers do
    not depend on the backend.
    """

    def __init__(self, backend: str, *, devices: list[jax.Device]):
        if backend not in BACKENDS:
            raise ConfigError(unknown_name("parallel.backend", backend, BACKENDS))
        self._backend = backend
        # Ordered by process, so the rows of a process are contiguous; TPU pods have another order.
        devices = sorted(devices, key=lambda device: device.process_index)
        self._processes = sorted({device.process_index for device in devices})
        self._num_local = sum(device.process_index == jax.process_index() for device in devices)
        if self._num_local * len(self._processes) != len(devices):
            raise DistributedError(
                f"process {jax.process_index()} has {self._num_local} of {len(devices)} devices; give each of the "
                f"{len(self._processes)} processes the same number"
            )
        self._mesh = Mesh(np.array(devices), (AXIS,))

    @property
    def num_devices(self) -> int:
        return self._mesh.size

    @property
    def shard_index(self) -> int:
        """The index of this process's part among the `shard_count` equal parts of a batch, in row order."""
        return self._processes.index(jax.process_index())

    @property
    def shard_count(self) -> int:
        return len(self._processes)

    def compile(self, fn, *, donate: bool, takes: tuple[str, ...] = (REPLICATED, SHARDED)):
        """Compiles `fn(replicated, sharded) -> replicated`; `takes` may name other arguments, in order.

        `donate` gives up the first argument's buffers.
        """
        return BACKENDS[self._backend](fn, mesh=self._mesh, takes=takes, donate=(0,) if donate else ())

    def replicate(self, tree):
        """A copy of each array of `tree` on every device."""
        return self._placed(tree, PartitionSpec())

    def shard(self, batch):
        """Splits each host array [B, ...] of `batch` along B over this process's devices; B counts its own rows only.

        The number of devices must divide the whole batch: see `check_divides`.
        """
        return self._placed(jax.tree.map(self._cut, batch), PartitionSpec(AXIS))

    def check_divides(self, batch_size: int, *, key: str, parts: int):
        """Raises ConfigError unless `batch_size`, of config key `key`, divides into `parts` equal parts per device."""
        pieces = self.num_devices * parts
        if batch_size % pieces:
            below = batch_size // pieces * pieces
            near = f"{below} or {below + pieces}" if below else str(pieces)
            each = f" in {parts} parts each" if parts > 1 else ""
            raise ConfigError(f"{key}={batch_size} does not divide over {self.num_devices} devices{each}; use {near}")

    def _cut(self, array):
        if self._backend == "pmap":  # pmap expects a device axis
            return array.reshape(self._num_local, -1, *array.shape[1:])
        return array

    def _placed(self, tree, spec):
        """Puts `tree` on this process's devices, as parts of global arrays, without communication."""
        placed = jax.device_put(tree, NamedSharding(self._mesh.local_mesh, spec))
        if self.shard_count == 1:
            return placed
        whole = NamedSharding(self._mesh, spec)
        times = self.shard_count if spec else 1

        def joined(array):
            shape = (array.shape[0] * times, *array.shape[1:]) if array.shape else ()
            shards = [shard.data for shard in array.addressable_shards]
            return jax.make_array_from_single_device_arrays(shape, whole, shards, dtype=array.dtype)

        return jax.tree.map(joined, placed)
