"""What comes from outside the package: by entry points of an installed one, and of a file."""

import importlib
import pickle
import re
import sys

import plugging
import pytest
import torch

import raysurl
from raysurl import evaluate, method, plugins
from raysurl.commands import recipes
from raysurl.data.names import open_samples
from raysurl.encoder import load_encoder
from raysurl.errors import InputError
from raysurl.recipe import continued, load_recipe, recipe_from
from raysurl.run import check, pretrain
from raysurl.shell import settings

SMALL = (
    *(
        "data.name=stripes",
        "data.options={samples: 60}",
        "views.size=8",
        "train.batch_size=20",
        "train.epochs=1",
    ),
    *(
        "train.schedule.warmup_epochs=0",
        "eval.protocols=[knn, spread]",
        "eval.knn_k=[5]",
        "eval.baselines=false",
    ),
    *("eval.every_epochs=0", "log.tensorboard=false", "scale.threads=1", "runtime=local"),
)
METHOD = """
import torch
from raysurl.method import Method, MethodConfig, Output, detached

class Mine(Method):
    class Config(MethodConfig):
        tau: float = 1.0
        def views(self):
            return {"one": "gentle", "two": "one"}

    def __init__(self, config, build):
        super().__init__()
        self.config, self.encoder = config, build.encoder

    def forward(self, batch, snapshot, progress):
        one, two = (self.encoder(batch.views[name]) for name in ("one", "two"))
        loss = (one - two).square().mean() / self.config.tau
        return Output(loss, detached(distance=loss))
"""
ENCODER = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width: int = 4, deep: bool = False):
        super().__init__()
        self.layer = nn.Conv2d(3, width, 3)
    def forward(self, x):
        return self.layer(x).mean((2, 3))

def made(width: int):
    return Net(width)

class Flat(Net):
    def forward(self, x):
        return self.layer(x)

class Wrong(Net):
    dim = 7

class Broken(Net):
    def __init__(self):
        raise OSError("no weights here")

number = 3
"""


@pytest.fixture(autouse=True)
def package(monkeypatch):
    """The package of tests/plugin_package, as an installed one."""
    monkeypatch.syspath_prepend(plugging.installed())


@pytest.fixture
def write(tmp_path):
    def written(text, name="mine.py"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return written


def checked(arguments):
    recipe = load_recipe(arguments)
    train, test = (open_samples(recipe.data, split, seed=0) for split in ("train", "eval"))
    check(recipe, train, test)


def refused(arguments):
    with pytest.raises(InputError) as error:
        checked(["data.name=digits", "views.size=8", "runtime=local", *arguments])
    said = str(error.value)
    assert "\n" not in said
    return said


# -------------------------------------------------------------------- installed packages


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of which method, encoder, data, protocol and policy are the package's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(plugging.installed())
        names = ("method.name=pulled", "encoder.name=patches", "encoder.options={width: 8}", "method.dim=4")
        output = f"output={tmp_path_factory.mktemp('plugged') / 'run'}"
        return pretrain(load_recipe([*SMALL, *names, "views.policies={two: gentle}", output]))


def test_a_package_is_found_by_its_entry_points_and_trains(run):
    assert "pulled" in method.available()
    recipe = raysurl.TrainedRun(run).recipe
    assert (type(recipe.method).__module__, recipe.method.dim) == ("raysurl_example.method", 4)
    assert recipe.view_policies()["two"].crop == (0.8, 1.0)
    results = raysurl.TrainedRun(run).results
    assert {"eval/knn5_top1", "eval/spread"} <= set(results)
    assert '"raysurl-example": "1.2"' in (run / "results.json").read_text()


def test_its_encoder_file_is_loaded_where_the_package_is_and_names_it_where_it_is_not(run, monkeypatch):
    images = torch.randint(0, 255, (3, 8, 8, 3), dtype=torch.uint8).numpy()
    for where in (run, run / "encoder.safetensors"):
        assert raysurl.load(where).embed(images).shape == (3, 8)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(plugging.installed())])
    with pytest.raises(InputError, match=r"encoder\.name=patches is not known"):
        load_encoder(str(run / "encoder.safetensors"))
    with pytest.raises(InputError, match=r"eval\.protocols='spread' is not valid"):
        load_encoder(str(run))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["method.name=puled"], r"method.name='puled' is not a method; .*pulled.*did you mean pulled\?"),
        (["method.name=pulled", "method.dmi=4"], r"unknown recipe key method.dmi; did you mean method.dim\?"),
        (["method.name=pulled", "method.dim=1"], "method.dim=1 is not valid"),
        (
            ["encoder.name=patches", "encoder.options={wdth: 4}"],
            r"encoder.options.wdth; did you mean width\?",
        ),
        (["encoder.name=patches", "encoder.options={width: a}"], "encoder.options.width='a' is not valid"),
        (
            ["encoder.name=patches", "encoder.options={channels: 1}"],
            "unknown recipe key encoder.options.channels",
        ),
        (
            ["encoder.name=patches", "encoder.small_stem=true"],
            "encoder.small_stem is of networks that are built in",
        ),
        (["encoder.name=patchs"], "encoder.name=patchs is not known; did you mean patches"),
        (["data.name=stripe"], r"data.name=stripe is not known; .*did you mean stripes\?"),
        (["data.name=stripes", "data.options={smples: 4}"], r"data.options.smples; did you mean samples\?"),
        (["data.options={samples: 4}"], "data.options are of sources from outside the package"),
        (["eval.protocols=[spred]"], r"choose of knn, .*spread; did you mean spread\?"),
        (
            ["views.policies={student_1: gentl}", "method.name=ressl"],
            r"student_1='gentl' is not a policy.*gentle\?",
        ),
        (["eval.linear_augment=gentl"], "linear_augment=gentl is no policy"),
    ],
)
def test_a_wrong_name_or_setting_is_one_sentence(arguments, said):
    assert re.search(said, refused(arguments))


def other(folder, name="other", version="3", **groups):
    """Another package, installed beside the first."""
    entries = {f"raysurl.{kind}": offered for kind, offered in groups.items()}
    plugging.install(folder, {"name": name, "version": version, "entry-points": entries})
    return folder


def test_names_that_two_have_are_refused(tmp_path, monkeypatch):
    shadows = {"ressl": "raysurl_example.method:Pulled", "pulled": "raysurl_example.method:Pulled"}
    data = {"digits": "raysurl_example.data:stripes"}
    monkeypatch.syspath_prepend(other(tmp_path, methods=shadows, data=data))
    said = refused(["method.name=pulled"])
    assert "offered by other 3 and raysurl-example 1.2" in said
    assert "ressl is built in, and other 3 has the same name" in refused(
        ["method.name=ressl", "data.name=stripes"]
    )
    assert "digits is built in, and other 3 has" in refused(["method.name=simclr", "views.policies={}"])


def test_a_package_that_cannot_be_loaded_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "sick.py").write_text("\nimport nothing_of_that_name\n")
    offered = {"gone": "not_there:A", "empty": "raysurl_example:A", "sick": "sick:A"}
    monkeypatch.syspath_prepend(other(tmp_path, methods=offered))
    assert "method.name=gone of other 3 cannot be loaded: " in refused(["method.name=gone"])
    assert "has no attribute 'A'" in refused(["method.name=empty"])
    said = refused(["method.name=sick"])
    assert f"{tmp_path / 'sick.py'}:2: ModuleNotFoundError: No module named 'nothing_of_that_name'" in said
    monkeypatch.syspath_prepend(other(tmp_path / "b", methods={"a:b": "raysurl_example:A"}))
    assert "other 3 offers 'a:b' among the entry points raysurl.methods" in refused(["method.name=gone"])


def test_entry_points_are_read_for_names_that_are_not_built_in_alone(monkeypatch):
    monkeypatch.setattr(plugins, "_known", None)
    load_recipe(["data.name=digits", "encoder.name=convnet", "eval.linear_augment=weak"])
    with pytest.raises(TypeError):
        load_recipe(["data.name=digits", "eval.linear_augment=gentle"])


# -------------------------------------------------------------------- files


def test_a_file_gives_a_method_and_an_encoder_and_its_text_is_kept(write, tmp_path, monkeypatch):
    write(METHOD)
    write(ENCODER, "net.py")
    monkeypatch.chdir(tmp_path)
    settings = (*SMALL, "method.name=./mine.py:Mine", "method.tau=2", "encoder.name=net.py:Net", "output=run")
    recipe = load_recipe([*settings, "encoder.options={width: 6}"])
    assert recipe.method.name == f"{tmp_path}/mine.py:Mine"
    assert set(recipe.plugins) == {f"{tmp_path}/mine.py", f"{tmp_path}/net.py"}
    assert pickle.loads(pickle.dumps(recipe)) == recipe == recipe_from(recipe.model_dump(mode="json"))
    run = pretrain(recipe)
    assert raysurl.TrainedRun(run).recipe.method.tau == 2
    encoder = run / "encoder.safetensors"
    assert load_encoder(str(encoder)).encoder.dim == 6
    # another text of the encoder is refused by whoever reads the file, and one of the method by the run
    write(ENCODER + "\n# changed", "net.py")
    for where in (encoder, run):
        with pytest.raises(InputError, match=r"net\.py has changed since the run began \(SHA-256"):
            load_encoder(str(where))
    assert load_encoder(str(encoder), {"plugins": ""}).encoder.dim == 6
    write(ENCODER, "net.py")
    write(METHOD + "\n# changed")
    with pytest.raises(InputError, match=r"mine\.py has changed since the run began"):
        continued({"output": str(run), "resume": True})
    assert load_encoder(str(encoder)).encoder.dim == 6
    (tmp_path / "net.py").unlink()
    with pytest.raises(InputError, match=r"encoder\.name=.*net\.py:Net: .*no such file on"):
        load_encoder(str(encoder))


def test_what_a_file_defines_is_unpickled_from_its_own_text_alone(write):
    path = write(METHOD)
    config = load_recipe(["data.name=digits", f"method.name={path}:Mine", "method.tau=3"]).method
    pickled, module = pickle.dumps(config), type(config).__module__
    del sys.modules[module]  # as in another process
    assert pickle.loads(pickled).tau == 3
    path.write_text(METHOD + "# changed")
    # this process still has the text that its recipe was read with, until a recipe is read again
    assert method.load(f"{path}:Mine").__module__ == module
    assert load_recipe(["data.name=digits", f"method.name={path}:Mine"]).method.tau == 1
    assert method.load(f"{path}:Mine").__module__ != module
    del sys.modules[module]
    with pytest.raises(ImportError, match="has changed since the run began"):
        pickle.loads(pickled)
    path.unlink()
    with pytest.raises(ImportError, match="is not there on"):
        pickle.loads(pickled)


@pytest.mark.parametrize(
    ("text", "inside", "said"),
    [
        (None, ":Mine", "there is no such file"),
        (METHOD, "", "names a file alone; name what it holds too, .*mine.py:Mine"),
        (METHOD, ":Min", r"has no Min; did you mean Mine\?"),
        (METHOD, ":my method", "'my method' is no name in Python"),
        (METHOD, ":torch", "is a module, which is not a raysurl.method.Method"),
        (METHOD, ":MethodConfig", "is the class MethodConfig, which is not a raysurl.method.Method"),
        (
            METHOD.replace("Config(MethodConfig)", "Config"),
            ":Mine",
            "its Config is not a raysurl.method.MethodConfig",
        ),
        ("\nimport nothing_of_that_name", ":Mine", "mine.py:2: ModuleNotFoundError: No module named"),
        ("a = 1\n\nb = a / 0\n", ":Mine", "mine.py:3: ZeroDivisionError: division by zero"),
        ("def f(:\n", ":Mine", "mine.py:1: SyntaxError: "),
        ("import sys\nsys.exit('used as a script')", ":Mine", "mine.py:2: SystemExit: used as a script"),
        ("import json\njson.loads('{')", ":Mine", "mine.py:2: JSONDecodeError"),
        ("\0", ":Mine", "cannot be loaded: .*null"),
        (METHOD.replace("gentle", "gentl"), ":Mine", "'gentl' is not a policy"),
    ],
)
def test_a_file_that_gives_no_method_is_one_sentence(write, tmp_path, text, inside, said):
    if text is not None:
        write(text)
    assert re.search(said, refused([f"method.name={tmp_path}/mine.py{inside}"]))


@pytest.mark.parametrize(
    ("inside", "options", "said"),
    [
        ("made", "{}", "encoder.options.width is missing"),
        ("Net", "{deep: 3}", "encoder.options.deep=3 is not valid"),
        ("Flat", "{}", r"gives torch.float32 \(2, 4, 6, 6\) for two images of 8 pixels"),
        ("Wrong", "{}", "says dim=7 and gives vectors of 4 values"),
        ("Broken", "{}", r"cannot be made: .*net.py:\d+: OSError: no weights here"),
        ("number", "{}", "is a int; name a subclass of nn.Module"),
        ("Net", "{width: 4}\nencoder.sobel=true", "sees images of three channels alone"),
    ],
)
def test_a_file_that_gives_no_encoder_is_one_sentence(write, inside, options, said):
    path = write(ENCODER, "net.py")
    arguments = f"encoder.name={path}:{inside}\nencoder.options={options}".split("\n")
    assert re.search(said, refused(["method.name=simclr", *arguments]))


def test_a_data_source_and_a_protocol_of_a_file_and_what_is_wrong_with_them(write):
    package = plugging.PACKAGE / "raysurl_example"
    wrong = "\ndef short(data, split):\n    import dataclasses\n    found = stripes(data, split)\n"
    wrong += "    return dataclasses.replace(found, labels=found.labels[:-1])\n"
    wrong += "\ndef list_of(data, split):\n    return []\n\ndef alone(data):\n    return None\n"
    wrong += "\ndef lost(data, split):\n    return open('/not/there')\n"
    data = write((package / "data.py").read_text() + wrong, "data.py")
    assert len(open_samples(load_recipe([f"data.name={data}:stripes"]).data, "eval", 0)) == 24
    for inside, said in {
        "short": "lists 48 samples and has 47 labels; give one for each",
        "list_of": "gives a list, not raysurl.data.names.Samples",
        "alone": "takes 1 parameters; it must take (data, split)",
        "lost": "FileNotFoundError: [Errno 2] No such file or directory: '/not/there'",
    }.items():
        assert said in refused([f"data.name={data}:{inside}", "method.name=simclr"])
    text = (package / "protocol.py").read_text()
    for name in (write(text, "protocol.py"), f"{write(text, 'protocol.py')}:run"):
        assert evaluate.needs(
            *load_recipe(["data.name=digits", f"eval.protocols=[{name}]"]).eval.protocols
        ) == {"labels"}
    path = write(text.replace("NEEDS", "NEEDED"), "protocol.py")
    assert "has no NEEDS; a protocol has NEEDS, OF_PIXELS" in refused([f"eval.protocols=[{path}]"])


def test_a_policy_of_a_file_stands_in_the_recipe_as_its_settings(write):
    path = write("A = {'crop': (0.5, 1.0)}\nB = {'crops': 1}\n", "policy.py")
    recipe = load_recipe(["recipe=ressl/digits", f"views.policies.student_1={path}:A"])
    assert recipe.views.policies["student_1"].crop == (0.5, 1.0)
    assert recipe.plugins is None
    said = refused(["method.name=ressl", f"views.policies.student_1={path}:B"])
    assert "is no raysurl.views.Policy, nor a mapping of its settings: crops: Extra inputs" in said


def test_the_module_of_a_file_is_found_by_its_name_alone(write):
    path = write("x = 1\n")
    digest = plugins.digest(path, "")
    name = f"raysurl.plugins.file_{str(path).encode().hex()}_{digest}"
    assert importlib.import_module(name).x == 1
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("raysurl.plugins.something_else")


# -------------------------------------------------------------------- what a person is shown


def test_help_completion_and_lists_show_what_is_plugged_in(write, capsys):
    recipes.main(["example"])
    listed = capsys.readouterr().out
    for name in ("pulled", "patches", "stripes", "spread", "gentle"):
        assert re.search(rf"{name} +of raysurl-example 1\.2", listed)
    path = write(METHOD)
    for name, key in (("pulled", "method.queue_size"), (f"{path}:Mine", "method.tau")):
        taken = {s.key: s for s in settings.taken("pretrain", settings.method_of([f"method.name={name}"]))}
        assert key in taken
        assert "pulled" in taken["method.name"].choices
    assert taken["method.tau"].default == "1.0"
