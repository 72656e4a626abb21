"""Parses an op string such as `'pad_crop(4)|flip_lr(0.5)'` into a checked chain of ops.

The grammar is Python's, restricted to calls with literal arguments, joined by `|`. An op's signature defines its
arguments: the parameters after `key` and `image`, each annotated with its range (`linseed.ranges`).

    def random_hue(key, image, *, strength: Annotated[float, Between(0.0, 0.5)]): ...

Nothing here knows an op by name or uses JAX.
"""

import ast
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from linseed.ranges import RangeError, convert
from linseed.trainer.errors import ConfigError, unknown_name


class Op(NamedTuple):
    """One link of a chain: the op's name, and all its arguments, defaults included."""

    name: str
    arguments: dict[str, Any]


def signature(function: Callable) -> inspect.Signature:
    """An op's signature for its user: without `key` and `image`; keywords may be positional."""
    parameters = list(inspect.signature(function).parameters.values())[2:]
    return inspect.Signature([p.replace(kind=p.POSITIONAL_OR_KEYWORD) for p in parameters])


def usage(name: str, function: Callable) -> str:
    """One line that shows how to write the op: `pad_crop(padding, mode='constant')`."""
    parameters = [p.replace(annotation=p.empty) for p in signature(function).parameters.values()]
    return f"{name}{inspect.Signature(parameters)}"


def parse_chain(spec: str, ops: Mapping[str, Callable]) -> tuple[Op, ...]:
    """Parses an op string against a table of ops; blank gives the empty chain.

    Line breaks count as spaces. Raises ConfigError, in one line with the position or the op and a fix, for a string
    that does not parse, an op that is not in `ops`, arguments that do not match its signature, or values out of range.
    """
    if not isinstance(spec, str):
        raise ConfigError(f"augment must be a string such as 'flip_lr(0.5)', or '' for none; got {spec!r}")
    spec = re.sub(r"\s", " ", spec).strip()
    return tuple(_read_op(call, spec, ops) for call in _calls(spec)) if spec else ()


def _calls(spec: str) -> list[ast.expr]:
    """The links of the chain in order, as syntax trees. ASCII only, so columns count characters."""
    # '#' would silently turn the rest of the chain into a comment.
    if odd := re.search(r"[^ -~]|#", spec):
        raise ConfigError(
            f"augment: {odd[0]!a} cannot be part of an op string: {_mark(spec[: odd.end()], odd.start())}"
        )
    try:
        pending = [ast.parse(spec, mode="eval").body]
    except SyntaxError as error:
        place = len(spec) if error.offset is None else error.offset - 1
        raise ConfigError(f"augment does not parse ({error.msg}): {_mark(spec, place)}") from None
    except (RecursionError, MemoryError):
        raise ConfigError(f"augment does not parse: {len(spec)} characters nest too deeply; shorten it") from None
    calls = []
    while pending:
        node = pending.pop()
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            pending += [node.right, node.left]
        else:
            calls.append(node)
    return calls


def _read_op(call: ast.expr, spec: str, ops: Mapping[str, Callable]) -> Op:
    name_node = call.func if isinstance(call, ast.Call) else call
    if not isinstance(name_node, ast.Name):
        raise ConfigError(
            f"augment: expected ops such as flip_lr(0.5), joined by '|': {_mark(spec, name_node.col_offset)}"
        )
    name = name_node.id
    if name not in ops:
        raise ConfigError(unknown_name("augmentation op", name, ops))
    how = f"write {usage(name, ops[name])}"
    if not isinstance(call, ast.Call):
        raise ConfigError(f"augment: {name} needs parentheses; {how}: {_mark(spec, call.end_col_offset)}")
    try:
        # A `**mapping` is a keyword without a name, which cannot bind; a `*sequence` is refused as a value.
        keywords = {keyword.arg or "**": keyword.value for keyword in call.keywords}
        if len(keywords) < len(call.keywords):
            raise TypeError("the same keyword argument twice")
        bound = signature(ops[name]).bind(*call.args, **keywords)
    except TypeError as error:
        raise ConfigError(f"augment: {name}: {error}; {how}: {_mark(spec, call.end_col_offset)}") from None
    arguments = {}
    for parameter in bound.signature.parameters.values():
        if parameter.name not in bound.arguments:
            arguments[parameter.name] = parameter.default
            continue
        node = bound.arguments[parameter.name]
        written = spec[node.col_offset : node.end_col_offset]
        try:
            arguments[parameter.name] = convert(_literal(node), parameter.annotation)
        except RangeError as error:
            raise ConfigError(f"augment: {name}: {parameter.name} must be {error}; got {written}; {how}") from None
    return Op(name, arguments)


def _literal(node: ast.expr) -> Any:
    """The value of a literal; another expression stays a node, which matches no argument."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return node


def _mark(spec: str, place: int) -> str:
    return f"{spec[:place]}>>>here<<<{spec[place:]}"
