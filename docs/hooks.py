"""Builds the site of pages where they stand: README and benchmarks outside of docs/ are pages of it as they are.

Called by mkdocs. A link to a file of the repository leads to its page, or to the file itself.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": "index.md"}  # of the repository, by their place in the site; others have the same place
OUTSIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "cluster.yaml", "benchmarks/README.md", "examples/**/*.*")
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages and files that stand outside of docs/."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            place = path.relative_to(ROOT).as_posix()
            if path.suffix in (".md", ".yaml", ".py", ".png"):
                files.append(File.generated(config, PAGES.get(place, place), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links between files of the repository into links between places of the site."""
    here = page.file.src_uri
    source = Path(page.file.abs_src_path).resolve().relative_to(ROOT).as_posix()

    def placed(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        place = PAGES.get(target, target.removeprefix("docs/"))
        return posixpath.relpath(place, posixpath.dirname(here) or ".")

    return LINK.sub(placed, markdown)
