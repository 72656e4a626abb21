"""Per-parameter rules: learning-rate and decay multipliers and frozen weights, by regex over the path.

A rule is a string, `"pattern: settings"`. The pattern is a regex for the whole '/'-joined path of a parameter
(`re.fullmatch`), or `rest` for all parameters that no other rule matches. The settings, comma-separated, are `lr=0.1`
and `decay=0` (multipliers), `layer_decay=0.8` and `until_epochs=3`, or `frozen`. Without settings, a rule changes
nothing:

    ("stem/kernel: frozen", "stem/bias: until_epochs=3", "head/.*: lr=10", "rest:")

`until_epochs`, `until_percent` and so on take any unit of a duration. These parameters follow the run's schedule as if
the run ended there, and are frozen afterwards.

`layer_decay=d` multiplies the rate of layer l of L by d to the power of L - l: the closer to the images, the less a
layer moves (Clark et al. 2020, "ELECTRA", section 3.3; Bao et al. 2022, "BEiT"). See `layers`.

Exactly one rule must match each parameter, and each rule must match a parameter. `decay` is 1 by default, and 0 for
biases and the scales of normalisation layers.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from linseed.trainer.errors import ConfigError
from linseed.trainer.optim.schedules import UNITS

REST = "rest"
DEFAULT_RULES = (f"{REST}:",)

_NO_MATRICES = ("alpha", "beta", "bias", "scale", "cls_token", "dist_token", "pos_embed", "reg_token")
_IS_STEM = re.compile("stem|patch_embed|cls_token|dist_token|pos_embed|reg_token|norm_pre")


class Rule(NamedTuple):
    """One rule. lr, decay: multipliers, at least 0; decay None: the default of the leaf.

    until: a duration, (value, unit), or None for the whole run. layer_decay: of lr, for each layer below the last.
    """

    pattern: str
    lr: float
    decay: float | None
    frozen: bool
    until: tuple[float, str] | None = None
    layer_decay: float = 1.0


def compile_pattern(pattern: str, *, key: str) -> re.Pattern:
    """`re.compile`. Raises ConfigError, which names `key`, if `pattern` is not a regex."""
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"{key}: {pattern!r} is not a regular expression ({error}); correct it") from None


def parse(rule: str) -> Rule:
    """Parses `"pattern: settings"`. Raises ConfigError, one line."""
    pattern, colon, settings = rule.rpartition(":")
    pattern = pattern.strip()
    if not colon or not pattern:
        raise ConfigError(f"rule {rule!r} should read 'pattern: settings', such as 'head/.*: lr=0.1'")
    compile_pattern(pattern, key=f"rule {rule!r}")
    values, until = {}, None
    for setting in filter(None, map(str.strip, settings.split(","))):
        name, _, value = (part.strip() for part in setting.partition("="))
        if name in values:
            raise ConfigError(f"rule {rule!r} gives {name} twice; remove one")
        if setting == "frozen":
            values[name] = True
        elif name in ("lr", "decay", "layer_decay"):
            values[name] = _multiplier(value, rule)
        elif name.startswith("until_") and name.removeprefix("until_") in UNITS:
            if until:
                raise ConfigError(f"rule {rule!r} gives until twice; remove one")
            values[name] = _multiplier(value, rule)
            until = (values[name], name.removeprefix("until_"))
        else:
            raise ConfigError(
                f"rule {rule!r}: {setting!r} should be lr=NUMBER, decay=NUMBER, layer_decay=NUMBER, "
                "until_epochs=NUMBER or frozen"
            )
    if 0 in (values.get("lr"), values.get("layer_decay")):
        raise ConfigError(f"rule {rule!r}: a rate of 0 trains nothing; write frozen instead")
    if "frozen" in values and len(values) > 1:
        raise ConfigError(f"rule {rule!r}: frozen takes no other setting; remove one")
    if until and not until[0]:
        raise ConfigError(f"rule {rule!r}: until 0 trains nothing; write frozen instead")
    return Rule(
        pattern, values.get("lr", 1.0), values.get("decay"), "frozen" in values, until, values.get("layer_decay", 1.0)
    )


def in_steps(rules: Sequence[str], *, to_steps: Callable) -> tuple[str, ...]:
    """`rules` with each `until_...` converted to `until_steps`. to_steps: `schedules.durations_to_steps` of the run."""

    def convert(rule):
        until = parse(rule).until
        if until is None:
            return rule
        pattern, _, settings = rule.rpartition(":")
        steps = to_steps("optimizer.rules", {f"until_{until[1]}": until[0]})["until_steps"]
        return f"{pattern}:{re.sub(r'until_[a-z]+ *= *[^, ]+', f'until_steps={max(1, steps)}', settings)}"

    return tuple(map(convert, rules))


def with_layer_decay(rules: Sequence[str], layer_decay: float) -> tuple[str, ...]:
    """`rules` with this layer decay in each that trains and has none of its own."""

    def decayed(rule):
        found = parse(rule)
        if layer_decay == 1.0 or found.frozen or found.layer_decay != 1.0:
            return rule
        return f"{rule}{',' * bool(rule.rpartition(':')[2].strip())} layer_decay={layer_decay:g}"

    return tuple(map(decayed, rules))


def _multiplier(text, rule):
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ConfigError(f"rule {rule!r}: {text!r} should be a number, at least 0")
    return value


def paths(params) -> list[str]:
    """The '/'-joined path of each leaf, in the order of `jax.tree.leaves`."""
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]


def decay_mask(params):
    """True for the leaves that weight decay acts on by default.

    Vectors, scalars, and leaves named `bias` or `scale` are excluded, since an attention layer's biases have two axes
    and the `alpha` and `beta` of an affine layer three. So are tokens and positions, which stand in for inputs.
    """
    spared = [path.rsplit("/", 1)[-1] in _NO_MATRICES for path in paths(params)]
    leaves, tree = jax.tree.flatten(params)
    return tree.unflatten([leaf.ndim > 1 and not spare for leaf, spare in zip(leaves, spared, strict=True)])


def layers(params) -> list[int]:
    """The layer of each leaf, in the order of `jax.tree.leaves`: 0 the one at the images.

    The blocks of a network, top-level modules with numbers in their names, are a layer each, in the order of these
    numbers, dense ones after the others; what begins with `stem` and what is added to patches is layer 0, and all that
    has no number is the last one, with the head.
    """
    tops = [path.partition("/")[0] for path in paths(params)]
    places = {top: _place(top) for top in tops}
    order = sorted({place for place in places.values() if place})
    numbers = {None: len(order) + 1, (): 0, **{place: i + 1 for i, place in enumerate(order)}}
    return [numbers[places[top]] for top in tops]


def _place(top: str) -> tuple[int, ...] | None:
    """What orders the blocks of a network, () for its stem, None for what comes after all blocks."""
    if _IS_STEM.match(top):
        return ()
    numbers = [int(number) for number in re.findall(r"\d+", top)]
    # What stands between two stages has the stage's number alone: it belongs to the first block of that stage.
    between = [1] if "stage" in top and len(numbers) == 1 else []
    return ("dense" in top and "stage" not in top, *numbers, *between) if numbers else None


def assign(rules: Sequence[str], params) -> list[Rule]:
    """The rule of each leaf of `params`, in the order of `jax.tree.leaves`.

    Raises ConfigError, one line: if no rule or more than one matches a leaf, if a rule matches nothing, or if two have
    the same pattern.
    """
    parsed = [parse(rule) for rule in rules]
    patterns = [rule.pattern for rule in parsed]
    for pattern in patterns:
        if patterns.count(pattern) > 1:
            raise ConfigError(f"two rules have the pattern {pattern!r}; keep one")
    names = paths(params)
    matched = {name: [rule for rule in parsed if rule.pattern != REST and _matches(rule, name)] for name in names}
    rest = [rule for rule in parsed if rule.pattern == REST]
    matched = {name: found or rest for name, found in matched.items()}
    twice = [name for name, found in matched.items() if len(found) > 1]
    if twice:
        both = " and ".join(repr(rule.pattern) for rule in matched[twice[0]][:2])
        raise ConfigError(
            f"more than one rule matches {_few(twice)} ({both}); narrow one, or write '{REST}:' for all others"
        )
    missed = [name for name, found in matched.items() if not found]
    if missed:
        raise ConfigError(f"no rule matches {_few(missed)}; add '{REST}:' for all others")
    used = {found[0].pattern for found in matched.values()}
    for pattern in patterns:
        if pattern not in used:
            raise ConfigError(f"the rule {pattern!r} matches no parameter; there are {_few(names)}")
    return [matched[name][0] for name in names]


def _matches(rule, name):
    return re.fullmatch(rule.pattern, name) is not None


def _few(names, shown=3):
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def lr_multipliers(rules: Sequence[str], params):
    """The learning-rate multiplier of each leaf, a tree of floats; 0 where frozen."""
    depths = layers(params)
    found = [
        0.0 if rule.frozen else rule.lr * rule.layer_decay ** (max(depths) - depth)
        for rule, depth in zip(assign(rules, params), depths, strict=True)
    ]
    return jax.tree.structure(params).unflatten(found)


def decay_multipliers(rules: Sequence[str], params):
    """The decay multiplier of each leaf, a tree of floats; 0 where frozen."""
    default = jax.tree.leaves(decay_mask(params))
    found = [
        0.0 if rule.frozen else float(decays) if rule.decay is None else rule.decay
        for rule, decays in zip(assign(rules, params), default, strict=True)
    ]
    return jax.tree.structure(params).unflatten(found)


def any_frozen(rules: Sequence[str]) -> bool:
    """Whether a rule freezes parameters."""
    return any(parse(rule).frozen for rule in rules)


def any_lr(rules: Sequence[str]) -> bool:
    """Whether a rule changes a learning rate."""
    return any((rule.lr, rule.layer_decay) != (1.0, 1.0) for rule in map(parse, rules)) or any_until(rules)


def any_until(rules: Sequence[str]) -> bool:
    """Whether a rule ends before the run does."""
    return any(parse(rule).until for rule in rules)


def without_frozen_gradients(rules: Sequence[str], params):
    """`params` with the frozen ones as constants: their gradient is zero and is not computed."""
    found = [
        jax.lax.stop_gradient(leaf) if rule.frozen else leaf
        for rule, leaf in zip(assign(rules, params), jax.tree.leaves(params), strict=True)
    ]
    return jax.tree.structure(params).unflatten(found)


def last_steps(rules: Sequence[str], params):
    """How many steps each leaf trains for, a tree of numbers; `inf` for the whole run. rules: from `in_steps`."""
    found = [rule.until[0] if rule.until else math.inf for rule in assign(rules, params)]
    return jax.tree.structure(params).unflatten(found)
