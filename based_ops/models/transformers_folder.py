"""Folders as Transformers has them, of the classes of `based_ops.hf`: read and written without it.

config.json holds the model's spec under the names that Transformers has for its fields; model.safetensors,
or shards and their index, the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from based_ops.codegen.spec.language_model import ModelSpec

from ..errors import CheckpointError
from .files import free, read_json, read_weights, written_aside
from .layer_specs import compiled, specs_of
from .spec import parse_spec

MODEL_TYPE = "based"
CONFIG, TENSORS = "config.json", "model.safetensors"
INDEX = f"{TENSORS}.index.json"
FIELDS = {
    "name": "model_name",
    "d_model": "hidden_size",
    "vocabulary": "vocab_size",
    "layers": "num_hidden_layers",
    "mixer": "mixer",
    "placement": "placement",
    "mlp": "mlp",
    "norm_eps": "norm_eps",
    "tied": "tie_word_embeddings",
}
"""What the fields of a model's spec are called in config.json."""
LAYERS = "layer_specs"
"""The field of config.json for layers that were compiled for the model."""
BODY, HEAD = "model.", "lm_head.weight"


def config_of(model: ModelSpec) -> dict[str, Any]:
    """The fields of config.json that say what the model is."""
    from based_ops.codegen.spec.model import plain_fields

    plain = plain_fields(model)
    return {theirs: plain[ours] for ours, theirs in FIELDS.items()} | {LAYERS: specs_of(model)}


def model_of(config: Mapping[str, Any], file: str = CONFIG) -> ModelSpec:
    """The inverse; raises `SpecErrors`, or `CheckpointError` for a field that is missing."""
    from based_ops.codegen.spec.model import in_one_line

    lines = []
    for ours, theirs in FIELDS.items():
        if theirs not in config:
            raise CheckpointError(f"{file}: {theirs} is missing")
        lines.append(f"{ours}: {in_one_line(config[theirs])}")
    return compiled(parse_spec("\n".join(lines) + "\n", file), config.get(LAYERS) or {})


def is_one(folder: Path) -> bool:
    """Whether a folder is of this kind."""
    return (folder / CONFIG).is_file() and read_json(folder / CONFIG).get("model_type") == MODEL_TYPE


def read(folder: Path) -> tuple[ModelSpec, dict[str, Tensor]]:
    """The model of a folder, and its weights by our names.  Raises `CheckpointError` and `SpecErrors`."""
    model = model_of(read_json(folder / CONFIG), str(folder / CONFIG))
    weights = {}
    for name, x in read_weights(folder, [TENSORS]).items():
        if name != HEAD and not name.startswith(BODY):
            raise CheckpointError(f"{name}: of no layer of {model.name}")
        weights["head.weight" if name == HEAD else name.removeprefix(BODY)] = x
    return model, weights


def write(
    model: ModelSpec, weights: Mapping[str, Tensor], folder: Path, others: Mapping[str, Any] | None = None
) -> None:
    """Writes such a folder, of one file of weights; `others` are more fields of its config."""
    from safetensors.torch import save_file

    free(folder, (folder / CONFIG).is_file() and is_one(folder))
    made = {"architectures": ["BasedForCausalLM"], "model_type": MODEL_TYPE, **(others or {})} | config_of(
        model
    )
    made["dtype"] = str(weights["embedding.weight"].dtype).removeprefix("torch.")
    named = {HEAD if n == "head.weight" else BODY + n: x for n, x in untied(model, weights).items()}
    with written_aside(folder) as place:
        save_file(named, place / TENSORS, {"format": "pt"})
        (place / CONFIG).write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    (folder / INDEX).unlink(missing_ok=True)  # of shards that were there before


def untied(model: ModelSpec, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that a file has: a head that is the embedding is left out."""
    return {n: x.contiguous() for n, x in weights.items() if not (model.tied and n == "head.weight")}
