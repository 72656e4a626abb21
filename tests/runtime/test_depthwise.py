"""Depthwise convolutions by shifts against XLA's, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseed.trainer.runtime import depthwise, onednn

NHWC = ("NHWC", "HWIO", "NHWC")


def arrays(size, channels, kernel):
    rng = np.random.default_rng(0)
    shapes = (2, size, size + 1, channels), (kernel, kernel, 1, channels)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


@pytest.mark.parametrize("padding", ["SAME", "VALID", [(1, 1), (1, 1)], [(2, 0), (0, 3)]])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 3)])
@pytest.mark.parametrize("kernel", [1, 3, 4])
def test_values_and_gradients_are_those_of_xla(kernel, strides, padding):
    x, weights = arrays(9, 5, kernel)
    how = dict(dimension_numbers=NHWC, feature_group_count=5)
    assert depthwise.takes(x, weights, strides, padding, **how)

    def ours(x, weights):
        return depthwise.by_shifts(x, weights, strides, padding)

    def theirs(x, weights):
        return jax.lax.conv_general_dilated(x, weights, strides, padding, **how)

    y, pull = jax.vjp(ours, x, weights)
    wanted, wanted_pull = jax.vjp(theirs, x, weights)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)
    for got, right in zip(pull(jnp.cos(y)), wanted_pull(jnp.cos(wanted)), strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "other",
    [
        dict(feature_group_count=1),
        dict(feature_group_count=5, rhs_dilation=(2, 2)),
        dict(feature_group_count=5, lhs_dilation=(2, 2)),
        dict(feature_group_count=5, dimension_numbers=("NCHW", "HWIO", "NHWC")),
        dict(feature_group_count=5, preferred_element_type=jnp.float64),
    ],
)
def test_other_convolutions_are_left_to_xla(other):
    x, weights = arrays(9, 5, 3)
    if other.get("feature_group_count") == 1:
        weights = jnp.zeros((3, 3, 5, 7))
    assert not depthwise.takes(x, weights, (1, 1), "SAME", **{"dimension_numbers": NHWC, **other})
    assert not depthwise.takes(x, jnp.zeros((3, 3, 1, 10)), (1, 1), "SAME", dimension_numbers=NHWC)  # two a channel
    assert not depthwise.takes(x, jnp.zeros((15, 15, 1, 5)), (1, 1), "SAME", dimension_numbers=NHWC)


def test_auto_takes_it_on_cpu(monkeypatch):
    x, weights = arrays(9, 5, 3)
    seen = []
    monkeypatch.setattr(depthwise, "by_shifts", lambda *arguments: seen.append(arguments) or x)
    onednn.auto(x, weights, (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=5)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    onednn.auto(x, weights, (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=5)
    assert len(seen) == 1
