"""What MkDocs asks while it builds the site: pages that stand elsewhere in the checkout, and parts that are generated.

README.md is the first page. A file of the checkout that a page links to becomes a page of its own, so that a link that
works on a code host works in the site. A comment such as `<!-- module: ressl -->` becomes what is generated there.
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import generated  # noqa: E402
from mkdocs.structure.files import File  # noqa: E402

FENCE = re.compile(r"^(`{3,}|~{3,})[^\n]*\n.*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(#[^)\s]*)?(?=\))")
PART = re.compile(
    r"^<!-- (?!results:)(\w+): ([^>]+?) -->$", re.MULTILINE
)  # those of docs/results.md are its own
SOURCE = "source"  # folder of the pages of files


def on_files(files: Any, config: Any) -> Any:
    """Add README as the first page, and a page for each file that one of the pages links to."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text(encoding="utf-8")))
    pages = [f.src_uri for f in files if f.src_uri.endswith(".md")]
    waiting = [*map(origin_of, pages), *generated.modules()]
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        if not path.startswith("docs/") and path != "README.md":
            files.append(File.generated(config, page_of(path), content=content_of(path)))
        if path.endswith(".md"):
            text = (ROOT / path).read_text(encoding="utf-8")
            waiting += [found for found in linked(text, path) if page_of(found)]
    return files


def linked(text: str, path: str) -> Iterator[str]:
    """The files of the checkout that a page links to, as paths from its root."""
    for piece in outside_code(text):
        for match in LINK.finditer(piece):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[1]))
            if (ROOT / target).is_file() and not target.startswith("docs/"):
                yield target


def page_of(path: str) -> str:
    """Where a file of the checkout is in the site, as a path of its Markdown."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{SOURCE}/{path}" + ("" if path.endswith(".md") else ".md")


def origin_of(page: str) -> str:
    """The file of the checkout that a page is made of."""
    if page == "index.md":
        return "README.md"
    if page.startswith(f"{SOURCE}/"):
        path = page.removeprefix(f"{SOURCE}/")
        return path if (ROOT / path).is_file() else path.removesuffix(".md")
    return f"docs/{page}"


def content_of(path: str) -> str:
    """A file of the checkout as a page: Markdown as it is, anything else with numbered lines."""
    text = (ROOT / path).read_text(encoding="utf-8")
    head = "---\nsearch: {exclude: true}\n---\n"
    if path.endswith(".md"):
        return head + text
    language = {".py": "python", ".yaml": "yaml", ".sh": "bash"}.get(Path(path).suffix, "text")
    return f'{head}# {path}\n\n~~~~~~ {{ .{language} linenums="1" }}\n{text}~~~~~~\n'


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Fill in what is generated, and point links at pages of the site."""
    here = page.file.src_uri
    text = markdown
    if here.startswith(f"{SOURCE}/"):
        if not origin_of(here).endswith(".md"):
            return markdown
    else:
        text = PART.sub(lambda match: generated.part(match[1], match[2], link_from(page, files)), markdown)
    return "".join(
        piece if code else LINK.sub(lambda match: moved(match, here), piece) for code, piece in pieces(text)
    )


def link_from(page: Any, files: Any) -> Any:
    """A function of (path in the checkout, line): the address of that line, as a page of the site names it."""

    def link(path: str, line: int | None = None) -> str:
        found = files.get_file_from_path(page_of(path))
        address = posixpath.relpath(found.url, posixpath.dirname(page.url) or ".")
        return f"{address}#__codelineno-0-{line}" if line else address

    return link


def moved(match: re.Match[str], here: str) -> str:
    """A link of the checkout as one between the site's Markdown files."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(origin_of(here)), match[1]))
    if not (ROOT / target).is_file():
        return match[0]
    return posixpath.relpath(page_of(target), posixpath.dirname(here) or ".") + (match[2] or "")


def pieces(text: str) -> Iterator[tuple[bool, str]]:
    """A text cut where blocks of code begin and end; True for code. What stands behind the language is for tests."""
    end = 0
    for block in FENCE.finditer(text):
        yield False, text[end : block.start()]
        first, _, rest = block[0].partition("\n")
        yield True, first if "linenums" in first else " ".join(first.split()[:1])
        yield True, "\n" + rest
        end = block.end()
    yield False, text[end:]


def outside_code(text: str) -> Iterator[str]:
    return (piece for code, piece in pieces(text) if not code)
