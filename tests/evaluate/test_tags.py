"""Images that show several classes (VOC07): the reader, mean average precision, SVM, probe and transfer, each beside an
independent implementation."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC
from voc_files import annotation, voc_files

from raysurl.commands import evaluate as command
from raysurl.data import voc
from raysurl.data.names import open_samples
from raysurl.data.planetoid import TRAIN, VALIDATION
from raysurl.encoder import encoder_of, write_encoder
from raysurl.errors import InputError
from raysurl.evaluate import Features, evaluate, svm, transfer
from raysurl.evaluate.evaluator import Evaluator
from raysurl.evaluate.expected import final_names
from raysurl.evaluate.precision import Ranking
from raysurl.recipe import Data, Evaluation, dump, load_recipe
from raysurl.run import check_targets, division_of
from raysurl.runtime import LocalRuntime
from raysurl.train import local

# -------------------------------------------------------------------- the reader


def test_voc_is_read_with_its_own_splits_and_what_is_difficult_is_not_judged(tmp_path):
    voc_files(tmp_path)
    data = Data(name="voc:2007", path=str(tmp_path))
    train, test = (open_samples(data, split, 0) for split in ("train", "eval"))
    assert (len(train), len(test)) == (36, 20)
    assert train.labels is None
    assert train.tag_names == voc.CLASSES
    assert train.split.tolist() == [TRAIN] * 24 + [VALIDATION] * 12
    assert train.name_of(4).endswith("VOC2007/JPEGImages/000005.jpg")
    # 5 shows a bicycle, and with 5·7 % 5 = 0 a difficult aeroplane; 8 shows an aeroplane and a bicycle
    assert train.tags[4, [0, 1]].tolist() == [-1, 1]
    assert train.tags[7, [0, 1]].tolist() == [1, 1]
    assert (train.tags != 0).sum() == (train.tags[:, [0, 1, 2, 19]] != 0).sum()
    assert train.load([0])[0].shape == (3, 24, 32)
    few = train.select(np.array([7, 4]))
    assert few.tags.tolist() == train.tags[[7, 4]].tolist()
    assert open_samples(Data(name="voc:2007", path=str(tmp_path), labels="none"), "train", 0).tags is None
    (tmp_path / "VOCdevkit/VOC2007/ImageSets/Main/test.txt").unlink()
    assert open_samples(data, "eval", 0) is None
    voc_files(tmp_path, {"train": 3, "val": 2}, year="2012")
    data = Data(name="voc:2012", path=str(tmp_path))
    assert [len(open_samples(data, split, 0)) for split in ("train", "eval")] == [3, 2]


@given(st.lists(st.tuples(st.sampled_from(voc.CLASSES), st.sampled_from([None, 0, 1])), max_size=6))
def test_tags_are_those_of_the_objects(objects):
    found = {}
    for name, hard in objects:
        found[name] = max(found.get(name, -1), -1 if hard else 1)
    root = annotation(objects)
    tags = voc.tags_of(root.encode())
    assert {voc.CLASSES[i]: int(v) for i, v in enumerate(tags) if v} == found


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda base: (base / "Annotations/000003.xml").unlink(), "000003.xml cannot be read"),
        (lambda base: (base / "Annotations/000003.xml").write_text("<a"), "000003.xml is no XML"),
        (lambda base: (base / "Annotations/000003.xml").write_bytes(b"\xff\xfe\x00"), "000003.xml is no XML"),
        (lambda base: (base / "Annotations/000003.xml").write_text(annotation([("cow ", 2)])), "difficult='2'"),
        (lambda base: (base / "Annotations/000003.xml").write_text(annotation([("unicorn", 0)])), "class 'unicorn'"),
        (lambda base: (base / "ImageSets/Main/trainval.txt").write_text("../x\n"), "not an image"),
        (lambda base: (base / "ImageSets/Main/trainval.txt").write_text("000003\n000003\n"), "twice"),
        (lambda base: (base / "ImageSets/Main/trainval.txt").unlink(), r"ImageSets/Main/trainval\.txt; give"),
    ],
)  # fmt: skip
def test_a_damaged_voc_is_one_sentence(spoil, said, tmp_path):
    voc_files(tmp_path, {"train": 3, "val": 1, "test": 1})
    spoil(tmp_path / "VOCdevkit/VOC2007")
    with pytest.raises(InputError, match=said):
        open_samples(Data(name="voc:2007", path=str(tmp_path)), "train", 0)


def test_other_years_and_a_missing_path_are_refused(tmp_path):
    for data, said in (
        (Data(name="voc:1999", path=str(tmp_path)), "choose one of 2007"),
        (Data(name="voc:2007"), r"needs data\.path="),
        (Data(name="voc:2007", path=str(tmp_path / "no")), "does not exist"),
    ):
        with pytest.raises(InputError, match=said):
            open_samples(data, "train", 0)


# -------------------------------------------------------------------- mean average precision


def slow_precision(scores, truth, eleven):
    """Each distinct score as a threshold."""
    points = []
    for threshold in sorted(set(scores), reverse=True):
        above = [t for s, t in zip(scores, truth, strict=True) if s >= threshold]
        points.append((sum(above) / sum(truth), sum(above) / len(above)))
    if eleven:
        tops = [max((p for r, p in points if r >= i / 10 - 1e-12), default=0) for i in range(11)]
        return sum(tops) / 11
    area, before = 0.0, 0.0
    for i, (recall, _) in enumerate(points):
        area += (recall - before) * max(p for _, p in points[i:])
        before = recall
    return area


@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from([1, 1, 0, 0, -1])), min_size=1, max_size=30))
def test_average_precision_is_that_of_a_slow_loop(pairs):
    scores, tags = (torch.tensor(column)[:, None] for column in zip(*pairs, strict=True))
    kept = [(s, t) for s, t in pairs if t >= 0]
    for kind in ("map", "map11"):
        found = Ranking(scores, tags).mean(kind)
        if any(t for _, t in kept):
            assert found == pytest.approx(100 * slow_precision(*zip(*kept, strict=True), kind == "map11"))
        else:
            assert found == 0


def test_a_resampling_is_the_same_as_repeated_images():
    random = np.random.default_rng(0)
    scores, tags = torch.tensor(random.normal(size=(40, 3))), torch.tensor(random.integers(-1, 2, (40, 3)))
    taken = random.multinomial(40, np.full(40, 1 / 40))
    again = np.repeat(np.arange(40), taken)
    for kind in ("map", "map11"):
        assert Ranking(scores, tags).mean(kind, taken) == pytest.approx(
            Ranking(scores[again], tags[again]).mean(kind)
        )


# -------------------------------------------------------------------- protocols


@pytest.fixture(scope="module")
def features():
    random = np.random.default_rng(1)
    centres = random.normal(size=(5, 16))
    parts, tags = [], []
    for count in (240, 200):
        shown = (random.random((count, 5)) < 0.3).astype(np.int8)
        shown[random.random((count, 5)) < 0.04] = -1
        rows = (shown == 1) @ centres + 1.1 * random.normal(size=(count, 16))
        parts.append(torch.tensor(rows, dtype=torch.float32))
        tags.append(torch.tensor(shown))
    unknown = [torch.full((count,), -1) for count in (240, 200)]
    return Features(parts[0], unknown[0], parts[1], unknown[1], 0, of="voc:2007", tags=tuple(tags))


def test_the_machines_are_those_of_the_cited_code(features):
    train, test = (
        rows.double().numpy() / np.linalg.norm(rows.double().numpy(), axis=1)[:, None]
        for rows in (features.train, features.test)
    )
    tags, truth = (part.numpy() for part in features.tags)
    found = evaluate(features, Evaluation(svm_shots=[4], svm_costs=[0.5]), protocols=["svm"])
    expected = []
    for column, known in zip(tags.T, truth.T, strict=True):
        machine = LinearSVC(C=0.5, class_weight={1: 2, -1: 1}, dual=True, max_iter=20000, random_state=0)
        machine.fit(train[column >= 0], np.where(column[column >= 0] == 1, 1, -1))
        scores = machine.decision_function(test)[known >= 0]
        expected.append(slow_precision(list(scores), list(known[known >= 0]), False))
    assert found["eval/svm_map"] == pytest.approx(100 * np.mean(expected), abs=0.05)
    low, high = found["eval/svm_map"].interval
    assert low < found["eval/svm_map"] < high < low + 15
    assert 50 < found["eval/svm4_map"] < found["eval/svm_map"]
    assert len(found["eval/svm4_map"].interval) == 2


def test_the_cost_is_the_best_of_three_folds(features):
    column = features.tags[0][:, 0].numpy()
    rows, truth = svm.unit(features.train)[column >= 0], np.where(column[column >= 0] == 1, 1, -1)
    costs = (1e-4, 1e-2, 1.0, 100.0)
    judged = [
        cross_val_score(
            LinearSVC(C=cost, class_weight={1: 2, -1: 1}, dual=False), rows, truth, cv=3, scoring="average_precision"
        ).mean()
        for cost in costs
    ]  # fmt: skip
    assert svm.best_cost(rows, truth, costs) == costs[int(np.argmax(judged))]
    assert svm.best_cost(rows[:3], np.array([1, -1, -1]), costs) == 1.0


@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=1, max_size=12))
def test_the_precision_by_which_costs_are_chosen_is_scikit_learns(pairs):
    right, scores = (np.array(column) for column in zip(*pairs, strict=True))
    expected = average_precision_score(right, scores) if right.any() else 0.0
    assert svm.average_precision(right, scores / 3) == pytest.approx(expected)


def test_in_fewer_rows_than_columns_the_machine_is_the_same():
    random = np.random.default_rng(2)
    rows, test = random.normal(size=(12, 40)), random.normal(size=(9, 40))
    tags = np.array([[1, 0, -1, 1, 0, 1, 0, 0, 1, 0, 1, 0]], np.int8).T
    direct = svm.machine(rows[tags[:, 0] >= 0], np.where(tags[tags[:, 0] >= 0, 0] == 1, 1, -1), 0.1)
    assert np.allclose(
        svm.scores_of(rows, tags, test, [0.1])[:, 0], direct.decision_function(test), atol=2e-3
    )


@given(st.integers(1, 9), st.integers(0, 3))
def test_k_images_are_drawn_of_each_class(k, draw):
    tags = (np.arange(60)[:, None] % np.array([3, 4, 30]) == 0).astype(np.int8)
    index = svm.drawn(tags, k, seed=0, draw=draw)
    parts = np.split(index, np.cumsum([min(k, n) for n in (20, 15)]))
    assert [len(set(part)) for part in parts] == [min(k, n) for n in (20, 15, 2)]
    assert all(tags[part, i].all() for i, part in enumerate(parts))
    assert np.array_equal(index, svm.drawn(tags, k, seed=0, draw=draw))


@pytest.mark.slow
def test_the_probe_is_that_of_torch(features):
    settings = Evaluation(probe="mvmr", linear_epochs=4, linear_lr=0.02, linear_augment="plain")
    found = evaluate(features, settings, protocols=["multilabel"])
    from raysurl import streams

    draws = streams.torch_stream(0, "linear probe")
    layer = torch.nn.Linear(16, 5)
    with torch.no_grad():
        layer.weight.copy_(0.01 * torch.randn(5, 16, generator=draws))
        layer.bias.zero_()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    for _ in range(4):
        for part in torch.randperm(240, generator=draws).split(256):
            tags = features.tags[0][part]
            terms = F.binary_cross_entropy_with_logits(
                layer(features.train[part]), (tags == 1).float(), reduction="none"
            )
            optimizer.zero_grad()
            (terms * (tags >= 0)).sum(1).mean().backward()
            optimizer.step()
    expected = Ranking(layer(features.test).detach(), features.tags[1])
    for kind in ("map", "map11"):
        assert found[f"eval/multilabel_{kind}"] == pytest.approx(expected.mean(kind), abs=0.02)
    several = settings.model_copy(update={"linear_lr": (1e-7, 0.05)})
    assert evaluate(features, several, protocols=["multilabel"])["eval/multilabel_lr"] == 0.05


def test_transfer_is_scikit_learns_of_each_class_and_chooses_by_eleven_points(features, monkeypatch):
    monkeypatch.setattr(transfer, "PENALTIES", (1e4, 10.0, 0.1))
    found = evaluate(features, Evaluation(), protocols=["transfer"])
    rows = features.train.double()
    mean, by = rows.mean(0), (rows - rows.mean(0)).square().mean().sqrt()
    train, test = ((part.double() - mean) / by for part in (features.train, features.test))
    scores = []
    for column in features.tags[0].T.numpy():
        kept = column >= 0
        model = LogisticRegression(C=1 / found["eval/transfer_penalty"], tol=1e-7, max_iter=5000)
        scores.append(model.fit(train[kept], column[kept]).decision_function(test))
    expected = Ranking(torch.tensor(np.stack(scores, 1)), features.tags[1])
    assert found["eval/transfer_map11"] == pytest.approx(expected.mean("map11"), abs=0.3)
    assert "eval/transfer_top1" not in found
    known = torch.arange(240) < 60
    chosen = Features(
        features.train, features.train_labels, features.test, features.test_labels, 0,
        of="voc:2007", tags=features.tags, validation=known,
    )  # fmt: skip
    assert torch.equal(transfer.held_out(chosen, 0), known)


# -------------------------------------------------------------------- whole


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    recipe = load_recipe(["recipe=ressl/digits", "encoder.channels=[8, 16]", "views.size=16"])
    write_encoder(root, encoder_of(recipe), recipe)
    (root / "recipe.yaml").write_text(dump(recipe))
    return root


@pytest.mark.slow
def test_a_run_is_judged_on_voc(run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(transfer, "PENALTIES", (10.0, 0.1))
    given = [
        f"run={run_dir}", *voc_files(tmp_path), "eval.svm_shots=[4]", "eval.svm_costs=[0.5, 1]",
        "eval.linear_epochs=3", "eval.linear_lr=0.1",
    ]  # fmt: skip
    asked = "eval.protocols=[svm, multilabel, transfer, rankme]"
    command.main([*given, asked])
    written = json.loads((run_dir / "evaluation.json").read_text())
    recipe = load_recipe([*given[1:], asked, "recipe=ressl/digits"])
    samples, test = (open_samples(recipe.data, split, 0) for split in ("train", "eval"))
    expected = {name for name in final_names(recipe, division_of(samples, test)) if name.startswith("eval/")}
    assert {name for name in written["metrics"] if name.startswith("eval/")} == expected
    assert written["metrics"]["eval/svm_map"] > 60  # classes are colours
    assert set(written["intervals"]) >= {"eval/svm4_map", "eval/multilabel_map11", "eval/transfer_map11"}


def test_what_the_data_cannot_give_is_one_sentence(run_dir, tmp_path):
    with pytest.raises(
        InputError, match=r"protocols=svm needs images of several classes each.*digits has none"
    ):
        command.main([f"run={run_dir}", "eval.protocols=[knn, svm]"])
    data = voc_files(tmp_path, {"train": 6, "val": 2, "test": 4})
    with pytest.raises(InputError, match=r"protocols=knn needs labels and voc:2007 has none"):
        command.main([f"run={run_dir}", *data, "eval.protocols=[knn, svm]"])
    (tmp_path / "VOCdevkit/VOC2007/ImageSets/Main/test.txt").unlink()
    with pytest.raises(InputError, match="voc:2007 has no test set"):
        command.main([f"run={run_dir}", *data, "eval.protocols=[transfer]"])


def test_labelled_data_go_on_as_before():
    recipe = load_recipe(["recipe=ressl/digits", "eval.protocols=[transfer, knn]"])
    samples, test = (open_samples(recipe.data, split, 0) for split in ("train", "eval"))
    check_targets(recipe, division_of(samples, test), test, recipe.eval.protocols)


def test_a_protocol_that_the_data_do_not_serve_asks_the_other_ranks_for_nothing(tmp_path):
    given = [
        "recipe=ressl/digits",
        *voc_files(tmp_path, {"train": 6, "val": 2, "test": 4}),
        "eval.linear_augment=weak",
    ]
    asked = {"linear": (), "multilabel": ("augmented",)}
    for protocol, needed in asked.items():
        recipe = load_recipe([*given, f"eval.protocols=[{protocol}]"])
        sources = local.open_sources(
            recipe, *(open_samples(recipe.data, part, 0) for part in ("train", "eval"))
        )
        evaluator = Evaluator(recipe, LocalRuntime(torch.device("cpu")), *sources)
        assert bool(evaluator._augmented(encoder_of(recipe))) == bool(needed)
