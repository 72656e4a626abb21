"""A function in a process of its own, whose JAX sees as many virtual CPU devices as asked for, or what there is."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor


def in_child(function, *arguments, devices: int, **kwargs):
    """What `function`, of a module, returns in a process of its own. devices: how many virtual CPUs; 1: as here."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=_set_devices, initargs=(devices,)) as pool:
        return pool.submit(function, *arguments, **kwargs).result()


def _set_devices(count):
    # Before JAX asks for its devices. Of a flag that is given twice the last one counts.
    if count > 1:
        os.environ["JAX_PLATFORMS"] = "cpu"  # also where there is an accelerator, of which none are virtual
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
