"""Spaces of the papers' tables: what each cell is trained with, where the papers say it."""

from itertools import pairwise

import contract
import pytest

pytest.importorskip("optuna")

from raysurl.errors import InputError
from raysurl.method import Progress
from raysurl.methods.rcl.clustering import make_clusters
from raysurl.recipe import load_recipe
from raysurl.recipe.files import parse_yaml
from raysurl.sweep.cells import cells, recipe_of
from raysurl.sweep.paper import paper_numbers, paper_seconds
from raysurl.sweep.space import SPACES, at_scale, read_space, space_from
from raysurl.views import POLICIES

STL10 = ([0.4467, 0.4398, 0.4066], [0.2603, 0.2566, 0.2713])
GRAPHS = {"Cora": "genurl/cora", "CiteSeer": "genurl/citeseer", "PubMed": "genurl/pubmed"}


def recipes(name, *, scale="full", **overrides):
    space, missing = at_scale(read_space(name), scale)
    return {
        cell.key: recipe_of(space, cell, 0, overrides, "/nonexistent")
        for cell in cells(space)
        if not any(cell.labels[axis] in labels for axis, labels in missing.items())
    }


# -------------------------------------------------------------------- RCL


def test_rcls_offline_arms_have_three_clusterings_and_the_papers_radii_and_sizes():
    made = recipes("rcl_table4")
    arms = {label: made[label,].method.hierarchy for label in ("K-means", "DBSCAN", "online")}
    assert {label: (a.levels, a.depth) for label, a in arms.items()} == {
        "K-means": (3, 3), "DBSCAN": (3, 3), "online": (3, 2),
    }  # fmt: skip
    images = 1_281_167
    assert make_clusters(arms["K-means"], images, 8, 0).sizes == pytest.approx(
        [1_000_000, 500_000, 250_000], rel=2e-3
    )
    assert make_clusters(arms["DBSCAN"], 100, 8, 0).radii == pytest.approx([0.6, 0.7, 0.8], abs=1e-9)


@pytest.mark.parametrize("scale", ["full", "cpu"])
def test_rcls_times_per_epoch_stand_beside_nnclrs(scale):
    space, _ = at_scale(read_space("rcl_table4"), scale)
    assert paper_seconds(space) == {
        ("none (NNCLR)",): 659, ("K-means",): 1056, ("DBSCAN",): 986, ("online",): 776,
    }  # fmt: skip


def test_times_are_of_cells_that_exist_and_of_one_axis():
    tree = {
        "name": "small",
        "title": "t",
        "recipe": "ressl/digits",
        "axes": {"method.tau_student": [0.1, 0.2]},
    }
    timed = {"epoch_seconds": {"to": "0.1", "paper": [1, 2]}}
    assert paper_seconds(space_from({**tree, **timed})) == {("0.1",): 1, ("0.2",): 2}
    assert paper_seconds(space_from(tree)) == {}
    with pytest.raises(InputError, match=r"epoch_seconds\.to=0\.3 must be a label of the only axis"):
        space_from({**tree, "epoch_seconds": {"to": "0.3", "paper": [1, 2]}})
    with pytest.raises(InputError, match="must be a label of the only axis"):
        space_from({**tree, **timed, "axes": {**tree["axes"], "method.tau_teacher": [0.03]}})
    with pytest.raises(InputError, match="has 3 numbers"):
        paper_seconds(space_from({**tree, "epoch_seconds": {"to": "0.1", "paper": [1, 2, 3]}}))


def test_figure_5a_has_the_numbers_that_the_paper_prints():
    assert paper_numbers(read_space("rcl_fig5a")) == {("200",): 72.6, ("800",): 75.8}


# -------------------------------------------------------------------- GenURL


@pytest.mark.parametrize("scale", ["full", "cpu"])
@pytest.mark.parametrize(
    "name", ["genurl_table3", "genurl_fig5_batch", "genurl_fig5_nu", "genurl_fig5_sigma"]
)
def test_tables_of_genurl_keep_the_literal_target(name, scale):
    assert not any(recipe.method.centre_latents for recipe in recipes(name, scale=scale).values())


def test_so_does_table_3_of_photographs():
    found = recipes("genurl_table3", scale="photographs")
    assert [recipe.method.centre_latents for recipe in found.values()] == [False] * 5


def test_searches_and_comparisons_of_ours_take_the_default_target():
    assert recipes("cifar10_cpu")["genurl",].method.centre_latents
    assert recipe_of(read_space("open_genurl"), _first_corner(), 0, {}, "/nonexistent").method.centre_latents
    assert load_recipe(["method.name=genurl", "data.path=x"]).method.centre_latents


def _first_corner():
    from raysurl.sweep.cells import cell_of
    from raysurl.sweep.plan import corners

    space = read_space("open_genurl")
    return cell_of(space, corners(space)[0])


def test_table_3_trains_as_long_as_its_numbers_say():
    epochs = {(data, recipe.train.epochs) for (data, _), recipe in recipes("genurl_table3").items()}
    assert epochs == {("STL-10", 1600), ("CIFAR-10", 800), ("CIFAR-100", 800), ("Tiny ImageNet", 800)}


@pytest.mark.parametrize(("scale", "large", "small"), [("full", 2048, 256), ("cpu", 512, 128)])
def test_table_4_has_the_papers_rows_and_batches(scale, large, small):
    name = contract.tiny_teacher() if scale == "cpu" else "resnet50"
    made = recipes("genurl_table4", scale=scale, **{"teacher.name": name})
    for (_, row), recipe in made.items():
        assert recipe.train.batch_size == (large if row.startswith("GenURL") else small)
        assert recipe.teacher.name == (None if row == "SSL" else name)
        assert ("instance" in {s.kind for s in getattr(recipe.method, "structures", ())}) == (
            row.startswith("GenURL") and "SSL" in row
        )
        assert bool(getattr(recipe.method, "memory_size", 0)) == ("with M" in row)
    numbers = paper_numbers(read_space("genurl_table4"))
    assert numbers["resnet18", "SSL"] == 81.51
    assert numbers["mobilenet_v2", "GenURL with M, KD+SSL"] == 87.47
    assert len(numbers) == 42


@pytest.mark.parametrize(
    "name", ["genurl_table4", "genurl_table6", "genurl_fig7_batch", "genurl_fig7_nu", "genurl_fig7_sigma"]
)
def test_teachers_of_genurl_are_centred_and_see_what_they_were_trained_on(name):
    for key, recipe in recipes(name, **{"teacher.name": "resnet50"}).items():
        teacher = recipe.teacher
        if "SSL" in key:
            continue
        assert teacher.centre
        assert (teacher.size, list(teacher.mean), list(teacher.std)) == (96, *STL10)
    own = {
        "teacher.name": contract.tiny_teacher(),
        "teacher.size": "null",
        "teacher.mean": "null",
        "teacher.std": "null",
    }
    for key, recipe in recipes(name, **own).items():
        assert recipe.teacher.size is recipe.teacher.mean is recipe.teacher.std is None, key
    for recipe in recipes(name, scale="cpu", **{"teacher.name": contract.tiny_teacher()}).values():
        assert recipe.teacher.size is recipe.teacher.mean is recipe.teacher.std is None


def test_tables_of_graphs_and_of_points_take_each_data_sets_own_recipe():
    for (graph, row), recipe in recipes("genurl_table7").items():
        own = load_recipe([f"recipe={GRAPHS[graph]}", "data.path=x"])
        assert (recipe.recipe, recipe.data.name) == (GRAPHS[graph], own.data.name)
        assert (recipe.method.sigma, recipe.train.epochs) == (own.method.sigma, own.train.epochs)
        assert recipe.encoder == own.encoder
        kinds = [s.kind for s in recipe.method.structures]
        assert kinds == (["knn"] if "feature" in row else ["graph", "knn"])
        knn = recipe.method.structures[-1]
        assert knn.weight == knn.weight_end > 0
    assert {r.recipe for r in recipes("genurl_fig9").values()} == {"genurl/citeseer"}
    points = {data: r.recipe for (data, _), r in recipes("genurl_table8").items()}
    assert points == {
        "MNIST": "genurl/mnist_2d", "FMNIST": "genurl/fashion_mnist_2d", "COIL-20": "genurl/coil20_2d",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["genurl_table8", "genurl_fig12"])
def test_coil_20_has_its_own_scale_and_more_than_one_step_an_epoch(name):
    for key, recipe in recipes(name).items():
        if name == "genurl_fig12" or "COIL-20" in key:
            (knn,) = recipe.method.structures
            assert knn.sigma == 20
            assert 1440 // recipe.train.batch_size > 1
            assert name == "genurl_fig12" or recipe.method.nu_z == 0.01


@pytest.mark.parametrize("name", GRAPHS.values())
def test_the_papers_set_up_of_graphs_is_the_command_that_the_recipe_names(name):
    """Five layers, BCE, L2, dynamic, both terms, latents of the last but one layer."""
    header = (SPACES.parent / "recipes" / f"{name}.yaml").read_text()
    said = header[header.index("The paper's, five layers: ") :].partition("\n# Cell")[0]
    said = said.removeprefix("The paper's, five layers: ").replace("\n# ", " ")
    structures = said[said.index("method.structures=") :]
    words = [*said.removesuffix(structures).split(), structures]
    recipe = load_recipe([f"recipe={name}", "data.path=x", *words])
    method = recipe.method
    assert len(recipe.encoder.widths) == 5
    assert (method.kind, method.distance, method.target, method.sigma) == ("bce", "l2", "dynamic", 1)
    assert [s.kind for s in method.structures] == ["graph", "knn"]
    assert method.reads_hidden()
    assert parse_yaml(structures.partition("=")[2], "header")[1]["weight"] > 0


# -------------------------------------------------------------------- comparisons of ours


def test_anchors_of_super_and_come_in_several_steps_on_a_small_budget():
    made = recipes("cifar10_cpu")
    for row in ("superand", "and"):
        recipe = made[row,]
        epochs = range(recipe.total_epochs)
        shares = [
            recipe.method.fraction(Progress(e, recipe.total_epochs, 1, 0, recipe.train.rounds))
            for e in epochs
        ]
        assert recipe.total_epochs == made["npid",].total_epochs == 8
        assert (shares[0], shares[-1]) == (0, 1)
        assert max(b - a for a, b in pairwise(shares)) < 0.4


@pytest.mark.parametrize("name", ["mvmr/kd_imagenet", "mvmr/kd_stl10"])
def test_mvmr_distils_as_the_papers_section_6_says(name):
    recipe = load_recipe([f"recipe={name}", "data.path=x"])
    train, method = recipe.train, recipe.method
    assert (train.epochs, train.batch_size, train.accumulate) == (200, 512, 1)
    assert (train.optimizer.name, train.optimizer.lr, train.optimizer.lr_batch) == ("adam", 1e-4, 0)
    assert (method.projector, method.features, method.teacher_weight) == ((8192,) * 3, (), 1)
    assert (recipe.encoder.name, recipe.teacher.view) == ("resnet50", "plain")
    assert recipe.teacher.name.startswith("open_clip:ViT-B-16/")


@pytest.mark.parametrize("name", ["genurl_table1", "genurl_table5", "genurl_fig6"])
def test_contrastive_methods_of_genurls_tables_see_moco_v2s_views(name):
    """Sec. V-A and V-B: “the same augmentation settings described in MoCo.v2 to all contrastive learning methods”."""
    made = recipes(name)
    seen = {key[0]: {*recipe.view_policies().values()} for key, recipe in made.items()}
    assert {label for label, policies in seen.items() if policies != {POLICIES["mocov2"]}} <= {"SwAV*"}
    assert {"BYOL", "MoCo.v2", "GenURL"} <= set(seen)


@pytest.mark.parametrize(
    "name", ["rcl_table1", "rcl_table2", "mvmr_table1", "mvmr_table3", *(f"ressl_table{n}" for n in (7, 9, 10, 11, 12))]
)  # fmt: skip
def test_byol_has_the_settings_of_its_length(name):
    """Grill et al.: of 1,000 epochs, and those of 300 and fewer."""
    found = [r for r in recipes(name).values() if r.method.name == "byol"]
    assert found
    for r in found:
        o = r.train.optimizer
        expected = (0.2, 1.5e-6, 0.996) if r.train.epochs >= 1000 else (0.3, 1e-6, 0.99)
        assert (o.lr, o.weight_decay, r.method.momentum) == expected
