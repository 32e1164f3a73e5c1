"""Distillation losses against slow references that share no code with them, and what holds of every such method."""

from dataclasses import replace

import contract
import numpy as np
import pytest
import torch
from scipy.stats import t as student_t

from raysurl import build, method
from raysurl.errors import InputError
from raysurl.functional import distance_correlation
from raysurl.method import Batch, Progress
from raysurl.methods import crd, pkt, rkd, sp, sskd
from raysurl.recipe import load_recipe
from raysurl.teachers import LabelTeacher
from raysurl.train import trainer

TAUGHT = [
    name
    for name in method.available()
    if contract.recipe_for(name).method.learns_from() in ("any", "network")
]
GENURL_KD = {"structures": [{"kind": "teacher"}], "target": "static", "kind": "bce", "sigma": 1.0}
MVMR_KD = {"features": [], "teacher_weight": 2.0, "l3_sign": "official"}


def rows(b, d, seed):
    return torch.randn(b, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def output_of(run):
    ((micro_batches, _),) = run.loader.steps(run.step, run.step + 1)
    batch = run.loader.to_batch(micro_batches[0])
    return batch, run.method(batch, run.memory.snapshot(slice(None)) if run.memory else {}, run.progress)


def taught(run, batch, view):
    return run.method.frozen.teach(batch, view).views["teacher"]


# -------------------------------------------------------------------- equations


def huber(x):
    return np.where(np.abs(x) < 1, 0.5 * x**2, np.abs(x) - 0.5)


def test_rkd_distances_and_angles_follow_the_paper_pair_by_pair():
    s, t = rows(6, 5, 0), rows(6, 9, 1)

    def relations(x):
        x = x.double().numpy()
        d = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
        angle = np.zeros((6, 6, 6))  # of a row with itself there is none
        for i, j, k in np.ndindex(6, 6, 6):
            if len({i, j, k}) == 3:
                angle[i, j, k] = unit(x[i] - x[j]) @ unit(x[k] - x[j])
        return d / d[~np.eye(6, dtype=bool)].mean(), angle

    (ds, as_), (dt, at) = relations(s), relations(t)
    assert float(rkd.distance_loss(s, t)) == pytest.approx(huber(ds - dt).mean(), rel=1e-5)
    assert float(rkd.angle_loss(s, t)) == pytest.approx(huber(as_ - at).mean(), rel=1e-5)


def test_rkd_stays_finite_for_equal_rows_and_knows_its_largest_batch():
    s = rows(5, 4, 0)
    s[1] = s[0]
    s.requires_grad_()
    (rkd.distance_loss(s, rows(5, 3, 1)) + rkd.angle_loss(s, rows(5, 3, 1))).backward()
    assert torch.isfinite(s.grad).all()
    assert rkd.RKD.Config().largest_batch() == 512
    with pytest.raises(InputError, match="use at most 512"):
        contract.recipe_for("rkd", train={"batch_size": 514})


def test_pkt_is_the_kl_of_conditional_probabilities():
    s, t = rows(7, 5, 0), rows(7, 3, 1)

    def probabilities(x):
        z = unit(x.double().numpy())
        k = (z @ z.T + 1) / 2
        return k / k.sum(axis=1, keepdims=True)

    p, q = probabilities(t), probabilities(s)
    expected = np.mean([p[i, j] * np.log(p[i, j] / q[i, j]) for i in range(7) for j in range(7)])
    assert float(pkt.neighbour_divergence(s, t)) == pytest.approx(expected, rel=1e-4)
    assert float(pkt.neighbour_divergence(t, t)) == pytest.approx(0, abs=1e-6)


def test_sp_rows_are_products_of_length_one():
    x = rows(6, 5, 0)
    g = x.double().numpy() @ x.double().numpy().T
    np.testing.assert_allclose(sp.similarities(x).numpy(), unit(g), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalise", [True, False])
def test_crd_critic_is_the_papers_nce(normalise):
    logits, samples = 3 * rows(4, 7, 0), 11
    left_out = torch.zeros(4, 6, dtype=torch.bool)
    left_out[1, 2] = left_out[3, 0] = True
    expected = []
    for row, out in zip(logits.double().numpy(), left_out.numpy(), strict=True):
        score = np.exp(row)
        if normalise:
            score = score / (samples * score[1:][~out].mean())
        h = score / (score + 6 / samples)
        expected.append(-np.log(h[0]) - np.log(1 - h[1:][~out]).sum())
    loss = crd.critic_loss(logits, left_out, samples=samples, normalise=normalise)
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-5)


def test_crd_bank_keeps_teacher_and_student_of_each_sample_apart():
    bank = crd.PairBank(2 * 5, 3, momentum=0.0, tau=1.0)
    keys = torch.nn.functional.normalize(rows(4, 3, 0), dim=1)
    mirror = bank.mirror(torch.device("cpu"))
    for memory in (bank, mirror):
        memory.push(keys, torch.tensor([3, 1, 3, 1]))  # two samples: the teacher's rows, then the student's
        torch.testing.assert_close(memory.features[[3, 1, 8, 6]], keys)
    drawn = [crd.negatives(50, 9, Progress(step, 10, 5, seed=2)) for step in (3, 3, 4)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert drawn[0].min() >= 0
    assert drawn[0].max() < 9


def test_seed_is_the_cross_entropy_over_the_queue_and_the_samples_own_embedding(tmp_path):
    run = contract.start(contract.recipe_for("seed"), tmp_path / "run")
    run.method.eval()
    batch, out = output_of(run)
    zs = unit(run.method.neck(run.method.encoder(batch.views["view"])).double().detach().numpy())
    zt, queue = (
        unit(taught(run, batch, "view").double().numpy()),
        run.memory.snapshot(slice(None))["features"].numpy(),
    )
    expected = []
    for s, t in zip(zs, zt, strict=True):
        d = np.vstack([queue, t])
        p, q = np.exp(d @ t / 0.01 - 100), np.exp(d @ s / 0.2)
        expected.append(-(p / p.sum() * np.log(q / q.sum())).sum())
    assert float(out.loss.detach()) == pytest.approx(np.mean(expected), rel=1e-4)
    np.testing.assert_allclose(out.push.keys[0], zt, rtol=1e-4, atol=1e-6)


def test_sskd_transfers_right_rows_and_the_best_ranked_of_the_wrong():
    a = torch.tensor([[0.9, 0.1, 0.2, 0.3], [0.5, 0.4, 0.1, 0.0], [0.9, 0.8, 0.7, 0.6], [0.9, 0.8, 0.7, 0.6]])
    own = torch.tensor([0, 1, 2, 3])  # ranks 0, 1, 2, 3
    assert sskd.selected(a, own, 0.0).tolist() == [True, False, False, False]
    assert sskd.selected(a, own, 0.67).tolist() == [True, True, True, False]
    assert sskd.selected(a, own, 1.0).all()


def test_sskd_loss_is_that_of_its_definition(tmp_path):
    run = contract.start(contract.recipe_for("sskd"), tmp_path / "run")
    run.method.eval()
    batch, out = output_of(run)
    net = torch.nn.Sequential(run.method.encoder, run.method.projector)
    views = [torch.rot90(x, k, (2, 3)) for k, x in enumerate(batch.views.values())]
    assert len(views) == 4
    zs = [unit(net(v).detach().double().numpy()) for v in views]
    zt = [unit(run.method.frozen.embed(v).double().numpy()) for v in views]
    losses, contrast = [], []
    wrong = []
    for i in range(16):
        for k in (1, 2, 3):
            at, as_ = zt[k][i] @ zt[0].T, zs[k][i] @ zs[0].T
            p, q = np.exp(at / 0.5), np.exp(as_ / 0.5)
            losses.append(-(p / p.sum() * np.log(q / q.sum())).sum())
            contrast.append(-np.log(np.exp(as_ / 0.2)[i] / np.exp(as_ / 0.2).sum()))
            wrong.append((at > at[i]).sum())
    order = sorted(range(48), key=lambda r: wrong[r])
    right = sum(w == 0 for w in wrong)
    kept = order[: right + int(0.75 * (48 - right))]
    assert float(out.loss.detach()) == pytest.approx(
        10 * 0.25 * np.mean(np.array(losses)[kept]) + np.mean(contrast), rel=1e-4
    )


# -------------------------------------------------------------------- GenURL and MV-MR


def kernel(d):
    return np.sqrt(2 * np.pi) * student_t.pdf(d, 100)


def bce(p, q):
    return -p * np.log(q) - (1 - p) * np.log(1 - q)


def test_genurl_distils_all_pairs_of_the_batch(tmp_path):
    run = contract.start(contract.recipe_for("genurl", method=GENURL_KD), tmp_path / "run")
    run.method.eval()
    batch, out = output_of(run)
    zs = unit(run.method.neck(run.method.encoder(batch.views["view_1"])).double().detach().numpy())
    zt = unit(taught(run, batch, "view_1").double().numpy())
    pairs = bce(kernel(1 - zt @ zt.T), kernel(1 - zs @ zs.T))
    assert float(out.loss.detach()) == pytest.approx(pairs[~np.eye(16, dtype=bool)].mean(), rel=1e-4)


def test_genurls_memory_adds_filled_columns_of_teacher_and_averaged_student(tmp_path):
    recipe = contract.recipe_for("genurl", method={**GENURL_KD, "memory_size": 24})
    assert recipe.method.teacher_dim == 12
    run = contract.start(recipe, tmp_path / "run")
    contract.steps(run, 1)
    snapshot = run.memory.snapshot(slice(None))
    assert (snapshot["index"] >= 0).sum() == 16
    run.method.eval()
    batch, out = output_of(run)
    filled = snapshot["features"][snapshot["index"] >= 0].double().numpy()
    h = run.method.neck(run.method.encoder(batch.views["view_1"])).double().detach().numpy()
    t = taught(run, batch, "view_1").double().numpy()
    zt, zs = unit(np.vstack([t, filled[:, :12]])), unit(np.vstack([h, filled[:, 12:]]))
    pairs = bce(kernel(1 - zt[:16] @ zt.T), kernel(1 - zs[:16] @ zs.T))
    assert float(out.loss.detach()) == pytest.approx(pairs[~np.eye(16, 32, dtype=bool)].mean(), rel=1e-4)
    torch.testing.assert_close(out.push.keys[0][:, :12].double().numpy(), t, rtol=1e-5, atol=1e-6)


def test_genurls_memory_resumes_exactly(tmp_path):
    recipe = contract.recipe_for("genurl", method={**GENURL_KD, "memory_size": 24})
    run = contract.start(recipe, tmp_path / "run")
    contract.steps(run, 2)
    trainer.save(run)
    assert contract.steps(contract.start(recipe, tmp_path / "run"), 2) == contract.steps(run, 2)


def test_genurls_memory_beside_instances_has_the_other_view_for_columns(tmp_path):
    """KD+SSL with M: every column of the batch and each filled one counts, the own one as teacher's and as instance."""
    both = {"structures": [{"kind": "teacher", "weight": 0.5}, {"kind": "instance", "weight": 0.25}]}
    run = contract.start(
        contract.recipe_for("genurl", method={**GENURL_KD, **both, "memory_size": 24}), tmp_path / "run"
    )
    contract.steps(run, 1)
    snapshot = run.memory.snapshot(slice(None))
    run.method.eval()
    batch, out = output_of(run)
    filled = snapshot["features"][snapshot["index"] >= 0].double().numpy()
    h = [
        run.method.neck(run.method.encoder(batch.views[f"view_{i}"])).double().detach().numpy()
        for i in (1, 2)
    ]
    t = taught(run, batch, "view_1").double().numpy()
    zt, columns = unit(np.vstack([t, filled[:, :12]])), unit(np.vstack([h[1], filled[:, 12:]]))
    p = 0.5 * kernel(1 - zt[:16] @ zt.T) + 0.25 * kernel(0.0) * np.eye(16, 32)
    expected = bce(p, kernel(1 - unit(h[0]) @ columns.T)).mean()
    assert float(out.loss.detach()) == pytest.approx(expected, rel=1e-4)


def test_genurls_memory_beside_instances_learns_from_both_views(tmp_path):
    both = {"structures": [{"kind": "teacher"}, {"kind": "instance"}], "memory_size": 24}
    run = contract.start(contract.recipe_for("genurl", method={**GENURL_KD, **both}), tmp_path / "run")
    batch, _ = output_of(run)
    snapshot = run.memory.snapshot(slice(None))
    views = {name: x.clone().requires_grad_() for name, x in batch.views.items()}
    run.method(replace(batch, views=views), snapshot, Progress(0, 10, 5)).loss.backward()
    assert all(x.grad.abs().max() > 0 for x in views.values())


@pytest.mark.parametrize(
    "change",
    [
        {"target": "dynamic"},
        {"structures": [{"kind": "instance"}]},
        {"structures": [{"kind": "teacher"}, {"kind": "knn"}]},
        {"structures": [{"kind": "teacher"}, {"kind": "instance"}], "pairs": "all"},
        {"neck": False},
    ],
)
def test_genurls_memory_is_for_a_teacher_alone_or_beside_instances(change):
    with pytest.raises(InputError, match="memory_size needs the structure teacher, alone or beside instance"):
        contract.recipe_for("genurl", method={**GENURL_KD, "memory_size": 24, **change})


def test_mvmr_raises_the_dependence_on_the_teacher_even_with_the_authors_sign(tmp_path):
    run = contract.start(contract.recipe_for("mvmr", method=MVMR_KD), tmp_path / "run")
    batch, out = output_of(run)
    assert [r.name for r in run.method.representations] == ["teacher"]
    assert float(out.logs["l3"]) == pytest.approx(2 * (1 - float(out.logs["dcor_teacher"])), rel=1e-5)
    assert set(out.logs) >= {"l1", "l2"}
    run.method.eval()
    z = run.method.embed(batch.views["augmented"])
    _, again = output_of(run)
    expected = distance_correlation(z, taught(run, batch, "original"))
    assert float(again.logs["dcor_teacher"]) == pytest.approx(float(expected), rel=1e-4)


# -------------------------------------------------------------------- every method that distils


def test_all_of_them_are_found():
    assert set(TAUGHT) == {"crd", "pkt", "rkd", "seed", "sp", "sskd"}


@pytest.mark.parametrize(
    ("name", "settings"), [(n, {}) for n in TAUGHT] + [("genurl", GENURL_KD), ("mvmr", MVMR_KD)]
)
def test_the_teacher_is_in_no_state_and_gets_no_gradient(name, settings, tmp_path):
    run = contract.start(contract.recipe_for(name, method=settings), tmp_path / "run")
    net = run.method.frozen.net
    before = [p.clone() for p in net.parameters()]
    held = {id(x) for x in [*run.method.parameters(), *run.method.buffers()]}
    assert not held & {id(x) for x in [*net.parameters(), *net.buffers()]}
    assert not any("frozen" in key for key in run.method.state_dict())
    assert net not in list(run.method.modules())
    contract.steps(run, 1)
    assert not net.training
    for p, was in zip(net.parameters(), before, strict=True):
        assert p.grad is None
        assert not p.requires_grad
        assert torch.equal(p, was)


@pytest.mark.parametrize("name", [n for n in TAUGHT if n != "sskd"])
def test_kd_and_ssl_together_use_a_second_view(name, tmp_path):
    run = contract.start(contract.recipe_for(name, method={"ssl_weight": 2.0}), tmp_path / "run")
    run.method.eval()
    batch, out = output_of(run)
    assert set(batch.views) == {"view", "view_2"}
    run.method.config = run.method.config.model_copy(update={"ssl_weight": 0.0})
    _, alone = output_of(run)
    views = [run.method.neck(run.method.encoder(batch.views[v])) for v in ("view", "view_2")]
    z = [unit(v.detach().double().numpy()) for v in views]
    a = np.exp(z[0] @ z[1].T / 0.2)
    expected = -0.5 * np.mean(np.log(a.diagonal() / a.sum(axis=1)) + np.log(a.diagonal() / a.sum(axis=0)))
    assert float(out.logs["info_nce"]) == pytest.approx(expected, rel=1e-4)
    assert float((out.loss - alone.loss).detach()) == pytest.approx(2 * expected, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", TAUGHT)
def test_students_of_other_shapes_learn_from_the_same_teacher(name, tmp_path):
    recipe = contract.recipe_for(
        name, encoder={"name": "shufflenet_v2_x0_5", "small_stem": True}, eval={"every_epochs": 0}
    )
    run = contract.start(recipe, tmp_path / "run")
    _, out = output_of(run)
    out.loss.backward()
    assert run.method.encoder.dim == 1024
    assert run.method.frozen.dim == 12
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in run.method.encoder.parameters())


@pytest.mark.parametrize("name", TAUGHT)
def test_a_recipe_without_a_teacher_is_refused(name):
    with pytest.raises(InputError, match="learns from a frozen teacher; name one"):
        contract.recipe_for(name, teacher={})


def test_a_teacher_that_nothing_uses_is_refused():
    with pytest.raises(InputError, match="mocov2 learns from no teacher"):
        contract.recipe_for("mocov2", teacher={"name": contract.tiny_teacher()})


def test_the_kd_recipes_are_the_papers():
    recipe = load_recipe(["recipe=genurl/kd_cifar10"])
    c = recipe.method
    assert (c.kind, c.target, c.nu_x, c.nu_z, recipe.train.batch_size) == ("bce", "static", 100, 100, 2048)
    assert c.structures[0].sigma == c.sigma == 1
    both = load_recipe(["recipe=genurl/kd_cifar10", "method.structures=[{kind: teacher}, {kind: instance}]"])
    assert set(both.view_policies()) == {"view_1", "view_2"}
    c = load_recipe(["recipe=mvmr/kd_cifar10"]).method
    assert (c.projector, c.features, c.teacher_weight) == ((8192, 8192, 8192), (), 1)
    assert build.resolve(load_recipe(["recipe=seed/cifar10"]), None).method.teacher_dim == 2048


def test_a_batch_is_untouched_by_teaching(tmp_path):
    run = contract.start(contract.recipe_for("pkt"), tmp_path / "run")
    batch = Batch(torch.arange(3), {"view": torch.randn(3, 3, 8, 8)})
    assert set(run.method.frozen.teach(batch, "view").views) == {"view", "teacher"}
    assert set(batch.views) == {"view"}


# -------------------------------------------------------------------- the supervised row beside them


def test_supervised_training_is_cross_entropy_of_the_labels_that_there_are(tmp_path):
    run = contract.start(contract.recipe_for("supervised", method={"smoothing": 0.2}), tmp_path / "run")
    batch, out = output_of(run)
    logits = run.method.classifier(run.method.encoder(batch.views["view"])).detach().double().numpy()
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    labels = run.loader.source.labels[batch.index.numpy()]
    expected = [-0.8 * p[label] - 0.2 * p.mean() for p, label in zip(log_p, labels, strict=True)]
    assert float(out.loss) == pytest.approx(np.mean(expected), rel=1e-5)


def test_the_label_teacher_leaves_out_samples_without_one_and_needs_some():
    teacher = LabelTeacher(np.array([2, -1, 0]), dim=3)
    batch = Batch(views={}, index=torch.tensor([1, 0]))
    assert teacher.teach(batch, "view").views["teacher"].tolist() == [[0, 0, 0], [0, 0, 1]]
    recipe = contract.recipe_for("supervised")
    with pytest.raises(InputError, match="the data have no labels"):
        build.method_of(recipe, num_samples=80)
    with pytest.raises(InputError, match="learns from teacher"):
        contract.recipe_for("supervised", teacher={"name": contract.tiny_teacher()})
    with pytest.raises(InputError, match="without augmentation"):
        build.method_of(
            contract.recipe_for("supervised", teacher={"name": "labels", "view": "same"}),
            num_samples=1,
            labels=np.zeros(1, np.int64),
        )
