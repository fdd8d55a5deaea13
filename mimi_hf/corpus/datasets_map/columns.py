"""Columns as `datasets` passes them to the callables of `map`."""

from collections.abc import Mapping

import pyarrow as pa

from mimi_hf.feature_extraction_mimi import is_number
from mimi_hf.utils import remote


def read_column(examples: Mapping, name: str, argument: str, depth: int = 1) -> tuple[list, bool]:
    """The values of a column, and whether there is a batch of them.

    Args:
        examples: one example, or a batch of them.
        name: of the column.
        argument: which says so, for the message where there is no such column.
        depth: dimensions of numbers that one value has at least, which tell it from a batch in a plain dictionary.

    Raises:
        ValueError: there is no such column.
        TypeError: the examples come in another form, such as that of a data set formatted for pandas.

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
        # What `datasets` has not decoded yet is read as it is stored: without torchcodec, without a Python object for
        # every sample; and it is written again unchanged.
        from datasets.formatting.formatting import LazyBatch

        return [_plain(scalar) for scalar in examples.pa_table[name]], isinstance(examples, LazyBatch)
    value = examples[name]
    return (list(value), True) if _is_batch(value, depth) else ([value], False)


def _is_batch(value, depth: int) -> bool:
    inner = value
    for _ in range(depth):
        if inner is None or isinstance(inner, Mapping | str | bytes) or hasattr(inner, "get_all_samples"):
            return inner is None and value is not None
        if not hasattr(inner, "__len__") or not len(inner):
            return False
        inner = inner[0]
    return not is_number(inner)


def _plain(scalar: pa.Scalar):
    """`scalar.as_py()`, with arrays in place of lists of numbers."""
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


def fetch(value):
    """The content behind the URL of an example; all else as it is.

    Raises:
        ValueError: it cannot be fetched.
    """
    held = isinstance(value, Mapping) and (value.get("array") is not None or value.get("bytes") is not None)
    path = value.get("path") if isinstance(value, Mapping) and not held else value
    fetched = remote.fetch(path) if isinstance(path, str) else path
    return value if fetched is path else fetched


__all__ = ["fetch", "read_column"]
