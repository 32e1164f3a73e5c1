"""What a run will cost: trial steps that change nothing, presets, advice, and warm-ups of shortened runs."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from raysurl import metrics, run
from raysurl.data.names import open_samples
from raysurl.errors import InputError
from raysurl.evaluate import divide
from raysurl.recipe import load_recipe, packaged_recipes, recipe_from, shortened
from raysurl.train import advice, cost, local
from raysurl.train.cost import Pace, Sizes

CPU = torch.device("cpu")
SMALL = (
    "recipe=ressl/digits",
    "runtime=local",
    "encoder.channels=[8]",
    "method.hidden=16",
    "method.dim=8",
    "eval.protocols=[rankme]",
    "eval.every_epochs=0",
    "checkpoint.every_epochs=0",
    "log.tensorboard=false",
    "scale.threads=1",
)
PACE = Pace(training=0.01, embedding=0.01, reading=0.0)


@pytest.mark.slow
def test_trial_steps_count_for_nothing(tmp_path, monkeypatch, capsys):
    """The run with its trial is bit for bit the run without one, and the caller's random numbers stay as they are."""

    def trained(where):
        recipe = load_recipe([*SMALL, "train.epochs=10", f"output={tmp_path / where}"])
        run_dir = run.pretrain(recipe)
        lines = metrics.read(run_dir / "metrics.jsonl")
        losses = [line["train/loss"] for line in lines if "train/loss" in line]
        return (
            losses,
            {name: x.tolist() for name, x in load_file(run_dir / "encoder.safetensors").items()},
            [e["event"] for e in lines if "event" in e],
        )

    with_trial = trained("with")
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "a few steps on 1,437 samples are tried, to say what the run will cost"
    assert "cost: about " in shown[1]
    monkeypatch.setattr(local, "measure", lambda recipe, samples: (None, 1))
    without = trained("without")
    assert with_trial[:2] == without[:2]
    said = [event for event in with_trial[2] if event.startswith("cost: about ")]
    assert len(said) == 1
    assert "10 epochs of 11 steps" in said[0]
    assert not [event for event in without[2] if event.startswith("cost")]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["superand", "rcl", "genurl", "byol", "mvmr", "swav"])
def test_every_kind_of_method_can_be_tried(method):
    arguments = [a for a in SMALL if not a.startswith(("recipe", "method"))]
    if method == "mvmr":
        arguments += ["method.projector=[16, 8]", "method.features=[augmented]"]
    arguments += ["data.name=digits", "views.size=16", "encoder.name=convnet", "train.batch_size=32"]
    recipe = load_recipe([*arguments, f"method.name={method}"])
    samples = open_samples(recipe.data, "train", seed=0)
    torch.manual_seed(3)
    expected, threads = torch.rand(4), torch.get_num_threads()
    torch.manual_seed(3)
    pace = cost.measure(recipe, samples, CPU)
    assert pace is not None
    assert pace.training > 0
    assert pace.embedding > 0
    assert torch.equal(torch.rand(4), expected)
    assert torch.get_num_threads() == threads


def test_data_of_which_nothing_can_be_read_have_no_pace(tmp_path):
    for i in range(40):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    recipe = load_recipe([f"data.path={tmp_path}", "runtime=local"])
    assert cost.measure(recipe, open_samples(recipe.data, "train", seed=0), CPU) is None


# -------------------------------------------------------------------- presets


def test_cost_counts_steps_evaluations_and_baselines():
    recipe = load_recipe(["data.path=x", "train.epochs=10", "train.batch_size=100", "eval.every_epochs=5"])
    train_s, online, final = 10 * 20 * 1.0, 2, 2
    assert cost.seconds(recipe, PACE, Sizes(2000, 500)) == pytest.approx(
        train_s + (online + final) * 500 * 0.01
    )
    plain = load_recipe(["data.path=x", "train.epochs=10", "train.batch_size=100", "eval.every_epochs=0",
                         "eval.baselines=false"])  # fmt: skip
    assert cost.seconds(plain, PACE, Sizes(2000, 500)) == pytest.approx(train_s + 5)


def test_cost_counts_what_classifiers_see_anew_in_each_epoch():
    base = [
        "data.path=x",
        "train.epochs=10",
        "train.batch_size=100",
        "eval.every_epochs=0",
        "eval.baselines=false",
    ]
    sizes = Sizes(2000, 500, labelled=400)

    def seconds(*changes):
        return cost.seconds(load_recipe([*base, *changes]), PACE, sizes)

    plain = seconds("eval.protocols=[knn, linear]", "eval.probe=ressl")  # centre crops, embedded once
    probe = ("eval.protocols=[linear]", "eval.probe=genurl_cifar10")
    assert seconds(*probe) - plain == pytest.approx(100 * 400 * 0.01)
    assert seconds(*probe, "eval.baselines=true") - plain == pytest.approx(5 + 2 * 100 * 400 * 0.01)
    tuning = "eval.protocols=[finetune]"
    frozen = seconds(tuning, "eval.finetune=[ressl_1]") - plain  # a hundredth of the labels, 60 epochs
    assert frozen == pytest.approx(60 * 4 * 0.01)
    # a step of the recipe sees two views; three rates are tried on nine tenths, and the best on all
    whole = seconds(
        tuning, "eval.finetune=[full]", "eval.finetune_epochs=20", "eval.finetune_lr=[0.1, 0.2, 0.3]"
    )
    assert whole - plain == pytest.approx(20 * (1 + 0.9 * 3) * 400 * 0.01 / 2)


@pytest.mark.parametrize("training", [1e-6, 1e-4, 1e-2, 0.1, 2.0])
@pytest.mark.parametrize("count", [100, 2000, 10**6])
@pytest.mark.parametrize(("preset", "budget"), [("quick", 600), ("standard", 7200)])
def test_a_preset_stays_within_its_time_and_uses_most_of_it(training, count, preset, budget):
    recipe = load_recipe(["data.path=x", f"preset={preset}", "eval.every_epochs=0"])
    pace = Pace(training, 1e-9, 1e-9)
    cut = cost.fitted(recipe, pace, Sizes(count, 0))
    samples = min(count, cut.data.limit or count)
    takes = cost.seconds(cut, pace, Sizes(samples, 0))
    assert takes <= cost.SPENT * budget or (cut.train.epochs == 1 and samples == cost.LEAST_SAMPLES)
    assert cut.train.epochs <= recipe.train.epochs
    assert samples >= cost.LEAST_SAMPLES
    suited = cost._suited(recipe, count, 1)
    whole = cost.seconds(suited, pace, Sizes(count, 0)) <= cost.SPENT * budget
    assert (cut.train.epochs == recipe.train.epochs and samples == count) == whole
    if not whole:
        assert takes > 0.5 * cost.SPENT * budget
    if samples < count:  # epochs go first, then samples
        assert cut.train.epochs <= cost.LEAST_EPOCHS
    assert cut.train.schedule.warmup_epochs == pytest.approx(10 * cut.train.epochs / 200, abs=1e-3)
    assert cut.train.batch_size <= max(0.1 * samples, 2)
    assert cut.method.queue_size <= samples


def test_a_batch_that_suits_is_dealt_evenly_to_the_workers():
    recipe = load_recipe(["data.path=x", "preset=quick", "train.batch_size=240"])
    cut = cost.fitted(recipe, PACE, Sizes(500, 0), workers=6)
    assert cut.train.batch_size % 6 == 0
    assert cut.train.batch_size >= 12


def test_paper_is_the_recipe_as_it_stands():
    recipe = load_recipe(["data.path=x", "preset=paper"])
    assert cost.fitted(recipe, Pace(1000, 1, 1), Sizes(10**6, 10**5)) == recipe


@pytest.mark.slow
def test_the_numbers_of_a_preset_are_the_recipes_own(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "measure", lambda recipe, samples: (Pace(480 / 11 / 12 / 128, 0, 0), 1))
    run_dir = run.pretrain(load_recipe([*SMALL, "preset=quick", f"output={tmp_path / 'run'}"]))
    stored = load_recipe([f"recipe={run_dir / 'recipe.yaml'}"])
    assert (stored.train.epochs, stored.preset, stored.data.limit) == (12, None, None)
    assert stored.train.schedule.warmup_epochs == 1
    events = [line["event"] for line in metrics.read(run_dir / "metrics.jsonl") if "event" in line]
    assert "preset=quick: train.epochs=12 train.schedule.warmup_epochs=1.0" in events


def test_a_preset_without_a_trial_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(local, "measure", lambda recipe, samples: (None, 1))
    with pytest.raises(InputError, match=r"preset=quick needs a few trial steps"):
        run.pretrain(load_recipe([*SMALL, "preset=quick", f"output={tmp_path / 'run'}"]))
    assert not (tmp_path / "run").exists()


# -------------------------------------------------------------------- warm-ups


def test_a_warm_up_shrinks_with_the_epochs_where_these_alone_are_changed():
    def of(*arguments):
        recipe = load_recipe([*arguments, "data.path=x"])
        return recipe.train.schedule.warmup_epochs

    assert of("recipe=ressl/cifar10") == 10
    assert of("recipe=ressl/cifar10", "train.epochs=200") == 10
    assert of("recipe=ressl/cifar10", "train.epochs=20") == 1
    assert of("recipe=ressl/cifar10", "train.epochs=800") == 10  # as the papers' longer runs
    assert of("recipe=ressl/digits", "train.epochs=12") == 1  # of 120
    assert of("train.epochs=2") == pytest.approx(0.1)
    assert of("recipe=ressl/cifar10", "train.epochs=20", "train.schedule.warmup_epochs=5") == 5


def test_warm_ups_of_methods_shrink_too():
    recipe = load_recipe(["recipe=rcl/cifar10", "data.path=x", "train.epochs=40"])
    assert recipe.method.warmup_epochs == 2
    kept = load_recipe(["recipe=rcl/cifar10", "data.path=x", "train.epochs=40", "method.warmup_epochs=7"])
    assert kept.method.warmup_epochs == 7
    faded = load_recipe(["recipe=ressl/imagenet", "data.path=x", "train.epochs=50"])
    assert faded.method.infonce_warmup_epochs == 2.5


@pytest.mark.parametrize("name", packaged_recipes())
def test_a_recipe_as_it_is_keeps_its_warm_up(name):
    recipe = load_recipe([f"recipe={name}"])
    assert load_recipe([f"recipe={name}", f"train.epochs={recipe.train.epochs}"]) == recipe
    assert shortened(recipe, recipe.train.epochs) == recipe


# -------------------------------------------------------------------- advice


def remarks(*arguments, count=100_000, classes=None):
    labels = None if classes is None else np.random.default_rng(0).integers(0, classes, count)
    division = divide(labels, np.arange(count))
    return advice.remarks(load_recipe([*arguments, "data.path=x"]), count, division)


@pytest.mark.parametrize(
    ("arguments", "facts", "said"),
    [
        ([], {}, []),
        ([], {"classes": 10}, []),
        (["train.epochs=5", "train.schedule.warmup_epochs=5"], {}, ["train.schedule.warmup_epochs=0.25 fits"]),
        (["train.epochs=20", "train.schedule.warmup_epochs=19"], {}, []),
        (
            ["train.rounds=3", "train.epochs=10", "train.schedule.warmup_epochs=12", "train.schedule.period=round"],
            {}, ["train.schedule.warmup_epochs=0.5 fits"],
        ),
        (["method.infonce_warmup_epochs=200"], {}, ["method.infonce_warmup_epochs=10 fits"]),
        (
            ["method.name=rcl", "train.epochs=40", "method.warmup_epochs=40", "method.queue_size=64"],
            {}, ["method.warmup_epochs=2 fits"],
        ),
        ([], {"count": 2559}, ["train.batch_size=128 fits", "method.queue_size=2048 fits"]),
        (["method.queue_size=2560"], {"count": 2560}, []),
        (["train.batch_size=300", "method.queue_size=9"], {"count": 301}, ["1 step; train.batch_size=16 fits"]),
        (["method.queue_size=100001"], {}, ["method.queue_size=65536 fits"]),
        ([], {"classes": 1000}, ["k = 200 counts other classes too; k = 50 fits, eval.knn_k=[200, 20, 50]"]),
        (["eval.knn_k=[20]"], {"classes": 5000}, ["k = 10 fits, eval.knn_k=[20, 10]"]),
        (["eval.protocols=[linear]"], {"classes": 5000}, []),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_do_not_suit_the_data_are_said_with_what_fits(arguments, facts, said):
    found = remarks(*arguments, **facts)
    assert len(found) == len(said)
    for line, end in zip(found, said, strict=True):
        assert line.endswith(end)
        assert "\n" not in line


def test_what_is_advised_is_valid_and_leaves_nothing_to_advise():
    arguments, facts = ["train.schedule.warmup_epochs=300"], {"count": 2000, "classes": 20}
    found = remarks(*arguments, **facts)
    assert len(found) == 4
    fixed = dict(line.split("; ")[1].removesuffix(" fits").split("=", 1) for line in found[:3])
    fixed["eval.knn_k"] = "[50, 20]"
    assert remarks(*(f"{key}={value}" for key, value in fixed.items()), **facts) == []


@pytest.mark.slow
def test_advice_is_in_the_record_of_a_run(tmp_path):
    run_dir = run.pretrain(
        load_recipe([*SMALL, "train.epochs=1", "method.queue_size=2000", f"output={tmp_path / 'run'}"])
    )
    events = [line["event"] for line in metrics.read(run_dir / "metrics.jsonl") if "event" in line]
    assert [e for e in events if e.endswith("method.queue_size=1024 fits")]


def test_a_recipe_is_found_by_its_type_alone():
    assert recipe_from({"preset": "quick"}).preset == "quick"
    with pytest.raises(InputError, match="preset='fast' is not valid"):
        recipe_from({"preset": "fast"})
