"""What holds for every method: this file names none, it runs the checks of raysurl.testing over all that are found."""

import contract
import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from raysurl import method
from raysurl.nets.dropping import DropPath
from raysurl.nets.ema import MomentumTeacher
from raysurl.testing import methods, runs
from raysurl.testing.ranks import on_ranks

METHODS = method.available()
every_method = pytest.mark.parametrize("name", METHODS)


@every_method
def test_a_step_gives_what_a_step_gives_and_its_gradient_reaches_all_that_is_trained_and_no_teacher(name):
    recipe = contract.recipe_for(name)
    methods.check_source(method.load(name))
    methods.check_views(recipe)
    methods.check_output(recipe)
    methods.check_gradients(recipe)


@pytest.mark.parametrize("name", contract.slow_but(["rcl", "seed"], METHODS))
def test_what_is_kept_remembered_and_taught_by_a_seed_is_what_it_should_be(name):
    recipe = contract.recipe_for(name)
    methods.check_encoder_is_kept(recipe)
    runs.check_memory(recipe)
    methods.check_teachers_stay(recipe)
    runs.check_seeds(recipe)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_vit_and_a_convnext_train_without_a_batch_norm_and_their_teachers_drop_nothing(name, tmp_path):
    for kind, network in contract.BACKBONES.items():
        recipe = contract.recipe_for(name, encoder=network | {"drop_path": 0.2, "sobel": kind == "vit"})
        run = contract.start(recipe, tmp_path / kind)
        encoder = run.method.encoder
        assert not any(isinstance(m, _BatchNorm) for m in encoder.modules())
        before = {k: v.clone() for k, v in encoder.named_parameters()}
        for loss in contract.steps(run, 2):
            assert torch.isfinite(torch.tensor(loss))
        for key, value in encoder.named_parameters():
            frozen = recipe.method.freezes_patches and "patch_embed" in key
            assert value.requires_grad is not frozen
            assert value.ndim == 1 or torch.equal(value, before[key]) is frozen, key
        assert any(m.training for m in encoder.modules() if isinstance(m, DropPath))
        teachers = [m for m in run.method.modules() if isinstance(m, MomentumTeacher)]
        assert not any(m.training for t in teachers for m in t.modules() if isinstance(m, DropPath))
        assert all(m.training for t in teachers for m in t.net.modules() if isinstance(m, _BatchNorm))


@pytest.mark.parametrize("name", contract.slow_but(["rcl", "superand"], METHODS))
def test_runs_of_a_seed_are_equal_and_a_resumed_one_is_among_them(name):
    runs.check_repeats_and_resumes(contract.recipe_for(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_twenty_steps_on_one_batch_lower_the_loss(name):
    methods.check_learns(contract.recipe_for(name))


@pytest.fixture(scope="module")
def on_one_and_two_ranks(request):
    """All methods of this session in one pair of processes."""
    tests = [item for item in request.session.items if "on_one_and_two_ranks" in item.fixturenames]
    names = [item.callspec.params["name"] for item in tests]
    alone = runs.first_steps(0, names, contract.recipe_for, 1)
    return alone, on_ranks(runs.first_steps, 2, names, contract.recipe_for, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*METHODS, "mocov3/vit", "ressl/convnext"])
def test_two_ranks_equal_one_in_loss_gradient_and_memory(name, on_one_and_two_ranks):
    alone, ranks = on_one_and_two_ranks
    runs.compare_ranks(alone[name], [rank[name] for rank in ranks])
