"""Refuses to train a normalisation whose statistics are those of a single value.

The mean of one value is the value, and its deviation is 0: the output no longer depends on the input, and nothing below
learns. PyTorch refuses it too ("Expected more than 1 value per channel when training").
"""

import math

import flax.linen as nn
import jax

from linseed.trainer.errors import ConfigError

_KINDS = (nn.BatchNorm, nn.GroupNorm, nn.InstanceNorm, nn.LayerNorm, nn.RMSNorm)


def checked():
    """A context in which a module of Flax that normalises over a single value raises ConfigError when it is called.

    It looks at shapes alone, so it costs nothing in a compiled step. A normalisation that is no module of Flax, nor a
    subclass of one, is not seen.
    """
    return nn.intercept_methods(_refuse_a_single_value)


def values(module: nn.Module, x: jax.Array) -> int:
    """The number of values behind each statistic of `module`, a normalisation of Flax, for the input x [B, ..., C].

    It counts those of all devices where the statistics are averaged over them, and is called within their axis.
    """
    dimensions = set(range(x.ndim))
    match module:
        case nn.BatchNorm():
            reduced = dimensions - _axes(module.axis, x)
        case nn.InstanceNorm():
            reduced = dimensions - {0} - _axes(module.feature_axes, x)
        case nn.GroupNorm():
            reduced = dimensions - {0} if module.reduction_axes is None else _axes(module.reduction_axes, x)
        case _:
            reduced = _axes(module.reduction_axes, x)
    count = math.prod(x.shape[axis] for axis in reduced)
    if isinstance(module, nn.GroupNorm):
        count //= module.num_groups or x.shape[-1] // module.group_size
    if module.axis_name is None:
        return count
    groups = module.axis_index_groups
    return count * (len(groups[0]) if groups else jax.lax.psum(1, module.axis_name))


def _axes(axes, x):
    return {axis % x.ndim for axis in ((axes,) if isinstance(axes, int) else axes)}


def _refuse_a_single_value(call, args, kwargs, context):
    module = context.module
    if isinstance(module, _KINDS) and context.method_name == "__call__" and not _is_frozen(module, *args, **kwargs):
        x = args[0] if args else kwargs["x"]
        if values(module, x) == 1:
            raise ConfigError(_cure(module, x))
    return call(*args, **kwargs)


def _is_frozen(module, x=None, use_running_average=None, **_):
    """Whether it is a BatchNorm that uses its running averages, also in training."""
    return isinstance(module, nn.BatchNorm) and nn.merge_param(
        "use_running_average", module.use_running_average, use_running_average
    )


def _cure(module, x):
    where = f"{'/'.join(module.path)} ({type(module).__name__}) normalises over a single value, so that it cannot learn"
    if isinstance(module, nn.BatchNorm):
        return (
            f"{where}; raise config.data.batch_size to 8 or more times config.accumulation_parts, or choose a model "
            "or a config.model.normalization other than batch"
        )
    return (
        f"{where}: an example has the shape {'x'.join(map(str, x.shape[1:]))} there; make that layer wider, take "
        "larger images, or choose another config.model.normalization"
    )
