"""What setuptools does otherwise here: a source distribution that is the same bytes whoever builds it.

Wheels are so by themselves where `SOURCE_DATE_EPOCH` (reproducible-builds.org) says when they were made;
an archive of sources also holds times, owners and an order of files that are those of the machine.
"""

from __future__ import annotations

import gzip
import os
import tarfile
from pathlib import Path
from typing import Any

from setuptools.command.sdist import sdist


class Sdist(sdist):
    """`sdist`, whose archive has the time of `SOURCE_DATE_EPOCH`, nobody's files, sorted names, and nothing
    that a build makes anew."""

    def make_archive(
        self, base_name: Any, format: str, root_dir: Any = None, *args: Any, **names: Any
    ) -> str:
        epoch = os.environ.get("SOURCE_DATE_EPOCH")
        if epoch is None or format != "gztar":
            return super().make_archive(base_name, format, root_dir, *args, **names)
        tree, archive = Path(root_dir or ".") / names["base_dir"], f"{base_name}.tar.gz"

        def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mtime = int(epoch)
            entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
            return entry

        Path(archive).parent.mkdir(parents=True, exist_ok=True)
        with (
            open(archive, "wb") as raw,
            gzip.GzipFile("", "wb", fileobj=raw, mtime=int(epoch)) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar,
        ):
            for path in sorted(tree.rglob("*")):
                kept = not any(part.endswith(".egg-info") for part in path.parts)  # what earlier builds left
                if kept and not path.is_dir():
                    name = Path(names["base_dir"]) / path.relative_to(tree)
                    tar.add(path, name, recursive=False, filter=anonymous)
        return archive
