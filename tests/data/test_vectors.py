"""Vectors and graphs as data: matrices of all kinds, edge lists, the MLP, and whole runs on them."""

import contract
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from citations import citation_files

from raysurl import build
from raysurl.data.names import open_samples
from raysurl.encoder import encoder_of
from raysurl.errors import InputError
from raysurl.methods.genurl.graphs import read_edges
from raysurl.nets.encoders import MLP
from raysurl.recipe import Data, recipe_from
from raysurl.train import trainer

random = np.random.default_rng(0)
MATRIX = random.normal(size=(40, 5)).astype(np.float32)


def written(folder, kind, matrix=MATRIX, labels=None):
    """The matrix in a file of each kind; the recipe's data section."""
    path = folder / f"matrix.{kind.split(':')[0]}"
    if kind == "npy":
        np.save(path, matrix)
    elif kind == "npz":
        np.savez(path, x=matrix, **({} if labels is None else {"y": labels}))
    else:
        columns = {f"f{i}": matrix[:, i] for i in range(matrix.shape[1])}
        if kind == "parquet:list":
            columns = {"embedding": pa.array(list(matrix))}
        elif kind == "parquet:fixed":
            columns = {"image": pa.FixedSizeListArray.from_arrays(matrix.ravel(), matrix.shape[1])}
        if labels is not None:
            columns["label"] = labels
        pq.write_table(pa.table(columns), path, row_group_size=16)
    return {"name": "parquet" if kind.startswith("parquet") else "npz", "path": str(path)}


KINDS = ("npy", "npz", "parquet:columns", "parquet:list", "parquet:fixed")


@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_of_any_kind_is_read_as_it_is(tmp_path, kind):
    samples = open_samples(Data(**written(tmp_path, kind)), "train", seed=0)
    np.testing.assert_array_equal(np.stack(samples.load(np.arange(40))), MATRIX)
    assert samples.width() == 5
    assert samples.labels is None


@pytest.mark.parametrize("kind", KINDS[1:])
def test_labels_come_with_it(tmp_path, kind):
    labels = np.arange(40) % 3
    samples = open_samples(Data(**written(tmp_path, kind, labels=labels)), "train", seed=0)
    np.testing.assert_array_equal(samples.labels, labels)
    assert samples.width() == 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_before_any_work(tmp_path, kind, value):
    broken = MATRIX.copy()
    broken[[7, 9], 2] = value
    with pytest.raises(InputError, match=r"2 of 40 rows .* the first is row 7"):
        open_samples(Data(**written(tmp_path, kind, broken)), "train", seed=0)


def test_rows_and_labels_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(InputError, match="40 samples and 39 labels"):
        open_samples(Data(**written(tmp_path, "npz", labels=np.zeros(39, int))), "train", seed=0)
    pq.write_table(pa.table({"v": pa.array([[1.0, 2.0], [3.0]])}), tmp_path / "ragged.parquet")
    with pytest.raises(InputError, match="1 to 2 numbers"):
        open_samples(Data(name="parquet", path=str(tmp_path / "ragged.parquet")), "train", seed=0)
    pq.write_table(pa.table({"v": pa.array([1.0, None])}), tmp_path / "null.parquet")
    with pytest.raises(InputError, match="missing"):
        open_samples(Data(name="parquet", path=str(tmp_path / "null.parquet")), "train", seed=0)


@pytest.mark.parametrize(("flatten", "width"), [("grey", 64), ("rgb", 192)])
def test_images_are_flattened_where_the_recipe_asks(flatten, width):
    plain, flat = (
        open_samples(Data(name="digits", flatten=f), "train", seed=0).load([3])[0] for f in (None, flatten)
    )
    expected = plain[0] if flatten == "grey" else plain
    assert flat.dtype == np.float32
    assert len(flat) == width
    np.testing.assert_allclose(flat, expected.reshape(-1) / 255, rtol=1e-6)


def test_the_mlp_takes_its_width_from_the_data():
    recipe = recipe_from({"method": {"name": "simclr"}, "encoder": {"name": "mlp", "widths": [7, 4]}})
    net = encoder_of(build.resolve(recipe, 5))
    assert isinstance(net, MLP)
    assert [tuple(p.shape) for p in net.parameters()] == [(7, 5), (7,), (4, 7), (4,)]
    assert net.dim == 4
    assert net(torch.full((3, 5), -1.0)).shape == (3, 4)
    assert encoder_of(recipe).inputs == 3 * recipe.views.size**2
    with pytest.raises(InputError, match="5 values per sample, not 6"):
        net(torch.zeros(3, 6))
    with pytest.raises(InputError, match="resnet18 sees images"):
        build.resolve(recipe_from({}), 5)
    with pytest.raises(InputError, match="inputs=9"):
        build.resolve(recipe_from({"encoder": {"name": "mlp", "inputs": 9}}), 5)


# -------------------------------------------------------------------- runs


def reduction(data, **changes):
    """GenURL to two dimensions on a small matrix, batch 16."""
    return build.resolve(
        contract.recipe_for(
            "genurl",
            data=data,
            encoder={"name": "mlp", "widths": [16, 2]},
            method={
                "structures": [{"kind": "knn", "k": 5, "weight": 1, "weight_end": 1}],
                "kind": "bce",
                "target": "static",
                "neck": False,
                "distance": "l2",
                "nu_z": 0.01,
                **changes.pop("method", {}),
            },
            train={"batch_size": 16, "sampler": "neighbours", **changes.pop("train", {})},
            eval={
                "every_epochs": 0,
                "protocols": ["lbfgs", "embedding"],
                "embedding_k": 5,
                "baselines": False,
            },
            **changes,
        ),
        64 if data["name"] == "digits" else None,
    )


FLAT = {"name": "digits", "limit": 200, "flatten": "grey"}


def start(recipe, folder):
    run = contract.start(recipe, folder)
    trainer.refresh_memory(run)
    return run


def test_the_neighbours_sampler_puts_positives_into_batches(tmp_path):
    shares = {}
    for sampler in ("permutation", "neighbours"):
        run = start(reduction(FLAT, train={"sampler": sampler}), tmp_path / sampler)
        graph = run.memory.record.memory.graphs["knn"]
        batches = [run.plan.global_batch(step) for step in range(run.plan.steps_per_epoch)]
        assert len(np.unique(np.concatenate(batches))) == 16 * run.plan.steps_per_epoch
        shares[sampler] = sum(graph[b][:, b].sum() for b in batches) / graph.sum()
        read = run.memory.snapshot(slice(None))["knn"]
        np.testing.assert_array_equal(read, graph[batches[0]][:, batches[0]].toarray())
    assert shares["neighbours"] > 3 * shares["permutation"]


def test_a_run_in_batches_of_neighbours_resumes_exactly(tmp_path):
    recipe = reduction(FLAT)
    whole = start(recipe, tmp_path / "whole")
    expected = contract.steps(whole, 4)
    part = start(recipe, tmp_path / "part")
    contract.steps(part, 2)
    trainer.save(part)
    resumed = start(recipe, tmp_path / "part")
    assert resumed.step == 2
    assert contract.steps(resumed, 2) == expected[2:]


@pytest.mark.slow
def test_a_whole_run_is_scored_and_drawn(tmp_path):
    contract.train(reduction(FLAT), tmp_path / "run")
    results = (tmp_path / "run" / "results.json").read_text()
    for name in ("eval/trustworthiness", "eval/continuity", "eval/knn_recall", "eval/lbfgs_top1"):
        assert name in results
    from raysurl.overview import write_map
    from raysurl.report import write_report

    with np.load(tmp_path / "run" / "samples" / "embedding.npz") as file:
        flat = file["features"]
    write_map(tmp_path / "run")
    with np.load(tmp_path / "run" / "samples" / "map.npz") as file:
        assert (file["points"] == flat).all()  # they are of the plane already
    assert not (tmp_path / "run" / "samples" / "embedding.npz").exists()
    assert "<h2>Map</h2>" in write_report(tmp_path / "run").read_text()


def test_more_pairs_than_allowed_are_refused():
    with pytest.raises(InputError, match=r"batch_size=16 makes more pairs .* at most 15"):
        reduction(FLAT, method={"max_pairs": 255})
    with pytest.raises(InputError, match="needs a graph"):
        contract.recipe_for("simclr", train={"sampler": "neighbours"})


# -------------------------------------------------------------------- graphs


def test_edges_are_read_from_any_file(tmp_path):
    edges = np.array([[0, 1], [1, 0], [2, 2], [3, 1]])
    other = edges[[0, 1, 3]]
    np.savez(tmp_path / "a.npz", edges=edges, distance=np.arange(4.0))
    np.savez(tmp_path / "b.npz", edge_index=edges.T)
    table = {"source": edges[:, 0], "target": edges[:, 1], "distance": np.arange(4.0)}
    pq.write_table(pa.table(table), tmp_path / "c.parquet")
    for name in ("a.npz", "b.npz", "c.parquet"):
        found, _ = read_edges(str(tmp_path / name), 4, "key", lengths=False)
        np.testing.assert_array_equal(found, other)
    for name in ("a.npz", "c.parquet"):
        _, lengths = read_edges(str(tmp_path / name), 4, "key", lengths=True)
        np.testing.assert_array_equal(lengths, [0, 1, 3])
        with pytest.raises(InputError, match=r"0 … 2, they run from 0 to 3"):
            read_edges(str(tmp_path / name), 3, "key", lengths=False)
    with pytest.raises(InputError, match="not an npz file of a graph"):
        read_edges(written(tmp_path, "npy")["path"], 4, "key", lengths=False)


def graph_recipe(data, *structures, **method):
    changes = {"kind": "bce", "target": "static", "neck": False, "distance": "l2", **method}
    recipe = contract.recipe_for(
        "genurl",
        data=data,
        encoder={"name": "mlp", "widths": [8, 4]},
        method={"structures": list(structures), **changes},
        train={"batch_size": 10},
        eval={"every_epochs": 0, "protocols": ["rankme"], "baselines": False},
    )
    return build.resolve(recipe, open_samples(recipe.data, "train", seed=0).width())


def test_the_graph_of_the_data_is_used_where_none_is_named(tmp_path):
    run = start(
        graph_recipe(citation_files(tmp_path), {"kind": "graph", "length": "equal"}), tmp_path / "run"
    )
    batch = run.plan.global_batch(0)
    p = run.memory.snapshot(slice(None))["graph"]
    joined = {tuple(sorted((int(batch[i]), int(batch[j])))) for i, j in p.nonzero().tolist()}
    assert joined == {(0, 1), (6, 9)}
    with pytest.raises(InputError, match="digits comes with no graph"):
        contract.recipe_for("genurl", method={"structures": [{"kind": "graph"}]})


def test_an_empty_graph_and_isolated_nodes_give_a_finite_loss(tmp_path):
    np.savez(tmp_path / "data.npz", x=MATRIX, edges=np.empty((0, 2), np.int64))
    recipe = graph_recipe(
        {"name": "npz", "path": str(tmp_path / "data.npz")}, {"kind": "graph", "length": "features"}
    )
    losses = contract.steps(start(recipe, tmp_path / "run"), 2)
    assert all(np.isfinite(losses))


def test_static_and_dynamic_targets_of_both_structures_train(tmp_path):
    data = citation_files(tmp_path)
    both = (
        {"kind": "graph", "length": "equal"},
        {"kind": "knn", "k": 3, "scale": "statistics", "metric": "cosine"},
    )
    losses = {}
    for name, change in {"static": {}, "dynamic": {"target": "dynamic", "neck": True}}.items():
        losses[name] = contract.steps(start(graph_recipe(data, *both, **change), tmp_path / name), 2)
        assert all(np.isfinite(losses[name]))
    assert losses["static"] != losses["dynamic"]
