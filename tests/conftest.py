"""Fixtures shared by all tests."""

import gc
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts its pool: two ranks share two cores

import hypothesis
import plugging
import pytest
import torch

torch.set_num_threads(1)
# A shell that starts the suite in the background has it ignore Ctrl-C, which its tests are about.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The same cases each time, however busy the machine: a suite that is green stays green until the code changes.
hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("repeatable")


def pytest_configure(config: pytest.Config) -> None:
    if config.pluginmanager.hasplugin("xdist"):
        # the order below is kept
        config.option.loadscopereorder = False


# first: before xdist writes the groups into the tests' names, by which it divides them
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that are given the tests' cluster, or start one of their own, are marked `ray`, and those are slow.

    One process of the suite has all that share the cluster, and so the only one, which costs twenty seconds of a core.
    They come first, then those with a Ray of their own; these and the other tests go to both processes by their file,
    as one or the other is free.
    """
    for item in items:
        if _shares_the_cluster(item):
            item.add_marker(pytest.mark.ray)
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.slow)
        item.add_marker(pytest.mark.xdist_group("ray" if _shares_the_cluster(item) else str(item.path)))
    items.sort(key=lambda item: (not _shares_the_cluster(item), not item.get_closest_marker("ray")))


def _shares_the_cluster(item: pytest.Item) -> bool:
    return "ray_session" in getattr(item, "fixturenames", ())


def pytest_collection_finish() -> None:
    """What has been loaded stays to the end: the collector of garbage need not walk through it again and again, and
    what tests leave is collected less often than after each 700 objects, which took a fourteenth of their time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """A run sets torch's threads for its process, which is that of the next test too."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One local cluster of two CPUs for all tests that need Ray; its token file is private to it."""
    ray = pytest.importorskip("ray")
    from raysurl.scale.joining import for_one_run

    token = tmp_path_factory.mktemp("ray") / "token"
    token.write_text("a" * 64)
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
    # Tasks import the package, the tests' helpers and the tests themselves: they stand in folders by subject.
    here = Path(__file__).parent
    paths = [
        str(path) for path in (here.parent, here, *sorted({file.parent for file in here.rglob("test_*.py")}))
    ]
    given = os.environ.get("PYTHONPATH", "")
    # a package that is installed for workers; other processes that tests start do not have it
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, str(plugging.installed()), given])
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    with for_one_run():
        ray.init(address="local", num_cpus=2, **options)  # local: never a cluster that happens to run here
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, given])
    yield
    ray.shutdown()
