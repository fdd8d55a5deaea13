"""Reading a column of the examples that `datasets` passes to the callables of `map`."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from mimi_hf.feature_extraction_mimi import is_number
from mimi_hf.utils import remote


def read_column(examples: Mapping[str, Any], name: str, argument: str, depth: int = 1) -> tuple[list[Any], bool]:
    """Read the values of a column.

    Args:
        examples: one example, or a batch.
        name: of the column.
        argument: the argument that names the column, for the error message.
        depth: dimensions of numbers in one value, at least. In a plain dictionary, a column with more is a batch.

    Returns:
        The values, and whether they are a batch.

    Raises:
        ValueError: there is no such column.
        TypeError: the examples are no mapping, for example those of a data set formatted for pandas.

    Example:
        >>> read_column({"audio": ["a.wav", "b.wav"]}, "audio", "audio_column")
        (['a.wav', 'b.wav'], True)
        >>> read_column({"audio": [0.1, 0.2]}, "audio", "audio_column")
        ([[0.1, 0.2]], False)
    """
    if not isinstance(examples, Mapping):
        raise TypeError(
            f"The examples come as {type(examples).__name__}, but a mapping of columns is needed. Map the data set"
            " with_format(None), and without input_columns."
        )
    if name not in examples:
        raise ValueError(f"There is no column {name!r}, but {', '.join(map(repr, examples))}. Give {argument}.")
    if name in getattr(examples, "keys_to_format", ()):
        # `datasets` has not decoded this column yet, so it is read as it is stored: without torchcodec, without a
        # Python object for every sample, and `map` writes it again unchanged.
        from datasets.formatting.formatting import LazyBatch

        table: Any = getattr(examples, "pa_table")  # noqa: B009 (of LazyDict, which is no plain mapping)
        return [_plain(scalar) for scalar in table[name]], isinstance(examples, LazyBatch)
    value = examples[name]
    return (list(value), True) if _is_batch(value, depth) else ([value], False)


def _is_batch(value: Any, depth: int) -> bool:
    inner = value
    for _ in range(depth):
        if inner is None or isinstance(inner, Mapping | str | bytes) or hasattr(inner, "get_all_samples"):
            return inner is None and value is not None
        if not hasattr(inner, "__len__") or not len(inner):
            return False
        inner = inner[0]
    return not is_number(inner)


def _plain(scalar: Any) -> Any:
    """`scalar.as_py()` of a pa.Scalar, with arrays in place of lists of numbers."""
    if isinstance(scalar, pa.ExtensionScalar):
        scalar = scalar.value
    if scalar is None or not scalar.is_valid:
        return None
    if isinstance(scalar, pa.StructScalar):
        return {field.name: _plain(scalar[field.name]) for field in scalar.type}
    if isinstance(scalar, pa.ListScalar):
        values = scalar.values
        if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
            return values.to_numpy(zero_copy_only=False)
        return [_plain(value) for value in values]
    return scalar.as_py()


def fetch(value: Any) -> Any:
    """Fetch the bytes of an example that is a URL, or has one as its `path`; return any other value as it is.

    Raises:
        ValueError: it cannot be fetched.
    """
    held = isinstance(value, Mapping) and (value.get("array") is not None or value.get("bytes") is not None)
    path = value.get("path") if isinstance(value, Mapping) and not held else value
    fetched = remote.fetch(path) if isinstance(path, str) else path
    return value if fetched is path else fetched


__all__ = ["fetch", "read_column"]
