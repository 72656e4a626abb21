"""Steps 1 to 3 of the seven: the untrained network, whether it can learn at all, and the learning rate."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from linseed.trainer.experiment import Experiment
from linseed.trainer.optim.rules import paths
from linseed.trainer.tuning.diagnosis.curve import HARDLY_MOVED, SIGMAS, Accuracy, CleanPass
from linseed.trainer.tuning.diagnosis.findings import Finding
from linseed.trainer.tuning.diagnosis.signs_in_clean_pass import evaluated_otherwise, is_worse, labels_that_do_not_fit
from linseed.trainer.tuning.trials import Outcome

# An untrained network has the loss of zero logits, or a little more for its random logits: up to 1.3 times, measured.
LOSS_RATIO = 2.0
# What the first layer is given: the most that the mean may be, and the least and the most of the deviation. Normalised
# pixels have mean 0 and deviation 1, and up to twice that with the statistics of other photos; normalised twice their
# deviation is that of pixels in 0..1 to the power -1, at least 2. Only scaled to 0..1 they have 0.5 and 0.3.
NORMALISED, SCALED = (2.0, 0.5, 2.0), (10.0, 0.02, 10.0)
CLEAR_DROP = 0.1  # of the loss at chance, within a hundred steps
NEAR_BEST = 0.95  # of the best drop: rates above this count as equal, and the largest is chosen
FAR_BELOW = 0.2  # in accuracy
PAIRED = "look at images with their labels, and check how these are paired"
# What may keep all rates from learning what a small sample taught without it: the words, and the remedy.
HINDRANCES = {
    "augmentation": ("augmentation", "--config.data.augment= with fewer or weaker operations"),
    "decay_too_high": ("the regulariser", "a smaller --config.regularizer.strength, or --config.regularizer.name=none"),
}
DEAD_SHARE = 0.5  # of a layer's units; ReLU layers have a few dead ones by chance
FOLLOW_THE_NORM = ("sgd", "momentum", "nesterov", "sam", "lookahead")  # the others rescale the gradient
CLIPPED = 1 / 30  # of the gradient's norm at the start, which falls later; less is left of a normal clipping
SUM_ERROR = 0.01  # of the sum of a row of probabilities; bfloat16 rounds to 1/256 of a number


def probe(experiment: Experiment) -> dict[str, Any]:
    """Measures the first train batch with `make_probe_step`; returns host values, and three more.

    `params` are the weights that a run starts from. `awake_grads` are the gradients with no scale or kernel at zero.
    Residual branches and last layers may start at zero on purpose: for one step no gradient reaches the layers below,
    yet these are not dead. `loud_logits` are the least and the largest logit if all these weights are a hundred times
    as large.
    """
    parallel, state = experiment.parallel, experiment.begin(lambda line: None)
    batch = parallel.shard(experiment.feed.batch(0))

    def measure(params):
        return jax.device_get(experiment.probe_step(parallel.replicate(state.replace(params=params)), batch))

    awake = _awake(state.params)
    loud = measure(jax.tree.map(lambda leaf: np.asarray(100 * leaf, leaf.dtype), awake))
    return {
        **measure(state.params),
        "params": state.params,
        "awake_grads": measure(awake)["grads"],
        "loud_logits": (float(loud["logit_min"]), float(loud["logit_max"])),
    }


def _awake(params):
    """`params` with small random numbers in the leaves that are all zero, except biases."""
    rng = np.random.default_rng(0)
    leaves, tree = jax.tree.flatten(params)
    asleep = [not np.any(leaf) and not name.endswith("bias") for name, leaf in zip(paths(params), leaves, strict=True)]
    draws = [np.asarray(0.1 * rng.standard_normal(leaf.shape), leaf.dtype) for leaf in leaves]
    return tree.unflatten([draw if zero else leaf for draw, leaf, zero in zip(draws, leaves, asleep, strict=True)])


def initial_loss(
    measured: Mapping[str, Any], params, *, config: Mapping[str, Any], steps: int
) -> tuple[list[Finding], dict[str, float]]:
    """Step 1: compares the loss at initialisation with the loss of zero logits, and looks for causes.

    measured: from `probe`. params: host arrays. config: the run's, of `steps` steps. Returns the findings, the
    likeliest first, and the numbers.
    """
    loss, expected = float(measured["loss"]), float(measured["zero_loss"])
    numbers = {
        "initial loss": loss,
        "expected": expected,
        "with the regulariser": loss + float(measured["penalty"]),
        "input mean": float(measured["input_mean"]),
        "input deviation": float(measured["input_std"]),
    }
    # A wrong input scale makes the loss large too: the first cause is the one to fix first.
    findings = [
        *_inputs(numbers, config),
        *_logits(measured),
        *_weights(measured, params),
        *_clipping(measured, params, config["optimizer"], steps=steps),
    ]
    # If the loss is not finite, the gradient tells nothing.
    if not math.isfinite(loss):
        findings = _inputs(numbers, config)
    # Weights of others, or a head that is fitted already, know the classes.
    least = 0.0 if config.get("pretrained") or config.get("head_init") == "probe" else expected / LOSS_RATIO
    if not findings and not least <= loss <= expected * LOSS_RATIO:
        findings.append(
            Finding(
                "bad_init",
                f"the loss at initialisation is {loss:.3g}; equal scores for all classes give {expected:.3g}",
                "set --config.model.kernel_init=auto, add normalisation, or check the last layer's initial scale",
            )
        )
    return findings, numbers


def _inputs(numbers, config):
    mean, std = numbers["input mean"], numbers["input deviation"]
    normalises = config["data"]["normalize"] == "channel_mean_std"
    most, low, high = NORMALISED if normalises else SCALED
    if low <= std <= high and abs(mean) <= most:
        return []
    said = f"the pixels that the first layer is given have mean {mean:.3g} and deviation {std:.3g}, not about 0 and 1"
    remedy = "--config.data.normalize=channel_mean_std with --config.data.mean=() --config.data.std=()"
    if normalises and not len(config["data"]["std"]):
        remedy = "normalise in one place: take it out of the network, or set --config.data.normalize=none"
    return [Finding("input_scale", said, remedy)]


def _logits(measured):
    low, high = measured["loud_logits"]
    if not (-1 <= low and low + 0.1 < high <= 1):  # dead units give one value
        return []
    error = float(measured["logit_sum_error"])
    said = f"with weights a hundred times as large, the network's outputs still lie in {low:.3f} to {high:.3f}"
    said += f"; each row sums to 1 within {error:.0e}" if error < SUM_ERROR else ""
    return [Finding("double_softmax", said, "return the logits, before the softmax: the loss applies it")]


def _weights(measured, params):
    trees = (params, measured["grads"], measured["awake_grads"])
    leaves = zip(paths(params), *map(jax.tree.leaves, trees), strict=True)
    kernels = [leaf for leaf in leaves if leaf[1].ndim > 1]
    zero = [name for name, weight, grad, _ in kernels if not np.any(weight) and not np.any(grad)]
    if zero:
        said = f"{zero[0]} is all zeros and so is its gradient ({len(zero)} of {len(kernels)} kernels)"
        return [Finding("zero_weights", said, "initialise at random: --config.model.kernel_init=auto")]
    shares = {name: 1 - np.mean(np.any(grad, axis=tuple(range(grad.ndim - 1)))) for name, _, _, grad in kernels}
    worst = max(shares, key=shares.get, default=None)
    if worst is None or shares[worst] <= DEAD_SHARE:
        return []
    said = f"{shares[worst]:.0%} of the units of {worst} get no gradient from a whole batch"
    remedy = "check biases and initial scale, lower the rate, or set --config.model.activation=leaky_relu"
    return [Finding("dead_units", said, remedy)]


def _clipping(measured, params, optimizer, *, steps):
    """Clipped updates at the peak rate, for the whole run and all one way, hardly move the weights."""
    clip_norm, gradient, weights = optimizer["clip_norm"], _norm(measured["grads"]), _norm(params)
    clips = optimizer["name"] in FOLLOW_THE_NORM and optimizer["clip"] == "global_norm"
    if not clips or not 0 < clip_norm < CLIPPED * gradient:
        return []
    path = steps * optimizer["lr"] * clip_norm / (1 - optimizer.get("momentum", 0.0)) / max(weights, 1e-30)
    if path > HARDLY_MOVED:
        return []
    said = f"the gradient, of norm {gradient:.3g}, is clipped to {clip_norm:g}: {steps} steps together can move the "
    said += f"weights by {path:.2g} of their norm"
    return [Finding("clip_too_low", said, f"--config.optimizer.clip_norm={gradient:.1g}")]


def _norm(tree):
    return math.sqrt(sum(float(np.sum(np.square(leaf, dtype=np.float64))) for leaf in jax.tree.leaves(tree)))


def overfit(tries: Mapping[float, Outcome], *, own_lr: float, num_classes: int) -> list[Finding]:
    """Step 2: the findings from the rates that reach 100 % train accuracy on the small sample, and those that do not.

    tries: rate -> outcome. own_lr: the config's rate, one of `tries`.
    """
    fits = [rate for rate, outcome in tries.items() if outcome.learned]
    if own_lr in fits:
        return []
    own = tries[own_lr]
    said = own.failed or f"train accuracy on the sample ends at {own.best_train_accuracy:.0%}"
    if fits:
        rate = min(fits, key=lambda fit: abs(math.log(fit / own_lr)))
        cause = "lr_too_high" if rate < own_lr else "lr_too_low"
        return [Finding(cause, f"at lr {own_lr:g} {said}; lr {rate:g} memorises it", f"--config.optimizer.lr={rate:g}")]
    best = max(tries, key=lambda rate: -1 if tries[rate].failed else tries[rate].best_train_accuracy)
    reached = tries[best].best_train_accuracy
    all_said = f"no rate of {', '.join(f'{rate:g}' for rate in sorted(tries))} memorises the sample; the best, "
    if math.isnan(reached):
        remedy = "check the initial scale, the normalisation of the data and config.optimizer.clip_norm"
        return [Finding("bad_init", f"at every rate {said}", remedy)]
    all_said += f"{best:g}, reaches {reached:.0%}"
    if _knows(reached, num_classes=num_classes):
        return [Finding("too_small", all_said, "a wider or deeper network")]
    cure = "set --config.model.kernel_init=auto, add normalisation, or choose another activation"
    return [Finding("bad_init", all_said, cure)]


def _knows(accuracy: float, *, num_classes: int) -> bool:
    """Whether `accuracy` on a few batches is clearly above chance: twice chance, or halfway from chance to 1."""
    return accuracy > min(2 / num_classes, (1 + 1 / num_classes) / 2)


def choose_rate(outcomes: Mapping[float, Outcome], *, start: float) -> tuple[float | None, dict[float, float]]:
    """Step 3: the largest rate with a clear drop, or None, and each rate's drop over `start`, the loss at chance."""
    drops = {rate: _drop(outcome, start) for rate, outcome in outcomes.items() if not outcome.failed}
    best = max(drops.values(), default=0.0)
    if best < CLEAR_DROP:
        return None, drops
    return max(rate for rate, drop in drops.items() if drop >= NEAR_BEST * best), drops


def _drop(outcome, start):
    """How far the loss fell. Augmentation, mixing and dropout raise only the train loss, so the lower loss counts."""
    return 1 - np.fmin(outcome.train_loss, outcome.val_loss) / start


def learning(
    outcomes: Mapping[float, Outcome],
    *,
    own_lr: float,
    chosen: float | None,
    start: float,
    without: Mapping[str, Outcome],
    overfits: bool,
    clean: CleanPass | None,
    num_classes: int,
) -> list[Finding]:
    """The findings of step 3 on the config, whose rate `own_lr` is one of `outcomes`.

    without: if no rate learned, outcomes without what hinders learning, by its cause. overfits: whether step 2
    memorised its sample. clean: of the trial of the chosen rate.
    """
    if chosen is None:
        return _no_rate(outcomes, start=start, without=without, overfits=overfits, num_classes=num_classes)
    found = _splits(outcomes[chosen], clean, num_classes=num_classes)
    return found or _own_rate(outcomes, own_lr=own_lr, chosen=chosen, start=start)


def _own_rate(outcomes, *, own_lr, chosen, start):
    _, drops = choose_rate(outcomes, start=start)
    best, own = max(drops.values()), drops.get(own_lr)
    remedy = f"--config.optimizer.lr={chosen:g}"
    if own is None and own_lr > chosen:
        return [Finding("lr_too_high", f"at lr {own_lr:g} {outcomes[own_lr].failed}; lr {chosen:g} is stable", remedy)]
    if own is None or own >= best / 3:
        return []
    cause = "lr_too_high" if own_lr > chosen else "lr_too_low"
    said = f"at lr {own_lr:g} the loss falls by {own:z.0%}, at lr {chosen:g} by {drops[chosen]:z.0%}"
    return [Finding(cause, said, remedy)]


def _no_rate(outcomes, *, start, without, overfits, num_classes):
    tried = ", ".join(f"{rate:g}" for rate in sorted(outcomes))
    sound = [outcome for outcome in outcomes.values() if not outcome.failed]
    losses = [outcome.train_loss for outcome in sound]
    said = (
        f"at lr {tried} the loss does not fall below {min(losses, default=math.inf):.3g}; at chance it is {start:.3g}"
    )
    if not overfits:
        return []  # step 2 has named the cause
    for cause, outcome in without.items():
        if not outcome.failed and _drop(outcome, start) > CLEAR_DROP:
            what, remedy = HINDRANCES[cause]
            said += f"; without {what} it falls to {np.fmin(outcome.train_loss, outcome.val_loss):.3g}"
            return [Finding(cause, said, remedy)]
    val = [Accuracy(outcome.val_accuracy, outcome.val_examples) for outcome in sound]
    best = max(val, key=lambda accuracy: accuracy.right, default=None)
    if best and best.beats_chance(classes=num_classes):  # shuffled labels cannot be predicted, only memorised
        said += f", though {best.right:.0%} of validation is right: the logits are far too large"
        return [Finding("bad_init", said, "set --config.model.kernel_init=auto or add normalisation")]
    said += ", with or without augmentation, yet the network memorises a few batches"
    return [Finding("shuffled_labels", said, PAIRED)]


def _splits(outcome, clean, *, num_classes):
    """Compares what a trial knows of its train images, of those it left out, and of validation.

    To a network, train images that were left out are as new as validation is.
    """
    if not clean:
        return []
    trained, evaluated = Accuracy(outcome.train_accuracy, clean.latest_train.examples), clean.latest_train
    unseen, val = clean.latest_unseen or evaluated, clean.latest_val
    said = f"after {outcome.steps} steps accuracy is {trained.right:.0%} on train batches, {unseen.right:.0%} on other "
    said += f"train images and {val.right:.0%} on validation (chance {1 / num_classes:.0%})"
    if _far_below(evaluated, trained):
        return [evaluated_otherwise(f"{said}; in evaluation mode it is {evaluated.right:.0%} on train too")]
    if _far_below(val, unseen):
        return [Finding("val_distribution", said, "compare images and labels of validation with those of train")]
    if evaluated.beats_chance(classes=num_classes) and _at_chance(unseen, val, num_classes=num_classes):
        return [Finding("shuffled_labels", f"{said}: it memorises", PAIRED)]
    return list(labels_that_do_not_fit(clean))


def _at_chance(*accuracies, num_classes):
    """Whether the accuracies together are surely near chance; of few images none is."""
    examples = sum(accuracy.examples for accuracy in accuracies)
    pooled = Accuracy(sum(accuracy.right * accuracy.examples for accuracy in accuracies) / examples, examples)
    return not _knows(pooled.right + SIGMAS * pooled.error, num_classes=num_classes)


def _far_below(accuracy, other):
    return accuracy.right < other.right / 2 and is_worse(accuracy, other, by=FAR_BELOW)


def decay(own: Outcome, small: Outcome, *, decay: float, start: float) -> list[Finding]:
    """A finding if the loss falls less than half as far with the config's decay as with a small one."""
    own_drop, small_drop = (0.0 if outcome.failed else _drop(outcome, start) for outcome in (own, small))
    if own_drop > small_drop / 2:
        return []
    said = f"with decay {decay:g} the loss falls by {own_drop:z.0%}, with almost no decay by {small_drop:z.0%}"
    return [Finding("decay_too_high", own.failed or said, "--config.optimizer.weight_decay=0.0001")]
