"""Make a Llama linear: swap its attention, distil it, generate with it: `python examples/lolcats.py docs`

The first stage of LoLCATs (arXiv 2410.10254), attention transfer: each layer's softmax attention gets a
hybrid beside it, softmax over the last 64 keys and learned features of all older ones, which learns to give
the same outputs from the same inputs.  Then the hybrid takes its place, and a sequence costs the same memory
however long it grows.  The Llama here is small and drawn at random, so it is taught some text first; a real
one comes by `from_pretrained`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb

import based_ops
from based_ops import HybridState
from based_ops.state_base import State
from based_ops.variant import Variant


class Hybrid(nn.Module):
    """The attention of a Llama with its own weights, over a variant of `mixer: hybrid` with heads of 64."""

    def __init__(self, teacher: LlamaAttention, op: Variant[State]) -> None:
        super().__init__()
        self.teacher, self.op = teacher, op
        heads, kv_heads = teacher.q_proj.out_features // 64, teacher.k_proj.out_features // 64
        # Features of queries and keys: exp of a learned map of each head, in place of exp of a product.
        self.q_map = nn.Parameter(torch.eye(64).repeat(heads, 1, 1) / 2)
        self.k_map = nn.Parameter(torch.eye(64).repeat(kv_heads, 1, 1) / 2)
        self.window = nn.Parameter(torch.zeros(heads))  # how much the window counts, as a logarithm
        self.state: HybridState | None = None
        self.keeps = False

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: object
    ) -> tuple[Tensor, None]:
        def heads_of(y: Tensor) -> Tensor:
            return y.unflatten(-1, (-1, 64))  # [B, T, H, 64], as operators take it

        llama, x = self.teacher, hidden_states
        q, k, v = heads_of(llama.q_proj(x)), heads_of(llama.k_proj(x)), heads_of(llama.v_proj(x))
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings, unsqueeze_dim=2)
        more = {"q_window": q, "k_window": k, "window_factor": self.window.exp()}
        q, k = (torch.einsum("bthi,hij->bthj", y, m) for y, m in ((q, self.q_map), (k, self.k_map)))
        if self.state is not None and x.shape[1] <= 16:  # a few more tokens: the state is updated in place
            o = self.op.step(q, k, v, self.state, **more)
        else:
            o, final = self.op(q, k, v, output_final_state=self.keeps, **more)
            self.state = final if isinstance(final, HybridState) else None
        return llama.o_proj(o.flatten(-2)), None


def batches(folder: Path, length: int, size: int) -> Tensor:
    """All text under a folder as bytes, in sequences of one length: [N, size, length]."""
    text = b"".join(path.read_bytes() for path in sorted(folder.rglob("*.md")))
    if (whole := len(text) // (length * size)) == 0:
        raise SystemExit(f"{folder}: less Markdown than {length * size} bytes")
    return torch.tensor(list(text[: whole * length * size])).view(whole, size, length)


def transfer(net: LlamaForCausalLM, data: Tensor, steps: int, op: Variant[State]) -> list[Hybrid]:
    """Attention transfer: a hybrid for each layer, taught by what that layer takes and gives."""
    net.requires_grad_(False)
    found = [layer.self_attn for layer in net.model.layers]
    teachers = [x for x in found if isinstance(x, LlamaAttention)]
    hybrids = [Hybrid(teacher, op) for teacher in teachers]
    seen: list[tuple[dict[str, Tensor], Tensor]] = []

    def see(_: nn.Module, __: object, given: dict[str, Tensor], out: tuple[Tensor, ...]) -> None:
        seen.append((given, out[0]))

    hooks = [teacher.register_forward_hook(see, with_kwargs=True) for teacher in teachers]
    learned = [x for hybrid in hybrids for x in (hybrid.q_map, hybrid.k_map, hybrid.window)]
    optimizer = torch.optim.AdamW(learned, lr=1e-2, weight_decay=0.0)
    for step in range(1, steps + 1):
        seen.clear()
        with torch.no_grad():
            net(data[step % len(data)], use_cache=False)
        pairs = zip(hybrids, list(seen), strict=True)
        losses = [mse_loss(hybrid(**given)[0], out) / out.square().mean() for hybrid, (given, out) in pairs]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        if step % 10 == 0 or step in (1, steps):
            parts = "  ".join(f"{loss.item():.4f}" for loss in losses)
            print(f"transfer {step}  error of each layer {parts}", flush=True)
    for hook in hooks:
        hook.remove()
    return hybrids


@torch.no_grad()
def generate(net: LlamaForCausalLM, hybrids: list[Hybrid], prompt: bytes, most: int) -> bytes:
    """Greedily: one call for the prompt, then a step a token, with states and no cache of keys."""
    for hybrid in hybrids:
        hybrid.state, hybrid.keeps = None, True
    ids, place, found = torch.tensor([list(prompt)]), 0, []
    for _ in range(most):
        positions = place + torch.arange(ids.shape[1]).unsqueeze(0)
        logits = net(ids, position_ids=positions, use_cache=False).logits
        place, ids = place + ids.shape[1], logits[:, -1:].argmax(-1)
        found.append(int(ids))
    return bytes(found)


def main() -> None:
    parser = argparse.ArgumentParser(description="Distil a small Llama into hybrid attention.")
    parser.add_argument("text", type=Path, help="a folder of Markdown")
    parser.add_argument("--teach", type=int, default=100, help="steps in which the Llama learns the text")
    parser.add_argument("--steps", type=int, default=60, help="steps of attention transfer")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    given = parser.parse_args()

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=2)
    config.update({"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64})
    net = LlamaForCausalLM(config)
    data = batches(given.text, given.length, size=4)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for step in range(1, given.teach + 1):
        ids = data[step % len(data)]
        loss = cross_entropy(net(ids, use_cache=False).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    hybrids = transfer(net, data, given.steps, based_ops.get("lolcats_qk64_v64_w64"))
    with torch.no_grad():
        ids = data[0]
        before = net(ids, use_cache=False).logits
        for layer, hybrid in zip(net.model.layers, hybrids, strict=True):
            layer.self_attn = hybrid  # the swap
        after = net(ids, use_cache=False).logits
    losses = [cross_entropy(x[:, :-1].flatten(0, 1), ids[:, 1:].flatten()) for x in (before, after)]
    agree = (before.argmax(-1) == after.argmax(-1)).float().mean()
    print(
        f"loss {losses[0]:.3f} before the swap, {losses[1]:.3f} after it; {100 * agree:.1f} % of tokens alike"
    )
    print("writes:", generate(net, hybrids, bytes(data[0, 0, :100].tolist()), 40))


if __name__ == "__main__":
    main()
