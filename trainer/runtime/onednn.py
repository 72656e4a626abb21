"""Convolutions by name: XLA's own, and on CPU those of oneDNN, several times faster.

jaxlib for Linux on x86-64 includes oneDNN, whose forward convolution is one undocumented custom call. A config that it
refuses ends the process. So a child process tries the few kinds of windows used here first, on small shapes
(`trainer.runtime.onednn_probe`).
"""

import functools
import inspect
import json
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from linseed.trainer.runtime import depthwise, onednn_probe

LIBRARY = "__onednn$"  # prefix of all its custom calls
TARGET = f"{LIBRARY}convolution"
NHWC = ("NHWC", "HWIO", "NHWC")
TOLERANCE = 1e-5  # relative to the largest value; seen: 2e-6
# For the gradient of the kernel: the fewest examples at a time, the values of g that fit in a cache, and the product of
# channels and features below which XLA is as fast.
EXAMPLES, CACHED, SMALL = 32, 2**19, 256


class Window(NamedTuple):
    """How the kernel moves over a feature map: each field has a value for height and one for width."""

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]  # zeros before and after, each at least 0
    dilation: tuple[int, int]  # of the kernel


def auto(lhs: jax.Array, rhs: jax.Array, window_strides, padding, *args, **kwargs) -> jax.Array:
    """`jax.lax.conv_general_dilated`, on CPU by oneDNN where that is proven to work: the same arguments and values.

    oneDNN takes float32 [B, H, W, C] and [h, w, C, F], at any stride and kernel dilation; depthwise convolutions become
    sums of shifted maps (`depthwise`); all else silently goes to XLA. First and second gradients work; forward-mode
    derivatives need `jax.lax`'s own. Each process compiles a program that calls oneDNN itself: JAX's compilation cache
    cannot hold it.
    """
    if jax.default_backend() == "cpu" and depthwise.takes(lhs, rhs, window_strides, padding, *args, **kwargs):
        return depthwise.by_shifts(lhs, rhs, window_strides, padding)
    window = _window(lhs, rhs, window_strides, padding, *args, **kwargs)
    if window is None or not usable():
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, *args, **kwargs)
    return by_onednn(lhs, rhs, window=window)


# What config.convolution may be; each has the signature of `jax.lax.conv_general_dilated`.
CONVOLUTIONS = {"auto": auto, "xla": lax.conv_general_dilated}


def usable() -> bool:
    """Whether oneDNN's convolutions may be called: the devices are CPUs, and the child process's test passed."""
    return jax.default_backend() == "cpu" and onednn_probe.proven()


@functools.cache
def keep_out_of_cache():
    """Keeps programs that call oneDNN out of JAX's compilation cache from now on.

    jaxlib cannot serialise such a program: it raises MemoryError or crashes, depending on version and machine. JAX has
    no public way to leave one program out, so this wraps the private function that serialises and writes. Raises
    AttributeError if this version of JAX has no such function; the child process finds that out first.
    """
    from jax._src import compilation_cache

    put = compilation_cache.put_executable_and_time
    if list(inspect.signature(put).parameters)[2:3] != ["executable"]:
        raise AttributeError("jax._src.compilation_cache.put_executable_and_time has changed its arguments")

    @functools.wraps(put)
    def put_unless_onednn(cache_key, module_name, executable, *args, **kwargs):
        if not any(LIBRARY in module.to_string() for module in executable.hlo_modules()):
            put(cache_key, module_name, executable, *args, **kwargs)

    compilation_cache.put_executable_and_time = put_unless_onednn


def by_onednn(x: jax.Array, kernel: jax.Array, *, window: Window) -> jax.Array:
    """float32 [B, H, W, C], [h, w, C, F] -> [B, H', W', F]. Ends the process if jaxlib has no such custom call."""
    # Under shard_map the custom call, unlike JAX's operations, refuses one varying and one replicated argument.
    varying = [jax.typeof(a).manual_axis_type.varying for a in (x, kernel)]
    x, kernel = (
        lax.pcast(a, tuple(other - own), to="varying") if other - own else a
        for a, own, other in zip((x, kernel), varying, varying[::-1], strict=True)
    )
    return _convolution(window, x, kernel)


def largest_error() -> float:
    """The largest error of values and gradients over a few shapes, relative to the largest value of each.

    Called in the child process only.
    """
    rng = np.random.default_rng(0)
    errors = []
    for size, channels, features, kernel, stride, pad, dilation in (
        (8, 32, 48, 3, 1, (1, 1), 1),
        (7, 33, 40, 3, 2, (0, 1), 1),
        (9, 32, 32, 3, 1, (2, 1), 2),
    ):
        window = Window((stride,) * 2, (pad,) * 2, (dilation,) * 2)
        x = jnp.asarray(rng.normal(size=(33, size, size, channels)), jnp.float32)
        weights = jnp.asarray(rng.normal(size=(kernel, kernel, channels, features)), jnp.float32)
        both = [_with_gradients(functools.partial(f, window=window)) for f in (by_onednn, _xla)]
        for ours, theirs in zip(*(jax.jit(f)(x, weights) for f in both), strict=True):
            ours, theirs = np.asarray(ours), np.asarray(theirs)
            errors.append(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))
    return max(errors) if np.all(np.isfinite(errors)) else np.inf


def _with_gradients(function):
    """(x, kernel) -> value, gradients of half its square: the cotangent is the value itself."""

    def values(x, kernel):
        y, pull = jax.vjp(function, x, kernel)
        return y, *pull(y)

    return values


def _window(
    lhs,
    rhs,
    window_strides,
    padding,
    lhs_dilation=None,
    rhs_dilation=None,
    dimension_numbers=None,
    feature_group_count=1,
    batch_group_count=1,
    precision=None,
    preferred_element_type=None,
    out_sharding=None,
) -> Window | None:
    """The window of a convolution that oneDNN takes, else None. Arguments as of `jax.lax.conv_general_dilated`."""
    plain = lhs.ndim == rhs.ndim == 4 and lhs.dtype == rhs.dtype == jnp.float32
    plain = plain and feature_group_count == batch_group_count == 1 and out_sharding is None
    plain = plain and preferred_element_type in (None, jnp.float32) and set(lhs_dilation or (1,)) == {1}
    if not plain or not all(isinstance(size, int) and size > 0 for size in (*lhs.shape, *rhs.shape)):
        return None
    if lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers) != lax.conv_dimension_numbers(
        lhs.shape, rhs.shape, NHWC
    ):
        return None
    strides, dilation = tuple(window_strides), tuple(rhs_dilation or (1, 1))
    spans = [_span(size, by) for size, by in zip(rhs.shape[:2], dilation, strict=True)]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], spans, strides, padding)
    padding = tuple((int(low), int(high)) for low, high in padding)
    for size, span, (low, high) in zip(lhs.shape[1:3], spans, padding, strict=True):
        if not (0 <= low < span and 0 <= high < span and size + low + high >= span):
            return None
    return Window(strides, padding, dilation) if lhs.shape[3] == rhs.shape[2] else None


def _span(size, dilation):
    """The pixels from the first to the last of `size` taps that are `dilation` apart."""
    return (size - 1) * dilation + 1


def _xla(x, kernel, *, window):
    return lax.conv_general_dilated(
        x, kernel, window.strides, window.padding, rhs_dilation=window.dilation, dimension_numbers=NHWC
    )


def _onednn(x, kernel, *, strides, padding, dilation):
    """The custom call: [B, ..., C], [..., C, F] -> [B, ..., F] with two or three spatial dimensions."""
    keep_out_of_cache()
    dims, spatial = x.ndim, list(range(1, x.ndim - 1))
    data = {"dims": dims, "data": {"batch_dim": 0, "feature_dim": dims - 1, "spatial_dims": spatial}}
    filters = {"input_feature_dim": dims - 2, "output_feature_dim": dims - 1, "shape": kernel.shape}
    window = {
        "size": kernel.shape[:-2],
        "pad_left": [low for low, _ in padding],
        "pad_right": [high for _, high in padding],
        "strides": strides,
        "window_dilations": dilation,
    }
    config = {
        "dims": dims,
        "input": data,
        "kernel": {"dims": dims, "filter": {**filters, "spatial_dims": list(range(dims - 2))}},
        "output": data,
        "window": window,
        "feature_groups": 1,
    }
    sizes = [
        (size + sum(pads) - _span(taps, by)) // stride + 1
        for size, pads, taps, by, stride in zip(
            x.shape[1:-1], padding, kernel.shape[:-2], dilation, strides, strict=True
        )
    ]
    kind = jax.typeof(x)  # under shard_map the result varies over the devices as x does
    out = jax.ShapeDtypeStruct(
        (x.shape[0], *sizes, kernel.shape[-1]),
        x.dtype,
        sharding=kind.sharding if kind.manual_axis_type.varying else None,
        manual_axis_type=kind.manual_axis_type,
    )
    call = jax.ffi.ffi_call(
        TARGET,
        out,
        custom_call_api_version=2,
        legacy_backend_config=json.dumps({"onednn_conv_config": config}),
        vmap_method="sequential",
    )
    return call(x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolution(window, x, kernel):
    return _onednn(x, kernel, **window._asdict())


def _forward(window, x, kernel):
    return _convolution(window, x, kernel), (x, kernel)


def _backward(window, saved, g):
    x, kernel = saved
    return _input_gradient(window, x.shape, g, kernel), _kernel_gradient(window, kernel.shape, g, x)


_convolution.defvjp(_forward, _backward)


def _with_gradient_of(slow: Callable) -> Callable:
    """Decorates a function (window, shape, a, b): its gradients are those of `slow`, the same function by XLA."""

    def decorate(fast):
        function = jax.custom_vjp(fast, nondiff_argnums=(0, 1))
        function.defvjp(
            lambda window, shape, a, b: (function(window, shape, a, b), (a, b)),
            lambda window, shape, saved, g: jax.vjp(functools.partial(slow, window, shape), *saved)[1](g),
        )
        return function

    return decorate


def _zeros(shape, *, like):
    """Zeros that vary over the same devices as `like`; a point at which to differentiate a linear function."""
    varying = tuple(jax.typeof(like).manual_axis_type.varying)
    zeros = jnp.zeros(shape, like.dtype)
    return lax.pcast(zeros, varying, to="varying") if varying else zeros


def _input_gradient_by_xla(window, shape, g, kernel):
    return jax.vjp(lambda x: _xla(x, kernel, window=window), _zeros(shape, like=g))[1](g)[0]


def _kernel_gradient_by_xla(window, shape, g, x):
    return jax.vjp(lambda kernel: _xla(x, kernel, window=window), _zeros(shape, like=g))[1](g)[0]


@_with_gradient_of(_input_gradient_by_xla)
def _input_gradient(window, shape, g, kernel):
    """At stride 1 a convolution of g with the flipped kernel; `shape` is the input's."""
    if window.strides != (1, 1):
        return _input_gradient_by_xla(window, shape, g, kernel)
    spans = [_span(size, by) for size, by in zip(kernel.shape[:2], window.dilation, strict=True)]
    padding = [(span - 1 - low, span - 1 - high) for span, (low, high) in zip(spans, window.padding, strict=True)]
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    return _onednn(g, turned, strides=(1, 1), padding=padding, dilation=window.dilation)


@_with_gradient_of(_kernel_gradient_by_xla)
def _kernel_gradient(window, shape, g, x):
    """dk[i, j, c, f] = sum over b, h, w of x[b, s h + d i, s w + d j, c] g[b, h, w, f]; `shape` is the kernel's.

    One 3-D convolution: the examples are its channels and g its kernel. The channels of x are its third dimension,
    along which the kernel does not move. oneDNN then multiplies matrices [C, B] x [B, F] and sums over h and w. That is
    fast if they are large and g stays in the cache, hence parts of the batch. The two transposes are explicit: as
    dimension numbers, oneDNN does them element by element.
    """
    maps, spans = g.shape[1:3], []
    padding = []
    for i in range(2):
        spans.append(_span(maps[i], window.strides[i]))
        low = window.padding[i][0]
        # What a stride leaves over at the end reduces the padding or is cut off.
        padding.append((low, _span(shape[i], window.dilation[i]) - 1 + spans[i] - x.shape[1 + i] - low))
    small = shape[2] * shape[3] < SMALL or len(x) < EXAMPLES
    if small or any(max(pads) >= span for pads, span in zip(padding, spans, strict=True)):
        return _kernel_gradient_by_xla(window, shape, g, x)
    height, width = (size + min(0, high) for size, (_, high) in zip(x.shape[1:3], padding, strict=True))
    padding = [(low, max(0, high)) for low, high in padding]

    def of(x, g):
        found = _onednn(
            x[:, :height, :width].transpose(1, 2, 3, 0)[None],
            g.transpose(1, 2, 0, 3)[:, :, None],
            strides=(*window.dilation, 1),
            padding=(*padding, (0, 0)),
            dilation=(*window.strides, 1),
        )
        return found[0]

    examples = min(len(x), max(EXAMPLES, CACHED // math.prod(g.shape[1:]) // EXAMPLES * EXAMPLES))
    whole = len(x) // examples * examples
    parts = [a[:whole].reshape(-1, examples, *a.shape[1:]) for a in (x, g)]
    total, _ = lax.scan(lambda total, part: (total + of(*part), None), _zeros(shape, like=g), parts)
    return total + of(x[whole:], g[whole:]) if whole < len(x) else total
