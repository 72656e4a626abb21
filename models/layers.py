"""What the families share: initialisers, batch normalisation, a pooling op, the lookup of a name in a table."""

import difflib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# He et al. 2015, "Delving deep into rectifiers", eq. 10: variance 2 / fan_in, which ReLU layers hand on unchanged.
kaiming = nn.initializers.kaiming_normal()


def batch_norm(
    *,
    train: bool,
    axis_name: str | None,
    dtype: jnp.dtype,
    name: str,
    momentum: float = 0.9,
    use_scale: bool = True,
    scale_init: nn.initializers.Initializer = nn.initializers.ones,
) -> nn.BatchNorm:
    """Batch normalisation over all but the last axis (Ioffe and Szegedy 2015).

    In training the statistics are those of the batch, averaged over `axis_name` where one is given, and the running
    averages become `momentum * old + (1 - momentum) * new`; otherwise the running averages are used. Parameters,
    statistics and their reductions are float32 whatever `dtype` is.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        axis_name=axis_name,
        momentum=momentum,
        epsilon=1e-5,
        dtype=dtype,
        use_scale=use_scale,
        scale_init=scale_init,
        name=name,
    )


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Max over disjoint 2x2 windows: [B, H, W, C] -> [B, H // 2, W // 2, C]; an odd last row or column is dropped.

    Equal to `nn.max_pool(x, (2, 2), (2, 2))`. Written as elementwise maxima because the gradient of a windowed
    maximum (select-and-scatter) is slow on CPU. Where two entries tie, each gets half of the gradient.
    Raises ValueError for images under 2x2.
    """
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    if not height or not width:
        raise ValueError(f"cannot halve a feature map of {x.shape[1]}x{x.shape[2]}: give fewer widths or larger images")
    top, bottom = x[:, 0:height:2, :width], x[:, 1:height:2, :width]
    rows = jnp.maximum(top, bottom)
    return jnp.maximum(rows[:, :, 0::2], rows[:, :, 1::2])


def lookup(kind: str, name: str, table: Mapping[str, Any]) -> Any:
    """`table[name]`; a ValueError names the nearest known name, then all of them."""
    if name in table:
        return table[name]
    near = difflib.get_close_matches(str(name), table, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise ValueError(f"unknown {kind} '{name}'; {hint}known: {', '.join(sorted(table))}")
