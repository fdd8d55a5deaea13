"""The columns that a source keeps, and types for values that come without one."""

import json
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

# Lists and objects that are nested deeper become JSON.
_MOST_NESTED = 8

_SCALARS = {type(None): pa.null(), bool: pa.bool_(), float: pa.float64(), str: pa.string()}
_INTEGER = pa.int64()


@dataclass(frozen=True)
class Columns:
    """The columns to keep, and the conversion of their values.

    Attributes:
        fields: for each name in the source, the field of the result.
    """

    fields: dict[str, pa.Field]

    @classmethod
    def choose(
        cls, present: pa.Schema, wanted: list[str] | None, leave_out: Iterable[str | None], location: str
    ) -> "Columns":
        """Choose the `wanted` columns; all but `leave_out` if that is `None`.

        A column `id` becomes `source_id`, as `id` is that of the example.

        Raises:
            TypeError: `wanted` is no list.
            ValueError: there is no such column.
        """
        if isinstance(wanted, str):
            raise TypeError(f"columns={wanted!r} must be a list of names, for example [{wanted!r}].")
        for name in wanted or ():
            if name not in present.names:
                raise ValueError(f"There is no column {name!r} in {location!r}. There are: {', '.join(present.names)}.")
        names = wanted if wanted is not None else [name for name in present.names if name not in set(leave_out)]
        fields = {}
        for name in dict.fromkeys(names):
            kept = name
            if name == "id":
                kept = "source_id"
                while kept in present.names:
                    kept += "_"
            fields[name] = pa.field(kept, storable(present.field(name).type))
        return cls(fields)

    @property
    def schema(self) -> pa.Schema:
        """The fields of the result."""
        return pa.schema(list(self.fields.values()))

    def of(self, row: dict[str, Any]) -> dict[str, Any]:
        """Take the kept columns of a row; a missing value becomes `None`.

        Raises:
            ValueError: as [`conform`].
        """
        return {field.name: conform(row.get(name), field.type) for name, field in self.fields.items()}


def type_of(value: Any, depth: int = 0) -> pa.DataType:
    """Find the type of a value that was read from JSON."""
    if type(value) in _SCALARS:
        return _SCALARS[type(value)]
    if isinstance(value, int):
        return _INTEGER if -(2**63) <= value < 2**63 else pa.string()
    if isinstance(value, list) and depth < _MOST_NESTED:
        item = pa.null()
        for element in value:
            item = merge(item, type_of(element, depth + 1))
        return pa.list_(item)
    if isinstance(value, dict) and depth < _MOST_NESTED:
        return pa.struct({name: type_of(element, depth + 1) for name, element in value.items()})
    return pa.string()


def merge(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    """Find the type for values of both types: text (JSON) if there is no other.

    Example:
        >>> merge(pa.int64(), pa.float64()), merge(pa.int64(), pa.bool_())
        (DataType(double), DataType(string))
    """
    if first is second or first == second or pa.types.is_null(second):
        return first
    if pa.types.is_null(first):
        return second
    if {first, second} == {pa.int64(), pa.float64()}:
        return pa.float64()
    if pa.types.is_list(first) and pa.types.is_list(second):
        return pa.list_(merge(first.value_type, second.value_type))
    if pa.types.is_struct(first) and pa.types.is_struct(second):
        types = {field.name: field.type for field in first}
        for field in second:
            types[field.name] = merge(types.get(field.name, pa.null()), field.type)
        return pa.struct(types)
    return pa.string()


def storable(kind: pa.DataType) -> pa.DataType:
    """Find the type in which a parquet file holds `kind`: text for empty structs, and for columns without any value."""
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(storable(kind.value_type))
    if pa.types.is_struct(kind):
        if not kind.num_fields:
            return pa.string()
        return pa.struct({field.name: storable(field.type) for field in kind})
    return kind


def conform(value: Any, kind: pa.DataType) -> Any:
    """Convert a value to the type that its column has after [`merge`].

    Raises:
        ValueError: it does not fit that type: files of one data set may differ.

    Example:
        >>> conform(1, pa.float64()), conform([1, "a"], pa.list_(pa.string()))
        (1.0, ['1', 'a'])
    """
    try:
        converted = _convert(value, kind)
        pa.array([converted], kind)  # an error later would cost the other rows as well
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{reprlib.repr(value)} is not of the type {kind} of its column ({error}).") from error
    return converted


def _convert(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_string(kind):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if pa.types.is_floating(kind):
        return float(value)
    if pa.types.is_integer(kind) and value != int(value):  # Arrow would cut it off
        raise ValueError("it is no whole number")
    if pa.types.is_list(kind) and isinstance(value, list):
        return [_convert(element, kind.value_type) for element in value]
    if pa.types.is_struct(kind) and isinstance(value, dict):
        return {field.name: _convert(value.get(field.name), field.type) for field in kind}
    return value


def unify(schemas: dict[str, pa.Schema], wanted: list[str] | None, location: str) -> pa.Schema:
    """Join the schemas of all files.

    Raises:
        ValueError: a column has types that contradict each other, and is `wanted`.
    """
    types: dict[str, pa.DataType] = {}
    for file, schema in schemas.items():
        for field in schema:
            try:
                types[field.name] = _promote(types.get(field.name, pa.null()), _decoded(field.type))
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                if wanted is None or field.name in wanted:
                    raise ValueError(
                        f"Column {field.name!r} is of type {field.type} in {file!r}, but {types[field.name]} in files"
                        f" before it in {location!r}. Leave it out by naming the columns to keep, or go file by file."
                    ) from error
    return pa.schema(types)


def _promote(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    """The type that holds values of both; raises if Arrow knows none."""
    if first == second:
        return first
    schemas = [pa.schema({"column": kind}) for kind in (first, second)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def _decoded(kind: pa.DataType) -> pa.DataType:
    """The type of the values, without how a file encodes them."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
