"""A run on disk: what it is, and masters and moments by `torch.distributed.checkpoint`.

RUN/run.json          what the run is
    RUN/step-00000100/    the newest state: ranks write their shards, any number of ranks reads them
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor

from based_ops.codegen.spec.model import plain_fields

from ..errors import CheckpointError
from ..models import LanguageModel

if TYPE_CHECKING:
    from .trainer import Trainer

RUN = "run.json"
PLANNED = ("steps",)
"""Settings that may change as a run goes on."""

AGAIN = "go on with the model, text and settings of that run, or begin in an empty folder"
"""What to do where a run is another."""


def about(trainer: Trainer) -> dict[str, Any]:
    """What has to be equal for a run to go on."""
    net = trainer.model
    found = {
        "model": plain_fields(net.spec) if isinstance(net, LanguageModel) else {"name": type(net).__name__},
        "text": trainer.text.fingerprint,
        "settings": asdict(trainer.settings),
        "sizes": {name: list(x.parameter.shape) for name, x in trainer.masters.masters.items()},
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))  # which has no tuples
    return plain


def save(trainer: Trainer, folder: Path) -> Path:
    """Writes the state aside, gives it its name once every rank is done, and removes older ones."""
    place, aside = folder / f"step-{trainer.done:08d}", folder / ".writing"
    if trainer.share.first:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        text = json.dumps(about(trainer), indent=1)
        (folder / RUN).write_text(text, encoding="utf-8")
    _wait(trainer)
    with _named(folder, "written"):
        dcp().save(trainer.masters.state(), checkpoint_id=str(aside))
    _wait(trainer)
    if trainer.share.first:
        shutil.rmtree(place, ignore_errors=True)
        aside.rename(place)
        for _, older in steps(folder):
            if older != place:
                shutil.rmtree(older)
    _wait(trainer)
    return place


def resume(trainer: Trainer, folder: Path) -> int:
    """Reads the newest state of a folder and says after how many steps it was written; 0 if there is none.

    Any number of ranks reads what any other has written.  Raises `CheckpointError` for a run of another
    model, text or recipe, and for files that cannot be read.
    """
    found = steps(folder)
    if not found:
        return 0
    _require_same(folder, about(trainer))
    done, place = found[-1]
    state = trainer.masters.state()
    with _named(place, "read"):
        _check_sizes(place, state)
        dcp().load(state, checkpoint_id=str(place))
    trainer.masters.after(done)
    return done


def steps(folder: Path) -> list[tuple[int, Path]]:
    """The states of a folder, oldest first: after how many steps, and where."""
    places = folder.glob("step-*") if folder.is_dir() else ()
    found = [(int(match[1]), x) for x in places if (match := re.fullmatch(r"step-(\d{8,})", x.name))]
    return sorted(found)


def dcp() -> Any:
    """`torch.distributed.checkpoint`, whose import takes a while."""
    import torch.distributed.checkpoint as found

    return found


@contextmanager
def _named(place: Path, done: str) -> Iterator[None]:
    """Errors of storage, of pickles and of other ranks, as one that says where."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is")  # one process has none
            yield
    except CheckpointError:
        raise
    except dcp().CheckpointException as error:
        first = next(iter(error.failures.values()))[0]
        raise CheckpointError(f"{place}: cannot be {done}: {first!r}") from error
    except Exception as error:
        raise CheckpointError(f"{place}: cannot be {done}: {error!r}") from error


def _check_sizes(place: Path, state: Mapping[str, Mapping[str, Tensor]]) -> None:
    saved = dcp().FileSystemReader(str(place)).read_metadata().state_dict_metadata
    for group, tensors in state.items():
        for name, x in tensors.items():
            entry = saved.get(f"{group}.{name}")
            if entry is None:
                raise CheckpointError(f"{place}: {group} {name}: missing")
            if entry.size != x.shape:
                got, want = list(entry.size), list(x.shape)
                raise CheckpointError(f"{place}: {group} {name}: got shape {got}, must be of shape {want}")


def _require_same(folder: Path, now: dict[str, Any]) -> None:
    from ..models.files import read_json

    then = read_json(folder / RUN)
    for key in ("model", "text", "sizes"):
        if then.get(key) != now[key]:
            got, must = _short(then.get(key), now[key]), _short(now[key], then.get(key))
            what = f"{key}: got a run of {got}, must be of {must}"
            raise CheckpointError(f"{folder}: {what}; name another folder for another run").then(AGAIN)
    settings = then.get("settings", {})
    for name, value in now["settings"].items():
        if name not in PLANNED and settings.get(name) != value:
            what = f"{name}: got a run with {settings.get(name)!r}, must be {value!r}"
            raise CheckpointError(f"{folder}: {what}; name another folder for another run").then(AGAIN)


def _short(x: Any, other: Any) -> str:
    """What two differ in."""
    if not isinstance(x, dict) or not isinstance(other, dict):
        return str(x)
    key = next(key for key in sorted({*x, *other}) if x.get(key) != other.get(key))
    return f"{key} {x.get(key, 'missing')}"


def _wait(trainer: Trainer) -> None:
    if trainer.share.mesh is not None:
        dist.barrier()
