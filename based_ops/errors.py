"""Typed errors of the public functions, and how they are raised.

Every error names the argument, what it got and what it must be, and says what to do next (`next_step`).  All
are raised before any kernel runs.
Under `torch.compile` a plain `raise` in traced code surfaces as Dynamo's own `Unsupported`, so the library
raises through `fail`, which Dynamo runs for real while it traces: the error leaves the compiler with its own
type.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from based_ops.codegen.errors import (  # noqa: F401  (all of them for users)
    BasedOpsError,
    ExpressionError,
    SpecError,
    SpecErrors,
    SpecWarning,
)

from .extras import MissingExtra  # noqa: F401
from .tracing import run_while_tracing


class UnknownVariant(BasedOpsError, LookupError):
    """No variant of that name is registered.

    The name is misspelt (the message names the nearest), or the package that registers it was not imported.
    """

    remedy = "`based-ops list` names the shipped layers; `based_ops.load(PATH)` compiles a spec of your own"


class RegistrationError(BasedOpsError, ValueError):
    """Two different variants claim one name, or a package describes its variants wrongly.

    Two generated packages in one process have layers of one name and different kernels, or one of them was
    edited or is of another version.
    """

    remedy = "give one of them another `name` in its spec, and run `based-ops generate` for both packages"


class ArgumentTypeError(BasedOpsError, TypeError):
    """An argument is not of the Python type it must be.

    A list or an array stands where a tensor belongs, or a tensor for what this layer does not take.
    """

    remedy = "`help(...)` of what you called, or docs/api.md, says what each argument is"


class ArgumentValueError(BasedOpsError, ValueError):
    """An argument has the right type, but a value that it cannot have.

    Some values are looked at on a CPU alone: offsets, masks, indices of slots, decays and rates.
    """

    remedy = "`help(...)` of what you called, or docs/api.md, says which values there are"


class ShapeError(BasedOpsError, ValueError):
    """A tensor has the wrong shape.

    Mostly heads stand before time, or a width is not that of the spec.
    """

    remedy = "sequences are [B, T, H, width], heads after time; docs/api.md has the shape of each argument"


class DtypeError(BasedOpsError, TypeError):
    """A tensor has the wrong dtype.

    Inputs differ from one another, as after a layer in another dtype, or the spec does not list theirs.
    """

    remedy = "cast by `.to(dtype)`, run under `torch.autocast`, or list the dtype in `dtypes` of the spec"


class DeviceError(BasedOpsError, ValueError):
    """Tensors that must share a device do not."""

    remedy = "move them by `.to(device)`; states have `.to(device)` too"


class CheckpointError(BasedOpsError, ValueError):
    """A checkpoint cannot be read, or is of another model.

    A file is missing or damaged, weights are missing, left over or of another shape, or a run goes on with
    another text or recipe.
    """

    remedy = "`based-ops models info FOLDER` says what a checkpoint is, and docs/models.md which are read"


class ResultsError(BasedOpsError, ValueError):
    """A file of results cannot be read, or does not hold what is asked of it."""

    remedy = "name a file that `based-ops bench` or `based-ops recall` wrote, or measure again"


class StateError(BasedOpsError, ValueError):
    """A recurrent state does not fit the variant or the call.

    It is of another layer, batch, dtype or device, shares memory with an input, or was put together by hand.
    """

    remedy = (
        "take one from `init_state` or `output_final_state=True` of the same layer; docs/decode.md says more"
    )


class PlacementError(BasedOpsError, ValueError):
    """Distributed tensors do not lie as a call needs them: only batch and heads are sharded, and alike."""

    remedy = "`redistribute` the argument first; docs/tools.md#distributed-tensors says how each may lie"


class BackendUnavailable(BasedOpsError, RuntimeError):
    """The backend that was asked for, or the default one, cannot serve this call here.

    Its package is not installed, there is no such device, or the dtype is float64.  Nothing falls back in
    silence.
    """

    remedy = (
        "`based-ops doctor` says what can run here; leave `backend` and BASED_OPS_BACKEND out for the default"
    )


class GradientError(BasedOpsError, NotImplementedError):
    """A derivative was asked for that does not exist: of a step, of a backward pass, or in forward mode."""

    remedy = "put steps and calls with pools under `torch.no_grad()`; `op.reference` has every derivative"


class VersionError(BasedOpsError, RuntimeError):
    """What was saved was made by another build of a layer, or lays out a state in another way.

    Kernels changed since a program was exported or compiled, or the library since a state was written.
    """

    remedy = "export or compile the program again; compute the state again from its tokens"


class CacheError(BasedOpsError, RuntimeError):
    """The just-in-time cache cannot be trusted, read or written.

    It belongs to another user or others can write to it, a disk is full or read-only, or there is no home.
    """

    remedy = "docs/environment.md says what the directory that BASED_OPS_CACHE names must be"


class LayoutWarning(UserWarning):
    """Tensors look as if heads came before time."""


def message(argument: str, got: object, must: str) -> str:
    """The text of every argument error."""
    return f"{argument}: got {got}, must be {must}"


@run_while_tracing
def fail(error: type[BasedOpsError], argument: str, got: object, must: str, then: str = "") -> NoReturn:
    """Raises `error` with the common message, with its own type from traced code too.

    `then` is what to do next, where that is not what the class says.
    """
    fail_text(error, message(argument, got, must), then)


@run_while_tracing
def fail_text(error: type[BasedOpsError], text: str, then: str = "") -> NoReturn:
    """Raises `error(text)`, with its own type from traced code too; `then` as of `fail`."""
    made = _passing_through_dynamo(error) if torch.compiler.is_compiling() else error
    raise made(text).then(then or error.remedy)


def _passing_through_dynamo(error: type[BasedOpsError]) -> Any:
    """A subclass of `error` that leaves Dynamo as it is: a `UserError` is not wrapped."""
    from torch._dynamo.exc import UserError, UserErrorType

    def init(self: UserError, text: str) -> None:
        UserError.__init__(self, UserErrorType.INVALID_INPUT, text)

    return type(error.__name__, (error, UserError), {"__init__": init, "__module__": error.__module__})
