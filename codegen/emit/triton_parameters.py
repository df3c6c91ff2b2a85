"""What Triton's kernels take at a launch, and how their text counts in strides."""

from __future__ import annotations

from math import prod

from ..ir.kernels import Kernel
from ..ir.nodes import Dim
from ..ir.program import Tensor, head_sizes


def parameters(kernel: Kernel) -> list[str]:
    """What a kernel takes at every launch: tensors, strides, sizes and scalars."""
    return [
        *(t.name for t in kernel.tensors),
        *(f"{t.name}_{axis}" for t in kernel.tensors for axis in stride_names(t)),
        *sizes_and_scalars(kernel),
    ]


def sizes_and_scalars(kernel: Kernel) -> list[str]:
    """Its sizes and scalars, numbers of heads last: so a call without groups reads the others as ever."""
    heads = head_sizes(kernel.tensors)
    return sorted((*kernel.sizes, *kernel.scalars), key=lambda name: name in heads)


def pool_offset(pool: Tensor) -> str:
    """The name of where in a pool the program's entry begins."""
    return f"{pool.name}_at"


def pools(kernel: Kernel) -> list[Tensor]:
    """The tensors of a kernel that may be pools."""
    return [tensor for tensor in kernel.tensors if tensor.slots]


def pool_stride(pool: Tensor) -> str:
    """The name of how far apart a pool's slots lie."""
    return f"{pool.name}_{stride_names(pool)[0]}"


def vector_of(pool: Tensor) -> str:
    """The elements of which slots begin at multiples, as a dense pool's do; "" if that says nothing.

    As many as 16 bytes have, but no more than divide what each head or channel has: `based_ops.slots` copies
    what lies elsewhere.
    """
    whole = prod(dim for dim in pool.dims if isinstance(dim, int))
    shared = whole & -whole
    if shared == 1:
        return ""
    return str(shared) if shared <= 4 else f"128 // {pool.name}.dtype.element_ty.primitive_bitwidth"


def stride_names(tensor: Tensor) -> list[str]:
    """Names of the stride parameters, one a dimension whose stride calls choose."""
    return [str(dim).lower() for dim in tensor.free]


def product(dims: tuple[Dim, ...]) -> str:
    """The product of extents as text; runtime sizes first, so that it is taken in 64 bits."""
    names = [dim for dim in dims if isinstance(dim, str)]
    number = prod(dim for dim in dims if isinstance(dim, int))
    return " * ".join([*names, *([str(number)] if number != 1 or not names else [])])


def times(x: str, stride: str) -> str:
    return x if stride == "1" else f"{x} * {stride}"
