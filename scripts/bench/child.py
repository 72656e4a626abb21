"""Runs a function in its own process, where JAX sees a given number of virtual CPU devices."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor


def in_child(function, *arguments, devices: int, **kwargs):
    """Calls a module's `function` in its own process and returns its result. devices: virtual CPUs; 1: as here."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=_set_devices, initargs=(devices,)) as pool:
        return pool.submit(function, *arguments, **kwargs).result()


def _set_devices(count):
    # Before JAX reads its devices. The last of repeated flags counts.
    if count > 1:
        os.environ["JAX_PLATFORMS"] = "cpu"  # even with an accelerator, which has no virtual devices
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
