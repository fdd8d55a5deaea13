"""Values and the types of their columns."""

import pyarrow as pa
import pytest

from mimi_hf.corpus.sources.columns import conform


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("x", pa.int64()),
        (1.5, pa.int64()),
        (300, pa.int8()),
        (2**70, pa.int64()),
        (2, pa.bool_()),
        ("true", pa.bool_()),
        ("x", pa.float64()),
        ([1], pa.float32()),
        (10**400, pa.float64()),
        (3, pa.list_(pa.int64())),
        ([1, "x"], pa.list_(pa.int64())),
        ({"a": "x"}, pa.struct([("a", pa.int64())])),
        ("x", pa.timestamp("s")),
    ],
)
def test_values_of_another_type_are_refused_one_by_one(value, kind):
    with pytest.raises(ValueError, match="is not of the type"):
        conform(value, kind)
