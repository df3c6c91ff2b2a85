"""What MkDocs runs to build the site: it adds pages from outside of docs/, and text generated from the code.

A page asks for generated text by a line `<!-- generated: NAME -->`; `site_pages` has a function for each
name.  So a reference cannot be older than what it describes.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from site_pages import GENERATED, pictures

ROOT = Path(__file__).resolve().parents[1]
FROM_OUTSIDE = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""Pages that lie at the top of the repository, by their names in the site."""
RESULTS = "benchmarks/results"
"""Where the pictures of measurements lie, in the repository and in the site."""
DOCUMENTED = ROOT / "build" / "api" / "based_ops"
"""The package as mkdocstrings sees it: links to what may have documents, since it reads all that there is."""
NOT_DOCUMENTED = {"generated", "benchmarks", "specs", "__pycache__"}
_MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
_LINK = re.compile(r"(\]\(|srcset=\"|src=\")([^)\"#\s]+)")


def on_config(config: Any) -> None:
    """Makes the links."""
    DOCUMENTED.mkdir(parents=True, exist_ok=True)
    there = {path.name: path for path in (ROOT / "based_ops").iterdir() if path.name not in NOT_DOCUMENTED}
    for link in DOCUMENTED.iterdir():
        if link.name not in there:
            link.unlink()
    for name, path in there.items():
        with suppress(FileExistsError):
            (DOCUMENTED / name).symlink_to(path.resolve())


def on_files(files: Files, *, config: Any) -> Files:
    """Adds what does not lie in docs/."""
    for name, source in FROM_OUTSIDE.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    for path in sorted((ROOT / RESULTS).glob("*.png")):
        files.append(File.generated(config, f"{RESULTS}/{path.name}", abs_src_path=str(path)))
    for name, content in pictures().items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Fills in what is generated, and turns links of the repository into links of the site."""
    name = page.file.src_uri
    text = _MARK.sub(lambda mark: GENERATED[mark[1]](), markdown)
    source = FROM_OUTSIDE.get(name, f"docs/{name}")
    return _LINK.sub(lambda link: f"{link[1]}{in_site(source, link[2])}", text)


def in_site(source: str, target: str) -> str:
    """A relative link in a file of the repository, as it is called in the site."""
    if ":" in target:
        return target
    path = (ROOT / source).parent.joinpath(target).resolve()
    if not path.is_relative_to(ROOT):
        return target
    inside = path.relative_to(ROOT).as_posix()
    pages = {where: page for page, where in FROM_OUTSIDE.items()}
    return pages.get(inside, inside.removeprefix("docs/"))
