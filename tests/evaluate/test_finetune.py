"""Fine-tuning: which labels, which rates, one rank or two, and a classifier that predicts."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from raysurl.classifier import load_classifier
from raysurl.commands import evaluate, predict
from raysurl.data.names import open_samples
from raysurl.embed import images_alone
from raysurl.encoder import encoder_of, write_encoder
from raysurl.errors import InputError
from raysurl.evaluate import tuning
from raysurl.evaluate.tuning import Classifier, Task
from raysurl.nets.encoders import build_encoder
from raysurl.recipe import Evaluation, dump, load_recipe, recipe_from
from raysurl.recipe.tunings import TUNINGS, Tuning
from raysurl.runtime import LocalRuntime
from raysurl.testing.ranks import on_ranks
from raysurl.train import local
from raysurl.views import POLICIES
from raysurl.views.augment import apply
from raysurl.views.draws import draw


def task_of(*arguments, policy="plain"):
    recipe = load_recipe(["recipe=ressl/digits", "data.limit=120", "encoder.channels=[8, 16]", *arguments])
    sources = local.open_sources(
        recipe, *(open_samples(recipe.data, split, seed=0) for split in ("train", "eval"))
    )
    runtime = LocalRuntime(torch.device("cpu"))
    bank, test = np.arange(len(sources[0])), np.arange(80)
    return Task(recipe, runtime, *sources, bank, test, 10, POLICIES[policy])


# -------------------------------------------------------------------- labels


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_few_labels_are_balanced_seeded_and_of_the_bank(share):
    labels = np.repeat(np.arange(5), [400, 200, 100, 50, 3])
    bank = np.setdiff1d(np.arange(len(labels)), np.arange(0, len(labels), 7))
    chosen = tuning.subset(labels, bank, share, 3)
    assert np.isin(chosen, bank).all()
    assert len(set(chosen)) == len(chosen)
    for label in range(5):
        there = (labels[bank] == label).sum()
        assert (labels[chosen] == label).sum() == max(1, round(share * there))
    assert np.array_equal(chosen, tuning.subset(labels, bank, share, 3))
    assert not np.array_equal(chosen, tuning.subset(labels, bank, share, 4))
    assert np.array_equal(tuning.subset(labels, bank, 1.0, 3), bank)


def test_too_few_labels_are_refused():
    with pytest.raises(InputError, match="at least 2"):
        tuning.subset(np.zeros(9, np.int64), np.arange(9), 0.01, 0)


def folder_of(root, counts):
    random = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 90, (12, 12, 3)) + (140 if name == "light" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{name}_{i}.png")
    return root


def test_a_published_list_says_which_labels_are_known(tmp_path):
    root = folder_of(tmp_path / "images", {"dark": 4, "light": 3})
    names = tmp_path / "1percent.txt"
    names.write_text("light_2.png\r\n\ndark_1.png\n./dark/dark_3.png\n")
    data = [f"data.path={root}", f"data.labelled={names}"]
    samples = open_samples(load_recipe(data).data, "train", seed=0)
    known = {samples.name_of(i).rsplit("/", 1)[-1] for i in np.flatnonzero(samples.labels >= 0)}
    assert known == {"light_2.png", "dark_1.png", "dark_3.png"}
    assert samples.class_names == ("dark", "light")
    for text, said in (
        ("light_2.png\nnone.png\n", r"1 of its 2 lines name no sample, as none\.png"),
        ("", "0 of its 0"),
    ):
        names.write_text(text)
        with pytest.raises(InputError, match=said) as raised:
            open_samples(load_recipe(data).data, "train", seed=0)
        assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=r"data\.labelled=.*cannot be opened"):
        open_samples(load_recipe([data[0], "data.labelled=/nowhere"]).data, "train", seed=0)


def test_rows_are_named_by_their_position(tmp_path):
    (tmp_path / "rows").write_text("3\n11\n")
    recipe = load_recipe(["recipe=ressl/digits", f"data.labelled={tmp_path / 'rows'}"])
    samples = open_samples(recipe.data, "train", seed=0)
    assert np.flatnonzero(samples.labels >= 0).tolist() == [3, 11]


# -------------------------------------------------------------------- training


def by_hand(task, settings, index, rate, times):
    """The loop written out for one SGD with momentum of two groups."""
    import copy
    import math

    from raysurl import sampler, streams

    seed = streams.integer(task.recipe.stream_seed, "tuning")
    plan = sampler.plan(index, batch_size=settings.batch_size, seed=seed)
    encoder = copy.deepcopy(encoder_of(task.recipe)).train(not settings.frozen)
    weight = torch.empty(10, encoder.dim).normal_(0, 0.01, generator=streams.torch_stream(seed, "classifier"))
    weight, bias = weight.requires_grad_(), torch.zeros(10, requires_grad=True)
    body = [] if settings.frozen else list(encoder.parameters())
    buffers = [torch.zeros_like(p) for p in [*body, weight, bias]]
    total = settings.epochs * plan.steps_per_epoch
    for step, batch in plan.global_batches(0, total):
        (images,) = task.source.batches([sampler.Request(step, 0, batch)], images_alone)
        draws, v = draw(task.policy, len(batch), seed=seed, step=step, view="tuning"), task.recipe.views
        x = apply(task.policy, images, draws, size=v.size, mean=v.mean, std=v.std)
        out = nn.functional.linear(encoder(x), weight, bias)
        loss = nn.functional.cross_entropy(out, torch.from_numpy(task.labels[batch]))
        factor = (1 + math.cos(math.pi * step / total)) / 2
        for i, (p, g) in enumerate(
            zip([*body, weight, bias], torch.autograd.grad(loss, [*body, weight, bias]), strict=True)
        ):
            own = rate * factor * (1 if i < len(body) else times)
            buffers[i] = 0.9 * buffers[i] + g + settings.weight_decay * p.detach()
            with torch.no_grad():
                p -= own * buffers[i]
    return encoder, weight, bias


@pytest.mark.parametrize("frozen", [False, True])
def test_fine_tuning_is_sgd_of_both_rates(frozen):
    task = task_of(policy="weak")
    settings = Tuning(epochs=2, batch_size=32, frozen=frozen, weight_decay=0.01)
    index = np.arange(100)
    found = tuning.train(encoder_of(task.recipe), task, settings, index, 0.02, 10.0)
    encoder, weight, bias = by_hand(task, settings, index, 0.02, 10.0)
    torch.testing.assert_close(found.fc.weight, weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.fc.bias, bias, rtol=1e-3, atol=1e-4)
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(found.encoder.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    before = encoder_of(task.recipe).state_dict()
    moved = [
        name for name, value in found.encoder.state_dict().items() if not torch.equal(value, before[name])
    ]
    assert bool(moved) != frozen  # batch norm's means are not moved either


def test_the_encoder_that_is_given_is_left_as_it_is():
    task = task_of()
    encoder = encoder_of(task.recipe)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    tuning.tune(encoder, task, Tuning(epochs=1, lr=(0.1,)))
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    assert all(p.requires_grad for p in encoder.parameters())


@pytest.mark.slow
def test_rates_are_chosen_without_the_test_images():
    task = task_of()
    settings = Tuning(epochs=3, batch_size=16, lr=(1e-7, 0.05, 1e30), head_times=(1.0, 10.0))
    found = tuning.tune(encoder_of(task.recipe), task, settings)
    assert found.lr == 0.05
    blind = replace(task, test=task.test[:9])
    again = tuning.tune(encoder_of(task.recipe), blind, settings)
    assert (again.lr, again.head_times) == (found.lr, found.head_times)
    torch.testing.assert_close(again.scores, found.scores[:9])
    with pytest.raises(Exception, match="diverged at each"):
        tuning.tune(encoder_of(task.recipe), task, Tuning(epochs=2, lr=(1e30, 1e31)))


def _on_rank(rank, world):
    task = task_of(policy="weak")
    task = replace(task, runtime=LocalRuntime(torch.device("cpu"), rank=rank, world_size=world))
    settings = Tuning(epochs=1, batch_size=24, lr=(0.05,), share=0.5)
    return tuning.tune(encoder_of(task.recipe), task, settings).scores


@pytest.mark.slow
def test_two_ranks_tune_as_one_does():
    alone, (first, second) = _on_rank(0, 1), on_ranks(_on_rank, 2, 2)
    torch.testing.assert_close(first, alone, rtol=1e-3, atol=1e-3)
    assert len(second) == 0


def test_the_rate_falls_from_block_to_block():
    encoder = build_encoder("resnet18", small_stem=True, maxpool=False, norm="local")
    depths = tuning.depth_of_each(encoder)
    assert depths["conv1.weight"] == 0
    assert [depths[f"layer{i}.0.conv1.weight"] for i in range(1, 5)] == [1, 2, 3, 4]
    model = Classifier(encoder, 3)
    groups = tuning.optimizer_of(model, Tuning(layer_decay=0.5), 0.1, 10.0).param_groups
    assert [g["own"] for g in groups] == pytest.approx([0.1 * 0.5 ** (5 - d) for d in range(5)] + [1.0])
    held = [p for g in groups for p in g["params"]]
    assert len(held) == len({id(p) for p in held}) == len(list(model.parameters()))


def test_blocks_of_a_vision_transformer_are_its_layers():
    import torchvision

    network = torchvision.models.VisionTransformer(32, 8, 3, 2, 8, 16)
    network.heads = nn.Identity()
    depths = tuning.depth_of_each(network)
    assert {n: d for n, d in depths.items() if "encoder_layer_" not in n} == {
        "class_token": 0, "conv_proj.weight": 0, "conv_proj.bias": 0, "encoder.pos_embedding": 0,
        "encoder.ln.weight": 3, "encoder.ln.bias": 3,
    }  # fmt: skip
    assert [depths[f"encoder.layers.encoder_layer_{i}.ln_1.weight"] for i in range(3)] == [1, 2, 3]


def test_the_schedules():
    warm = Tuning(epochs=10, warmup_epochs=2)
    rates = [tuning.factor_of(warm, step, 4) for step in range(40)]
    assert rates[:8] == pytest.approx([(i + 1) / 9 for i in range(8)])
    assert rates[8] == 1.0
    assert rates[8:] == sorted(rates[8:], reverse=True)
    steps = [tuning.factor_of(TUNINGS["genurl_stl10"], epoch * 5, 5) for epoch in range(20)]
    assert steps == pytest.approx([1.0] * 12 + [0.1] * 4 + [0.01] * 4)


@pytest.mark.parametrize(
    "bad",
    [{"finetune": "resl_1"}, {"finetune": ["ressl_1", "rcl_1"]}, {"finetune": []}, {"finetune_lr": [-1]},
     {"finetune_share": 2}, {"finetune_augment": "wek"}, {"finetune_epochs": 0}],
)  # fmt: skip
def test_a_fine_tuning_that_cannot_be_is_refused(bad):
    with pytest.raises(InputError, match=next(iter(bad))) as raised:
        recipe_from({"eval": bad})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", TUNINGS)
def test_each_preset_can_be_named_and_changed(name):
    assert Evaluation(finetune=name).tunings == {name: TUNINGS[name]}
    changed = Evaluation(finetune=name, finetune_lr=0.3, finetune_share=0.2).tunings[name]
    assert (changed.lr, changed.percent, changed.epochs) == ((0.3,), "20", TUNINGS[name].epochs)


# -------------------------------------------------------------------- from a run to classes


@pytest.mark.slow
def test_a_run_is_tuned_and_names_the_classes_of_a_folder(tmp_path, capsys):
    root = folder_of(tmp_path / "images", {"dark": 20, "light": 20})
    recipe = load_recipe(
        [f"data.path={root}", "encoder.name=convnet", "encoder.channels=[4, 8]", "views.size=8"]
    )
    run = tmp_path / "run"
    run.mkdir()
    write_encoder(run, encoder_of(recipe), recipe)
    (run / "recipe.yaml").write_text(dump(recipe))
    evaluate.main([
        f"run={run}", "eval.protocols=[finetune]", "eval.finetune=[full, ressl_10]", "eval.finetune_epochs=15",
        "eval.finetune_lr=0.05", "eval.finetune_batch_size=8",
    ])  # fmt: skip
    assert "eval/finetune10_top1" in capsys.readouterr().out
    with pytest.raises(InputError, match="several classifiers; name one: classifier-full"):
        load_classifier(str(run))
    others = folder_of(tmp_path / "others", {"light": 3, "dark": 2})
    file, target = run / "classifier-full.safetensors", tmp_path / "out" / "classes.csv"
    predict.main([f"run={file}", f"data.path={others}", f"to={target}"])
    with target.open() as lines:
        found = list(csv.DictReader(lines))
    assert [row["class"] for row in found] == [row["name"].split("/")[-2] for row in found]
    assert len(found) == 5
    assert all(0.5 <= float(row["probability"]) <= 1 for row in found)
    for bad, said in (
        ([f"run={run / 'encoder.safetensors'}", f"to={tmp_path / 'a.csv'}"], "is not a classifier"),
        ([f"run={file}", "to=x.txt"], r"to=FILE\.csv"),
        ([f"run={others}", f"to={tmp_path / 'a.csv'}"], "finetune"),
        (["to=a.csv"], "run=DIR"),
    ):
        with pytest.raises(InputError, match=said):
            predict.main([*bad, f"data.path={others}"])
