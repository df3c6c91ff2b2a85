"""Models on disk: a folder with model.yaml and model.safetensors, the paper's, or one of Transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from based_ops.codegen.spec.language_model import ModelSpec

from ..errors import CheckpointError
from ..extras import require
from . import published, transformers_folder
from .files import free, read_tensors, written_aside
from .hub import folder_of
from .language_model import LanguageModel
from .layer_specs import compiled, specs_of
from .spec import parse_spec
from .transformers_folder import untied

SPEC, TENSORS = "model.yaml", "model.safetensors"
LAYERS = "layers"


def load(
    folder: str | Path, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> LanguageModel:
    """The model of a folder, or of a repository of the Hugging Face hub, in evaluation mode.

    It may be one of ours, the paper's (`hazyresearch/based-*`, `attn-*`), or one of `based_ops.hf`.  `dtype`
    is that of the checkpoint unless given.  Raises `CheckpointError`, which names the key or the
    file, for what is missing, unknown, misshapen or damaged, and `SpecErrors` for a wrong model.yaml.
    """
    model, weights, _ = read(folder_of(folder))
    check(LanguageModel(model, device="meta"), weights)
    dtype = dtype or weights["embedding.weight"].dtype
    made = LanguageModel(model, device="meta", dtype=dtype)
    made.to_empty(device=device or "cpu")
    made.tie()
    _buffers_again(made, model, device, dtype)
    made.load_state_dict(weights, strict=False)  # in the dtype that each parameter has
    return made.eval()


def save(model: LanguageModel, folder: str | Path) -> None:
    """Writes a folder of ours; one that exists is replaced once all is written.  Raises `CheckpointError`."""
    require("models", "saving a model", "safetensors")
    write(model.spec, dict(model.state_dict()), Path(folder))


def convert(folder: str | Path, out: str | Path, transformers: bool = False) -> published.Report:
    """Writes the checkpoint that `load` would read as one of ours, and says what became of its keys.

    With `transformers` as one that `based_ops.hf` and its Auto classes read.
    """
    require("models", "converting a model", "safetensors")
    folder = folder_of(folder)
    model, weights, report = read(folder)
    check(LanguageModel(model, device="meta"), weights)
    if transformers:
        transformers_folder.write(model, weights, Path(out), published.tokens_of(folder))
    else:
        write(model, weights, Path(out))
    return report


def read(folder: Path) -> tuple[ModelSpec, dict[str, Tensor], published.Report]:
    """The spec of a folder's model, its weights by our names, and what became of other keys."""
    if (folder / SPEC).is_file():
        model = parse_spec((folder / SPEC).read_bytes(), str(folder / SPEC))
        weights = read_tensors(folder / TENSORS)
        return compiled(model, _layers(folder / TENSORS)), weights, published.Report()
    if transformers_folder.is_one(folder):
        return *transformers_folder.read(folder), published.Report()
    if published.is_published(folder):
        return published.read(folder)
    raise CheckpointError(
        f"{folder}: no model: neither {SPEC} nor config.json with {' or '.join(published.WEIGHTS)}"
    )


def write(model: ModelSpec, weights: dict[str, Tensor], folder: Path) -> None:
    """Writes spec and weights beside `folder`, and then gives them its name."""
    from safetensors.torch import save_file

    free(folder, (folder / SPEC).is_file())
    with written_aside(folder) as place:
        save_file(untied(model, weights), place / TENSORS, {LAYERS: json.dumps(specs_of(model))})
        (place / SPEC).write_text(dump(model), encoding="utf-8")


def _layers(path: Path) -> dict[str, str]:
    """The specs of layers that were compiled for the model, which its tensors' file keeps."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(LAYERS, "{}")
    try:
        return dict(json.loads(text))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its metadata `{LAYERS}` cannot be read: {error}") from error


def dump(model: ModelSpec) -> str:
    """The text of a model's spec file; reading it gives an equal spec."""
    from based_ops.codegen.spec.model import in_one_line, plain_fields

    lines = []
    for name, value in plain_fields(model).items():
        if name == "placement":
            lines += [f"{name}:", *(f"  - {in_one_line(x)}" for x in value)] if value else []
        else:
            lines.append(f"{name}: {in_one_line(value)}")
    return "\n".join(lines) + "\n"


def check(model: LanguageModel, weights: dict[str, Tensor]) -> None:
    """Raises `CheckpointError` unless the weights are those of the model."""
    wanted = {name: x for name, x in model.state_dict().items()}
    if model.spec.tied and "head.weight" not in weights:
        weights["head.weight"] = weights.get("embedding.weight", wanted["head.weight"])
    kept = dict(model.named_parameters(remove_duplicate=False))
    if missing := sorted(name for name in kept if name not in weights):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{missing[0]}{more}: missing from the weights")
    if unknown := sorted(name for name in weights if name not in wanted):
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise CheckpointError(f"{unknown[0]}{more}: of no layer of {model.spec.name}")
    for name, x in weights.items():
        if x.shape != wanted[name].shape:
            got, want = list(x.shape), list(wanted[name].shape)
            raise CheckpointError(f"{name}: got shape {got}, must be of shape {want}")


def _buffers_again(model: LanguageModel, spec: ModelSpec, device: Any, dtype: Any) -> None:
    """Buffers are no weights of a checkpoint: they are as a new model has them."""
    if not any(True for _ in model.buffers()):
        return
    fresh = LanguageModel(spec, device=device, dtype=dtype)
    for buffer, start in zip(model.buffers(), fresh.buffers(), strict=True):
        buffer.copy_(start)
