"""The host side of each mixer's passes: which kernels run, on which buffers, and under which condition."""

from __future__ import annotations

from dataclasses import replace

from ..ir.host import Allocate, Launch, Line, Pass
from ..ir.nodes import ACC, IO, OPERAND, STATE, Program
from ..mixers.linear_attention import LinearAttention
from ..mixers.sliding_window import SlidingWindow
from .feature_maps import feature_map


def linear_attention_plans() -> tuple[Program, ...]:
    """The numbers by which passes choose what they launch; `based_ops.support.host` says what they mean."""
    return (
        _plan("forward", "LONGEST", "TOKENS", "LENGTH", "SHORTEST", "PROGRAMS", "FEWEST"),
        _plan("backward", "SEGMENT", "LENGTH", "SHORTEST", "PROGRAMS"),
    )


def _plan(name: str, *constants: str) -> Program:
    return Program(name, f"How a {name} pass is launched.", (), (), (), (), (), constants, ())


def linear_attention(spec: LinearAttention) -> tuple[Pass, ...]:
    """forward, backward and step of linear attention."""
    qk, v, rows = spec.head_dims.qk, spec.head_dims.v, feature_map(spec).rows
    normalize = spec.normalize
    sizes = Line("B, T, H, _ = q.shape")

    def states(names: dict[str, str], dtype: str, when: str, count: str = "segments") -> list[Allocate]:
        """A state and its normaliser for each segment; `names` calls them ``state`` and ``normalizer``."""
        state = Allocate(names["state"], ("B", "H", count, str(rows), str(v)), dtype, when)
        normalizer = Allocate(names["normalizer"], ("B", "H", count, str(rows)), ACC, when)
        return [state, normalizer] if normalize else [state]

    def run_over_segments(
        program: str, names: dict[str, str], initial: str, total: str | None, when: str, wanted: str = "False"
    ) -> Launch:
        """Run a program over all segments, from an initial state if there is one; to a total if `wanted`."""
        arguments = names | {"INITIAL": f"{initial}state is not None", "TOTAL": wanted}
        for part in ("state", "normalizer"):
            arguments |= {f"initial_{part}": f"{initial}{part}"}
            arguments |= {f"total_{part}": f"{total}{part}" if total else "None"}
        return Launch(program, arguments, when)

    gradient_buffers = (Allocate("g", ("B", "T", "H", str(v)), OPERAND), Allocate("e", ("B", "H", "T"), ACC))

    def walk(
        program: str, names: dict[str, str], initial: str, total: str | None, when: str, wanted: str = "False"
    ) -> Launch:
        """Run a program over each span; a single span starts and ends with what is passed."""
        launch = run_over_segments(program, names, initial, total, when, wanted)
        arguments = launch.arguments | {"start_state": "span_state", "start_normalizer": "span_normalizer"}
        for flag in ("INITIAL", "TOTAL"):
            if arguments[flag] != "False":
                arguments |= {flag: f"{arguments[flag]} and not split"}
        return replace(launch, arguments=arguments | {"SEGMENTED": "split", "LONG": "long"})

    def final_buffers(prefix: str, when: str) -> list[Allocate]:
        return [
            Allocate(f"{prefix}state", ("B", "H", str(rows), str(v)), STATE, when),
            Allocate(f"{prefix}normalizer", ("B", "H", str(rows)), STATE, when if normalize else "False"),
        ]

    sums = {"state": "sums", "normalizer": "normalizer_sums"}
    of_segments = {"state": "segment_state", "normalizer": "segment_normalizer"}
    starts = {"state": "span_state", "normalizer": "span_normalizer"}
    over_spans = {"segments": "spans"}
    forward = Pass(
        "forward",
        "Outputs, row sums of A, and the state after the last token if it is asked for.",
        ("q", "k", "v", "scale", "initial_state", "initial_normalizer", "output_final_state"),
        (
            sizes,
            Line('segments, recurrent = forward_plan(T, B * H, **SCHEDULE["forward"][q.dtype])'),
            Line("split, has_initial = segments > 1, initial_state is not None"),
            Line(
                "# A recurrence over one segment starts from the initial state and ends with the final one."
            ),
            Line("summed = split if recurrent else split or has_initial or output_final_state"),
            Allocate("o", ("B", "T", "H", str(v)), IO),
            Allocate("n", ("B", "H", "T"), ACC, None if normalize else "False"),
            *final_buffers("final_", "output_final_state"),
            *states(sums, ACC, "summed"),
            *states(of_segments, OPERAND, "summed"),
            Launch("states", when="summed"),
            run_over_segments(
                "prefix", of_segments, "initial_", "final_", "summed", wanted="output_final_state"
            ),
            Launch(
                "recurrence",
                of_segments
                | {
                    "INITIAL": "has_initial and not split",
                    "SEGMENTED": "split",
                    "FINAL": "output_final_state and not split",
                },
                "recurrent",
            ),
            Launch("outputs", of_segments | {"STATEFUL": "split or has_initial"}, "not recurrent"),
        ),
        ("o", "n", "final_state", "final_normalizer"),
    )

    backward = Pass(
        "backward",
        "Gradients of q, k, v and of the initial state; the states of the segments are computed again.",
        (
            "do",
            "d_final_state",
            "d_final_normalizer",
            "q",
            "k",
            "v",
            "o",
            "n",
            "scale",
            "initial_state",
            "initial_normalizer",
        ),
        (
            sizes,
            Line('segments, long, spans = backward_plan(T, B * H, **SCHEDULE["backward"][q.dtype])'),
            Line("has_initial = initial_state is not None"),
            Line("stateful = segments > 1 or has_initial"),
            Line("mirrored = stateful or d_final_state is not None"),
            Line("split = mirrored and spans > 1"),
            Allocate("dq", ("B", "T", "H", str(qk)), IO),
            *(gradient_buffers if normalize else ()),
            *states(sums, ACC, "split", "spans"),
            *states(starts, OPERAND, "split", "spans"),
            Launch("states", over_spans, "split"),
            run_over_segments("prefix", starts | over_spans, "initial_", None, "split"),
            *states(of_segments, OPERAND, "mirrored"),
            walk("states_before", of_segments, "initial_", None, "stateful"),
            Launch("query_gradients", of_segments | {"STATEFUL": "stateful"}),
            Line("# The keys' side needs the mirrored state: the sum over the queries of later segments."),
            Allocate("dk", ("B", "T", "H", str(qk)), IO),
            Allocate("dv", ("B", "T", "H", str(v)), IO),
            *final_buffers("d_initial_", "has_initial"),
            Launch("query_states", over_spans, "split"),
            run_over_segments(
                "suffix", starts | over_spans, "d_final_", "d_initial_", "split", wanted="has_initial"
            ),
            walk("states_after", of_segments, "d_final_", "d_initial_", "mirrored", wanted="has_initial"),
            Launch("key_gradients", of_segments | {"STATEFUL": "mirrored"}),
        ),
        ("dq", "dk", "dv", "d_initial_state", "d_initial_normalizer"),
    )

    step = Pass(
        "step",
        "One token; `state` and `normalizer` are updated in place.",
        ("q", "k", "v", "scale", "state", "normalizer"),
        (sizes, Allocate("o", ("B", "T", "H", str(v)), IO), Launch("token")),
        ("o",),
    )
    return forward, backward, step


def sliding_window(spec: SlidingWindow) -> tuple[Pass, ...]:
    """forward, backward and step of a sliding window."""
    qk, v = str(spec.head_dims.qk), str(spec.head_dims.v)
    sizes = Line("B, T, H, _ = q.shape")

    def launch(program: str, *tiles: str) -> Launch:
        """Run a program over chunks; windows that reach past its tiles before and after them need a loop."""
        reaches = " or ".join(
            f'{spec.window - 1} > SCHEDULE["{program}"][q.dtype]["{tile}"]' for tile in tiles
        )
        arguments = {"Tk": "k.shape[1]", "PADDED": "first is not None", "FURTHER": reaches}
        return Launch(program, arguments)

    forward = Pass(
        "forward",
        "Outputs and the logarithm of each row's sum of exponentials.",
        ("q", "k", "v", "scale", "first"),
        (
            sizes,
            Allocate("o", ("B", "T", "H", v), IO),
            Allocate("lse", ("B", "H", "T"), ACC),
            launch("outputs", "KEYS"),
        ),
        ("o", "lse"),
    )
    backward = Pass(
        "backward",
        "Gradients of q, k and v.",
        ("do", "q", "k", "v", "o", "lse", "scale", "first"),
        (
            sizes,
            Allocate("dq", ("B", "T", "H", qk), IO),
            Allocate("dk", ("B", "k.shape[1]", "H", qk), IO),
            Allocate("dv", ("B", "k.shape[1]", "H", v), IO),
            launch("gradients", "KEYS", "QUERIES"),
        ),
        ("dq", "dk", "dv"),
    )
    step = Pass(
        "step",
        "One token; the ring and its position are updated in place.",
        ("q", "k", "v", "scale", "ring_k", "ring_v", "position"),
        (Line("B, T, H, _ = q.shape"), Allocate("o", ("B", "T", "H", v), IO), Launch("token")),
        ("o",),
    )
    return forward, backward, step
