"""A run that starts from the weights of others: what it says, what it writes, how it goes on."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest
import safetensors.numpy
from support.pretrained import COMPUTE, GIVEN, Tiny, tensors_of
from support.runs import Killer, Stop, records, run

from linseed import api
from linseed.trainer import evaluation, soup
from linseed.trainer.config import pages
from linseed.trainer.config.changes import changed, read
from linseed.trainer.errors import ConfigError, DataError
from linseed.trainer.experiment import Shared
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.weights import export, find, probe
from linseed.trainer.weights.features import FOLDER, Features, make_features

SIZE = 16


pytestmark = pytest.mark.usefixtures("place")


@pytest.fixture(scope="module")
def place(photos_and_weights):
    return photos_and_weights


def config(place, page="probe", **more):
    small = {
        "data.source.image_size": SIZE,
        "data.batch_size": 8,
        "eval.batch_size": 16,
        "convolution": "xla",
        **{key.replace("__", "."): value for key, value in more.items()},
    }
    return api.load_config(f"{page}:root={place / 'photos'},weights={place / 'tiny.safetensors'}", small)


class Listener(Killer):
    def __init__(self):
        super().__init__(step=None)


def test_the_page_takes_from_the_weights_what_it_leaves_open(place):
    found = config(place)
    assert found.model.name == "tiny" and found.data.normalize == "pretrained"
    assert found.data.mean == GIVEN.mean and found.data.source.interpolation == "bicubic"
    assert found.data.source.fit == "stretch"
    assert found.data.source.image_size == SIZE and found.data.source.resize == round(SIZE / GIVEN.crop)
    whole = api.load_config(f"probe:root=x,weights={place / 'tiny.safetensors'}")
    assert (whole.data.source.image_size, whole.data.source.resize) == (GIVEN.size, round(GIVEN.size / GIVEN.crop))
    other = api.load_config("probe:root=x", {"pretrained": str(place / "tiny.safetensors"), "model.name": "cnn"})
    assert other.model.name == "cnn"


def test_without_weights_the_page_says_what_to_give():
    with pytest.raises(ConfigError, match=r"names no weights; add --config\.pretrained=FILE"):
        api.load_config("probe:root=x")


def test_a_probe_is_a_run_whose_backbone_does_not_move(place, tmp_path):
    listener = Listener()
    result = run(config(place), tmp_path / "run", writer=listener)
    assert result["val"]["accuracy"] == 1.0 and result["test"]["accuracy"] == 1.0  # colours are easy
    said = "\n".join(listener.said)
    assert "has 1,000 classes and the data 3 classes: the last layer is new" in said and "probe: val 100.00%" in said
    card = json.loads((tmp_path / "run" / workdir_lib.PRETRAINED).read_text())
    assert card["architecture"] == "tiny" and len(card["sha256"]) == 64
    _, [(_, weights)] = evaluation.restore_weights(config(place), tmp_path / "run", which="best")
    given = safetensors.numpy.load((place / "tiny.safetensors").read_bytes())
    kernel = weights["params"]["stem"]["kernel"]
    assert np.array_equal(kernel.transpose(3, 2, 0, 1), given["conv1.weight"])
    statistics = weights["model_state"]["batch_stats"]["norm"]
    assert np.array_equal(statistics["mean"], given["bn1.running_mean"])  # frozen
    assert np.array_equal(statistics["var"], given["bn1.running_var"])


def test_features_are_computed_once_for_all_runs_beside_each_other(place, tmp_path):
    run(config(place), tmp_path / "a", shared=Shared())
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / FOLDER).iterdir()}
    assert len(kept) == 2
    listener = Listener()
    run(config(place, seed=1), tmp_path / "b", writer=listener, shared=Shared())
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / FOLDER).iterdir()}
    assert sum("read from" in line for line in listener.said) == 2
    damaged = next(iter(kept))
    damaged.write_bytes(b"damaged")
    again = run(config(place), tmp_path / "c", shared=Shared())
    assert again["best_params_sha256"] == run(config(place), tmp_path / "a", shared=Shared())["best_params_sha256"]
    run(config(place, data__source__resize=SIZE), tmp_path / "d", shared=Shared())
    assert len(list((tmp_path / FOLDER).iterdir())) == 4  # other pixels, other features


def test_runs_that_share_what_they_read_have_the_head_of_their_own_images(place, tmp_path):
    shared, alone = Shared(), {}
    for seed in (0, 1):
        one = config(place, data__split_seed=seed)
        alone[seed] = run(one, tmp_path / f"alone{seed}", shared=Shared())["params_sha256"]
        assert run(one, tmp_path / f"shared{seed}", shared=shared)["params_sha256"] == alone[seed]
    assert alone[0] != alone[1]


def test_features_are_of_images_as_they_are_normalised(place, tmp_path):
    """The same validation images have other features where the statistics are those of other train images."""
    own = dict(data__normalize="channel_mean_std", data__mean=(), data__std=(), convolution="xla")
    run(config(place, **own), tmp_path / "a", shared=Shared())
    run(config(place, **own, data__train_examples=20), tmp_path / "b", shared=Shared())
    assert len(list((tmp_path / FOLDER).iterdir())) == 4


def test_a_parameter_of_the_network_is_set_by_a_flag_before_its_name_is_known(place):
    page = f"probe:root={place / 'photos'},weights={place / 'tiny.safetensors'}"
    texts = {"model.stem": "cifar", "model.drop_path": "0.5", "model.name": "resnet18"}
    assert read(api.load_config(page), texts)["model.drop_path"] == 0.5
    del texts["model.name"]
    assert read(pages.read_page(page), texts) == {"model.stem": "cifar", "model.drop_path": 0.5}


def test_fine_tuning_is_exact_after_a_kill_and_needs_the_weights_no_more(place, tmp_path, monkeypatch):
    many = config(place, "finetune", horizon__epochs=3.0, eval__every_epochs=1.0, log_every_steps=2)
    whole = run(many, tmp_path / "whole")
    killer = Killer(8)
    with pytest.raises(Stop):
        run(many, tmp_path / "killed", writer=killer)
    monkeypatch.setattr(find, "read", lambda path: pytest.fail("the weights are read again"))
    again = run(many, tmp_path / "killed")
    for key in ("params_sha256", "best_params_sha256", "val", "test"):
        assert again[key] == whole[key]
    assert records(tmp_path / "killed") == records(tmp_path / "whole")
    assert evaluation.evaluate_checkpoint(tmp_path / "whole", which="best", split="val")["accuracy"] > 0.9


def test_a_head_that_fits_is_kept(place, tmp_path):
    three = tensors_of("tiny", classes=3)
    path = tmp_path / "tiny_three.safetensors"
    path.write_bytes(safetensors.numpy.save({key: np.ascontiguousarray(values) for key, values in three.items()}))
    kept = config(place, pretrained=str(path), head_init="random")
    run(kept, tmp_path / "run")
    _, [(_, weights)] = evaluation.restore_weights(kept, tmp_path / "run", which="best")
    assert np.array_equal(weights["params"]["head"]["kernel"], three["fc.weight"].T)


def test_weights_of_another_network_or_images_of_other_values_are_said(place, tmp_path):
    with pytest.raises(DataError, match="choose the network that it was trained as"):
        run(config(place, model__name="resnet18"), tmp_path / "a")
    listener = Listener()
    run(config(place, data__normalize="channel_mean_std", data__mean=(), data__std=()), tmp_path / "b", writer=listener)
    assert any("this run normalises otherwise" in line for line in listener.said)
    with pytest.raises(ConfigError, match="'probe' fits a last layer 'head' with a bias, which speednet has not"):
        run(
            config(place, model__name="speednet", pretrained="", data__normalize="none", data__mean=(), data__std=()),
            tmp_path / "c",
        )


def test_exported_weights_come_back_bit_for_bit_with_their_card(place, tmp_path):
    first = config(place)
    run(first, tmp_path / "run")
    found = soup.greedy([tmp_path / "run"], which="best", say=lambda line: None)
    written = tmp_path / "out.safetensors"
    export.write(
        found.weights,
        written,
        model=found.experiment.model,
        config=found.config,
        statistics=found.experiment.statistics,
        class_names=found.experiment.class_names,
    )
    card = find.find(str(written)).card
    assert card.architecture == "tiny"
    assert (card.input.size, round(card.input.size / card.input.crop)) == (SIZE, first.data.source.resize)
    assert card.input.mean == first.data.mean and card.input.interpolation == "bicubic"
    assert card.input.fit == "stretch"
    again = config(place, pretrained=str(written), head_init="random")
    result = run(again, tmp_path / "again")
    assert result["val"] == found.figures and result["best_params_sha256"]
    _, [(_, weights)] = evaluation.restore_weights(again, tmp_path / "again", which="best")
    assert jax.tree.all(jax.tree.map(np.array_equal, weights, found.weights))


def test_a_greedy_soup_is_never_worse_than_its_best_run(place, tmp_path):
    workdirs = []
    for seed in range(3):
        one = config(place, "finetune", seed=seed, horizon__epochs=1.0, optimizer__lr=0.03, ema_decay=0.0)
        run(one, tmp_path / str(seed))
        workdirs.append(tmp_path / str(seed))
    alone = [evaluation.evaluate_checkpoint(each, which="best", split="val")["accuracy"] for each in workdirs]
    said = []
    found = soup.greedy(workdirs, which="best", say=said.append)
    assert found.figures["accuracy"] >= max(alone) and len(said) == 3
    _, [(_, first)] = evaluation.restore_weights(one, found.kept[0], which="best")
    if len(found.kept) == 1:
        assert jax.tree.all(jax.tree.map(np.array_equal, found.weights, first))
    run(changed(one, {"data.split_seed": 5}), tmp_path / "other")
    with pytest.raises(DataError, match="was trained and judged on other splits"):
        soup.greedy([tmp_path / "0", tmp_path / "other"], which="best", say=said.append)


def test_a_soup_is_the_mean_of_its_runs_and_of_runs_alike_alone(place, tmp_path):
    for name in ("a", "b"):
        run(config(place), tmp_path / name)
    found = soup.greedy([tmp_path / "a", tmp_path / "b"], which="best", say=lambda line: None)
    _, [(_, weights)] = evaluation.restore_weights(config(place), tmp_path / "a", which="best")
    assert len(found.kept) == 2 and jax.tree.all(jax.tree.map(np.array_equal, found.weights, weights))
    mean = soup._mean([{"a": np.float32([1, 2])}, {"a": np.float32([3, 6])}, {"a": np.float32([5, 1])}])
    assert mean["a"].dtype == np.float32 and mean["a"].tolist() == [3, 3]
    own = dict(data__normalize="channel_mean_std", data__mean=(), data__std=())
    run(config(place, **own), tmp_path / "c")
    with pytest.raises(ConfigError, match="normalises images otherwise than"):
        soup.greedy([tmp_path / "a", tmp_path / "c"], which="best", say=lambda line: None)


def test_a_network_with_two_heads_has_no_probe():
    class Two(Tiny):
        @nn.compact
        def __call__(self, images, *, train):
            x = images.mean(axis=(1, 2))
            return nn.Dense(self.num_classes, name="head")(x) + nn.Dense(self.num_classes, name="head_dist")(x)

    model = Two(num_classes=3, compute=COMPUTE)
    images = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    variables = model.init(jax.random.key(0), images.astype(np.float32), train=False)
    compute = make_features(model=model, normalize=lambda images: images)
    with pytest.raises(ConfigError, match="ends in one layer called 'head'"):
        compute({"params": variables["params"], "model_state": {}}, images)


def test_the_probe_is_the_regression_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)

    def drawn(count):
        values = (rng.normal(size=(count, 20)) * rng.uniform(0.1, 3, 20) + 5).astype(np.float32)
        scores = (values - 5) @ np.random.default_rng(1).normal(size=(20, 3)) + 3 * rng.normal(size=(count, 3))
        return Features(values, scores.argmax(axis=1).astype(np.int32))

    train, val = drawn(200), drawn(100)
    found = probe.fit(train, val, classes=3)
    scaled = (train.values - train.values.mean(axis=0)) / train.values.std(axis=0)
    theirs = LogisticRegression(C=1 / (found.decay * 200), tol=1e-8, max_iter=5000).fit(scaled, train.labels)
    ours = train.values @ found.kernel + found.bias
    chance = np.exp(ours - ours.max(axis=1, keepdims=True))
    np.testing.assert_allclose(chance / chance.sum(axis=1, keepdims=True), theirs.predict_proba(scaled), atol=2e-3)
    assert found.accuracy == ((val.values @ found.kernel + found.bias).argmax(axis=1) == val.labels).mean()
