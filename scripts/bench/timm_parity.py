"""Our networks against timm's on the same random weights: logits, and gradients in training, see `timm_reference`.

    python -m scripts.bench.timm_parity FOLDER/*.npz

Prints a JSON line for each file. `logits` is the largest error over the spread (standard deviation) of the logits, in
float32 in evaluation; `gradient` the largest error of a parameter's gradient over that gradient's largest value, in
float64 in training mode.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from linseed.models import MODELS, names
from linseed.models.layers import Compute
from linseed.trainer.runtime.onednn import CONVOLUTIONS

IGNORED = ("num_batches_tracked",)  # tensors of PyTorch that hold no weights


def compare(name: str, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The errors of the network `name`; arrays: those of `timm_reference.reference`."""
    given = {key.removeprefix("weights/"): arrays[key] for key in arrays if key.startswith("weights/")}
    given = {key: values for key, values in given.items() if not key.endswith(IGNORED)}
    images = arrays["images"].transpose(0, 2, 3, 1)
    model = _model(name, jnp.float32, classes=arrays["logits"].shape[1])
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images[:1], train=False))
    flat = flax.traverse_util.flatten_dict(shapes, sep="/")
    theirs = {path: names.torch_name(path.partition("/")[2], model.torch_names) for path in flat}
    unknown, unused = set(theirs.values()) - set(given), set(given) - set(theirs.values())
    if unknown or unused or len(set(theirs.values())) < len(theirs):
        return {"name": name, "not_in_timm": sorted(unknown)[:5], "not_in_ours": sorted(unused)[:5]}
    loaded = {path: names.from_torch(path, given[theirs[path]]) for path in flat}
    wrong = [path for path in flat if loaded[path].shape != flat[path].shape]
    if wrong:
        return {"name": name, "shapes": [(path, loaded[path].shape, flat[path].shape) for path in wrong[:5]]}
    variables = flax.traverse_util.unflatten_dict(loaded, sep="/")
    logits = jax.jit(lambda variables, images: model.apply(variables, images, train=False))(variables, images)
    found = {
        "name": name,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        "parameters_of_timm": int(arrays["parameters"]),
        "logits": float(np.abs(logits - arrays["logits"]).max() / arrays["logits"].std()),
    }
    if "signs" in arrays:
        with jax.enable_x64(True):
            found["gradient"] = _gradient_error(name, variables, images, theirs, arrays)
    return found


def _model(name, dtype, *, classes):
    compute = Compute(dtype, axis_name=None, convolution=CONVOLUTIONS["auto"])
    return MODELS[name](num_classes=classes, compute=compute)


def _gradient_error(name, variables, images, theirs, arrays):
    model = _model(name, jnp.float64, classes=arrays["logits"].shape[1])
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    params, state = variables.pop("params"), variables

    @jax.jit
    def gradient(params):
        def score(params):
            logits, _ = model.apply(
                {"params": params, **state},
                images.astype(np.float64),
                train=True,
                mutable=list(state),
                rngs={"dropout": jax.random.key(0)},
            )
            return jnp.sum(logits * arrays["signs"])

        return jax.grad(score)(params)

    # A gradient that is zero but for rounding, as a bias has before BatchNorm, is compared with the largest of all.
    least = 1e-6 * max(np.abs(arrays[key]).max() for key in arrays if key.startswith("gradient/"))
    errors = []
    for path, ours in flax.traverse_util.flatten_dict(gradient(params), sep="/").items():
        right = arrays.get(f"gradient/{theirs[f'params/{path}']}")
        if right is not None:
            error = np.abs(names.to_torch(path, np.asarray(ours)) - right).max()
            errors.append(error / max(np.abs(right).max(), least))
    return float(max(errors))


def main():
    for file in sys.argv[1:]:
        with np.load(file) as arrays:
            print(json.dumps(compare(Path(file).stem, dict(arrays))), flush=True)


if __name__ == "__main__":
    main()
