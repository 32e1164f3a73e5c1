"""ReSSL and MoCo v2 beyond the contract: variants, schedules, and what they reduce to."""

import contract
import pytest
import torch
import torch.nn.functional as F

from raysurl import build
from raysurl.encoder import encoder_of
from raysurl.errors import InputError
from raysurl.functional import info_nce
from raysurl.method import Progress
from raysurl.nets.ema import momentum_at
from raysurl.nets.encoders import build_encoder
from raysurl.recipe import Optimizer, Schedule, load_recipe
from raysurl.train import optim


def output_of(run):
    ((micro_batches, _),) = run.loader.steps(run.step, run.step + 1)
    batch = run.loader.to_batch(micro_batches[0])
    return batch, run.method(batch, run.memory.snapshot(slice(None)), run.progress)


def test_two_crops_are_two_pairs_with_both_keys_remembered(tmp_path):
    run = contract.start(
        contract.recipe_for("ressl", method={"crops": 2, "dim": 16, "hidden": 32}), tmp_path / "run"
    )
    batch, output = output_of(run)
    assert set(batch.views) == {"student_1", "student_2", "teacher_1", "teacher_2"}
    assert output.push.keys.shape == (2, 16, 16)
    assert not torch.equal(output.push.keys[0], output.push.keys[1])
    contract.steps(run, 1)
    assert (run.memory.snapshot(slice(None))["index"] >= 0).sum() == 32
    assert torch.equal(
        run.memory.snapshot(slice(None))["index"][:16], run.memory.snapshot(slice(None))["index"][16:32]
    )


def test_multi_crop_compares_five_students_of_other_sizes_with_one_teacher(tmp_path):
    policies = {
        f"student_{i}": {"base": "weak", "size": size} for i, size in enumerate((16, 14, 12, 10, 8), 1)
    }
    recipe = contract.recipe_for(
        "ressl",
        method={"crops": "multi", "dim": 16, "hidden": 32},
        views={"size": 16, "policies": policies},
    )
    run = contract.start(recipe, tmp_path / "run")
    batch, output = output_of(run)
    assert [batch.views[f"student_{i}"].shape[-1] for i in range(1, 6)] == [16, 14, 12, 10, 8]
    assert output.push.keys.shape[0] == 1
    assert torch.isfinite(output.loss)


def test_the_multi_crop_recipe_has_the_papers_sizes():
    policies = load_recipe(["recipe=ressl/imagenet_multicrop"]).view_policies()
    assert [policies[f"student_{i}"].size for i in range(1, 6)] == [224, 192, 160, 128, 96]
    assert [policies[f"student_{i}"].crop for i in range(1, 6)] == [
        (0.14, 1.0), (0.117, 0.86), (0.095, 0.715), (0.073, 0.571), (0.05, 0.429)
    ]  # fmt: skip


def test_the_infonce_warm_up_goes_from_infonce_to_the_relation_loss(tmp_path):
    method = {"infonce_warmup_epochs": 2, "dim": 16, "hidden": 32, "queue_size": 48}
    run = contract.start(contract.recipe_for("ressl", method=method), tmp_path / "run")
    for step, alpha in ((0, 0.0), (5, 0.5), (10, 1.0), (30, 1.0)):
        run.step = step
        assert run.method.alpha(run.progress) == pytest.approx(alpha)
    run.step = 0
    batch, output = output_of(run)
    assert output.loss.detach() == pytest.approx(float(output.logs["info_nce"]))
    z = F.normalize(
        run.method.predictor(run.method.projector(run.method.encoder(batch.views["student_1"]))), dim=1
    )
    slow = info_nce(z, output.push.keys[0], run.memory.snapshot(slice(None))["features"], tau=0.1)
    assert float(slow.detach()) == pytest.approx(float(output.loss.detach()), rel=1e-4)


def test_info_nce_equals_a_slow_reference():
    generator = torch.Generator().manual_seed(0)
    q, k, n = (F.normalize(torch.randn(r, 5, generator=generator), dim=1) for r in (4, 4, 6))
    slow = 0.0
    for i in range(4):
        positive = torch.exp(q[i] @ k[i] / 0.3)
        slow -= (
            float(torch.log(positive / (positive + sum(torch.exp(q[i] @ n[j] / 0.3) for j in range(6))))) / 4
        )
    assert float(info_nce(q, k, n, tau=0.3)) == pytest.approx(slow, rel=1e-5)


def test_the_conference_head_has_no_batch_norm_and_no_predictor():
    recipe = load_recipe(
        ["recipe=ressl/imagenet_conference", "encoder.name=convnet", "method.hidden=8", "method.dim=4"]
    )
    method = build.method_of(recipe, num_samples=4)
    assert isinstance(method.predictor, torch.nn.Identity)
    assert not [m for m in method.projector.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert method.teacher.shuffle


def test_the_cosine_ema_goes_from_its_base_to_one():
    def at(step):
        return momentum_at(0.9, "cosine", Progress(step, 100, 10))

    assert at(0) == pytest.approx(0.9)
    assert at(50) == pytest.approx(0.95)
    assert at(100) == pytest.approx(1.0)
    assert momentum_at(0.9, "constant", Progress(70, 100, 10)) == 0.9


def test_lars_is_momentum_sgd_with_a_trust_ratio():
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2)
    optimizer = optim.build_optimizer(net, Optimizer(name="lars", weight_decay=0.1, momentum=0.9, trust=0.02))
    weight, bias = net.weight.detach().clone(), net.bias.detach().clone()
    moment_w, moment_b = torch.zeros_like(weight), torch.zeros_like(bias)
    for _ in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 0.5
        x = torch.randn(4, 3)
        optimizer.zero_grad()
        net(x).square().mean().backward()
        grad_w, grad_b = net.weight.grad.clone(), net.bias.grad.clone()
        optimizer.step()
        update = grad_w + 0.1 * weight
        moment_w = 0.9 * moment_w + 0.02 * weight.norm() / update.norm() * update
        moment_b = 0.9 * moment_b + grad_b  # a bias is neither decayed nor scaled
        weight, bias = weight - 0.5 * moment_w, bias - 0.5 * moment_b
        torch.testing.assert_close(net.weight.detach(), weight)
        torch.testing.assert_close(net.bias.detach(), bias)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_fused_optimizers_take_the_steps_of_plain_ones_in_any_memory_format(name, memory):
    plain = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=False),
        "adam": lambda p: torch.optim.Adam(p, lr=0.1, foreach=False),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0, foreach=False),
    }
    found = []
    for fused in (True, False):
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 1), torch.nn.Conv2d(8, 4, 3, groups=4)
        ).to(memory_format=memory)  # fmt: skip
        settings = Optimizer(name=name, momentum=0.9, weight_decay=0)
        optimizer = optim.build_optimizer(net, settings) if fused else plain[name](net.parameters())
        for _ in range(3):
            optim.set_lr(optimizer, 0.1)
            net(torch.randn(4, 3, 9, 9)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lars"])
def test_every_optimizer_lowers_a_convex_loss(name):
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 1)
    optimizer = optim.build_optimizer(net, Optimizer(name=name, weight_decay=1e-4, trust=0.5))
    x, y, losses = torch.randn(32, 4), torch.randn(32, 1), []
    for _ in range(30):
        for group in optimizer.param_groups:
            group["lr"] = 0.02
        loss = (net(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_step_and_constant_schedules_and_the_scaling_rule():
    steps = Schedule(name="step", warmup_epochs=1, milestones=(0.5, 0.8), gamma=0.1)
    lrs = [optim.learning_rate(1.0, steps, Progress(s, 100, 10)) for s in (0, 5, 10, 49, 50, 80)]
    assert lrs == pytest.approx([0.0, 0.5, 1.0, 1.0, 0.1, 0.01])
    constant = Schedule(name="constant", warmup_epochs=0)
    assert optim.learning_rate(0.3, constant, Progress(70, 100, 10)) == 0.3
    assert optim.base_lr(Optimizer(lr=0.06, lr_batch=256), 512) == pytest.approx(0.12)
    assert optim.base_lr(Optimizer(lr=0.05, lr_batch=0), 512) == 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "resnet34", "resnet50", "efficientnet_b0", "mobilenet_v3_large", "convnet"]
)
def test_encoders_give_pooled_features_with_a_small_stem_or_without(name):
    for small_stem in (False, True) if name != "convnet" else (False,):
        encoder = build_encoder(name, small_stem=small_stem, maxpool=False, norm="sync")
        assert encoder(torch.zeros(2, 3, 32, 32)).shape == (2, encoder.dim)


def test_a_convnet_has_the_layers_that_are_asked_for_and_others_refuse_them():
    settings = {"name": "convnet", "channels": [4, 8]}
    for sobel, dim in ((False, 8), (True, 16)):
        encoder = encoder_of(contract.recipe_for("ressl", encoder={**settings, "sobel": sobel}))
        assert encoder.dim == dim
        assert encoder(torch.zeros(2, 3, 8, 8)).shape == (2, dim)
    with pytest.raises(InputError, match=r"channels are of a convnet, and name=resnet18 has its own"):
        contract.recipe_for("ressl", encoder={"name": "resnet18", "channels": [4, 8]})


@pytest.mark.parametrize("change", [{"precision": "bf16"}, {"channels_last": True}, {"clip": 0.1}])
def test_training_settings_train(tmp_path, change):
    train = {"batch_size": 16, "epochs": 2, "schedule": {"name": "constant", "warmup_epochs": 0}, **change}
    run = contract.start(contract.recipe_for("ressl", train=train), tmp_path / "run")
    before = [p.detach().clone() for p in run.method.encoder.parameters()]
    losses = contract.steps(run, 3)
    assert all(torch.isfinite(torch.tensor(losses)))
    assert any(not torch.equal(a, b) for a, b in zip(before, run.method.encoder.parameters(), strict=True))


def test_bf16_is_within_a_band_of_fp32(tmp_path):
    results = {}
    for precision in ("fp32", "bf16"):
        train = {"batch_size": 16, "epochs": 2, "precision": precision}
        run = contract.start(contract.recipe_for("ressl", train=train), tmp_path / precision)
        results[precision] = contract.steps(run, 1)[0]
    assert results["bf16"] == pytest.approx(results["fp32"], rel=0.02)
    assert results["bf16"] != results["fp32"]


def test_bf16_is_advised_where_the_processor_multiplies_in_it_and_nothing_was_chosen(monkeypatch):
    def advised(name="convnet", precision="auto", device="cpu", **capabilities):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
        encoder = {"name": "mlp", "widths": [8]} if name == "mlp" else {"name": name}
        recipe = contract.recipe_for(
            "ressl", encoder=encoder, train={"precision": precision, "batch_size": 16}
        )
        return build.advise(recipe, torch.device(device))

    assert "train.precision=bf16" in advised(amx_bf16=True)[0]
    assert advised(amx_bf16=False) == advised() == []
    assert advised(precision="fp32", amx_bf16=True) == advised(precision="bf16", amx_bf16=True) == []
    # whose outputs may be coordinates
    assert advised("mlp", amx_bf16=True) == []
    assert advised(device="cuda", amx_bf16=True) == []
