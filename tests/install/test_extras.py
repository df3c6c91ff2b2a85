"""What runs where the packages of the extras are missing, and what the errors say."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import requires

import pytest

from based_ops.extras import EXTRAS, require

from .conftest import ROOT

BLOCKER = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""
OPTIONAL = {"sympy", "mpmath", "yaml", "click", "rich", "numpy", "tilelang", "tvm", "matplotlib"}


def python(code: str, blocked: set[str], code_of_exit: int = 0) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-W", "ignore", "-c", BLOCKER.format(blocked=blocked) + code]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == code_of_exit, done.stdout + done.stderr
    return done


def test_generated_layers_run_on_torch_and_triton_alone() -> None:
    code = """
import pickle
import torch, based_ops, based_ops.layers
from based_ops.inputs import draw, filled, tokens, units
for name in based_ops.names():
    op = based_ops.get(name)
    inputs = [x.requires_grad_() for x in draw(op, 1, 5, units(op.signature, 2), torch.randn, lambda x: x)]
    op._call(filled(op, inputs), None, None, False, None)[0].sum().backward()
    with torch.no_grad():
        _, state = op._call(filled(op, inputs), None, None, True, None)
        op._step(filled(op, tokens(op, inputs, 0, 1)), None, state, None)
    assert pickle.loads(pickle.dumps(op)) is op
layer = based_ops.layers.LinearAttention(32, 2, "taylor2_qk16_v64")
layer(torch.randn(1, 5, 32))
print(*based_ops.get("window64_d64").backends("cpu"), sep="\\n")
"""
    statuses = python(code, OPTIONAL).stdout.splitlines()
    (tilelang,) = [line for line in statuses if line.startswith("tilelang")]
    assert "pip install 'based-ops[tilelang]'" in tilelang


@pytest.mark.parametrize("missing", ["sympy", "yaml"])
def test_compiling_names_its_extra(missing: str) -> None:
    code = f"""
import based_ops
try:
    based_ops.load({str(ROOT / "specs" / "relu_qk64_v64.yaml")!r})
except based_ops.errors.BasedOpsError as error:
    print(type(error).__name__, isinstance(error, ImportError), error)
"""
    expected = f"MissingExtra True compiling a spec needs {missing}; run: pip install 'based-ops[compile]'\n"
    assert python(code, {missing}).stdout == expected


def test_the_oracle_of_an_expression_names_its_extra() -> None:
    code = """
import torch, based_ops
x = torch.randn(1, 3, 1, 64)
print(based_ops.get("window64_d64").reference(x, x, x).shape)
try:
    based_ops.get("relu_qk64_v64").reference(x, x, x)
except based_ops.errors.MissingExtra as error:
    print(error)
"""
    assert python(code, OPTIONAL).stdout.endswith("run: pip install 'based-ops[compile]'\n")
    assert python(code, {"yaml"}).stdout.count("\n") == 1, "expressions need no YAML"


def test_a_backend_that_is_asked_for_names_its_extra() -> None:
    code = """
import torch, based_ops
x = torch.randn(1, 3, 1, 64)
try:
    based_ops.get("window64_d64")(x, x, x, backend="tilelang")
except based_ops.errors.BackendUnavailable as error:
    print(error)
"""
    assert "pip install 'based-ops[tilelang]'" in python(code, {"tilelang"}).stdout


@pytest.mark.parametrize("missing", ["transformers", "huggingface_hub", "yaml"])
def test_models_for_transformers_name_their_extra(missing: str) -> None:
    code = "try:\n    import based_ops.hf\nexcept ImportError as error:\n    print(error)"
    expected = f"based_ops.hf needs {missing}; run: pip install 'based-ops[hf]'\n"
    assert python(code, {missing}).stdout == expected


@pytest.mark.parametrize("missing", ["click", "rich", "sympy", "yaml"])
def test_the_command_line_names_its_extra(missing: str) -> None:
    code = "from based_ops.__main__ import main\nsys.argv = ['based-ops', 'list']\nmain()"
    done = python(code, {missing}, code_of_exit=1)
    expected = f"based-ops: the command line needs {missing}; run: pip install 'based-ops[cli]'\n"
    assert done.stderr == expected and done.stdout == ""


def test_what_is_there_is_not_asked_for() -> None:
    for extra in EXTRAS.keys() - {"harness"}:  # forty packages, which tests may do without
        require(extra, "a test")


def test_extras_are_those_of_the_distribution() -> None:
    text = requires("based-ops") or []
    plain = [line for line in text if "extra ==" not in line]
    assert {line.partition(">")[0] for line in plain} == {"torch", "triton"}
    for extra, modules in EXTRAS.items():
        names = " ".join(line for line in text if f'extra == "{extra}"' in line)
        own = [module for module in modules if extra == "compile" or module not in EXTRAS["compile"]]
        called = {"yaml": "pyyaml", "lm_eval": "lm-eval"}
        assert all(called.get(module, module) in names for module in own), names
