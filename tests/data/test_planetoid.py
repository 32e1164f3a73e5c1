"""Planetoid's citation graphs: the raw files, what torch_geometric makes of them, downloads, and whole runs."""

import json
import pickle
import shutil
import socket
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from citations import PARTS, citation_files
from places import SHARED

from raysurl.commands import pretrain
from raysurl.data import planetoid
from raysurl.data.names import open_samples
from raysurl.errors import InputError
from raysurl.recipe import Data


def test_raw_files_of_planetoid_become_nodes_edges_and_a_split(tmp_path):
    data = citation_files(tmp_path)
    found = planetoid.read("cora", str(tmp_path))
    np.testing.assert_array_equal(found.features[[0, 6, 9]], np.arange(30).reshape(10, 3)[[0, 6, 9]])
    assert not found.features[8].any()
    np.testing.assert_array_equal(found.labels, [0, 1, 0, 1, 0, 1, 0, 1, -1, 1])
    np.testing.assert_array_equal(found.split, [1, 1, 2, 2, 2, 2, 3, 3, 0, 3])
    np.testing.assert_array_equal(found.edges, [[0, 1], [0, 1], [1, 0], [9, 6], [9, 9]])
    samples = open_samples(Data(**data), "train", seed=0)
    assert open_samples(Data(**data), "eval", seed=0) is None
    assert samples.width() == 3


def test_raw_files_run_no_code_and_what_is_missing_is_named(tmp_path):
    data = citation_files(tmp_path)
    evil = b"cos\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR."
    (tmp_path / "Cora" / "raw" / "ind.cora.x").write_bytes(evil)
    with pytest.raises(InputError, match=r"asks for os\.system"):
        open_samples(Data(**data), "train", seed=0)
    assert not (tmp_path / "owned").exists()
    with pytest.raises(InputError, match=r"no file ind\.citeseer\.x"):
        open_samples(Data(name="planetoid:CiteSeer", path=str(tmp_path)), "train", seed=0)
    with pytest.raises(InputError, match="Cora, CiteSeer, PubMed"):
        open_samples(Data(name="planetoid:Wiki", path=str(tmp_path)), "train", seed=0)


def as_torch_geometric_reads(root, name):
    """Its Planetoid of raw files under `root`, which also writes there: features, labels, masks, edges."""
    found = pytest.importorskip("torch_geometric.datasets").Planetoid(str(root), name)[0]
    masks = [mask.numpy() for mask in (found.train_mask, found.val_mask, found.test_mask)]
    return found.x.numpy(), found.y.numpy(), masks, found.edge_index.numpy().T


def coalesced(edges):
    """Each edge once, without self loops."""
    return np.unique(edges[edges[:, 0] != edges[:, 1]], axis=0)


def same_as_torch_geometric(root, name):
    features, labels, masks, edges = as_torch_geometric_reads(root, name)
    ours = planetoid.read(name, str(root))
    np.testing.assert_array_equal(ours.features, features)
    known = ours.labels >= 0  # it has no word for a node without a label and calls it class 0
    np.testing.assert_array_equal(ours.labels[known], labels[known])
    assert not labels[~known].any()
    for code, mask in zip((planetoid.TRAIN, planetoid.VALIDATION, planetoid.TEST), masks, strict=True):
        np.testing.assert_array_equal(ours.split == code, mask)
    np.testing.assert_array_equal(coalesced(ours.edges), coalesced(edges))
    return ours


@pytest.mark.slow
@pytest.mark.skipif(not ((SHARED / "data") / "Planetoid").exists(), reason="the citation graph is not there")
def test_cora_is_what_torch_geometric_reads(tmp_path):
    shutil.copytree((SHARED / "data") / "Planetoid" / "Cora" / "raw", tmp_path / "Cora" / "raw")
    ours = same_as_torch_geometric(tmp_path, "Cora")
    assert ours.features.shape == (2708, 1433)
    assert np.bincount(ours.split).tolist() == [1068, 140, 500, 1000]


@pytest.mark.slow
def test_isolated_test_nodes_of_citeseer_are_what_torch_geometric_reads(tmp_path):
    order = np.random.default_rng(1).permutation(np.delete(np.arange(510, 530), [3, 8, 9]))
    graph = {0: [1, 1, 520], 1: [0], 3: [3, 4], 529: [510], 520: [0]}
    citation_files(tmp_path, "CiteSeer", known=510, test=order.tolist(), graph=graph, classes=3)
    ours = same_as_torch_geometric(tmp_path, "CiteSeer")
    isolated = [513, 518, 519]
    assert not ours.features[isolated].any()
    assert (ours.labels[isolated] == -1).all()
    assert not ours.split[isolated].any()


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A local web site that torch_geometric takes for Planetoid's; its folder."""
    datasets = pytest.importorskip("torch_geometric.datasets")
    folder = tmp_path / "site"
    citation_files(folder)
    handler = partial(Quiet, directory=str(folder / "Cora" / "raw"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(datasets.Planetoid, "url", f"http://127.0.0.1:{server.server_port}")
        yield folder / "Cora" / "raw"
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.mark.slow
def test_what_is_missing_of_planetoid_is_downloaded_and_only_that(tmp_path, site):
    data = {"name": "planetoid:cora", "path": str(tmp_path / "root")}
    with pytest.raises(InputError, match=r"no file ind\.cora\.x; .* or say data\.download=true"):
        open_samples(Data(**data), "train", seed=0)
    assert len(open_samples(Data(**data, download=True), "train", seed=0)) == 10
    raw = tmp_path / "root" / "Cora" / "raw"
    assert sorted(path.name for path in raw.iterdir()) == sorted(f"ind.cora.{part}" for part in PARTS)
    (raw / "ind.cora.x").unlink()
    (raw / "ind.cora.graph").write_bytes(pickle.dumps({0: [2]}, protocol=3))
    planetoid.fetch("Cora", str(tmp_path / "root"))
    np.testing.assert_array_equal(planetoid.edges_of(f"{raw}/ind.cora.graph"), [[0, 2]])
    assert (raw / "ind.cora.x").read_bytes() == (site / "ind.cora.x").read_bytes()


@pytest.mark.slow
def test_a_download_that_fails_says_what_to_place_where_and_leaves_nothing(tmp_path, site, monkeypatch):
    import torch_geometric.datasets

    def refused(match):
        with pytest.raises(InputError, match=match):
            planetoid.fetch("Cora", str(tmp_path / "root"))
        assert not (tmp_path / "root").exists()

    (site / "ind.cora.graph").write_bytes(b"<html>log in first</html>")
    refused(r"is not a raw file of Planetoid.*place ind\.cora\.x, .* in .*root/Cora/raw")
    (site / "ind.cora.graph").unlink()
    refused(r"could not be downloaded \(FileNotFoundError")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(planetoid, "PATIENCE_S", 0.2)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(torch_geometric.datasets.Planetoid, "url", url)
        refused("could not be downloaded .*Timeout")
    with pytest.raises(InputError, match="into a local folder"):
        planetoid.fetch("Cora", "s3://bucket/planetoid")


def test_downloading_without_torch_geometric_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_geometric.datasets", None)
    with pytest.raises(InputError, match=r"pip install 'raysurl\[graph\]'"):
        planetoid.fetch("PubMed", str(tmp_path))


# -------------------------------------------------------------------- whole runs


@pytest.mark.slow
@pytest.mark.parametrize("name", planetoid.NAMES)
def test_the_recipe_of_each_graph_runs_to_its_results(tmp_path, name):
    order = np.random.default_rng(1).permutation(
        np.delete(np.arange(560, 600), [3, 8] if name == "CiteSeer" else [])
    )
    graph = {i: [(i + 3) % 560, (i + 6) % 560] for i in range(560)} | {int(i): [int(i) % 560] for i in order}
    data = citation_files(tmp_path / "root", name, known=560, test=order.tolist(), graph=graph, classes=3)
    run = tmp_path / "run"
    pretrain.main(
        [
            f"recipe=genurl/{name.lower()}",
            f"data.path={data['path']}",
            "runtime=local",
            f"output={run}",
            *("train.batch_size=64", "train.epochs=2", "encoder.widths=[8,4]", "eval.random_splits=2"),
        ]
    )
    found = json.loads((run / "results.json").read_text())["metrics"]
    assert 0 <= found["eval/linear_top1"] <= 100
    assert {"eval/linear_validation_top1", "eval/linear_random_top1", "health/rankme"} <= set(found)
