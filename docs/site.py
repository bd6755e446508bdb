"""What mkdocs does not do by itself: pages beside `docs/` belong to the site, and links are those of the repository."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
BESIDE = (
    "*.md",
    "LICENSE",
    "CITATION.cff",
    "tests/*.md",
    *(f"experiments/**/*.{end}" for end in ("md", "png", "py", "yaml")),
)
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what recipes tell of themselves, and what stands at the top of the repository."""
    for path in (path for pattern in BESIDE for path in sorted(ROOT.glob(pattern))):
        if (name := path.relative_to(ROOT).as_posix()) != "README.md":
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """Leads each relative link to where the site has what the repository has there."""
    place = page.file.src_uri
    beside = page.file.generated_by is not None
    home = posixpath.dirname(place if beside else f"docs/{place}")

    def on_site(found: re.Match[str]) -> str:
        there = posixpath.normpath(posixpath.join(home, found[1]))
        there = "index.md" if there == "README.md" else there.removeprefix("docs/")
        if posixpath.join(there, "README.md") in files.src_uris:
            there = posixpath.join(there, "README.md")
        return posixpath.relpath(there, posixpath.dirname(place) or ".")

    return LINK.sub(on_site, markdown)
