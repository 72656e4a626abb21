"""What a notebook uses: `import linseed`."""

import subprocess
import sys

import pytest

import linseed


def test_a_config_is_loaded_changed_trained_and_evaluated(tmp_path):
    changes = {"model.name": "mlp", "model.widths": (8,), "horizon.steps": 4, "schedule.warmup_steps": 0}
    config = linseed.load_config("digits:quick", changes)
    assert config.model.activation == "relu" and config.horizon.to_dict() == {"steps": 4}
    result = linseed.train(config, tmp_path / "run", quiet=True, open_test=False)
    assert result["test"] is None and result["steps"] == 4
    assert linseed.evaluate(tmp_path / "run")["accuracy"] == result["val"]["accuracy"]
    assert linseed.train(config, tmp_path / "run", quiet=True)["test_openings"] == 1


def test_a_dict_is_a_config_and_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = {
        "data": {"source": {"name": "synthetic", "num_examples": 64, "image_size": 8}, "batch_size": 16},
        "model": {"name": "linear"},
        "horizon": {"steps": 2},
    }
    linseed.train(config, "~/run", quiet=True)
    assert (tmp_path / "run" / "result.json").exists()


def test_errors_are_one_line():
    with pytest.raises(linseed.ConfigError, match="no page 'digts'; did you mean 'digits'"):
        linseed.load_config("digts")
    with pytest.raises(linseed.LinseedError, match="did you mean 'optimizer.weight_decay'"):
        linseed.load_config("digits", {"optimizer.weight_decy": 1})
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        linseed.trian  # noqa: B018


def test_importing_the_package_imports_no_jax():
    code = "import sys, linseed; print('jax' in sys.modules, set(linseed.__all__) <= set(dir(linseed)))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout == "False True\n", done.stderr
