"""The state that a new run starts from: its own random weights, or those of others, with a new head or a fitted one."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jax
import ml_collections
import numpy as np

from linseed.trainer import checksum, files
from linseed.trainer.data import stats
from linseed.trainer.data.dataset import hashed
from linseed.trainer.data.splits import Split
from linseed.trainer.errors import ConfigError
from linseed.trainer.step import state as state_lib
from linseed.trainer.weights import features as features_lib
from linseed.trainer.weights import probe
from linseed.trainer.weights.find import Weights, find
from linseed.trainer.weights.fit import fit

_IN_TRAINING_ALONE = ("dropout", "drop_path")  # parameters of networks, without a part in features


def begin(
    config: ml_collections.ConfigDict,
    state: state_lib.TrainState,
    *,
    model,
    opt_init: Callable,
    features: Callable,
    train: Split,
    val: Split,
    statistics: dict[str, np.ndarray],
    card: Path,
    shared,
    say: Callable[[str], None],
) -> state_lib.TrainState:
    """`state`, host arrays, with the weights of `config.pretrained` and the head of `config.head_init`.

    model: whose variables `state` holds. opt_init: params -> optimiser state. features: of `make_features`. statistics:
    by which images are normalised. shared: an
    `experiment.Shared`, which keeps what was read and fitted. say: shows the user a line. card: the file in the workdir
    into which it writes where the weights come from. Raises DataError or ConfigError, one line, for weights that do not
    fit.
    """
    if config.pretrained:
        weights = shared.once("weights", [config.pretrained, config.model.name], lambda: _found(config, say))
        files.write(card, json.dumps(checksum.seal(weights.card.to_json())))
        fitted = fit(weights.tensors, _variables(state), model=model, name=config.pretrained)
        for note in [*fitted.notes, *_expectations(config, weights)]:
            say(note)
        state = state_lib.with_weights(state, fitted.leaves, opt_init=opt_init)
    if config.head_init == "probe":
        base, folder = _mark(config, state, statistics), card.parent.parent / features_lib.FOLDER
        head = _fitted_head(config, state, features, train, val, base=base, folder=folder, shared=shared, say=say)
        state = state_lib.with_weights(state, head, opt_init=opt_init)
    return state


def _found(config, say) -> Weights:
    weights = find(config.pretrained, architecture=config.model.name)
    card = weights.card
    licence = f", licence {card.licence}" if card.licence else ""
    say(f"starts from {card.name}: {card.architecture}, sha256 {card.sha256[:12]}{licence}")
    return weights


def _variables(state):
    return {"params": state.params, **state.model_state}


def _expectations(config, weights):
    """A line where the images are not normalised as the weights expect it."""
    wanted = weights.card.input
    given = tuple(config.data.mean), tuple(config.data.std)
    if not np.allclose(given[0] or (-1.0,), wanted.mean, atol=stats.TOLERANCE):
        yield (
            f"{config.pretrained} was trained with mean {wanted.mean} and std {wanted.std}, and this run normalises "
            f"otherwise; --config.data.normalize=pretrained does as it expects"
        )


def _fitted_head(config, state, features, train, val, *, base, folder, shared, say):
    head = state.params.get(features_lib.HEAD, {})
    if set(head) != {"kernel", "bias"} or head["kernel"].ndim != 2:
        raise ConfigError(
            f"config.head_init 'probe' fits a last layer 'head' with a bias, which {config.model.name} has not; "
            "choose another config.model.name"
        )
    weights = jax.device_put({"params": state.params, "model_state": state.model_state})
    compute = jax.jit(lambda images: features(weights, images))
    found, marks = [], []
    for name, split in (("train", train), ("val", val)):
        mark = hashed(base, stats.fingerprint(split))
        some, kept = shared.once(
            "features",
            mark,
            lambda split=split, mark=mark: features_lib.of_split(
                split, compute, batch_size=config.eval.batch_size, mark=mark, folder=folder
            ),
        )
        say(
            f"features of {len(some.labels):,} {name} images, {some.values.shape[1]:,} each: "
            + (f"read from {folder}" if kept else f"computed, kept in {folder}")
        )
        found.append(some)
        marks.append(mark)
    classes = head["kernel"].shape[1]
    best = shared.once("probe", [marks, classes], lambda: probe.fit(*found, classes=classes))
    say(f"probe: val {best.accuracy:.2%}, decay {best.decay:g} of {len(probe.DECAYS)}")
    return {"params/head/kernel": best.kernel, "params/head/bias": best.bias}


def _mark(config, state, statistics) -> str:
    """A hash of all that features depend on but the images: the network, its weights below the head, normalisation."""
    network = {key: value for key, value in config.model.items() if key not in _IN_TRAINING_ALONE}
    made = [network, config.precision, {key: values.tolist() for key, values in statistics.items()}]
    digest = hashlib.sha256(json.dumps(made).encode())
    backbone = {"params": {**state.params, features_lib.HEAD: {}}, **state.model_state}
    for path, leaf in jax.tree_util.tree_leaves_with_path(backbone):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()
