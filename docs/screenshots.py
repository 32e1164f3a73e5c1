"""Opens the pages of a run and of a sweep in headless Chromium, uses them, and writes the pictures that the docs show.

    python docs/screenshots.py run=runs/digits sweep=sweeps/small to=docs

Each page is opened at 1400 and 390 pixels, light and dark. A line on the console, a request, a page wider than the
screen, a chart that is not drawn, a map or a table that does not do what it should: each is an error. Needs
`pip install playwright` and a Chromium of the system; no browser is downloaded.
"""

from __future__ import annotations

import io
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

SIZES = {1400: 900, 390: 844}  # width -> height
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SOFTWARE = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")  # WebGL without a graphics card
COLOURS = 128  # of a picture, so that it stays small
PATIENCE = 120_000  # milliseconds that a page may take on a busy machine

# The point of the map that is nearest to a place (shares of width and height): where it is on the page.
NEAREST = """([left, top]) => {
  const canvas = document.querySelector('.map .canvas'), layout = canvas._fullLayout;
  const box = canvas.getBoundingClientRect(), at = (axis, value) => axis._offset + axis.d2p(value);
  let found = null, least = Infinity;
  for (const trace of canvas.data) for (let i = 0; i < (trace.customdata || []).length; i++) {
    const x = at(layout.xaxis, trace.x[i]), y = at(layout.yaxis, trace.y[i]);
    const far = Math.hypot(x - box.width * left, y - box.height * top);
    if (far < least) { least = far; found = [box.x + x, box.y + y]; }
  }
  return found;
}"""
RANGE = "() => document.querySelector('.map .canvas')._fullLayout.xaxis.range.slice()"
UNDRAWN = (
    "() => [...document.querySelectorAll('.figure')].filter((f) => !f.querySelector('.main-svg')).length"
)


def browser_path() -> str | None:
    """Where a Chromium is, None where there is none."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


@contextmanager
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser_path(), args=[*SOFTWARE])
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def page_of(opened: Any, path: Path, width: int, scheme: str) -> Iterator[Any]:
    """A page, drawn. Raises AssertionError for a line on its console, a request, and what is wider than the screen."""
    phone = width < 500
    context = opened.new_context(
        viewport={"width": width, "height": SIZES[width]},
        color_scheme=scheme,
        has_touch=phone,
        is_mobile=phone,
    )
    page, said = context.new_page(), []
    address = path.resolve().as_uri()
    page.on("console", lambda line: said.append(f"{line.type}: {line.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on(
        "request",
        lambda request: (
            None
            if request.url == address or request.url.startswith(("data:", "blob:"))
            else said.append(f"request: {request.url[:200]}")
        ),
    )
    page.goto(address)
    page.wait_for_selector("html[data-ready]", state="attached", timeout=PATIENCE)
    assert page.evaluate(UNDRAWN) == 0, f"{path}: a chart was not drawn"
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width, f"{path} is {wide} pixels wide on a screen of {width}"
    yield page
    assert not said, f"{path} at {width} px, {scheme}: {said}"
    context.close()


def until(look: Callable[[], bool]) -> None:
    """Waits until it holds. In the page itself this could not be waited for, whose policy forbids text to be run."""
    end = time.monotonic() + PATIENCE / 1000
    while not look():
        assert time.monotonic() < end, "a page does not do what it should"
        time.sleep(0.05)


def use_map(page: Any, *, touch: bool) -> None:
    """Points at a point or touches it, looks at its neighbours, zooms in and out, and tries all colours."""
    page.evaluate("document.querySelector('.map').scrollIntoView()")
    place, tip = page.evaluate(NEAREST, [0.45, 0.5]), page.locator(".map-tip")
    if touch:
        page.touchscreen.tap(*place)
    else:
        page.mouse.move(place[0] - 2, place[1])
        page.mouse.move(*place)
        tip.wait_for(state="visible", timeout=PATIENCE)
        assert page.locator(".map-tip canvas").count() == 1
        page.mouse.click(*place)
    tip.wait_for(state="visible", timeout=PATIENCE)
    near = page.locator(".near-row figure")
    near.nth(1).wait_for(timeout=PATIENCE)
    assert near.count() == page.evaluate("page.map.about.each") + 1
    before = near.nth(0).get_attribute("title")
    near.nth(1).click()
    assert near.nth(0).get_attribute("title") != before or page.evaluate("page.map.about.names[0]") == ""
    first = page.evaluate(RANGE)
    if not touch:
        page.mouse.move(*place)
        page.mouse.wheel(0, -500)
        until(lambda: page.evaluate(RANGE)[0] > first[0])
    page.locator(".map button").click()
    until(lambda: abs(page.evaluate(RANGE)[0] - first[0]) < 0.05 * abs(first[1] - first[0]))
    names = page.locator(".map option").all_inner_texts()
    for name in [*names, names[0]]:
        page.locator(".map select").select_option(label=name)
        drawn = "() => page.map.canvas.data.reduce((sum, t) => sum + (t.customdata || []).length, 0)"
        assert page.evaluate(drawn) == page.evaluate("page.map.about.count")


def use_tables(page: Any, *, phone: bool) -> None:
    """Sorts what can be sorted both ways; on a phone the cue of a wide table goes where it ends."""
    for table in page.locator("table[data-sort]").all():
        for column, head in enumerate(table.locator("th button").all()):
            texts = [
                _texts(table, column) for _ in range(2) if head.evaluate("button => button.click()") is None
            ]
            assert sorted(texts[0]) == sorted(texts[1])
            assert texts[0] == texts[1] if len(set(texts[0])) == 1 else texts[0] != texts[1]
        for link in table.locator("a").all():
            there = page.evaluate("link => new URL(link, location).pathname", link.get_attribute("href"))
            assert Path(there).is_file(), there
    boxes = page.locator(".scroll.more")
    if phone and boxes.count():
        box = boxes.first.element_handle()
        box.evaluate("box => box.scrollTo(box.scrollWidth, 0)")
        until(lambda: not box.evaluate("box => box.classList.contains('more')"))


def _texts(table: Any, column: int) -> list[str]:
    return table.evaluate("(t, c) => [...t.tBodies[0].rows].map((row) => row.cells[c].textContent)", column)


def change_scheme(page: Any, scheme: str) -> None:
    """The charts follow the page when it becomes light or dark."""
    colour = "() => document.querySelector('.canvas')._fullLayout.font.color"
    before = page.evaluate(colour)
    page.emulate_media(color_scheme="light" if scheme == "dark" else "dark")
    until(lambda: page.evaluate(colour) != before)
    page.emulate_media(color_scheme=scheme)
    until(lambda: page.evaluate(colour) == before)


def use(page: Any, width: int, scheme: str) -> None:
    """All that a person can do on a page of either kind."""
    if page.locator(".map").count():
        use_map(page, touch=width < 500)
    use_tables(page, phone=width < 500)
    change_scheme(page, scheme)


def picture(page: Any, path: Path, **given: Any) -> None:
    """A screenshot of few colours."""
    with Image.open(io.BytesIO(page.screenshot(**given))) as image:
        small = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        small.save(path, optimize=True)


def pictures_of_run(page: Any, width: int, scheme: str, to: Path) -> None:
    if (width, scheme) == (1400, "light"):
        page.evaluate("scrollTo(0, 0)")
        picture(page, to / "report.png")
    if page.locator(".map").count() and (width, scheme) in ((1400, "dark"), (390, "light")):
        page.evaluate("document.querySelector('.map').scrollIntoView()")
        place = page.evaluate(NEAREST, [0.35, 0.45])
        if width < 500:
            page.touchscreen.tap(*place)
        else:
            page.mouse.move(*place)
            page.mouse.click(*place)
        page.locator(".near-row figure").nth(1).wait_for(timeout=PATIENCE)
        picture(page, to / ("report_map.png" if width > 500 else "report_phone.png"))


def pictures_of_sweep(page: Any, width: int, scheme: str, to: Path) -> None:
    if (width, scheme) == (1400, "light"):
        page.evaluate("[...document.querySelectorAll('h2')].at(-1).scrollIntoView()")
        picture(page, to / "sweep.png")


def main(arguments: list[str]) -> None:
    given = dict(argument.split("=", 1) for argument in arguments)
    to = Path(given.get("to", "docs"))
    pages = {"run": pictures_of_run, "sweep": pictures_of_sweep}
    if browser_path() is None:
        sys.exit(f"no browser is here; install one of {', '.join(BROWSERS)}")
    with browser() as opened:
        for kind, taken in pages.items():
            for width in SIZES if kind in given else ():
                for scheme in ("light", "dark"):
                    with page_of(opened, Path(given[kind]) / "report.html", width, scheme) as page:
                        use(page, width, scheme)
                        taken(page, width, scheme, to)
                        print(f"{given[kind]}: {width} px, {scheme}: fine")


if __name__ == "__main__":
    main(sys.argv[1:])
