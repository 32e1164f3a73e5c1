"""Rows of benchmarks/gpu.py beside what people use, and of evaluation."""

from __future__ import annotations

import os
import time
from typing import Any

import torch
from benchmarks._gpu_bench import QUIET, Bench, Row, start
from torch import Tensor

from raysurl import build, method
from raysurl.data.source import ResidentSource
from raysurl.evaluate import Features, evaluate
from raysurl.recipe import load_recipe
from raysurl.views import POLICIES
from raysurl.views.draws import draw
from raysurl.views.fixed import FixedView


def fed_by_loader(bench: Bench) -> Row:
    """The same step fed by torchvision's transforms from a DataLoader with as many workers as cores."""
    from torchvision.transforms import v2

    source = bench.source(32, 20480)
    assert isinstance(source, ResidentSource)
    run = start(bench, "ressl", (), source)
    size, batch_size = run.recipe.views.size, run.recipe.train.batch_size
    normal = [
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(run.recipe.views.mean, run.recipe.views.std),
    ]
    crop = [v2.RandomResizedCrop(size, scale=(0.2, 1), antialias=True), v2.RandomHorizontalFlip()]
    jitter = [v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8), v2.RandomGrayscale(0.2)]
    blur = [v2.RandomApply([v2.GaussianBlur(3, (0.1, 2.0))], 0.5)]
    weak, strong = v2.Compose([*crop, *normal]), v2.Compose([*crop, *jitter, *blur, *normal])
    pixels = torch.from_numpy(source.gather.shards[0].pixels)
    workers = 0 if bench.tiny else os.cpu_count() or 1
    loader = torch.utils.data.DataLoader(
        _Pairs(pixels, strong, weak), batch_size, shuffle=True, drop_last=True, num_workers=workers,
        pin_memory=bench.device.type == "cuda",
    )  # fmt: skip
    done, began = 0, 0.0
    for i, (index, student, teacher) in enumerate(loader):
        if i == 2:
            bench.sync()
            began = time.perf_counter()
        named = (("student_1", student), ("teacher_1", teacher))
        views = {name: x.to(bench.device, non_blocking=True) for name, x in named}
        batch = method.Batch(index.to(bench.device, non_blocking=True), views)
        assert run.memory is not None
        stepped = run.one_step([(batch, run.memory.snapshot(slice(0, batch_size)))], 1, run.progress, 0.01)
        assert stepped.push is not None
        run.memory.push(*stepped.push)
        done = i - 1 if i >= 2 else 0
        if done and time.perf_counter() - began > 8:
            break
    bench.sync()
    return {"images_per_s": done * batch_size / max(time.perf_counter() - began, 1e-9), "workers": workers}


def bare_loop(bench: Bench) -> Row:
    """ReSSL's networks at ImageNet's shapes in a plain loop: resident tensors, bf16, channels last, fused SGD.

    No views, no memory, no schedules, no logs: what is left is forward, backward, update and moving average.
    """
    size, count = (32, 8) if bench.tiny else (224, 256)
    names = ["encoder.small_stem=false", f"encoder.name={'convnet' if bench.tiny else 'resnet50'}"]
    recipe = load_recipe(["recipe=ressl/cifar10", *QUIET, *names, f"views.size={size}"])
    student: Any = build.method_of(recipe, num_samples=count).to(bench.device)
    student = student.to(memory_format=torch.channels_last)
    teacher = student.teacher.net
    x, y = (torch.randn(count, 3, size, size, device=bench.device) for _ in range(2))
    x, y = (v.to(memory_format=torch.channels_last) for v in (x, y))
    own = [p for p in student.parameters() if p.requires_grad]
    followed = [*student.encoder.parameters(), *student.projector.parameters()]
    optimizer = torch.optim.SGD(own, lr=0.01, momentum=0.9, fused=bench.device.type == "cuda")

    def step() -> None:
        with torch.autocast(bench.device.type, torch.bfloat16):
            z = student.predictor(student.projector(student.encoder(x)))
            with torch.no_grad():
                t = teacher(y)
        torch.nn.functional.cosine_similarity(z.float(), t.float()).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(list(teacher.parameters()), [p.detach() for p in followed], 0.01)

    for _ in range(5):
        step()
    seconds = bench.seconds(step, bench.timed)
    return {"images_per_s": count / seconds, "step_ms": 1e3 * seconds}


class _Pairs(torch.utils.data.Dataset[Any]):
    def __init__(self, pixels: Tensor, strong: Any, weak: Any) -> None:
        self.pixels, self.strong, self.weak = pixels, strong, weak

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> tuple[int, Tensor, Tensor]:
        return i, self.strong(self.pixels[i]), self.weak(self.pixels[i])


def views(bench: Bench) -> Row:
    """Views of the policy `contrastive` per second on the device: ours recorded or not, kornia's, torchvision's."""
    from torchvision.transforms import v2

    count, size = (16, 12) if bench.tiny else (256, 32)
    recipe = load_recipe(["recipe=ressl/cifar10", *QUIET])
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, device=bench.device)
    policy, s = POLICIES["contrastive"], recipe.views
    view = FixedView(policy, size=size, mean=s.mean, std=s.std, source=(size, size))
    draws = draw(policy, count, seed=0, step=0, view="v")
    table = torch.from_numpy(view.rows(draws)).to(bench.device)
    out = torch.empty(count, 3, size, size, device=bench.device)
    found: Row = {"ours": count / bench.seconds(lambda: view(images, table, out), bench.timed)}
    if bench.device.type == "cuda":
        from raysurl.train.recording import CudaGraph

        graph = CudaGraph()
        graph.aside(lambda: view(images, table, out))
        graph.record(lambda: view(images, table, out))
        found["ours recorded"] = count / bench.seconds(graph.replay, bench.timed)
    transform = v2.Compose([
        v2.RandomResizedCrop(size, scale=(0.2, 1), antialias=True), v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8), v2.RandomGrayscale(0.2),
        v2.RandomApply([v2.GaussianBlur(3, (0.1, 2.0))], 0.5), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(s.mean, s.std),
    ])  # fmt: skip
    found["torchvision, one by one"] = 16 / bench.seconds(lambda: [transform(x) for x in images[:16]], 2)
    try:
        import kornia.augmentation as K

        theirs = torch.nn.Sequential(
            K.RandomResizedCrop((size, size), scale=(0.2, 1.0)), K.RandomHorizontalFlip(),
            K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8), K.RandomGrayscale(p=0.2),
            K.RandomGaussianBlur((3, 3), (0.1, 2.0), p=0.5), K.Normalize(torch.tensor(s.mean), torch.tensor(s.std)),
        ).to(bench.device)  # fmt: skip
        floats = images.float() / 255
        found["kornia"] = count / bench.seconds(lambda: theirs(floats), 5)
    except Exception as error:  # a peer that is absent or fails takes no row of ours with it
        found["kornia"] = str(error).splitlines()[0][:80]
    return {f"{name}, views/s": value for name, value in found.items()}


def probes(bench: Bench) -> Row:
    """Seconds of kNN and probes on 50,000 × 10,000 features of 512 values."""
    n, q, d = (200, 50, 16) if bench.tiny else (50_000, 10_000, 512)
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, d, generator=generator)
    labels = [torch.randint(0, 10, (count,), generator=generator) for count in (n, q)]
    rows = [centres[y] + 4 * torch.randn(len(y), d, generator=generator) for y in labels]
    train, train_labels, test, test_labels = (
        x.to(bench.device) for x in (rows[0], labels[0], rows[1], labels[1])
    )
    features = Features(train, train_labels, test, test_labels, 10)
    settings = load_recipe(
        ["recipe=ressl/cifar10", "eval.linear_epochs=" + ("1" if bench.tiny else "10")]
    ).eval
    found: Row = {}
    for protocol in ("knn", "linear", "lbfgs"):
        bench.sync()
        began = time.perf_counter()
        evaluate(features, settings, protocols=[protocol])
        bench.sync()
        found[f"{protocol}_s"] = time.perf_counter() - began
    return found
