"""Host helpers of generated modules."""

from __future__ import annotations

import functools
from math import lcm as lcm

import torch
from torch import Tensor

from .convolution import convolution_backward as convolution_backward
from .convolution import convolution_forward as convolution_forward
from .fourier import fourier_backward as fourier_backward
from .fourier import fourier_forward as fourier_forward


def cdiv(x: int, y: int) -> int:
    """Division rounded up."""
    return -(-x // y)


def operand_dtype(x: Tensor) -> torch.dtype:
    """What the matrix units read: long sequences have states beyond the range of float16."""
    return torch.float32 if x.dtype == torch.float32 else torch.bfloat16


@functools.lru_cache(maxsize=4096)
def forward_plan(
    T: int, rows: int, LONGEST: int, TOKENS: int, LENGTH: int, SHORTEST: int, PROGRAMS: int, FEWEST: int
) -> tuple[int, bool]:
    """How a forward pass over T tokens of `rows` (batch times heads) runs: segments, and whether recurrent.

    Scores are computed directly, in segments of LENGTH tokens, up to LONGEST tokens, which the last program
    reads one after the other, and up to TOKENS of all rows, which take programs beside each other.  Beyond,
    the pass is a recurrence (in segments of `segment_plan`).
    """
    if T <= LONGEST and T * rows <= TOKENS:
        return cdiv(T, LENGTH), False
    return segment_plan(T, rows, SHORTEST, PROGRAMS, FEWEST), True


@functools.lru_cache(maxsize=4096)
def segment_plan(T: int, rows: int, SHORTEST: int, PROGRAMS: int, FEWEST: int) -> int:
    """The segments of a sequence that programs go through side by side: as many as give the GPU PROGRAMS
    programs, two on each multiprocessor.

    None is below SHORTEST tokens; nor below twice as many where two programs share a multiprocessor, which
    each take longer for that.  One if that would be less than FEWEST.
    """
    alone = min(cdiv(T, SHORTEST), PROGRAMS // 2 // rows)
    segments = min(max(alone, cdiv(T, 2 * SHORTEST)), PROGRAMS // rows)
    return segments if segments >= FEWEST else 1


def packed_plan(sequences: Tensor, T: int, SEGMENT: int, LENGTH: int) -> tuple[int, int, Tensor, Tensor]:
    """The segments of packed sequences: how many there are, the places of all, and two tables in int32, made
    on the device.

    Sequence n has the tokens from `sequences[n, 0]` up to `sequences[n, 1]` of T, in segments of LENGTH.  The
    first table [segments, 5] has the first token of each segment and one past its last, the same of its
    sequence, and the sequence's number; the second [N, 2] the first segment of each sequence, and one past
    its last.  Segments behind those that the sequences need have no tokens.  What lies outside of the T
    tokens is left out, and so is what needs more segments than sequences of T tokens may have.
    """
    count, alone = cdiv(T, LENGTH) + len(sequences), len(sequences) - 1
    first, stop = sequences.clamp(0, T).unbind(1)
    needed = ((stop - first + (LENGTH - 1)) // LENGTH).clamp(min=0)
    last = needed.cumsum(0, dtype=torch.int32)
    before = last - needed
    numbers = torch.arange(count, dtype=torch.int32, device=sequences.device)
    owner = torch.searchsorted(last, numbers, right=True, out_int32=True)
    own = owner.clamp(max=alone)
    rows = torch.stack((first - before * LENGTH, stop, first), 1).index_select(0, own)
    begin = rows[:, 0] + numbers * LENGTH
    ends = torch.minimum(begin + LENGTH, rows[:, 1])
    table = torch.stack((begin, ends, rows[:, 2], rows[:, 1], own), 1) * (owner <= alone)[:, None]
    return count, count * LENGTH, table, torch.stack((before, last), 1).clamp(max=count)


@functools.lru_cache(maxsize=4096)
def packed_length(
    T: int,
    N: int,
    rows: int,
    batch_invariant: bool,
    SEGMENT: int,
    LENGTH: int,
    SHORTEST: int,
    PROGRAMS: int,
    FEWEST: int,
) -> int:
    """The tokens of a segment, whole SEGMENTs, where programs go side by side through those of N packed
    sequences, which have T tokens in all in each of `rows` (heads).

    If a call is `batch_invariant`, LENGTH: a sequence is cut as if it were alone.  Else one of average length
    is cut as `segment_plan` cuts so many of them.  However uneven lengths are, there are as many segments or
    more then: longer sequences have those that shorter ones lack.  Where sequences are short, segments have
    LENGTH or what fills the GPU, since states before shorter ones would cost more than is gained.
    """
    if batch_invariant:
        return LENGTH
    average = cdiv(T, max(1, N))
    length = cdiv(average, segment_plan(average, max(1, N) * rows, SHORTEST, PROGRAMS, FEWEST))
    filling = min(LENGTH, cdiv(T * rows, PROGRAMS))
    return max(1, cdiv(max(length, filling), SEGMENT)) * SEGMENT


def packed_forward_plan(
    T: int, N: int, rows: int, batch_invariant: bool, LENGTH: int, LONGEST: int, **others: int
) -> tuple[int, bool]:
    """The same of a forward pass, and whether it is a recurrence over each segment: where LENGTH is more than
    LONGEST tokens, up to which scores are computed directly, in segments of LENGTH.
    """
    recurrent = LENGTH > LONGEST
    fixed = batch_invariant or not recurrent
    return packed_length(T, N, rows, fixed, LENGTH=LENGTH, **others), recurrent


def cleared(x: Tensor, sequences: Tensor, axis: int) -> Tensor:
    """x, whose tokens along an axis that no sequence has are made 0."""
    if not x.numel():
        return x
    count = x.shape[axis]
    start, stop = sequences.clamp(0, count).long().unbind(1)
    ones = torch.ones_like(start, dtype=torch.int32)
    edges = ones.new_zeros(count + 1)
    edges.index_add_(0, start, ones).index_add_(0, torch.maximum(start, stop), -ones)
    nobodys = edges.cumsum(0)[:count] == 0
    return x.masked_fill_(nobodys.view(-1, *(1,) * (x.dim() - axis - 1)), 0)


def kept_plan(T: int, LENGTH: int) -> int:
    """The segments of a sequence, of up to LENGTH tokens each, before which a walk keeps its state."""
    return cdiv(T, LENGTH)


@functools.lru_cache(maxsize=4096)
def stream_plan(T: int, lanes: int, TILED: int, SHORTEST: int, LANES: int) -> tuple[int, bool]:
    """How a pass goes through T tokens of `lanes` (batch times channels): in how many segments, and whether
    it walks through them token by token.

    Up to TILED tokens are computed in tiles.  There are as many segments as give the GPU LANES lanes at once,
    none below SHORTEST tokens.
    """
    return max(1, min(cdiv(T, SHORTEST), LANES // lanes)), T > TILED


def packed_stream_plan(
    sequences: Tensor, T: int, lanes: int, TILED: int, SHORTEST: int, LANES: int
) -> tuple[int, bool, Tensor]:
    """The same of packed sequences: also which tokens the segments have, a table made on the device.

    Segments are no longer than those of one sequence of T tokens.  The table [segments, 5] is that of
    `packed_plan`, but that the last segments of a sequence have all tokens up to the next one, whose results
    are 0, and that segments before the first sequence have the number -1.
    """
    segments, walks = stream_plan(T, lanes, TILED, SHORTEST, LANES)
    start, stop = sequences.clamp(0, T).unbind(1)
    nothing, everything = start.new_zeros(1), start.new_full((1,), T)
    until_next = torch.stack((torch.cat((nothing, start)), torch.cat((start, everything))), 1)
    length = cdiv(T, segments)
    count, _, table, _ = packed_plan(until_next, T, length, length)
    number = table[:, 4]
    ends = torch.cat((nothing, stop)).index_select(0, number)
    return count, walks, torch.cat((table[:, :3], torch.stack((ends, number - 1), 1)), 1)


@functools.lru_cache(maxsize=4096)
def chunk_plan(
    T: int, rows: int, SEGMENT: int, CHUNK: int, LEAST: int, SHORTEST: int, PROGRAMS: int, FEWEST: int
) -> tuple[int, int, bool]:
    """How a state space goes through T tokens of `rows` (batch times heads): in segments of whole SEGMENTs,
    of how many chunks in all, and whether in chunks, from LEAST tokens on, rather than token by token.
    """
    wanted = segment_plan(T, rows, SHORTEST, PROGRAMS, FEWEST)
    grains = cdiv(cdiv(T, SEGMENT), wanted)
    segments = max(1, cdiv(cdiv(T, SEGMENT), max(1, grains)))
    return segments, cdiv(T, CHUNK), T >= LEAST


def packed_chunk_plan(
    sequences: Tensor, T: int, SEGMENT: int, CHUNK: int, LENGTH: int, LEAST: int
) -> tuple[int, int, bool, int, Tensor, Tensor]:
    """The same of packed sequences, with the places and tables of `packed_plan`."""
    if T < LEAST:
        return 1, 1, False, 0, sequences, sequences
    segments, places, table, bounds = packed_plan(sequences, T, SEGMENT, LENGTH)
    return segments, places // CHUNK, True, places, table, bounds


def fourier_plan(T: int, lanes: int, LEAST: int, LANES: int) -> bool:
    """Whether T tokens of `lanes` (batch times channels) are convolved by Fourier transforms: many tokens,
    of no more lanes than a walk leaves a GPU idle with.
    """
    return T >= LEAST and lanes <= LANES


def transform_plan(T: int, taps: int, LEAST: int) -> bool:
    """Whether T tokens are convolved with filters of so many taps by Fourier transforms: both are many."""
    return min(T, taps) >= LEAST


def sum_plan(T: int, lanes: int, LENGTH: int, LANES: int) -> tuple[int, int]:
    """The parts of T tokens of `lanes` (batch times channels, or heads) whose sums are made side by side:
    as many as give the GPU LANES lanes, none below LENGTH tokens; how many, and how long.
    """
    length = max(LENGTH, cdiv(T * lanes, LANES))
    return cdiv(T, length), length


def part_plan(chunks: int, heads: int, PROGRAMS: int) -> int:
    """In how many parts what all chunks of a head add to its gradients is summed up: PROGRAMS in all."""
    return max(1, min(chunks, PROGRAMS // max(1, heads)))


@functools.lru_cache(maxsize=4096)
def window_plan(T: int, rows: int, CHUNK: int, PROGRAMS: int) -> int:
    """The segments in which programs for warpgroups go through a window's sequence; 0 if others should.

    PROGRAMS run at once, round after round, and a segment costs a chunk more than it has.  Where they would
    have no more than a chunk each, one program a chunk is faster.
    """
    chunks = cdiv(T, CHUNK)
    if chunks * rows <= PROGRAMS:
        return 0
    # A segment of one chunk would copy as much before its start as it has; and where many rounds run, their
    # number hardly changes with the last of them.
    most = min(cdiv(chunks, 2), 8 * cdiv(PROGRAMS, rows))
    return min(range(1, most + 1), key=lambda n: cdiv(rows * n, PROGRAMS) * (cdiv(chunks, n) + 1))


@functools.lru_cache(maxsize=4096)
def hybrid_plan(T: int, rows: int, CHUNK: int, SHORTEST: int, PROGRAMS: int, FEWEST: int) -> tuple[int, bool]:
    """The segments in which programs for warpgroups go through a hybrid's sequence, and whether its chunks
    are whole ones, so that what has left all windows is in the state at the end.
    """
    return segment_plan(T, rows, SHORTEST, PROGRAMS, FEWEST), T % CHUNK == 0


@functools.lru_cache(maxsize=4096)
def packed_window_plan(T: int, rows: int, CHUNK: int, PROGRAMS: int) -> int:
    """The tokens of a segment in which they go through packed sequences of T tokens in all, whole CHUNKs.

    Segments begin anew with each sequence, and a chunk has the same bits in any.
    """
    segments = window_plan(T, rows, CHUNK, PROGRAMS)
    return cdiv(cdiv(T, CHUNK), segments) * CHUNK if segments else CHUNK


@functools.lru_cache(maxsize=4096)
def backward_plan(
    T: int, rows: int, SEGMENT: int, LENGTH: int, SHORTEST: int, PROGRAMS: int
) -> tuple[int, bool, int]:
    """How a backward pass over T tokens of `rows` (batch times heads) runs.

    The state is kept for *segments* of up to LENGTH tokens, whole tiles of SEGMENT; *long* are those with
    several.  It is summed over as many *spans* of the sequence at once as give the GPU PROGRAMS programs for
    each block of it, none below SHORTEST tokens.
    """
    tiles = cdiv(T, SEGMENT)
    segments = cdiv(tiles, max(1, LENGTH // SEGMENT))
    length = cdiv(tiles, max(1, min(T // SHORTEST, PROGRAMS // rows)))
    return segments, segments < tiles, max(1, cdiv(tiles, max(1, length)))
