"""The site builds strictly and without network, and every link in it leads somewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
NOWHERE = "http://127.0.0.1:9"
"""A proxy that answers nobody."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "site"
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    around = {"http_proxy": NOWHERE, "https_proxy": NOWHERE, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=os.environ | around, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@dataclass
class Page(HTMLParser):
    """What a page has and what it asks for."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    """Scripts, styles and pictures, which a browser fetches by itself."""

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value is not None}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        wanted = {"link": "href", "script": "src", "img": "src", "source": "srcset", "iframe": "src"}.get(tag)
        if wanted in given and given.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(given[wanted])


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    found = {}
    for path in sorted(site.glob("**/*.html")):
        found[path] = page = Page()
        page.feed(path.read_text(encoding="utf-8"))
    return found


def test_no_page_loads_anything_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    assert len(pages) > 10
    for path, page in pages.items():
        for target in page.loaded:
            assert not urlsplit(target).netloc, f"{path.name} loads {target}"
    for path in site.glob("**/*.css"):
        assert "url(http" not in path.read_text(encoding="utf-8"), path


def test_every_link_leads_somewhere(pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        if path.name == "404.html":  # whose links begin at the root of the server
            continue
        for target in (*page.links, *page.loaded):
            url = urlsplit(target)
            if url.scheme or url.netloc:
                continue
            there = (path.parent / unquote(url.path)).resolve() if url.path else path
            if not there.exists():
                broken.append(f"{path.name}: {target}")
            elif url.fragment and there.suffix == ".html" and unquote(url.fragment) not in pages[there].ids:
                broken.append(f"{path.name}: {target}")
    assert not broken, "\n".join(broken)


def test_nothing_of_the_build_is_published(site: Path) -> None:
    assert not list(site.glob("**/*.py")) and not list(site.glob("**/*.pyc"))
