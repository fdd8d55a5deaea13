"""Statistics of scores and codes: against values known by hand."""

import numpy as np

from mimi_hf.evaluation.metrics import METRICS, Score
from mimi_hf.evaluation.report import CodebookUse, Summary
from mimi_hf.evaluation.scoring import join_scores


def test_use_of_constructed_codes():
    assert CodebookUse.of(np.repeat([3, 0], [8, 56])) == CodebookUse(8, 3.0, 8.0)
    assert CodebookUse.of(np.repeat([5, 0], [1, 63])) == CodebookUse(1, 0.0, 1.0)
    skewed = CodebookUse.of(np.array([4, 2, 1, 1]))
    assert (skewed.used, skewed.entropy) == (4, 1.75)
    assert CodebookUse.of(np.zeros(64, np.int64)) == CodebookUse(0, 0.0, 1.0)


def test_summaries_leave_out_what_has_no_value():
    summary = Summary.of([Score(1.0), Score(reason="silent"), Score(2.0), Score(6.0)])
    assert summary == Summary(3.0, 2.0, 1.5, 4.0, 3)
    assert Summary.of([Score(reason="silent")]) == Summary(None, None, None, None, 0)


def test_the_table_tells_where_a_figure_is_of_fewer_files():
    from mimi_hf.evaluation.tables import _summary

    summary = Summary.of([Score(3.0), Score(None, "silent")])
    assert _summary(summary, METRICS["si_sdr"], 2) == "3.0/3.0 (of 1)"
    assert _summary(summary, METRICS["si_sdr"], 1) == "3.0/3.0"


def test_pieces_count_by_their_seconds():
    assert join_scores([Score(1.0), Score(4.0), Score(reason="silent")], [20.0, 10.0, 20.0]) == Score(2.0)
    assert join_scores([Score(reason="silent")] * 2, [20.0, 10.0]) == Score(reason="silent")
