"""raysurl.Encoder among scikit-learn's own: in a pipeline, cloned, pickled, with names of its columns."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import raysurl

SMALL = {
    "encoder.name": "convnet", "encoder.channels": [4, 8], "views.size": 8, "method.hidden": 8, "method.dim": 4,
    "method.queue_size": 40, "log.tensorboard": False, "scale.threads": 1, "train.schedule.warmup_epochs": 0,
}  # fmt: skip


def encoder(**changes):
    return raysurl.Encoder("ressl/digits", epochs=1, batch_size=20, settings=SMALL, **changes)


@pytest.fixture(scope="module")
def digits():
    found = load_digits()
    return (found.images[:60, :, :, None].repeat(3, axis=3) * 15).astype(np.uint8), found.target[:60]


@pytest.fixture(scope="module")
def fitted(digits, tmp_path_factory):
    return encoder(output=tmp_path_factory.mktemp("fit") / "run").fit(*digits)


def test_what_it_gives_is_what_the_run_gives(fitted, digits):
    z = fitted.transform(digits[0])
    assert z.shape == (60, 8)
    assert np.array_equal(z, raysurl.load(fitted.output).embed(digits[0]))
    assert "health/rankme" in fitted.results_


@pytest.mark.slow
def test_it_keeps_no_run_unless_told_and_the_seed_decides(fitted, digits):
    again = clone(fitted).set_params(output=None)
    assert np.array_equal(again.fit_transform(digits[0]), fitted.transform(digits[0]))
    assert not again.model_.path.exists()
    assert np.array_equal(again.transform(digits[0]), fitted.transform(digits[0]))
    other = encoder(random_state=1).fit(digits[0])
    assert not np.array_equal(other.transform(digits[0]), fitted.transform(digits[0]))


def test_it_stands_in_a_pipeline_and_is_pickled(fitted, digits):
    images, labels = digits
    pipeline = make_pipeline(encoder(), LogisticRegression(max_iter=200)).fit(images, labels)
    assert pipeline.predict(images).shape == (60,)
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.transform(images), fitted.transform(images))


def test_columns_have_names(fitted, digits):
    pytest.importorskip("pandas")
    named = pickle.loads(pickle.dumps(fitted)).set_output(transform="pandas")
    assert list(named.transform(digits[0]).columns) == [f"encoder{i}" for i in range(8)]


def test_what_is_not_fitted_or_no_image_is_said(fitted):
    with pytest.raises(NotFittedError):
        encoder().transform(np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(raysurl.InputError):
        fitted.transform(np.zeros((2, 3)))
    with pytest.raises(raysurl.InputError):
        encoder().fit(np.zeros((2, 3)))
