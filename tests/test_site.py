"""The documentation as a site: built without network, its links lead somewhere, and nothing in it is from outside."""

import importlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from places import ROOT

import raysurl.curation
import raysurl.testing
from raysurl.commands.results import BEGIN, END, table
from raysurl.shell import settings

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# in a process of its own: whatever asks for a host or a connection fails
BUILD = """
import socket, sys
def refuse(*a, **k):
    raise SystemExit(f"the build asks for {a}")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
from mkdocs.commands.build import build
from mkdocs.config import load_config
build(load_config("mkdocs.yml", site_dir=sys.argv[1], strict=True))
print(sorted({"torch", "ray", "numpy"} & set(sys.modules)))
"""


class Read(HTMLParser):
    """What a page loads, what it links to, and the names that links may lead to."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.links, self.ids = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = {name: value or "" for name, value in attributes}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(given.get("href", ""))
        self.loads += [given[name] for name in ("src", "data", "poster", "srcset") if name in given]
        self.loads += re.findall(r"url\(([^)]*)\)", given.get("style", ""))


def from_outside(addresses):
    return [a for a in addresses if re.match(r"\s*['\"]?(https?:|wss?:|ftp:|//)", a)]


def loaded_by_style(text):
    return re.findall(r"url\(([^)]*)\)", text) + re.findall(r"@import\s+([^;]+)", text)


# -------------------------------------------------------------------- without a build


@pytest.fixture(scope="module")
def generated():
    sys.path.insert(0, str(ROOT / "docs" / "building"))
    try:
        return importlib.import_module("generated")
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize("method", settings.methods())
def test_each_place_of_an_equation_is_a_line_of_the_code(method, generated):
    """Names in the second column of a method's head, dotted or in backticks, are places; the line holds the name."""
    module = generated.module_of(method)
    columns = [place for lines in generated.blocks(method)[0] for _, place in generated.rows(lines)]
    config = {setting.key.removeprefix("method.") for setting in settings.of_method(method)}
    names = [match[1] or match[2] for text in columns for match in generated.NAME.finditer(text)]
    assert names or method == "supervised"
    for name in names:
        if name.startswith("F.") or name in config:  # torch's own, and settings
            continue
        found = generated.place(name, module)
        assert found, f"{module}: {name} is nowhere"
        if found[1]:
            line = found[0].read_text().splitlines()[found[1] - 1]
            assert re.search(rf"\b{name.rpartition('.')[2]}\b", line), f"{name}: {line}"


def test_a_place_that_is_not_there_is_noticed(generated):
    module = generated.module_of("ressl")
    assert generated.place("functional.relation_loss", module)[0].name == "functional.py"
    assert generated.place("functional.no_such_loss", module) is None
    assert generated.place("teacher_logits_of_before", module) is None


def test_the_page_of_results_is_made_of_what_is_kept(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "results.md").read_text()
    assert text.partition(BEGIN + "\n")[2].partition(END)[0] == table(Path("results"))


def slug(heading):
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading).lower()
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", plain).strip())


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_pages_link_to_what_is_there_on_a_code_host_too(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)\s#]*)(#[^)\s]*)?\)", text):
        if target.startswith(("http:", "https:")):
            continue
        found = (page.parent / target).resolve() if target else page
        assert found.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
            assert anchor[1:] in map(slug, headings), f"{target}{anchor}"


def test_readme_is_one_screen():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 62


# -------------------------------------------------------------------- the site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Its folder, and what was printed, built in a process without network."""
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site") / "site"
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)], capture_output=True, text=True, cwd=ROOT, env=environment,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout


@pytest.fixture(scope="module")
def read(site):
    return {path: Read(path.read_text()) for path in sorted(site[0].rglob("*.html"))}


@pytest.mark.slow
def test_it_is_built_by_reading_alone(site):
    assert site[1].splitlines()[-1] == "[]"  # no torch, no Ray: signatures are read, not imported
    pages = {"index": raysurl, "curation": raysurl.curation, "testing": raysurl.testing}
    for page, package in pages.items():
        text = (site[0] / "api" / f"{page}.html").read_text()
        for name in package.__all__:
            assert re.search(rf'<h[23] id="raysurl\.(\w+\.)*{name}"', text), name


@pytest.mark.slow
def test_every_link_and_anchor_leads_somewhere(site, read):
    assert len(read) > 40
    for page, found in read.items():
        for link in (*found.links, *found.loads):
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "data", "mailto") or page.name == "404.html":
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            assert target.is_file(), f"{page.relative_to(site[0])}: {link}"
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in read[target].ids, f"{page.relative_to(site[0])}: {link}"


@pytest.mark.slow
def test_nothing_is_loaded_from_outside(site, read):
    for page, found in read.items():
        assert not from_outside(found.loads), page
        assert 'class="mermaid"' not in page.read_text()  # the theme would fetch what draws it
    for style in site[0].rglob("*.css"):
        assert not from_outside(loaded_by_style(style.read_text())), style
    # what the theme's script could fetch: diagrams, of which there are none, and what browsers have had since 2020
    known = {"https://unpkg.com/mermaid@11/dist/mermaid.min.js", "https://unpkg.com/resize-observer-polyfill"}
    fetched = {
        a for s in site[0].rglob("bundle*.js") for a in re.findall(r"https://unpkg[^\"']*", s.read_text())
    }
    assert fetched <= known


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://a.b/c.js"></script>',
        '<link rel="stylesheet" href="//a.b/c.css">',
        '<link rel="preconnect" href="https://a.b">',
        '<img src="http://a.b/c.png">',
        '<p style="background: url(https://a.b/c)">',
    ],
)
def test_what_is_planted_from_outside_is_found(text):
    assert from_outside(Read(text).loads)
    assert (
        not from_outside(Read(text.replace("https://a.b/", "").replace("http://a.b/", "")).loads)
        or "//" in text
    )
    assert from_outside(loaded_by_style("a { background: url('https://a.b/c') }"))


@pytest.mark.slow
def test_equations_lead_to_their_line(site):
    text = (site[0] / "methods" / "ressl.html").read_text()
    address, line = re.search(
        r'href="(\S*functional\.py\.html)#__codelineno-0-(\d+)"><code>functional\.relation_loss', text
    ).groups()
    source = (site[0] / "methods" / address).resolve().read_text()
    shown = source.partition(f'id="__codelineno-0-{line}"')[2].partition("\n")[0]
    assert "relation_loss" in re.sub("<[^>]*>", "", shown)
