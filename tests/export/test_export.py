"""Exports against the encoder on 100 images, read by the programs that they are for; what cannot be is one sentence."""

import ast
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from places import ROOT
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_run import finished_run

import raysurl
from raysurl import cli
from raysurl.commands import export as command
from raysurl.embed import plain_images
from raysurl.encoder import encoder_of, write_encoder
from raysurl.errors import InputError, RunError, StorageError
from raysurl.export import asked, graphs, huggingface, modeling, timm_form, writing
from raysurl.export.asked import asked_for
from raysurl.nets.encoders import HEADS
from raysurl.recipe import recipe_from

CLOSE = 1e-4
COUNT = 100


def images_of(size, count=COUNT):
    """(N, H, W, 3) bytes, wider than high."""
    return np.random.default_rng(0).integers(0, 256, (count, size + 4, size + 9, 3), np.uint8)


def views_of(model, images):
    given = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return plain_images(model.recipe, given, torch.device("cpu"))


def stored(folder, size=16, norm="sync", **encoder):
    """An encoder file with random weights and statistics."""
    recipe = recipe_from({"encoder": encoder, "views": {"size": size}, "norm": norm})
    network = encoder_of(recipe)
    draws = torch.Generator().manual_seed(1)
    for name, value in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            value.copy_(torch.rand(value.shape, generator=draws) + 0.5)
    folder.mkdir(parents=True, exist_ok=True)
    return write_encoder(folder, network, recipe)


@pytest.fixture(scope="module")
def small():
    """The encoder of a finished run, 100 images, their views and embeddings."""
    model = raysurl.load(finished_run())
    images = images_of(8)
    return model, images, views_of(model, images), model.embed(images)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resnet")
    model = raysurl.load(stored(folder / "resnet", name="resnet18"))
    images = images_of(16)
    return model, images, model.embed(images), folder


def close(found, expected):
    assert found.shape == expected.shape
    assert np.abs(np.asarray(found) - expected).max() <= CLOSE * max(1.0, np.abs(expected).max())


# -------------------------------------------------------------------- graphs


def check_graph(target, path, given, expected):
    """Read by its own program, in batches of one, of all, and of what is left over."""
    if target == "onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(
            path, providers=["CPUExecutionProvider"]
        )
        about = session.get_modelmeta().custom_metadata_map["raysurl"]
        assert [i.name for i in session.get_inputs()] == ["images"]
        (out,) = session.get_outputs()
        assert (out.name, out.shape[1:]) == ("embeddings", [expected.shape[1]])

        def network(x):
            return session.run(None, {"images": x.numpy()})[0]

    elif target == "torchscript":
        extra = {"raysurl": ""}
        network, about = torch.jit.load(path, _extra_files=extra), extra["raysurl"]
    else:
        extra = {"raysurl": ""}
        network, about = torch.export.load(path, extra_files=extra).module(), extra["raysurl"]
    with torch.no_grad():
        found = [np.asarray(network(part)) for part in (given[:1], given[1:38], given[38:])]
    close(np.concatenate(found), expected)
    return json.loads(about)


@pytest.mark.parametrize("target", ["torchscript", pytest.param("torch.export", marks=pytest.mark.slow)])
def test_a_graph_of_torch_computes_what_the_encoder_does(target, small, tmp_path):
    model, _, views, expected = small
    path = model.export(target, tmp_path / "out")[target]
    about = check_graph(target, path, views, expected)
    assert (about["takes"], about["method"]["name"], about["encoder"]["name"]) == (
        "views",
        "ressl",
        "convnet",
    )
    assert about["preprocessing"]["mean"] == list(model.recipe.views.mean)


@pytest.mark.slow
def test_onnx_computes_what_the_encoder_does(tmp_path):
    pytest.importorskip("onnxscript")
    model = raysurl.load(stored(tmp_path / "pair", name="convnet", channels=[4, 8], sobel=True))
    images = images_of(16)
    path = model.export("onnx", tmp_path / "out")["onnx"]
    about = check_graph("onnx", path, views_of(model, images), model.embed(images))
    assert about["preprocessing"]["resize"] == 16


def test_a_graph_of_pixels_normalises_them_itself(small, tmp_path):
    model, _, views, expected = small
    v = model.recipe.views
    pixels = views * torch.tensor(v.std).view(3, 1, 1) + torch.tensor(v.mean).view(3, 1, 1)
    path = model.export("torchscript", tmp_path / "out", takes="pixels")["torchscript"]
    assert check_graph("torchscript", path, pixels, expected)["takes"] == "pixels"


def test_vectors_are_taken_as_they_are(tmp_path):
    model = raysurl.load(stored(tmp_path / "mlp", name="mlp", inputs=6, widths=[5, 3], dropout=0.2))
    vectors = np.random.default_rng(0).standard_normal((COUNT, 6)).astype(np.float32)
    path = model.export("torchscript", tmp_path / "out")["torchscript"]
    about = check_graph("torchscript", path, torch.from_numpy(vectors), model.embed(vectors))
    assert about["preprocessing"] == {"input": "vectors", "shape": [6], "of_images": None}
    with pytest.raises(InputError, match="takes=pixels is of images"):
        model.export("torchscript", tmp_path / "x", takes="pixels")
    with pytest.raises(InputError, match=r"timm has no model that computes what .*=mlp does"):
        model.export("timm", tmp_path / "x")
    assert not (tmp_path / "x").exists()


# -------------------------------------------------------------------- timm


@pytest.mark.slow
def test_timm_reads_its_folder_with_and_without_a_new_head(resnet, tmp_path):
    timm = pytest.importorskip("timm")
    model, images, expected, _ = resnet
    state = torch.random.get_rng_state()
    folder = model.export("timm", tmp_path / "out")["timm"]
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = str(folder / "model.safetensors")
    read = timm.create_model("resnet18", checkpoint_path=weights, num_classes=0).eval()
    local = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    views = views_of(model, images)
    with torch.no_grad():
        close(read(views), expected)
        close(local(views), expected)
    config = timm.data.resolve_model_data_config(local)
    transform = timm.data.create_transform(**config, is_training=False)
    # Pillow rounds a resized image to bytes
    prepared = torch.stack([transform(Image.fromarray(image)) for image in images[:20]])
    assert (prepared - views[:20]).abs().max() < 1.5 / 255 / min(config["std"])
    headed = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7).eval()
    assert headed(views[:1]).shape == (1, 7)


def torchvision_names():
    from torchvision import models

    return [name for name in models.list_models(models) if name.startswith(tuple(HEADS))]


@pytest.mark.slow
def test_every_network_of_torchvision_is_timms_or_refused():
    """By name; outputs are compared below, and at each export."""
    timm = pytest.importorskip("timm")
    refused = {"alexnet", "mobilenet_v3_large", "mobilenet_v3_small"}
    refused |= {name for name in torchvision_names() if name.startswith("shufflenet")}
    for name in torchvision_names():
        form = timm_form.known_form(recipe_from({"encoder": {"name": name}}))
        assert (form is None) == (name in refused), name
        assert form is None or form.name in timm.list_models()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2", "regnet_y_400mf"])
def test_other_names_of_timm_have_equal_outputs(name, tmp_path):
    timm = pytest.importorskip("timm")
    model = raysurl.load(stored(tmp_path / name, name=name))
    folder = model.export("timm", tmp_path / "out")["timm"]
    images = images_of(16)
    network = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    with torch.no_grad():
        close(network(views_of(model, images)), model.embed(images))


VIT = {
    "name": "timm:vit_tiny_patch16_224",
    "options": {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2},
}
NEXT = {"name": "timm:convnext_atto", "options": {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 16]}}
BASIC = {"name": "timm:resnet18", "small_stem": True, "options": {"channels": [8, 8, 8, 8]}}


@pytest.mark.slow
@pytest.mark.parametrize(
    "encoder", [VIT, NEXT, BASIC, {**VIT, "sobel": True}], ids=["vit", "convnext", "small stem", "two trunks"]
)
def test_an_encoder_of_timm_is_exported_under_its_own_name(encoder, tmp_path):
    timm = pytest.importorskip("timm")
    recipe = recipe_from({"encoder": encoder, "views": {"size": 32}})
    network = encoder_of(recipe).eval()
    (tmp_path / "run").mkdir()
    file = write_encoder(tmp_path / "run", network, recipe)
    plain = "small_stem" in encoder or "sobel" in encoder
    # of the graphs, the one that takes seconds to make is made of the network that is hardest to trace
    graphs = "torchscript,onnx" if encoder is VIT else "torchscript"
    targets = f"{graphs},huggingface" if plain else f"{graphs},huggingface,timm"
    forms = writing.write(file, recipe, network, None, asked.asked_for(targets, str(tmp_path / "out")))
    assert {form.target for form in forms} == set(targets.split(","))
    if not plain:
        read = timm.create_model(
            f"local-dir:{tmp_path / 'out' / 'huggingface'}", pretrained=True, num_classes=0
        )
        x = torch.rand(5, 3, 32, 32)
        with torch.no_grad():
            close(read.eval()(x), network(x).numpy())


# -------------------------------------------------------------------- Hugging Face


def test_an_encoder_from_outside_is_a_graph_and_no_code(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n    dim = 4\n\n    def __init__(self):\n"
        "        super().__init__(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    recipe = recipe_from({"encoder": {"name": f"{tmp_path}/net.py:Net"}, "views": {"size": 8}})
    network = encoder_of(recipe).eval()
    (tmp_path / "run").mkdir()
    file = write_encoder(tmp_path / "run", network, recipe)
    with pytest.raises(InputError, match=r"is not of this package, .*; export to onnx, torchscript"):
        writing.write(file, recipe, network, None, asked_for("huggingface", str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
    (form,) = writing.write(file, recipe, network, None, asked_for("torchscript", str(tmp_path / "out")))
    assert form.difference == 0


ALONE = """
import json, sys
sys.modules["raysurl"] = None
import importlib.util, numpy as np, torch
from PIL import Image
for folder in sys.argv[1:]:
    spec = importlib.util.spec_from_file_location("modeling", folder + "/modeling.py")
    modeling = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(modeling)
    given = np.load(folder + "/given.npy")
    if given.ndim == 4:
        x = torch.stack([modeling.prepare(torch.from_numpy(i).permute(2, 0, 1) / 255) for i in given])
        by_file = modeling.prepare(Image.fromarray(given[0]))
        assert (by_file - x[0]).abs().max() < 1e-5
    else:
        x = torch.from_numpy(given)
    with torch.no_grad():
        np.save(folder + "/found.npy", modeling.load(folder)(x).numpy())
try:
    import raysurl
except ImportError:
    print("alone")
"""
REBUILT = {
    "convnet": {"name": "convnet"},
    "small_stem": {"name": "resnet18", "small_stem": True},
    "two_trunks": {"name": "convnet", "channels": [4, 8], "sobel": True},
    "two_of_torchvision": {"name": "shufflenet_v2_x0_5", "sobel": True},
    "mlp_of_images": {"name": "mlp", "widths": [6, 4]},
    "mlp": {"name": "mlp", "inputs": 6, "widths": [5, 3], "dropout": 0.2},
}


@pytest.mark.slow
def test_the_code_in_the_folder_rebuilds_the_encoder_without_this_package(tmp_path):
    folders, expected = [], {}
    for name, encoder in REBUILT.items():
        model = raysurl.load(stored(tmp_path / name, size=8, **encoder))
        folder = model.export("huggingface", tmp_path / name / "out")["huggingface"]
        given = images_of(8)
        if encoder.get("inputs"):
            given = np.random.default_rng(0).standard_normal((COUNT, 6)).astype(np.float32)
        np.save(folder / "given.npy", given)
        folders.append(str(folder))
        expected[folder] = model.embed(given)
    found = subprocess.run(
        [sys.executable, "-c", ALONE, *folders], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert found.stdout.strip() == "alone", found.stderr
    for folder, z in expected.items():
        close(np.load(folder / "found.npy"), z)


def test_the_code_in_the_folder_imports_nothing_of_this_package():
    parsed = ast.parse(Path(modeling.__file__).read_text())
    found = {n.module for n in ast.walk(parsed) if isinstance(n, ast.ImportFrom)}
    found |= {alias.name for n in ast.walk(parsed) if isinstance(n, ast.Import) for alias in n.names}
    assert not [name for name in found if name.startswith("raysurl")]


def test_the_model_card_states_the_runs_numbers_data_and_preprocessing(small, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    model, *_ = small
    folder = model.export("huggingface", tmp_path / "out", license="Apache-2.0")["huggingface"]
    card = hub.ModelCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0"
    assert {"self-supervised-learning", "raysurl"} <= set(card.data.tags)
    results = json.loads((finished_run() / "results.json").read_text())
    low, high = results["intervals"]["eval/knn5_top1"]
    row = next(line for line in card.text.splitlines() if line.startswith("| eval/knn5_top1"))
    assert f"{results['metrics']['eval/knn5_top1']:.3f} | {low:.4g} to {high:.4g}" in row
    for said in (
        "Data: digits, 60 samples",
        "Recipe: ressl/digits",
        "Method: ressl",
        results["versions"]["torch"],
    ):
        assert said in card.text
    assert f"commit `{results['commit']}`" in card.text or results["commit"] is None
    assert "resized to 8 px (bilinear, antialiased)" in card.text
    assert "The weights: apache-2.0." in card.text


@pytest.mark.slow
def test_a_card_says_where_nothing_is_known(resnet, tmp_path):
    pytest.importorskip("timm")
    model = resnet[0]
    text = (model.export("huggingface", tmp_path / "a")["huggingface"] / "README.md").read_text()
    assert "None: the encoder was exported from its file alone" in text
    assert "None was stated for the weights" in text
    assert 'timm.create_model("local-dir:."' in text
    # as an earlier version of this program wrote it
    old = tmp_path / "old" / "encoder.safetensors"
    new = stored(tmp_path / "old", name="convnet", channels=[4]).rename(tmp_path / "new")
    with safe_open(new, "pt") as file:
        known = {key: value for key, value in file.metadata().items() if key != "about"}
    save_file(load_file(new), old, metadata=known)
    text = (raysurl.load(old).export("huggingface", tmp_path / "b")["huggingface"] / "README.md").read_text()
    assert "does not say how it was trained" in text
    assert "ressl" not in text


# -------------------------------------------------------------------- encoder.safetensors


def test_an_encoders_file_says_what_it_is():
    with safe_open(finished_run() / "encoder.safetensors", "pt") as file:
        about = json.loads(file.metadata()["about"])
    recipe = raysurl.TrainedRun(finished_run()).recipe
    assert about["encoder"] == {"name": "convnet", "channels": [4]}
    assert (about["dim"], about["seed"], about["recipe"]) == (4, 0, "ressl/digits")
    assert about["method"] == recipe.method.model_dump(mode="json")
    assert about["data"] == {"name": "digits", "folder": None}
    assert about["version"] == raysurl.__version__
    assert about["preprocessing"]["mean"] == list(recipe.views.mean)
    assert about["preprocessing"]["shape"] == [3, 8, 8]
    assert about["commit"] == json.loads((finished_run() / "results.json").read_text())["commit"]


# -------------------------------------------------------------------- what cannot be

WRONG = {
    "no run": (["to=onnx", "output=new"], "name what to export"),
    "nowhere": (["run=nowhere", "to=torchscript", "output=new"], "run="),
    "no target": (["run=run", "output=new"], "name what to export to"),
    "unknown target": (["run=run", "to=onx", "output=new"], "did you mean onnx?"),
    "one of two": (["run=run", "to=onnx,pickle", "output=new"], "to=pickle is not known; choose one of"),
    "an empty one": (["run=run", "to=onnx,", "output=new"], "to= is not known"),
    "no output": (["run=run", "to=torchscript"], "output=FOLDER"),
    "taken": (["run=run", "to=torchscript", "output=run"], "already; name a new folder"),
    "a file": (["run=run", "to=torchscript", "output=file"], "is no folder"),
    "under a file": (["run=run", "to=torchscript", "output=file/x"], "is no folder that may be written to"),
    "takes": (["run=run", "to=onnx", "output=new", "takes=pixel"], "did you mean pixels?"),
    "takes of timm": (["run=run", "to=timm", "output=new", "takes=pixels"], "leave takes= out"),
    "license": (["run=run", "to=huggingface", "output=new", "license=a: b"], "short name"),
    "other setting": (["run=run", "to=timm", "output=new", "outputs=b"], "did you mean output?"),
    "not timm's": (["run=run", "to=timm", "output=new"], "encoder.name=convnet does; export to onnx"),
    "all or none": (["run=run", "to=torchscript,timm", "output=new"], "timm has no model"),
    "broken results": (["run=damaged", "to=huggingface", "output=new"], "cannot be read"),
    "odd results": (["run=odd", "to=huggingface", "output=new"], "cannot be read"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run, one whose results are damaged, one whose results are odd, and a file."""
    root = tmp_path_factory.mktemp("place")
    for name, text in (("run", None), ("damaged", "{"), ("odd", '{"metrics": {"eval/x": "a"}}')):
        shutil.copytree(finished_run(), root / name)
        if text:
            (root / name / "results.json").write_text(text)
    (root / "file").touch()
    return root


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_exported_is_one_sentence_and_exit_2(what, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    arguments, said = WRONG[what]
    before = sorted(os.listdir(place))
    with pytest.raises(SystemExit) as raised:
        cli.run(command.main, arguments)
    sentence = capsys.readouterr().err
    assert raised.value.code == 2
    assert said in sentence
    assert len(sentence.strip().splitlines()) == 1
    assert sorted(os.listdir(place)) == before


def test_a_package_that_is_not_there_is_named_with_the_extra(small, monkeypatch, tmp_path):
    monkeypatch.setattr(asked.importlib.util, "find_spec", lambda name: None)
    for target, named in (("onnx", "onnxscript and onnxruntime"), ("timm", "timm")):
        with pytest.raises(
            InputError, match=re.escape(f"to={target} needs {named}: pip install 'raysurl[export]'")
        ):
            asked_for(target, str(tmp_path / "out"))
    asked_for("huggingface", str(tmp_path / "out"))


Usage = namedtuple("Usage", "total used free")


def test_a_disk_without_room_is_said_before_the_work(small, monkeypatch, tmp_path):
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda path: Usage(1, 1, 1000))
    with pytest.raises(InputError, match=r"needs about 4 MB and .* has 0 MB left"):
        small[0].export("torchscript", tmp_path / "a" / "out")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
)
def test_a_disk_that_fills_meanwhile_leaves_nothing(error, small, monkeypatch, tmp_path):
    def full(*_):
        raise error

    monkeypatch.setitem(graphs.WRITE, "torchscript", full)
    said = StorageError("full")
    if isinstance(error, RuntimeError):
        monkeypatch.setattr(writing, "unwritable", lambda folder: said)
    with pytest.raises(StorageError):
        small[0].export("torchscript", tmp_path / "a" / "out")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda z: z + 1e-3, "differs from the encoder by 0.001"),
        (lambda z: z[:1], "its export finite values of shape"),
        (lambda z: z * float("nan"), "differs"),
    ],
)
def test_a_form_that_computes_something_else_is_not_written(wrong, said, small, monkeypatch, tmp_path):
    def other(network, example, file, about):
        file.touch()
        return lambda x: wrong(network(x))

    monkeypatch.setitem(graphs.WRITE, "torchscript", other)
    with pytest.raises(RunError, match=said):
        small[0].export("torchscript", tmp_path / "a" / "out")
    assert not os.listdir(tmp_path)


def test_an_empty_folder_is_taken_and_several_forms_stand_side_by_side(small, monkeypatch, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    command.main([f"run={finished_run()}", "to=[torchscript, huggingface]", f"output={tmp_path}/out"])
    assert sorted(os.listdir(tmp_path)) == ["out"]
    assert sorted(os.listdir(tmp_path / "out")) == ["encoder.torchscript.pt", "huggingface"]
    assert sorted(os.listdir(tmp_path / "out" / "huggingface")) == sorted(
        [huggingface.CARD, huggingface.CODE, huggingface.CONFIG, huggingface.WEIGHTS]
    )
    assert len(capsys.readouterr().out.splitlines()) == 2


# -------------------------------------------------------------------- the page


@pytest.mark.slow
def test_the_page_of_the_docs_runs_as_it_stands(resnet, tmp_path, monkeypatch):
    for package in ("onnxscript", "onnxruntime", "timm"):
        pytest.importorskip(package)
    shutil.copytree(finished_run(), tmp_path / "runs" / "mine")
    shutil.copytree(resnet[3] / "resnet", tmp_path / "runs" / "resnet_file")
    stored_run = tmp_path / "runs" / "resnet"
    stored_run.mkdir()
    shutil.copy(resnet[3] / "resnet" / "encoder.safetensors", stored_run)
    (stored_run / "recipe.yaml").write_text("encoder: {name: resnet18}\nviews: {size: 16}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    text = (ROOT / "docs" / "export.md").read_text()
    names = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, names)
    sys.modules.pop("modeling", None)
    assert names["about"]["dim"] == 4
    line = re.search(r"```bash\nraysurl export (.*?)\n```", text)[1].split()
    line[1:] = ["to=huggingface", "output=again"]
    command.main(line)
    assert (tmp_path / "again" / "huggingface" / "modeling.py").is_file()
