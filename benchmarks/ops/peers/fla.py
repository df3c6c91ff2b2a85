"""flash-linear-attention."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch
from torch import Tensor

from based_ops.reference import elementwise

from ..contender import Call, Contender, Results
from ..inputs import Inputs
from ..works import Entry, Work
from .common import is_taylor, sequence_call, taylor_features

TUNED = ("taylor", "training")


@dataclass(frozen=True)
class FlaBased(Contender):
    """flash-linear-attention's kernels of Based; `parallel_based` is quadratic."""

    by: str
    function: str
    widest: int
    quadratic: bool

    def takes(self, work: Work) -> bool:
        return work.task != "step" and is_taylor(work)

    def quadratic_flops(self, work: Work) -> float:
        return float(work.rows * work.length**2 * (work.op.qk + work.op.v)) if self.quadratic else 0.0

    def why_not(self, entry: Entry, device: str) -> str | None:
        if entry.work.op.qk > self.widest:
            return f"takes queries of at most {self.widest}"
        return fla_missing()

    def prepare(self, work: Work, inputs: Inputs) -> Call:
        import fla.ops.based

        function = getattr(fla.ops.based, self.function)
        normalize = work.spec.normalize
        return sequence_call(work, inputs, inputs.leaves, lambda *x: function(*x, use_norm=normalize))


@dataclass(frozen=True)
class FlaLinear(Contender):
    """flash-linear-attention's linear attention: a Taylor map as its expanded features, made in the call; an
    elementwise map on features made beforehand and not timed, so with gradients the identity only."""

    by: str
    function: str

    def takes(self, work: Work) -> bool:
        spec = work.spec
        elementwise_map = spec.mixer == "linear_attention" and spec.feature_map.kind == "elementwise"
        if not (elementwise_map and spec.decay == "none" and not work.corrects):
            return work.task != "step" and is_taylor(work)
        trained = work.task == "training" and spec.feature_map.expression == "x"
        return work.task == "forward" or trained

    def why_not(self, entry: Entry, device: str) -> str | None:
        if is_taylor(entry.work) and entry.work.op.qk != 16:
            # fla-core 0.6 reads outside its tensors at some numbers of features; the device is lost then.
            return "not run: trusted at the 273 features of width 16 only"
        if is_taylor(entry.work) and entry.group not in TUNED:
            return f"not run: tunes itself for 18 s at each shape; in the groups {' and '.join(TUNED)} only"
        return fla_missing()

    def prepare(self, work: Work, inputs: Inputs) -> Call:
        import fla.ops.linear_attn

        function = getattr(fla.ops.linear_attn, self.function)
        spec, scale = work.spec, work.op.default_scale
        if is_taylor(work):

            def expanded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                phi_q, phi_k = taylor_features(q, scale), taylor_features(k, scale)
                return function(phi_q, phi_k, v, scale=1.0, normalize=spec.normalize)[0]

            return sequence_call(work, inputs, inputs.leaves, expanded)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            o: Tensor = function(q, k, v, scale=scale, normalize=spec.normalize)[0]
            return o

        if work.task == "training":
            return sequence_call(work, inputs, inputs.leaves, attend)
        q, k, v = inputs.leaves
        q, k = (elementwise(spec.feature_map.expression, x) for x in (q, k))
        return lambda: (attend(q, k, v),)


class FlaDecay(Contender):
    """flash-linear-attention's linear attention with a decay for each token and head."""

    by = "fla chunk_simple_gla"

    def takes(self, work: Work) -> bool:
        spec = work.spec
        identity = spec.mixer == "linear_attention" and spec.facts()["map"] == "x" and not spec.normalize
        return identity and spec.decay == "token" and not work.corrects and work.task != "step"

    def why_not(self, entry: Entry, device: str) -> str | None:
        return fla_missing()

    def prepare(self, work: Work, inputs: Inputs) -> Call:
        from fla.ops.simple_gla import chunk_simple_gla

        scale = work.op.default_scale

        def attend(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
            o: Tensor = chunk_simple_gla(q, k, v, g, scale=scale)[0]
            return o

        return sequence_call(work, inputs, inputs.leaves, attend)


class FlaDelta(Contender):
    """flash-linear-attention's delta rule over keys of length 1, with a decay for each token or without."""

    by = "fla chunk_(gated_)delta_rule"

    def takes(self, work: Work) -> bool:
        spec = work.spec
        plain = work.corrects and getattr(spec.feature_map, "expression", "") == "x"
        return plain and spec.unit_keys and spec.decay in ("none", "token") and work.task != "step"

    def why_not(self, entry: Entry, device: str) -> str | None:
        return fla_missing()

    def prepare(self, work: Work, inputs: Inputs) -> Call:
        from fla.ops.delta_rule import chunk_delta_rule
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule

        how = {"scale": work.op.default_scale, "use_qk_l2norm_in_kernel": True}

        def attend(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor) -> Tensor:
            *decay, beta = rest
            beta = beta.to(v.dtype)
            if decay:
                o: Tensor = chunk_gated_delta_rule(q, k, v, decay[0], beta, **how)[0]
                return o
            o = chunk_delta_rule(q, k, v, beta, **how)[0]
            return o

        return sequence_call(work, inputs, inputs.leaves, attend)


@dataclass(frozen=True)
class FlaStep(Contender):
    """flash-linear-attention's recurrence of one token on expanded features, 1 + D + D² rows in float32."""

    by = "fla fused_recurrent_linear_attn"

    def takes(self, work: Work) -> bool:
        return work.task == "step" and is_taylor(work)

    def why_not(self, entry: Entry, device: str) -> str | None:
        return fla_missing()

    def prepare(self, work: Work, inputs: Inputs) -> Call:
        from fla.ops.linear_attn import fused_recurrent_linear_attn

        q, k, v = inputs.leaves
        scale, rows = work.op.default_scale, 1 + work.op.qk + work.op.qk**2
        state = torch.randn(work.batch, work.heads, rows, work.op.v, device=q.device).abs()
        total = torch.randn(work.batch, 1, work.heads, rows, device=q.device).abs()

        @torch.no_grad()
        def run() -> Results:
            return fused_recurrent_linear_attn(
                taylor_features(q, scale),
                taylor_features(k, scale),
                v,
                scale=1.0,
                initial_state=(state, total),
                output_final_state=True,
                normalize=True,
            )[:1]

        return run


def fla_missing() -> str | None:
    """Why it cannot be measured; None if it can."""
    return None if importlib.util.find_spec("fla") else "flash-linear-attention is not installed"
