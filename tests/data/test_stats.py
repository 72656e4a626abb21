"""Statistics: exact, of the train split in use, and cached by what they were computed from."""

import json
import logging

import numpy as np
import pytest

from linseed.trainer.config.resolve import resolve
from linseed.trainer.data import stats
from linseed.trainer.data.splits import Split
from linseed.trainer.errors import ConfigError


def random_split(seed=0, channels=3):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (20, 6, 5, channels), dtype=np.uint8) // (1 + np.arange(channels, dtype=np.uint8))
    return Split(images, rng.integers(0, 2, 20, dtype=np.int32))


def statistics(split, name, tmp_path, *, mean=(), std=()):
    return stats.statistics(split, name, mean=mean, std=std, cache=tmp_path / "statistics.json")


def normalized(split, name, tmp_path):
    unit = split.images / np.float32(255)
    return stats.make_normalize(statistics(split, name, tmp_path))(unit), unit


def check_channel_mean_std(found, unit):
    np.testing.assert_allclose(found, (unit - unit.mean((0, 1, 2))) / unit.std((0, 1, 2)), atol=1e-4)


def check_none(found, unit):
    np.testing.assert_array_equal(found, unit)


def check_channel_mean(found, unit):
    np.testing.assert_allclose(found, unit - unit.mean((0, 1, 2)), atol=1e-6)


def check_mean_image(found, unit):
    np.testing.assert_allclose(found, unit - unit.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-6)


CHECKS = {
    "channel_mean": check_channel_mean,
    "channel_mean_std": check_channel_mean_std,
    "mean_image": check_mean_image,
    "none": check_none,
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", sorted(stats.NORMALIZERS))
def test_normalizer_is_its_formula(name, channels, tmp_path):
    found, unit = normalized(random_split(channels=channels), name, tmp_path)
    assert found.dtype == np.float32 and found.shape == unit.shape
    CHECKS[name](found, unit)


def test_a_flat_channel_stays_finite(tmp_path):
    split = Split(np.full((4, 2, 2, 1), 77, np.uint8), np.zeros(4, np.int32))
    found, _ = normalized(split, "channel_mean_std", tmp_path)
    np.testing.assert_allclose(found, 0, atol=1e-4)


@pytest.mark.parametrize("name", sorted(stats.NORMALIZERS))
def test_statistics_come_back_from_the_cache_bit_for_bit(name, tmp_path):
    first, again = (statistics(random_split(), name, tmp_path) for _ in range(2))
    for key in ("mean", "std"):
        np.testing.assert_array_equal(first[key], again[key])
    assert first["mean"].shape == ((6, 5, 3) if name == "mean_image" else (3,))


def test_statistics_of_a_run_are_computed_once(tmp_path, monkeypatch):
    first = statistics(random_split(), "channel_mean_std", tmp_path)
    monkeypatch.setattr(stats, "channel_moments", None)  # computing again would fail
    again = statistics(random_split(), "channel_mean_std", tmp_path)
    np.testing.assert_array_equal(first["mean"], again["mean"])


def test_other_images_or_another_name_are_computed_anew(tmp_path):
    first = statistics(random_split(), "channel_mean_std", tmp_path)
    other = statistics(random_split(seed=1), "channel_mean_std", tmp_path)
    assert (other["mean"] != first["mean"]).any()
    assert (statistics(random_split(seed=1), "none", tmp_path)["mean"] == 0).all()


@pytest.mark.parametrize("text", ['{"fingerpr', "[1]", "null"])
def test_a_damaged_record_is_made_anew(tmp_path, text):
    (tmp_path / "statistics.json").write_text(text)
    statistics(random_split(), "none", tmp_path)
    assert json.loads((tmp_path / "statistics.json").read_text())["fingerprint"] == stats.fingerprint(random_split())


def test_the_fingerprint_sees_a_pixel_a_label_and_the_shape():
    base = random_split()
    pixel, label = base.images.copy(), base.labels.copy()
    pixel[3, 2, 1, 0] ^= 1
    label[5] ^= 1
    prints = [
        stats.fingerprint(split)
        for split in (
            base,
            Split(pixel, base.labels),
            Split(base.images, label),
            Split(base.images.reshape(20, 5, 6, 3), base.labels),
        )
    ]
    assert len(set(prints)) == 4


def test_constants_of_a_config_are_used_and_a_disagreement_is_said(tmp_path, caplog):
    split = random_split()
    own = statistics(split, "channel_mean_std", tmp_path)
    mean, std = tuple(own["mean"] + 0.001), tuple(own["std"])
    with caplog.at_level(logging.WARNING):
        used = statistics(split, "channel_mean_std", tmp_path, mean=mean, std=std)
        assert not caplog.records
        np.testing.assert_array_equal(used["mean"], mean)
        statistics(split, "channel_mean_std", tmp_path, mean=(0.9, 0.9, 0.9), std=std)
    assert "data.mean=[0.9, 0.9, 0.9] is not the train split's" in caplog.text and "data.std" not in caplog.text


def test_constants_that_do_not_fit_the_channels_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="need 3 numbers each"):
        statistics(random_split(), "channel_mean_std", tmp_path, mean=(0.5,), std=(0.2,))


def test_an_unknown_normalizer_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'channel_mean_std'"):
        resolve({"data": {"normalize": "channel_mean_sd"}})
