"""Encoders of two networks, one of which sees Sobel edges."""

import contract
import pytest
import torch

from raysurl.encoder import encoder_of, read_weights, write_encoder
from raysurl.errors import InputError
from raysurl.nets.encoders import TwoTrunk, build_encoder


def recipe_of(**changes):
    return contract.recipe_for("superand", **changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "small_stem", "dim"),
    [
        ("convnet", 16, False, 256),
        ("resnet18", 32, True, 512),
        ("resnet18", 64, False, 512),
        ("alexnet", 64, False, 9216),
        ("alexnet", 32, True, 9216),
    ],
)
def test_two_trunks_join_the_features_of_image_and_edges(name, size, small_stem, dim):
    torch.manual_seed(0)
    one = build_encoder(name, small_stem=small_stem, maxpool=False, norm="sync").eval()
    torch.manual_seed(0)
    both = build_encoder(name, small_stem=small_stem, maxpool=False, norm="sync", with_sobel=True).eval()
    x = torch.randn(2, 3, size, size)
    assert isinstance(both, TwoTrunk)
    assert both.dim == 2 * one.dim == 2 * dim
    out = both(x)
    assert out.shape == (2, both.dim)
    torch.testing.assert_close(out[:, :dim], one(x))
    flat = both(torch.ones_like(x) * torch.randn(2, 3, 1, 1))  # no edges but the border
    assert not torch.allclose(flat[0, :dim], flat[1, :dim])
    keys = list(both.state_dict())
    assert {key.split(".")[0] for key in keys} == {"rgb", "sobel"}
    assert [k[4:] for k in keys if k.startswith("rgb.")] == list(one.state_dict())


def test_an_exported_pair_is_loaded_again_and_does_not_fit_a_single_network(tmp_path):
    pair, single = recipe_of(encoder={"name": "convnet", "sobel": True}), recipe_of()
    encoder = encoder_of(pair)
    write_encoder(tmp_path, encoder, pair)
    weights = read_weights(tmp_path, encoder)
    assert all(torch.equal(weights[k], v) for k, v in encoder.state_dict().items())
    with pytest.raises(InputError, match="does not fit the recipe's encoder"):
        read_weights(tmp_path, encoder_of(single))


@pytest.mark.slow
def test_views_too_small_for_alexnet_are_refused_with_a_sentence():
    settings = recipe_of(encoder={"name": "alexnet"})
    with pytest.raises(InputError, match=r"alexnet needs views of at least 63 pixels, not 8"):
        encoder_of(settings)
    smallest = build_encoder("alexnet", small_stem=False, maxpool=False, norm="sync")
    smallest(torch.zeros(1, 3, 63, 63))
    with pytest.raises(RuntimeError):
        smallest(torch.zeros(1, 3, 62, 62))
    small_stem = build_encoder("alexnet", small_stem=True, maxpool=False, norm="sync")
    small_stem(torch.zeros(1, 3, 15, 15))
    with pytest.raises(RuntimeError):
        small_stem(torch.zeros(1, 3, 14, 14))
