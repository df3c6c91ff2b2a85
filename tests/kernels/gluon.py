"""Runs generated Gluon kernels on a CPU, as Python: what they compute, and whether they wait for it.

Triton's interpreter knows no Gluon.  Here a kernel's own code runs on PyTorch tensors, with other meanings
for what it calls.  Layouts mean nothing, programs run one after another, and all warps at once; but

* a product's result may be used only after a wait that covers it,
* a shared tile may enter a product or be read only after the copy that fills it was waited for, and after a
  barrier (before a product a fence too) since it was written,
* and it may be written only after a barrier since it was last read,

so that a forgotten wait fails here, not now and then on a device; `tensor_memory.py` has what is Blackwell's
own.  PTX is not run: functions that are made of it are replaced by what their documentation says, which
`test_warpgroups.py` compares with the PTX.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import FunctionType, MappingProxyType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from triton import language as tl
from triton.experimental.gluon import language as gl
from triton.runtime.jit import JITFunction

from based_ops.support import elementary, exchange, exchange_wide, quadratic, warpgroups
from tests.kernels import tensor_memory


class Pointer:
    """An address, or a tile of addresses, in a tensor's memory."""

    def __init__(self, memory: Tensor, offset: Any = 0) -> None:
        self.memory, self.offset = memory, offset
        self.dtype = SimpleNamespace(element_ty=memory.dtype)

    def __add__(self, offset: Any) -> Pointer:
        return Pointer(self.memory, self.offset + offset)

    def load(self, mask: Any, other: float) -> Tensor:
        inside = torch.as_tensor(mask)
        return self.memory[torch.where(inside, self.offset, 0)].masked_fill(~inside, other)

    def store(self, value: Any, mask: Any) -> None:
        value = torch.as_tensor(value).to(self.memory.dtype)
        offset, value, inside = torch.broadcast_tensors(
            torch.as_tensor(self.offset), value, torch.as_tensor(mask)
        )
        self.memory[offset[inside]] = value[inside]


class Block:
    """One program: what is in flight in it, and which shared tiles wait for a barrier."""

    def __init__(self) -> None:
        self.products = self.waited = 0
        self.groups: list[list[tuple[Shared, Tensor]]] = [[]]
        self.unfenced: set[int] = set()
        self.unseen: set[int] = set()
        self.read: set[int] = set()
        self.in_product: dict[int, int] = {}
        self.phases: dict[int, tensor_memory.Phases] = {}

    def fence(self) -> None:
        self.unfenced.clear()

    def barrier(self) -> None:
        self.unseen.clear()
        self.read.clear()
        self.in_product = {place: n for place, n in self.in_product.items() if n > self.waited}

    def written(self, place: int) -> None:
        self.unfenced.add(place)
        self.unseen.add(place)

    def commit_group(self) -> None:
        self.groups.append([])

    def wait_group(self, count: int) -> None:
        """Let all copies arrive but those of the latest `count` groups."""
        for group in self.groups[: max(0, len(self.groups) - 1 - count)]:
            for tile, rows in group:
                tile.data.copy_(rows)
                self.written(tile.place)
            group.clear()


class Shared:
    """A tile in shared memory."""

    def __init__(self, block: Block, data: Tensor) -> None:
        self.block, self.data, self.shape = block, data, tuple(data.shape)
        self.place = data.data_ptr()

    def index(self, i: Any) -> Shared:
        return Shared(self.block, self.data[int(i)])

    def permute(self, order: tuple[int, ...]) -> Shared:
        return Shared(self.block, self.data.permute(order))

    def slice(self, start: int, length: int, dim: int) -> Shared:
        part = Shared(self.block, self.data.narrow(dim, start, length))
        part.place = self.place
        return part

    def _reinterpret(self, dtype: torch.dtype, shape: Any, layout: Any) -> Shared:
        same = Shared(self.block, self.data.view(dtype))
        same.place = self.place
        return same

    @property
    def layout(self) -> None:
        return None

    def in_bfloat16(self) -> tuple[Shared, Tensor]:
        """Rounded in its place: the same warps read and write the same rows."""
        x = self.load(None).to(torch.bfloat16)
        self.block.read.discard(self.place)
        same = Shared(self.block, self.data.view(torch.bfloat16))
        same.store(x)
        return same, x

    def load(self, layout: Any) -> Tensor:
        assert self.place not in self.block.unseen, "read without a barrier since it was written"
        self.block.read.add(self.place)
        return self.data.clone()

    def operand(self) -> Tensor:
        """The tile as it enters the product that is issued next."""
        assert self.place not in self.block.unfenced, "entered a product without a fence"
        assert self.place not in self.block.unseen, "entered a product without a barrier"
        self.block.in_product[self.place] = self.block.products + 1
        return self.data.clone()

    def store(self, value: Tensor) -> None:
        assert value.dtype == self.data.dtype and value.shape == self.shape
        self.overwrite()
        self.data.copy_(value)

    def overwrite(self) -> None:
        assert self.place not in self.block.read, "written without a barrier since it was read"
        assert self.place not in self.block.in_product, (
            "written before a product that reads it was waited for"
        )
        self.block.written(self.place)
        self.data.fill_(_poison(self.data.dtype))


def _poison(dtype: torch.dtype) -> float:
    return float("nan") if dtype.is_floating_point else 0x5555


class Product:
    """The result of a product in flight."""

    def __init__(self, value: Tensor, number: int) -> None:
        self.value, self.number = value, number


def run(kernel: JITFunction[Any], programs: int, tensors: list[Tensor | None], *rest: Any) -> None:
    """Run every program of a kernel; tensors are contiguous, `rest` are its other parameters."""
    for program in range(programs):
        passed = [None if x is None else Pointer(x.view(-1)) for x in tensors]
        _as_python(kernel, program)(*passed, *rest)


def _as_python(kernel: JITFunction[Any], program: int) -> FunctionType:
    """One program of a kernel as Python."""
    beside = {name: x for name, x in kernel.fn.__globals__.items() if isinstance(x, JITFunction)}
    return FunctionType(kernel.fn.__code__, meanings(program, beside), kernel.fn.__name__)


def meanings(program: int = 0, beside: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """What the names in a kernel mean; functions of `based_ops.support` and beside it are Python."""
    block = Block()
    found: dict[str, Any] = {"gl": _language(block, program), **_products(block), **LOGICAL}
    found |= tensor_memory.meanings(block)
    found |= {"barrier": block.barrier, "fence_async_shared": block.fence}
    found |= {"in_bfloat16": lambda tile, layout: tile.in_bfloat16()}

    def copy(tile: Shared, pointers: Pointer, mask: Any) -> None:
        tile.overwrite()
        block.groups[-1].append((tile, pointers.load(mask, 0.0)))

    found["async_copy"] = SimpleNamespace(
        async_copy_global_to_shared=copy, commit_group=block.commit_group, wait_group=block.wait_group
    )
    found["tl"] = found["gl"]  # of which elementary functions are made
    modules = (*map(vars, (warpgroups, exchange, exchange_wide, quadratic, elementary)), beside)
    for name, value in (item for module in modules for item in module.items()):
        if isinstance(value, gl.constexpr):
            found.setdefault(name, value.value)
        if isinstance(value, JITFunction):
            found.setdefault(name, FunctionType(value.fn.__code__, found, name, value.fn.__defaults__))
    return found


def _products(block: Block) -> dict[str, Any]:
    """Products and waits for them."""

    def value(x: Any) -> Tensor:
        assert not isinstance(x, Product), "a product's result was used before it was there"
        return (x.operand() if isinstance(x, Shared) else x).float()

    def warpgroup_mma(a: Any, b: Any, acc: Any, use_acc: bool = True, is_async: bool = False) -> Product:
        total = value(a) @ value(b)
        if use_acc:
            total = total + (acc.value if isinstance(acc, Product) else acc)
        block.products += 1
        return Product(total, block.products)

    def warpgroup_mma_wait(outstanding: int, deps: list[Any]) -> Any:
        block.waited = max(block.waited, block.products - outstanding)

        def there(x: Any) -> Any:
            """A product's value; itself while it is in flight, so that only products can go on with it."""
            return x.value if isinstance(x, Product) and x.number <= block.waited else x

        values = tuple(map(there, deps))
        return values if len(values) > 1 else values[0]

    def mma_v2(a: Tensor, b: Tensor, acc: Tensor) -> Tensor:
        return value(a) @ value(b) + acc

    return {
        "warpgroup_mma": warpgroup_mma,
        "warpgroup_mma_wait": warpgroup_mma_wait,
        "mma_v2": mma_v2,
    }


def _language(block: Block, program: int) -> SimpleNamespace:
    """`triton.experimental.gluon.language`, as far as kernels use it."""

    def layout(*_: Any) -> None:
        return None

    def allocate(dtype: torch.dtype, shape: list[int], layout: Any, value: Tensor | None = None) -> Shared:
        tile = Shared(block, torch.full(shape, _poison(dtype), dtype=dtype))
        if value is not None:
            tile.store(value)
        return tile

    def where(condition: Any, x: Any, y: Any) -> Any:
        if isinstance(condition, Tensor):
            return torch.where(condition, x, y)
        alike = next((side for side in (x, y) if isinstance(side, Tensor)), None)
        chosen = x if condition else y
        return chosen if alike is None or isinstance(chosen, Tensor) else torch.full_like(alike, chosen)

    return SimpleNamespace(
        program_id=lambda axis: torch.tensor(program),
        cdiv=lambda x, y: -(-x // y),
        maximum=lambda x, y, **_: torch.maximum(torch.as_tensor(x), torch.as_tensor(y)),
        split=lambda x: x.unbind(-1),
        minimum=lambda x, y, **_: torch.minimum(torch.as_tensor(x), torch.as_tensor(y)),
        PropagateNan=tl.PropagateNan,
        cast=lambda x, dtype: x,
        where=where,
        sum=torch.sum,
        max=torch.amax,
        **{name: getattr(torch, name) for name in "exp exp2 log2 log sqrt abs sin cos erf".split()},
        multiple_of=lambda x, _: x,
        arange=lambda start, stop, layout: torch.arange(start, stop),
        full=lambda shape, value, dtype, layout: torch.full(shape, value, dtype=dtype),
        load=lambda pointer, mask=True, other=0.0: pointer.load(mask, other),
        store=lambda pointer, value, mask=True: pointer.store(value, mask),
        join=lambda x, y: torch.stack((x, y), -1),
        permute=torch.permute,
        reshape=torch.reshape,
        convert_layout=lambda x, layout, assert_trivial=False: x,
        static_range=range,
        allocate_shared_memory=allocate,
        NVMMADistributedLayout=layout,
        NVMMASharedLayout=layout,
        DotOperandLayout=layout,
        BlockedLayout=layout,
        SliceLayout=layout,
        SwizzledSharedLayout=layout,
        float32=torch.float32,
        float16=torch.float16,
        bfloat16=torch.bfloat16,
        int16=torch.int16,
        int64=torch.int64,
    )


def _exchanged(x: Tensor, distance: int, pack: int = 2) -> Tensor:
    return x[:, torch.arange(16) ^ 2 * distance]


def _partners_by_lane(y: Tensor, bit: int) -> Tensor:
    c = torch.arange(16)
    return torch.where((c // 2 & bit) > 0, y[:, c ^ 1], y)


def _partners_of_halves(y: Tensor) -> Tensor:
    c = torch.arange(16)
    return torch.where(c < 8, y[:, c ^ 8], y[:, c ^ 9])


def _neighbours_and_constant(x: Tensor) -> Tensor:
    c = torch.arange(16)
    constant = torch.where(c == 1, 1.0, 0.0).to(x.dtype)
    return torch.where(c % 2 == 0, x * x[:, c ^ 1], constant)


LOGICAL = {
    "rounded": lambda x: x.to(torch.bfloat16),
    "in_float32": lambda x: x.float(),
    "exponential": torch.exp,
    "where_bits": lambda x, bits: torch.where(bits != 0, x, torch.zeros_like(x)),
    "exchanged": _exchanged,
    "partners_by_lane": _partners_by_lane,
    "partners_of_halves": _partners_of_halves,
    "swapped": lambda x: x[:, torch.arange(16) ^ 1],
    "flipped": lambda x: x[:, torch.arange(16) ^ 8],
    "doubled": lambda x: x[:, torch.arange(16) % 8],
    "product": lambda x, y: x * y,
    "neighbours_and_constant": _neighbours_and_constant,
    "afresh": lambda x, pack=1: x,
    "running_sum": lambda x: torch.cumsum(x, 0),
}
"""What the functions made of PTX say that they do, on whole tiles."""
