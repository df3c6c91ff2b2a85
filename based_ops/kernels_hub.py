"""A layer's Triton kernels as a repository of Hugging Face's `kernels`, which needs nothing of this library.

    python -m based_ops.kernels_hub taylor2_qk16_v64 OUT

OUT becomes what `kernels.get_local_kernel(OUT)` loads, and what `get_kernel` does once it is uploaded: the
generated module, and of this package the few modules that it imports, by themselves under
`build/torch-universal`, as the loader calls kernels that are compiled where they run: on CUDA devices,
and on a CPU by Triton's interpreter.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

from based_ops.codegen.spec.model import dump_yaml

from .errors import ArgumentValueError, BasedOpsError, fail
from .record import record

PACKAGE = Path(__file__).parent
VARIANT = Path("build") / "torch-universal"
_IMPORT = re.compile(r"^( *)from (?:based_ops\.([\w.]+)|\.(\w+)) import", re.MULTILINE)
"""Of a module of this package: from the package, or from a module beside it."""

ENTRY = '''"""{title}

{formula}  Tensors are {shapes}; they share a dtype (bfloat16, float16 or float32) and a device.

`{name}` is differentiable.  `kernels` has the passes themselves, with states: forward, backward and step.
"""

import torch

from . import kernels

__all__ = ["{name}", "kernels"]


class _Call(torch.autograd.Function):
    @staticmethod
    def forward(ctx, numbers, *inputs):
        results = kernels.forward(*inputs, *numbers, {carried}{asked})
        output, *kept = results if isinstance(results, tuple) else (results,)
        ctx.numbers = numbers
        ctx.save_for_backward(*inputs, {saved})
        return output

    @staticmethod
    def backward(ctx, d_output):
        saved = ctx.saved_tensors
        gradients = kernels.backward(d_output.contiguous(), {final}*saved, *ctx.numbers, {carried})
        return None, *gradients[:{count}]


def {name}({parameters}):
    """The layer over whole sequences, from their beginning."""
    inputs = [None if x is None else x.contiguous() for x in ({inputs},)]
    return _Call.apply(({numbers}), *inputs)
'''

CARD = """---
library_name: kernels
license: mit
tags:
  - kernel
  - triton
  - linear-attention
---

# {name}

{title} Compiled by based_ops {version} from this spec:

```yaml
{spec}```

```python
from kernels import get_kernel

layer = get_kernel("OWNER/{repository}", version=1)
o = layer.{name}({inputs})
```
"""


def write(name: str, out: Path) -> Path:
    """Writes the repository of the registered variant `name` into `out`, which is made; returns `out`.

    Raises `UnknownVariant`, and `ArgumentValueError` for a layer whose queries and keys become features first
    (more than one generated module), and where `out` holds other files.
    """
    found = record(name)
    if found.core is not found:
        what = "a layer of one module: this one makes features of queries and keys first"
        fail(ArgumentValueError, "name", name, what)
    if out.exists() and any(out.iterdir()) and not (out / VARIANT / "metadata.json").is_file():
        fail(ArgumentValueError, "out", str(out), "a folder that is new, empty, or of an earlier call")
    texts = {Path("kernels.py"): _relative(_source(found.module("triton")), 0)}
    _gather(_source(found.module("triton")), Path(), texts)
    texts[Path("__init__.py")] = _entry(name)
    repository = name.replace("_", "-")
    whole = "".join(f"{path}\n{text}" for path, text in sorted(texts.items()))
    texts[Path("metadata.json")] = json.dumps(
        {
            "id": f"_{name}_{hashlib.sha256(whole.encode()).hexdigest()[:12]}",
            "name": repository,
            "version": 1,
            "license": "MIT",
            "python-depends": [],
            "backend": {"type": "cuda"},
        },
        indent=2,
    )
    for path, text in texts.items():
        place = out / VARIANT / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
    (out / "README.md").write_text(_card(name, repository), encoding="utf-8")
    return out


def _source(module: Any) -> str:
    return Path(inspect.getfile(module)).read_text(encoding="utf-8")


def _gather(text: str, package: Path, texts: dict[Path, str]) -> None:
    """Adds the modules that a text in `package` imports of this package, and what these import."""
    for _, absolute, beside in _IMPORT.findall(text):
        path = (Path(*absolute.split(".")) if absolute else package / beside).with_suffix(".py")
        if path in texts:
            continue
        own = (PACKAGE / path).read_text(encoding="utf-8")
        texts[path] = _relative(own, len(path.parents) - 1)
        for folder in path.parents[:-1]:
            texts[folder / "__init__.py"] = ""
        _gather(own, path.parent, texts)


def _relative(text: str, depth: int) -> str:
    """The text of a module so many folders deep, whose imports of this package are of what lies beside it."""
    return re.sub(r"^( *from )based_ops\.", rf"\g<1>{'.' * (depth + 1)}", text, flags=re.MULTILINE)


def _entry(name: str) -> str:
    from .registry import get

    op = get(name)
    signature = op.signature
    scaled = "scale" in inspect.signature(record(name).module("triton").forward).parameters
    parameters = [x.name + ("=None" if x.optional else "") for x in signature.inputs if x.present]
    parameters += [f"scale={op.default_scale!r}"] if scaled else []
    kept = ", ".join((["output"] if signature.keeps_output else []) + [f"*kept[:{len(signature.kept)}]"])
    return ENTRY.format(
        name=name,
        title=f"{op.spec.summary.rstrip('.')}.",
        formula=(type(op).__doc__ or "").strip().splitlines()[0],
        shapes=", ".join(f"{x.name} [{', '.join(map(str, x.dims))}]" for x in signature.inputs if x.present),
        carried="".join("None, " for _ in signature.carried),
        asked="False" if signature.final else "",
        saved=kept,
        final="".join("None, " for _ in signature.final),
        count=len(signature.inputs),
        parameters=", ".join(parameters),
        inputs=", ".join(x.name if x.present else "None" for x in signature.inputs),
        numbers="scale," if scaled else "",
    )


def _card(name: str, repository: str) -> str:
    from . import __version__
    from .registry import get

    op = get(name)
    return CARD.format(
        name=name,
        title=f"{op.spec.summary.rstrip('.')}.",
        version=__version__,
        spec=dump_yaml(op.spec),
        repository=repository,
        inputs=", ".join(x.name for x in op.signature.inputs if x.present and not x.optional),
    )


def main(words: list[str] | None = None) -> None:
    """The command; a user's error is a line."""
    parser = argparse.ArgumentParser(
        prog="python -m based_ops.kernels_hub", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("name", help="a layer that has been generated, such as taylor2_qk16_v64")
    parser.add_argument("out", type=Path, help="the folder of the repository")
    given = parser.parse_args(words)
    try:
        print(f"{write(given.name, given.out)}: kernels.get_local_kernel loads it")
    except BasedOpsError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
