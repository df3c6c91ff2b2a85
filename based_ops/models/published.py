"""Checkpoints of the Based paper: `hazyresearch/based-*` and `attn-*`, as their code wrote them.

A folder holds config.json and pytorch_model.bin (or model.safetensors).  Every key of the config is used,
known to have no effect, or reported; every weight is used or an error.  What the code computes, beyond what
its config says: a convolution has 3 taps (the key is misspelt there); a window of `window_size` w sees w // 2
keys back and the query's own; `alt_mixer_2` wins where both lists name a layer, and has the model's heads;
the MLP's width is rounded up to a multiple of 256, and the SiLU is on the second half of fc1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from based_ops.codegen.spec import language_model as s

from ..errors import CheckpointError
from .files import has_weights, read_json, read_weights

WITHOUT_EFFECT = frozenset(
    "_target_ _recursive_ _name_or_path activation_dropout architectures attn_pdrop bos_token_id do_sample "
    "dtype embd_pdrop eos_token_id fixed_decay fused_bias_fc fused_dropout_add_ln fused_mlp ff_mult "
    "initializer_range l_max model_type n_ctx n_positions pad_token_id qkv_proj_bias out_proj_bias "
    "mlp_fc1_bias mlp_fc2_bias reorder_and_upcast_attn resid_pdrop residual_in_fp32 special_initializer "
    "summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj "
    "task_specific_params torch_dtype transformers_version use_cache use_flash_attn use_weight_init "
    "max_position_embeddings scale_attn_weights tie_word_embeddings mlp_type".split()
)
"""Keys that change nothing of what is computed, or whose value is checked by the weights that there are."""
REQUIRED = {
    "rms_norm": True,
    "activation_function": "swiglu",
    "scale_attn_by_inverse_layer_idx": False,
    "parallel_block": False,
    "prenorm": True,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
}
"""Keys of which one value is what we compute."""
TAPS = 3


@dataclass
class Report:
    """What became of a checkpoint."""

    without_effect: list[str] = field(default_factory=list)
    """Keys of its config that change nothing."""
    unknown: list[str] = field(default_factory=list)
    """Keys of its config that nobody knows."""
    dropped: list[str] = field(default_factory=list)
    """Tensors that are no weights."""


def is_published(folder: Path) -> bool:
    """Whether a folder holds such a checkpoint."""
    return (folder / "config.json").is_file() and has_weights(folder, WEIGHTS)


WEIGHTS = ("pytorch_model.bin", "model.safetensors")
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def tokens_of(folder: Path) -> dict[str, int]:
    """The tokens that mean something to whoever generates, as far as the config of such a folder has them."""
    if not is_published(folder):
        return {}
    config = read_json(folder / "config.json")
    return {key: config[key] for key in TOKENS if isinstance(config.get(key), int)}


def read(folder: Path) -> tuple[s.ModelSpec, dict[str, Tensor], Report]:
    """The model of such a folder, and its weights by our names.  Raises `CheckpointError`."""
    report = Report()
    model = spec_of(read_json(folder / "config.json"), folder.name, report)
    return model, dict(_renamed(model, read_weights(folder, WEIGHTS), report)), report


def spec_of(config: Mapping[str, Any], name: str, report: Report) -> s.ModelSpec:
    """The model that a config describes."""
    left = dict(config)

    def take(key: str, default: Any = None) -> Any:
        return left.pop(key, default)

    for key, value in REQUIRED.items():
        if key in left and (found := take(key)) != value:
            raise CheckpointError(
                f"config.json: {key} is {found!r}; these models are computed with {value!r} alone"
            )
    width, count, heads = take("n_embd"), take("n_layer"), take("n_head")
    vocabulary, multiple = take("vocab_size", 50257), take("pad_vocab_size_multiple", 1)
    for key, value in (("n_embd", width), ("n_layer", count), ("n_head", heads)):
        if not isinstance(value, int) or value < 1:
            raise CheckpointError(f"config.json: {key} is {value!r}, must be a whole number from 1 on")
    if width % heads:
        raise CheckpointError(f"config.json: n_embd {width} is no multiple of n_head {heads}")
    head = width // heads
    full = s.Attention(heads, take("n_head_kv") or 0, float(take("rotary_emb_fraction", 0.0)))
    base = take("mixer")
    linear, window = take("alt_mixer"), take("alt_mixer_2")
    at_linear, at_window = take("alt_mixer_layers") or (), take("alt_mixer_2_layers") or ()
    placement = []
    if at_linear:
        placement.append(s.Placement(tuple(at_linear), _mixer(linear, "alt_mixer", heads, head, full)))
    if at_window:
        placement.append(s.Placement(tuple(at_window), _mixer(window, "alt_mixer_2", heads, head, full)))
    inner = take("n_inner") or int(8 * width / 3)
    inner = -(-inner // 256) * 256
    eps = float(take("layer_norm_epsilon", 1e-5))
    report.without_effect += sorted(left.keys() & WITHOUT_EFFECT)
    report.unknown += sorted(left.keys() - WITHOUT_EFFECT)
    vocabulary = -(-vocabulary // multiple) * multiple
    mixer = _mixer(base, "mixer", heads, head, full)
    return s.ModelSpec(
        _name(name), width, vocabulary, count, mixer, tuple(placement), s.Mlp(inner), eps, tied=True
    )


def _mixer(config: Mapping[str, Any] | None, key: str, heads: int, head: int, full: s.Attention) -> s.Mixer:
    if config is None:
        return full
    target = str(config.get("_target_", "")).rpartition(".")[2]
    match target:
        case "BaseConv":
            expand = config.get("expand_proj", 2)
            if expand % 2:
                raise CheckpointError(f"config.json: {key}.expand_proj is {expand}, must be even")
            return s.GatedConv(_variant(_conv()), expand // 2)
        case "LinearAttention":
            features, own = config.get("feature_dim", 16), config.get("num_heads", 16)
            wide = config.get("head_dim") or heads * head // own
            return s.LinearAttention(_variant(_taylor(features, wide)), own)
        case "SlidingAttention":
            if full.rotary != 1.0:
                raise CheckpointError(
                    f"config.json: rotary_emb_fraction is {full.rotary}; a window turns all of a head"
                )
            back = config.get("window_size", 128) // 2
            return s.SlidingWindow(_variant(_window(back + 1, head)), heads, full.kv_heads)
    raise CheckpointError(
        f"config.json: {key} is a {target or '?'}; known are BaseConv, LinearAttention and SlidingAttention"
    )


def _conv() -> Any:
    from based_ops.codegen.mixers.short_conv import ShortConv

    return ShortConv("conv3_silu", TAPS)


def _taylor(qk: int, v: int) -> Any:
    from based_ops.codegen.mixers.linear_attention import LinearAttention
    from based_ops.codegen.spec.model import HeadDims, TaylorExp

    return LinearAttention(f"taylor2_qk{qk}_v{v}", TaylorExp(2), HeadDims(qk, v))


def _window(keys: int, width: int) -> Any:
    from based_ops.codegen.mixers.sliding_window import SlidingWindow
    from based_ops.codegen.spec.model import HeadDims

    return SlidingWindow(f"window{keys}_d{width}", keys, HeadDims(width, width))


def _variant(layer: Any) -> str:
    """The name of a variant of that meaning: a registered one, or one that is compiled now."""
    from ..jit import meaning

    return meaning(layer).name


def _name(folder: str) -> str:
    from based_ops.codegen.names import name_problem

    found = folder.lower().replace("_", "-")
    return found if name_problem(found, hyphens=True) is None else "published"


# Weights

OURS = {
    s.GatedConv: {
        "in_proj.weight": "in_proj.weight",
        "in_proj.bias": "in_proj.bias",
        "conv.conv.weight": "conv.weight",
        "conv.conv.bias": "conv.bias",
        "out_proj.weight": "out_proj.weight",
        "out_proj.bias": "out_proj.bias",
    },
    s.LinearAttention: {
        "proj_q.weight": "q_proj.weight",
        "proj_k.weight": "k_proj.weight",
        "proj_v.weight": "v_proj.weight",
        "out_proj.weight": "o_proj.weight",
    },
    s.SlidingWindow: {"out_proj.weight": "o_proj.weight"},
    s.Attention: {"out_proj.weight": "o_proj.weight"},
}
"""What a mixer's tensors are called there and here; Wqkv is three of ours."""


def _renamed(model: s.ModelSpec, weights: dict[str, Tensor], report: Report) -> Iterator[tuple[str, Tensor]]:
    """Our names and tensors; raises for those that are left, and for what is missing when the model asks."""
    left = {name.removeprefix("model."): x for name, x in weights.items()}
    for name in [
        n for n in left if "metrics" in n or n == "transformer.decay.decay" or n.endswith("inv_freq")
    ]:
        report.dropped.append(name)
        del left[name]

    def take(name: str) -> Tensor:
        if name not in left:
            raise CheckpointError(f"{name}: missing from the weights")
        return left.pop(name)

    embedding = take("transformer.embeddings.word_embeddings.weight")
    head = left.pop("lm_head.weight", embedding)
    if head.shape != embedding.shape or not torch.equal(head, embedding):
        raise CheckpointError("lm_head.weight: differs from the embedding, to which these models tie it")
    yield "embedding.weight", embedding
    yield "head.weight", embedding
    yield "norm.weight", take("transformer.ln_f.weight")
    for i, mixer in enumerate(model.mixers()):
        there, here = f"transformer.layers.{i}", f"blocks.{i}"
        for name in ("norm1.weight", "norm2.weight", "mlp.fc1.weight", "mlp.fc2.weight"):
            yield f"{here}.{name}", take(f"{there}.{name}")
        if isinstance(mixer, s.SlidingWindow | s.Attention):
            rows = take(f"{there}.mixer.Wqkv.weight")
            q, kv = rows.shape[1], (rows.shape[0] - rows.shape[1]) // 2
            for name, part in zip("qkv", rows.split([q, kv, kv]), strict=True):
                yield f"{here}.mixer.{name}_proj.weight", part
        for theirs, ours in OURS[type(mixer)].items():
            name = f"{there}.mixer.{theirs}"
            if theirs == "conv.conv.bias" and name not in left:
                taps = next(x for n, x in weights.items() if n.endswith(f"layers.{i}.mixer.conv.conv.weight"))
                yield f"{here}.mixer.{ours}", taps.new_zeros(taps.shape[0])
                continue
            x = take(name)
            yield f"{here}.mixer.{ours}", x.squeeze(1) if theirs == "conv.conv.weight" else x
    if left:
        raise CheckpointError(f"{_listed(left)}: of no layer of this model")


def _listed(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return f"{first} and {len(others)} more" if others else first
