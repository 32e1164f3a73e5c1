"""docs/plugins.md: its files are checked and trained as they stand, by path and as an installed package."""

import re
import tomllib

import plugging
import pytest
from places import ROOT

import raysurl
from raysurl.recipe import load_recipe
from raysurl.run import pretrain

PAGE = (ROOT / "docs" / "plugins.md").read_text()
SMALL = (
    *(
        "views.size=16",
        "train.batch_size=20",
        "train.epochs=1",
        "train.schedule.warmup_epochs=0",
        "runtime=local",
    ),
    *(
        "eval.protocols=[knn]",
        "eval.knn_k=[5]",
        "eval.baselines=false",
        "log.tensorboard=false",
        "scale.threads=1",
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files of the page, in a folder where Python finds them."""
    folder = tmp_path_factory.mktemp("page")
    for name, text in re.findall(r"```python file=(\S+)\n(.*?)```", PAGE, re.DOTALL):
        (folder / name).write_text(text)
    project = tomllib.loads(re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)[1])["project"]
    plugging.install(folder, {"name": "page", "version": "1", **project})
    return folder


@pytest.mark.slow
def test_the_page_checks_what_it_shows(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], {})


@pytest.mark.slow
def test_its_files_train_by_path_and_by_name(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    command = re.search(r"method\.name=\S+", PAGE)[0]
    files = (command, "encoder.name=my_encoder.py:Tiny", "data.name=my_data.py:squares")
    run = pretrain(load_recipe([*SMALL, *files, f"output={tmp_path / 'files'}"]))
    monkeypatch.syspath_prepend(folder)
    names = ("method.name=attract", "encoder.name=tiny", "data.name=squares")
    again = pretrain(load_recipe([*SMALL, *names, f"output={tmp_path / 'names'}"]))
    first, second = (raysurl.TrainedRun(where).results for where in (run, again))
    assert {name: first[name] for name in first} == {name: second[name] for name in second}
