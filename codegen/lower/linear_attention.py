"""Linear attention: chunk programs and a step, for any feature map.

With A_ij = f(scale · u_i·w_j) for j <= i, o_i = Σ_j A_ij v_j / (Σ_j A_ij + eps)  (Based, arXiv 2402.18668).
The sequence is cut into *segments*.  Keys of earlier segments reach a query through the recurrent state S =
Σ_j Φ(w_j) v_jᵀ and its normaliser z = Σ_j Φ(w_j); keys of the query's own segment reach it directly, tile by
tile, as in exact attention.  The one dial, the segment's length, moves a kernel between the purely recurrent
and the purely quadratic form.

Backward, with g_i = do_i / (n_i + eps) and e_i = -(do_i·o_i) / (n_i + eps), where n_i = Σ_j A_ij:

    dA_ij = g_i·v_j + e_i      dv_j = Σ_{i>=j} A_ij g_i

and, across segments, the same through the state of earlier keys (for q) and the mirrored state Σ_i Φ(u_i)
g_iᵀ of later queries (for k and v).
"""

from __future__ import annotations

from ..ir.build import Builder
from ..ir.heads import members
from ..ir.nodes import IO, Cast, Span, Var, cdiv, column, row, wrap
from ..ir.program import Axis, Program, Tensor
from ..ir.traits import TOKEN
from ..memory.states import B, H
from ..memory.sums_token import Token
from ..mixers.linear_attention import LinearAttention
from . import decay as decays
from . import replay
from .feature_maps import feature_map
from .groups import group_sums, over_queries, over_states
from .linear_attention_backward import key_gradients, query_gradients
from .linear_attention_parts import BATCH_AXES, ROWS, TOKENS, Layer
from .linear_attention_recurrence import recurrence
from .linear_attention_states import running_states, segment_sums
from .prefix import prefix
from .ragged import CHUNKS, Segment, number_of_chunk
from .second_look import doubt_of, second_look
from .steps import FLAGS, POOLED, answered, in_slots, one_by_one


def programs(spec: LinearAttention) -> tuple[Program, ...]:
    """Every kernel of the layer, in the order in which they run."""
    layer = Layer(spec, feature_map(spec))
    of_states, user_states = heads_of_states(layer)
    chunked = (
        over_states(segment_sums(layer, "states", of_queries=False)),
        prefix(layer, "prefix", reverse=False),
        over_queries(outputs(layer), *of_states),
        over_queries(recurrence(layer), *of_states, *user_states),
        over_states(running_states(layer, "states_before", of_queries=False)),
        over_queries(query_gradients(layer), *of_states),
        over_states(segment_sums(layer, "query_states", of_queries=True)),
        prefix(layer, "suffix", reverse=True),
        *(prefix(layer, name, name == "suffix", packed=True) for name in ("prefix", "suffix")),
        over_states(running_states(layer, "states_after", of_queries=True)),
        over_states(key_gradients(layer)),
        group_sums(),
    )
    stepped = replay.step(layer, spec.replay) if spec.replay else step(layer)
    return (*decays.programs(layer), *chunked, over_states(stepped))


def heads_of_states(layer: Layer) -> tuple[list[str], list[str]]:
    """The tensors that have the heads of states, and those among them that are a user's own states."""
    of_states = (*layer.decays(), *layer.given_decays(), *layer.segment_states())
    user_states = [tensor.name for x in ("initial_", "final_") for tensor in layer.user_states(x)]
    return [tensor.name for tensor in of_states], user_states


def outputs(layer: Layer) -> Program:
    """o and n of one chunk of queries."""
    b = Builder()
    segment, start = Segment.of_chunk(b)
    tokens = segment.sequence
    t = b.let("t", tokens.tile(start, "CHUNK"))
    b.let("d", Span(wrap(0), "QK"))
    u = b.let("u", Span(Var("value_block") * "VALUES", "VALUES"))
    number_of_chunk(b)
    memory, earlier = layer.memory(b, sequence=tokens), layer.segment_states("STATEFUL")
    queries = memory.queries(t)
    answer = memory.answer()
    origin = memory.moment("origin", start)
    log = memory.since("t_log", t, origin)
    with b.when("STATEFUL"):
        b.comment("Earlier segments, through their state.")
        with memory.blocks() as block:
            features = memory.weighted(queries, block)
            memory.read(answer, features, memory.stored(earlier, block.f, segment.number))
        memory.fade_answer(answer, layer.since_segment(memory, t, segment))
    b.comment("This segment, directly.")
    with b.loop("j0", segment.first, tokens.until(start + "CHUNK"), "KEYS") as j0:
        j = b.let("j", tokens.tile(j0, "KEYS"))
        keys, values = memory.keys(j)
        logs = log, memory.since("j_log", j, origin)
        memory.pair(queries, keys, values, column(t) >= row(j), onto=answer, logs=logs)
    memory.finish(answer, t)
    b.store("o", (B, t, H, u), Cast(answer.out, IO))
    with second_look(b, doubt_of(b, answer.out)):
        layer.singles(b, Var("value_block") * "VALUES").outputs()
    tensors = (
        layer.queries("q"),
        layer.queries("k"),
        layer.values("v"),
        *layer.decays(),
        *earlier,
        layer.values("o", strided=False),
        *layer.row_sums("n"),
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
    """Tokens one after the other: update the state in place and read the output from it."""
    b = Builder()
    u = b.let("u", Span(wrap(0), "VALUES"))
    memory, state = layer.memory(b, fades=False), layer.user_states("")
    narrow = layer.spec.state_dtype if layer.spec.state_dtype != "float32" else None
    with one_by_one(b, TOKENS) as t, members(b):
        token = Token(memory, state, t, narrow, layer.decay_of(b, t))
        with memory.blocks() as block:
            token.enter_and_read(block)
        b.store("o", (B, t, H, u), Cast(answered(b, token.finish()), IO))
    tensors = (
        Tensor("q", (*ROWS, layer.qk), IO, strided=True),
        Tensor("k", (*ROWS, layer.qk), IO, strided=True),
        layer.values("v"),
        *layer.given_decays(),
        *in_slots(state),
        layer.values("o", strided=False),
    )
    constants = layer.features.constants
    bounds = {"VALUES": layer.v} | ({"QK": layer.qk} if "QK" in constants else {})
    return Program(
        "token",
        "Tokens one after the other: the state is updated in place and read.",
        BATCH_AXES,
        tensors,
        ("B", "T", "H", POOLED),
        ("scale",),
        FLAGS,
        (*constants, "VALUES"),
        b.body,
        bounds,
        frozenset({TOKEN}),
    )
