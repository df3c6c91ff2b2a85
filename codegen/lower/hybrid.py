"""Hybrid layers: softmax over the last W keys and linear attention over all older ones.

The two memories, and how they share a normaliser, are in `memory/hybrid.py`; here is which keys a program
takes.  As in linear attention the sequence is cut into *segments*, of older keys: those before the segment in
which the oldest window of a chunk of queries begins reach it through the state, all later ones directly.  Of
these, tile by tile, first those that have left the windows of some of the chunk's queries, then those that
are in the windows of some.  The tiles of W keys around the edge are among both.
"""

from __future__ import annotations

from ..ir.build import Builder
from ..ir.heads import members
from ..ir.nodes import ACC, INDEX, IO, Cast, Load, Var, cdiv, column, maximum, row
from ..ir.program import Axis, Program, Tensor
from ..ir.traits import SOFTMAX, TOKEN
from ..memory.hybrid import GIVEN
from ..memory.ring import Ring
from ..memory.states import B, H
from ..memory.sums_token import Token
from ..mixers.hybrid import Hybrid
from .feature_maps import feature_map
from .groups import group_sums, over_queries, over_states
from .hybrid_backward import DELTA, factor_gradients, key_gradients, query_gradients
from .hybrid_parts import Layer
from .hybrid_tokens import FIRSTS, Segments
from .linear_attention_parts import BATCH_AXES, ROWS
from .linear_attention_states import running_states, segment_sums
from .prefix import prefix
from .ragged import CHUNKS, Segment
from .second_look import doubt_of, second_look
from .steps import FLAGS, POOLED, answered, in_slots, one_by_one


def programs(spec: Hybrid) -> tuple[Program, ...]:
    """Every kernel of the layer, in the order in which they run."""
    layer = Layer(spec, feature_map(spec))
    of_states = (*(first.name for first in FIRSTS), *(tensor.name for tensor in layer.segment_states()))
    of_outputs = ("lse", DELTA.name, *(tensor.name for tensor in (*layer.highest(), *layer.factors())))
    return (
        over_states(segment_sums(layer, "states", of_queries=False)),
        prefix(layer, "prefix", reverse=False),
        over_states(running_states(layer, "states_before", of_queries=False, total=True)),
        over_queries(outputs(layer), *of_states),
        over_queries(query_gradients(layer), *of_states),
        over_states(segment_sums(layer, "query_states", of_queries=True)),
        prefix(layer, "suffix", reverse=True),
        *(prefix(layer, name, name == "suffix", packed=True) for name in ("prefix", "suffix")),
        over_states(running_states(layer, "states_after", of_queries=True)),
        over_states(key_gradients(layer), *of_outputs),
        *((factor_gradients(),) if layer.names else ()),
        group_sums(),
        over_states(step(layer), *of_outputs),
    )


def outputs(layer: Layer) -> Program:
    """o and lse of one chunk of queries."""
    b = Builder()
    _, begin = Segment.of_chunk(b)
    tokens, memory = layer.tokens, layer.both_by_query(b)
    older, window = memory.older, memory.window
    t = b.let("t", tokens.queries.tile(begin, "CHUNK"))
    layer.columns(b, Var("value_block") * "VALUES")
    first = window.first_key()
    place = b.let("start", window.place(begin))
    youngest = b.let("youngest", memory.youngest(begin))
    segment = Segments(b, layer.dense).of(youngest)
    states = layer.segment_states("STATEFUL")
    queries = memory.tokens("Q", "q", t)
    answer = older.answer()
    with b.when("STATEFUL"):
        b.comment("Segments that all windows have left, through their state.")
        with older.blocks() as block:
            features = older.weighted(queries.mapped, block)
            older.read(answer, features, older.stored(states, block.f, segment.number))
    b.comment("Later keys that have left a window, directly.")
    stop = tokens.older.until(youngest + "CHUNK")
    with b.loop("j0", segment.first, stop, "KEYS") as j0:
        j = b.let("j", window.keys.tile(j0, "KEYS"))
        keys, values = older.keys(j)
        older.pair(queries.mapped, keys, values, memory.left(t, j, first), onto=answer)
    b.comment("The keys of the windows.")
    softmax = memory.begin(answer, t)
    oldest = window.oldest(t, first)
    begins = maximum(youngest + 1, tokens.keys.start)
    with b.loop("i0", begins, window.keys.until(place + "CHUNK"), "KEYS") as i0:
        i = b.let("i", window.keys.tile(i0, "KEYS"))
        visible = (row(i) <= column(window.place(t))) & (row(i) >= column(oldest))
        window.pair_more("_near", softmax, queries.plain, window.load_keys("_near", i), visible)
    memory.finish(softmax, answer, t)
    doubted = (answer.out,) if softmax.out == answer.out else (answer.out, softmax.out)
    with second_look(b, doubt_of(b, *doubted)):
        layer.again_by_query(b, Var("value_block") * "VALUES").outputs()
    tensors = (
        layer.queries("q"),
        layer.queries("k"),
        layer.values("v"),
        *layer.own(),
        *layer.factors(),
        *FIRSTS,
        *states,
        layer.values("o", strided=False),
        *layer.results(),
    )
    axes = (CHUNKS, Axis("value_block", cdiv(layer.v, "VALUES")))
    return layer.program(
        "outputs",
        "The outputs of one chunk of queries.",
        axes,
        tensors,
        b,
        ("SEGMENT", "CHUNK", "KEYS", "ROWS"),
        whole_values=False,
        flags=("STATEFUL",),
        ragged=True,
    )


def step(layer: Layer) -> Program:
    """Tokens one after the other: the oldest of the ring enters the state, the token takes its place."""
    b = Builder()
    u = layer.columns(b)
    memory, state = layer.stepped(b), layer.user_states("")
    older = memory.older
    narrow = layer.state_dtype if layer.state_dtype != "float32" else None
    with one_by_one(b, layer.dense.queries) as t, members(b):
        memory.weigh()
        window = memory.window
        ring = Ring(b, layer.window, t, window.k, window.d)
        token = Token(older, state, t, narrow, entering=ring.leaving())
        with older.blocks() as block:
            token.enter_and_read(block)
        sums = memory.begin_row(token)
        query = b.let("query_row", Load(window.q, (B, t, H, window.d), ACC))
        softmax = b.let("softmax_row", ring.read(query, sums))
        out = b.let("o_of_token", memory.finish_row(softmax, sums, token))
        b.store("o", (B, t, H, u), Cast(answered(b, out), IO))
        ring.store()
        if window.own:  # the ring has stored the window's key
            key = b.let("older_key", Load("k", (B, t, H, older.d), ACC))
            b.store("ring_k", (B, H, ring.slot, older.d), Cast(key, IO))
    rings = (
        Tensor("ring_k", ("B", "H", layer.window, layer.qk), IO),
        Tensor("ring_v", ("B", "H", layer.window, layer.v), IO),
        Tensor("position", ("B", "H"), INDEX),
    )
    own = layer.own_qk
    of_window = (Tensor("ring_k_window", ("B", "H", layer.window, own), IO),) if own else ()
    tensors = (
        *(Tensor(name, (*ROWS, layer.qk), IO, strided=True) for name in ("q", "k")),
        Tensor("v", (*ROWS, layer.v), IO, strided=True),
        *layer.own(ROWS),
        *layer.factors(),
        *in_slots((*rings, *state, *of_window)),
        layer.values("o", strided=False),
    )
    rows = () if older.size == "QK" else (older.size,)
    return Program(
        "token",
        "Tokens one after the other: each enters the ring, whose oldest enters the state, and reads both.",
        BATCH_AXES,
        tensors,
        ("B", "T", "H", POOLED),
        ("scale",),
        (*FLAGS, *(GIVEN[name] for name in layer.names)),
        (*rows, "KEYS", "QK", *layer.bounds, "VALUES"),
        b.body,
        {"QK": layer.qk, "VALUES": layer.v} | layer.bounds,
        frozenset({SOFTMAX, TOKEN}),
    )
