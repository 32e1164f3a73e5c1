"""Recipes: files, overrides, and what is said about a wrong one."""

import copy
from importlib import resources
from pathlib import Path

import pytest
import yaml

from raysurl.errors import InputError
from raysurl.recipe import dump, load_recipe, packaged_recipes, read_mapping, recipe_from
from raysurl.recipe.files import merge, with_base
from raysurl.report.recipe import flatten
from raysurl.sweep.space import read_space

RECIPES = Path(str(resources.files("raysurl") / "recipes"))

ISSUE_RECIPES = {
    "ressl/digits",
    "ressl/cifar10",
    "ressl/cifar100",
    "ressl/stl10",
    "ressl/tiny_imagenet",
    "ressl/imagenet",
    "ressl/imagenet_multicrop",
    "ressl/imagenet_conference",
    "mocov2/cifar10",
    "mocov2/imagenet",
}


def test_the_promised_recipes_are_packaged():
    assert set(packaged_recipes()) >= ISSUE_RECIPES


@pytest.mark.parametrize("name", packaged_recipes())
def test_every_packaged_recipe_is_valid_short_and_says_what_it_is(name):
    from importlib import resources

    text = (resources.files("raysurl") / "recipes" / f"{name}.yaml").read_text()
    assert len(text.splitlines()) <= 30
    assert "Cost:" in text
    assert f"# Command: python pipelines/pretrain.py recipe={name}" in text or name == "ressl/digits"
    recipe = load_recipe([f"recipe={name}"])
    assert recipe.recipe == name
    assert recipe.view_policies()


@pytest.mark.parametrize("name", packaged_recipes())
def test_a_dumped_recipe_reads_back_the_same(name):
    recipe = load_recipe([f"recipe={name}", "seed=3"])
    assert recipe_from(yaml.safe_load(dump(recipe))) == recipe


def test_two_crops_and_light_backbones_are_overrides():
    recipe = load_recipe(["recipe=ressl/imagenet", "method.crops=2", "encoder.name=mobilenet_v3_large"])
    assert set(recipe.view_policies()) == {"student_1", "student_2", "teacher_1", "teacher_2"}
    assert recipe.encoder.name == "mobilenet_v3_large"


def test_without_arguments_the_embedded_digits_run_and_naming_data_starts_from_the_defaults():
    assert load_recipe([]).data.name == "digits"
    own = load_recipe(["data.name=folder", "data.path=x"])
    assert (own.recipe, own.encoder.name, own.method.hidden) == (None, "resnet18", 4096)


def test_overrides_reach_every_depth_and_keep_the_rest():
    recipe = load_recipe(["recipe=ressl/cifar10", "train.optimizer.lr=0.5", "method.tau_teacher=0.02"])
    assert recipe.train.optimizer.lr == 0.5
    assert recipe.train.optimizer.weight_decay == 5e-4
    assert recipe.method.tau_teacher == 0.02


def test_a_policy_may_change_a_named_one():
    recipe = load_recipe(["views.policies.student_1={base: contrastive, flip: 0.0}"])
    policy = recipe.view_policies()["student_1"]
    assert (policy.flip, policy.gray_p) == (0.0, 0.2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train.epoch=3"], r"unknown recipe key train\.epoch; did you mean train\.epochs\?"),
        (["train.epochs=many"], r"train\.epochs='many' is not valid"),
        (["train.epochs=0"], r"train\.epochs=0 is not valid"),
        (["method.tau_techer=1"], r"method\.tau_techer; did you mean method\.tau_teacher"),
        (["method.name=resl"], r"method\.name='resl' is not a method; choose one of .*ressl"),
        (["recipe=ressl/cifar"], r"recipe=ressl/cifar is neither a YAML file nor one of .*ressl/cifar10"),
        (["epochs"], r"'epochs' is not of the form key=value"),
        (["train.accumulate=3"], r"train\.accumulate=3 must divide train\.batch_size"),
        (["scale.workers=3"], r"must be a multiple of scale\.workers"),
        (["views.policies.student_1=strange"], r"views\.policies\.student_1='strange' is not a policy"),
        (["views.policies.student_9=weak"], r"student_9: this method has no such view; it has .*student_1"),
        (["views.policies.student_1={flip: 3}"], r"views\.policies\.student_1\.flip=3 is not valid"),
        (["resume=true", "init_from=x", "output=y"], r"give one of them"),
        (["train.precision=fp8"], r"train\.precision='fp8' is not valid: .*'fp32' or 'bf16'"),
        (["seed=yes"], r"seed=True is not valid: a number is wanted"),
        (["method.queue_size=on"], r"method\.queue_size=True is not valid: a number is wanted"),
        (["views.mean=[no, 0, 0]"], r"views\.mean=\[False, 0, 0\] is not valid: a number is wanted"),
        (["views.mean=[0, 0]"], r"views\.mean has 2 of its values; give all of them"),
        (["views.std=[0, 1, 1]"], r"views\.std=0 is not valid: .*greater than 0"),
        (["teacher.std=[-1, 1, 1]"], r"teacher\.std=-1 is not valid: .*greater than 0"),
        (["train.optimizer.momentum=-1"], r"momentum=-1 is not valid"),
        (["train.optimizer.momentum=1"], r"momentum=1 is not valid"),
        (["train.optimizer.trust=0"], r"trust=0 is not valid"),
        (
            ["train.optimizer.nesterov=true", "train.optimizer.momentum=0"],
            r"^train\.optimizer: nesterov looks",
        ),
        (["train.schedule.gamma=-1"], r"gamma=-1 is not valid"),
        (["train.schedule.milestones=[0.5, 2]"], r"milestones=2 is not valid"),
        (["method.name=superand", "method.unification_milestones=[-1]"], r"milestones=-1 is not valid"),
        (["method.name=mvmr", "method.feature_weights={hog: -5}"], r"feature_weights\.hog=-5 is not valid"),
        (["eval.margin=1e308"], r"eval\.margin='1e308' is not valid"),
        (["views.policies.student_1={margin: .inf}"], r"margin=inf is not valid"),
        (["views.policies.student_1={ratio: [1, .inf]}"], r"ratio=inf is not valid"),
        (["scale.threads=100000"], r"scale\.threads=100000 is not valid"),
        (["encoder.name=convnet", "encoder.dropout=0.5"], r"^encoder: dropout is of an mlp"),
    ],
)
def test_a_wrong_recipe_is_one_sentence_that_names_the_key(arguments, said):
    with pytest.raises(InputError, match=said) as raised:
        load_recipe(arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "given", ["[contrastive]", "[[weak]]", "{base: [weak]}", "{base: {weak: 1}}", "3", "no"]
)
def test_a_policy_that_is_no_name_is_refused_by_it(given):
    with pytest.raises(
        InputError, match=r"views\.policies\.student_1=.* is not a policy; choose one of plain"
    ):
        load_recipe([f"views.policies.student_1={given}"])


def settings_of(*arguments):
    """Every setting of a recipe and every section of it, by dotted key, policies of its views included."""
    recipe = load_recipe([*arguments, "data.path=x"])
    keys = set(flatten(recipe.model_dump(mode="json"))) | {
        f"views.policies.{v}" for v in recipe.method.views()
    }
    keys |= {f"views.policies.{v}.{k}" for v in recipe.method.views() for k in ("base", "crop", "jitter")}
    return sorted(keys | {key.rpartition(".")[0] for key in keys if "." in key})


ODD = (
    *(
        "",
        "[]",
        "[a]",
        "[[a]]",
        "{}",
        "{a: b}",
        "{base: [x]}",
        "{base: {}}",
        "{[1]: 2}",
        "[null]",
        "[{}]",
        "null",
    ),
    *(
        "0",
        "-1",
        "1e400",
        ".nan",
        "true",
        "x" * 300,
        "\x00",
        "\udce9",
        "2024-05-06",
        "[1, 2, 3, 4, 5]",
        "9" * 30,
    ),
    *('"', ": :", "&a [*a]", "{<<: [1]}", "!!set {a}"),
)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ressl", "genurl"])
def test_whatever_a_setting_is_given_it_is_taken_or_refused_in_one_sentence(method):
    refusals = []
    for i, key in enumerate(settings_of(f"method.name={method}")):
        for text in ODD[i % 5 :: 5]:  # other ones for the next setting
            try:
                recipe = load_recipe([f"method.name={method}", "data.path=x", f"{key}={text}"])
                recipe.view_policies()
                dump(recipe)
            except InputError as error:
                refusals.append(str(error))
    assert len(refusals) > 200
    assert not [text for text in refusals if len(text.splitlines()) > 1]


def test_a_file_differs_from_its_base_and_a_base_from_the_defaults(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("base: cifar10\nviews: {size: 24}\n")
    mine, packaged = load_recipe([f"recipe={file}"]), load_recipe(["recipe=ressl/cifar10"])
    assert mine.views.size == 24
    assert mine.views.mean == packaged.views.mean
    file.write_text("base: ressl/cifar10\ntrain: {epochs: 3}\n")  # another recipe, with its own base
    on_recipe = load_recipe([f"recipe={file}"])
    assert (on_recipe.train.epochs, on_recipe.views) == (3, packaged.views)
    file.write_text("base: cifar11\n")
    with pytest.raises(InputError, match="base=cifar11 is neither"):
        load_recipe([f"recipe={file}"])


@pytest.mark.parametrize("length", [252, 255, 300])
def test_a_name_that_no_file_can_have_is_refused(length, tmp_path):
    name, file = "n" * length, tmp_path / "mine.yaml"
    file.write_text(f"base: {name}\n")
    for read in (
        lambda: load_recipe([f"recipe={name}"]), lambda: load_recipe([f"recipe={file}"]),
        lambda: read_space(name), lambda: read_space(str(file)),
    ):  # fmt: skip
        with pytest.raises(InputError, match="a name in it is longer than 255 bytes"):
            read()


@pytest.mark.slow
def test_packaged_recipes_say_only_what_differs():
    """No setting of a recipe repeats what its base or the defaults say already."""
    for name in packaged_recipes():
        tree = read_mapping(RECIPES / f"{name}.yaml", name, "settings")
        under = with_base({"base": tree.pop("base", None)}, name, RECIPES)
        whole = dump(recipe_from(merged(under, tree)))
        repeated = [
            path for path in leaves(tree) if path != ("method", "name") and same(under, tree, path, whole)
        ]
        assert repeated == [], name


def merged(under, tree):
    result = copy.deepcopy(under)
    merge(result, copy.deepcopy(tree))
    return result


def leaves(tree, path=()):
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


def same(under, tree, path, whole):
    """Whether the recipe is the same without the setting at `path`."""
    less = copy.deepcopy(tree)
    holder = less
    for key in path[:-1]:
        holder = holder[key]
    del holder[path[-1]]
    try:
        return dump(recipe_from(merged(under, less))) == whole
    except InputError:
        return False
