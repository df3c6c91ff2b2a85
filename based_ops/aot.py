"""Compile generated kernels for a GPU that is not there, and see what a block of them occupies.

Nothing is run, so this needs no device: Triton brings its own assembler, TileLang asks nvcc.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from tilelang.engine.param import CompiledArtifact
    from triton.compiler import CompiledKernel

    from based_ops.codegen.ir.kernels import Kernel
    from based_ops.codegen.spec.model import LayerSpec


@dataclass(frozen=True)
class Resources:
    """What one block of a compiled kernel occupies."""

    registers: int
    """32-bit registers a thread."""
    stack: int
    """Bytes a thread keeps in local memory: what did not fit into registers."""
    shared: int
    """Bytes of shared memory."""


def compile_triton(
    spec: LayerSpec, module: ModuleType, program: str, dtype: torch.dtype, **options: Any
) -> Resources:
    """What one kernel of a generated Triton module occupies; `options` are those of `triton_kernel`."""
    return occupied(triton_kernel(spec, module, program, dtype, **options))


def occupied(compiled: CompiledKernel) -> Resources:
    """What a kernel occupies that Triton has compiled."""
    report = _resource_usage(compiled.asm["cubin"])
    local = re.search(r"LOCAL:(\d+)", report)
    stack = re.search(r"STACK:(\d+)", report)
    registers = re.search(r"REG:(\d+)", report)
    if registers is None or stack is None:
        raise RuntimeError(f"{compiled.metadata.name}: cuobjdump reported {report!r}")
    return Resources(
        int(registers[1]), int(stack[1]) + (int(local[1]) if local else 0), int(compiled.metadata.shared)
    )


def triton_kernel(
    spec: LayerSpec,
    module: ModuleType,
    program: str,
    dtype: torch.dtype,
    capability: int = 90,
    strides_of_16: bool = True,
    **flags: bool,
) -> CompiledKernel:
    """Compile one kernel of a generated Triton module; raises what Triton raises.

    `dtype` is that of the inputs, and `flags` are the program's switches, on unless given, or `EARLY`, which
    is off.  Pointers count as
    multiples of 16 bytes, and unless `strides_of_16` is false strides as multiples of 16 elements, as Triton
    finds them to be in most dense tensors.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    kernel = getattr(module, program)
    constants = dict(module.SCHEDULE[program][dtype])
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages") if name in constants}
    lowered: Any = _kernels(spec)[program]
    constants |= {flag: flags.get(flag, True) for flag in lowered.flags}
    constants |= {t.name: None for t in lowered.tensors if t.optional and not constants[t.optional]}
    under = {} if kernel.is_gluon() else lowered.under
    constants |= {size: None for size, flag in under.items() if not constants[flag]}
    defaults = inspect.signature(kernel.fn).parameters
    constants = {n: p.default for n, p in defaults.items() if p.default is not p.empty} | constants
    constants |= {name: value for name, value in flags.items() if name in defaults}
    types = _parameters(spec, lowered, dtype)
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    plain = {param.name for param in kernel.params if param.do_not_specialize} | {*lowered.scalars}
    if not strides_of_16:
        plain |= {name for name, kind in signature.items() if kind == "i32"}
    divisible = [name for name, kind in signature.items() if kind != "constexpr" and name not in plain]
    source = (GluonASTSource if kernel.is_gluon() else ASTSource)(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs={(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in divisible},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def compile_tilelang(
    spec: LayerSpec, module: ModuleType, program: str, dtype: torch.dtype, arch: str = "sm_90a", **flags: bool
) -> Resources:
    """What one kernel of a generated TileLang module occupies; needs nvcc, and raises what it raises."""
    import tilelang

    lowered = tilelang_kernel(spec, module, program, dtype, arch, **flags)
    (kernel,) = lowered.device_mod.functions.values()
    report = _assembler_report(program, lowered.kernel_source, arch, Path(tilelang.__file__).parent)
    registers = re.findall(r"Used (\d+) registers", report)
    stack = re.findall(r"(\d+) bytes stack frame", report)
    shared = (kernel.attrs or {}).get("dyn_shared_memory_buf", 0)
    return Resources(max(map(int, registers)), max(map(int, stack)), int(shared))


def tilelang_kernel(
    spec: LayerSpec, module: ModuleType, program: str, dtype: torch.dtype, arch: str = "sm_90a", **flags: bool
) -> CompiledArtifact:
    """Lower one kernel of a generated TileLang module to CUDA; raises what TileLang raises.

    `flags` are the program's switches, on unless given.  Rows count as aligned, as they are in dense tensors.
    """
    import tilelang
    from tilelang import tvm

    from .support.tilelang import PASSES

    switches = {flag: flags.get(flag, True) for flag in _kernels(spec)[program].flags}
    factory = getattr(module, program).factory
    target = tvm.target.Target({"kind": "cuda", "arch": arch})
    with target, tvm.transform.PassContext(opt_level=3, config=PASSES):
        function = factory(ALIGNED=True, **module.SCHEDULE[program][dtype], **switches)
        return tilelang.lower(function, target=target)


def _assembler_report(program: str, text: str, arch: str, package: Path) -> str:
    """What ptxas says of a CUDA text that includes TileLang's headers."""
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / f"{program}.cu"
        source.write_text(text, encoding="utf-8")
        headers = [f"-I{package / 'src'}", f"-I{package / '3rdparty/cutlass/include'}"]
        command = ["nvcc", "-std=c++17", f"-arch={arch}", "-cubin", "-Xptxas", "-v", *headers]
        command += ["-o", str(source.with_suffix(".cubin")), str(source)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stderr


_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def _parameters(spec: LayerSpec, kernel: Kernel, dtype: torch.dtype) -> dict[str, str]:
    """Triton's type of every parameter of a kernel that is no constant."""
    from based_ops.codegen.ir.nodes import ACC, INDEX, IO, OPERAND, STATE, WIDE

    state = getattr(torch, spec.kept_dtype)
    operand = getattr(torch, spec.operand_dtype(str(dtype).removeprefix("torch.")))
    roles = {
        IO: f"*{_NAMES[dtype]}",
        OPERAND: f"*{_NAMES[operand]}",
        ACC: "*fp32",
        WIDE: "*fp64",
        STATE: f"*{_NAMES[state]}",
        INDEX: "*i32",
    }
    types = {tensor.name: roles[tensor.dtype] for tensor in kernel.tensors}
    strides = {f"{tensor.name}_{str(dim).lower()}": "i32" for tensor in kernel.tensors for dim in tensor.free}
    return types | strides | dict.fromkeys(kernel.sizes, "i32") | dict.fromkeys(kernel.scalars, "fp32")


@functools.lru_cache(maxsize=32)
def _kernels(spec: LayerSpec) -> dict[str, Kernel]:
    from based_ops.codegen.pipeline import kernels, lower

    return {kernel.name: kernel for kernel in kernels(lower(spec), "triton")}


def _resource_usage(cubin: bytes) -> str:
    """What the cuobjdump that comes with Triton says of a binary."""
    import triton.backends.nvidia as nvidia

    tool = Path(nvidia.__path__[0]) / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "kernel.cubin")
        Path(path).write_bytes(cubin)
        return subprocess.run(
            [str(tool), "-res-usage", path], check=True, capture_output=True, text=True
        ).stdout
