"""Typed errors of the public functions, and how they are raised.

Every error names the argument, what it got and what it must be.  All are raised before any kernel runs.
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
    """No variant of that name is registered."""


class RegistrationError(BasedOpsError, ValueError):
    """Two different variants claim one name, or a package describes its variants wrongly."""


class ArgumentTypeError(BasedOpsError, TypeError):
    """An argument is not of the Python type it must be."""


class ArgumentValueError(BasedOpsError, ValueError):
    """An argument has the right type, but a value that it cannot have."""


class ShapeError(BasedOpsError, ValueError):
    """A tensor has the wrong shape."""


class DtypeError(BasedOpsError, TypeError):
    """A tensor has the wrong dtype."""


class DeviceError(BasedOpsError, ValueError):
    """Tensors that must share a device do not."""


class CheckpointError(BasedOpsError, ValueError):
    """A checkpoint cannot be read, or is of another model."""


class ResultsError(BasedOpsError, ValueError):
    """A file of results cannot be read, or does not hold what is asked of it."""


class StateError(BasedOpsError, ValueError):
    """A recurrent state does not fit the variant or the call."""


class PlacementError(BasedOpsError, ValueError):
    """Distributed tensors do not lie as a call needs them: only batch and heads are sharded, and alike."""


class BackendUnavailable(BasedOpsError, RuntimeError):
    """The backend that was asked for, or the default one, cannot serve this call here."""


class GradientError(BasedOpsError, NotImplementedError):
    """A derivative was asked for that does not exist: of a step, of a backward pass, or in forward mode."""


class VersionError(BasedOpsError, RuntimeError):
    """What was saved was made by another build of a layer, or lays out a state in another way."""


class CacheError(BasedOpsError, RuntimeError):
    """The just-in-time cache cannot be trusted, read or written."""


class LayoutWarning(UserWarning):
    """Tensors look as if heads came before time."""


def message(argument: str, got: object, must: str) -> str:
    """The text of every argument error."""
    return f"{argument}: got {got}, must be {must}"


@run_while_tracing
def fail(error: type[BasedOpsError], argument: str, got: object, must: str) -> NoReturn:
    """Raises `error` with the common message, with its own type from traced code too."""
    fail_text(error, message(argument, got, must))


@run_while_tracing
def fail_text(error: type[BasedOpsError], text: str) -> NoReturn:
    """Raises `error(text)`, with its own type from traced code too."""
    if torch.compiler.is_compiling():
        raise _passing_through_dynamo(error)(text)
    raise error(text)


def _passing_through_dynamo(error: type[BasedOpsError]) -> Any:
    """A subclass of `error` that leaves Dynamo as it is: a `UserError` is not wrapped."""
    from torch._dynamo.exc import UserError, UserErrorType

    def init(self: UserError, text: str) -> None:
        UserError.__init__(self, UserErrorType.INVALID_INPUT, text)

    return type(error.__name__, (error, UserError), {"__init__": init, "__module__": error.__module__})
