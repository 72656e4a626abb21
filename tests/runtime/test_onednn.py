"""Convolutions by oneDNN have the values and the gradients of XLA's, and stand aside where they are not proven."""

import functools
import json
import platform
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax._src import compilation_cache
from jax.sharding import Mesh, PartitionSpec

from linseed.models.layers import Compute
from linseed.models.speednet import SpeedNet
from linseed.trainer.runtime import onednn, onednn_probe

usable = onednn.usable  # before conftest.py puts its own in place
NHWC = ("NHWC", "HWIO", "NHWC")
proven = pytest.mark.usefixtures("proof")

# Of batch, size, channels, features, kernel: the last four have the gradient of the kernel by oneDNN as well, the last
# one in two parts and a rest.
SHAPES = (
    (2, 6, 3, 4, 2),
    (2, 5, 4, 3, 1),
    (32, 6, 32, 32, 3),
    (33, 5, 24, 48, 3),
    (32, 6, 32, 32, 1),
    (70, 24, 8, 32, 3),
)
WINDOWS = (
    dict(window_strides=(1, 1), padding="SAME"),
    dict(window_strides=(1, 1), padding="VALID"),
    dict(window_strides=(2, 2), padding="SAME"),
    dict(window_strides=(2, 1), padding=((0, 1), (2, 0))),
    dict(window_strides=(1, 1), padding="SAME", rhs_dilation=(2, 1)),
    dict(window_strides=(2, 2), padding=((2, 2), (1, 1)), rhs_dilation=(2, 2)),
)


def _inputs(batch=2, size=6, channels=3, features=4, kernel=3):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch, size, size, channels)), jnp.float32)
    return x, jnp.asarray(rng.normal(size=(kernel, kernel, channels, features)), jnp.float32)


def _values(conv, x, kernel):
    """The value, and both gradients of half the sum of its squares."""

    def values(x, kernel):
        y, pull = jax.vjp(conv, x, kernel)
        return y, *pull(y)

    return jax.jit(values)(x, kernel)


def _equal(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        largest = float(jnp.max(jnp.abs(b), initial=1e-3))
        tolerance = 1e-5 if b.dtype == jnp.float32 else 2e-2
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), rtol=0, atol=tolerance * largest)


@pytest.fixture(autouse=True)
def as_in_a_run(monkeypatch):
    """Where the other tests have XLA's."""
    monkeypatch.setattr(onednn, "usable", usable)


@pytest.fixture(scope="module")
def proof():
    """The proof is asked for by the tests that need it."""
    if not onednn_probe.proven():
        pytest.skip("oneDNN's convolutions are not proven here")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and nothing remembered from before or for after."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    onednn_probe.proven.cache_clear()
    yield tmp_path / "linseed"
    onednn_probe.proven.cache_clear()


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="needs Linux on x86-64")
def test_the_pinned_jaxlib_is_proven():
    """Where it is not, what follows is skipped."""
    assert onednn_probe.proven()


@proven
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_values_and_gradients_are_those_of_xla(window, shape):
    conv = functools.partial(onednn.auto, dimension_numbers=NHWC, **window)
    wanted = functools.partial(lax.conv_general_dilated, dimension_numbers=NHWC, **window)
    _equal(_values(conv, *_inputs(*shape)), _values(wanted, *_inputs(*shape)))


@proven
def test_float32_images_go_by_onednn():
    text = jax.jit(lambda x, k: onednn.auto(x, k, (1, 1), "SAME", dimension_numbers=NHWC))
    assert onednn.TARGET in text.lower(*_inputs()).as_text()


@pytest.mark.parametrize(
    "x, kernel, window",
    [
        ((2, 6, 4), (3, 4, 4), dict(dimension_numbers=("NWC", "WIO", "NWC"))),
        ((2, 4, 4, 4, 4), (3, 3, 3, 4, 4), dict(dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))),
        ((2, 4, 6, 6), (4, 4, 3, 3), dict()),
        ((2, 6, 6, 4), (3, 3, 2, 4), dict(dimension_numbers=NHWC, feature_group_count=2)),
        ((2, 6, 6, 4), (3, 3, 4, 4), dict(dimension_numbers=NHWC, lhs_dilation=(2, 2), padding=((1, 1), (1, 1)))),
        ((0, 6, 6, 4), (3, 3, 4, 4), dict(dimension_numbers=NHWC)),
        ((2, 6, 6, 4), (3, 3, 4, 4), dict(dimension_numbers=NHWC, padding=((4, 4), (-1, 0)))),
        ((2, 6, 6, 4), (3, 3, 4, 4), dict(dimension_numbers=NHWC, dtype=jnp.bfloat16)),
    ],
    ids=lambda value: str(value),
)
def test_what_onednn_does_not_take_is_left_to_xla(x, kernel, window):
    dtype = window.pop("dtype", jnp.float32)
    window = {"window_strides": (1,) * (len(x) - 2), "padding": "SAME", **window}
    x, kernel = jnp.ones(x, dtype), jnp.ones(kernel, dtype)
    conv = jax.jit(functools.partial(onednn.auto, **window))
    assert onednn.TARGET not in conv.lower(x, kernel).as_text()
    _equal([conv(x, kernel)], [lax.conv_general_dilated(x, kernel, **window)])


@proven
def test_goes_through_the_transforms_of_jax():
    conv = functools.partial(onednn.auto, window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC)
    wanted = functools.partial(lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC)
    x, kernel = _inputs(batch=4)

    def gradient(conv):
        return jax.grad(lambda kernel, x: jnp.sum(conv(x, kernel) ** 3))

    def second(conv):
        return jax.grad(lambda kernel, x: jnp.sum(gradient(conv)(kernel, x) ** 2))

    def checkpointed(conv):
        return jax.grad(jax.checkpoint(lambda kernel, x: jnp.sum(conv(x, kernel) ** 3)))

    def over_examples(conv):
        return jax.vmap(lambda kernel, x: gradient(conv)(kernel, x[None]), (None, 0))

    for transform in (gradient, second, checkpointed, over_examples):
        _equal([jax.jit(transform(conv))(kernel, x)], [jax.jit(transform(wanted))(kernel, x)])


@proven
@pytest.mark.parametrize("cast", [True, False])
def test_devices_share_the_work(cast):
    conv = functools.partial(onednn.auto, window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC)
    x, kernel = _inputs(batch=4)

    def gradient(kernel, x):
        local = lax.pcast(kernel, "batch", to="varying") if cast else kernel
        found = jax.grad(lambda kernel: jnp.sum(conv(x, kernel) ** 2))(local)
        return lax.psum(found, "batch") if cast else found  # JAX sums over devices what was not cast

    wanted = jax.grad(lambda kernel: jnp.sum(conv(x, kernel) ** 2))(kernel)
    mesh, specs = Mesh(jax.devices()[:2], ("batch",)), (PartitionSpec(), PartitionSpec("batch"))
    _equal([jax.jit(jax.shard_map(gradient, mesh=mesh, in_specs=specs, out_specs=specs[0]))(kernel, x)], [wanted])
    if cast:
        pmapped = jax.pmap(gradient, axis_name="batch", in_axes=(None, 0), out_axes=None, devices=jax.devices()[:2])
        _equal([pmapped(kernel, x.reshape(2, 2, *x.shape[1:]))], [wanted])


@proven
def test_training_is_the_same_either_way():
    x, _ = _inputs(batch=8, size=16)
    labels = jnp.arange(8) % 3
    trained = []
    for conv in onednn.CONVOLUTIONS.values():
        model = SpeedNet(
            stem_width=4,
            stem_bias_range=0.0,
            widths=(8, 8),
            activation="relu",
            kernel_init="kaiming_normal",
            head_init="lecun_normal",
            norm_momentum=0.6,
            norm_eps=1e-5,
            logit_scale=0.1,
            num_classes=3,
            compute=Compute(jnp.float32, axis_name=None, convolution=conv),
        )
        variables = model.init(jax.random.key(0), x, train=False)

        @jax.jit
        def step(variables, model=model):
            def loss(params):
                logits, state = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
                return -jnp.mean(nn.log_softmax(logits)[jnp.arange(8), labels]), state

            grads, state = jax.grad(loss, has_aux=True)(variables["params"])
            return {**state, "params": jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], grads)}

        for _ in range(3):
            variables = step(variables)
        trained.append(variables)
    assert jax.tree.structure(trained[0]) == jax.tree.structure(trained[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *trained)


# SIGINT may be ignored, as it is for what a shell started in the background.
KILLED = "import os, signal; signal.signal(signal.SIGINT, signal.SIG_DFL); os.kill(os.getpid(), signal.{})"


@proven
def test_no_program_with_the_call_is_offered_to_the_compilation_cache(monkeypatch):
    """jaxlib cannot serialise one: it raises, or crashes the process. Compiled by jit, ahead of time, or op by op."""
    offered = []

    def put(cache_key, module_name, executable, backend, compile_time):
        offered.append("".join(module.to_string() for module in executable.hlo_modules()))

    monkeypatch.setattr(compilation_cache, "put_executable_and_time", put)
    onednn.keep_out_of_cache.cache_clear()
    x, kernel = _inputs(batch=5, size=9)  # shapes that no other test has, so that they are compiled here
    call = functools.partial(onednn.by_onednn, window=onednn.Window((1, 1), ((1, 1), (1, 1)), (1, 1)))
    jax.jit(lambda x, k: jnp.sum(call(x, k)))(x, kernel)
    jax.jit(lambda x, k: call(x, k) + 1).lower(x, kernel).compile()
    call(x, kernel)
    jax.jit(lambda x: jnp.sum(x * 3.25))(x)
    assert offered and not any(onednn.LIBRARY in program for program in offered)
    onednn.keep_out_of_cache.cache_clear()


def test_without_the_means_to_keep_it_out_no_such_program_is_made(monkeypatch):
    monkeypatch.setattr(compilation_cache, "put_executable_and_time", lambda key, executable: None)
    onednn.keep_out_of_cache.cache_clear()
    with pytest.raises(AttributeError, match="changed its arguments"):
        onednn.by_onednn(*_inputs(), window=onednn.Window((1, 1), ((1, 1), (1, 1)), (1, 1)))
    onednn.keep_out_of_cache.cache_clear()


@pytest.mark.parametrize(
    "child, remembered",
    [
        ("import os; os.abort()", {"proven": False}),
        ("raise RuntimeError('no such target')", {"proven": False}),
        ("raise SystemExit(not float('nan') < 1e-5)", {"proven": False}),
        ("import time; time.sleep(60)", None),
        (KILLED.format("SIGINT"), None),
        (KILLED.format("SIGTERM"), None),
        (KILLED.format("SIGKILL"), None),
        (KILLED.format("SIGSEGV"), {"proven": False}),
        ("pass", {"proven": True}),
    ],
)
def test_what_the_child_says_is_the_verdict(child, remembered, cache, monkeypatch):
    monkeypatch.setattr(onednn_probe, "CHILD", child)
    monkeypatch.setattr(onednn_probe, "TIMEOUT_SECONDS", 0.3 if "sleep" in child else 30.0)
    monkeypatch.setattr(onednn_probe.sys, "platform", "linux")
    monkeypatch.setattr(onednn_probe.platform, "machine", lambda: "x86_64")
    works = remembered == {"proven": True}
    assert onednn_probe.proven() is works
    assert [json.loads(path.read_text())["proven"] for path in cache.glob("*")] == (
        [] if remembered is None else [works]
    )
    conv = jax.jit(lambda x, k: onednn.auto(x, k, (1, 1), "SAME", dimension_numbers=NHWC))
    assert (onednn.TARGET in conv.lower(*_inputs()).as_text()) is works


def test_a_verdict_is_asked_for_once(cache, monkeypatch):
    monkeypatch.setattr(onednn_probe.sys, "platform", "linux")
    monkeypatch.setattr(onednn_probe.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(onednn_probe, "CHILD", "pass")
    assert onednn_probe.proven()
    onednn_probe.proven.cache_clear()  # as another process
    monkeypatch.setattr(onednn_probe, "CHILD", "raise SystemExit(1)")
    assert onednn_probe.proven()
    (file,) = cache.glob("*")
    file.write_text(file.read_text()[:20])  # torn: tried again
    onednn_probe.proven.cache_clear()
    assert not onednn_probe.proven()
    assert json.loads(file.read_text())["proven"] is False


def test_a_cache_that_cannot_be_written_is_done_without(cache, monkeypatch):
    cache.write_text("a file where the folder should be")
    monkeypatch.setattr(onednn_probe.sys, "platform", "linux")
    monkeypatch.setattr(onednn_probe.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(onednn_probe, "CHILD", "pass")
    assert onednn_probe.proven()


def test_other_platforms_are_not_tried(cache, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not onednn_probe.proven()
    assert not cache.exists()
