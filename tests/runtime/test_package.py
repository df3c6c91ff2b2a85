"""What importing the package costs, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

import based_ops
from based_ops import errors
from based_ops.registry import register_package


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_is_light_and_quick() -> None:
    code = """
import sys, time, torch
start = time.process_time()  # what else runs on the machine does not count
import based_ops
print(time.process_time() - start)
heavy = ("triton", "tilelang", "tvm", "sympy", "yaml", "rich", "click", "torch._dynamo", "torch._inductor")
print([name for name in heavy if name in sys.modules and name not in before])
""".replace("start =", "before = set(sys.modules); start =", 1)
    times = []
    for _ in range(3):
        seconds, modules = python(code).splitlines()
        assert modules == "[]"
        times.append(float(seconds))
    assert min(times) < 0.3


def test_a_call_on_a_cpu_imports_no_other_backend() -> None:
    code = """
import sys, torch, based_ops
op = based_ops.get("identity_qk64_v64")
q, v = torch.randn(1, 3, 1, op.qk), torch.randn(1, 3, 1, op.v)
op(q, q, v, backend="torch")
print("triton" in sys.modules, "tilelang" in sys.modules)
"""
    assert python(code).split() == ["False", "False"]


def test_public_names() -> None:
    for name in based_ops.__all__:
        assert getattr(based_ops, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        based_ops.nothing  # noqa: B018


def test_operators_exist_after_import() -> None:
    code = """
import torch, based_ops
assert based_ops.names()
for name in based_ops.names():
    for which in ("forward", "backward", "step"):
        getattr(torch.ops.based_ops, f"{name}_{which}").default
"""
    python(code)


def test_one_name_cannot_mean_two_things() -> None:
    name = based_ops.names()[0]
    record = based_ops.registry.record(name)
    entry = {"build": record.build, "schemas": record.schemas, "spec": record.spec}
    register_package("elsewhere", {name: entry})
    assert based_ops.registry.record(name) is record
    assert record.build != record.build[::-1]
    with pytest.raises(errors.RegistrationError, match=f"already registered by package '{record.package}'"):
        register_package(
            "elsewhere", {name: entry | {"build": "0" * 8 if record.build != "0" * 8 else "1" * 8}}
        )


SCHEMAS = dict.fromkeys(("forward", "backward", "step"), "(Tensor x, str kernel) -> Tensor")


@pytest.mark.parametrize("name, build", [("../x", "0" * 8), ("x y", "0" * 8), ("ok", "short")])
def test_descriptions_are_checked(name: str, build: str) -> None:
    entry = {"build": build, "spec": {"mixer": "linear_attention"}, "schemas": SCHEMAS}
    with pytest.raises(errors.RegistrationError, match="not a description of a variant"):
        register_package("elsewhere", {name: entry})


@pytest.mark.parametrize("lacking", ["build", "spec", "schemas"])
def test_descriptions_are_whole(lacking: str) -> None:
    entry = {"build": "0" * 8, "spec": {"mixer": "linear_attention"}, "schemas": SCHEMAS}
    del entry[lacking]
    with pytest.raises(errors.RegistrationError, match="not a description of a variant"):
        register_package("elsewhere", {"fine": entry})
