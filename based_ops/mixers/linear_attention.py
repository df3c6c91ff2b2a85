"""Linear attention as PyTorch sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..attention import AttentionVariant
from ..state import LinearAttentionState
from ..tracing import constant
from ..variant import Tensors, dtype_named

if TYPE_CHECKING:
    from based_ops.codegen.mixers.linear_attention import LinearAttention


class LinearAttentionVariant(AttentionVariant[LinearAttentionState]):
    """o_i = Σ_{j≤i} A_ij v_j / (Σ_{j≤i} A_ij + eps), with A the kernel of the spec's feature map."""

    spec: LinearAttention
    _state_type = LinearAttentionState
    features: int = constant("features", "Rows of the state.")

    def _setup(self) -> None:
        super()._setup()
        spec: Any = self.spec
        self._know(features=spec.features)
        self.normalize: bool = spec.normalize
        self.state_dtype = dtype_named(spec.state_dtype)

    def products(self, length: int, begun: bool = False, final: bool = False) -> float:
        """Through the state, or with every earlier token where that is less.

        By the delta rule a token reads the state, or its pairs, by its key too.
        """
        pairs = length * (length + 1) // 2
        update = 2 * self.features * self.v * length  # as many as a product with the state
        if self.spec.corrects:
            twice = 4 * (self.qk + self.v) * pairs + update * (2 * begun + final)
            return float(min(3 * update, twice))
        alone = 2 * (self.qk + self.v) * pairs + update * (begun + final)
        return float(min(2 * update, alone))

    def _reference(
        self, tensors: Tensors, numbers: tuple[float, ...], initial_state: Any
    ) -> tuple[Tensor, LinearAttentionState]:
        from ..reference import delta_rule, linear_attention

        q, k, v, *more = tensors
        assert q is not None and k is not None and v is not None
        (scale,) = numbers
        if not self.spec.corrects:
            return linear_attention(self.spec, q, k, v, scale, initial_state, *more)
        *decays, beta = more
        assert beta is not None
        return delta_rule(
            self.spec, q, k, v, scale, initial_state, beta=beta, log_decay=next(iter(decays), None)
        )


VARIANT = LinearAttentionVariant
