"""Operators that make features of queries and keys."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from based_ops import errors
from based_ops.featured import FeaturedVariant
from tests.runtime.conftest import WITH_PARTS
from tests.runtime.test_features import MIXED, TIED, B, H, inputs, load, parameters, variant


@pytest.fixture(params=WITH_PARTS)
def op(request: pytest.FixtureRequest) -> FeaturedVariant:
    return variant(request.param)


def test_operators_that_make_features(op: FeaturedVariant) -> None:
    """Schema, fake, autograd, tracing; and what they compute by PyTorch, which calls do not ask of them."""
    (which,) = op.makers
    forward, _ = op.makers[which].operators
    x, p = inputs(op, 5)[0], parameters(op)
    read = [p[parameter.name] for parameter in op.spec.sides[0].parameters]
    tokens = [torch.arange(5, dtype=torch.int32).expand(B, 5).contiguous()] if op.spec.turns else []
    given = (x, *read, *tokens, "torch")
    torch.library.opcheck(forward, given)
    numbers = torch.arange(5).expand(B, 5)
    want = op.features_by_torch[0](x, p, numbers)
    got = forward(*given)
    assert_close(got, want)
    leaves = [x, *(y for y in read if y.requires_grad)]
    found, wanted = (torch.autograd.grad(y.sin().sum(), leaves) for y in (got, want))
    for a, c in zip(found, wanted, strict=True):
        assert_close(a, c)
    with pytest.raises(errors.ShapeError, match="^x: got"):
        forward(x[..., 1:], *given[1:])
    if read:
        with pytest.raises(errors.ShapeError, match=f"^{'random' if 'random' in p else '[a-z_]*'}: got"):
            forward(x, read[0][..., 1:], *given[2:])


def test_operators_are_defined_when_they_are_asked_for() -> None:
    """Not with the import, which defines those of layers; by an exported program that names them as well."""
    code = """
import torch, based_ops
from based_ops import ops
assert not [name for name in ops._registered if name.endswith("features")]
print(torch.ops.based_ops.t2r_qk64_v64_features_forward.default)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "based_ops.t2r_qk64_v64_features_forward.default\n", run.stderr


def test_operations_of_features_are_counted() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    op = variant("hedgehog_qk64_v64")
    forward, _ = op.makers["features"].operators
    x, p = inputs(op, 5)[0], parameters(op)
    with FlopCounterMode(display=False) as counter:
        forward(x, p["query_weight"], p["query_bias"], "torch").sum().backward()
    assert counter.get_total_flops() == 3 * B * 5 * H * 2 * 64 * 64


def test_parts_that_are_no_tile_program_stay_with_pytorch(tmp_path: Path) -> None:
    groups = "  - {{kind: signs}}\n  - {{kind: softmax, groups: 32}}\n"
    text = TIED.replace("tied: true\n", "").replace("features: 8}}\n", "features: 32}}\n" + groups)
    op = load(tmp_path, text, "parts_grouped")
    assert "features by PyTorch: softmax in more than 16 groups" in repr(op)
    assert not op.makers
    q, k, v = inputs(op, 5)
    p = parameters(op)
    assert_close(op(q, k, v, parameters=p)[0], op.reference(q, k, v, parameters=p))


def test_an_exported_program_finds_what_makes_features(tmp_path: Path) -> None:
    """Its operators are named after a layer of the cache, which is registered when they are asked for."""
    from based_ops.codegen.names import variant_of

    op = load(tmp_path, MIXED, "parts_sides")
    assert sorted(op.makers) == ["key_features", "query_features"]
    for maker in op.makers.values():
        name = maker.operators[0].name().partition("::")[2].removesuffix("_forward")
        assert variant_of(name) == op.name


def test_verify_measures_features(monkeypatch: pytest.MonkeyPatch) -> None:
    from based_ops.verify import Case
    from based_ops.verify_features import measure_features

    op, case = variant("t2r_qk64_v64"), [Case(2, 17, 3, 0, "dense")]
    found = list(measure_features(op, "torch", "cpu", torch.bfloat16, case))
    assert [m.tensor for m in found] == ["y", "dx", "dquery_weight", "dquery_bias"]
    assert all(m.fine for m in found)
    module = op.makers["features"]._ops.kernels["torch"]
    whole = module.forward
    monkeypatch.setattr(module, "forward", lambda *given: whole(*given) + 1)
    assert not all(m.fine for m in measure_features(op, "torch", "cpu", torch.float32, case))
    assert not [*measure_features(op.core, "torch", "cpu", torch.float32, case)]
