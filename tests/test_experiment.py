"""What an experiment says of itself before it runs."""

from support.runs import SHARED, tiny

from linseed.trainer.config.resolve import resolve
from linseed.trainer.experiment import build
from linseed.trainer.plan import make_plan


def described(workdir, **changes):
    return build(tiny(**changes), workdir, shared=SHARED).description


def test_a_batch_that_holds_images_several_times_is_said_with_the_cure(tmp_path):
    said = described(tmp_path, **{"data.batch_size": 512})
    assert "config.data.batch_size=512 is more than the 128 train images: a step is 4 epochs; lower it, or" in said
    assert "a step is" not in described(tmp_path, **{"data.batch_size": 128})
    assert "a step is" not in described(tmp_path, **{"data.batch_size": 0})


def test_the_share_of_the_largest_class_is_said(tmp_path):
    assert "4 classes of 8x8x3 images, the largest 25.00% of train" in described(tmp_path)


def test_the_plan_has_the_layer_decay_of_the_config():
    config = resolve(tiny(**{"optimizer.layer_decay": 0.5, "optimizer.rules": ("head/.*: lr=2", "rest:")}))
    assert make_plan(config, num_examples=100).rules == ("head/.*: lr=2, layer_decay=0.5", "rest: layer_decay=0.5")
