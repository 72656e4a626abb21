"""Every parameter is matched by exactly one rule; what does not fit is refused in one line."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseed.trainer.errors import ConfigError
from linseed.trainer.optim import rules
from linseed.trainer.optim.rules import (
    DEFAULT_RULES,
    Rule,
    assign,
    decay_mask,
    decay_multipliers,
    in_steps,
    last_steps,
    lr_multipliers,
    parse,
    without_frozen_gradients,
)
from linseed.trainer.optim.schedules import durations_to_steps

PARAMS = {
    "attention": {"query": {"kernel": jnp.ones((4, 2, 2)), "bias": jnp.ones((2, 2))}},
    "head": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)},
    "stem": {"conv": {"kernel": jnp.ones((3, 3, 1, 4))}, "norm": {"scale": jnp.ones(4), "bias": jnp.ones(4)}},
}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("rest:", Rule("rest", 1.0, None, False)),
        ("head/.*: lr=0.1", Rule("head/.*", 0.1, None, False)),
        ("(?:stem|head)/.*: lr = 2, decay=0", Rule("(?:stem|head)/.*", 2.0, 0.0, False)),
        ("stem/.*:frozen", Rule("stem/.*", 1.0, None, True)),
        ("stem/.*: lr=2, until_epochs=3", Rule("stem/.*", 2.0, None, False, (3.0, "epochs"))),
    ],
)
def test_a_rule_is_read_as_written(text, rule):
    assert parse(text) == rule


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("head/.*", "should read 'pattern: settings'"),
        (": lr=1", "should read 'pattern: settings'"),
        ("head/(: lr=1", "is not a regular expression"),
        ("head: lr=-1", "at least 0"),
        ("head: lr=nan", "at least 0"),
        ("head: lr=inf", "at least 0"),
        ("head: lr=fast", "at least 0"),
        ("head: lr=0", "write frozen"),
        ("head: lr=1, lr=2", "gives lr twice"),
        ("head: frozen, lr=2", "takes no other setting"),
        ("head: until_steps=0", "write frozen"),
        ("head: until_steps=5, until_epochs=1", "gives until twice"),
        ("head: frozen, until_steps=5", "takes no other setting"),
        (
            "head: until_parsecs=5",
            "should be lr=NUMBER, decay=NUMBER, layer_decay=NUMBER, until_epochs=NUMBER or frozen",
        ),
        ("head: freeze", "should be lr=NUMBER, decay=NUMBER, layer_decay=NUMBER, until_epochs=NUMBER or frozen"),
        ("head: momentum=0.9", "should be lr=NUMBER, decay=NUMBER, layer_decay=NUMBER, until_epochs=NUMBER or frozen"),
    ],
)
def test_a_rule_that_does_not_read_is_refused_in_one_line(text, message):
    with pytest.raises(ConfigError, match=message) as error:
        parse(text)
    assert "\n" not in str(error.value)


def test_by_default_all_train_alike_and_biases_and_scales_do_not_decay():
    assert lr_multipliers(DEFAULT_RULES, PARAMS)["head"] == {"kernel": 1.0, "bias": 1.0}
    assert decay_mask(PARAMS) == {
        "attention": {"query": {"kernel": True, "bias": False}},  # a bias of two axes
        "head": {"kernel": True, "bias": False},
        "stem": {"conv": {"kernel": True}, "norm": {"scale": False, "bias": False}},
    }
    assert decay_multipliers(DEFAULT_RULES, PARAMS)["stem"] == {"conv": {"kernel": 1}, "norm": {"scale": 0, "bias": 0}}


def test_rules_reach_what_their_pattern_matches_whole():
    rules = ("head/.*: lr=0.1, decay=2", "stem/.*: frozen", "rest: decay=0.5")
    assert lr_multipliers(rules, PARAMS) == {
        "attention": {"query": {"kernel": 1.0, "bias": 1.0}},
        "head": {"kernel": 0.1, "bias": 0.1},
        "stem": {"conv": {"kernel": 0.0}, "norm": {"scale": 0.0, "bias": 0.0}},
    }
    # A decay that is named holds for biases too; one that is not leaves them out.
    assert decay_multipliers(rules, PARAMS)["head"] == {"kernel": 2.0, "bias": 2.0}
    assert decay_multipliers(rules, PARAMS)["stem"]["conv"] == {"kernel": 0.0}
    assert decay_multipliers(("head/.*: lr=0.1", "rest:"), PARAMS)["head"] == {"kernel": 1.0, "bias": 0.0}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ((), "no rule matches attention/query/bias, attention/query/kernel, head/bias and 4 more; add 'rest:'"),
        (("head: lr=2", "rest:"), "the rule 'head' matches no parameter; there are attention/query/bias,"),
        ((".*:", "head/.*: lr=2"), r"more than one rule matches head/bias, head/kernel \('.\*' and 'head/.\*'\)"),
        ((".*:", "rest: lr=2"), "the rule 'rest' matches no parameter"),
        (("rest:", "rest: lr=2"), "two rules have the pattern 'rest'"),
    ],
)
def test_rules_that_do_not_fit_are_refused_in_one_line(rules, message):
    with pytest.raises(ConfigError, match=message) as error:
        assign(rules, PARAMS)
    assert "\n" not in str(error.value)


def test_the_end_of_a_rule_becomes_steps_and_the_rest_of_it_stays():
    to_steps = functools.partial(durations_to_steps, num_examples=100, batch_size=10, total_steps=80)
    rules = ("stem/.*: until_epochs = 3, lr=2", "head/bias: lr=0.5, until_percent=25", "head/kernel: decay=0", "rest:")
    converted = in_steps(rules, to_steps=to_steps)
    assert [parse(rule).until for rule in converted] == [(30.0, "steps"), (20.0, "steps"), None, None]
    assert [parse(rule)[:4] for rule in converted] == [parse(rule)[:4] for rule in rules]
    last = last_steps(converted, PARAMS)
    assert last["head"] == {"bias": 20.0, "kernel": math.inf} and set(last["stem"]["norm"].values()) == {30.0}
    with pytest.raises(ConfigError, match="config.optimizer.rules.until_steps: .* should be a whole number"):
        in_steps(("rest: until_steps=2.5",), to_steps=to_steps)


def test_what_is_frozen_has_no_gradient_and_none_is_computed():
    params = {"stem": jnp.ones((3, 4)), "head": jnp.ones((4, 2))}
    rules = ("stem: frozen", "rest:")
    loss = lambda params: jnp.sum(jnp.tanh(jnp.arange(6.0).reshape(2, 3) @ params["stem"]) @ params["head"])  # noqa: E731
    without = lambda params: loss(without_frozen_gradients(rules, params))  # noqa: E731
    expected, found = jax.grad(loss)(params), jax.grad(without)(params)
    np.testing.assert_array_equal(found["head"], expected["head"])
    assert not found["stem"].any() and expected["stem"].any()
    products = [str(jax.make_jaxpr(jax.grad(f))(params)).count("dot_general") for f in (loss, without)]
    assert products == [5, 3]  # two forward; back to the head, and in the first back through it to the stem


@pytest.mark.parametrize(
    ("tops", "layers"),
    [
        (["stem", "stage1_block1", "stage1_block2", "stage2_block1", "head"], [0, 1, 2, 3, 4]),
        (["stem", "stage1_block1", "stage2_transition", "stage2_block1", "stage2_block2", "head"], [0, 1, 2, 2, 3, 4]),
        (["cls_token", "pos_embed", "stem", "block1", "block2", "block10", "norm", "head"], [0, 0, 0, 1, 2, 3, 4, 4]),
        (["conv1", "conv2", "dense1", "dense2", "head"], [1, 2, 3, 4, 5]),
        (["head"], [1]),
    ],
)
def test_layers_are_numbered_from_the_images_to_the_head(tops, layers):
    params = {top: {"kernel": np.zeros((2, 2))} for top in tops}
    found = dict(zip(rules.paths(params), rules.layers(params), strict=True))
    assert [found[f"{top}/kernel"] for top in tops] == layers


def test_layer_decay_lowers_the_rate_of_each_layer_below_the_head():
    params = {top: {"kernel": np.ones((2, 2))} for top in ("stem", "block1", "block2", "head")}
    given = rules.with_layer_decay(("block2/.*: lr=2", "stem/.*: frozen", "rest:"), 0.5)
    assert given == ("block2/.*: lr=2, layer_decay=0.5", "stem/.*: frozen", "rest: layer_decay=0.5")
    found = rules.lr_multipliers(given, params)
    assert [found[top]["kernel"] for top in ("stem", "block1", "block2", "head")] == [0.0, 0.25, 1.0, 1.0]
    assert rules.with_layer_decay(("rest:",), 1.0) == ("rest:",) and not rules.any_lr(("rest:",))
    assert rules.any_lr(("rest: layer_decay=0.9",))
