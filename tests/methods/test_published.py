"""Settings that published optimizers, encoders and views have, and recipes that use them."""

import contract
import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from raysurl import build
from raysurl.method import Progress
from raysurl.nets.ema import MomentumTeacher
from raysurl.nets.encoders import HEADS, MLP, build_encoder
from raysurl.recipe import Optimizer, Schedule, load_recipe, packaged_recipes
from raysurl.sweep.space import SPACES
from raysurl.train import optim

OPEN = sorted(SPACES.glob("open_*.yaml"))


# -------------------------------------------------------------------- optimizer


class Small(nn.Module):
    """A matrix, a norm and a bias, all away from zero."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)
        for p in self.parameters():
            nn.init.uniform_(p, 0.5, 1.0)

    def forward(self, x):
        return self.norm(self.linear(x))


def stepped(settings: Optimizer, *, lr: float = 0.1, steps: int = 1, gradient: float = 0.0):
    """Parameters before and after `steps` of a constant gradient."""
    net = Small()
    before = {k: v.detach().clone() for k, v in net.named_parameters()}
    optimizer = optim.build_optimizer(net, settings)
    optim.set_lr(optimizer, lr)
    for _ in range(steps):
        for p in net.parameters():
            p.grad = torch.full_like(p, gradient)
        optimizer.step()
    return before, {k: v.detach() for k, v in net.named_parameters()}


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lars"])
@pytest.mark.parametrize("rule", ["ndim", "all"])
def test_which_parameters_decay(name, rule):
    before, after = stepped(Optimizer(name=name, weight_decay=0.1, decay_filter=rule))
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    matrices = {"linear.weight"}
    assert moved == (set(before) if rule == "all" else matrices)
    assert all((after[k].abs() < before[k].abs()).all() for k in moved)


def test_lars_of_all_parameters_is_larc():
    """LARC (apex, no clipping): g ← trust·‖p‖/(‖g‖ + wd·‖p‖)·(g + wd·p) for every parameter, then momentum SGD."""
    trust, wd, momentum, lr = 0.02, 1e-6, 0.9, 0.3
    settings = Optimizer(name="lars", weight_decay=wd, trust=trust, momentum=momentum, decay_filter="all")
    before, after = stepped(settings, lr=lr, steps=3, gradient=0.4)
    for name, start in before.items():
        p, buffer = start.double(), 0.0
        for _ in range(3):
            g = torch.full_like(p, 0.4)
            g = trust * p.norm() / (g.norm() + wd * p.norm()) * (g + wd * p)
            buffer = momentum * buffer + g
            p = p - lr * buffer
        torch.testing.assert_close(after[name].double(), p, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lars"])
@pytest.mark.parametrize("rule", ["ndim", "all"])
def test_biases_and_norms_may_have_their_own_rate(name, rule):
    settings = {"name": name, "lr": 0.2, "weight_decay": 0.0, "trust": 0.01, "decay_filter": rule}
    before, plain = stepped(Optimizer(**settings), gradient=0.3)
    _, own = stepped(Optimizer(**settings, bias_lr=0.05), gradient=0.3)
    for key, start in before.items():
        share = 1.0 if start.ndim > 1 else 0.25
        torch.testing.assert_close(own[key] - start, share * (plain[key] - start), rtol=1e-4, atol=1e-7)


# -------------------------------------------------------------------- schedule


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 5), st.integers(6, 20), st.integers(1, 7))
def test_rates_run_from_start_to_lr_to_floor(start, floor, warmup, epochs, per_epoch):
    schedule = Schedule(warmup_epochs=warmup, start=start, floor=floor)
    total = epochs * per_epoch

    def at(step, **changes):
        changed = schedule.model_copy(update=changes)
        return optim.learning_rate(2.0, changed, Progress(step, total, per_epoch))

    assert at(0) == pytest.approx(2.0 * start)
    assert at(warmup * per_epoch) == pytest.approx(2.0)
    assert at(total) == pytest.approx(2.0 * floor, abs=1e-9)
    rates = [at(step) for step in range(total + 1)]
    assert all(min(start, floor) * 2 - 1e-9 <= rate <= 2 + 1e-9 for rate in rates)
    by_epoch = [at(step, by="epoch") for step in range(total)]
    assert by_epoch == [rates[step - step % per_epoch] for step in range(total)]


def test_a_rate_by_epoch_begins_anew_with_each_round():
    schedule = Schedule(warmup_epochs=0, by="epoch", period="round")
    rates = [optim.learning_rate(1.0, schedule, Progress(s, 24, 3, rounds=2)) for s in range(24)]
    assert rates[:12] == rates[12:]
    assert len(set(rates[:12])) == 4


# -------------------------------------------------------------------- networks


@pytest.mark.slow
@pytest.mark.parametrize(("name", "last", "blocks"), [("resnet18", "bn2", 8), ("resnet50", "bn3", 16)])
def test_residual_blocks_begin_as_the_identity(name, last, blocks):
    def last_scales(**changes):
        recipe = contract.recipe_for("ressl", encoder={"name": name, "small_stem": True, **changes})
        state = build.encoder_of(recipe).state_dict()
        return torch.stack([v.abs().amax() for k, v in state.items() if k.endswith(f"{last}.weight")])

    assert torch.equal(last_scales(zero_init_residual=True), torch.zeros(blocks))
    assert torch.equal(last_scales(), torch.ones(blocks))


class Functional(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, training=self.training)


def networks():
    named = {"efficientnet": "efficientnet_b0", "regnet": "regnet_y_400mf", "mobilenet": "mobilenet_v3_small"}
    for family in HEADS:
        name = named.get(
            family, {"resnet": "resnet18", "shufflenet": "shufflenet_v2_x0_5"}.get(family, family)
        )
        yield pytest.param(
            lambda n=name: build_encoder(n, small_stem=False, maxpool=False, norm="sync"), id=name
        )
    yield pytest.param(lambda: nn.Sequential(MLP(3 * 64 * 64, (32, 8), dropout=0.5), Functional()), id="mlp")


@pytest.mark.slow
@pytest.mark.parametrize("make", networks())
def test_the_average_of_every_network_is_deterministic_and_its_norms_follow_their_batch(make):
    torch.manual_seed(0)
    student = make()
    teacher = MomentumTeacher(student)
    nn.ModuleList([student, teacher]).train()
    x, progress = torch.rand(4, 3, 64, 64), Progress(0, 1, 1)
    before = {k: v.clone() for k, v in teacher.named_buffers() if k.endswith("running_mean")}
    first = teacher(x, progress)
    assert torch.equal(teacher(x, progress), first)
    assert all(not torch.equal(v, dict(teacher.named_buffers())[k]) for k, v in before.items())
    assert student.training
    teacher.eval()
    assert not any(module.training for module in teacher.modules())


# -------------------------------------------------------------------- views


TWINS = [
    ("student_1", "student_2"), ("teacher_1", "teacher_2"), ("query", "key"), ("view", "view_2"),
    ("view", "turned_1"), ("view", "turned_3"), ("augmented", "feature_augmented"),
]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["ressl/imagenet", "ressl/cifar10", "ressl/digits", "ressl/imagenet_conference"]
)
def test_two_crops_are_augmented_alike(name):
    policies = load_recipe([f"recipe={name}", "data.path=x", "method.crops=2"]).view_policies()
    assert policies["student_1"] == policies["student_2"] != policies["teacher_1"] == policies["teacher_2"]


def test_twins_are_augmented_alike_in_every_recipe_and_differ_where_a_recipe_says_so():
    seen = 0
    for name in set(packaged_recipes()) - {"ressl/imagenet_multicrop"}:  # whose students are of five sizes
        changes = (
            [["method.ssl_weight=1"], []]
            if name.split("/")[0] in ("pkt", "rkd", "sp", "crd", "seed")
            else [[]]
        )
        for change in changes:
            policies = load_recipe([f"recipe={name}", "data.path=x", *change]).view_policies()
            for one, other in TWINS:
                if one in policies and other in policies:
                    seen += 1
                    assert policies[one] == policies[other], (name, one, other)
    assert seen > 10
    named = load_recipe(
        ["recipe=simclr/cifar10", "data.path=x", "views.policies.view_2=plain"]
    ).view_policies()
    assert named["view_2"].is_identity
    assert not named["view_1"].is_identity


# -------------------------------------------------------------------- recipes


GENURL_PROBES = {  # sec. V-B.a; ImageNet's 30 is of features that are augmented anew each epoch
    "genurl/cifar10": 0.1, "genurl/cifar100": 1.0, "genurl/stl10": 1.0, "genurl/tiny_imagenet": 0.1,
    "genurl/imagenet": 30.0,
}  # fmt: skip


@pytest.mark.parametrize("name", packaged_recipes())
def test_recipes_have_what_their_authors_set(name):
    recipe = load_recipe([f"recipe={name}", "data.path=x"])
    method, optimizer, schedule = name.split("/")[0], recipe.train.optimizer, recipe.train.schedule
    if method in ("superand", "mocov2", "simsiam", "mvmr", "swav"):
        assert optimizer.decay_filter == "all"
    if method in ("mvmr", "mocov3", "simsiam", "barlow", "vicreg") and "kd" not in name:
        assert recipe.encoder.zero_init_residual
    if method == "mvmr":
        assert optimizer.lr * schedule.floor == optimizer.lr * schedule.start == pytest.approx(1e-6)
    if method in ("barlow", "vicreg"):
        assert schedule.floor == 0.001
    if name in ("mocov2/imagenet", "simsiam/cifar10", "simsiam/imagenet"):
        assert schedule.by == "epoch"
    probe = recipe.eval.linear_probe
    if recipe.encoder.name == "resnet50":  # lr 10 is for the 512 features of ReSSL's small encoders
        assert max(probe.lr) <= 1 or probe.augment
    if name.startswith("genurl/") and name in GENURL_PROBES:
        assert (probe.lr, recipe.method.centre_latents) == ((GENURL_PROBES[name],), False)
    if name in ("byol/cifar10", "byol/stl10"):  # of a loss four times lightly's
        assert (4 * optimizer.lr, optimizer.weight_decay / 4) == pytest.approx((0.06, 5e-4))


@pytest.mark.parametrize("path", OPEN, ids=lambda path: path.stem)
def test_an_open_search_includes_the_rate_of_its_recipe(path):
    space = yaml.safe_load(path.read_text())
    low, high = space["axes"]["train.optimizer.lr"]["loguniform"]
    own = load_recipe([f"recipe={space['recipe']}", "data.path=x"]).train.optimizer.lr
    assert low < own < high
