"""What the gallery says of optimisers, schedules and activations, in numbers; and that its page is whole."""

import base64
import functools
import re
from pathlib import Path

import numpy as np
import optax
import pytest

from linseed.models.layers import ACTIVATIONS
from linseed.scripts.gallery import demos, draw, page, strips, surfaces
from linseed.trainer.data.augment import OPS, parse
from linseed.trainer.optim.schedules import SCHEDULES

# Compiling is nearly all the time these tests take: once each.
KEPT = ("bowl_paths", "saddle_paths", "dent_paths", "noisy_paths", "adam_paths", "adam_step_sizes", "schedule_rates")


@pytest.fixture(scope="module", autouse=True)
def compile_once():
    with pytest.MonkeyPatch.context() as patch:
        for name in KEPT:
            patch.setattr(demos, name, functools.cache(getattr(demos, name)))
        yield


def bowl_steps(name):
    path = demos.bowl_paths(surfaces.bowl, demos.BOWL_START)[name]
    return surfaces.steps_to(surfaces.bowl, path, loss=demos.BOWL_LOSS)


def test_sgd_takes_the_steps_that_theory_gives_and_the_others_far_fewer():
    """At the rate 2 / (1 + 100) both axes shrink by 99/101 a step, so that the loss shrinks by its square."""
    start = (demos.BOWL_START[0] ** 2 + 100 * demos.BOWL_START[1] ** 2) / 2
    expected = np.log(demos.BOWL_LOSS / start) / (2 * np.log(99 / 101))
    assert abs(bowl_steps("sgd") - expected) <= 1
    for name in ("momentum", "nesterov", "rmsprop", "adam"):
        assert bowl_steps(name) < bowl_steps("sgd") / 2, name


def test_no_rate_makes_sgd_as_fast_as_the_others():
    """In closed form: x(t) = (1 - lr)^t x(0), y(t) = (1 - 100 lr)^t y(0)."""
    lr, t = np.linspace(1e-4, 0.02, 400)[:, None], np.arange(401)
    x, y = demos.BOWL_START
    losses = ((1 - lr) ** (2 * t) * x**2 + 100 * (1 - 100 * lr) ** (2 * t) * y**2) / 2
    soonest = np.argmax((losses <= demos.BOWL_LOSS).any(0))
    assert 2 * max(bowl_steps(name) for name in demos.BOWL_RUNS if name != "sgd") < soonest <= bowl_steps("sgd")


def test_sgd_jitters_along_the_steep_axis_and_crawls_along_the_shallow_one():
    x, y = demos.bowl_paths(surfaces.bowl, demos.BOWL_START)["sgd"][:51].T
    assert (np.diff(np.sign(y)) != 0).all()
    assert np.abs(np.diff(y)).min() > 8 * np.abs(np.diff(x)).max()
    assert (np.diff(x) > 0).all() and abs(x[50]) > abs(x[0]) / 3


def test_rmsprop_damps_the_steep_axis():
    paths = demos.bowl_paths(surfaces.bowl, demos.BOWL_START)
    swing = {name: np.abs(paths[name][20:51, 1]).max() for name in ("sgd", "rmsprop")}
    assert swing["rmsprop"] < 1e-3 * swing["sgd"]
    assert abs(paths["rmsprop"][50, 0]) < abs(paths["sgd"][50, 0]) / 4


def test_rescaling_each_axis_helps_only_where_the_bowl_lies_along_them():
    """SGD and momentum do not see the turn; RMSProp and Adam, at their rates, take far longer."""
    x, y = demos.BOWL_START
    turned = demos.bowl_paths(surfaces.turned_bowl, ((x - y) / 2**0.5, (x + y) / 2**0.5))
    steps = {name: surfaces.steps_to(surfaces.turned_bowl, path, loss=demos.BOWL_LOSS) for name, path in turned.items()}
    for name in ("sgd", "momentum", "nesterov"):
        assert abs(steps[name] - bowl_steps(name)) <= 1
    for name in ("rmsprop", "adam"):
        assert steps[name] is None or steps[name] > 3 * bowl_steps(name)


def test_sgd_stays_on_the_ridge_of_the_saddle_where_momentum_leaves():
    paths = demos.saddle_paths(demos.SADDLE_OFF_RIDGE)
    assert np.abs(paths["sgd"][-1]).max() < 1e-3
    assert np.abs(paths["momentum"][-1] - [0, 1]).max() < 0.2
    # Off the ridge y grows by 1 + lr a step: SGD needs more steps than it has to be as far as 0.1.
    assert np.log(0.1 / demos.SADDLE_OFF_RIDGE) / np.log(1 + demos.SADDLE_RATE) > 1.5 * demos.SADDLE_STEPS


def test_exactly_on_the_ridge_neither_leaves():
    for name, path in demos.saddle_paths(0.0).items():
        assert (path[:, 1] == 0).all(), name


def test_sgd_stops_in_a_local_minimum_that_momentum_carries_through():
    paths = demos.dent_paths()
    x = np.linspace(2, 4, 2001, dtype=np.float32)
    local = x[np.argmin(surfaces.losses(surfaces.dented_bowl, x[:, None]))]
    assert 2.5 < local < 3 and abs(paths["sgd"][-1, 0] - local) < 2e-3
    assert abs(paths["momentum"][-1, 0]) < 1e-3


def test_noise_keeps_sgd_at_the_floor_of_theory_and_a_falling_rate_gets_below():
    long = surfaces.descend(
        surfaces.round_bowl,
        demos.NOISE_START,
        name="sgd",
        schedule=optax.constant_schedule(demos.NOISE_RATE),
        steps=20_000,
        noise=demos.NOISE,
    )
    assert surfaces.losses(surfaces.round_bowl, long[100:]).mean() == pytest.approx(demos.noise_floor(), rel=0.1)
    end = {name: surfaces.losses(surfaces.round_bowl, path)[-30:].mean() for name, path in demos.noisy_paths().items()}
    assert end["no noise"] < 1e-12
    assert end["sgd, cosine schedule"] < end["sgd"] / 10


def test_momentum_goes_the_smoother_way_through_noise():
    length = {name: np.linalg.norm(np.diff(path, axis=0), axis=1).sum() for name, path in demos.noisy_paths().items()}
    assert length["momentum"] < length["sgd"] / 2


def test_first_step_of_adam_is_the_rate_and_without_correction_three_times_that():
    sizes = demos.adam_step_sizes(1000)
    t = np.arange(1, 1001)
    np.testing.assert_allclose(sizes["adam"], 1.0, rtol=2e-3)
    np.testing.assert_allclose(sizes["adam_uncorrected"], (1 - 0.9**t) / np.sqrt(1 - 0.999**t), rtol=2e-3)
    assert sizes["adam_uncorrected"][0] == pytest.approx(10**0.5, rel=1e-4)
    assert sizes["adam_uncorrected"].max() > 2 * sizes["adam_uncorrected"][0]


def test_from_one_rate_off_adam_steps_onto_the_minimum_and_without_correction_past_it():
    first = {name: path[1, 0] / path[0, 0] for name, path in demos.adam_paths().items()}
    assert first["adam"] == pytest.approx(0.0, abs=1e-4)
    assert first["adam_uncorrected"] == pytest.approx(1 - 10**0.5, rel=1e-4)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_schedule_has_a_curve_that_rises_from_zero_under_warm_up(name):
    rates = demos.schedule_rates(name, warmup_steps=demos.SCHEDULE_WARMUP)
    assert rates.shape == (demos.SCHEDULE_STEPS,)
    assert rates[0] == 0 and (np.diff(rates[: demos.SCHEDULE_WARMUP]) > 0).all()
    assert rates.max() == pytest.approx(1.0)


def test_the_made_up_loss_makes_plateau_fall_more_than_once():
    rates = demos.schedule_rates("plateau", warmup_steps=0)
    assert {1.0, 0.5, 0.25} <= set(rates.tolist())


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_the_derivative_of_an_activation_is_that_of_its_curve(name):
    x = np.linspace(-3, 3, 600)  # zero, where some have none, is not among these
    value, slope = demos.activation_curve(ACTIVATIONS[name], x)
    middle = np.abs(x[1:-1]) > 0.02
    np.testing.assert_allclose(np.gradient(value, x)[1:-1][middle], slope[1:-1][middle], atol=2e-3)


def test_maxout_is_drawn_as_the_larger_of_two_lines():
    x = np.array([-2.0, 1.5])
    np.testing.assert_allclose(demos.activation_curve(ACTIVATIONS["maxout"], x)[0], np.maximum(x, -x / 2))


def test_every_op_is_drawn_by_its_own_string():
    assert set(strips.SPECS) == set(OPS)
    for name, spec in strips.SPECS.items():
        assert [op.name for op in parse(spec)] == [name]


def test_a_strip_is_the_original_then_draws_that_differ():
    image = strips.photograph()
    assert image.shape == (strips.SIDE, strips.SIDE, 3) and image.dtype == np.float32
    assert image.min() >= 0 and image.max() <= 1 and image.std() > 0.1
    strip = strips.strip("brightness(0.5)", image)
    np.testing.assert_array_equal(strip[:, : strips.SIDE], np.round(image * 255).astype(np.uint8))
    tiles = [strip[:, strip.shape[1] - (i + 1) * strips.SIDE - i * 4 :][:, : strips.SIDE] for i in range(strips.DRAWS)]
    assert len({tile.tobytes() for tile in tiles}) == strips.DRAWS


def test_the_same_figure_is_the_same_file(tmp_path):
    curves = {"relu": demos.activation_curve(ACTIVATIONS["relu"], np.linspace(-1, 1, 5))}
    for name in ("a.svg", "b.svg"):
        draw.save(draw.activations(curves, x=np.linspace(-1, 1, 5)), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_the_page_holds_every_picture_and_nothing_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(strips, "draws", lambda spec, image: np.stack([image] * strips.DRAWS))  # compiles no op
    monkeypatch.setattr(demos, "activation_curve", lambda activation, x: (x, x))  # nor these, judged above
    panels = {}
    save = draw.save

    def note(figure, path):
        panels[path.stem] = [axes.get_title() for axes in figure.axes]
        save(figure, path)

    monkeypatch.setattr(draw, "save", note)
    text = page.write(tmp_path / "new" / "gallery", ACTIVATIONS).read_text()
    assert panels["schedules"] == sorted(SCHEDULES)
    assert panels["activations"] == sorted(ACTIVATIONS)
    pictures = {f"op_{name}" for name in OPS} | set(panels)
    assert set(re.findall(r'<figure id="(\w+)">', text)) == pictures
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(sources) == len(pictures)
    for source in sources:
        kind, _, data = source.partition(";base64,")
        content = base64.b64decode(data, validate=True)
        assert (kind, content[:4]) in (("data:image/png", b"\x89PNG"), ("data:image/svg+xml", b"<?xm"))
    for outside in ("<script", "<link", "@import", "url("):
        assert outside not in text
    files = sorted((tmp_path / "new" / "gallery").iterdir())
    assert {path.stem for path in files} == pictures | {"index"}
    assert all(path.stat().st_size < 150_000 for path in files if path.stem != "index")


def test_the_docs_show_every_picture():
    docs = Path(__file__).parents[2] / "docs"
    shown = re.findall(r"\]\((images/gallery/[^)]*)\)", (docs / "gallery.md").read_text())
    assert sorted(shown) == sorted(str(path.relative_to(docs)) for path in (docs / "images" / "gallery").iterdir())
    assert all(f"`{spec}`" in (docs / "gallery.md").read_text() for spec in strips.SPECS.values())
