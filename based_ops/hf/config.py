"""The config of a model: its spec under the names that Transformers has for the fields."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from based_ops.codegen.spec.language_model import ModelSpec

from ..models import load_spec
from ..models.transformers_folder import MODEL_TYPE, config_of, model_of
from .cache import StateLayer

_DEFAULT = config_of(load_spec("based-360m"))


@strict
class BasedConfig(PreTrainedConfig):
    """What a model is; the fields without a word here are those of a model's spec, by default based-360m.

    Raises `SpecErrors`, which names the field, for what no spec can have.
    """

    model_type: ClassVar[str] = MODEL_TYPE
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cache"]

    model_name: str = _DEFAULT["model_name"]
    vocab_size: int = _DEFAULT["vocab_size"]
    hidden_size: int = _DEFAULT["hidden_size"]
    num_hidden_layers: int = _DEFAULT["num_hidden_layers"]
    mixer: dict[str, Any] = field(default_factory=lambda: dict(_DEFAULT["mixer"]))
    placement: list[dict[str, Any]] = field(default_factory=lambda: [dict(x) for x in _DEFAULT["placement"]])
    mlp: dict[str, Any] | None = field(default_factory=lambda: dict(_DEFAULT["mlp"]))
    norm_eps: float = _DEFAULT["norm_eps"]
    tie_word_embeddings: bool = _DEFAULT["tie_word_embeddings"]
    layer_specs: dict[str, str] = field(default_factory=dict)
    """Texts of the specs of layers that no package has, by the name that `mixer` and `placement` give."""
    use_cache: bool = True
    initializer_range: float = 0.02

    def __post_init__(self, **others: Any) -> None:
        super().__post_init__(**others)
        for name, value in config_of(self.spec()).items():  # with layers by their names here
            setattr(self, name, value)

    @classmethod
    def of(cls, model: ModelSpec | str | Path, **others: Any) -> BasedConfig:
        """The config of a spec, of a shipped model by its name, or of a spec file."""
        spec = model if isinstance(model, ModelSpec) else load_spec(model)
        made: BasedConfig = cls(**(config_of(spec) | others))
        return made

    def spec(self) -> ModelSpec:
        """The spec of the model that this config describes."""
        return model_of(vars(self), "config")

    @property
    def layer_types(self) -> list[str]:
        """For `DynamicCache(config=...)` and `StaticCache`: which layers a cache has."""
        return [StateLayer.layer_type] * self.num_hidden_layers

    def validate_layer_type(self) -> None:
        """Transformers knows a closed list of types; ours is entered in its tables of caches."""
