"""GenURL's structures: graphs against a slow O(N²) reference, degenerate data, resume, and two ranks."""

import math
import tempfile
from pathlib import Path

import contract
import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from raysurl import build, distributed
from raysurl.errors import InputError
from raysurl.method import Batch, Progress
from raysurl.methods.genurl import GenURL
from raysurl.methods.genurl.memory import POSITION, GraphMemory
from raysurl.methods.genurl.structures import (
    Graph,
    Instance,
    Neighbours,
    StructureInputs,
    TeacherStructure,
    linear,
)
from raysurl.recipe import recipe_from
from raysurl.testing.ranks import on_ranks
from raysurl.train import trainer

N, D, NU = 30, 4, 20.0
BEGIN = Progress(0, 10, 5)
KNN = {"kind": "knn", "k": 6, "weight": 0.5}


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)


def kappa(d, nu=NU):
    scale = math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2) - 0.5 * math.log(nu / 2)
    return math.exp(scale) * (1 + d * d / nu) ** (-(nu + 1) / 2)


def slow_graph(x, neighbours_of, *, scale, count):
    """p (N, N) by the definitions, pair by pair; `neighbours_of[i]` {j: distance}."""
    n = len(x)
    if scale == "statistics":
        every = [d for row in neighbours_of for d in row.values()]
        mu, sigma = [np.mean(every)] * n, np.std(every)
    else:
        mu = [min(row.values(), default=0.0) for row in neighbours_of]
        widths = []
        for i, row in enumerate(neighbours_of):
            near = sorted(row.values())[:count]
            if len(near) >= 3:
                total = lambda s: sum(kappa((d - mu[i]) / s) for d in near) / kappa(0) - math.log2(len(near))  # noqa: B023, E731
                widths.append(brentq(total, 1e-4, 1e4, xtol=1e-12))
        sigma = np.mean(widths)
    directed = np.zeros((n, n))
    for i, row in enumerate(neighbours_of):
        for j, d in row.items():
            directed[i, j] = kappa(max(d - mu[i], 0) / sigma)
    return directed


def nearest(x, k):
    distance = [[float(np.linalg.norm(a.astype(np.float64) - b)) for b in x] for a in x]
    return [
        {j: row[j] for j in sorted((j for j in range(len(x)) if j != i), key=lambda j: row[j])[:k]}
        for i, row in enumerate(distance)
    ]


@pytest.mark.parametrize("scale", ["search", "statistics"])
@pytest.mark.parametrize("symmetry", ["union", "mean", "none"])
def test_the_block_of_a_batch_is_the_slow_reference(features, scale, symmetry):
    knn = Neighbours(k=7, neighbours=4, scale=scale, symmetry=symmetry)
    p = slow_graph(features, nearest(features, 7), scale=scale, count=4)
    expected = {"union": p + p.T - p * p.T, "mean": (p + p.T) / 2, "none": p}[symmetry]
    memory = memory_of(knn)
    memory.refresh(torch.from_numpy(features), BEGIN)
    index = torch.tensor([4, 29, 0, 17, 8, 11, 3, 21])
    block = memory.answer(index, step=3)["knn"]
    assert block.dtype == torch.float32
    np.testing.assert_allclose(block, expected[index][:, index], rtol=1e-4, atol=1e-6)
    assert block.count_nonzero() > 4


def memory_of(*structures):
    return GenURL.Config(structures=structures, nu_x=NU).memory(N, 0)


def test_a_memory_has_no_edges_before_it_is_made_and_keeps_them_in_a_checkpoint(features):
    memory, index = memory_of(Neighbours(k=5)), torch.arange(0, N, 3)
    assert not memory.answer(index, 0)["knn"].any()
    memory.refresh(torch.from_numpy(features), BEGIN)
    copy = memory_of(Neighbours(k=5))
    copy.load_state_dict(memory.state_dict())
    ours, theirs = copy.answer(index, 1), memory.answer(index, 1)
    assert ours["knn"].any()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(InputError, match="over 29 samples"):
        GraphMemory(memory.makers, N - 1).load_state_dict(memory.state_dict())


def test_its_health_is_the_share_of_similarity_within_labels(features):
    labels = np.arange(N) % 3
    labels[:4] = -1
    memory = memory_of(Neighbours(k=5))
    memory.refresh(torch.from_numpy(features), BEGIN)
    p = memory.answer(torch.arange(N), 0)["knn"].numpy()
    inside = sum(p[i, j] for i in range(4, N) for j in range(4, N) if labels[i] == labels[j])
    assert memory.health(labels)["health/knn_purity"] == pytest.approx(inside / p[4:, 4:].sum(), rel=1e-4)
    assert memory.health(None) == {}


# -------------------------------------------------------------------- given graphs


def graph_file(folder, **arrays):
    path = folder / "graph.npz"
    np.savez(path, **arrays)
    return str(path)


EDGES = [(0, 1), (1, 2), (2, 0), (3, 1), (3, 4), (4, 3), (5, 5), (0, 6), (0, 7), (7, 1)]


@pytest.mark.parametrize("length", ["features", "given", "equal"])
def test_a_given_graph_is_the_slow_reference(features, tmp_path, length):
    lengths = np.random.default_rng(1).random(len(EDGES)) + 0.5
    lengths[5] = lengths[4]  # the same edge, both ways
    path = graph_file(tmp_path, edges=np.array(EDGES), distance=lengths)
    neighbours_of = [{} for _ in range(N)]
    for (i, j), given in zip(EDGES, lengths, strict=True):
        d = {"features": float(np.linalg.norm(features[i] - features[j])), "given": given, "equal": 0.0}[
            length
        ]
        if i != j:
            neighbours_of[i][j] = neighbours_of[j][i] = d
    if length == "equal":
        p = np.array([[kappa(0) if j in row else 0.0 for j in range(N)] for row in neighbours_of])
    else:
        p = slow_graph(features, neighbours_of, scale="search", count=5)
    memory = memory_of(Graph(path=path, length=length))
    memory.refresh(torch.from_numpy(features) if length == "features" else None, BEGIN)
    np.testing.assert_allclose(
        memory.answer(torch.arange(N), 0)["graph"], p + p.T - p * p.T, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"edges": np.array([[0, N]])}, f"0 … {N - 1}"),
        ({"edges": np.array([[0, -1]])}, f"0 … {N - 1}"),
        ({"edges": np.zeros((3, 2))}, "integers"),
        ({"edges": np.zeros((3, 3), int)}, "integers"),
        ({"links": np.zeros((3, 2), int)}, "not an npz file of a graph"),
        ({"edges": np.array([[0, 1]]), "distance": np.array([np.nan])}, "finite length"),
        ({"edges": np.array([[0, 1]]), "distance": np.ones(2)}, "finite length"),
    ],
)
def test_an_unusable_graph_is_named_before_anything_starts(tmp_path, arrays, message):
    length = "given" if "distance" in arrays else "equal"
    with pytest.raises(InputError, match=message):
        memory_of(Graph(path=graph_file(tmp_path, **arrays), length=length))


def test_a_graph_that_is_no_file_is_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        memory_of(Graph(path=str(tmp_path / "none.npz")))
    (tmp_path / "text.npz").write_text("edges")
    with pytest.raises(InputError, match="not an npz file"):
        memory_of(Graph(path=str(tmp_path / "text.npz")))


# -------------------------------------------------------------------- degenerate data


@pytest.mark.parametrize("scale", ["search", "statistics"])
def test_equal_samples_are_similar_and_never_undefined(scale):
    constant = np.full((N, D), 0.3, np.float32)
    p = Neighbours(k=5, scale=scale, symmetry="none").graph(constant, N, NU).toarray()
    assert p[p > 0] == pytest.approx(kappa(0))
    assert p.astype(bool).sum() == 5 * N
    twins = np.repeat(np.random.default_rng(0).normal(size=(N // 2, D)), 2, axis=0).astype(np.float32)
    p = Neighbours(k=5, scale=scale).graph(twins, N, NU).toarray()
    assert np.isfinite(p).all()
    assert (p[np.arange(0, N, 2), np.arange(1, N, 2)] >= kappa(0)).all()


def test_fewer_samples_than_neighbours_is_an_input_error():
    with pytest.raises(InputError, match="more samples than its k=30 neighbours, there are 30"):
        memory_of(Neighbours(k=N))
    assert memory_of(Neighbours(k=N - 1)) is not None


@pytest.mark.slow
@pytest.mark.parametrize("distance", ["1-cos", "chord", "literal", "l2"])
@pytest.mark.parametrize("kind", ["mse", "kl", "bce", "gkl"])
def test_a_collapsed_batch_has_a_finite_loss_and_gradient(tmp_path, distance, kind):
    run = start(tmp_path, distance=distance, kind=kind, pairs="all")
    same = torch.rand(1, 3, 8, 8).expand(4, -1, -1, -1)
    for x in (same, torch.zeros_like(same)):
        run.method.zero_grad()
        loss = run.method(Batch(torch.arange(4), {"view_1": x, "view_2": x}), {}, BEGIN).loss
        loss.backward()
        assert torch.isfinite(loss)
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in run.method.parameters())


def test_a_batch_of_one_is_its_positive_pair_or_an_input_error(tmp_path):
    views = {name: torch.rand(1, 3, 16, 16) for name in ("view_1", "view_2", "view")}
    batch = Batch(torch.arange(1), views)
    (tmp_path / "a").mkdir()
    run = start(tmp_path / "a")
    assert torch.isfinite(run.method(batch, {}, BEGIN).loss)
    run = start(tmp_path, structures=[KNN], target="static")
    with pytest.raises(InputError, match="batch of one"):
        run.method(batch, {"knn": torch.zeros(1, 1), POSITION: torch.arange(1)}, BEGIN)


# -------------------------------------------------------------------- structures in a recipe


def test_each_structure_is_a_term_with_its_weight():
    progress = Progress(25, 100, 10)
    assert linear(1.0, 0.0, progress) == 0.75
    assert Neighbours().alpha(progress) == pytest.approx(0.0075)
    assert Instance(weight=2).alpha(progress) == 2
    z = torch.randn(5, 3)
    known = StructureInputs(5, torch.device("cpu"), {"knn": torch.full((5, 5), 0.2)}, teacher=z)
    terms = [s.similarity(known, NU) for s in (Instance(), Neighbours(), TeacherStructure(sigma=0.5))]
    assert terms[0].allclose(kappa(0) * torch.eye(5))
    assert terms[1].allclose(torch.tensor(0.2))
    cosine = torch.cosine_similarity(z[:, None], z[None], dim=2)
    assert float(terms[2][1, 3]) == pytest.approx(kappa(float(1 - cosine[1, 3]) / 0.5), rel=1e-4)
    with pytest.raises(InputError, match="view 'teacher'"):
        TeacherStructure().similarity(StructureInputs(5, torch.device("cpu"), {}), NU)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"structures": [{"kind": "instances"}]}, "instance"),
        ({"structures": []}, "at least 1"),
        ({"structures": [{"kind": "instance"}] * 2}, "given once"),
        ({"structures": [{"kind": "knn", "k": 3}]}, "neighbours=5 must not be more than k=3"),
        ({"structures": [{"kind": "graph"}]}, "path"),
        ({"neck": False}, "neck=true"),
        ({"sigma": 0}, "method.sigma"),
    ],
)
def test_a_bad_setting_is_one_sentence(method, message):
    with pytest.raises(InputError, match=message):
        build.resolve(recipe_from({"method": {"name": "genurl"} | method}), None)


def start(folder, *, rank=0, world_size=1, train=None, **method):
    encoder = {"name": "convnet"}  # of its own width: two ranks are held to a bound that counts values
    recipe = contract.recipe_for("genurl", method=method, train=train or {}, encoder=encoder)
    run = contract.start(recipe, folder / "run", rank=rank, world_size=world_size)
    trainer.refresh_memory(run)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("structures", [[KNN], [{"kind": "instance"}, KNN]])
def test_a_run_with_neighbours_resumes_in_the_middle_of_an_epoch(tmp_path, structures):
    for name in ("whole", "part"):
        (tmp_path / name).mkdir()
    whole = start(tmp_path / "whole", structures=structures)
    expected = contract.steps(whole, 4)
    part = start(tmp_path / "part", structures=structures)
    contract.steps(part, 2)
    trainer.save(part)
    resumed = start(tmp_path / "part", structures=structures)
    assert resumed.step == 2
    assert contract.steps(resumed, 2) == expected[2:]


CASES = {
    "knn": {"structures": [{"kind": "instance"}, KNN]},
    "all pairs": {"structures": [{"kind": "instance"}, KNN], "pairs": "all", "kind": "bce"},
    "one view": {"structures": [KNN], "kind": "bce", "nu_z": 1.0},
}


def one_step(rank, world_size):
    results = {}
    for name, method in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            run = start(Path(folder), rank=rank, world_size=world_size, **method)
            before = {k: v.clone() for k, v in run.method.named_parameters()}
            ((micro_batches, _),) = run.loader.steps(0, 1)
            logs = trainer.train_step(run, micro_batches)
            results[name] = {
                "loss": distributed.mean(logs["loss"]),
                "change": {k: v.detach() - before[k].detach() for k, v in run.method.named_parameters()},
            }
    return results


@pytest.mark.slow
def test_two_ranks_equal_one_with_neighbours():
    alone, ranks = one_step(0, 1), on_ranks(one_step, 2, 2)
    for name in CASES:
        scale = max(float(change.abs().max()) for change in alone[name]["change"].values())
        for result in ranks:
            torch.testing.assert_close(result[name]["loss"], alone[name]["loss"], rtol=1e-5, atol=0)
            for key, change in alone[name]["change"].items():
                error = (result[name]["change"][key] - change).norm()
                assert error <= 3e-5 * change.norm() + 3e-6 * scale * change.numel() ** 0.5, (name, key)


def test_a_part_of_a_batch_reads_its_own_columns(tmp_path):
    run = start(
        tmp_path,
        structures=[{"kind": "instance"}, KNN],
        train={"accumulate": 2, "allow_split_batch": True},
    )
    ((micro_batches, _),) = run.loader.steps(0, 1)
    graph = run.memory.record.memory.graphs["knn"]
    for loaded in micro_batches:
        batch = run.loader.to_batch(loaded)
        p = run.method.static_target(batch, run.memory.snapshot(loaded[0].rows), run.progress)
        rows = batch.index.numpy()
        expected = kappa(0, 100.0) * np.eye(8) + 0.5 * graph[rows][:, rows].toarray()
        np.testing.assert_allclose(p, expected, rtol=1e-5)


# -------------------------------------------------------------------- geodesics


def test_geodesics_are_the_shortest_paths_within_reach():
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import floyd_warshall

    from raysurl.methods.genurl.similarity import Edges, geodesics

    random = np.random.default_rng(0)
    pairs = np.unique(np.sort(random.integers(0, 30, (40, 2)), axis=1), axis=0)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    length = random.uniform(0.5, 2, len(pairs))
    edges = Edges(
        np.concatenate([pairs[:, 0], pairs[:, 1]]),
        np.concatenate([pairs[:, 1], pairs[:, 0]]),
        np.tile(length, 2),
    )
    paths = floyd_warshall(csr_array((edges.distance, (edges.source, edges.target)), shape=(31, 31)))
    for reach in (0.5, 1.5, 3.0):
        found = geodesics(edges, 31, reach)  # sample 30 is isolated
        expected = (paths <= reach * edges.distance.mean()) & ~np.eye(31, dtype=bool)
        assert set(zip(found.source, found.target, strict=True)) == set(
            zip(*np.nonzero(expected), strict=True)
        )
        np.testing.assert_allclose(found.distance, paths[found.source, found.target])


def test_a_geodesic_graph_reaches_two_hops(tmp_path):
    np.savez(tmp_path / "chain.npz", edges=[[0, 1], [1, 2], [2, 3]])
    near, far = (
        Graph(path=str(tmp_path / "chain.npz"), length="equal", geodesic=g, scale="statistics")
        .graph(None, 5, 100.0)
        .toarray()
        for g in (None, 2.0)
    )
    assert (near > 0).sum() == 6
    assert {(i, j) for i, j in zip(*np.nonzero(far), strict=True) if i < j} == {
        (0, 1),
        (1, 2),
        (2, 3),
        (0, 2),
        (1, 3),
    }
    assert far[0, 1] > far[0, 2] > 0
    assert not far[4].any()


def test_the_most_similar_of_all_graphs_come_first(monkeypatch):
    from scipy.sparse import csr_array

    from raysurl.methods.genurl import memory as graph_memory
    from raysurl.methods.genurl.memory import GraphMemory

    monkeypatch.setattr(graph_memory, "FOLLOWED", 2)
    memory = GraphMemory({"a": None, "b": None}, 4)
    memory.graphs = {
        "a": csr_array(
            np.array([[0, 0.2, 0.5, 0.1], [0, 0, 0, 0], [0.3, 0, 0, 0], [0, 0, 0, 0]], np.float32)
        ),
        "b": csr_array(np.array([[0, 0.4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0.9], [0, 0, 0, 0]], np.float32)),
    }
    found = memory.neighbour_graph()
    np.testing.assert_array_equal(found, [[1, 2], [-1, -1], [3, 0], [-1, -1]])
