"""Encoders of timm: what they give, how they begin, what they draw, and what is refused."""

import copy
import json
import re
import sys

import contract
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import nn

import raysurl
from raysurl import cli, teachers
from raysurl.commands import evaluate, pretrain
from raysurl.encoder import encoder_of, initial_weights, load_encoder, published_pixels
from raysurl.errors import InputError
from raysurl.evaluate import tuning
from raysurl.nets import dropping
from raysurl.nets.counting import flops
from raysurl.nets.encoders import build_encoder
from raysurl.nets.norm import SyncBatchNorm, SyncBatchNormAct, convert
from raysurl.recipe import recipe_from
from raysurl.recipe.sections import Optimizer, Teacher, Views
from raysurl.recipe.tunings import Tuning
from raysurl.train import optim, trainer

VIT, CONVNEXT = contract.BACKBONES["vit"], contract.BACKBONES["convnext"]


def recipe_of(encoder, size=8, **changes):
    return recipe_from({"encoder": encoder, "views": {"size": size}, "data": {"name": "digits"}, **changes})


def built(name, size=32, norm="local", **settings):
    sizes = settings.pop("sizes", (size,))
    return build_encoder(
        name, **{"small_stem": False, "maxpool": False, "norm": norm, "sizes": sizes} | settings
    )


# -------------------------------------------------------------------- what they are


@pytest.mark.parametrize("network", [VIT, CONVNEXT])
def test_features_are_those_that_timms_own_classifier_would_see(network):
    encoder = encoder_of(recipe_of(network)).eval()
    options = {**network["options"], **({"img_size": 8} if network is VIT else {})}
    own = timm.create_model(network["name"].removeprefix("timm:"), num_classes=0, **options).eval()
    own.load_state_dict(encoder.state_dict())
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(encoder(x), own.forward_head(own.forward_features(x), pre_logits=True))
    assert encoder(x).shape == (2, encoder.dim)


def test_initial_weights_are_of_the_seed_and_leave_the_shared_stream_alone():
    state = torch.get_rng_state()
    first, again, other = (encoder_of(recipe_of(VIT, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(first.blocks[0].attn.qkv.weight, other.blocks[0].attn.qkv.weight)


def test_a_width_behind_a_convolution_of_the_head_is_the_one_that_comes_out():
    encoder = built("timm:mobilenetv3_small_050")
    assert encoder.eval()(torch.rand(1, 3, 32, 32)).shape == (1, encoder.dim) == (1, 1024)


def test_views_of_several_sizes_are_seen_where_patches_divide_them():
    encoder = built(VIT["name"], options=VIT["options"], sizes=(16, 8)).eval()
    assert encoder.pos_embed.shape[1] == 17
    assert encoder(torch.rand(1, 3, 8, 8)).shape == encoder(torch.rand(1, 3, 16, 16)).shape == (1, 16)


@pytest.mark.slow
def test_the_stem_of_a_resnet_of_timm_is_made_small_as_torchvisions_is():
    ours, theirs = (
        built(name, small_stem=True, zero_init_residual=True) for name in ("timm:resnet18", "resnet18")
    )
    assert ours.conv1.kernel_size == theirs.conv1.kernel_size == (3, 3)
    theirs.load_state_dict(ours.state_dict())
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    assert all(not block.bn2.weight.any() for block in ours.layer1)
    assert built("timm:resnet18").layer1[0].bn2.weight.all()


@pytest.mark.slow
@pytest.mark.parametrize("act", [True, False])
def test_norm_sync_keeps_what_a_batch_norm_of_timm_does_besides(act):
    from timm.layers import BatchNormAct2d

    norm = BatchNormAct2d(4, apply_act=act, act_layer=nn.PReLU, inplace=False)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.LayerNorm(8))
    made = convert(copy.deepcopy(net), "sync")
    assert [type(m) for m in made] == [nn.Conv2d, SyncBatchNormAct, nn.LayerNorm]
    assert made.state_dict().keys() == net.state_dict().keys()
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(made(x), net(x))
    torch.testing.assert_close(made.eval()(x), net.eval()(x))
    assert not any(type(m) is nn.BatchNorm2d for m in built("timm:regnety_002", norm="sync").modules())
    assert any(isinstance(m, SyncBatchNorm) for m in built("timm:resnet18", norm="sync").modules())


def test_a_batch_norm_of_unknown_kind_is_refused_under_sync():
    class Odd(nn.BatchNorm2d):
        pass

    with pytest.raises(InputError, match=r"does not know how to synchronise Odd .* norm=local"):
        convert(nn.Sequential(Odd(3)), "sync")


def test_operations_are_counted_attention_included():
    encoder = encoder_of(recipe_of(VIT))
    tokens, dim, hidden = 5, 16, 64
    block = tokens * dim * (3 * dim + dim + 2 * hidden) + 2 * tokens * tokens * dim
    assert flops(encoder, torch.zeros(1, 3, 8, 8)) == 2 * (4 * dim * 3 * 16 + 2 * block)
    assert all(m.training for m in encoder.modules())


# -------------------------------------------------------------------- stochastic depth


@pytest.mark.parametrize("name", ["vit", "convnext", "efficientnet_b0"])
def test_layers_of_libraries_that_draw_draw_from_the_steps_stream(name):
    network = contract.BACKBONES.get(name, {"name": name})
    size, state = 8 if name in contract.BACKBONES else 32, []
    encoder = built(network["name"], size, drop_path=0.5, options=network.get("options"))
    x = torch.rand(16, 3, size, size)
    layers, before = dropping.layers_that_draw(encoder), torch.get_rng_state()
    assert max(layer.p for layer in layers) <= 0.5
    for step in (1, 2, 1):
        dropping.draw(layers, 0, step, 0, torch.device("cpu"))
        state.append(encoder(x).detach())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(state[0], state[2])
    assert not torch.equal(state[0], state[1])


def test_a_network_that_drops_features_unless_told_is_told():
    encoder = built("timm:ghostnet_050").train()
    x, state = torch.rand(2, 3, 32, 32), torch.get_rng_state()
    assert torch.equal(encoder(x), encoder(x))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_constructor_that_names_all_that_it_does_not_take_is_heard():
    said = "encoder.name=timm:caformer_s18"
    for options, wrong in (
        ({"dimms": [8]}, f"encoder.options.dimms is not an option of {said}; did you mean dims?"),
        ({"depths": [1, 1, 1, 1]}, f"encoder.options.depths is what the name says in {said}; leave it out"),
    ):
        with pytest.raises(InputError, match=re.escape(wrong)):
            built("timm:caformer_s18", options=options)


def test_a_dropped_path_is_of_a_whole_sample_and_the_mean_stays():
    layer, x = dropping.DropPath(0.25), torch.ones(4000, 2, 3)
    layer.draws = torch.Generator().manual_seed(0)
    out = layer(x)
    assert out.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert torch.equal(out, out[:, :1, :1].expand_as(x))
    assert abs(float(out.mean()) - 1) < 0.04
    assert torch.equal(layer.eval()(x), x)


def test_a_copy_of_a_network_waits_for_draws_of_its_own():
    layer = dropping.DropPath(0.5)
    layer.draws = torch.Generator()
    made = copy.deepcopy(nn.Sequential(layer))[0]
    assert (made.p, made.draws) == (0.5, None)
    assert layer.draws is not None


def test_dropout_of_a_kind_that_cannot_be_repeated_is_refused():
    with pytest.raises(InputError, match="draws Dropout2d"):
        dropping.seeded(nn.Sequential(nn.Sequential(nn.Dropout2d(0.1))))


@pytest.mark.slow
def test_resumed_with_stochastic_depth_equals_uninterrupted(tmp_path):
    recipe = contract.recipe_for("ressl", encoder=VIT | {"drop_path": 0.4})
    whole = contract.start(recipe, tmp_path / "whole")
    expected = contract.steps(whole, 4)
    part = contract.start(recipe, tmp_path / "part")
    contract.steps(part, 2)
    trainer.save(part)
    torch.rand(7)  # whoever else draws
    resumed = contract.start(recipe, tmp_path / "part")
    assert contract.steps(resumed, 2) == expected[2:]
    ours, theirs = (run.method.state_dict().values() for run in (resumed, whole))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    other = contract.recipe_for("ressl", encoder=VIT)
    assert contract.steps(contract.start(other, tmp_path / "other"), 2) != expected[:2]


# -------------------------------------------------------------------- optimizers


def test_embeddings_of_positions_and_classes_are_not_decayed_and_the_patch_layer_may_be_frozen():
    encoder = encoder_of(recipe_of(VIT | {"sobel": True, "freeze_patch_embed": True}))
    optimizer = optim.build_optimizer(encoder, Optimizer(weight_decay=0.1))
    names = {id(p): n for n, p in encoder.named_parameters()}
    decayed = {names[id(p)] for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    free = {names[id(p)] for g in optimizer.param_groups if not g["weight_decay"] for p in g["params"]}
    frozen = {f"{trunk}.patch_embed.proj.{part}" for trunk in ("rgb", "sobel") for part in ("weight", "bias")}
    assert decayed | free == set(names.values()) - frozen
    assert {n for n in free if dict(encoder.named_parameters())[n].ndim > 1} == {
        f"{trunk}.{name}" for trunk in ("rgb", "sobel") for name in ("cls_token", "pos_embed")
    }
    assert all(n.endswith(".weight") for n in decayed)


def test_rates_fall_by_timms_layers_in_each_network_of_a_pair():
    depths = tuning.depth_of_each(encoder_of(recipe_of(VIT | {"sobel": True})))
    for trunk in ("rgb", "sobel"):
        at = {n.removeprefix(f"{trunk}."): d for n, d in depths.items() if n.startswith(trunk)}
        assert (at["pos_embed"], at["patch_embed.proj.weight"], at["blocks.0.norm1.weight"]) == (0, 0, 1)
        assert at["blocks.1.norm1.weight"] == at["norm.weight"] == 2
    convnext = tuning.depth_of_each(encoder_of(recipe_of(CONVNEXT)))
    stages = [convnext[f"stages.{i}.blocks.0.norm.weight"] for i in range(4)]
    assert convnext["stem.0.weight"] == 0 < stages[0]
    assert stages == sorted(set(stages))
    model = tuning.Classifier(encoder_of(recipe_of(CONVNEXT)), 3)
    groups = tuning.optimizer_of(model, Tuning(layer_decay=0.5), 0.1, 1.0).param_groups
    assert len([p for g in groups for p in g["params"]]) == len(list(model.parameters()))


# -------------------------------------------------------------------- weights of a file


def saved(net, path, **more):
    tensors = {k: v.contiguous() for k, v in net.state_dict().items()} | more
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({"state_dict": tensors}, path)
    return str(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_of_timm_begins_the_encoder_whose_positions_are_fitted(suffix, tmp_path):
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=16, num_classes=10, **VIT["options"])
    recipe = recipe_of(VIT, init_from=saved(theirs, tmp_path / f"net{suffix}"))
    encoder = encoder_of(recipe)
    tensors = initial_weights(recipe.init_from, encoder)
    encoder.load_state_dict(tensors)
    assert torch.equal(encoder.blocks[1].mlp.fc1.weight, theirs.blocks[1].mlp.fc1.weight)
    assert torch.equal(tensors["pos_embed"][:, :1], theirs.pos_embed[:, :1])
    grid = theirs.pos_embed[:, 1:].detach().view(1, 4, 4, 16).permute(0, 3, 1, 2)
    small = F.interpolate(grid, (2, 2), mode="bicubic", antialias=True).permute(0, 2, 3, 1).flatten(1, 2)
    torch.testing.assert_close(tensors["pos_embed"][:, 1:], small)
    assert published_pixels(recipe) == ((0.5,) * 3, (0.5,) * 3)


@pytest.mark.slow
def test_a_file_of_torchvision_begins_the_encoder_and_the_run(tmp_path):
    theirs = torchvision.models.resnet18(num_classes=7)
    tensors = {
        k: v for k, v in theirs.state_dict().items() if not k.endswith("num_batches_tracked")
    }  # as old files
    torch.save(tensors, tmp_path / "net.pth")
    recipe = recipe_of({"name": "resnet18"}, 32, init_from=str(tmp_path / "net.pth"))
    encoder = encoder_of(recipe)
    encoder.load_state_dict(initial_weights(recipe.init_from, encoder))
    assert torch.equal(encoder.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)


def refused(match, *arguments, capsys=None):
    with pytest.raises(SystemExit) as raised:
        cli.run(pretrain.main, ["recipe=ressl/digits", "runtime=local", *arguments])
    said = capsys.readouterr().err
    assert raised.value.code == 2
    assert match in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("norm.bias"), "norm.bias is absent in the file and (16,) in the recipe"),
        (lambda t: t.update(other=torch.zeros(2)), "other is (2,) in the file and absent in the recipe"),
        (
            lambda t: t.update(cls_token=torch.zeros(1, 1, 8)),
            "cls_token is (1, 1, 8) in the file and (1, 1, 16)",
        ),
        (
            lambda t: t.update(pos_embed=torch.zeros(1, 4, 16)),
            "pos_embed is (1, 4, 16) in the file and (1, 5, 16)",
        ),
    ],
)
def test_a_file_of_other_names_or_shapes_is_refused(change, said, tmp_path):
    encoder = encoder_of(recipe_of(VIT))
    tensors = dict(encoder.state_dict())
    change(tensors)
    save_file(tensors, tmp_path / "net.safetensors")
    with pytest.raises(InputError) as raised:
        initial_weights(str(tmp_path / "net.safetensors"), encoder)
    assert said in str(raised.value)


# -------------------------------------------------------------------- what is refused, before anything starts

TINY = ("encoder.channels=null", "encoder.small_stem=false", "views.size=8")
OF_VIT = (*TINY, "encoder.name=timm:vit_tiny_patch16_224")
SMALL = "encoder.options={patch_size: 4, embed_dim: 16, depth: 2, num_heads: 2}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*TINY, "encoder.name=timm:vit_tiny_patch16_22"), "did you mean timm:vit_tiny_patch16_224"),
        ((*TINY, "encoder.name=timm:hf-hub:a/b"), "encoder.name=timm:hf-hub:a/b is not known"),
        ((*TINY, "encoder.name=timm:vit_tiny_patch16_224.none"), "Invalid pretrained tag (none)"),
        ((*OF_VIT, "encoder.options.depht=2"), "depht is not an option of encoder.name=timm:vit_tiny_patch16_224; did"
         " you mean depth?"),
        ((*OF_VIT, "encoder.options.embed_dim=17"), "could not be made"),
        ((*OF_VIT, "encoder.options.img_size=64"), "img_size is not given as an option; use views.size"),
        ((*OF_VIT, "encoder.options.attn_drop_rate=0.1"), "use encoder.drop_path"),
        ((*OF_VIT, "encoder.options.pretrained=true"), "use init_from"),
        ((*OF_VIT, SMALL, "views.size=10"), "cannot see views of 10 pixels (Input height (10) should be divisible by"),
        ((*OF_VIT, SMALL, "views.policies.teacher_1={size: 6}"), "cannot see views of 6 pixels"),
        ((*OF_VIT, "encoder.options={patch_size: 4, global_pool: ''}"), "gives (1, 5, 192) for an image"),
        ((*OF_VIT, SMALL, "encoder.small_stem=true"), "use encoder.small_stem=false"),
        ((*OF_VIT, SMALL, "encoder.drop_path=1"), "less than 1"),
        ((*TINY, "encoder.name=timm:convnext_atto"), "cannot see views of 8 pixels"),
        ((*TINY, "encoder.name=timm:vgg11", "encoder.drop_path=0.1"), "has no stochastic depth"),
        ((*TINY, "encoder.name=resnet18", "encoder.drop_path=0.1"), "has no stochastic depth"),
        ((*TINY, "encoder.name=resnet18", "encoder.options.depth=2"), "options are of timm's networks"),
        ((*TINY, "encoder.name=resnet18", "encoder.freeze_patch_embed=true"), "cut images into patches"),
        ((*TINY, "encoder.name=convnet", "encoder.drop_path=0.1"), "has no stochastic depth"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence_before_any_work(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    refused(said, *arguments, capsys=capsys)
    assert not list(tmp_path.iterdir())


def test_without_timm_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "timm", None)
    refused("needs the package timm; pip install 'raysurl[timm]'", *OF_VIT, capsys=capsys)


def test_a_detector_is_not_made_of_a_resnet_of_timm():
    from raysurl.evaluate.detector import is_resnet

    assert not is_resnet(built("timm:resnet18"))
    assert is_resnet(built("resnet18"))


# -------------------------------------------------------------------- a whole run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny run from the command line, fine-tuned too."""
    folder = tmp_path_factory.mktemp("timm") / "run"
    pretrain.main(
        ["recipe=ressl/digits", "runtime=local", *OF_VIT, SMALL, "encoder.drop_path=0.2", "data.limit=60",
         "train.batch_size=20", "train.epochs=2", "method.hidden=8", "method.dim=4", "method.queue_size=40",
         "log.tensorboard=false", "eval.protocols=[knn, finetune]", "eval.knn_k=[5]", "eval.baselines=false",
         "scale.threads=1", f"output={folder}"]
    )  # fmt: skip
    return folder


@pytest.mark.slow
def test_a_run_of_the_command_line_is_loaded_embedded_and_evaluated_again(finished, capsys):
    results = json.loads((finished / "results.json").read_text())
    found = load_encoder(str(finished))
    assert found.recipe.encoder.drop_path == 0.2
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    rows = [raysurl.load(str(path)).embed(images) for path in (finished, finished / "encoder.safetensors")]
    assert rows[0].shape == (3, 16)
    assert np.array_equal(*rows)
    evaluate.main([f"run={finished}"])
    again = json.loads((finished / "evaluation.json").read_text())["metrics"]
    assert again["eval/knn5_top1"] == results["metrics"]["eval/knn5_top1"]
    assert again["eval/finetune_top1"] == results["metrics"]["eval/finetune_top1"]


@pytest.mark.slow
def test_a_run_with_stochastic_depth_teaches_without_it(finished):
    teacher = teachers.open_teacher(Teacher(name=str(finished)), Views(size=8), 4)
    assert dropping.layers_that_draw(teacher.net)
    x, state = torch.rand(5, 3, 8, 8), torch.get_rng_state()
    assert torch.equal(teacher.embed(x), teacher.embed(x))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_the_log_says_how_large_the_encoder_is(finished):
    events = [json.loads(line).get("event", "") for line in (finished / "metrics.jsonl").open()]
    count = sum(p.numel() for p in load_encoder(str(finished)).encoder.parameters())
    (said,) = [event for event in events if event.startswith("encoder timm:vit_tiny_patch16_224: ")]
    assert f"{count:,} parameters, 16 features" in said
    assert "GFLOPs for a view of 8 pixels" in said
