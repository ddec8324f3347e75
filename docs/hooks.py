"""Hooks of the site: pages that lie outside of `docs/`, and a reference that names every public name.

Links in the pages are those of the repository, so that they work where the files are read; here they
are turned to where the same files are on the site.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
# Files outside of docs/ that pages link to, by their place in the repository.
OUTSIDE = ("*.md", "MLproject", "examples/*", "benchmarks/results/*.json")
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
# Rooms in the order in which a reader meets them; others follow.
FIRST = ("groups", "schedules", "ranging", "suggestions", "training", "searching", "tracking",
         "delivering", "comparing", "plotting", "reporting", "tasks", "datasets")  # fmt: skip


def reference_pages() -> dict[str, str]:
    """Room -> Markdown with each of its public names, in the order of `lrfinder.__all__`."""
    import lrfinder

    rooms: dict[str, list[str]] = {}
    for name in lrfinder.__all__:
        room = getattr(lrfinder, name).__module__.split(".")[1]
        rooms.setdefault(room, []).append(name)
    order = sorted(rooms, key=lambda room: (FIRST.index(room) if room in FIRST else 99, room))
    pages = {}
    for room in order:
        lead = (sys.modules[f"lrfinder.{room}"].__doc__ or "").strip().splitlines()[0]
        title, _, said = lead.partition(": ")
        parts = [f"# {title}", said[:1].upper() + said[1:]]
        pages[room] = "\n\n".join([*parts, *(f"::: lrfinder.{name}" for name in rooms[room])])
    for path in sorted((ROOT / "lrfinder" / "integrations").glob("[!_]*")):
        if path.suffix != ".py" and not (path / "__init__.py").exists():
            continue
        module = f"lrfinder.integrations.{path.stem}"
        pages[path.stem] = f"# {path.stem.capitalize()}\n\n::: {module}"
    return {f"reference/{room}.md": text + "\n" for room, text in pages.items()}


def place_on_site(path: str) -> str:
    """Where a file of the repository is on the site."""
    if path == "README.md":
        return "index.md"
    return path.removeprefix("docs/")


def place_in_repository(src_uri: str) -> str:
    """The other way round."""
    if src_uri == "index.md":
        return "README.md"
    return src_uri if (ROOT / src_uri).exists() else f"docs/{src_uri}"


def on_config(config: Any) -> Any:
    """Put the reference's pages into the navigation, and pages that nobody put there at its end."""
    pages = [{Path(page).stem: page} for page in reference_pages()]
    named = str(config.nav)
    config.nav = [
        {"Reference": pages} if item == {"Reference": "REFERENCE"} else item for item in config.nav
    ]
    own = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    more = sorted(page for page in own if page not in named)
    if more:
        config.nav.append({"More": more})
    return config


def on_files(files: Files, *, config: Any) -> Files:
    """Add the files outside of docs/, and the reference."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file():
                uri = place_on_site(path.relative_to(ROOT).as_posix())
                files.append(File.generated(config, uri, abs_src_path=str(path)))
    for uri, text in reference_pages().items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Turn the repository's links to the site's; a folder has no page, so its name is left."""
    here = page.file.src_uri
    own = posixpath.dirname(place_in_repository(here))

    def turned(match: re.Match[str]) -> str:
        before, target, after = match.groups()
        if ":" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(own, target))
        if (ROOT / path).is_dir():
            path = "docs/benchmarks.md" if path.startswith("benchmarks") else "examples/README.md"
        uri = place_on_site(path)
        start = posixpath.dirname(here) or "."
        return f"{before}{posixpath.relpath(uri, start)}{after}"

    return LINK.sub(turned, markdown)


def on_post_build(config: Any) -> None:
    """Fail where a public name has no entry."""
    import lrfinder

    pages = Path(config.site_dir, "reference").glob("*/index.html")
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    missing = [name for name in lrfinder.__all__ if f'id="lrfinder.{name}"' not in text]
    if missing:
        raise PluginError(f"Every public name must be in the reference, but not: {missing}.")
