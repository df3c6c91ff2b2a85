"""How passes choose what to launch."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from based_ops.support.host import backward_plan, cdiv, forward_plan, window_plan

LENGTHS = st.integers(1, 200_000)
ROWS = st.integers(1, 600)


@given(
    T=LENGTHS,
    rows=ROWS,
    kept=st.integers(1, 4096),
    shortest=st.integers(1, 4096),
    programs=st.integers(1, 600),
)
def test_no_segment_and_no_span_is_empty(T: int, rows: int, kept: int, shortest: int, programs: int) -> None:
    segments, long, spans = backward_plan(
        T, rows, SEGMENT=128, LENGTH=kept, SHORTEST=shortest, PROGRAMS=programs
    )
    tiles = cdiv(T, 128)
    for parts in (segments, spans):
        length = cdiv(tiles, parts)  # as the kernels count it
        assert (parts - 1) * length < tiles <= parts * length
    assert cdiv(tiles, segments) * 128 <= max(128, kept)
    assert long == (cdiv(tiles, segments) > 1)
    assert spans == 1 or spans * rows <= programs


@given(rows=ROWS)
def test_nothing_is_one_span(rows: int) -> None:
    """An empty sequence hands its initial state on."""
    assert backward_plan(0, rows, SEGMENT=128, LENGTH=512, SHORTEST=1024, PROGRAMS=88) == (0, False, 1)


@given(T=LENGTHS, rows=ROWS, longest=st.integers(0, 1 << 20), tokens=st.integers(0, 1 << 30))
def test_few_short_sequences_run_directly_and_others_fill_the_device(
    T: int, rows: int, longest: int, tokens: int
) -> None:
    segments, recurrent = forward_plan(
        T, rows, LONGEST=longest, TOKENS=tokens, LENGTH=2048, SHORTEST=128, PROGRAMS=264, FEWEST=4
    )
    assert recurrent == (T > longest or T * rows > tokens)
    if not recurrent:
        assert segments == cdiv(T, 2048)
    else:
        assert segments == 1 or (4 <= segments and segments * rows <= 264 and (segments - 1) * 128 < T)
        # Two programs share a multiprocessor only for segments that are longer.
        assert segments * rows <= 132 or segments == 1 or (segments - 1) * 256 < T


@given(T=LENGTHS, rows=ROWS)
def test_windows_are_cut_to_fill_the_device_in_few_rounds(T: int, rows: int) -> None:
    chunks, segments = cdiv(T, 64), window_plan(T, rows, CHUNK=64, PROGRAMS=264)
    assert (segments == 0) == (chunks * rows <= 264)
    if segments:
        assert segments <= cdiv(chunks, 2)

        def rounds(n: int) -> int:
            return cdiv(rows * n, 264) * (cdiv(chunks, n) + 1)

        assert rounds(segments) <= min(rounds(1), rounds(min(cdiv(chunks, 2), cdiv(264, rows))))
