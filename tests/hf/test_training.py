"""Training with Transformers: losses, its Trainer, checkpoints of activations, and compiled code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from transformers import DynamicCache, Trainer, TrainingArguments

from based_ops import errors
from based_ops.hf import BasedConfig, BasedForCausalLM

from .tiny import TINY, model


@pytest.mark.parametrize("name", TINY)
def test_loss(name: str) -> None:
    net, ids = model(name), torch.randint(256, (3, 12))
    labels = ids.clone()
    labels[0, :5] = -100
    found = net(ids, labels=labels, use_cache=False)
    want = cross_entropy(found.logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
    assert_close(found.loss.float(), want)
    summed = net(ids, labels=labels, num_items_in_batch=10).loss
    assert_close(summed.float(), want * (labels[:, 1:] >= 0).sum() / 10)
    loss, logits = net(ids, labels=labels, return_dict=False, use_cache=False)
    assert_close(loss, found.loss)
    assert logits.shape == (3, 12, 256)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_gradients_with_checkpoints(name: str, padded: bool) -> None:
    net, ids = model(name).train(), torch.randint(256, (2, 20))
    mask = torch.ones_like(ids)
    if padded:
        mask[1, :7] = 0
    gradients = []
    for checkpoints in (False, True):
        if checkpoints:
            net.gradient_checkpointing_enable()
            assert net.is_activation_checkpointing
        net.zero_grad()
        net(ids, attention_mask=mask, labels=ids).loss.backward()
        gradients.append({name: x.grad.clone() for name, x in net.named_parameters()})
    assert_close(gradients[1], gradients[0])
    with pytest.raises(errors.ArgumentValueError, match="^cache: got one"):
        net(ids, cache=DynamicCache(config=net.config))
    seen = net.generate(ids, max_new_tokens=2, do_sample=False)  # without gradients the cache is there
    assert torch.equal(seen, net.eval().generate(ids, max_new_tokens=2, do_sample=False))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_checkpoints_keep_less() -> None:
    net, ids = model().train(), torch.randint(256, (2, 64))

    def kept() -> int:
        sizes: list[int] = []

        def pack(x: torch.Tensor) -> torch.Tensor:
            sizes.append(x.nbytes)
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            net(ids, labels=ids)
        return sum(sizes)

    plain = kept()
    net.gradient_checkpointing_enable()
    assert kept() < 0.7 * plain


@pytest.mark.parametrize("name", TINY)
def test_trainer(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = BasedForCausalLM(BasedConfig.of(name))
    rows = [{"input_ids": x, "labels": x} for x in torch.randint(256, (8, 24))]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=12,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=5e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_steps=12,
        eval_strategy="steps",
        eval_steps=12,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(net, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    losses = [x["loss"] for x in trainer.state.log_history if "loss" in x]
    assert losses[0] > 5.0 and losses[-1] < 0.7 * losses[0]
    again = BasedForCausalLM.from_pretrained(tmp_path / "checkpoint-12")
    ids = torch.stack([x["input_ids"] for x in rows])
    with torch.no_grad():
        want = net.eval()(ids, labels=ids).loss
        assert_close(again(ids, labels=ids).loss, want)
    assert_close(trainer.evaluate()["eval_loss"], float(want), atol=1e-4, rtol=1e-4)
    assert trainer.predict(rows).predictions.shape == (8, 24, 256)  # without the caches


@pytest.mark.parametrize("name", TINY)
def test_compiled(name: str) -> None:
    net, ids = model(name), torch.randint(256, (2, 12))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for given in (None, mask):
        got = compiled(ids, attention_mask=given, use_cache=False, labels=ids)
        want = net(ids, attention_mask=given, use_cache=False, labels=ids)
        there = mask.bool() if given is not None else torch.ones_like(mask).bool()
        assert_close(got.logits[there], want.logits[there])
        assert_close(got.loss, want.loss)


@pytest.mark.parametrize("name", [name for name in TINY if "hyena" not in name])
def test_compiled_steps(name: str) -> None:
    """A step with its cache, traced; those of exact long filters ask the host for the token's number."""
    net, ids = model(name), torch.randint(256, (2, 12))
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    cache = DynamicCache(config=net.config)
    with torch.no_grad():
        want = net(ids, use_cache=False).logits
        net(ids[:, :8], cache=cache)
        for i in range(8, 12):
            assert_close(compiled(ids[:, i : i + 1], cache=cache).logits, want[:, i : i + 1])


def test_importing_the_package_imports_no_transformers() -> None:
    code = "import sys, based_ops, based_ops.layers, based_ops.models, based_ops.generate\n"
    code += "assert 'transformers' not in sys.modules and 'huggingface_hub' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda net, ids: net(), errors.ArgumentTypeError, "^input_ids: got both or neither"),
        (lambda net, ids: net(ids, inputs_embeds=ids), errors.ArgumentTypeError, "^input_ids: got both"),
        (lambda net, ids: net(inputs_embeds=torch.zeros(1, 2, 3)), errors.ShapeError, "^inputs_embeds: got"),
        (lambda net, ids: net(ids + 256), errors.ArgumentValueError, "^ids: got 258, must be from 0 to 255"),
        (lambda net, ids: net(ids.float()), errors.DtypeError, "^ids: got torch.float32"),
        (lambda net, ids: net(ids, ids[:, :1]), errors.ShapeError, "^attention_mask: got"),
        (lambda net, ids: net(ids, torch.ones(1, 1, 2, 2)), errors.ShapeError, "^attention_mask: got"),
        (
            lambda net, ids: net(ids, torch.ones(1, 2)),
            errors.DtypeError,
            "^attention_mask: got torch.float32",
        ),
        (lambda net, ids: net(ids, position_ids=ids), errors.ArgumentTypeError, "position_ids"),
        (lambda net, ids: net.model(ids, labels=ids), errors.ArgumentTypeError, "labels"),
        (lambda net, ids: net(ids, output_attentions=True), errors.ArgumentValueError, "^output_attentions"),
    ],
)
def test_bad_calls(call, error, text) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=text):
        call(model(), torch.tensor([[1, 2]]))
