"""RCL's memory tells each sample the right keys and labels; the method reduces to what it should."""

import subprocess
import sys

import contract
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from raysurl import metrics
from raysurl.errors import InputError
from raysurl.functional import info_nce
from raysurl.memory import Queue
from raysurl.method import Progress
from raysurl.methods.nnclr import nearest
from raysurl.methods.rcl.memory import OWN, ClusterMemory, one_level, own, per_level
from raysurl.methods.rcl.offline import KMeansLabels
from raysurl.train import trainer

N, D = 40, 8


class Planted:
    """Sample i has label i // 4 under the second criterion and i // 20 under the third."""

    def fit(self, features):
        pass

    def update(self, index, features, *, step=None):
        pass

    def labels(self, index):
        return np.stack([index, index // 4, index // 20])


def memory_of(pick, *, size=64, seed=0):
    memory = ClusterMemory(Queue(size, D), Planted, pick, views=2, seed=seed)
    memory.refresh(torch.randn(N, D), Progress(0, 1, 1))
    return memory


def filled(memory, index):
    index = torch.tensor(index)
    memory.push(F.normalize(torch.randn(2 * len(index), D), dim=1), index.repeat(2))
    return memory


def test_before_the_first_clustering_every_key_is_the_own_one():
    memory = ClusterMemory(Queue(8, D), Planted, per_level, views=2, seed=0)
    answer = memory.answer(torch.arange(5), step=3)
    assert (answer["slots"] == OWN).all()
    assert answer["same"].all()


def test_keys_per_level_have_the_samples_label_and_comparisons_are_exact():
    memory = filled(memory_of(per_level), list(range(0, N, 3)))
    index = torch.arange(N)
    answer = memory.answer(index, step=5)
    slots, same = answer["slots"].numpy(), answer["same"].numpy()
    assert slots.shape == (N, 2, 3)
    assert same.shape == (N, 2, 3, 3)
    of_queue = memory.queue.index.numpy()
    for i in range(N):
        for view in range(2):
            assert slots[i, view, 0] == OWN
            for j, group in ((1, 4), (2, 20)):
                slot = slots[i, view, j]
                candidates = [k for k in range(64) if of_queue[k] >= 0 and of_queue[k] // group == i // group]
                assert (slot in candidates) if candidates else slot == OWN
                key = i if slot == OWN else of_queue[slot]
                expected = [key == i, key // 4 == i // 4, key // 20 == i // 20]
                assert same[i, view, j].tolist() == expected


def test_picks_are_uniform_over_the_entries_with_the_label_and_follow_seed_and_step_alone():
    memory = filled(memory_of(per_level), list(range(20)))
    chosen = [memory.answer(torch.tensor([1, 30]), step)["slots"][0, 0, 2].item() for step in range(2000)]
    counts = np.bincount(chosen, minlength=64)[:40]
    assert counts.min() > 20  # forty entries of samples 0 … 19, fifty expected each
    again = memory.answer(torch.tensor([1, 30]), 7)
    assert torch.equal(again["slots"], memory.answer(torch.tensor([1, 30]), 7)["slots"])
    alone = memory.answer(torch.tensor([1]), 7)
    assert torch.equal(alone["slots"][0], again["slots"][0]) or len(set(chosen)) > 1
    assert (again["slots"][1, :, 2] == OWN).all()  # nothing of samples 20 … 39 is in the queue


def test_one_level_and_own():
    memory = filled(memory_of(one_level), list(range(N)))
    slots = memory.answer(torch.arange(N), 1)["slots"]
    assert slots.shape == (N, 2, 1)
    assert (slots == OWN).any()
    assert (slots != OWN).any()
    assert (filled(memory_of(own), list(range(N))).answer(torch.arange(4), 1)["slots"] == OWN).all()


def test_a_restored_memory_answers_the_same():
    bank = lambda: KMeansLabels(N, shares=(0.4, 0.1), seed=0)  # noqa: E731
    first = ClusterMemory(Queue(16, D), bank, per_level, views=2, seed=3)
    first.refresh(torch.randn(N, D, generator=torch.Generator().manual_seed(0)), Progress(0, 1, 1))
    filled(first, list(range(12)))
    second = ClusterMemory(Queue(16, D), bank, per_level, views=2, seed=3)
    second.load_state_dict(first.state_dict())
    ours, theirs = (m.answer(torch.arange(20), 9) for m in (second, first))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_label_bank_finds_planted_clusters_and_refuses_what_it_cannot_cluster():
    generator = np.random.default_rng(0)
    centres = np.linalg.qr(generator.normal(size=(D, D)))[0][:5]
    truth = np.repeat(np.arange(5), 8)
    rows = centres[truth] + 0.05 * generator.normal(size=(N, D))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    bank = KMeansLabels(N, shares=(0.125,), seed=0)
    bank.fit(rows)
    level = bank.labels(np.arange(N))[1]
    assert len({(a, b) for a, b in zip(truth, level, strict=True)}) == 5
    with pytest.raises(InputError, match="40 finite feature rows"):
        bank.fit(rows[:10])
    with pytest.raises(InputError, match="not finite"):
        bank.fit(np.full_like(rows, np.nan))


def _run(tmp_path, **method):
    small = {"hidden": 32, "predictor_hidden": 32, "dim": 16, "queue_size": 48, "warmup_epochs": 1}
    return contract.start(contract.recipe_for("rcl", method=small | method), tmp_path / "run")


def test_one_level_with_the_own_key_is_info_nce_to_float_precision(tmp_path):
    run = _run(tmp_path, hierarchy={"levels": 1}, key="self")
    contract.steps(run, 3)  # all 48 slots are filled
    ((micro_batches, _),) = run.loader.steps(run.step, run.step + 1)
    batch = run.loader.to_batch(micro_batches[0])
    output = run.method(batch, run.memory.snapshot(slice(0, 16)), run.progress)
    queue = run.memory.snapshot(slice(0, 16))["features"]
    views = batch.views["view_1"], batch.views["view_2"]
    q1, q2 = (run.method.queries(x)[0] for x in views)
    k1, k2 = output.push.keys
    expected = (info_nce(q1, k2, queue, tau=0.1) + info_nce(q2, k1, queue, tau=0.1)) / 2
    assert float(output.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_one_level_with_the_nearest_key_takes_nnclrs_positive(tmp_path):
    run = _run(tmp_path, hierarchy={"levels": 1}, key="nearest")
    contract.steps(run, 2)  # 32 of 48 slots are filled: random ones are never chosen
    ((micro_batches, _),) = run.loader.steps(run.step, run.step + 1)
    batch = run.loader.to_batch(micro_batches[0])
    snapshot = run.memory.snapshot(slice(0, 16))
    output = run.method(batch, snapshot, run.progress)
    expected = []
    for view, key in (("view_1", output.push.keys[1]), ("view_2", output.push.keys[0])):
        query, positive = run.method.queries(batch.views[view])[0], nearest(key, snapshot)
        taken = (positive @ snapshot["features"].T).argmax(dim=1)
        for row in range(16):  # the chosen entry is not a negative too
            others = torch.arange(48) != taken[row]
            one = slice(row, row + 1)
            expected.append(info_nce(query[one], positive[one], snapshot["features"][others], tau=0.1))
    assert float(output.loss.detach()) == pytest.approx(
        float(torch.stack(expected).mean().detach()), rel=1e-5
    )


@pytest.mark.parametrize("kind", ["online", "dbscan", "kmeans"])
def test_clusters_are_made_after_the_warm_up_and_keys_are_then_retrieved(tmp_path, kind):
    run = _run(tmp_path, hierarchy={"kind": kind})
    contract.steps(run, 5)  # one epoch
    assert (run.memory.snapshot(slice(0, 16))["slots"] == OWN).all()
    trainer.refresh_memory(run)
    slots = run.memory.snapshot(slice(0, 16))["slots"]
    assert slots.shape == (16, 2, 3)
    assert (slots != OWN).any()
    losses = contract.steps(run, 3)
    assert all(np.isfinite(losses))


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"key": "nearest"},
        {"key": "sample"},
        {"dedupe": False},
        {"predictors": "one"},
        {"hierarchy": {"kind": "dbscan", "merge_thresholds": [0.9, 0.8]}},
        {"hierarchy": {"kind": "kmeans"}},
        {"hierarchy": {"levels": 2}},
        {"hierarchy": {"levels": 2, "instance_level": False}},
        {"hierarchy": {"merge_thresholds": [0.3, 0.2]}},
    ],
)
def test_every_switch_changes_the_loss_after_the_warm_up(tmp_path, change):
    def trajectory(folder, **method):
        run = _run(folder, warmup_epochs=0, **method)
        trainer.refresh_memory(run)
        return contract.steps(run, 5)

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert trajectory(tmp_path / "a", **change) != trajectory(tmp_path / "b")


@pytest.mark.slow
def test_the_state_of_the_clusters_is_recorded_each_epoch_and_every_n_steps(tmp_path):
    small = {"hidden": 32, "predictor_hidden": 32, "dim": 16, "queue_size": 48, "warmup_epochs": 1}
    recipe = contract.recipe_for("rcl", method=small)
    recipe = recipe.model_copy(update={"log": recipe.log.model_copy(update={"memory_every_steps": 2})})
    contract.train(recipe, tmp_path / "run")
    lines = [line for line in metrics.read(tmp_path / "run" / "metrics.jsonl") if "health/level2_nmi" in line]
    assert [line["step"] for line in lines] == [5, 6, 8, 10]  # made at 5, looked at on even steps, end at 10
    assert {"clusters", "largest_share", "entropy", "splits", "merges", "purity", "ari"} <= {
        name.removeprefix("health/level3_") for name in lines[0]
    }
    assert all("health/level2_churn" in line for line in lines[1:])


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        (
            {},
            "online clusters with relocation, noise correction, up to 16 pieces a split, beyond the paper's text",
        ),
        (
            {"correct_noise": False, "prototypes": 2},
            "online clusters with relocation, beyond the paper's text",
        ),
        (
            {"relocate": False, "correct_noise": False, "prototypes": 2},
            "online clusters by the paper's text",
        ),
        (
            {"relocate": False, "correct_noise": False, "prototypes": 2, "max_clusters": 9},
            "online clusters with at most 9 clusters a step, beyond the paper's text",
        ),
        ({"kind": "kmeans"}, "K-means before each epoch, the paper's offline arm"),
        ({"levels": 1}, "no clusters"),
    ],
)
def test_every_number_says_which_rule_made_it(settings, rule):
    assert contract.recipe_for("rcl", method={"hierarchy": settings}).method.rule() == rule
    assert contract.recipe_for("ressl").method.rule() == ""


def test_what_compiles_the_hierarchy_is_loaded_where_memory_is_made_and_nowhere_else():
    code = "import sys, raysurl.methods.rcl, raysurl.health; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
