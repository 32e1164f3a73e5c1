"""What people get wrong, on the command itself: one sentence that names it, and nothing is left behind.

What is refused in the settings alone is in test_recipe.py and test_sweep_space.py.
"""

import pickle

import contract
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision

from raysurl.commands import pretrain
from raysurl.data.names import open_samples
from raysurl.encoder import encoder_of, load_encoder, write_encoder
from raysurl.errors import InputError
from raysurl.evaluate import divide
from raysurl.recipe import Data, recipe_from
from raysurl.train import run_directory

random = np.random.default_rng(0)
X = random.normal(size=(40, 5)).astype(np.float32)
Y = np.arange(40) % 3
RING = np.stack([np.arange(40), (np.arange(40) + 1) % 40], axis=1)

VECTORS = (
    *("recipe=genurl/mnist_2d", "runtime=local", "data.flatten=null", "encoder.widths=[8,2]"),
    *("train.batch_size=16", "train.epochs=1", "scale.workers=null", "eval.protocols=[rankme]"),
)
GRAPH = "method.structures=[{kind: graph, length: equal}]"
GIVEN = "method.structures=[{kind: graph, length: given}]"
IMAGES = (
    *("recipe=genurl/kd_cifar10", "runtime=local", "data.name=digits", "data.limit=40", "views.size=8"),
    *("encoder={name: convnet}", "train.batch_size=16", "train.epochs=1", "eval.protocols=[rankme]"),
)


@pytest.fixture
def refused(tmp_path):
    def run(match, *arguments, base=VECTORS):
        with pytest.raises(InputError, match=match):
            pretrain.main([*base, *arguments, f"output={tmp_path / 'run'}"])
        assert not (tmp_path / "run").exists()

    return run


@pytest.fixture
def npz(tmp_path):
    def write(file="data", **arrays):
        np.savez(tmp_path / f"{file}.npz", **arrays)
        return "data.name=npz", f"data.path={tmp_path / file}.npz"

    return write


@pytest.fixture
def parquet(tmp_path):
    def write(**columns):
        pq.write_table(pa.table(columns), tmp_path / "data.parquet")
        return "data.name=parquet", f"data.path={tmp_path / 'data.parquet'}"

    return write


# -------------------------------------------------------------------- matrices and labels


def test_a_matrix_that_cannot_be_trained_on_is_refused(refused, npz, parquet):
    refused("holds one sample; training needs two or more", *npz(x=X[:1]), "train.batch_size=2")
    refused(r"float32 of shape \(40, 0\).*D ≥ 1", *npz(x=X[:, :0]))
    refused("train split holds no samples", *parquet(embedding=pa.array([], pa.list_(pa.float32()))))
    refused(
        r"as vectors all columns must be numbers, and these are not: a \(string\)$",
        *parquet(a=["x"] * 40, b=X[:, 0], label=Y),
    )
    refused("k=40 neighbours, there are 40", *npz(x=X), "method.structures=[{kind: knn, k: 40}]")


def test_labels_are_whole_numbers(refused, npz):
    refused("labels of type uint64", *npz(x=X, y=np.full(40, 2**64 - 1, np.uint64)))


def test_a_test_set_has_the_training_sets_vectors_and_classes(refused, npz, tmp_path):
    names = np.array(["cat", "dog", "fish"])
    test = f"data.eval_path={tmp_path / 'test.npz'}"
    npz("test", x=X[:9, :4], y=Y[:9])
    refused("holds vectors of 4 values and the training data vectors of 5", *npz(x=X, y=Y), test)
    npz("test", x=np.zeros((9, 8, 8), np.uint8), y=Y[:9])
    refused("holds images and the training data vectors of 5", *npz(x=X, y=Y), test)
    npz("test", x=X[:9], y=names[Y[:9]])
    refused("its labels are text and those of the training set are numbers", *npz(x=X, y=Y), test)
    npz("test", x=X[:9], y=np.array(["dog", "wolf", "fish"] * 3))
    refused("the class 'wolf' is not one of the training set's 3", *npz(x=X, y=names[Y]), test)


def test_text_labels_of_an_npz_test_set_are_those_of_the_training_set(npz, tmp_path):
    npz("train", x=X, y=np.array(["cat", "dog", "fish"])[Y])
    npz("test", x=X[:2], y=np.array(["fish", "dog"]))
    data = Data(name="npz", path=str(tmp_path / "train.npz"), eval_path=str(tmp_path / "test.npz"))
    assert open_samples(data, "eval", seed=0).labels.tolist() == [2, 1]


# -------------------------------------------------------------------- graphs


def test_a_graph_that_does_not_fit_is_refused_before_the_run_begins(refused, npz, tmp_path):
    refused("edges must lie in 0 … 39, they run from 0 to 40", *npz(x=X, edges=[*RING, [0, 40]]), GRAPH)
    refused("gives no lengths; use length=features", *npz(x=X, edges=RING), GIVEN)
    data = npz(x=X, edges=RING % 20)
    refused(r"data\.limit=30 takes a choice of the samples, .* is between all", *data, GRAPH, "data.limit=30")
    pq.write_table(pa.table({"source": [0], "target": [1], "distance": ["far"]}), tmp_path / "edges.parquet")
    path = f"method.structures=[{{kind: graph, length: given, path: {tmp_path / 'edges.parquet'}}}]"
    refused("distance holds no numbers", *npz(x=X), path)
    (tmp_path / "ind.text.graph").write_bytes(pickle.dumps({0: ["a"]}, protocol=2))
    path = f"method.structures=[{{kind: graph, length: equal, path: {tmp_path / 'ind.text.graph'}}}]"
    refused("is not a raw graph of Planetoid", *npz(x=X), path)


# -------------------------------------------------------------------- what cannot be evaluated


def test_protocols_that_the_data_cannot_serve_are_refused_before_training(refused, npz):
    few = np.where(np.arange(40) < 2, Y, -1)
    refused("embedding_k=20 neighbours cannot be compared among 36 points", *npz(x=X, y=Y),
            "eval.protocols=[embedding]", "eval.embedding_k=20")  # fmt: skip
    refused("40 labelled nodes of 1 classes", *npz(x=X, y=0 * Y), "eval.protocols=[nodes]")
    refused("needs labels and npz has too few", *npz(x=X, y=few), "eval.protocols=[lbfgs]")


def test_labels_too_few_to_hold_any_out_leave_the_probes_out():
    labels = np.where(np.arange(40) < 2, 0, -1)
    division = divide(labels, np.arange(40))
    assert len(division.bank) == 40
    assert not len(division.test)
    assert division.note.startswith("2 labelled samples are too few")
    assert divide(np.zeros(40, int), np.arange(40)).test.tolist() == [0, 10, 20, 30]
    assert divide(labels, np.arange(40), test=np.arange(3)).bank.tolist() == [0, 1]


# -------------------------------------------------------------------- teachers


def test_a_teacher_that_does_not_take_the_data_is_refused(refused, npz, tmp_path):
    torch.save(torchvision.models.shufflenet_v2_x0_5().state_dict(), tmp_path / "weights.pth")
    taught = (
        *npz(x=X),
        *("method={name: genurl, structures: [{kind: teacher}], target: static}", "teacher.view=same"),
        *("train.sampler=permutation", "views.policies.view_1=plain"),
    )
    image = ("teacher.name=shufflenet_v2_x0_5", f"teacher.weights={tmp_path / 'weights.pth'}")
    refused("shufflenet_v2_x0_5 does not take the data, vectors of 5 values", *taught, *image)
    own = f"teacher.name={contract.tiny_teacher()}"
    refused("does not take the data, vectors of 5 values: .* not 5$", *taught, own)
    of_vectors = recipe_from(
        {"encoder": {"name": "mlp", "widths": [4], "inputs": 7}, "data": {"name": "digits"}}
    )
    write_encoder(tmp_path, encoder_of(of_vectors), of_vectors)
    own = f"teacher.name={tmp_path / 'encoder.safetensors'}"
    refused("does not take the data, images of 8 pixels: .* made for 7 values", own, base=IMAGES)


def test_damaged_weights_and_embeddings_are_refused(refused, tmp_path):
    weights = tmp_path / "weights.pth"
    network = ("teacher.name=shufflenet_v2_x0_5", f"teacher.weights={weights}", "teacher.size=32")
    weights.write_text("junk")
    refused("is not a readable file of tensors", *network, base=IMAGES)
    tensors = torchvision.models.shufflenet_v2_x0_5().state_dict()
    torch.save({k: v * torch.nan if v.is_floating_point() else v for k, v in tensors.items()}, weights)
    refused("gives values that are not finite; its weights are damaged", *network, base=IMAGES)
    (tmp_path / "empty").mkdir()
    refused(
        r"teacher\.name=.*empty cannot be the teacher: ", f"teacher.name={tmp_path / 'empty'}", base=IMAGES
    )
    table = tmp_path / "teacher.parquet"
    values = pa.FixedSizeListArray.from_arrays(pa.array(random.normal(size=160).astype(np.float32)), 4)
    for index in (np.arange(40) + 0.5, [str(i) for i in range(40)], pa.array([None, *range(1, 40)])):
        pq.write_table(pa.table({"index": index, "embedding": values}), table)
        refused("its column index must hold the sample indices", f"teacher.name={table}", "teacher.view=plain",
                base=IMAGES)  # fmt: skip


# -------------------------------------------------------------------- recipe files


def test_files_that_are_no_recipe_are_refused(refused, tmp_path):
    file = tmp_path / "recipe.yaml"
    for content, match in (
        (b"a: [1\n b: {", r"recipe\.yaml is not valid YAML: .*expected .*, line 2"),
        (bytes(range(256)), r"cannot be read as text: 'utf-8' codec"),
        (b"- a", "must hold a mapping of recipe keys"),
        (b"method: ressl", r"method='ressl' holds no settings; name a method with method\.name="),
        (b"train: {optimizer: {lr: .inf}}", r"lr=inf is not valid: input should be a finite number"),
    ):
        file.write_bytes(content)
        refused(match, f"recipe={file}", base=())
    refused(r"did you mean genurl/mnist_2d\?", "recipe=genurl/mnst_2d", base=())


def test_a_run_whose_recipe_is_damaged_is_named(tmp_path):
    run_directory.write_atomic(tmp_path / "recipe.yaml", "a: [1\n b: {")
    with pytest.raises(InputError, match=r"recipe\.yaml is not valid YAML"):
        load_encoder(str(tmp_path))
    with pytest.raises(InputError, match=r"recipe\.yaml is not valid YAML"):
        pretrain.main([f"output={tmp_path}", "resume=true"])
