"""Evaluates what JAX traced in NumPy, in float64, one operation at a time: nothing is fused, and XLA has no part in it.

Enough operations for the gradients of the networks. The few that only move or choose values go to JAX, one at a time.
"""

import jax
import numpy as np


def evaluate(function, *args):
    """`function(*args)`, whose floats, in and out, are float64."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    flat = _run(closed.jaxpr, closed.consts, jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shape), flat)


def _run(jaxpr, consts, args):
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], map(_double, [*consts, *args]), strict=True))

    def read(atom):
        return _double(atom.val) if hasattr(atom, "val") else values[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        inner = next((value for value in equation.params.values() if hasattr(value, "eqns")), None)
        if inner is not None:
            inner = inner if hasattr(inner, "consts") else jax.extend.core.ClosedJaxpr(inner, ())
            outputs = _run(inner.jaxpr, inner.consts, inputs)
        elif equation.primitive.name in OPERATIONS:
            outputs = [OPERATIONS[equation.primitive.name](*inputs, **equation.params)]
        else:
            with jax.enable_x64(True):
                outputs = equation.primitive.bind(*inputs, **equation.params)
                outputs = outputs if equation.primitive.multiple_results else [outputs]
        values.update(zip(equation.outvars, map(_double, outputs), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _double(value):
    value = np.asarray(value)
    return value.astype(np.float64) if jax.dtypes.issubdtype(value.dtype, np.floating) else value


def _elementwise(function):
    return lambda *inputs, **params: function(*inputs)


def _broadcast(x, *, shape, broadcast_dimensions, **params):
    kept = [size if axis in broadcast_dimensions else 1 for axis, size in enumerate(shape)]
    for axis, size in zip(broadcast_dimensions, x.shape, strict=True):
        kept[axis] = size
    return np.broadcast_to(x.reshape(kept), shape)


def _convert(x, *, new_dtype, **params):
    return x.astype(np.float64 if jax.dtypes.issubdtype(new_dtype, np.floating) else new_dtype)


def _pad(x, value, *, padding_config):
    lows, highs, inside = zip(*padding_config, strict=True)
    spread = np.full([n + max(n - 1, 0) * zeros for n, zeros in zip(x.shape, inside, strict=True)], value)
    spread[tuple(slice(None, None, zeros + 1) for zeros in inside)] = x
    around = [(max(low, 0), max(high, 0)) for low, high in zip(lows, highs, strict=True)]
    padded = np.pad(spread, around, constant_values=value)
    ends = [n + min(high, 0) for n, high in zip(padded.shape, highs, strict=True)]
    return padded[tuple(slice(max(-low, 0), end) for low, end in zip(lows, ends, strict=True))]


def _slice(x, *, start_indices, limit_indices, strides):
    return x[tuple(map(slice, start_indices, limit_indices, strides or (1,) * x.ndim))]


def _dot(x, y, *, dimension_numbers, **params):
    (contract_x, contract_y), (batch_x, batch_y) = dimension_numbers
    axes_x, axes_y = list(range(x.ndim)), list(range(x.ndim, x.ndim + y.ndim))
    for i, j in zip((*contract_x, *batch_x), (*contract_y, *batch_y), strict=True):
        axes_y[j] = i
    kept = [*batch_x, *(axis for axis in axes_x if axis not in (*contract_x, *batch_x))]
    return np.einsum(x, axes_x, y, axes_y, [*kept, *(axis for axis in axes_y if axis >= x.ndim)], optimize=True)


def _convolve(x, kernel, *, feature_group_count, batch_group_count, **params):
    groups, numbers = max(feature_group_count, batch_group_count), params["dimension_numbers"]
    assert groups == feature_group_count * batch_group_count
    xs = np.split(x, groups, numbers.lhs_spec[1 if feature_group_count > 1 else 0])
    kernels = np.split(kernel, groups, numbers.rhs_spec[0])
    outputs = [_convolve_group(*pair, **params) for pair in zip(xs, kernels, strict=True)]
    return np.concatenate(outputs, numbers.out_spec[1])


def _convolve_group(x, kernel, *, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, **params):
    x, kernel = x.transpose(dimension_numbers.lhs_spec), kernel.transpose(dimension_numbers.rhs_spec)
    around = [(low, high, by - 1) for (low, high), by in zip(padding, lhs_dilation, strict=True)]
    x = _pad(x, 0.0, padding_config=[(0, 0, 0), (0, 0, 0), *around])  # [B, C, H, W]
    taps = kernel.shape[2:]  # of [F, C, h, w]
    spans = [(n - 1) * by + 1 for n, by in zip(taps, rhs_dilation, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x, spans, axis=tuple(range(2, x.ndim)))
    windows = windows[(..., *(slice(None, None, by) for by in rhs_dilation))]
    windows = windows[(slice(None), slice(None), *(slice(None, None, by) for by in window_strides))]
    inner = range(x.ndim, windows.ndim)
    out = np.tensordot(windows, kernel, ([1, *inner], range(1, kernel.ndim)))
    return np.moveaxis(out, -1, 1).transpose(np.argsort(dimension_numbers.out_spec))


OPERATIONS = {
    name: _elementwise(function)
    for name, function in {
        "add": np.add,
        "add_any": np.add,
        "and": np.logical_and,
        "copy": np.copy,
        "div": np.divide,
        "eq": np.equal,
        "exp": np.exp,
        "ge": np.greater_equal,
        "gt": np.greater,
        "log": np.log,
        "lt": np.less,
        "max": np.maximum,
        "min": np.minimum,
        "mul": np.multiply,
        "ne": np.not_equal,
        "neg": np.negative,
        "rsqrt": lambda x: x**-0.5,
        "select_n": lambda which, no, yes: np.where(which, yes, no),
        "sqrt": np.sqrt,
        "square": np.square,
        "sub": np.subtract,
    }.items()
} | {
    "broadcast_in_dim": _broadcast,
    "conv_general_dilated": _convolve,
    "convert_element_type": _convert,
    "dot_general": _dot,
    "integer_pow": lambda x, *, y: x**y,
    "pad": _pad,
    "reduce_max": lambda x, *, axes, **params: x.max(axis=tuple(axes)),
    "reduce_sum": lambda x, *, axes, **params: x.sum(axis=tuple(axes)),
    "reshape": lambda x, *, new_sizes, **params: x.reshape(new_sizes),
    "rev": lambda x, *, dimensions: np.flip(x, dimensions),
    "slice": _slice,
    "squeeze": lambda x, *, dimensions: x.squeeze(tuple(dimensions)),
    "transpose": lambda x, *, permutation: x.transpose(permutation),
}
