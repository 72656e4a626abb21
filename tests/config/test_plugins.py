"""Parts of one's own by --plugin: used like ours, remembered by the run, and never imported from a run's folder."""

import json
import subprocess
import sys

import pytest
from support import forked

from linseed.trainer.config import plugins, sections
from linseed.trainer.config.resolve import resolve
from linseed.trainer.errors import ConfigError

MINE = '''
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
import optax

from linseed.models.layers import Classifier
from linseed.ranges import Between, Fraction, NonNegative
from linseed.trainer.optim.optimizers import Recipe


class Tiny(Classifier, kw_only=True):
    """One hidden layer."""

    width: Annotated[int, Between(1, 64)] = 8

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.relu(nn.Dense(self.width)(images.reshape(len(images), -1)))
        return nn.Dense(self.num_classes)(x).astype(jnp.float32)


def signsgd(rules, *, weight_decay: NonNegative = 0.0):
    return Recipe((("sign", optax.scale_by_sign()),))


def darken(key, image, *, strength: Fraction):
    return image * (1 - strength)


MODELS = {"tiny": Tiny}
OPTIMIZERS = {"signsgd": signsgd}
OPS = {"darken": darken}
'''
TRAIN = [
    *("--config=digits:quick", "--config.model.name=tiny", "--config.optimizer.name=signsgd"),
    *("--config.data.augment=darken(0.1)", "--config.horizon.steps=4", "--config.schedule.warmup_steps=0"),
]


def linseed(*arguments, cwd):
    return forked.run(["-P", "-m", "linseed", *arguments], cwd=cwd)


def test_a_run_with_a_model_an_optimizer_and_an_op_of_ones_own(tmp_path):
    """From a folder whose packages have the names of ours."""
    for name in ("models", "configs", "scripts", "trainer", "linseed_is_not_here"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong package')")
    (tmp_path / "mine.py").write_text(MINE)
    run = ("--workdir=run", *TRAIN)
    missing = linseed("train", *run, cwd=tmp_path)
    assert missing.returncode == 2 and "unknown config.model.name 'tiny'" in missing.stderr
    command = [sys.executable, "-P", "-m", "linseed", "train", "--plugin=mine.py", *run]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["plugins"] == ["mine"] and config["model"]["width"] == 8
    forgotten = linseed("evaluate", "--workdir=run", cwd=tmp_path)
    assert forgotten.returncode == 2
    assert "uses the plugin 'mine', which is not loaded; add --plugin=mine, or --plugin=DIR/mine.py" in forgotten.stderr
    judged = linseed("evaluate", "--workdir=run", "--plugin=mine.py", cwd=tmp_path)
    assert judged.returncode == 0 and json.loads(judged.stdout)["split"] == "val", judged.stderr
    again = linseed("train", "--plugin=mine.py", *run, cwd=tmp_path)
    assert again.returncode == 0 and "already finished" in again.stdout


@pytest.fixture
def tables(monkeypatch):
    """The tables are afterwards as they were."""
    monkeypatch.setattr(plugins, "_owners", {})
    before = {name: dict(table) for name, table in sections.PLUGIN_TABLES.items()}
    yield
    for name, table in sections.PLUGIN_TABLES.items():
        table.clear()
        table.update(before[name])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no table; define one of DATA_INITS, LOSSES"),
        ("MODELS = {'cnn': 1}", "defines MODELS['cnn'], which is taken; choose another name"),
        ("import nothing_of_this_name", "fails: No module named 'nothing_of_this_name'"),
        ("1 / 0", "fails: ZeroDivisionError: division by zero"),
        ("x = (", "fails: SyntaxError"),
    ],
)
def test_a_wrong_plugin_is_one_line(tables, tmp_path, text, says):
    path = tmp_path / "wrong_plugin.py"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        plugins.load(str(path))
    assert says in str(caught.value) and "\n" not in str(caught.value)
    sys.modules.pop("wrong_plugin", None)


def test_a_plugin_that_is_not_there(tables, tmp_path):
    with pytest.raises(ConfigError, match=r"no plugin file at .*absent.py"):
        plugins.load(str(tmp_path / "absent.py"))
    with pytest.raises(ConfigError, match="no module 'absent_module'; check --plugin"):
        plugins.load("absent_module")
    (tmp_path / "json.py").write_text("MODELS = {}")
    with pytest.raises(ConfigError, match="has the name of another module, 'json'; rename the file"):
        plugins.load(str(tmp_path / "json.py"))


def test_a_plugin_that_is_loaded_and_not_used_is_not_remembered(tables, tmp_path):
    (tmp_path / "spare_plugin.py").write_text("LOSSES = {'mine': lambda logits, labels: logits}")
    assert plugins.load(str(tmp_path / "spare_plugin.py")) == "spare_plugin"
    assert plugins.load(str(tmp_path / "spare_plugin.py")) == "spare_plugin"  # twice does no harm
    assert resolve({}).plugins == ()
    assert resolve({"loss": {"name": "mine"}}).plugins == ("spare_plugin",)
    sys.modules.pop("spare_plugin", None)
