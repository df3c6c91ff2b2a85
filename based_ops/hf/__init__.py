"""The language models as Transformers has them: config, models, cache and generation, with its Auto classes.

Importing this module registers them, and takes the extra `hf`.
"""

from __future__ import annotations

from ..extras import require

require("hf", "based_ops.hf")

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM  # noqa: E402

from .cache import StateLayer  # noqa: E402
from .config import BasedConfig  # noqa: E402
from .decoding import engine  # noqa: E402
from .model import BasedForCausalLM, BasedModel  # noqa: E402

__all__ = ["BasedConfig", "BasedForCausalLM", "BasedModel", "StateLayer", "engine"]

AutoConfig.register(BasedConfig.model_type, BasedConfig)
AutoModel.register(BasedConfig, BasedModel)
AutoModelForCausalLM.register(BasedConfig, BasedForCausalLM)
