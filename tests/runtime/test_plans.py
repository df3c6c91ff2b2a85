"""How passes choose what to launch."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from based_ops.support.host import backward_plan, cdiv, forward_plan

LENGTHS = st.integers(1, 200_000)
ROWS = st.integers(1, 600)


@given(T=LENGTHS, rows=ROWS, shortest=st.integers(1, 4096), programs=st.integers(1, 600))
def test_spans_are_whole_segments_and_none_is_empty(T: int, rows: int, shortest: int, programs: int) -> None:
    segments, spans = backward_plan(T, rows, SEGMENT=128, SHORTEST=shortest, PROGRAMS=programs)
    length = cdiv(segments, spans)  # as the kernels count it
    assert segments == cdiv(T, 128)
    assert (spans - 1) * length < segments <= spans * length
    assert spans == 1 or spans * rows <= programs


@given(rows=ROWS)
def test_nothing_is_one_span(rows: int) -> None:
    """An empty sequence hands its initial state on."""
    assert backward_plan(0, rows, SEGMENT=128, SHORTEST=1024, PROGRAMS=88) == (0, 1)


@given(T=LENGTHS, rows=ROWS, scores=st.integers(0, 1 << 40))
def test_short_sequences_run_directly_and_long_ones_fill_the_device(T: int, rows: int, scores: int) -> None:
    segments, recurrent = forward_plan(
        T, rows, SCORES=scores, LENGTH=2048, SHORTEST=128, PROGRAMS=264, FEWEST=4
    )
    assert recurrent == (T * T * rows > scores)
    if not recurrent:
        assert segments == cdiv(T, 2048)
    else:
        assert segments == 1 or (4 <= segments and segments * rows <= 264 and (segments - 1) * 128 < T)
