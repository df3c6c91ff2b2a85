"""The models: blocks of `based_ops.models` in the classes that Transformers knows."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.deprecation import deprecate_kwarg

from ..arguments import refuse
from ..errors import ArgumentTypeError, ArgumentValueError, DtypeError, ShapeError, fail
from ..models import LanguageModel
from ..models.blocks import Block, normed, start
from ..models.language_model import embedded, wide
from ..models.transformers_folder import HEAD
from ..tracing import is_traced
from . import folders
from .cache import layers_of
from .config import BasedConfig

LOSS = {"num_items_in_batch", "ignore_index", "shift_labels"}
"""What may go to the loss besides logits and labels."""


class BasedPreTrainedModel(PreTrainedModel):
    """What both models share."""

    config_class = BasedConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    _skip_keys_device_placement = ["cache"]
    _input_embed_layer = "embedding"

    def _init_weights(self, module: nn.Module) -> None:
        """As training begins; the constructors of mixers have made what is no linear map."""
        if isinstance(module, Block):
            start(module, self.config.initializer_range, self.config.num_hidden_layers)
        elif isinstance(module, nn.Embedding) or module is getattr(self, "lm_head", None):
            nn.init.normal_(module.weight, std=self.config.initializer_range)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **options: Any) -> Any:
        """The model of a folder, or of a repository of the hub; as Transformers has it, but strict.

        Folders of `based_ops.models` and the paper's (`hazyresearch/based-360m`) do as well.  Raises
        `CheckpointError`, which names the key or the file, for weights that are missing, of no layer,
        misshapen or damaged.
        """
        folder = folders.found(pretrained_model_name_or_path, options)
        if folder is not None and folders.is_foreign(folder):
            return folders.converted(cls, folder, **options)
        load = super().from_pretrained
        name = folder if folder is not None else pretrained_model_name_or_path
        return folders.checked(load, name, *args, **options)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **options: Any) -> None:
        """Writes config and weights, in shards of `max_shard_size`; no file is ever there in part."""
        folders.saved(super().save_pretrained, Path(save_directory), *args, **options)


class BasedModel(BasedPreTrainedModel):
    """A language model without its head: tokens to the normed residual stream."""

    _keys_to_ignore_on_load_unexpected = [rf"^{HEAD}$"]

    def __init__(self, config: BasedConfig) -> None:
        super().__init__(config)
        made = LanguageModel(config.spec())
        self.embedding, self.blocks, self.norm = made.embedding, made.blocks, made.norm
        self.gradient_checkpointing = False
        self.post_init()

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **foreign: Any,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Hidden states [B,T,hidden_size] of `input_ids` [B,T], or of `inputs_embeds` [B,T,hidden_size].

        `attention_mask` [B,S], S >= T, is 0 where there is padding; its last T columns are for these tokens.
        `cache` is a `DynamicCache(config=config)`; with `use_cache` one is made if there is none.  Raises the
        errors of `based_ops.errors`.
        """
        if foreign:
            refuse(BasedModel.forward, tuple(foreign))
        if output_attentions:
            fail(
                ArgumentValueError, "output_attentions", True, "False: weights of attention are never formed"
            )
        x = self._enter(input_ids, inputs_embeds)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        checkpointing = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if cache is not None and checkpointing:
            fail(ArgumentValueError, "cache", "one", "None: blocks are computed again for their gradients")
        use_cache = use_cache and not checkpointing
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        layers = [None] * len(self.blocks) if cache is None else layers_of(cache, len(self.blocks))
        mask = self._mask(attention_mask, x)
        hidden: list[Tensor] = []
        for block, layer in zip(self.blocks, layers, strict=True):
            hidden.append(x)
            if layer is not None:
                x, _ = block(x, mix=partial(layer.call, block.mixer), attention_mask=mask)
            elif checkpointing:
                x, _ = self._gradient_checkpointing_func(partial(block, attention_mask=mask), x)
            else:
                x, _ = block(x, attention_mask=mask)
        x = normed(self.norm, x)
        found = BaseModelOutputWithPast(
            last_hidden_state=x,
            cache=cache if use_cache else None,
            hidden_states=(*hidden, x) if output_hidden_states else None,
        )
        return (
            found if (self.config.return_dict if return_dict is None else return_dict) else found.to_tuple()
        )

    def _enter(self, ids: Tensor | None, embeds: Tensor | None) -> Tensor:
        """The residual stream."""
        if (ids is None) == (embeds is None):
            fail(ArgumentTypeError, "input_ids", "both or neither", "given, or `inputs_embeds` instead")
        if ids is not None:
            return embedded(self.embedding, ids, self.config.model_name)
        assert embeds is not None
        if embeds.dim() != 3 or embeds.shape[-1] != self.config.hidden_size:
            got = tuple(embeds.shape)
            fail(ShapeError, "inputs_embeds", got, f"of shape [B, T, {self.config.hidden_size}]")
        return wide(embeds)

    def _mask(self, mask: Tensor | None, x: Tensor) -> Tensor | None:
        """That of these tokens, or None where none is padding."""
        if mask is None:
            return None
        batch, length = x.shape[:2]
        if mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] < length:
            wanted = f"of shape [{batch}, {length} or more]"
            fail(ShapeError, "attention_mask", tuple(mask.shape), wanted)
        if mask.is_floating_point():
            fail(DtypeError, "attention_mask", str(mask.dtype), "bool, or whole numbers 0 and 1")
        mask = mask[:, mask.shape[1] - length :]
        if is_traced():  # compiled code cannot look: what is generated is no padding
            return None if length == 1 else mask
        return None if bool(mask.all()) else mask


class BasedForCausalLM(BasedPreTrainedModel, GenerationMixin):
    """A language model: tokens to logits, and `generate` in all its ways.

    Its body is `model`, its head `lm_head`; both are those of a `based_ops.models.LanguageModel`.
    """

    _tied_weights_keys = {HEAD: "model.embedding.weight"}

    def __init__(self, config: BasedConfig) -> None:
        super().__init__(config)
        self.model = BasedModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def of(cls, model: LanguageModel) -> BasedForCausalLM:
        """A language model for Transformers: the same modules, nothing is copied."""
        with torch.device("meta"):
            made = cls(BasedConfig.of(model.spec))
        body = made.model
        body.embedding, body.blocks, body.norm = model.embedding, model.blocks, model.norm
        made.lm_head = model.head
        made.config.dtype = model.embedding.weight.dtype
        return made.train(model.training)

    def language_model(self) -> LanguageModel:
        """The language model of these modules: nothing is copied."""
        made = LanguageModel(self.config.spec(), device="meta")
        body = self.model
        made.embedding, made.blocks, made.norm, made.head = (
            body.embedding,
            body.blocks,
            body.norm,
            self.lm_head,
        )
        return made.train(self.training)

    def generate(self, inputs: Tensor | None = None, *args: Any, **options: Any) -> Any:
        """As Transformers has it; a prompt without tokens is an `ArgumentValueError`."""
        ids = options.get("input_ids") if inputs is None else inputs
        mask = options.get("attention_mask")
        if ids is not None and ids.shape[-1] == 0 and options.get("inputs_embeds") is None:
            fail(ArgumentValueError, "input_ids", "no tokens", "one token or more")
        if mask is not None and not bool(mask.any(-1).all()):
            fail(
                ArgumentValueError, "attention_mask", "a prompt of padding", "1 for one token or more of each"
            )
        return super().generate(inputs, *args, **options)

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **loss_options: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits [B,T,vocab_size], or of the last `logits_to_keep` tokens; with `labels` [B,T] the loss.

        The label of a token is what the one after it should be, so `labels` is `input_ids`, with -100 where
        nothing is asked.  The others are as `BasedModel` takes them.
        """
        if foreign := tuple(loss_options.keys() - LOSS):
            refuse(BasedForCausalLM.forward, foreign)
        found = self.model(
            input_ids,
            attention_mask,
            cache,
            inputs_embeds,
            use_cache,
            output_hidden_states,
            output_attentions,
            return_dict=True,
        )
        x = found.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(x[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **loss_options)
        made = CausalLMOutputWithPast(
            loss=loss, logits=logits, cache=found.cache, hidden_states=found.hidden_states
        )
        return made if (self.config.return_dict if return_dict is None else return_dict) else made.to_tuple()
