"""Arguments that calls do not have, and what to do instead: names that users of other libraries try.

Public functions take unknown names as `**foreign: NoReturn`, which type checkers let nobody use, and refuse
them here.  An empty dictionary is all that a right call pays for it.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any, NoReturn

from .errors import ArgumentTypeError, fail_text
from .tracing import run_while_tracing

_INSTEAD = {
    "cu_seqlens cu_seqlens_q cu_seqlens_k cu_seq_lens cu_seq_lens_q cu_seq_lens_k query_start_loc seq_idx "
    "seqlens max_seqlen max_seqlen_q max_seqlen_k attention_mask attn_mask key_padding_mask padding_mask "
    "mask": (
        "sequences of several lengths go into a variant's call, packed behind each other with `cu_seqlens`, "
        "or padded with `attention_mask`, and so into a layer of one; steps take one length"
    ),
    "causal is_causal": "every call is causal: leave it out",
    "enable_gqa kv_heads n_kv_heads num_kv_heads num_key_value_heads num_heads_kv": (
        "k and v, or any of q, k and v, may have fewer heads than the others, and share them: pass them as "
        "they are; a layer takes `kv_heads`"
    ),
    "window_size window sliding_window left_window local_window_size": (
        "the window is the variant's: take one whose spec has `window: W`; W counts the query's own key, so "
        "FlashAttention's `window_size=(W - 1, 0)` is W here"
    ),
    "head_first heads_first layout tensor_layout input_layout qkv_format bshd bhsd": (
        "tensors are [B, T, H, D]: from [B, H, T, D] take `x.transpose(1, 2)`, which copies nothing"
    ),
    "batch_first": "tensors are [B, T, ...]: leave it out",
    "softmax_scale sm_scale scaling qk_scale attn_scale": "the factor on q·k is `scale`",
    "dropout dropout_p attn_dropout attn_pdrop": "weights are never formed, so none drop out: drop outputs",
    "need_weights average_attn_weights output_attentions return_attn_probs return_lse return_softmax": (
        "weights are never formed: `reference` shows how to compute them"
    ),
    "cache_indices conv_state_indices ssm_state_indices state_batch_indices cache_batch_idx slot_mapping": (
        "the slots of a pool of states that a batch has go in as `state_indices` of a call or of a step"
    ),
    "initial_state initial_states state h0 past past_key_value past_key_values layer_past cache cache_params "
    "kv_cache": "the state so far goes in as `initial_state` of a call, or `state` of a step or a layer",
    "output_final_state output_state return_final_states return_final_state use_cache": (
        "the state comes out with `output_final_state=True` of a call, or `output_state=True` of a layer; "
        "a step updates it in place"
    ),
    "g gk gv gate gates decay alibi_slopes attn_bias dt beta": (
        "a layer whose spec has `decay: head` or `decay: token` takes `g`, logarithms of what is left of its "
        "state; there is no other gate, and no bias of weights"
    ),
    "normalize use_norm normalizer eps feature_map feature_fn expand_k expand_v": (
        "what a layer computes stands in its spec: compile one with `based_ops.load`"
    ),
    "batch_invariant batch_invariance": (
        "calls of a variant take `batch_invariant`; steps do without, unless the torch backend serves, and a "
        "layer's projections are PyTorch's products"
    ),
    "chunk_size block_size mode deterministic num_stages num_warps": (
        "how a layer is computed follows from its schedule, see `based-ops tune`, and from `backend`"
    ),
    "position_ids position_embeddings rotary_emb cos sin": (
        "positions are those in the sequence, counted on from the state's"
    ),
    "head_dim head_dims key_dim value_dim head_k_dim head_v_dim kdim vdim feature_dim d_head": (
        "widths of a head are the variant's, `qk` and `v` of its spec's `head_dims`"
    ),
    "bias qkv_bias attention_bias add_bias_kv": "the projections have no bias: leave it out",
}
INSTEAD = {name: words for names, words in _INSTEAD.items() for name in names.split()}
"""What to do instead of giving an argument of that name."""


@run_while_tracing
def refuse(function: Callable[..., Any], names: tuple[str, ...]) -> NoReturn:
    """Raises an `ArgumentTypeError` for arguments that `function` does not have; it names the first."""
    name = names[0]
    allowed = [x for x in inspect.signature(function).parameters if x not in ("self", "foreign")]
    near = difflib.get_close_matches(name, allowed, n=1)
    nearest = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(allowed)}"
    instead = INSTEAD.get(name, nearest)
    what = function.__qualname__.removesuffix(".__init__").removesuffix(".__call__")
    fail_text(ArgumentTypeError, f"{name}: no argument of {what}: {instead}")
