"""`index.html`: the whole gallery on one self-contained page; each picture is also a file next to it."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np

from linseed.scripts.gallery import demos, draw, strips, surfaces
from linseed.trainer import files

_PAGE = jinja2.Environment(autoescape=True).from_string("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Gallery</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
  h2 { border-bottom: 1px solid #ddd; margin-top: 2.5rem; }
  figure { margin: 1.5rem 0; }
  img { display: block; max-width: 100%; }
  img[src^="data:image/svg"] { width: 100%; }
  figcaption { margin-top: .25rem; }
</style>
<h1>Gallery</h1>
{% for title, pictures in sections %}
<h2>{{ title }}</h2>
{% for picture, uri in pictures %}
<figure id="{{ picture.name }}"><img alt="{{ picture.alt }}" src="{{ uri }}">
<figcaption>{{ picture.caption }}</figcaption></figure>
{% endfor %}
{% endfor %}
<p>{{ credit }}</p>
</html>
""")
_TYPES = {".svg": "image/svg+xml", ".png": "image/png"}


class Picture(NamedTuple):
    """A picture of the page. file: its name in the folder. alt: its description, for those who cannot see it."""

    file: str
    alt: str
    caption: str

    @property
    def name(self):
        return Path(self.file).stem


OPTIMISERS = (
    Picture(
        "bowl.png",
        "Paths of sgd, momentum, nesterov, rmsprop and adam on an ill-conditioned bowl, and their losses",
        f"The first {demos.BOWL_SHOWN} steps from the circle on (x² + 100 y²) / 2, condition number 100. The star is "
        "the minimum. SGD, at the rate 2 / 101, jitters along the steep axis and crawls along the shallow one. RMSProp "
        "and Adam rescale each axis, which helps on a bowl that lies along the axes.",
    ),
    Picture(
        "saddle.svg",
        "Paths of sgd and momentum over a saddle",
        f"Both start a millionth off the ridge, at one rate. After {demos.SADDLE_STEPS} steps SGD is still within a "
        "thousandth of the saddle, and momentum has left for the minimum. Exactly on the ridge neither would leave.",
    ),
    Picture(
        "dent.svg",
        "sgd and momentum roll down a bowl with a dent",
        "A local minimum on the way: SGD stops in it. Momentum, at the same rate, rolls through it to the minimum.",
    ),
    Picture(
        "noise.png",
        "Paths of sgd and momentum under noisy gradients, and their losses",
        "Each component of the gradient has noise of one standard deviation. SGD meanders, and momentum takes a "
        "smoother path. Both end at the floor that the noise sets; a falling rate gets below it.",
    ),
    Picture(
        "damping.svg",
        "sgd and rmsprop along the steep and the shallow axis of the bowl",
        "RMSProp divides by the size of the gradient. This damps the steep axis and speeds up the shallow one.",
    ),
    Picture(
        "adam.svg",
        "Sizes of Adam's first steps, and its path to the minimum of a parabola, with and without bias correction",
        "Without bias correction Adam's first step is (1 - b1) / sqrt(1 - b2) = 3.16 times the rate, and the next are "
        "larger still. From one rate off the minimum of a parabola Adam steps onto it, without correction far past it.",
    ),
)
SCHEDULES = Picture(
    "schedules.svg",
    f"Learning rate over {demos.SCHEDULE_STEPS} steps: {', '.join(demos.SCHEDULE_SETTINGS)}",
    f"Every schedule over {demos.SCHEDULE_STEPS} steps, with a linear warm-up of {demos.SCHEDULE_WARMUP} steps and "
    "without. The warm-up of one_cycle ends at its first rate. The plateau schedule watches a made-up loss.",
)


def write(out: Path, activations: Mapping[str, Any], *, specs: Mapping[str, str] = strips.SPECS) -> Path:
    """Draws all pictures and `index.html` into the folder `out`, created if needed; returns the page's path.

    activations: name -> argument of `demos.activation_curve`. specs: augmentation -> the op string to draw. Raises
    OSError if `out` is not writable.
    """
    out.mkdir(parents=True, exist_ok=True)
    rectifiers = Picture(
        "activations.svg",
        f"Value and derivative of each activation: {', '.join(activations)}",
        "Every activation and its derivative. The slope of prelu is its initial one. The maxout is the larger of two "
        "lines, x and -x / 2.",
    )
    photos = [
        Picture(f"op_{name}.png", f"A photograph and {strips.DRAWS} draws of {name}", spec)
        for name, spec in specs.items()
    ]
    figures = _figures(activations)
    for picture in (*OPTIMISERS, SCHEDULES, rectifiers):
        draw.save(figures[picture.name], out / picture.file)
    image = strips.photograph()
    for picture, spec in zip(photos, specs.values(), strict=True):
        strips.save(strips.strip(spec, image), out / picture.file)
    sections = {
        "Optimisers": OPTIMISERS,
        "Schedules": (SCHEDULES,),
        "Activations": (rectifiers,),
        "Augmentations: the original, then draws of it": photos,
    }
    page = out / "index.html"
    files.write(page, render(out, sections))
    return page


def render(out: Path, sections: Mapping[str, Sequence[Picture]]) -> str:
    """The page, with the picture files in `out` embedded."""
    return _PAGE.render(
        credit=strips.CREDIT,
        sections=[
            (title, [(picture, _uri(out / picture.file)) for picture in pictures])
            for title, pictures in sections.items()
        ],
    )


def _figures(activations):
    on_bowl = demos.bowl_paths(surfaces.bowl, demos.BOWL_START)
    noisy = demos.noisy_paths()
    x = np.linspace(-3, 3, 241, dtype=np.float32)
    rates = {
        name: tuple(demos.schedule_rates(name, warmup_steps=steps) for steps in (demos.SCHEDULE_WARMUP, 0))
        for name in demos.SCHEDULE_SETTINGS
    }
    return {
        "bowl": draw.bowl(
            on_bowl,
            shown=demos.BOWL_SHOWN,
            loss=demos.BOWL_LOSS,
            rates={name: run["lr"] for name, run in demos.BOWL_RUNS.items()},
        ),
        "saddle": draw.saddle(demos.saddle_paths(demos.SADDLE_OFF_RIDGE), off_ridge=demos.SADDLE_OFF_RIDGE),
        "dent": draw.dent(demos.dent_paths()),
        "noise": draw.noise(noisy, plain=noisy.pop("no noise"), floor=demos.noise_floor()),
        "damping": draw.damping(on_bowl, shown=demos.BOWL_SHOWN),
        "adam": draw.adam(demos.adam_step_sizes(1000), paths=demos.adam_paths()),
        "schedules": draw.schedules(rates, watched=demos.made_up_loss(np.arange(demos.SCHEDULE_STEPS))),
        "activations": draw.activations(
            {name: demos.activation_curve(activation, x) for name, activation in activations.items()}, x=x
        ),
    }


def _uri(path):
    return f"data:{_TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
