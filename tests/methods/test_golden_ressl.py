"""ReSSL against values computed with the authors' code (small copies of them are in golden_values/)."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import load
from torch import nn

from raysurl.functional import info_nce, relation_loss
from raysurl.memory import Queue
from raysurl.method import Batch, Build, Progress
from raysurl.methods.ressl import ReSSL
from raysurl.recipe import Schedule
from raysurl.train import optim

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize("tau", ["0.04", "0.03", "0.01"])
def test_relation_loss_and_gradient_are_the_authors(tau):
    g = load("ressl_relation_loss")
    student = torch.tensor(g["logits_q"], requires_grad=True)
    loss = relation_loss(student, torch.tensor(g["logits_k"]), tau_student=0.1, tau_teacher=float(tau))
    loss.backward()
    np.testing.assert_allclose(loss.item(), g[f"loss_t{tau}"], **TOLERANCE)
    np.testing.assert_allclose(student.grad.numpy(), g[f"grad_logits_q_t{tau}"], **TOLERANCE)


@pytest.mark.parametrize(("tau_s", "tau_t"), [("0.1", "0.04"), ("0.2", "0.03")])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_total_loss_of_the_journal_version(tau_s, tau_t, alpha):
    g = load("ressl_journal_transcription")
    q, k, bank = (torch.tensor(g[name]) for name in ("q", "k", "bank"))
    relation = relation_loss(q @ bank.T, k @ bank.T, tau_student=float(tau_s), tau_teacher=float(tau_t))
    nce = info_nce(q, k, bank, tau=float(tau_s))
    np.testing.assert_allclose(relation.item(), g[f"relation_ts{tau_s}_tt{tau_t}"], rtol=1e-5)
    np.testing.assert_allclose(nce.item(), g[f"infonce_ts{tau_s}"], rtol=1e-5)
    total = alpha * relation + (1 - alpha) * nce
    np.testing.assert_allclose(total.item(), g[f"total_alpha{alpha}_ts{tau_s}_tt{tau_t}"], rtol=1e-5)


def test_three_steps_of_the_authors_model_with_queue_teacher_and_optimizer():
    g = load("ressl_queue")
    linear = nn.Linear(12, 8)
    linear.load_state_dict({"weight": torch.tensor(g["w_q0"]), "bias": torch.tensor(g["b_q0"])})
    method = _linear_ressl(linear)
    queue = Queue(16, 8)
    queue.features = torch.tensor(g["queue0"]).T.clone()
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.5, momentum=0.9)
    index = torch.arange(8)
    for step in range(3):
        progress = Progress(step, 3, 3)
        views = {"student_1": torch.tensor(g[f"s{step}_im_q"]), "teacher_1": torch.tensor(g[f"s{step}_im_k"])}
        # the authors update the teacher at the start of a forward: for step 0 a no-op, later our after_step
        np.testing.assert_allclose(method.teacher.net[0].weight, g[f"s{step}_w_k_after"], **TOLERANCE)
        output = method(Batch(index, views), queue.snapshot(), progress)
        np.testing.assert_allclose(output.loss.item(), g[f"s{step}_loss"], **TOLERANCE)
        logits_k = output.push.keys[0] @ queue.features.T
        np.testing.assert_allclose(logits_k, g[f"s{step}_logits_k"], **TOLERANCE)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        method.after_step(progress)
        queue.push(output.push.keys.flatten(0, 1), index)
        np.testing.assert_allclose(queue.features.T, g[f"s{step}_queue_after"], **TOLERANCE)
        assert queue.pointer == int(g[f"s{step}_ptr_after"][0])
        np.testing.assert_allclose(linear.weight.detach(), g[f"s{step}_w_q_after"], **TOLERANCE)


def _linear_ressl(linear: nn.Linear) -> ReSSL:
    """ReSSL whose encoder is `linear` and whose heads are identities, momentum 0.9."""
    config = ReSSL.Config(dim=8, hidden=4, head_norm=False, predictor=False, queue_size=16, momentum=0.9)
    method = ReSSL(
        config, Build(linear, 8, nn.BatchNorm1d, shuffle=False, num_samples=8, batch_size=8, seed=0)
    )
    method.projector = nn.Identity()
    method.teacher.net[1] = nn.Identity()
    return method


def test_learning_rate_schedule_is_the_authors():
    g = load("ressl_schedule")
    per_epoch = int(g["iters_per_epoch"])
    schedule = Schedule(name="cosine", warmup_epochs=5)
    for epoch, iteration, expected in g["epoch_iter_lr"]:
        progress = Progress(int(epoch * per_epoch + iteration), 200 * per_epoch, per_epoch)
        assert optim.learning_rate(0.05, schedule, progress) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_weight_decay_filter_by_name_is_the_authors_and_ours_differs_in_the_shortcut_norms():
    g = load("ressl_schedule")
    named = [
        (str(n), torch.empty(1 if ("bn" in n or "bias" in n or "downsample.1" in n) else (2, 2)))
        for n in g["param_names"]
    ]
    official = set(optim.no_weight_decay(named, "official_name"))
    assert official == {
        str(n) for n, excluded in zip(g["param_names"], g["no_weight_decay"], strict=True) if excluded
    }
    extra = set(optim.no_weight_decay(named, "ndim")) - official
    assert extra == {f"encoder_q.net.layer{i}.0.downsample.1.weight" for i in (2, 3, 4)}


def test_relation_loss_equals_a_slow_reference():
    generator = torch.Generator().manual_seed(0)
    s, t = (F.normalize(torch.randn(5, 7, generator=generator), dim=1) for _ in range(2))
    slow = 0.0
    for i in range(5):
        p_t = torch.exp(t[i] / 0.05) / torch.exp(t[i] / 0.05).sum()
        p_s = torch.exp(s[i] / 0.2) / torch.exp(s[i] / 0.2).sum()
        slow -= sum(float(p_t[k]) * float(torch.log(p_s[k])) for k in range(7)) / 5
    assert relation_loss(s, t, tau_student=0.2, tau_teacher=0.05).item() == pytest.approx(slow, rel=1e-5)
