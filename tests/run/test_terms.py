"""What processes agree on: it changes with the code, the versions, the config and the flags."""

from linseed.configs import digits
from linseed.trainer.config import plugins
from linseed.trainer.config.resolve import resolve
from linseed.trainer.run import terms


def of(config, **changes):
    flags = {"judge": ("val",), "on_config_change": "refuse"} | changes
    return terms.terms(resolve(config), **flags)


def differences(one, other):
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}


def test_they_hold_every_file_and_name_what_differs(tmp_path, monkeypatch):
    config = digits.get_config()
    found = of(config)
    assert {"source trainer/train.py", "source trainer/step/losses.py", "version of jax", "config.seed"} <= found.keys()
    config.optimizer.lr = 0.5
    assert differences(found, of(config)) == {"config.optimizer.lr"}
    assert differences(of(config), of(config, judge=("val", "test"))) == {"--judge"}
    assert differences(of(config), of(config, on_config_change="accept")) == {"--on_config_change"}
    monkeypatch.setattr(terms, "_hash", lambda file: "another" if file.name == "losses.py" else "")
    monkeypatch.setattr(terms, "versions", lambda: {"jax": "0.0"})
    assert {"source trainer/step/losses.py", "version of jax"} <= differences(found, of(config))


def test_the_code_of_a_plugin_in_use_belongs_to_them(tmp_path):
    plugin = tmp_path / "agreed_plugin.py"
    plugin.write_text("def fade(key, image):\n    return image\n\n\nOPS = {'fade': fade}\n")
    plugins.load(str(plugin))
    config = digits.get_config()
    config.data.augment = "fade()"
    found = of(config)
    plugin.write_text(plugin.read_text().replace("return image", "return 0 * image"))
    assert differences(found, of(config)) == {"source of the plugin agreed_plugin, agreed_plugin.py"}
