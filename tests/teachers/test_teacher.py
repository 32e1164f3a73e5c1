"""Frozen teachers: what they see, where they come from, and what is said where one cannot be had."""

import sys
import types

import contract
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
import torchvision

from raysurl import teachers
from raysurl.commands.embed import main as embed
from raysurl.data.names import open_samples
from raysurl.encoder import encoder_of, write_encoder
from raysurl.errors import InputError
from raysurl.method import Batch
from raysurl.recipe import recipe_from
from raysurl.recipe.sections import Teacher, Views
from raysurl.run import check, pretrain
from raysurl.teachers import networks as pretrained
from raysurl.teachers import table as embeddings

VIEWS = Views(size=8, mean=(0.3, 0.4, 0.5), std=(0.2, 0.3, 0.4))


@pytest.fixture(autouse=True)
def no_weights_at_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def own_run(folder, name="convnet", **settings):
    """An encoder file of ours, and the recipe that says how it is fed."""
    folder.mkdir()
    tree = {"data": {"name": "digits"}, "encoder": {"name": name, **settings}, "seed": 5}
    recipe = recipe_from({**tree, "views": {"size": 12, "mean": [0.1] * 3, "std": [0.5] * 3}})
    encoder = encoder_of(recipe)
    return write_encoder(folder, encoder, recipe), encoder.eval()


def opened(views=VIEWS, num_samples=4, **settings):
    return teachers.open_teacher(Teacher(**settings), views, num_samples)


def write_table(path, values, index=None, names=None, **columns):
    values = np.asarray(values, np.float32)
    index = np.arange(len(values)) if index is None else index
    kind = pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])
    named = {} if names is None else {"name": names}
    pq.write_table(pa.table({"index": index, **named, "embedding": kind, **columns}), path)
    return str(path)


# -------------------------------------------------------------------- what it sees


def test_a_run_of_ours_sees_its_own_pixels_at_its_own_size(tmp_path):
    path, encoder = own_run(tmp_path / "run")
    teacher = opened(name=str(path))
    raw = torch.rand(3, 3, 8, 8)
    mine, std = (torch.tensor(v).view(3, 1, 1) for v in (VIEWS.mean, VIEWS.std))
    with torch.no_grad():
        resized = F.interpolate((raw - 0.1) / 0.5, size=(12, 12), mode="bilinear", align_corners=False)
        torch.testing.assert_close(teacher.embed((raw - mine) / std), encoder(resized), rtol=1e-4, atol=1e-5)
    assert teacher.dim == 256
    assert opened(name=str(path), size=16).size == 16


def test_same_is_the_named_view_and_plain_is_the_view_without_augmentation(tmp_path):
    path, _ = own_run(tmp_path / "run")
    batch = Batch(torch.arange(2), {"view": torch.rand(2, 3, 8, 8), "teacher": torch.rand(2, 3, 12, 12)})
    for view, seen in (("same", "view"), ("plain", "teacher")):
        teacher = opened(name=str(path), view=view)
        taught = teacher.teach(batch, "view").views["teacher"]
        torch.testing.assert_close(taught, teacher.embed(batch.views[seen]))
        assert taught.shape == (2, 256)


def test_a_centred_teacher_takes_the_batchs_mean_off_its_embeddings(tmp_path):
    path, _ = own_run(tmp_path / "run")
    plain, centred = (
        contract.start(
            contract.recipe_for("pkt", teacher={"name": str(path), "centre": centre}), tmp_path / str(centre)
        ).method.frozen
        for centre in (False, True)
    )
    batch = Batch(torch.arange(4), {"view": torch.rand(4, 3, 8, 8)})
    before, after = (t.teach(batch, "view").views["teacher"] for t in (plain, centred))
    torch.testing.assert_close(after, before - before.mean(dim=0))
    torch.testing.assert_close(centred.embed(batch.views["view"]), after)
    assert centred.dim == plain.dim
    with pytest.raises(
        InputError, match=r"teacher\.centre is of embeddings, and teacher\.name=labels has none"
    ):
        teachers.open_teacher(
            Teacher(name="labels", view="plain", centre=True), VIEWS, 2, labels=np.array([0, 1])
        )


def test_the_loader_makes_the_plain_view_at_the_teachers_size_and_only_then(tmp_path):
    teacher = {"name": contract.tiny_teacher(), "view": "plain"}
    recipe = contract.recipe_for("pkt", teacher=teacher)
    assert recipe.view_policies()["teacher"].is_identity
    run = contract.start(recipe, tmp_path / "run")
    ((loaded, _),) = run.loader.steps(0, 1)
    batch = run.loader.to_batch(loaded[0])
    plain = run.method.frozen.teach(batch, "view").views["teacher"]
    torch.testing.assert_close(plain, run.method.frozen.embed(batch.views["teacher"]))
    assert not torch.equal(batch.views["teacher"], batch.views["view"])
    path, _ = own_run(tmp_path / "convnet")
    sized = contract.recipe_for("pkt", teacher={"name": str(path), "view": "plain", "size": 12})
    assert sized.view_policies()["teacher"].size == 12
    assert "teacher" not in contract.recipe_for("pkt").view_policies()
    with pytest.raises(InputError, match=r"sskd needs a teacher that sees the student's views"):
        contract.recipe_for("sskd", teacher=teacher)


def test_a_teacher_of_vectors_teaches_vectors(tmp_path):
    path, encoder = own_run(tmp_path / "run", "mlp", widths=(6, 5), inputs=7)
    teacher = opened(name=str(path))
    x = torch.rand(4, 7)
    torch.testing.assert_close(teacher.embed(x), encoder(x).detach())
    assert teacher.dim == 5
    with pytest.raises(InputError, match="made for 7 values per sample, not 9"):
        teacher.embed(torch.rand(4, 9))


# -------------------------------------------------------------------- torchvision, timm, open_clip


def shufflenet():
    torch.manual_seed(0)
    return torchvision.models.shufflenet_v2_x0_5(weights=None).eval()


@pytest.mark.parametrize("prefix", ["", "module.encoder_q."])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_torchvision_with_a_file_of_weights_gives_what_stands_before_the_classifier(tmp_path, prefix, suffix):
    net, file = shufflenet(), tmp_path / f"weights.{suffix}"
    tensors = {prefix + key: value for key, value in net.state_dict().items() if "num_batches" not in key}
    if suffix == "pth":
        torch.save({"epoch": 3, "state_dict": tensors}, file)
    else:
        from safetensors.torch import save_file

        save_file(tensors, file)
    teacher = opened(name="shufflenet_v2_x0_5", weights=str(file), size=32, mean=VIEWS.mean, std=VIEWS.std)
    net.fc = torch.nn.Identity()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(teacher.embed(x), net(x), rtol=1e-4, atol=1e-5)
    assert teacher.dim == teachers.width(Teacher(name="shufflenet_v2_x0_5")) == 1024


def test_weights_where_torchvision_keeps_them_are_found(tmp_path):
    url = torchvision.models.get_model_weights("shufflenet_v2_x0_5").DEFAULT.url
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(shufflenet().state_dict(), tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[1])
    assert opened(name="torchvision:shufflenet_v2_x0_5", size=32).dim == 1024


def test_nothing_is_downloaded_unless_asked_and_the_error_says_which_file_goes_where(tmp_path, monkeypatch):
    def refused(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refused)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", refused)
    with pytest.raises(InputError, match=r"not at hand: place https://.*\.pth as .*hub/checkpoints/.*\.pth"):
        opened(name="shufflenet_v2_x0_5")
    with pytest.raises(
        InputError, match=r"could not be downloaded \(no network\); place .*teacher\.weights=FILE"
    ):
        opened(name="shufflenet_v2_x0_5", download=True)


def test_what_does_not_fit_is_named(tmp_path, monkeypatch):
    file = tmp_path / "weights.pth"
    tensors = shufflenet().state_dict()

    def refused(match, **settings):
        with pytest.raises(InputError, match=match):
            opened(**{"name": "shufflenet_v2_x0_5", "weights": str(file), "size": 32} | settings)

    refused(r"weights\.pth is not a file; place the weights there")
    file.write_bytes(b"not a file of tensors")
    refused("is not a readable file of tensors")
    torch.save({"epoch": 3}, file)
    refused("holds no named tensors")
    torch.save({"weights": types.SimpleNamespace(a=1)}, file)
    refused("is not a readable file of tensors")
    torch.save({k: v for k, v in tensors.items() if k != "conv5.0.weight"}, file)
    refused(r"does not fit teacher\.name: it has no conv5\.0\.weight")
    torch.save({**tensors, "conv1.0.weight": torch.zeros(2)}, file)
    refused(r"conv1\.0\.weight is \(2,\) in the file and \(24, 3, 3, 3\)")
    refused("did you mean shufflenet_v2_x0_5", name="shufflenet_v2_x05")
    refused("has no linear classifier", name="squeezenet1_0")
    refused("does not exist; name a run directory", name=str(tmp_path / "nowhere"))
    for package in ("timm", "open_clip"):
        monkeypatch.setitem(sys.modules, package, None)
    refused(r"needs the package timm; pip install 'raysurl\[timm\]'", name="timm:vit")
    refused("needs the package open_clip", name="open_clip:ViT-B-16/laion400m_e32")
    path, _ = own_run(tmp_path / "run")
    refused("has its own weights", name=str(path))


def test_a_network_that_takes_no_such_images_is_refused_before_work_starts(tmp_path):
    net = torchvision.models.VisionTransformer(32, 16, 1, 2, 8, 16)
    network = pretrained.Network(net, 8, 20, VIEWS.mean, VIEWS.std)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "torchvision_model", lambda *a: network)
        with pytest.raises(InputError, match=r"takes no images of 20 pixels .*set teacher\.size"):
            opened(name="small_vit")
        assert opened(name="small_vit", size=32).dim == 1000


def test_timm_and_open_clip_are_asked_for_features_and_their_own_pixels(tmp_path, monkeypatch):
    asked = []

    class Net(torch.nn.Linear):
        pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, 10, 10)}  # noqa: RUF012
        num_features = output_dim = 6
        image_size = (10, 10)

        def __init__(self):
            super().__init__(300, 6)

        def forward(self, x):
            return super().forward(x.flatten(1))

    def create_model(name, **settings):
        asked.append((name, settings["pretrained"]))
        net = Net()
        net.visual = Net()
        return net

    library = types.SimpleNamespace(
        create_model=create_model,
        list_models=lambda: ["vit", "ViT"],
        get_pretrained_cfg=lambda *name: published.get(name),
        list_pretrained_tags_by_model=lambda model: ["tag", "other"],
        OPENAI_DATASET_MEAN=(0.4,) * 3,
        OPENAI_DATASET_STD=(0.2,) * 3,
    )
    hub = types.SimpleNamespace(hf_hub_id="timm/vit.in1k")
    published = {("vit",): hub, ("ViT", "tag"): {"hf_hub": "laion/ViT-tag/"}}
    monkeypatch.setitem(sys.modules, "timm", library)
    monkeypatch.setitem(sys.modules, "open_clip", library)
    for name, where in (("timm:vit", "timm/vit.in1k"), ("open_clip:ViT/tag", "laion/ViT-tag")):
        place = rf"not at hand: place https://huggingface\.co/{where}/resolve/main/\S*model\.safetensors"
        with pytest.raises(InputError, match=rf"{place}, .*teacher\.download=true"):
            opened(name=name)
        teacher = opened(name=name, download=True)
        assert (teacher.dim, teacher.size) == (6, 10)
        assert teachers.width(Teacher(name=name)) == 6
    assert asked == [("vit", True), ("vit", False), ("ViT", "tag"), ("ViT", None)]
    torch.save(create_model("vit", pretrained=False).state_dict(), tmp_path / "weights.pth")
    assert opened(name="timm:vit", weights=str(tmp_path / "weights.pth")).dim == 6
    opened(name="open_clip:ViT", weights=str(tmp_path / "weights.pth"))
    assert asked[-1] == ("ViT", str(tmp_path / "weights.pth"))
    for name, reason in (
        ("timm:vitt", r"Unknown model vitt, did you mean vit\?"),
        ("open_clip:VIT/tag", r"Unknown model VIT"),
        ("open_clip:ViT/tga", "tga is not one of its tags tag, other"),
    ):
        for download in (True, False):
            with pytest.raises(InputError, match=rf"{name} could not be made \({reason}"):
                opened(name=name, download=download)
    library.create_model = lambda *a, **settings: 1 / 0
    with pytest.raises(InputError, match=r"weights=.*weights\.pth is not of open_clip:ViT \(division"):
        opened(name="open_clip:ViT", weights=str(tmp_path / "weights.pth"))
    with pytest.raises(
        InputError, match=r"could not be made \(division.* or place https://.* and name it with"
    ):
        opened(name="timm:vit", download=True)


# -------------------------------------------------------------------- embeddings computed before


def test_rows_are_addressed_by_sample_index(tmp_path):
    values = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    path = write_table(tmp_path / "t.parquet", values[::-1], index=[3, 2, 1, 0])
    teacher = opened(name=path, view="plain")
    batch = Batch(torch.tensor([2, 0]), {"view": torch.zeros(2, 3, 8, 8)})
    np.testing.assert_array_equal(teacher.teach(batch, "view").views["teacher"].numpy(), values[[2, 0]])
    assert teacher.dim == teachers.width(Teacher(name=path)) == 3
    with pytest.raises(InputError, match="can see no view"):
        teacher.embed(batch.views["view"])


def test_a_sample_without_a_row_is_tolerated_as_unreadable_ones_are_and_never_used(tmp_path):
    path = tmp_path / "t.parquet"
    write_table(path, np.ones((3, 2)), index=[0, 1, 3])
    teacher = embeddings.open_table(path, 4, max_missing=0.25)
    with pytest.raises(InputError, match="has no embedding of sample 2"):
        teacher.teach(Batch(torch.tensor([1, 2]), {}), "view")


def test_tables_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "t.parquet"

    def refused(match, **settings):
        with pytest.raises(InputError, match=match):
            opened(**{"name": str(path), "view": "plain"} | settings)

    refused("is not a readable Parquet file")
    write_table(path, np.ones((4, 2)))
    refused(r"without augmentation; use teacher\.view=plain", view="same")
    refused(r"teacher\.size is of a network", size=8)
    write_table(path, np.ones((3, 2)))
    refused("has embeddings of 3 samples and the data set has 4")
    write_table(path, np.ones((5, 2)))
    refused("its 5 rows are of another data set")
    write_table(path, np.ones((4, 2)), index=[0, 1, 1, 2])
    refused("one row for each sample index of 0 … 3")
    write_table(path, [[1, np.nan]] * 4)
    refused("not finite")
    pq.write_table(pa.table({"index": [0, 1, 2, 3], "embedding": ["a"] * 4}), path)
    refused("no column embedding of fixed-size lists of floats")
    pq.write_table(pa.table({"embedding": ["a"] * 4}), path)
    refused("has no column index")


def test_what_pipelines_embed_writes_teaches_the_same_data_and_no_other(tmp_path):
    run = contract.tiny_teacher()
    target = tmp_path / "embeddings.parquet"
    embed([f"run={run}", f"to={target}", "data.name=digits", "data.limit=80"])
    teacher = {"name": str(target), "view": "plain"}
    recipe = contract.recipe_for("seed", teacher=teacher)
    assert recipe.method.teacher_dim == 12
    assert "teacher" not in recipe.view_policies()
    started = contract.start(recipe, tmp_path / "run")
    contract.steps(started, 1)
    samples = open_samples(recipe.data, "train", seed=0)
    check(recipe, samples, None)
    with pytest.raises(InputError, match=r"and the data set's is .*same data\.limit and seed"):
        check(recipe, open_samples(recipe.data, "train", seed=1), None)


def test_a_missing_teacher_is_found_before_a_run_directory_exists(tmp_path):
    recipe = contract.recipe_for(
        "pkt", teacher={"name": "shufflenet_v2_x0_5"}, output=str(tmp_path / "run"), runtime="local"
    )
    with pytest.raises(InputError, match="are not at hand"):
        pretrain(recipe)
    assert not (tmp_path / "run").exists()
