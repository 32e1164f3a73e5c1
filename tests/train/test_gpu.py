"""What only a GPU can show, most telling first: `pytest -m gpu tests/train/test_gpu.py`, less than a minute on one."""

import os
from pathlib import Path

import contract
import pytest
import torch
import torch.distributed as dist

from raysurl import build, distributed, method
from raysurl.evaluate import Features, evaluate
from raysurl.runtime import LocalRuntime
from raysurl.train import trainer
from raysurl.views import POLICIES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
RECORDED = [n for n in method.available() if n != "crd"]
CHANGING = {
    "ressl": {"infonce_warmup_epochs": 1.3, "momentum_schedule": "cosine"},
    "swav": {"frozen_steps": 7, "queue_epoch": 1},
    "superand": {"init": "instance"},
}


@pytest.fixture
def repeatable(monkeypatch):
    """The same kernels in every run: what is left between two runs is the order of atomic sums."""
    monkeypatch.setattr(build, "tune", lambda device: [])
    for name, value in {"deterministic": True, "benchmark": False, "allow_tf32": False}.items():
        monkeypatch.setattr(torch.backends.cudnn, name, value)


def start(recipe, run_dir, device):
    run_dir.mkdir(exist_ok=True)
    return trainer.start(recipe, LocalRuntime(device), *contract.sources(recipe), run_dir)


def recipe_for(name, **train):
    train = {"precision": "fp32", "schedule": {"name": "cosine", "warmup_epochs": 1}, "epochs": 5} | train
    if name == "superand":
        train |= {"epochs": 1, "rounds": 5}
    train.setdefault("optimizer", {"lr": 0.02, "lr_batch": 0, "momentum": 0.9})
    return contract.recipe_for(name, train=train, method=CHANGING.get(name, {}))


def said_in(run_dir):
    return Path(run_dir, "metrics.jsonl").read_text()


@pytest.mark.parametrize("name", ["ressl", *(n for n in RECORDED if n != "ressl")])
@pytest.mark.usefixtures("repeatable")
def test_the_recorded_step_is_the_eager_step(name, tmp_path):
    count = 20 if name in CHANGING else 8
    eager = start(recipe_for(name, cuda_graph=False), tmp_path / "eager", CUDA)
    run = start(recipe_for(name), tmp_path / "recorded", CUDA)
    expected, found = contract.steps(eager, count), contract.steps(run, count)
    text = said_in(tmp_path / "recorded")
    assert "the step is recorded as a CUDA graph" in text, text
    assert "views are recorded as a CUDA graph" in text, text
    assert found[:6] == pytest.approx(expected[:6], rel=1e-2, abs=1e-3)  # three of them replayed
    assert found == pytest.approx(expected, rel=0.25, abs=0.05)  # SGD amplifies the order of a sum


@pytest.mark.parametrize("name", method.available())
def test_the_first_steps_on_a_gpu_are_those_on_a_cpu(name, tmp_path):
    losses = [contract.steps(start(recipe_for(name), tmp_path / d.type, d), 2) for d in (CPU, CUDA)]
    assert losses[1] == pytest.approx(losses[0], rel=2e-2, abs=2e-3)


@pytest.mark.parametrize("policy", POLICIES)
def test_views_are_those_of_a_cpu(policy, tmp_path):
    views = {"size": 16, "policies": {"view_1": {"base": policy, "size": 16}}}
    runs = [start(contract.recipe_for("simclr", views=views), tmp_path / d.type, d) for d in (CPU, CUDA)]
    for step in range(4):  # the first ones are made eagerly, then recorded, then replayed
        batches = []
        for run in runs:
            (((loaded,), _),) = run.loader.steps(step, step + 1)
            batches.append(run.loader.to_batch(loaded))
        assert torch.equal(batches[0].index, batches[1].index.cpu())
        # half a grey level of 255, divided by a deviation: weights and pixels of a GPU's products are in TF32
        close = torch.isclose(batches[0].views["view_1"], batches[1].views["view_1"].cpu(), rtol=0, atol=1e-2)
        assert close.float().mean() > (0.98 if "strong" in policy else 0.9999)  # RandAugment rounds to levels


def test_knn_and_probes_are_those_of_a_cpu():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 32, generator=generator)
    parts = []
    for count in (600, 200):
        labels = torch.randint(0, 5, (count,), generator=generator)
        parts += [centres[labels] + 2 * torch.randn(count, 32, generator=generator), labels]
    settings = contract.recipe_for("simclr", eval={"linear_epochs": 5}).eval
    found = [
        evaluate(Features(*(x.to(d) for x in parts), 5), settings, protocols=["knn", "linear", "lbfgs"])
        for d in (CPU, CUDA)
    ]
    for key, value in found[0].items():
        assert found[1][key] == pytest.approx(value, abs=1.5), key


@pytest.mark.parametrize("there", [CPU, CUDA], ids=lambda d: f"on_{d.type}")
@pytest.mark.parametrize("here", [CPU, CUDA], ids=lambda d: f"from_{d.type}")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.usefixtures("repeatable")  # in TF32 six steps end 4 % away
def test_a_run_goes_on_from_a_checkpoint_of_any_device(optimizer, here, there, tmp_path):
    settings = {"name": optimizer, "lr": 0.002 if optimizer == "sgd" else 0.001, "lr_batch": 0}
    recipe = recipe_for("ressl", optimizer=settings)
    whole = start(recipe, tmp_path / "whole", CPU)
    expected = contract.steps(whole, 8)
    part = start(recipe, tmp_path / "part", here)
    contract.steps(part, 6)
    trainer.save(part)
    part.writer.wait()
    resumed = start(recipe, tmp_path / "part", there)
    assert resumed.step == 6
    assert contract.steps(resumed, 2) == pytest.approx(expected[6:], rel=3e-2)


def test_bf16_keeps_the_loss_within_a_band(tmp_path):
    losses = [
        contract.steps(start(recipe_for("ressl", precision=p), tmp_path / p, CUDA), 10)
        for p in ("fp32", "bf16")
    ]
    assert losses[1][:4] == pytest.approx(losses[0][:4], rel=8e-2)
    assert losses[1] == pytest.approx(losses[0], rel=0.3)


def test_a_whole_run_with_evaluation(tmp_path):
    recipe = contract.recipe_for("ressl", eval={"every_epochs": 1, "linear_epochs": 2})
    (tmp_path / "run").mkdir()
    trainer.train(recipe, LocalRuntime(CUDA), *contract.sources(recipe), tmp_path / "run")
    assert (tmp_path / "run" / "results.json").exists()
    assert (tmp_path / "run" / "checkpoints" / "step-00000010" / "manifest.json").exists()


def test_nccl_with_one_rank(tmp_path):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    dist.init_process_group("nccl", rank=0, world_size=1)
    try:
        run = start(recipe_for("simclr", cuda_graph=False), tmp_path / "run", CUDA)
        model = distributed.wrap(run.method, CUDA, ranks=2)
        x = torch.arange(4.0, device=CUDA)
        dist.all_reduce(x)
        assert x.tolist() == [0, 1, 2, 3]
        (((loaded,), _),) = run.loader.steps(0, 1)
        model(run.loader.to_batch(loaded), {}, run.progress).loss.backward()
        assert all(p.grad is not None for p in run.method.encoder.parameters())
    finally:
        dist.destroy_process_group()


def test_a_compiled_step_recorded(tmp_path):
    expected = contract.steps(start(recipe_for("ressl", cuda_graph=False), tmp_path / "eager", CUDA), 6)
    run = start(recipe_for("ressl", compile=True), tmp_path / "compiled", CUDA)
    assert contract.steps(run, 6) == pytest.approx(expected, rel=3e-2)
    assert "the step is recorded as a CUDA graph" in said_in(tmp_path / "compiled")
