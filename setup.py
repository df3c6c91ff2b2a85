"""Packages of the distribution: the rooms at the top of the repository, placed inside `based_ops`."""

from __future__ import annotations

from pathlib import Path

from setuptools import find_namespace_packages, setup

ROOT = Path(__file__).parent
ROOMS = {
    "based_ops": "based_ops",
    "based_ops.benchmarks": "benchmarks",
    "based_ops.codegen": "codegen",
    "based_ops.generated": "generated",
}
NOT_PACKAGES = ["*__pycache__*", "results*"]


def packages() -> list[str]:
    """Every package of every room, under the name it is installed by."""
    names = {"based_ops.specs"}
    for package, directory in ROOMS.items():
        inner = find_namespace_packages(str(ROOT / directory), exclude=NOT_PACKAGES)
        names |= {package, *(f"{package}.{name}" for name in inner)}
    return sorted(names)


setup(
    packages=packages(),
    package_dir={**ROOMS, "based_ops.specs": "specs"},
    package_data={
        "": ["*.yaml", "*.json", "py.typed"],
    },
)
