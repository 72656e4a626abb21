"""Maxima whose gradient goes by place, whatever XLA makes of them."""

import jax
import jax.numpy as jnp


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Max over disjoint 2x2 windows: [B, H, W, C] -> [B, H // 2, W // 2, C]; an odd last row or column is dropped.

    Equal to `nn.max_pool(x, (2, 2), (2, 2))`. Written as elementwise maxima because the gradient of a windowed
    maximum (select-and-scatter) is slow on CPU. Where entries tie, the first gets the gradient.
    Raises ValueError for images under 2x2.
    """
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    if not height or not width:
        raise ValueError(f"cannot halve a feature map of {x.shape[1]}x{x.shape[2]}: give fewer widths or larger images")
    top, bottom = x[:, 0:height:2, :width], x[:, 1:height:2, :width]
    rows = maximum(top, bottom)
    return maximum(rows[:, :, 0::2], rows[:, :, 1::2])


def global_max_pool(x: jax.Array) -> jax.Array:
    """The largest value of each channel: [B, H, W, C] -> [B, C]. Where places tie, the first gets the gradient."""
    places = x.reshape(x.shape[0], -1, x.shape[-1])
    index = jnp.argmax(places, axis=1, keepdims=True)
    return jnp.sum(places, axis=1, where=jax.lax.broadcasted_iota(index.dtype, places.shape, 1) == index)


def maximum(x: jax.Array, y: jax.Array) -> jax.Array:
    """The larger of x and y, elementwise; NaN where one is. Where they tie, x gets the gradient.

    The gradient of `jnp.maximum` and `jnp.max` goes where a value equals the maximum. XLA may compute a value anew for
    that, with another rounding, and the gradient is lost: half of it in some layers of speednet.
    """
    return jnp.where((x >= y) | jnp.isnan(x), x, y)
