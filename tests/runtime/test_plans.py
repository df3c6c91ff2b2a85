"""How passes choose what to launch."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from based_ops.support.host import (
    backward_plan,
    cdiv,
    forward_plan,
    hybrid_plan,
    packed_forward_plan,
    packed_length,
    packed_plan,
    segment_plan,
    window_plan,
)

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


@given(T=LENGTHS, rows=ROWS, programs=st.integers(1, 600))
def test_a_hybrid_leaves_its_state_where_chunks_end_with_a_whole_one(
    T: int, rows: int, programs: int
) -> None:
    segments, whole = hybrid_plan(T, rows, CHUNK=64, SHORTEST=128, PROGRAMS=programs, FEWEST=3)
    assert segments == segment_plan(T, rows, SHORTEST=128, PROGRAMS=programs, FEWEST=3)
    assert whole == (T == cdiv(T, 64) * 64)


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


@st.composite
def lengths_of_sequences(draw: st.DrawFn) -> list[int]:
    """Few or many, empty ones and ones of a token among them, and perhaps one that has nearly all tokens."""
    some = draw(st.lists(st.sampled_from((0, 0, 1, 1, 2, 127, 128, 129, 3000)), min_size=1, max_size=300))
    some[draw(st.integers(0, len(some) - 1))] = draw(LENGTHS)
    return some


@given(
    lengths=lengths_of_sequences(),
    more=st.integers(0, 200),
    rows=ROWS,
    invariant=st.booleans(),
    grain=st.sampled_from((32, 128)),
    fixed=st.sampled_from((128, 256, 2048)),
    shortest=st.integers(1, 4096),
    programs=st.integers(1, 600),
    fewest=st.integers(1, 8),
)
def test_packed_segments_have_all_tokens_however_long_sequences_are(
    lengths: list[int],
    more: int,
    rows: int,
    invariant: bool,
    grain: int,
    fixed: int,
    shortest: int,
    programs: int,
    fewest: int,
) -> None:
    """As many as there is room for, which follows from sizes alone."""
    T, N = sum(lengths) + more, len(lengths)
    constants = {"SHORTEST": shortest, "PROGRAMS": programs, "FEWEST": fewest}
    length = packed_length(T, N, rows, invariant, SEGMENT=grain, LENGTH=fixed, **constants)
    stops = torch.tensor(lengths).cumsum(0)
    sequences = torch.stack((stops - torch.tensor(lengths), stops), 1)
    count, places, table, bounds = packed_plan(sequences, T, length, length)
    assert cdiv(cdiv(places, grain), count) * grain == length  # as the kernels count it
    there = table[table[:, 0] < table[:, 1]]
    assert len(there) == sum(cdiv(n, length) for n in lengths) <= len(table) == count
    starts, ends, begin, end, number = there.unbind(1)
    assert torch.equal(starts, torch.cat((starts[:1] * 0, ends[:-1])))  # one behind the other
    assert int(ends[-1]) == sum(lengths) and int((ends - starts).max()) <= length
    assert torch.equal(torch.stack((begin, end), 1), sequences.index_select(0, number))
    assert torch.equal(bounds.diff(dim=1)[:, 0], torch.tensor([cdiv(n, length) for n in lengths]))
    if invariant:
        assert length == fixed
        return
    # Whoever has the tokens, there are as many segments as of sequences of one length, or what fills a GPU.
    average = cdiv(T, N)
    alike = cdiv(average, segment_plan(average, N * rows, **constants))
    assert length <= max(cdiv(alike, grain), cdiv(fixed, grain)) * grain
    assert length == cdiv(alike, grain) * grain or (length - grain) * programs < T * rows


@given(T=LENGTHS, N=st.integers(1, 600), rows=ROWS, invariant=st.booleans(), longest=st.integers(1, 4096))
def test_packed_scores_that_are_computed_directly_are_cut_alike(
    T: int, N: int, rows: int, invariant: bool, longest: int
) -> None:
    constants = {"SEGMENT": 128, "LENGTH": 2048, "SHORTEST": 128, "PROGRAMS": 264, "FEWEST": 4}
    length, recurrent = packed_forward_plan(T, N, rows, invariant, LONGEST=longest, **constants)
    assert recurrent == (longest < 2048)
    assert length == packed_length(T, N, rows, invariant or not recurrent, **constants)
    assert recurrent or length == 2048
