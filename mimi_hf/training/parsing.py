"""From YAML to dataclasses: values of the right types, and errors that name the field."""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Collection, Iterable
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Reads 3e-4 as a number."""


_NUMBER = re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+0123456789"))


def parse_yaml(text: str) -> Any:
    """Parse YAML by its safe loader, but read 3e-4 as a number, not as a string.

    Raises:
        yaml.YAMLError: the text is no YAML.
    """
    return yaml.load(text, _Loader)


def to_plain(value: Any) -> Any:
    """Return `value` with lists for tuples."""
    if isinstance(value, dict):
        return {name: to_plain(item) for name, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value


def build_dataclass(kind: type, content: Any, path: str) -> Any:
    """Build a dataclass, and those nested in it, from a dictionary, and check each value against its field's type.

    Args:
        kind: the dataclass.
        content: what YAML gave; anything but a dictionary is refused.
        path: dotted name of the group, for error messages; empty for the whole.

    Raises:
        ValueError: for an unknown or a missing field.
        TypeError: for a value of the wrong type.
    """
    where = path or "the configuration"
    if not isinstance(content, dict):
        raise TypeError(f"{where} is {content!r}, but must be a mapping of names to values.")
    hints, fields = typing.get_type_hints(kind), {item.name: item for item in dataclasses.fields(kind)}
    values = {}
    refuse_unknown(content, fields, where)
    for name, value in content.items():
        values[name] = _convert(hints[name], value, f"{path}.{name}".lstrip("."))
    for name, item in fields.items():
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ValueError(f"{path}.{name} is missing.".lstrip(".") + " It has no default.")
    return kind(**values)


def refuse_unknown(content: Iterable[str], fields: Collection[str], where: str) -> None:
    """Raise ValueError for a name that is none of the fields."""
    for name in content:
        if name not in fields:
            close = difflib.get_close_matches(str(name), fields, 1)
            raise ValueError(
                f"{where} has no field {name!r}."
                + (f" Did you mean {close[0]!r}?" if close else "")
                + f" Its fields: {', '.join(fields)}."
            )


def _convert(hint: Any, value: Any, path: str) -> Any:
    """Convert a value to a type: lists and single values to tuples, integers to floats, mappings to dataclasses."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    hint = next(option for option in options if option is not type(None))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build_dataclass(hint, value, path)
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_convert(item, one, path) for one in items)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wrong = not isinstance(value, hint) or (hint is int and isinstance(value, bool))
    if wrong:
        raise TypeError(f"{path}={value!r} must be of type {hint.__name__}.")
    return value
