"""Where and when something was found."""

from __future__ import annotations

import datetime
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

PACKAGES = ("based-ops", "torch", "triton", "flash-linear-attention")


def machine(device: torch.device) -> dict[str, str]:
    """The device, the versions and the date, as a line of results has them."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {platform.machine()}"
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return {"device": name, "versions": ", ".join(found), "date": datetime.date.today().isoformat()}
