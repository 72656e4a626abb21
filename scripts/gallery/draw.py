"""The figures of the gallery, in black and grey: lines differ by style and marker, for any printer.

A path is float32 [steps + 1, n], as from `surfaces.descend`; paths come by label.
"""

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from linseed.scripts.gallery import surfaces

# Without these two, the SVG of a figure differs between runs.
_SAME = {"svg.hashsalt": "gallery"}
_UNDATED = {"Date": None}

_STYLES = (
    dict(color="0.55", linestyle="-", linewidth=1.2),
    dict(color="black", linestyle="-", linewidth=1.2),
    dict(color="black", linestyle="--", linewidth=1.2),
    dict(color="0.35", linestyle=":", linewidth=1.6),
    dict(color="black", linestyle="-.", linewidth=1.2),
)


def save(figure: Figure, path: Path):
    """Writes `figure` as SVG or grey PNG, by the suffix of `path`; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    if path.suffix == ".svg":
        with matplotlib.rc_context(_SAME):
            figure.savefig(buffer, format="svg", metadata=_UNDATED)
    else:
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=120)
        Image.open(drawn).convert("L").quantize(16).save(buffer, "PNG", optimize=True)
    path.write_bytes(buffer.getvalue())


def bowl(paths: Mapping[str, np.ndarray], *, shown: int, loss: float, rates: Mapping[str, float]) -> Figure:
    """The first `shown` steps of each path on the bowl, one panel each; then all losses, and when they reach `loss`."""
    figure, panels = _panels(columns=3, count=len(paths) + 1, height=2.3)
    for axes, (name, path) in zip(panels, paths.items(), strict=False):
        _contours(axes, surfaces.bowl, x=(-4.6, 1.6), y=(-1.25, 1.25), levels=np.geomspace(0.3, 80, 9))
        _path(axes, path[: shown + 1])
        steps = surfaces.steps_to(surfaces.bowl, path, loss=loss)
        axes.set_title(f"{name}, rate {rates[name]:.2g}\nloss {loss:g} after {steps} steps")
        axes.set(xlabel="x, shallow axis", ylabel="y, steep axis")
    for style, (name, path) in zip(_STYLES, paths.items(), strict=False):
        panels[-1].plot(np.maximum(surfaces.losses(surfaces.bowl, path), 1e-9), label=name, **style)
    panels[-1].set(xlabel="step", ylabel="loss", yscale="log", ylim=(1e-4, 1e3), xlim=(0, 300))
    panels[-1].axhline(loss, color="0.8", linewidth=0.8, zorder=0)
    panels[-1].legend(fontsize=7, ncols=2, loc="upper right", frameon=False)
    return figure


def saddle(paths: Mapping[str, np.ndarray], *, off_ridge: float) -> Figure:
    """The paths on the saddle, and the distance of each from the ridge, step by step."""
    figure, (plane, distance) = _panels(columns=2, count=2, height=3)
    _contours(plane, surfaces.saddle, x=(-1.2, 1.6), y=(-0.4, 1.5), levels=np.linspace(-0.24, 0.6, 12))
    for name, marker, style in (("sgd", "s", _STYLES[0]), ("momentum", ".", _STYLES[1])):
        plane.plot(*paths[name].T, marker=marker, markersize=4, label=name, **style)
        distance.plot(np.abs(paths[name][:, 1]), label=name, **style)
    plane.plot(0, 0, "kx", markersize=9, markeredgewidth=2, label="saddle", linestyle="none")
    plane.plot(0, 1, "k*", markersize=10, label="minimum", linestyle="none")
    plane.set(xlabel="x", ylabel="y", title="(x² − y²) / 2 + y⁴ / 4")
    plane.legend(fontsize=8, loc="upper right", framealpha=1)
    distance.set(
        xlabel="step",
        ylabel="|y|, distance of the ridge",
        yscale="log",
        title=f"started {off_ridge:g} off the ridge",
    )
    distance.legend(fontsize=8, frameon=False, loc="upper left")
    return figure


def dent(paths: Mapping[str, np.ndarray]) -> Figure:
    """The paths on the dented bowl, and the position of each, step by step."""
    figure, (curve, place) = _panels(columns=2, count=2, height=3)
    x = np.linspace(-1.5, 5.5, 400, dtype=np.float32)
    curve.plot(x, surfaces.losses(surfaces.dented_bowl, x[:, None]), color="0.7", linewidth=1)
    for name, marker, style in (("momentum", ".", _STYLES[1]), ("sgd", "s", _STYLES[0])):
        path = paths[name]
        place.plot(path[:, 0], label=name, **style)
        # Both would overlap: momentum is drawn a little above the curve.
        lift = 0.08 if name == "momentum" else 0.0
        line = {**style, "linestyle": "none"}
        curve.plot(
            path[:, 0],
            surfaces.losses(surfaces.dented_bowl, path) + lift,
            marker=marker,
            markersize=3,
            label=name,
            **line,
        )
        curve.plot(
            path[-1:, 0],
            surfaces.losses(surfaces.dented_bowl, path[-1:]) + lift,
            marker="o",
            markersize=9,
            markerfacecolor="none",
            color="black",
            linestyle="none",
            label="last point" if name == "sgd" else None,
        )
    curve.set(xlabel="x", ylabel="loss", title="a bowl with a dent (momentum lifted by 0.08)")
    curve.legend(fontsize=8, frameon=False, loc="upper center")
    place.set(xlabel="step", ylabel="x", title="where they are")
    place.legend(fontsize=8, frameon=False)
    return figure


def noise(paths: Mapping[str, np.ndarray], *, plain: np.ndarray, floor: float) -> Figure:
    """The paths under a noisy gradient, one panel each; then all losses, and SGD's theoretical `floor`.

    plain: the path without noise.
    """
    figure, panels = _panels(columns=2, count=len(paths) + 1, height=2.7)
    for axes, (name, path) in zip(panels, paths.items(), strict=False):
        _contours(axes, surfaces.round_bowl, x=(-4.4, 2.6), y=(-1.6, 2.6), levels=np.geomspace(0.1, 12, 7))
        axes.plot(*path.T, color="black", linewidth=0.7, label="path")
        axes.plot(*plain.T, color="0.45", linestyle="--", linewidth=1.2, label="sgd without noise")
        axes.plot(*path[0], "ko", markersize=6, markerfacecolor="white", label="start")
        axes.set(xlabel="x", ylabel="y", title=name)
    panels[0].legend(fontsize=8, frameon=False, loc="upper right")
    last = panels[-1]
    for style, (name, path) in zip(_STYLES, paths.items(), strict=False):
        loss = np.convolve(surfaces.losses(surfaces.round_bowl, path), np.ones(20) / 20, "valid")
        last.plot(np.arange(len(loss)) + 10, loss, label=name, **style)
    last.axhline(floor, color="0.35", linewidth=1, linestyle=":", label="floor of sgd in theory")
    last.set(xlabel="step", ylabel="loss, mean of 20 steps", yscale="log", ylim=(5e-4, 100))
    last.legend(fontsize=8, frameon=False, loc="upper right")
    return figure


def damping(paths: Mapping[str, np.ndarray], *, shown: int) -> Figure:
    """SGD and RMSProp on the bowl: the first `shown` steps along the steep axis, and along the shallow one."""
    figure, panels = _panels(columns=2, count=2, height=2.8)
    for axes, column, label in zip(panels, (1, 0), ("y, steep axis", "x, shallow axis"), strict=True):
        for name, marker, style in (("sgd", None, _STYLES[0]), ("rmsprop", ".", _STYLES[1])):
            axes.plot(paths[name][: shown + 1, column], marker=marker, markersize=4, label=name, **style)
        axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        axes.set(xlabel="step", ylabel=label)
    panels[0].set_ylim(-1.1, 1.6)
    panels[0].legend(fontsize=8, frameon=False, ncols=2, loc="upper right")
    panels[1].legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def adam(sizes: Mapping[str, np.ndarray], *, paths: Mapping[str, np.ndarray]) -> Figure:
    """Adam with and without bias correction: the sizes of its steps under a constant gradient, and x on x^2 / 2."""
    figure, (size, place) = _panels(columns=2, count=2, height=2.8)
    for name, label, style in (
        ("adam_uncorrected", "without correction", _STYLES[0]),
        ("adam", "with correction", _STYLES[1]),
    ):
        size.plot(np.arange(len(sizes[name])) + 1, sizes[name], label=label, marker="o", markevery=[0], **style)
        place.plot(paths[name][:, 0], label=label, **style)
    first = sizes["adam_uncorrected"][0]
    line = dict(arrowstyle="-", linewidth=0.6)
    size.annotate(f"first step: {first:.2f}", (1, first), (1.2, 1.7), fontsize=8, arrowprops=line)
    size.set(xlabel="step, constant gradient", ylabel="step size / learning rate", xscale="log", ylim=(0, 9))
    place.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    place.set(xlabel="step on x² / 2", ylabel="x")
    for axes in (size, place):
        axes.legend(fontsize=8, frameon=False, loc="upper right")
    return figure


def schedules(rates: Mapping[str, tuple[np.ndarray, np.ndarray]], *, watched: np.ndarray) -> Figure:
    """A panel per schedule: (with warm-up, without), float32 [steps]. watched: the loss that `plateau` saw."""
    figure, panels = _panels(columns=4, count=len(rates), height=2.0)
    for axes, (name, (warm, cold)) in zip(panels, rates.items(), strict=True):
        axes.plot(cold, color="0.6", linestyle="--", linewidth=1.2, label="no warm-up")
        axes.plot(warm, color="black", linewidth=1.2, label="warm-up")
        if name == "plateau":
            axes.plot(watched, color="0.35", linestyle=":", linewidth=1.6, label="loss (made up)")
        axes.set(title=name, xlabel="step", ylabel="rate / peak", ylim=(-0.04, 1.08))
    figure.legend(*_entries(panels), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def activations(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], *, x: np.ndarray) -> Figure:
    """A panel per activation: (value, derivative) at `x`, float32 [N]."""
    figure, panels = _panels(columns=3, count=len(curves), height=2.1)
    for axes, (name, (value, slope)) in zip(panels, curves.items(), strict=True):
        axes.axhline(0, color="0.85", linewidth=0.8)
        axes.axvline(0, color="0.85", linewidth=0.8)
        axes.plot(x, slope, color="0.45", linestyle="--", linewidth=1.2, label="derivative")
        axes.plot(x, value, color="black", linewidth=1.4, label="value")
        axes.set(title=name, xlabel="input", ylabel="output", ylim=(-1.4, 3.0))
    figure.legend(*_entries(panels), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def _panels(*, columns: int, count: int, height: float) -> tuple[Figure, list[Axes]]:
    rows = -(-count // columns)
    figure = Figure(figsize=(9, height * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.remove()
    for axes in panels[:count]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.title.set_size(10)
        axes.xaxis.label.set_size(9)
        axes.yaxis.label.set_size(9)
    return figure, panels[:count]


def _contours(axes: Axes, surface: Callable[[jax.Array], jax.Array], *, x, y, levels):
    columns, rows = np.meshgrid(np.linspace(*x, 48, dtype=np.float32), np.linspace(*y, 48, dtype=np.float32))
    loss = surfaces.losses(surface, np.stack([columns, rows], -1))
    axes.contour(columns, rows, loss, levels=levels, colors="0.8", linewidths=0.7)
    axes.set(xlim=x, ylim=y)


def _path(axes: Axes, path: np.ndarray):
    axes.plot(*path.T, color="black", linewidth=0.8, marker=".", markersize=3)
    axes.plot(*path[0], "ko", markersize=6, markerfacecolor="white")
    axes.plot(0, 0, "k*", markersize=9, markerfacecolor="white")


def _entries(panels: list[Axes]):
    """The lines and labels of the panels' legends, each label once."""
    named = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    return list(named.values()), list(named)
