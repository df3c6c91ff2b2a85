"""Arguments of other libraries, and values, sizes and layouts that are wrong: refused by name."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import based_ops
from based_ops import checks, errors
from based_ops.arguments import INSTEAD
from based_ops.codegen.errors import SpecErrors
from based_ops.codegen.spec.load import load_file
from based_ops.layers import LinearAttention, SlidingWindowAttention
from based_ops.variant import Variant

from .inputs import qkv
from .test_layers import HEADS, WIDTH, layer_for

TRIED = (
    "query_start_loc",
    "key_padding_mask",
    "causal",
    "is_causal",
    "enable_gqa",
    "num_key_value_heads",
    "window_size",
    "head_first",
    "dropout_p",
    "softmax_scale",
    "past_key_values",
)


def functions(variant: Variant) -> dict[str, Any]:
    """Every public function, called rightly but for what is added."""
    layer = layer_for(variant, torch.float32)
    sequence, token, x = qkv(variant), qkv(variant, length=1), torch.randn(2, 1, WIDTH)
    state = variant.init_state(2, HEADS)
    return {
        "call": lambda **more: variant(*sequence, **more),
        "step": lambda **more: variant.step(*token, state, **more),
        "reference": lambda **more: variant.reference(*sequence, **more),
        "init_state": lambda **more: variant.init_state(2, 2, **more),
        "state_bytes": lambda **more: variant.state_bytes(2, 2, **more),
        "layer": lambda **more: type(layer)(WIDTH, HEADS, variant, **more),
        "layer.forward": lambda **more: layer(x, **more),
        "layer.step": lambda **more: layer.step(x, state, **more),
        "layer.init_state": lambda **more: layer.init_state(2, **more),
    }


@pytest.mark.parametrize("name", TRIED)
def test_arguments_of_other_libraries(linear: Variant, window: Variant, name: str) -> None:
    for variant in (linear, window):
        with torch.no_grad():
            for which, function in functions(variant).items():
                function()
                with pytest.raises(errors.ArgumentTypeError) as caught:
                    function(**{name: None})
                assert re.match(rf"{name}: no argument of \S+: ", str(caught.value)), which
                assert INSTEAD[name] in str(caught.value)


def test_no_argument_that_exists_is_refused(linear: Variant) -> None:
    import inspect

    for function in (Variant.init_state, LinearAttention.__init__, Variant.step, LinearAttention.forward):
        own = set(inspect.signature(function).parameters) - {"self", "foreign"}
        assert not own & set(INSTEAD) - {
            "state",
            "output_state",
            "kv_heads",
            "cu_seqlens",
            "attention_mask",
        }
    assert linear(*qkv(linear), output_final_state=True)[1] is not None


def test_a_misspelt_argument(linear: Variant) -> None:
    with pytest.raises(TypeError, match=r"^initial_stat: .*did you mean `initial_state`\?"):
        linear(*qkv(linear), initial_stat=None)  # type: ignore[arg-type]
    with pytest.raises(errors.ArgumentTypeError, match="^zzz: .*there are batch, heads, device, dtype"):
        linear.init_state(1, 1, zzz=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_foreign_arguments_while_tracing(variant: Variant, dynamic: bool) -> None:
    layer, mask = layer_for(variant, torch.float32), torch.ones(2, 21)
    x, state = torch.randn(2, 1, WIDTH), variant.init_state(2, HEADS)
    for function, arguments in ((variant, qkv(variant)), (layer, (x,)), (layer.step, (x, state))):
        compiled = torch.compile(
            lambda *a, f=function: f(*a, key_padding_mask=mask),
            fullgraph=True,
            dynamic=dynamic,
            backend="eager",
        )
        with torch.no_grad(), pytest.raises(errors.ArgumentTypeError, match="^key_padding_mask: no argument"):
            compiled(*arguments)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf"), -0.5, 0, 0.0, 2e6, 10**400])
def test_scales_that_no_spec_may_have(variant: Variant, scale: float) -> None:
    state = variant.init_state(2, 2)
    for function in (
        lambda: variant(*qkv(variant), scale=scale),
        lambda: variant.step(*qkv(variant, length=1), state, scale=scale),
        lambda: variant.reference(*qkv(variant), scale=scale),
    ):
        with pytest.raises(errors.ArgumentValueError, match="^scale: got .* must be a positive number up to"):
            function()
    assert not any(part.any() for part in state if part is not None)


def test_scales_are_those_of_a_spec(linear: Variant, tmp_path: Path) -> None:
    text = "name: a\nmixer: sliding_window\nwindow: 4\nhead_dims: {{qk: 16, v: 16}}\nscale: {}\n"
    for scale, allowed in ((1e6, True), (1.1e6, False), ("1.0e-30", True), (0.0, False), (-1.0, False)):
        file = tmp_path / "a.yaml"
        file.write_text(text.format(scale))
        with nullcontext() if allowed else pytest.raises(SpecErrors, match="`scale` must be"):
            load_file(file)
        with nullcontext() if allowed else pytest.raises(errors.ArgumentValueError, match="^scale"):
            linear(*qkv(linear), scale=float(scale))


@pytest.mark.parametrize("dynamic", [False, True, None], ids=["static", "dynamic", "automatic"])
@pytest.mark.parametrize("scale", [float("nan"), -1.0, 0.0, 0, float("inf")])
def test_symbolic_scales(linear: Variant, dynamic: bool | None, scale: float) -> None:
    compiled = torch.compile(
        lambda q, k, v, s: linear(q, k, v, scale=s)[0], fullgraph=True, dynamic=dynamic, backend="eager"
    )
    inputs = qkv(linear)
    for good in (0.25, 0.5):
        compiled(*inputs, good)
    with pytest.raises(errors.ArgumentValueError, match="^scale: got "):
        compiled(*inputs, scale)


SIZES = [
    ((-1, 2), errors.ArgumentValueError, "^batch: got -1"),
    ((1, -2), errors.ArgumentValueError, "^heads: got -2, must be at least 0"),
    ((1.0, 2), errors.ArgumentTypeError, "^batch: got float, must be an int"),
    ((1, True), errors.ArgumentTypeError, "^heads: got bool"),
    ((1, torch.tensor(2)), errors.ArgumentTypeError, "^heads: got Tensor"),
    (("1", 2), errors.ArgumentTypeError, "^batch: got str"),
]


@pytest.mark.parametrize("arguments, error, text", SIZES)
def test_sizes_of_a_state(variant: Variant, arguments: Any, error: Any, text: str) -> None:
    for function in (variant.init_state, variant.state_bytes):
        with pytest.raises(error, match=text):
            function(*arguments)


def test_the_dtype_of_a_state(variant: Variant) -> None:
    for dtype in (torch.int32, torch.complex64, "float32"):
        with pytest.raises(errors.DtypeError, match="^dtype: got .* must be one of torch.bfloat16"):
            variant.init_state(1, 1, dtype=dtype)  # type: ignore[arg-type]


def test_sizes_of_a_state_may_be_symbols(variant: Variant) -> None:
    compiled = torch.compile(
        lambda x: variant.init_state(x.shape[0], x.shape[1]), fullgraph=True, dynamic=True, backend="eager"
    )
    assert compiled(torch.zeros(5, 3))[0].shape[:2] == (5, 3)


@pytest.mark.parametrize(
    "d_model, heads, error, text",
    [
        (32, 0, errors.ArgumentValueError, "^heads: got 0, must be at least 1"),
        (32, -1, errors.ArgumentValueError, "^heads: got -1"),
        (0, 2, errors.ArgumentValueError, "^d_model: got 0"),
        (32, 2.0, errors.ArgumentTypeError, "^heads: got float"),
        (None, 2, errors.ArgumentTypeError, "^d_model: got NoneType"),
    ],
)
def test_sizes_of_a_layer(linear: Variant, d_model: Any, heads: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        LinearAttention(d_model, heads, linear)


def test_layers_send_nobody_to_the_wrong_mixer(linear: Variant, window: Variant) -> None:
    with pytest.raises(
        errors.ArgumentTypeError, match=f"the layer of {window.name} is SlidingWindowAttention"
    ):
        LinearAttention(WIDTH, HEADS, window)
    with pytest.raises(errors.ArgumentTypeError, match=f"the layer of {linear.name} is LinearAttention"):
        SlidingWindowAttention(WIDTH, HEADS, linear.name)
    for layer, near in ((LinearAttention, window), (SlidingWindowAttention, linear)):
        with pytest.raises(errors.UnknownVariant) as caught:
            layer(WIDTH, HEADS, near.name + "1")
        named = [
            x for x in based_ops.names() if re.search(rf"\b{x}\b", str(caught.value).partition("must")[2])
        ]
        assert named and all(based_ops.get(x).spec.mixer == layer.mixer for x in named)
    with pytest.raises(errors.ArgumentTypeError, match="^variant: got NoneType"):
        LinearAttention(WIDTH, HEADS, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [3, None, "state of another mixer", "state of another batch"])
def test_states_of_a_layer(variant: Variant, linear: Variant, window: Variant, bad: Any) -> None:
    layer, x = layer_for(variant, torch.float32), torch.randn(2, 1, WIDTH)
    if bad == "state of another mixer":
        bad = (window if variant.spec.mixer == "linear_attention" else linear).init_state(2, HEADS)
    elif bad == "state of another batch":
        bad = layer.init_state(3)
    with torch.no_grad():
        with pytest.raises(errors.StateError, match="^state"):
            layer.step(x, bad)
        if bad is not None:
            with pytest.raises(errors.StateError, match="state"):
                layer(x, state=bad)
        with pytest.raises(errors.ArgumentTypeError, match="^x: got list, must be a torch.Tensor"):
            layer([1.0])


def test_heads_that_do_not_divide(variant: Variant) -> None:
    q, k, v = qkv(variant, heads=6)
    variant(q, k[:, :, :2], v[:, :, :3])
    with pytest.raises(
        errors.ShapeError, match="^v: got 4 heads, must be .* divides the largest, 6, such as 3"
    ):
        variant(q, k[:, :, :2], v[:, :, :4])
    with pytest.raises(errors.ShapeError, match="^q: got 5 heads"):
        variant(q[:, :, :5], k, v)
    with pytest.raises(errors.ShapeError, match="^k: got 0 heads, must be .* such as 1: "):
        variant.step(*(x[:, :1] for x in (q, k[:, :, :0], v)), variant.init_state(2, 6))
    with pytest.raises(errors.StateError, match=r"^state.* must be of shape \[2, 2, "):
        variant.step(*(x[:, :1] for x in (q, k[:, :, :2], v[:, :, :2])), variant.init_state(2, 6))


LAYOUTS = {
    "sparse": lambda x: x.to_sparse(),
    "compressed": lambda x: x.flatten(0, 2).to_sparse_csr(),
    "nested": lambda x: torch.nested.nested_tensor([*x], layout=torch.strided),
    "jagged": lambda x: torch.nested.nested_tensor([*x], layout=torch.jagged),
}


@pytest.mark.filterwarnings("ignore:.*beta state", "ignore:.*prototype stage")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", range(3))
def test_layouts(variant: Variant, layout: str, which: int) -> None:
    inputs = [LAYOUTS[layout](x) if i == which else x for i, x in enumerate(qkv(variant))]
    with pytest.raises(errors.ArgumentTypeError, match=f"^{'qkv'[which]}: got a (tensor of layout|nested)"):
        variant(*inputs)


def heads_first(variant: Variant, heads: int, length: int) -> tuple[Tensor, ...]:
    return tuple(torch.randn(1, heads, length, width) for width in (variant.qk, variant.qk, variant.v))


def test_heads_before_time_warn_once(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_known_heads", set())
    with pytest.warns(errors.LayoutWarning, match=r"3 tokens and 9 heads; .*x.transpose\(1, 2\)") as caught:
        variant(*heads_first(variant, 3, 9))
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        variant(*heads_first(variant, 3, 9))
        variant(*heads_first(variant, 1, 9))  # a token of nine heads
        variant(*heads_first(variant, 9, 3))
        variant(*heads_first(variant, 9, 9))


def test_no_warning_where_the_layout_is_sure(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    import copy

    monkeypatch.setattr(checks, "_known_heads", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error", errors.LayoutWarning)
        torch.compile(lambda *x: variant(*x)[0], fullgraph=True, backend="eager")(*heads_first(variant, 3, 7))
        layer = layer_for(variant, torch.float32)
        layer = type(layer)(WIDTH, 8, variant)
        layer(torch.randn(1, 3, WIDTH))
        checks._known_heads.clear()
        copy.deepcopy(layer)(torch.randn(1, 3, WIDTH))


PLACEHOLDERS = {
    "absent": "",
    "none": "sys.modules[name] = None",
    "module without a spec": "sys.modules[name] = types.ModuleType(name)",
    "module with an empty spec": (
        "m = types.ModuleType(name); m.__spec__ = importlib.machinery.ModuleSpec(name, None); "
        "sys.modules[name] = m"
    ),
    "mock": "sys.modules[name] = unittest.mock.MagicMock()",
    "directory": "os.mkdir(os.path.join(sys.path[0], name))",
}
"""What may stand in the place of Triton and TileLang where neither is installed."""

SERVE = """
import importlib.machinery, os, sys, tempfile, types, unittest.mock
class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        found = super().find_spec(name, path, target)
        return None if name in ("triton", "tilelang") and found and found.origin else found
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Without
import torch
sys.path.insert(0, tempfile.mkdtemp())
import based_ops
op = based_ops.get({name!r})
x = [torch.ones(1, 3, 1, width) for width in (op.qk, op.qk, op.v)]
for placeholder in {placeholders!r}:
    for name in ("triton", "tilelang"):
        sys.modules.pop(name, None)
        exec(placeholder)
    importlib.invalidate_caches()
    assert op(*x)[0].shape == (1, 3, 1, op.v)
    assert [status.available for status in op.backends("cpu")] == [False, False, True], placeholder
    for backend in ("triton", "tilelang"):
        try:
            op(*x, backend=backend)
        except based_ops.errors.BackendUnavailable as error:
            assert f"the package {{backend}} is not installed" in str(error), error
        else:
            raise SystemExit(f"served in spite of: {{placeholder}}")
"""


def test_kernel_languages_that_are_not_there(linear: Variant) -> None:
    code = SERVE.format(placeholders=[*PLACEHOLDERS.values()], name=linear.name)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_an_environment_that_was_replaced(linear: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {"BASED_OPS_BACKEND": "fast"})
    with pytest.raises(errors.BackendUnavailable, match="^BASED_OPS_BACKEND: got 'fast'"):
        linear(*qkv(linear))
    monkeypatch.setattr("os.environ", {"BASED_OPS_BACKEND": ""})
    linear(*qkv(linear))
    monkeypatch.setattr("os.environ", {})
    linear(*qkv(linear))
