"""Linear attention by the delta rule, for any feature map with f(scale · k·k) = c for all keys.

With φ(x)·φ(y) = κ(x, y) = f(scale · x·y), decays α_t = exp(g_t) and rates β_t (arXiv 2412.06464, (10)):

    x_t = v_t - α_t S_{t-1}ᵀ φ(k_t)         u_t = (β_t / c) x_t
    S_t = α_t S_{t-1} + φ(k_t) u_tᵀ         o_t = S_tᵀ φ(q_t)

So once the *corrected values* u are known it is plain linear attention of q, k and u, and `linear_attention`
has the programs.  In a chunk that begins with the state S (arXiv 2406.06484, equations 8 to 11, which needs
no features here), with W_ij = exp(G_i - G_j) κ(k_i, k_j) for j < i and β' = β / c,

    X = (I + W diag(β'))⁻¹ (V - exp(G) Φ(K) S)    U = diag(β') X

The inverses know nothing of S, so all chunks have theirs at once (`inverses`).  A walk over the chunks then
finds u, and keeps the state before every segment (`corrections`).  It is one pass: in segments that start
without a state, each would have to be S' = P S + Q with a matrix P of all features by all features, which
takes more products than the walk itself as soon as heads and columns of values fill a GPU.

Backward, a walk from the end does the transposed (`errors_back`).  With M the gradient by the state after a
chunk, and dU what outputs and M owe to u,

    R = (I + diag(β') W)⁻ᵀ dU    dV = Z = diag(β') R    dβ_t = x_t·r_t / c

and z, negative, is what the errors' reading of S is owed: as if -z were the output gradient of a second query
k_t that sees earlier tokens alone.  `delta_gradients` has what keys are owed then.
"""

from __future__ import annotations

from ..ir.build import Builder
from ..ir.heads import members
from ..ir.nodes import ACC, IO, OPERAND, Cast, Dot, Span, Transpose, Var, cdiv, column, row, wrap
from ..ir.program import Program, Tensor
from ..ir.traits import GRADIENTS, SOLVES
from ..memory.inverse import inverse_of_unit_lower
from ..memory.states import B, H
from ..mixers.linear_attention import LinearAttention
from . import decay as decays
from .delta_gradients import key_gradients, rate_gradients
from .delta_parts import DeltaLayer
from .delta_step import step
from .delta_walk import Walk
from .feature_maps import feature_map
from .groups import group_sums, over_queries, over_states
from .linear_attention import outputs
from .linear_attention_backward import query_gradients
from .linear_attention_parts import BATCH_AXES, SIZES
from .ragged import CHUNKS, FLAGGED, RAGGED, UNDER, Segment


def programs(spec: LinearAttention) -> tuple[Program, ...]:
    """Every kernel of the layer, in the order in which they run."""
    layer = DeltaLayer(spec, feature_map(spec))
    of_states = [tensor.name for tensor in (*layer.decays(), *layer.segment_states())]
    return (
        *decays.programs(layer),
        over_states(inverses(layer)),
        *(over_states(corrections(layer, packed)) for packed in (False, True)),
        over_queries(outputs(layer), *of_states),
        over_queries(query_gradients(layer), *of_states),
        *(over_states(errors_back(layer, packed)) for packed in (False, True)),
        over_states(key_gradients(layer)),
        rate_gradients(layer),
        group_sums(),
        over_states(step(layer)),
    )


def inverses(layer: DeltaLayer) -> Program:
    """(I + W diag(β'))⁻¹ of each chunk; or (I + diag(β') W)⁻¹, of which the transposed solves backward."""
    b = Builder()
    segment, start = Segment.of_chunk(b)
    tokens = segment.sequence
    t = b.let("t", tokens.tile(start, "CHUNK"))
    b.let("d", Span(wrap(0), "QK"))
    memory = layer.corrected(b, tokens)
    _, keys = memory.load("K", "k", t)
    log, _ = memory.of_tile("t_log", t, start, tokens.until(start + "CHUNK"))
    pulls, rate = memory.pulls(keys, log), memory.rate(t)
    lower = b.let("L", pulls * row(rate))
    with b.when("OF_GRADIENTS"):
        b.set(lower, pulls * column(rate))
    inverse = inverse_of_unit_lower(b, lower, "CHUNK")
    b.store("inverse", (B, t, H, Var("place")), Cast(inverse, OPERAND))
    return Program(
        "inverses",
        "The inverse by which the tokens of each chunk are corrected.",
        (*BATCH_AXES, CHUNKS),
        (layer.queries("k"), *layer.given_decays(), layer.rates(), layer.inverse(), FLAGGED),
        (*SIZES, "places", "solved"),
        ("scale",),
        ("OF_GRADIENTS", RAGGED),
        ("SEGMENT", "CHUNK", "BLOCK", "QK"),
        b.body,
        {"QK": layer.qk},
        frozenset({SOLVES}),
        UNDER,
    )


def corrections(layer: DeltaLayer, packed: bool) -> Program:
    """u of one sequence, chunk after chunk; and the state before every segment."""
    b = Builder()
    walk = Walk(layer, b, packed)
    memory = walk.memory
    initial, final = (layer.user_states(x, x.upper()[:-1], packed) for x in ("initial_", "final_"))
    kept = layer.segment_states("KEPT")
    state, weight = walk.state(initial, "INITIAL")
    place, u = Var("t0"), Var("u")
    with b.loop("t0", walk.tokens.start, walk.tokens.stop, "CHUNK"):
        number = b.let("number", walk.number(place))
        first = b.let("first_of_segment_walked", walk.tokens.token(number * walk.length))
        with b.when("KEPT"), b.when(place.equals(first)), walk.blocks():
            state.store(kept, walk.segment + number)
        t = b.let("t", walk.tokens.tile(place, "CHUNK"))
        scaled = memory.scaled_keys(t)
        keys, values = memory.keys(t)
        log, total = memory.of_tile("t_log", t, place, walk.tokens.until(place + "CHUNK"))
        remaining = memory.until("kept", t, log, total)
        answer = memory.answer()
        b.comment("What is already answered to these keys, and the errors of it.")
        with walk.blocks():
            memory.read_scaled(answer, scaled, walk.block, weight, state)
            state.fade(total)
        memory.fade_answer(answer, log)
        apart = b.let("apart", Cast(Cast(values, ACC) - answer.out, OPERAND))
        errors = b.let("errors", Dot(memory.inverse(t), apart))
        with b.when("ERRORS"):
            b.store("x", (B, t, H, u), Cast(errors, IO))
        corrected = b.let("corrected", errors * column(memory.rate(t)))
        b.store("corrected_values", (B, t, H, u), Cast(corrected, IO))
        operand = b.let("corrected_operand", Cast(corrected, OPERAND))
        with walk.blocks():
            past = walk.tokens.past(place, "CHUNK")
            memory.enter(state, walk.block, keys, operand, past, kept=remaining)
    with b.when("FINAL"), walk.blocks():
        state.store(final)
    tensors = (
        layer.queries("k"),
        layer.values("v"),
        *layer.given_decays(),
        layer.rates(),
        layer.inverse(),
        *initial,
        *kept,
        layer.values("corrected_values", strided=False),
        Tensor("x", ("B", "T", "H", layer.v), IO, optional="ERRORS"),
        *final,
    )
    summary = "The corrected values of a sequence, with the state in registers."
    return walk.program("corrections", summary, tensors, ("INITIAL", "KEPT", "ERRORS", "FINAL"))


def errors_back(layer: DeltaLayer, packed: bool) -> Program:
    """r and z of one sequence, from its last chunk to its first; and M after every segment."""
    b = Builder()
    walk = Walk(layer, b, packed)
    memory = walk.memory
    final, initial = (
        layer.user_states(x, flag, packed) for x, flag in (("d_final_", "FINAL"), ("d_initial_", "INITIAL"))
    )
    kept = layer.segment_states("KEPT", "mirrored_")
    state, weight = walk.state(final, "FINAL")
    u = Var("u")
    count = b.let("count", cdiv(walk.tokens.length, "CHUNK"))
    with b.loop("i", 0, count) as i:
        place = b.let("t0", walk.tokens.token((count - 1 - i) * "CHUNK"))
        number = b.let("number", walk.number(place))
        end = b.let("end", walk.tokens.until(walk.tokens.token((number + 1) * walk.length)))
        with b.when("KEPT"), b.when(place + "CHUNK" >= end), walk.blocks():
            state.store(kept, walk.segment + number)
        t = b.let("t", walk.tokens.tile(place, "CHUNK"))
        _, keys = memory.load("K", "k", t)
        scaled = memory.scaled_keys(t)
        log, total = memory.of_tile("t_log", t, place, walk.tokens.until(place + "CHUNK"))
        remaining = memory.until("kept", t, log, total)
        since = memory.left_of_tile("since", t, log, later=True)
        past = walk.tokens.past(place, "CHUNK")
        owed = memory.answer()
        b.comment("What is owed to the corrected values: by later chunks, and by the chunk's own queries.")
        with walk.blocks():
            plain = layer.features.features(b, "P", keys, walk.block.selection)
            memory.read(owed, plain, state)
            state.fade(total)
        if remaining:
            b.set(owed.out, owed.out * column(remaining))
        with members(b):
            _, queries = memory.load("Q_plain", "q", t)
            gradients = memory.gradients(t).g
            memory.give(owed.out, keys, queries, gradients, log)
            scaled_queries = memory.scaled_queries(t)
            with walk.blocks():
                memory.enter(state, walk.block, scaled_queries, gradients, past, kept=since, weight=weight)
        operand = b.let("owed_operand", Cast(owed.out, OPERAND))
        back = b.let("R_back", Dot(Transpose(memory.inverse(t)), operand))
        b.store("back", (B, t, H, u), Cast(back, IO))
        z = b.let("Z", back * column(memory.rate(t)))
        b.store("z", (B, t, H, u), Cast(z, IO))
        b.comment("The errors have read the state before them.")
        negative = memory.minus("Z_negative", z)
        with walk.blocks():
            memory.enter(state, walk.block, scaled, negative, past, kept=since, weight=weight)
    with b.when("INITIAL"), walk.blocks():
        state.store(initial)
    tensors = (
        layer.queries("q"),
        layer.queries("k"),
        layer.values("do"),
        *layer.given_decays(),
        layer.rates(),
        layer.inverse(),
        *final,
        *kept,
        layer.values("back", strided=False),
        layer.values("z", strided=False),
        *initial,
    )
    summary = "What is owed to the values of a sequence, from its end, with the mirrored state in registers."
    return walk.program("errors_back", summary, tensors, ("INITIAL", "KEPT", "FINAL"), (GRADIENTS,))
