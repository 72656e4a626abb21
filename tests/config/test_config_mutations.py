"""Configs that nobody meant: each is refused in one line or can be built, and some of these run for two steps."""

import collections

import hypothesis
import pytest
from hypothesis import strategies as st

from linseed.scripts.bench.cases import tiny
from linseed.scripts.faults import config_mutations
from linseed.trainer.experiment import Shared

CONFIG = tiny()
EXAMPLES = 200
TRAINED = 3  # of those that can be built; each other shape of network takes a compilation


@st.composite
def changes(draw):
    drawn = {}
    for key in draw(st.lists(st.sampled_from(config_mutations.keys(CONFIG)), min_size=1, max_size=2, unique=True)):
        drawn[key] = draw(st.sampled_from(config_mutations.values(key, CONFIG)))
    return drawn


def test_two_hundred_configs_are_refused_in_a_line_or_can_be_built(tmp_path):
    """Whatever is raised but a LinseedError leaves `outcome` and fails the test, with the changes in its message."""
    shared, counts = Shared(), collections.Counter()

    # Few draws can be built, and which ones goes by the version of Python; these can on any.
    @hypothesis.example({"seed": 7})
    @hypothesis.example({"data.augment": "flip_lr(0.5)", "label_smoothing": 0.5})
    @hypothesis.example({"model.widths": (4, 8, 8)})
    @hypothesis.example({"optimizer.name": "nadam", "horizon.steps": 64})
    @hypothesis.example({"eval.batch_size": 1000, "precision": "bfloat16"})
    @hypothesis.settings(max_examples=EXAMPLES, derandomize=True, database=None, deadline=None)
    @hypothesis.given(changes())
    def run(drawn):
        config = config_mutations.apply(CONFIG, drawn)
        if config is None:
            counts["no config"] += 1
            return
        came_to = config_mutations.outcome(config, tmp_path, shared=shared)
        counts[came_to] += 1
        if came_to == "built" and counts["trained"] + counts["stopped"] < TRAINED:
            workdir = tmp_path / f"run{sum(counts.values())}"
            counts[config_mutations.train(config, workdir, shared=shared)] += 1

    run()
    assert counts["invalid"] > EXAMPLES / 2 and counts["built"] >= 5 and counts["trained"] >= 1, counts


@pytest.mark.parametrize(
    "drawn",
    [
        {"model.widths": (10**6, 10**6)},  # more weights than any machine has room for
        {"optimizer.lr": 10**400},  # no float at all
        {"optimizer.lr": 1e308},  # none of float32
        {"model.name": ["mlp"]},
        {"optimizer.rules": ("(a{99999999999}): lr=1", "rest:")},
    ],
)
def test_a_config_that_once_got_through_is_one_line(tmp_path, drawn):
    config = config_mutations.apply(CONFIG, drawn)
    assert config_mutations.outcome(config, tmp_path, shared=Shared()) in ("invalid", "refused")
