"""Search spaces: what is refused, in one sentence, before anything starts; and what a good one becomes."""

import re

import contract
import pytest

pytest.importorskip("optuna")


from raysurl.commands import sweep
from raysurl.errors import InputError
from raysurl.sweep.axis import labels_of
from raysurl.sweep.cells import cell_of, cells, recipe_of
from raysurl.sweep.paper import paper_numbers
from raysurl.sweep.plan import SweepRequest, make_plan
from raysurl.sweep.space import SPACES, at_scale, read_space, space_from

BASE = {
    "name": "small",
    "title": "A small space",
    "recipe": "ressl/digits",
    "objectives": {"eval/lbfgs_top1": "max"},
    "axes": {"method.tau_student": [0.1, 0.2], "method.tau_teacher": [0.03, 0.05]},
    "seeds": [0, 1],
}


def space(**changes):
    return space_from({**BASE, **changes})


def plan(given, scale="full", **asked):
    return make_plan(SweepRequest(space=given, scale=scale, **asked))


def refused(match, **changes):
    with pytest.raises(InputError, match=match) as info:
        plan(space(**changes))
    return str(info.value)


def test_a_grid_becomes_one_trial_per_cell_and_seed_each_a_whole_recipe():
    made = plan(space())
    assert len(made.trials) == 8
    assert len({t.id for t in made.trials}) == 8
    assert {(t.recipe.method.tau_student, t.recipe.method.tau_teacher, t.seed) for t in made.trials} == {
        (s, t, seed) for s in (0.1, 0.2) for t in (0.03, 0.05) for seed in (0, 1)
    }
    assert all(t.recipe.runtime == "local" and t.recipe.views.size == 8 for t in made.trials)
    assert made.ids["0.1", "0.03"] == tuple(t.id for t in made.trials[:2])


def test_a_trials_id_depends_on_what_decides_its_result_alone():
    first, again = (plan(space()).trials[0].id for _ in range(2))
    assert first == again
    assert plan(space(fixed={"log.every_steps": 3})).trials[0].id == first
    assert plan(space(fixed={"train.epochs": 3})).trials[0].id != first
    assert plan(space(fixed={"eval.knn_k": [5]})).trials[0].id != first
    assert plan(space(), overrides={"train.clip": "1.0"}).trials[0].id != first


def test_an_axis_that_is_not_in_the_recipe_names_the_nearest_key():
    refused(r"axis method\.tau_techer sets method\.tau_techer, .*did you mean method\.tau_teacher\?",
            axes={"method.tau_techer": [0.1]})  # fmt: skip
    refused(r"axis train\.epoch .*did you mean train\.epochs\?", axes={"train.epoch": [1]})
    refused(r"fixed sets data\.limt", fixed={"data.limt": 3})
    with pytest.raises(InputError, match=r"argument sets trian\.epochs.*did you mean train\.epochs"):
        plan(space(), overrides={"trian.epochs": "3"})


def test_empty_axes_double_values_and_wrong_ranges_are_refused():
    refused(r"axis method\.tau_student is empty", axes={"method.tau_student": []})
    refused(r"names a value twice", axes={"method.tau_student": [0.1, 0.1]})
    refused(r"needs at least one axis", axes={})
    refused(r"low < high", axes={"method.tau_student": {"loguniform": [0, 1]}}, search="optuna")
    refused(r"has no grid", axes={"method.tau_student": {"uniform": [0.1, 1]}})
    refused(r"exactly one of", axes={"method.tau_student": {"grid": [1], "choice": [2]}})
    refused(r"when names b, which is not an axis before",
            axes={"method.tau_student": {"grid": [0.1], "when": {"b": ["x"]}}})  # fmt: skip


def test_all_cells_that_the_recipe_refuses_are_listed_at_once():
    said = refused(
        "refuses 5 cell", axes={"method.tau_student": [0.1, -1], "train.batch_size": [128, 100_000, 1]}
    )
    for cell in ("0.1, train.batch_size=100000", "0.1, train.batch_size=1:", "-1, train.batch_size=128"):
        assert f"method.tau_student={cell}" in said or cell in said
    assert said.count("train.batch_size=100000") >= 2  # in both rows


def test_a_grid_that_is_too_large_names_its_size():
    refused(r"has 8 trials \(4 cells × 2 seeds\), more than max_trials=7", max_trials=7)
    huge = {f"method.{k}": list(range(1, 200)) for k in ("hidden", "dim", "queue_size")}
    refused(r"has 15,761,198 trials \(7,880,599 cells × 2 seeds\)", axes=huge)
    assert len(plan(space(max_trials=4), only={"method.tau_student": ("0.1",)}).trials) == 4


def test_numbers_of_the_paper_must_be_of_cells_that_exist():
    values = paper_numbers(space(paper={0.1: [1, 2], 0.2: {0.05: 3}}))
    assert values == {("0.1", "0.03"): 1, ("0.1", "0.05"): 2, ("0.2", "0.05"): 3}
    refused(r"method\.tau_student=0\.3, a cell that does not exist", paper={0.3: [1, 2]})
    refused(
        r"has 3 numbers at method\.tau_student=0\.1 and axis method\.tau_teacher has 2",
        paper={0.1: [1, 2, 3]},
    )
    for odd in ("high", True, float("nan"), float("inf"), 10**400, -(10**400), [1], {}):
        said = refused(
            r"the paper's value at .*0\.1, method\.tau_teacher=0\.03 is .*, not a finite number",
            paper={0.1: {0.03: odd}},
        )
        assert len(said) < 200


def test_conditional_axes_count_where_they_are_active():
    made = space(
        axes={
            "method.predictor": [True, False],
            "method.tau_student": {"grid": [0.1, 0.2], "when": {"method.predictor": ["false"]}},
        }
    )
    assert [c.key for c in cells(made)] == [("true", "–"), ("false", "0.1"), ("false", "0.2")]
    assert len(plan(made).trials) == 6


def test_bundles_set_several_keys_and_may_change_the_recipe():
    axes = {
        "data": [1],
        "row": {"grid": {"a": {"method.hidden": 32, "method.dim": 8}, "b": {"recipe": "ressl/cifar10"}}},
    }
    made = space(axes={"row": axes["row"]})
    first, second = cells(made)
    assert first.settings == {"method.hidden": 32, "method.dim": 8}
    kept = plan(space(axes={"row": {"grid": {"a": first.settings}}}))
    assert kept.trials[0].recipe.method.hidden == 32
    assert second.settings == {"recipe": "ressl/cifar10"}
    refused("must be a mapping of recipe keys", axes={"row": {"grid": {"a": 3}}})


def test_policies_are_replaced_not_merged():
    axes = {"augment": {"grid": {"flip": {"views.policies.teacher_1": {"base": "plain", "flip": 0.5}}}}}
    (trial, *_) = plan(space(axes=axes)).trials
    policy = trial.recipe.view_policies()["teacher_1"]
    assert policy.flip == 0.5
    assert policy.crop is None  # which the recipe's own policy has


def test_cells_without_data_or_small_version_are_not_run_and_say_why(tmp_path):
    axes = {"dataset": {"grid": {"digits": {}, "other": {"data.name": "folder", "data.path": "{root}/x"}}}}
    made = plan(space(axes=axes))
    assert len(made.trials) == 2
    assert "data_root=" in made.not_run["other",]
    made = plan(space(axes=axes), data_root=str(tmp_path))
    assert str(tmp_path / "x") in made.not_run["other",]
    small = {"axes": {"dataset": {"other": None}}, "fixed": {"train.epochs": 2}, "seeds": [3]}
    made = plan(space(axes=axes, cpu=small), scale="cpu")
    assert made.not_run == {("other",): "dataset=other has no small version (scale=cpu)"}
    assert [(t.seed, t.recipe.train.epochs) for t in made.trials] == [(3, 2)]
    with pytest.raises(InputError, match="no cell can be run here"):
        plan(space(axes={"dataset": {"grid": {"other": axes["dataset"]["grid"]["other"]}}}))
    with pytest.raises(InputError, match="has no small version"):
        plan(space(), scale="cpu")


def test_small_values_keep_the_labels_of_the_table():
    small = {"axes": {"method.tau_student": {0.2: 0.15}}}
    made, _ = at_scale(space(cpu=small), "cpu")
    assert labels_of(made.axes["method.tau_student"]) == ["0.1", "0.2"]
    assert plan(space(cpu=small), scale="cpu").trials[-1].recipe.method.tau_student == 0.15
    with pytest.raises(InputError, match=r"maps 0\.25; did you mean 0\.2\?"):
        at_scale(space(cpu={"axes": {"method.tau_student": {0.25: 1}}}), "cpu")


def test_searches_with_several_objectives_are_not_pruned_and_pruning_needs_evaluations():
    open_axes = {"method.tau_student": {"loguniform": [0.05, 0.5]}}
    refused("several objectives cannot be pruned", axes=open_axes, search="optuna", prune={"kind": "asha"},
            objectives={"eval/knn_top1": "max", "seconds": "min"})  # fmt: skip
    refused(
        "eval.every_epochs above 0", axes=open_axes, search="optuna", prune={}, fixed={"eval.every_epochs": 0}
    )
    refused("refuses 1 cell", axes={"method.momentum": {"uniform": [0.5, 2]}}, search="optuna")


def test_sampled_cells_are_named_by_rounded_numbers():
    made = space(
        axes={"method.tau_student": {"loguniform": [0.05, 0.5]}, "method.predictor": [True, False]},
        search="optuna",
    )
    cell = cell_of(made, {"method.tau_student": 0.123456789, "method.predictor": "false"})
    assert cell.key == ("0.1235", "false")
    assert cell.settings == {"method.tau_student": 0.1235, "method.predictor": False}


def test_files_that_are_no_space_are_refused(tmp_path):
    file = tmp_path / "broken.yaml"
    for content, match in (
        (b"axes: [1\n b: {", r"space=.*broken\.yaml is not valid YAML: .*expected .*, line 2"),
        (b"title: caf\xe9", "cannot be read as text: 'utf-8' codec"),
        (b"- a", "must hold a mapping of axes, recipe and title"),
        (b"axes: {train.epochs: [1]}\nrecipe: ressl/digits", "title is missing"),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=match):
            read_space(str(file))
    refused(r"seeds=\[0, 0\] must be different", seeds=[0, 0])
    refused("paper=3 is not valid", paper=3)
    refused("method=0.1 holds no settings", axes={"method": [0.1]})


def test_runs_that_are_compared_have_no_preset():
    said = r"preset=quick cuts each run by its own speed.*set train\.epochs= and data\.limit="
    refused(said, fixed={"preset": "quick"})
    refused(said, axes={"preset": ["quick", "standard"]})
    with pytest.raises(InputError, match=said):
        plan(space(), overrides={"preset": "quick"})


def test_an_argument_may_not_change_what_an_axis_varies():
    with pytest.raises(InputError, match=r"argument method\.tau_student= is an axis .*only\.method\.tau_stu"):
        plan(space(), overrides={"method.tau_student": "0.5"})
    for section in ("data", "log", "method"):
        with pytest.raises(InputError, match=f"{section}=3"):
            plan(space(), overrides={section: "3"})


def test_each_cell_is_checked_with_its_own_method_and_teacher(tmp_path):
    knn = {k: {"method.structures": [{"kind": "knn", "k": k}]} for k in (5, 5000)}
    flat = {"data.name": "digits", "train.batch_size": 256}
    refused("refuses 1 cell.*k=5000: .*k=5000 neighbours, there are 1437",
            recipe="genurl/mnist_2d", axes={"k": {"grid": knn}}, fixed=flat)  # fmt: skip
    (tmp_path / "junk.safetensors").write_text("junk")
    names = [contract.tiny_teacher(), str(tmp_path / "junk.safetensors")]
    small = {"data.name": "digits", "views.size": 8, "train.batch_size": 64, "encoder": {"name": "convnet"}}
    refused("refuses 1 cell.*junk", recipe="genurl/kd_cifar10", axes={"teacher.name": names}, fixed=small)


@pytest.mark.parametrize(
    ("given", "seeds", "cells"),
    [
        (["seeds=0,1,2"], (0, 1, 2), 20),
        (["seeds=[0,1]"], (0, 1), 20),
        (["seeds=1,234"], (1, 234), 20),
        (["seeds=3", "only.method.tau_teacher=0.01,0.02"], (3,), 4),
        (["seeds=3", "only.method.tau_student=[0.1]", "only.dataset=CIFAR-10"], (3,), 10),
    ],
)
def test_lists_are_written_as_people_type_them(given, seeds, cells):
    made = make_plan(sweep.read_arguments(["space=ressl_table2", "scale=cpu", *given]).request)
    assert made.space.seeds == seeds
    assert len(made.ids) == cells


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "name the space"),
        (["space=ressl_table2", "seeds=true"], "different whole numbers"),
        (["space=ressl_table2", "seeds=0,a"], "different whole numbers"),
        (["space=ressl_table2", "seeds=0,0"], "different whole numbers"),
        (["space=ressl_table2", "only.dataset=[]"], r"only\.dataset names no value; its values are CIFAR-10"),
        (["space=ressl_table2", "trials=3"], "ressl_table2 is a grid"),
        (["space=open_ressl", "trials=0"], "trials=0 must be a whole number, 1 or more"),
        (["space=open_ressl", "trials=.inf"], "trials=inf must be a whole number"),
        (["space=ressl_table2", "max_hours=0"], "max_hours=0 must be a finite number, above 0"),
        (["space=ressl_table2", "max_concurrent=0"], "1 or more"),
        (["space=ressl_tabel2"], "did you mean ressl_table2"),
        (["space=ressl_table2", "max_concurent=2"], "did you mean max_concurrent"),
        (["space=ressl_table2", "seed=1"], "seeds="),
        (["space=ressl_table2", "seeds=[1,1]"], "different whole numbers"),
        (["space=ressl_table2", "max_concurrent=two"], "whole number"),
        (["space=ressl_table2", "scale=big"], "choose cpu, photographs or full"),
        (["space=ressl_table2", "only.method.tau_x=0.1"], "no such axis"),
        (["space=ressl_table2", "only.dataset=CIFAR-11"], "did you mean CIFAR-10"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, match):
    with pytest.raises(InputError, match=match):
        sweep.main([*arguments, "--print"])


def test_print_lists_the_trials_and_starts_nothing(capsys, tmp_path):
    sweep.main(["space=ressl_table2", "scale=cpu", "seeds=[0]", f"output={tmp_path / 'x'}", "--print"])
    said = capsys.readouterr().out
    assert "20 trials of 20 cells; 60 cells are not run" in said
    assert len(re.findall(r"[0-9a-f]{12}-s0", said)) == 20
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(SPACES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_space_can_run_at_its_small_scale_and_is_whole_at_full_scale(path):
    made = read_space(str(path))
    paper_numbers(made)
    taught = {"teacher.name": contract.tiny_teacher()} if "teacher.name=" in path.read_text() else {}
    for cell in cells(made) if made.search == "grid" else []:  # all settings are the recipe's, data or not
        recipe_of(made, cell, 0, taught, "/nonexistent")
    if made.cpu:
        assert made.cpu.stands_in
        if "needs data_root=" in made.cpu.stands_in:  # its data is not embedded
            with pytest.raises(InputError, match="no cell can be run here"):
                plan(made, scale="cpu", seeds=(0,), data_root="/nonexistent")
        else:
            small = plan(made, scale="cpu", seeds=(0,), overrides=taught)
            assert small.total > 0
            # a row that the small version forgot would look for the data of the full one
            assert all("has no small version" in why for why in small.not_run.values())
            # and one that forgot the encoder would train that of the paper
            assert {recipe.encoder.name for recipe in small.recipes} <= {"convnet", "mlp"}


PHOTOGRAPHS = [p for p in sorted(SPACES.glob("*.yaml")) if read_space(str(p)).photographs]


@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda p: p.stem)
def test_a_version_of_photographs_is_of_the_same_images_and_network_in_every_cell(path):
    made = read_space(str(path))
    request = SweepRequest(made, "photographs", seeds=(0,), data_root="/nonexistent")
    listed = make_plan(request, listed=True)
    assert listed.total >= 2
    assert all("has no small version" in why for why in listed.not_run.values())
    assert {r.encoder.name for r in listed.recipes} == {"convnet"}
    assert {(r.data.path, r.data.limit) for r in listed.recipes} == {("/nonexistent/train.parquet", 5000)}
    assert {(r.views.size, r.train.batch_size, r.train.precision) for r in listed.recipes} == {
        (24, 128, "bf16")
    }
    with pytest.raises(InputError, match="no cell can be run here"):
        make_plan(request)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(SPACES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_cell_of_every_space_is_listed_without_its_data(path):
    made = read_space(path.stem)
    listed = make_plan(
        sweep.read_arguments([f"space={path.stem}", "scale=full", "seeds=0", "--print"]).request, listed=True
    )
    assert not listed.not_run
    if made.search == "optuna":
        assert len(listed.recipes) >= 2
    else:
        assert set(listed.ids) == {cell.key for cell in cells(made)}
        assert set(paper_numbers(made)) <= set(listed.ids)
    assert all("?" not in listed.samples_of(recipe) for recipe in listed.recipes)


def test_what_is_listed_says_what_the_data_are_known_to_be(capsys):
    sweep.main(["space=ressl_table3", "scale=full", "seeds=0", "--print"])
    said = capsys.readouterr().out
    for count in ("(50,000)", "(105,000)", "(100,000)"):
        assert count in said
    assert "8 trials of 8 cells; 0 cells are not run" in said
    assert "in brackets: the data are not here" in said
    sweep.main(["space=genurl_table4", "scale=full", "seeds=0", "--print"])
    assert "87.78" in capsys.readouterr().out
    sweep.main(["space=ressl_table3", "scale=cpu", "seeds=0", "--print"])
    assert " 1,437 " in capsys.readouterr().out


def test_a_listed_cell_must_still_be_valid():
    bad = space(axes={"train.batch_size": [128, 100_000]}, recipe="ressl/cifar10")
    with pytest.raises(InputError, match="100000 is larger than the data, 50000 samples"):
        make_plan(SweepRequest(bad, "full"), listed=True)
    with pytest.raises(InputError, match="refuses 1 cell"):
        make_plan(SweepRequest(space(axes={"method.tau_student": [0.1, -1]}), "full"), listed=True)


def test_what_is_known_of_data_is_what_they_are():
    from raysurl.data.known import BY_NAME, known_of
    from raysurl.data.names import open_samples
    from raysurl.recipe import Data

    assert len(open_samples(Data(name="digits"), "train", 0)) == BY_NAME["digits"].samples
    assert known_of(Data(name="torchvision:CIFAR10", limit=1000), None).samples == 1000
    assert known_of(Data(path="x/train"), "mvmr/imagenet").samples == 1_281_167
    assert known_of(Data(path="x/tiny-imagenet-200/train"), "ressl/tiny_imagenet").samples == 100_000
    assert known_of(Data(path="mine"), None) is None


@pytest.mark.parametrize(
    "objective",
    ["eval/linear_top1", "eval/knn5_top1", "eval/knn_top", "train/nothing", "health/level_0", "x"],
)
def test_an_objective_that_no_trial_would_have_is_refused_before_any_runs(objective):
    fixed = {"eval.protocols": ["knn"], "eval.knn_k": [200, 20], "eval.baselines": False}
    refused(f"objective {objective} comes of no protocol here .eval.protocols=knn.; ", fixed=fixed,
            objectives={objective: "max"})  # fmt: skip
    for known in ("eval/knn_top1", "eval/knn20_top1", "train/loss", "seconds", "health/rankme"):
        assert plan(space(fixed=fixed, objectives={known: "max"})).trials


@pytest.mark.parametrize(
    ("protocols", "metric"),
    [
        (None, "eval/linear_top1"),
        (["knn"], "eval/knn_top1"),
        (["rankme", "lbfgs"], "eval/lbfgs_top1"),
        (["knn", "linear"], "eval/linear_top1"),
    ],
)
def test_a_space_that_names_no_objective_is_judged_by_what_it_asks_for(protocols, metric):
    fixed = {"eval.protocols": protocols} if protocols else {}
    unnamed = {key: value for key, value in BASE.items() if key != "objectives"}
    assert plan(space_from({**unnamed, "fixed": fixed})).space.metric == metric
    if protocols:
        assert (
            plan(space_from(unnamed), overrides={"eval.protocols": f"[{', '.join(protocols)}]"}).space.metric
            == metric
        )


def test_a_trial_is_pruned_by_what_it_has_while_it_trains():
    asked = {
        "axes": {"method.tau_student": {"loguniform": [0.05, 0.5]}},
        "search": "optuna",
        "fixed": {"eval.every_epochs": 1, "eval.protocols": ["knn", "linear"]},
        "objectives": {"eval/linear_top1": "max"},
    }
    refused(
        "prune.signal eval/linear_top1 is not computed during training",
        **asked,
        prune={"signal": "eval/linear_top1"},
    )
    assert plan(space(**asked, prune={"signal": "eval/knn_top1"}))


# -------------------------------------------------------------------- cells that are read by several metrics

MEASURED = {
    "axes": {"method.tau_student": [0.1, 0.2]},
    "measures": {"k": {"200": "eval/knn_top1", "20": "eval/knn20_top1"}},
    "objectives": {"eval/knn_top1": "max"},
    "paper": {0.1: [1, 2], 0.2: [3, 4]},
    "seeds": [0],
}


def test_cells_of_a_measure_are_of_one_run_and_each_has_its_metric():
    given = space(**MEASURED)
    made = plan(given)
    assert list(given.axes) == ["method.tau_student", "k"]
    assert len(made.trials) == 2
    assert made.ids["0.1", "200"] == made.ids["0.1", "20"] != made.ids["0.2", "20"]
    assert [given.metric_of(key) for key in made.ids] == ["eval/knn_top1", "eval/knn20_top1"] * 2
    assert paper_numbers(given)["0.2", "20"] == 4
    small = space(**MEASURED, cpu={"axes": {"k": {"20": None}}})
    assert len(plan(small, scale="cpu").not_run) == 2
    assert plan(given, only={"k": ("20",)}).ids.keys() == {("0.1", "20"), ("0.2", "20")}


def test_measures_that_no_run_has_or_no_axis_are_refused():
    refused("objective eval/knn30_top1 comes of no protocol here",
            **{**MEASURED, "measures": {"k": {"200": "eval/knn_top1", "20": "eval/knn30_top1"}}})  # fmt: skip
    wrong = {
        "axes": {"k": {"grid": {"200": {}, "20": {}}}},
        "measures": {"k": {"200": "eval/knn_top1"}},
        "paper": {},
    }
    refused(r"measures\.k must be of a grid's axis, and name a metric for each", **{**MEASURED, **wrong})


def test_each_cell_is_printed_with_its_own_number(capsys):
    sweep.main(["space=mvmr_table4", "scale=full", "--print"])
    said = capsys.readouterr().out
    lines = [line.split() for line in said.splitlines() if "MV-MR ResNet50" in line]
    assert [line[-1] for line in lines] == ["95.6", "75.3"]
    assert len({line[0] for line in lines}) == 1
    assert "1 trials of 2 cells" in said
