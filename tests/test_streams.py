"""Random streams: keys that share no bits, and draws that nothing else in the process can change."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from raysurl import streams
from raysurl.encoder import encoder_of
from raysurl.nets.drawing import drawn_from
from raysurl.nets.encoders import Dropout
from raysurl.recipe import load_recipe
from raysurl.streams import FirstSeed

names = st.tuples(st.sampled_from(["order", "rcl keys", "weights"]), st.integers(0, 2**20), st.integers(0, 8))


@settings(max_examples=200)
@given(seed=st.integers(0, 2**31), one=names, other=names)
def test_different_names_have_different_keys(seed, one, other):
    assert (streams.key(seed, *one) == streams.key(seed, *other)) == (one == other)


def windows(bits, width=4):
    """Every run of `width` numbers of a stream."""
    return {tuple(bits[i : i + width]) for i in range(len(bits) - width + 1)}


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_keys_of_rcl_and_shuffles_of_epochs_share_no_bits(seed):
    shuffles = [streams.raw_bits(256, seed, "order", epoch, part) for epoch in range(4) for part in range(3)]
    keys = [
        streams.numpy_stream(seed, "rcl keys", step, view).bit_generator.random_raw(256)
        for step in (0, 1, 2, 128, 256, 384, 512)
        for view in (0, 1)
    ]
    every = [windows(bits.tolist()) for bits in shuffles + keys]
    assert len(set().union(*every)) == sum(map(len, every))


def test_those_of_version_1_did():
    """The fault that version 2 ends: the shuffle of epoch 1 was the draw of step 128."""
    first = FirstSeed(0)
    keys = streams.numpy_stream(first, "rcl keys", 128, 0).bit_generator.random_raw(8)
    assert (keys == streams.raw_bits(8, first, "order", 1, 0)).all()


def test_weights_are_those_of_a_seeded_process_and_leave_its_stream_alone():
    torch.manual_seed(5)
    expected = [nn.Conv2d(3, 4, 3).weight, torch.randn(3), nn.Embedding(4, 2).weight, torch.randperm(9)]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with drawn_from(torch.Generator().manual_seed(5)):
        found = [nn.Conv2d(3, 4, 3).weight, torch.randn(3), nn.Embedding(4, 2).weight, torch.randperm(9)]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_threads_that_seed_the_process_change_no_weights():
    recipe = load_recipe(["encoder.name=convnet", "seed=3"])
    alone = encoder_of(recipe).state_dict()

    def other(i):
        torch.manual_seed(i)
        return encoder_of(recipe).state_dict()

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(other, range(24)):
            assert all(torch.equal(alone[name], found[name]) for name in alone)


def test_dropout_takes_its_masks_from_its_own_stream():
    layer, x = Dropout(0.3), torch.ones(2000)
    layer.draws = streams.torch_stream(0, "dropout", 1, 0)
    one = layer(x)
    torch.manual_seed(0)
    layer.draws = streams.torch_stream(0, "dropout", 1, 0)
    assert torch.equal(one, layer(x))
    assert one.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(one != 0, one == 1 / 0.7)
    # as torch's own does it
    torch.manual_seed(7)
    theirs = nn.functional.dropout(x, 0.3)
    layer.draws = torch.Generator().manual_seed(7)
    assert torch.equal(layer(x), theirs)
    assert torch.equal(layer.eval()(x), x)


def test_a_run_keeps_the_streams_that_it_began_with():
    old, new = load_recipe(["streams=1", "seed=4"]), load_recipe(["seed=4"])
    assert isinstance(old.stream_seed, FirstSeed)
    assert type(new.stream_seed) is int
    assert not np.array_equal(streams.raw_bits(4, old.stream_seed, "limit"), streams.raw_bits(4, 4, "limit"))
