"""What a value may be, said once and beside the parameter: an annotation that carries a range.

    def adam(rules, *, b1: Annotated[float, Between(0, 1, below=True)] = 0.9, weight_decay: NonNegative = 0.0): ...

The parameters of models, optimisers, schedules, losses, sources and augmentation ops are annotated so, and so are the
plain keys of a config. `convert` checks a value against its annotation, `read` reads one from a command line.

Annotations are `int`, `float`, `bool` and `str`, `Literal`, `Annotated` with a range of this module, `tuple[X, ...]` of
these, and unions. This module imports nothing of the package, so that everything can import it.
"""

import ast
import difflib
import math
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple

LARGEST = 3.4e38  # of float32, in which everything is computed


class RangeError(ValueError):
    """A value that its annotation does not allow. The message says what would do: "a number in [0, 1]"."""


class Between(NamedTuple):
    """The range of a number. `above` and `below` leave out the ends; an end may be infinite, the number may not."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value) -> bool:
        over = value > self.low if self.above else value >= self.low
        return over and (value < self.high if self.below else value <= self.high) and abs(value) <= LARGEST

    def __str__(self) -> str:
        if math.isinf(self.high) and not math.isinf(self.low):
            return f"above {self.low:g}" if self.above else f"of at least {self.low:g}"
        if math.isinf(self.low) and math.isinf(self.high):
            return ""
        return f"in {'(' if self.above else '['}{self.low:g}, {self.high:g}{')' if self.below else ']'}"


class OneOf:
    """The names that a string may be: `Annotated[str, OneOf(TABLE)]`, `Annotated[str, OneOf("auto", *TABLE)]`."""

    def __init__(self, *names: str | Iterable[str]):
        self._names = names

    @property
    def names(self) -> tuple[str, ...]:
        """Read when asked for: a plugin may add to a table."""
        return tuple(item for name in self._names for item in ([name] if isinstance(name, str) else name))


class Length(NamedTuple):
    """The least number of items of a tuple: `Annotated[tuple[Count, ...], Length(1)]`."""

    least: int


Positive = Annotated[float, Between(0, above=True)]
NonNegative = Annotated[float, Between(0)]
Fraction = Annotated[float, Between(0, 1)]
BelowOne = Annotated[float, Between(0, 1, below=True)]  # [0, 1): dropout, momentum
AboveZero = Annotated[float, Between(0, 1, above=True)]  # (0, 1]
Inside = Annotated[float, Between(0, 1, above=True, below=True)]  # (0, 1)
Count = Annotated[int, Between(1, 2**31 - 1)]
Natural = Annotated[int, Between(0, 2**31 - 1)]
# A time, in the unit that ends the parameter's name in a config: epochs, examples, percent, steps.
Duration = Annotated[float, Between(0, 1e12)]
PositiveDuration = Annotated[float, Between(0, 1e12, above=True)]


def convert(value: Any, annotation: Any) -> Any:
    """`value` in the type that the annotation names, an int as a float and a list as a tuple.

    Raises RangeError, whose message says what would fit, and TypeError for an annotation of another kind.
    """
    kind, ranges = _split(annotation)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        wanted = []
        for choice in typing.get_args(kind):
            try:
                return convert(value, choice)
            except RangeError as error:
                wanted.append(str(error))
        raise RangeError(" or ".join(wanted))
    if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            raise RangeError(_one_of(value, choices))
        return value
    if typing.get_origin(kind) is tuple:
        return _tuple(value, typing.get_args(kind)[0], least=max([each.least for each in ranges], default=0))
    if kind is str:
        return _text(value, ranges)
    if kind is bool:
        if not isinstance(value, bool):
            raise RangeError("True or False")
        return value
    if kind in (int, float):
        return _number(value, kind, ranges[0] if ranges else Between())
    raise TypeError(f"{annotation!r} says no range; see linseed.ranges")


def read(text: str, annotation: Any) -> Any:
    """A value as it is written on a command line; what is no literal, or is to be text, stays text.

    The result still has to go through `convert`.
    """
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    kind, _ = _split(annotation)
    choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    is_text = kind is str or bool(choices) and all(isinstance(choice, str) for choice in choices)
    return text if is_text and not isinstance(value, str) else value


def hint(name: Any, known: Iterable[Any]) -> str:
    """The nearest known name and all of them: "did you mean 'adam'? known: adam, sgd"."""
    known = sorted(map(str, known))
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return (f"did you mean '{near[0]}'? " if near else "") + f"known: {', '.join(known)}"


def _split(annotation):
    """The type of an annotation, and the ranges that `Annotated` puts beside it."""
    if typing.get_origin(annotation) is Annotated:
        kind, *ranges = typing.get_args(annotation)
        return kind, ranges
    return annotation, []


def _number(value, kind, between):
    noun = f"{'a whole number' if kind is int else 'a number'} {between}".strip()
    accepted = (int,) if kind is int else (int, float)
    # `type(...) in`, not isinstance: True is an int.
    if type(value) not in accepted or value != value or value not in between:
        raise RangeError(noun)
    return kind(value)


def _text(value, ranges):
    if not isinstance(value, str):
        raise RangeError(f"one of {', '.join(map(repr, ranges[0].names))}" if ranges else "a string")
    if ranges and value not in ranges[0].names:
        raise RangeError(_one_of(value, ranges[0].names))
    return value


def _one_of(value, choices):
    near = difflib.get_close_matches(str(value), list(map(str, choices)), n=1, cutoff=0.5)
    return f"one of {', '.join(map(repr, choices))}" + (f" (did you mean '{near[0]}'?)" if near else "")


def _tuple(value, item, *, least):
    noun = "a tuple, such as (1, 2)" if least else "a tuple, () for none"
    if not isinstance(value, (tuple, list)):
        raise RangeError(noun)
    if len(value) < least:
        raise RangeError(f"a tuple of at least {least}")
    try:
        return tuple(convert(each, item) for each in value)
    except RangeError as error:
        raise RangeError(f"a tuple whose items are each {error}") from None
