"""Short convolutions against naive mathematics in float64: kernels, the public object, layers."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, func, nn
from torch.nn.functional import conv1d, pad, silu
from torch.testing import assert_close as same_numbers

import based_ops
from based_ops import ShortConvState, errors
from based_ops.codegen.dtypes import DTYPES
from based_ops.codegen.mixers.short_conv import ShortConv
from based_ops.codegen.schedule.model import HOST_C
from based_ops.layers import GatedShortConv
from based_ops.layers import ShortConv as Layer
from based_ops.reference.short_conv import short_conv
from based_ops.variant import Variant
from tests.kernels.inputs import LAYOUTS, laid_out
from tests.kernels.runners import LOW, Runner, interpreting
from tests.layers import build
from tests.strategies import short_convs
from tests.tolerance import BACKWARD, FORWARD, assert_close, assert_same

TILES = (("CHUNK", 8), ("CHANNELS", 4), ("PARTS", 2), ("SHORTEST", 8), ("LANES", 512))
"""With which a few tokens and channels are several tiles and segments."""
FORMS = (("TILED", 1), ("TILED", 1 << 62))
"""Sequences are walked, or computed in tiles."""
POOL = (
    ShortConv("conv3", 3),
    ShortConv("conv8", 8, "elu(x) + 1", gate=False),
    ShortConv("conv2", 2, None, bias=False),
)
F64 = torch.float64
CLOSE = {"rtol": 1e-9, "atol": 1e-10}
EXACT = {"rtol": 0.0, "atol": 0.0}
NAMES = ("x", "weight", "bias", "gate", "before")

# Kernels


@dataclass(frozen=True)
class Call:
    """One layer's module with the shape of one call, and what the call gives of what it may leave out."""

    spec: ShortConv
    module: ModuleType
    shape: tuple[int, int, int]
    dtype: torch.dtype
    device: str
    layout: str
    seed: int
    given: frozenset[str]

    def values(self, *shape: int, salt: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * self.seed + salt)
        return (torch.randn(*shape, generator=generator, dtype=F64) * 0.5).to(self.device, self.dtype)

    def sequence(self, salt: int) -> Tensor:
        """[B, T, D], perhaps a part of something larger that is NaN elsewhere."""
        return laid_out(self.values(*self.shape, salt=salt).unsqueeze(2), self.layout).squeeze(2)

    def inputs(self) -> list[Tensor | None]:
        """x, weight, bias, gate, and the inputs before the first."""
        (batch, _, channels), width = self.shape, self.spec.width
        room = self.values(channels, width + 2, salt=1)
        return [
            self.sequence(0),
            room[:, 1:-1] if self.layout == "sliced" else room[:, 1:-1].contiguous(),
            self.values(channels, salt=2) if "bias" in self.given else None,
            self.sequence(3) if "gate" in self.given else None,
            self.values(batch, width - 1, channels, salt=4) if "before" in self.given else None,
        ]


@st.composite
def calls(draw: st.DrawFn, runner: Runner, most: int = 70) -> Call:
    """Any layer with any call of it that the runner affords; TileLang compiles a kernel in seconds."""
    slow = runner.backend == "tilelang"
    dtype = draw(st.sampled_from((torch.float32,) if slow else runner.dtypes))
    pool = st.sampled_from(POOL[:1] if slow else POOL)
    cheap = dtype not in LOW and (runner.backend == "torch" or runner.interpreted)
    spec = replace(draw(pool | short_convs() if cheap else pool), dtypes=DTYPES)
    on_gpu = runner.device == "cuda"
    # The interpreter cuts bfloat16 off where a GPU rounds, which for a single number can be too much.
    least = 8 if runner.interpreted and dtype == torch.bfloat16 else 1
    lengths = st.integers(1, min(most, 300) if runner.interpreted else most)
    channels = st.integers(least, 21)
    if on_gpu and most > 1000:
        lengths, channels = st.sampled_from((1, 2, 33, 1111, 4097)), st.sampled_from((1, 64, 257))
    optional = [name for name, there in (("bias", spec.bias), ("gate", spec.gate), ("before", True)) if there]
    return Call(
        spec,
        build(
            spec,
            HOST_C if runner.id == "tilelang-cpu" else runner.backend,
            (draw(st.sampled_from(FORMS)), *(() if on_gpu else TILES)),
        ),
        (draw(st.integers(1, 3)), draw(lengths | st.integers(1, spec.width)), draw(channels)),
        dtype,
        runner.device,
        draw(st.sampled_from(LAYOUTS)),
        draw(st.integers(0, 1000)),
        draw(
            st.sampled_from([frozenset(), frozenset(optional)])
            if slow
            else st.frozensets(st.sampled_from(optional))
        ),
    )


def expected(spec: ShortConv, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
    """y and the last inputs, in float64."""
    x, weight, bias, gate, before = (None if t is None else t.double() for t in inputs)
    assert x is not None and weight is not None
    past = None if before is None else before.transpose(1, 2)
    return short_conv(spec, x, weight, bias, gate, past)


@given(data=st.data())
def test_forward_equals_reference(runner: Runner, data: st.DataObject) -> None:
    call = data.draw(calls(runner, 5000))
    inputs = call.inputs()
    kept = [None if t is None else t.clone() for t in inputs]
    y = call.module.forward(*inputs)
    assert y.dtype == call.dtype and y.is_contiguous()
    assert_close("y", y, expected(call.spec, *inputs)[0], FORWARD[call.dtype])
    for name, old, new in zip(NAMES, kept, inputs, strict=True):
        assert old is None or new is not None and assert_same(f"{name} after the call", new, old) is None


@given(data=st.data())
def test_gradients_equal_autograd(runner: Runner, data: st.DataObject) -> None:
    call = data.draw(calls(runner, 1500))
    inputs, dy = call.inputs(), call.sequence(5)
    found = call.module.backward(dy, *inputs)
    leaves = [None if t is None else t.double().detach().requires_grad_() for t in inputs]
    there = [t for t in leaves if t is not None]
    y = expected(call.spec, *leaves)[0]
    wanted = iter(torch.autograd.grad(y, there, dy.double(), allow_unused=True, materialize_grads=True))
    for name, leaf, actual in zip(NAMES, leaves, found, strict=True):
        if leaf is None:
            assert actual.numel() == 0, name
        else:
            assert_close(f"gradient of {name}", actual, next(wanted), BACKWARD[call.dtype])


@given(data=st.data())
def test_pieces_and_steps_equal_the_whole(runner: Runner, data: st.DataObject) -> None:
    """The past of a piece is the end of the one before; a step moves its state by one, exactly."""
    call = data.draw(calls(runner, 12 if runner.interpreted else 40))
    x, weight, bias, gate, before = call.inputs()
    assert x is not None
    (batch, length, channels), past = call.shape, call.spec.width - 1
    if before is None:
        before = x.new_zeros(batch, past, channels)
    seen = torch.cat([before, x], 1)
    whole = call.module.forward(x, weight, bias, gate, before)
    cut = data.draw(st.integers(0, length - 1), "cut")
    rest = None if gate is None else gate[:, cut:]
    piece = call.module.forward(x[:, cut:], weight, bias, rest, seen[:, cut : cut + past].contiguous())
    assert_close("second piece", piece, whole[:, cut:], FORWARD[call.dtype])
    state = before.transpose(1, 2).contiguous()
    for t in range(length):
        token = None if gate is None else gate[:, t : t + 1]
        y = call.module.step(x[:, t : t + 1], weight, bias, token, state, None)
        assert_close("step", y, whole[:, t : t + 1], FORWARD[call.dtype], floor=whole)
        assert_same("state", state, seen[:, t + 1 : t + 1 + past].transpose(1, 2))


@given(data=st.data())
def test_nan_reaches_the_tokens_that_see_it(runner: Runner, data: st.DataObject) -> None:
    call = data.draw(calls(runner).filter(lambda call: call.spec.activation in (None, "silu(x)")))
    x, *others = call.inputs()
    assert x is not None
    (batch, length, channels), width = call.shape, call.spec.width
    t, d = data.draw(st.integers(0, length - 1), "token"), data.draw(st.integers(0, channels - 1), "channel")
    x = x.clone()
    x[:, t, d] = float("nan")
    wanted = torch.zeros(batch, length, channels, dtype=torch.bool, device=x.device)
    wanted[:, t : t + width, d] = True
    assert torch.equal(call.module.forward(x, *others).isnan(), wanted)


@pytest.mark.parametrize("length", [1, 2, 5, 33])
def test_nan_in_the_last_input_reaches_one_tap(runner: Runner, length: int) -> None:
    """Where a tile or a round goes on past the end, the other taps see that input too."""
    target = HOST_C if runner.id == "tilelang-cpu" else runner.backend
    spec = ShortConv("conv4", 4, None)
    module = build(spec, target, (FORMS[0],))
    call = Call(spec, module, (1, length, 3), torch.float32, runner.device, "dense", 0, frozenset())
    x, weight, *others = call.inputs()
    assert x is not None and weight is not None
    x[:, -1] = float("nan")
    d_weight = module.backward(call.sequence(5), x, weight, *others)[1]
    assert d_weight.isfinite()[:, :-1].all() and d_weight[:, -1].isnan().all()


@given(data=st.data())
def test_nan_reaches_gradients_of_what_was_seen(runner: Runner, data: st.DataObject) -> None:
    """One in x or in the outputs' gradients: gradients are finite where autograd's are, and these agree."""
    call = data.draw(calls(runner).filter(lambda call: call.spec.activation in (None, "silu(x)")))
    x, *others = call.inputs()
    dy = call.sequence(5).clone()
    assert x is not None
    x, place = x.clone(), [data.draw(st.integers(0, extent - 1), "place") for extent in call.shape]
    data.draw(st.sampled_from((x, dy)), "poisoned")[tuple(place)] = float("nan")
    found = call.module.backward(dy, x, *others)
    leaves = [None if t is None else t.double().detach().requires_grad_() for t in (x, *others)]
    there = [t for t in leaves if t is not None]
    y = expected(call.spec, *leaves)[0]
    wanted = iter(torch.autograd.grad(y, there, dy.double(), allow_unused=True, materialize_grads=True))
    for name, leaf, actual in zip(NAMES, leaves, found, strict=True):
        if leaf is not None:
            want = next(wanted)
            finite = want.isfinite()
            assert bool(actual.isfinite()[finite].all()), f"gradient of {name}"
            kept = (torch.where(finite, t, 0) for t in (actual, want))
            assert_close(f"gradient of {name}", *kept, BACKWARD[call.dtype], torch.full_like(want, 1.0))


# The public object


public = pytest.mark.skipif(interpreting(), reason="calls on a CPU are served by the torch backend")
VARIANTS = ("conv3_silu", "conv4_plain")


@pytest.fixture(params=VARIANTS)
def op(request: pytest.FixtureRequest) -> Variant:
    return based_ops.get(request.param)


def tensors(
    op: Variant,
    length: int = 9,
    dtype: torch.dtype = F64,
    channels: int = 5,
    batch: int = 2,
    grad: bool = False,
) -> list[Tensor]:
    """x, weight, bias and gate."""
    shapes = ((batch, length, channels), (channels, op.width), (channels,), (batch, length, channels))
    return [torch.randn(shape, dtype=F64).to(dtype).requires_grad_(grad) for shape in shapes]


def past(op: Variant, dtype: torch.dtype = F64, grad: bool = False) -> ShortConvState:
    return ShortConvState(torch.randn(2, 5, op.width - 1, dtype=F64).to(dtype).requires_grad_(grad))


def through_conv1d(
    op: Variant, x: Tensor, weight: Tensor, bias: Tensor | None, gate: Tensor | None, inputs: Tensor
) -> Tensor:
    """A second oracle, of PyTorch's own convolution."""
    seen = torch.cat([inputs, x.transpose(1, 2)], 2)
    y = conv1d(seen, weight[:, None], bias, groups=x.shape[2]).transpose(1, 2)
    y = silu(y) if op.spec.activation else y
    return y if gate is None else y * gate


@public
@settings(max_examples=40)
@given(data=st.data())
def test_calls_and_gradients(data: st.DataObject) -> None:
    """Every gradient, through the final state too, of calls that leave out what they may."""
    op = based_ops.get(data.draw(st.sampled_from(VARIANTS)))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    length = data.draw(st.integers(1, 12), "length")
    x, weight, *others = tensors(op, length, grad=True)
    bias, gate = (t if data.draw(st.booleans()) else None for t in others)
    state = past(op, grad=True) if data.draw(st.booleans(), "state") else None
    y, final = op(x, weight, bias, gate, state, output_final_state=True)
    inputs = torch.zeros(2, 5, op.width - 1, dtype=F64) if state is None else state.inputs
    want = through_conv1d(op, x, weight, bias, gate, inputs)
    want_final = torch.cat([inputs, x.transpose(1, 2)], 2)[:, :, length:]
    same_numbers(y, want, **CLOSE)
    assert isinstance(final, ShortConvState)
    same_numbers(final.inputs, want_final, **EXACT)
    same_numbers(op.reference(x, weight, bias, gate, state), want, **CLOSE)
    leaves = [t for t in (x, weight, bias, gate, state and state.inputs) if t is not None]
    got_grad, want_grad = (
        torch.autograd.grad(a.sin().sum() + b.cos().sum(), leaves)
        for a, b in ((y, final.inputs), (want, want_final))
    )
    same_numbers(got_grad, want_grad, **CLOSE)


@public
def test_pieces_and_steps(op: Variant) -> None:
    x, weight, bias, gate = tensors(op)
    want, end = op(x, weight, bias, gate, output_final_state=True)
    ys, state = [], None
    for a, b in ((0, 1), (1, 3), (3, 6)):
        y, state = op(x[:, a:b], weight, bias, gate[:, a:b], state, output_final_state=True)
        ys.append(y)
    for t in range(6, 9):
        ys.append(op.step(x[:, t : t + 1], state, weight, bias, gate[:, t : t + 1]))
    same_numbers(torch.cat(ys, 1), want, **CLOSE)
    same_numbers(state.inputs, end.inputs, **EXACT)


@public
def test_views_of_any_stride(op: Variant) -> None:
    """Every second channel, time before batch, weights transposed, a bias with gaps."""
    x, weight, bias, gate = tensors(op)
    views = (
        torch.stack([x, x + 1], 3).flatten(2)[:, :, ::2],
        weight.t().contiguous().t(),
        torch.stack([bias, bias], 1)[:, 0],
        gate.transpose(0, 1).contiguous().transpose(0, 1),
    )
    same_numbers(op(*views)[0], op(x, weight, bias, gate)[0], **EXACT)
    state, other = past(op), past(op)
    state = ShortConvState(state.inputs.transpose(0, 1).contiguous().transpose(0, 1))
    other = ShortConvState(state.inputs.contiguous())
    got, want = (op(*views, initial_state=s, output_final_state=True) for s in (state, other))
    same_numbers(got, want, **EXACT)
    assert got[1].inputs.is_contiguous()


@public
@pytest.mark.parametrize(("batch", "length", "channels"), [(0, 5, 5), (2, 0, 5), (2, 5, 0)])
def test_empty_calls(op: Variant, batch: int, length: int, channels: int) -> None:
    inputs = tensors(op, length, channels=channels, batch=batch, grad=True)
    state = ShortConvState(torch.randn(batch, channels, op.width - 1, dtype=F64).requires_grad_())
    y, final = op(*inputs, initial_state=state, output_final_state=True)
    assert y.shape == (batch, length, channels)
    same_numbers(final.inputs.detach(), state.inputs.detach(), **EXACT)
    leaves = [*inputs, state.inputs]
    for leaf, gradient in zip(leaves, torch.autograd.grad(y.sum(), leaves, retain_graph=True), strict=True):
        assert gradient.shape == leaf.shape and not gradient.any()


@public
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled(op: Variant, dynamic: bool) -> None:
    def run(inputs: list[Tensor], state: ShortConvState) -> Any:
        x, weight, bias, gate = inputs
        y, final = op(2 * x, weight, bias, gate, state, output_final_state=True)
        return op(y, weight)[0], final

    inputs, state = tensors(op, grad=True), past(op, grad=True)
    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    got, want = (f(inputs, state) for f in (compiled, run))
    same_numbers(got, want, **CLOSE)
    leaves = [*inputs, state.inputs]
    got, want = (torch.autograd.grad(y.sin().sum() + s.inputs.sum(), leaves) for y, s in (got, want))
    same_numbers(got, want, **CLOSE)
    with torch.no_grad():
        states = [ShortConvState(state.inputs.detach().clone()) for _ in range(2)]
        x, weight, bias, gate = (t.detach() for t in inputs)
        step = torch.compile(op.step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        a, b = (
            f(x[:, :1], s, weight, bias, gate[:, :1]) for f, s in zip((step, op.step), states, strict=True)
        )
        same_numbers((a, states[0].inputs), (b, states[1].inputs), **CLOSE)


class Model(nn.Module):
    def __init__(self, op: Variant) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor, state: ShortConvState) -> Any:
        return self.op(x, weight, bias, gate, state, output_final_state=True)


@public
def test_exported_programs_and_states_go_to_disk_and_back(op: Variant, tmp_path: Path) -> None:
    inputs = (*tensors(op), past(op))
    want = Model(op)(*inputs)
    torch.export.save(torch.export.export(Model(op), inputs), tmp_path / "program.pt2")
    same_numbers(torch.export.load(tmp_path / "program.pt2").module()(*inputs), want, **CLOSE)
    assert pickle.loads(pickle.dumps(op)) is op is copy.deepcopy(op)
    file = io.BytesIO()
    torch.save(want[1], file)
    file.seek(0)
    for found in (torch.load(file), pickle.loads(pickle.dumps(want[1])), copy.deepcopy(want[1])):
        assert type(found) is ShortConvState
        same_numbers(found.inputs, want[1].inputs, **EXACT)


@public
def test_transforms(op: Variant) -> None:
    """Calls mapped over samples, and the gradients of what samples share."""
    x, weight, bias, gate = tensors(op, batch=6)
    x, gate = x.unflatten(0, (3, 2)), gate.unflatten(0, (3, 2))

    def loss(function: Any) -> Any:
        def of(x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
            y = function(x, weight, bias, gate)
            return (y[0] if isinstance(y, tuple) else y).sin().sum()

        return of

    got, want = (
        func.vmap(func.grad(loss(f), (0, 1, 2, 3)), (0, None, None, 0))(x, weight, bias, gate)
        for f in (op, op.reference)
    )
    same_numbers(got, want, **CLOSE)
    stacked = ShortConvState(torch.randn(3, 2, 5, op.width - 1, dtype=F64))
    alone = [ShortConvState(stacked.inputs[i].clone()) for i in range(3)]
    step = func.vmap(op.step, (0, ShortConvState(0), None, None, 0))
    y = step(x[:, :, :1], stacked, weight, bias, gate[:, :, :1])
    for i, state in enumerate(alone):
        same_numbers(y[i], op.step(x[i, :, :1], state, weight, bias, gate[i, :, :1]), **CLOSE)
        same_numbers(stacked.inputs[i], state.inputs, **EXACT)


@public
def test_autocast(op: Variant) -> None:
    inputs, state = tensors(op, dtype=torch.float32, grad=True), past(op, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, final = op(*inputs, initial_state=state, output_final_state=True)
    assert y.dtype == final.inputs.dtype == torch.bfloat16
    assert all(t.dtype == torch.float32 for t in torch.autograd.grad(y.sum(), inputs))


@public
def test_wrong_arguments(op: Variant) -> None:
    x, weight, bias, gate = tensors(op)
    wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (errors.ShapeError, "^x: .*B, T, D", {"x": x[0]}),
        (errors.ShapeError, "^weight: ", {"weight": weight[:, 1:]}),
        (errors.ShapeError, "^weight: ", {"weight": weight[1:]}),
        (errors.ShapeError, "^bias: ", {"bias": bias[None]}),
        (errors.ShapeError, "^gate: ", {"gate": gate[:, 1:]}),
        (errors.DtypeError, "^weight: got torch.float32, must be of x's dtype", {"weight": weight.float()}),
        (errors.DtypeError, "^x: got torch.int64", {"x": x.long()}),
        (errors.DeviceError, "^bias: got meta", {"bias": bias.to("meta")}),
        (errors.ArgumentTypeError, "^weight: ", {"weight": None}),
        (errors.ArgumentTypeError, "^gate: ", {"gate": 1.0}),
        (errors.StateError, "^initial_state: ", {"initial_state": x}),
        (errors.StateError, "^initial_state.inputs: ", {"initial_state": ShortConvState(x)}),
        (errors.DeviceError, "of the inputs", {"initial_state": ShortConvState(past(op).inputs.to("meta"))}),
        (errors.BackendUnavailable, "backend", {"backend": "cuda"}),
        (errors.BasedOpsError, "cu_seqlens", {"cu_seqlens": x}),
    ]
    for error, match, changed in wrong:
        with pytest.raises(error, match=match):
            op(**{"x": x, "weight": weight, "bias": bias, "gate": gate} | changed)
    with pytest.raises(errors.ShapeError, match="^x: "):
        op.step(x.repeat(1, 17, 1), past(op), weight)
    with pytest.raises(errors.ArgumentValueError, match="^channels: got -1"):
        op.init_state(2, -1)


@public
def test_steps_that_are_refused(op: Variant) -> None:
    x, weight, bias, gate = (t[:, :1] if t.dim() == 3 else t for t in tensors(op))
    with pytest.raises(errors.GradientError, match="^weight: .*not differentiable"):
        op.step(x, past(op), weight.requires_grad_(), bias, gate)
    weight.requires_grad_(False)
    memory = torch.zeros(2 * 5 * op.width, dtype=F64)
    state = ShortConvState(memory[: 10 * (op.width - 1)].view(2, 5, -1))
    with pytest.raises(errors.StateError, match="memory that .* has too"):
        op.step(memory[:10].view(2, 1, 5), state, weight, bias, gate)
    with pytest.raises(errors.StateError, match="contiguous"):
        op.step(x, ShortConvState(torch.zeros(op.width - 1, 5, 2, dtype=F64).permute(2, 1, 0)), weight)


@public
def test_a_spec_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it leaves out, no call may give."""
    monkeypatch.setenv("BASED_OPS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "wide.yaml"
    path.write_text(
        "name: wide\nmixer: short_conv\nwidth: 8\nactivation: x*tanh(x)\ngate: false\nbias: false\n"
    )
    op = based_ops.load(path)
    x, weight, bias, gate = tensors(op, grad=True)
    inputs = torch.zeros(2, 5, 7, dtype=F64)
    p = through_conv1d(based_ops.get("conv4_plain"), x, weight, None, None, inputs)
    y, want = op(x, weight)[0], p * p.tanh()
    same_numbers(y, want, **CLOSE)
    got_grad, want_grad = (torch.autograd.grad(t.square().sum(), (x, weight)) for t in (y, want))
    same_numbers(got_grad, want_grad, **CLOSE)
    for name, tensor in (("bias", bias), ("gate", gate)):
        with pytest.raises(errors.ArgumentTypeError, match=f"^{name}: .*takes none"):
            op(x, weight, **{name: tensor})


# Layers


@public
@pytest.mark.parametrize("gated", [False, True])
def test_layers(gated: bool) -> None:
    """Against PyTorch's modules; in pieces; token by token; every weight gets a gradient."""
    layer = GatedShortConv(6, expand=2, dtype=F64) if gated else Layer(6, dtype=F64)
    conv = layer.conv if isinstance(layer, GatedShortConv) else layer
    plain = nn.Conv1d(conv.d_model, conv.d_model, conv.op.width, groups=conv.d_model, dtype=F64)
    plain.load_state_dict({"weight": conv.weight.detach()[:, None], "bias": conv.bias.detach()})

    def convolved(u: Tensor) -> Tensor:
        return silu(plain(pad(u.transpose(1, 2), (conv.op.width - 1, 0)))).transpose(1, 2)

    x = torch.randn(2, 11, 6, dtype=F64)
    if isinstance(layer, GatedShortConv):
        u, gate = layer.in_proj(x).split(12, -1)
        want = layer.out_proj(gate * convolved(u))
    else:
        want = convolved(x)
    y, nothing = layer(x)
    assert nothing is None
    same_numbers(y, want, **CLOSE)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())
    with torch.no_grad():
        head, state = layer(x[:, :4], output_state=True)
        steps = [layer.step(x[:, t : t + 1], state) for t in range(4, 11)]
        same_numbers(torch.cat([head, *steps], 1), want, **CLOSE)
    assert sum(t.nbytes for t in layer.init_state(3)) == layer.state_bytes(3)


@public
def test_a_layer_of_another_mixer_is_refused() -> None:
    with pytest.raises(errors.ArgumentTypeError, match="^variant: .* must be a short_conv"):
        Layer(6, "window64_d64")


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_replays_on_a_gpu(op: Variant, dtype: torch.dtype) -> None:
    """Calls with and without a bias and a gate take turns; each is the operator's, bit for bit."""
    kernel = f"triton-{op._record.build}"
    forward, backward, step = (
        getattr(torch.ops.based_ops, f"{op.name}_{which}") for which in ("forward", "backward", "step")
    )
    states = [op.init_state(2, 264, "cuda", dtype) for _ in range(2)]
    for turn in range(12):
        x, weight, bias, gate = (t.cuda().requires_grad_() for t in tensors(op, 700, dtype, 264))
        given = [x, weight, bias if turn & 1 else None, gate if turn & 2 else None]
        leaves = [t for t in given if t is not None]
        y, _ = op(*given)
        dy = torch.randn_like(y)
        found = [y, *torch.autograd.grad(y, leaves, dy)]
        wide = [None if t is None else t.detach().double().requires_grad_() for t in given]
        want = [expected(op.spec, *wide, None)[0]]
        want += torch.autograd.grad(want[0], [t for t in wide if t is not None], dy.double())
        for i, (a, b) in enumerate(zip(found, want, strict=True)):
            assert_close(f"result {i}", a, b, (BACKWARD if i else FORWARD)[dtype])
        with torch.no_grad():
            same = [forward(*given, None, kernel), *backward(dy, *given, None, kernel)]
            there = [True, *(t is not None for t in given)]
            assert all(
                map(torch.equal, found, [t for t, is_there in zip(same, there, strict=False) if is_there])
            )
            token = [None if t is None else t[:, :1] if t.dim() == 3 else t for t in given]
            a = op.step(token[0], states[0], *token[1:])
            assert torch.equal(a, step(*token, states[1].inputs, kernel))
            assert torch.equal(states[0].inputs, states[1].inputs)
    assert op._replays.known


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_beside_causal_conv1d(dtype: torch.dtype) -> None:
    """Both lie within the tolerance of float64."""
    causal_conv1d_fn = pytest.importorskip("causal_conv1d").causal_conv1d_fn
    op = based_ops.get("conv4_silu")
    x, weight, bias, _ = (t.cuda() for t in tensors(op, 1111, dtype, 264))
    theirs = causal_conv1d_fn(x.transpose(1, 2), weight, bias, activation="silu").transpose(1, 2)
    want = expected(op.spec, x, weight, bias, None, None)[0]
    for name, y in (("ours", op(x, weight, bias)[0]), ("theirs", theirs)):
        assert_close(name, y, want, FORWARD[dtype])
