"""Steps 1 to 3 of the seven: what the first loss, a small sample and a few rates say of a config."""

import types
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseed.models.layers import Compute
from linseed.models.linear import Linear
from linseed.models.mlp import Mlp
from linseed.trainer.optim.regularizers import make_regularizer
from linseed.trainer.runtime.data_parallel import AXIS, DataParallel
from linseed.trainer.step import losses
from linseed.trainer.step import state as state_lib
from linseed.trainer.step.probe_step import make_probe_step
from linseed.trainer.tuning import checks
from linseed.trainer.tuning.diagnosis.curve import Accuracy, CleanPass
from linseed.trainer.tuning.diagnosis.findings import CAUSES
from linseed.trainer.tuning.trials import Outcome

CLASSES = 5
RULES = ("rest:",)
CHANCE = {"softmax": np.log(CLASSES), "svm": CLASSES - 1, "sigmoid": CLASSES * np.log(2)}
COMPUTE = Compute(jnp.float32, axis_name=AXIS, convolution=jax.lax.conv_general_dilated)


class Changed:
    """A model whose initial parameters, or whose logits, are changed."""

    def __init__(self, model, *, params=lambda params: params, logits=lambda logits: logits):
        self.model, self.params, self.logits = model, params, logits

    def init(self, *args, **kwargs):
        return {"params": self.params(self.model.init(*args, **kwargs)["params"])}

    def apply(self, *args, **kwargs):
        logits, state = self.model.apply(*args, **kwargs)
        return self.logits(logits), state


def mlp(**changes):
    return Changed(Mlp(widths=(16, 16), num_classes=CLASSES, compute=COMPUTE), **changes)


def kernels(change):
    return lambda params: jax.tree.map(lambda leaf: change(leaf) if leaf.ndim > 1 else leaf, params)


def measure(model, *, loss="softmax", regularizer="none", normalize=lambda images: (images - 0.5) / 0.29, **strength):
    """The probe of one batch of noise, and the parameters it was taken at."""
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (64, 4, 4, 1), dtype=np.uint8),
        "label": rng.integers(0, CLASSES, 64, dtype=np.int32),
        "mask": np.ones(64, np.float32),
    }
    parallel = DataParallel("pmap", devices=jax.devices()[:1])
    params = model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)), train=False)["params"]
    state = state_lib.TrainState(
        step=np.int32(0),
        params=params,
        model_state={},
        opt_state=(),
        rng=jax.random.key_data(jax.random.key(1)),
        ema={},
    )
    probe = make_probe_step(
        model=model,
        loss=losses.make_loss(loss, label_smoothing=0.0),
        regularizer=make_regularizer(regularizer, rules=RULES, **strength),
        normalize=normalize,
    )
    experiment = types.SimpleNamespace(
        parallel=parallel,
        state=jax.device_get(state),
        begin=lambda tell: jax.device_get(state),
        feed=types.SimpleNamespace(batch=lambda step: batch),
        probe_step=parallel.compile(probe, donate=False),
    )
    return checks.probe(experiment), experiment.state.params


CONFIG = {
    "data": {"normalize": "channel_mean_std", "std": ()},
    "optimizer": {"name": "momentum", "lr": 0.1, "momentum": 0.9, "clip": "global_norm", "clip_norm": 1.0},
}


def step_1(measured, params, *, normalize="channel_mean_std", steps=500, **optimizer):
    config = {"data": CONFIG["data"] | {"normalize": normalize}, "optimizer": CONFIG["optimizer"] | optimizer}
    return checks.initial_loss(measured, params, config=config, steps=steps)


def causes(findings):
    assert all(finding.cause in CAUSES and finding.evidence and finding.remedy for finding in findings)
    return [finding.cause for finding in findings]


def initial_causes(model, **kwargs):
    return causes(step_1(*measure(model, **kwargs))[0])


# Step 1.


@pytest.mark.parametrize("loss", sorted(CHANCE))
def test_scores_of_zero_have_the_loss_of_a_guess(loss):
    """log C for the softmax, C - 1 for the SVM, C log 2 for sigmoids; a linear classifier starts at zero scores."""
    linear = Linear(num_classes=CLASSES, compute=COMPUTE)
    findings, numbers = step_1(*measure(linear, loss=loss))
    assert numbers["initial loss"] == pytest.approx(CHANCE[loss], rel=1e-5)
    assert numbers["expected"] == pytest.approx(CHANCE[loss], rel=1e-5)
    assert not findings


@pytest.mark.parametrize("loss", sorted(CHANCE))
def test_random_weights_of_a_fitting_scale_raise_no_alarm(loss):
    findings, numbers = step_1(*measure(mlp(), loss=loss))
    assert numbers["expected"] == pytest.approx(CHANCE[loss], rel=1e-5)
    assert not findings


def test_the_regulariser_raises_the_loss_by_its_own_value():
    """And leaves the loss that is compared with that of a guess as it was."""
    plain = step_1(*measure(mlp()))[1]
    measured, params = measure(mlp(), regularizer="l2", strength=0.1)
    numbers = step_1(measured, params)[1]
    squares = sum(np.sum(leaf**2) for leaf in jax.tree.leaves(params) if leaf.ndim > 1)
    assert plain["with the regulariser"] == plain["initial loss"]
    assert numbers["initial loss"] == pytest.approx(plain["initial loss"])
    assert numbers["with the regulariser"] - numbers["initial loss"] == pytest.approx(0.1 * squares, rel=1e-4)


def test_weights_of_a_wrong_scale_are_a_bad_start():
    assert initial_causes(mlp(params=kernels(lambda kernel: 30 * kernel))) == ["bad_init"]


def test_a_loss_that_is_not_a_number_is_a_bad_start():
    assert initial_causes(mlp(params=kernels(lambda kernel: jnp.full_like(kernel, jnp.inf))))[0] == "bad_init"


def test_zero_weights_are_told_from_a_classifier_that_may_start_at_zero():
    assert initial_causes(mlp(params=kernels(jnp.zeros_like))) == ["zero_weights"]


@pytest.mark.parametrize("bias", [-100.0, -6.0])
def test_units_below_zero_on_every_image_are_dead(bias):
    def lower(params):
        return {**params, "block1": jax.tree.map(lambda p: p + bias if p.ndim == 1 else p, params["block1"])}

    assert initial_causes(mlp(params=lower)) == ["dead_units"]


def test_what_is_under_a_layer_that_starts_at_zero_is_not_dead():
    """Its gradient is zero for one step: last layers and residual branches start so on purpose."""

    def zero_head(params):
        return {**params, "head": jax.tree.map(jnp.zeros_like, params["head"])}

    model = mlp(params=zero_head)
    measured, _ = measure(model)
    assert not np.any(measured["grads"]["block1"]["dense"]["kernel"])
    assert initial_causes(model) == []


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_an_output_of_probabilities_is_a_softmax_too_many(dtype):
    softmax = mlp(logits=lambda logits: jax.nn.softmax(logits.astype(dtype)).astype(jnp.float32))
    assert initial_causes(softmax) == ["double_softmax"]


def test_pixels_of_0_to_255_are_named_before_the_loss_that_they_make():
    findings, numbers = step_1(*measure(mlp(), normalize=lambda images: 255 * images))
    assert causes(findings)[0] == "input_scale"
    assert numbers["input mean"] == pytest.approx(127.5, rel=0.05)


@pytest.mark.parametrize("normalize", [lambda images: images, lambda images: images - 0.5])
def test_pixels_that_are_only_scaled_or_centred_are_no_fault(normalize):
    assert causes(step_1(*measure(mlp(), normalize=normalize), normalize="none")[0]) == []


class Rescaling(nn.Module):
    """A classifier that changes its images before its first layer."""

    change: Callable

    @nn.compact
    def __call__(self, images, *, train):
        return Mlp(widths=(16, 16), num_classes=CLASSES, compute=COMPUTE)(self.change(images), train=train)


@pytest.mark.parametrize(
    "change",
    [lambda images: (images - 0.5) / 0.29, lambda images: images / 255],
    ids=["normalised twice", "divided by 255"],
)
def test_what_the_network_itself_does_to_its_pixels_is_seen(change):
    found, numbers = step_1(*measure(Changed(Rescaling(change))))
    assert causes(found)[0] == "input_scale"
    assert numbers["input deviation"] == pytest.approx(float(np.std(change(np.array([-1.0, 1.0])))), rel=0.05)


@pytest.mark.parametrize("mean", [0.485, 127.5])
def test_statistics_in_units_of_0_to_255_are_named(mean):
    found = initial_causes(mlp(), normalize=lambda images: (images - mean) / 73.0)
    assert found[0] == "input_scale"


def test_statistics_of_other_photos_are_no_fault():
    assert initial_causes(mlp(), normalize=lambda images: (images - 0.4) / 0.22) == []


@pytest.mark.parametrize("squash", [jax.nn.sigmoid, jnp.tanh], ids=["sigmoid", "tanh"])
def test_outputs_that_no_weights_enlarge_are_no_logits(squash):
    assert initial_causes(mlp(logits=squash)) == ["double_softmax"]


def test_a_clipping_that_leaves_no_way_to_go_is_named():
    measured, params = measure(mlp())
    assert causes(step_1(measured, params, clip_norm=1e-4)[0]) == ["clip_too_low"]
    for sound in (dict(clip_norm=0.0), dict(clip_norm=1e-4, name="adamw"), dict(clip_norm=1.0, lr=1e-5)):
        assert causes(step_1(measured, params, **sound)[0]) == []
    assert causes(step_1(measured, params, clip_norm=1e-2, lr=10.0)[0]) == [], "the rate makes up for it"


# Step 2.


def sampled(accuracy, *, failed=""):
    """An outcome of the small sample."""
    if failed:
        return Outcome(steps=5, failed=failed)
    return Outcome(steps=300, train_loss=1 - accuracy, train_accuracy=accuracy, best_train_accuracy=accuracy)


NAN = sampled(0, failed="the loss of step 3 is not finite")


@pytest.mark.parametrize(
    ("tries", "expected"),
    [
        ({0.1: sampled(1.0)}, []),
        ({0.1: sampled(1.0), 1.0: sampled(0.1), 10.0: NAN}, []),
        ({0.1: sampled(0.2), 1e-2: sampled(1.0), 1e-3: sampled(0.4)}, ["lr_too_high"]),
        ({0.1: NAN, 1e-3: sampled(1.0)}, ["lr_too_high"]),
        ({0.1: sampled(0.2), 1.0: sampled(1.0), 10.0: NAN}, ["lr_too_low"]),
        ({0.1: sampled(0.7), 1.0: sampled(0.6), 10.0: NAN, 1e-3: sampled(0.3)}, ["too_small"]),
        ({0.1: sampled(0.12), 1.0: sampled(0.1), 1e-3: sampled(0.1)}, ["bad_init"]),
        ({0.1: NAN, 1.0: NAN, 1e-3: NAN}, ["bad_init"]),
    ],
)
def test_what_a_sample_learned_by_heart_says_of_the_rate_and_the_network(tries, expected):
    assert causes(checks.overfit(tries, own_lr=0.1, num_classes=10)) == expected


def test_the_remedy_is_the_rate_that_learned_and_is_nearest():
    tries = {0.1: sampled(0.2), 1e-2: sampled(1.0), 1e-4: sampled(1.0)}
    (finding,) = checks.overfit(tries, own_lr=0.1, num_classes=10)
    assert finding.remedy == "--config.optimizer.lr=0.01"


# Step 3.

START = float(np.log(10))


def trained(drop, *, train=0.8, val=0.8, examples=1000):
    """An outcome of a hundred steps on all data, its loss lower than that of chance by the share `drop`."""
    return Outcome(
        steps=100,
        train_loss=START * (1 - drop),
        train_accuracy=train,
        best_train_accuracy=train,
        val_accuracy=val,
        val_examples=examples,
    )


def test_of_rates_that_drop_alike_the_largest_is_chosen():
    near, short = checks.NEAR_BEST * 0.8 + 0.01, checks.NEAR_BEST * 0.8 - 0.01
    outcomes = {1e-3: trained(0.3), 1e-2: trained(0.8), 1e-1: trained(near), 1.0: trained(short), 10.0: NAN}
    chosen, drops = checks.choose_rate(outcomes, start=START)
    assert chosen == 1e-1
    assert drops[1e-2] == pytest.approx(0.8) and 10.0 not in drops


@pytest.mark.parametrize("outcomes", [{0.1: trained(0.01), 1.0: trained(-3.0)}, {0.1: NAN}])
def test_no_rate_is_chosen_where_no_loss_falls(outcomes):
    assert checks.choose_rate(outcomes, start=START)[0] is None


def judged(*, train, val, unseen, examples=1000):
    """The clean pass of a trial that left out some train images."""
    return CleanPass(*[Accuracy(right, examples) for right in (train, val, unseen)] * 2)


def learned(outcomes, *, own_lr=0.1, without=None, overfits=True, clean=None):
    chosen, _ = checks.choose_rate(outcomes, start=START)
    return causes(
        checks.learning(
            outcomes,
            own_lr=own_lr,
            chosen=chosen,
            start=START,
            without=without or {},
            overfits=overfits,
            clean=clean,
            num_classes=10,
        )
    )


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ({0.1: trained(0.8), 1.0: trained(0.1)}, []),
        ({0.1: trained(0.6), 1e-2: trained(0.8)}, []),  # slower, and no fault
        ({0.1: NAN, 1e-2: trained(0.8)}, ["lr_too_high"]),
        ({0.1: trained(-0.5), 1e-3: trained(0.8)}, ["lr_too_high"]),
        ({0.1: trained(0.05), 1.0: trained(0.8)}, ["lr_too_low"]),
    ],
)
def test_the_own_rate_is_compared_with_the_one_that_learns(outcomes, expected):
    assert learned(outcomes) == expected


def test_where_nothing_falls_the_trial_without_augmentation_tells_which():
    still = {0.1: trained(0.02, train=0.12, val=0.1), 1.0: trained(0.0, train=0.1, val=0.1)}
    assert learned(still, without={"augmentation": trained(0.7)}) == ["augmentation"]
    assert learned(still, without={"augmentation": trained(0.01)}) == ["shuffled_labels"]
    assert learned(still, without={"augmentation": NAN}) == ["shuffled_labels"]
    penalised = {"augmentation": trained(0.01), "decay_too_high": trained(0.7)}
    assert learned(still, without=penalised) == ["decay_too_high"]
    assert learned(still, overfits=False) == [], "step 2 has named the cause"


@pytest.mark.parametrize(
    ("train", "unseen", "val", "examples", "expected"),
    [
        (0.9, 0.9, 0.1, 1000, ["val_distribution"]),
        (0.9, 0.85, 0.8, 1000, []),
        (0.9, 0.9, 0.4, 4, []),  # two of four images: no evidence
        (1.0, 0.4, 0.4, 1000, []),  # overfitting
        (1.0, 0.1, 0.1, 1000, ["shuffled_labels"]),
        (1.0, 0.1, 0.1, 20, []),  # might be better than chance
        (0.1, 0.1, 0.1, 1000, []),  # not memorised
        (0.7, 0.65, 0.93, 200, ["wrong_labels", "val_distribution"]),
        (1.0, 0.55, 0.8, 200, ["wrong_labels", "val_distribution"]),  # memorised
        (1.0, 0.7, 0.8, 200, []),
    ],
)
def test_train_images_left_out_are_compared_with_validation(train, unseen, val, examples, expected):
    clean = judged(train=train, unseen=unseen, val=val, examples=examples)
    assert learned({0.1: trained(0.8, train=train, val=val)}, clean=clean) == expected


def test_labels_that_do_not_fit_are_named_before_the_rate_that_memorises_them():
    memorised = {0.1: trained(0.1, train=0.2, val=0.1), 1.0: trained(0.6, train=0.7, val=0.1)}
    assert learned(memorised, clean=judged(train=0.8, unseen=0.1, val=0.1)) == ["shuffled_labels"]
    assert learned(memorised) == ["lr_too_low"]


def test_mixed_images_whose_loss_stays_high_are_no_fault_if_validation_learns():
    mixed = trained(0.02, train=0.2)._replace(val_loss=0.4 * START)
    assert learned({0.1: mixed, 1.0: trained(0.0, train=0.1)}) == []


def test_a_network_that_fails_in_evaluation_fails_on_train_too():
    outcomes = {0.1: trained(0.8, train=0.9, val=0.1)}
    assert learned(outcomes, clean=judged(train=0.1, unseen=0.1, val=0.1)) == ["eval_mode"]
    assert learned(outcomes, clean=judged(train=0.9, unseen=0.9, val=0.1)) == ["val_distribution"]


def test_a_decay_is_too_high_where_it_takes_half_of_what_a_small_one_learns():
    small = trained(0.8)
    tell = lambda own: causes(checks.decay(own, small, decay=10.0, start=START))  # noqa: E731
    assert tell(trained(0.7)) == []
    assert tell(trained(0.2)) == ["decay_too_high"]
    assert tell(NAN) == ["decay_too_high"]


def test_images_that_are_right_at_a_loss_above_chance_have_labels_of_their_own():
    """Scores of the wrong scale cost more than a guess does, and are right on new images all the same."""
    outcomes = {0.1: trained(-20.0, train=0.7), 1.0: trained(-50.0, train=0.1, val=0.1)}
    assert learned(outcomes, without={"augmentation": trained(-20.0, train=0.7)}) == ["bad_init"]
    memorised = {0.1: trained(-20.0, train=0.7, val=0.1), 1.0: trained(-50.0, train=0.1, val=0.1)}
    assert learned(memorised, without={"augmentation": trained(-20.0, val=0.1)}) == ["shuffled_labels"]


@pytest.mark.parametrize(("classes", "reached"), [(2, 0.9), (3, 0.8), (10, 0.3), (100, 0.05)])
def test_what_learns_a_part_of_the_sample_by_heart_is_too_small(classes, reached):
    outcome = {0.1: sampled(reached)}
    assert causes(checks.overfit(outcome, own_lr=0.1, num_classes=classes)) == ["too_small"]
    chance = {0.1: sampled(1.1 / classes)}
    assert causes(checks.overfit(chance, own_lr=0.1, num_classes=classes)) == ["bad_init"]
