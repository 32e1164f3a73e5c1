"""The pages of a run, of a sweep and of the papers' tables in a browser: drawn, used by script, without a line on the
console or a request."""

import importlib.util

import pytest
import small_run
from places import ROOT

pytest.importorskip("playwright.sync_api")
pytest.importorskip("optuna")

from raysurl.recipe import dump
from raysurl.report.charts import Series, line_chart
from raysurl.report.page import document
from raysurl.sweep import directory as sweep_directory
from raysurl.sweep.ablations import cards
from raysurl.sweep.ablations_page import html
from raysurl.sweep.plan import SweepRequest, make_plan
from raysurl.sweep.report import write_report
from raysurl.sweep.space import space_from
from raysurl.sweep.trial import Outcome, write_outcome

_spec = importlib.util.spec_from_file_location("screenshots", ROOT / "docs" / "screenshots.py")
screenshots = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(screenshots)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(screenshots.browser_path() is None, reason="there is no Chromium here"),
]


@pytest.fixture(scope="module")
def opened():
    with screenshots.browser() as found:
        yield found


@pytest.fixture(scope="module")
def run_page(tmp_path_factory):
    return small_run.mapped_run(tmp_path_factory.mktemp("browser") / "run") / "report.html"


@pytest.fixture(scope="module")
def sweep_page(tmp_path_factory):
    path = tmp_path_factory.mktemp("browser") / "sweep"
    axes = {"method.tau_student": [0.1, 0.2], "method.tau_teacher": [0.03, 0.08]}
    space = space_from({"name": "s", "title": "S", "recipe": "ressl/digits", "axes": axes, "seeds": [0, 1],
                        "objectives": {"eval/knn_top1": "max"}})  # fmt: skip
    plan = make_plan(SweepRequest(space, "full"))
    with sweep_directory.claim(path, plan):
        for number, trial in enumerate(plan.trials):
            sweep_directory.remember(path, trial)
            where = sweep_directory.trial_directory(path, trial)
            (where / "recipe.yaml").write_text(dump(trial.recipe))
            (where / "report.html").touch()
            write_outcome(where, Outcome("finished", "", {"eval/knn_top1": 90.0 - number}, 1.0 + number))
    write_report(path)
    return path / "report.html"


@pytest.mark.parametrize(("width", "scheme"), [(1400, "dark"), (390, "light")])
def test_the_page_of_a_run(opened, run_page, width, scheme):
    with screenshots.page_of(opened, run_page, width, scheme) as page:
        assert page.locator(".map").count() == 1
        screenshots.use(page, width, scheme)


def test_the_page_of_a_sweep(opened, sweep_page):
    with screenshots.page_of(opened, sweep_page, 390, "light") as page:
        assert page.locator("table[data-sort]").count() == 1
        screenshots.use(page, 390, "light")


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (390, "dark")])
def test_the_page_of_the_papers_tables(opened, tmp_path, width, scheme):
    """Of one table that was run, as bars, and some that were not, as lines."""
    found = [card for card in cards(ROOT / "results" / "sweeps", None) if card.ran or "_fig5" in card.name]
    path = tmp_path / "ablations.html"
    path.write_text(html(found[-8:]))
    with screenshots.page_of(opened, path, width, scheme) as page:
        assert page.locator(".ablation").count() == 8
        screenshots.use(page, width, scheme)


def test_a_chart_settles_on_its_size(opened, tmp_path):
    """Where labels of one axis changed the room of the other, these were drawn until Plotly gave up."""
    points = {
        "some name 0": [(6000, -2.3363), (7000, 0.89522)],
        "some name 1": [(3000, -0.33061), (7000, -0.46384)],
        "some name 2": [(20, 0.82917), (50, -0.73329)],
        "some name some name some name 3": [(2000, 0.26602), (5000, -0.72243)],
        "some name some name 4": [(1, -2.0385), (4, 1.6369)],
        "some name 5": [(50, -0.40793), (70, -1.5526)],
    }
    series = [Series.of(name, found) for name, found in points.items()]
    chart = line_chart("T", series, x_name="epoch", unit=" images/s", log=True)
    boxes = "".join(f'<div style="width:{width}px">{chart}</div>' for width in range(200, 300))
    path = tmp_path / "report.html"
    path.write_text(document("T", boxes))
    with screenshots.page_of(opened, path, 1400, "light"):
        pass


def test_a_request_and_a_line_on_the_console_are_found(opened, tmp_path):
    path = tmp_path / "report.html"
    for body, said in (
        ('<img src="http://127.0.0.1:9/x.png">', "request"),
        ("<script>console.log('a word')</script>", "a word"),
        ("<script>nothing.here()</script>", "error"),
        ('<div style="width:2000px">wide</div>', "pixels wide"),
    ):
        path.write_text(f"<!doctype html><html data-ready><body>{body}</body></html>")
        with pytest.raises(AssertionError, match=said), screenshots.page_of(opened, path, 1400, "light"):
            pass
