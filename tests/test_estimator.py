"""raysurl.GenURL: scikit-learn's own checks of an estimator, and what it promises beside them."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.utils.estimator_checks import parametrize_with_checks

import raysurl
from raysurl.evaluate.embedding import neighbourhood_scores


def small(**settings):
    return raysurl.GenURL(**{"epochs": 2, "hidden": (16,), "random_state": 0, **settings})


@parametrize_with_checks([small()])
def test_it_is_a_scikit_learn_transformer(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return data.data[:600].astype(np.float32), data.target[:600]


@pytest.fixture(scope="module")
def fitted(digits):
    return raysurl.GenURL(epochs=60, batch_size=300, random_state=0).fit(digits[0])


def test_neighbours_are_kept_far_better_than_by_an_untrained_network(digits, fitted):
    x, _ = digits
    scores = neighbourhood_scores(x, fitted.embedding_, k=10)
    before = small(hidden=(500, 500), epochs=1, learning_rate=1e-12).fit(x)
    untrained = neighbourhood_scores(x, before.embedding_, k=10)
    assert scores["trustworthiness"] > 0.93 > untrained["trustworthiness"] + 0.05
    assert scores["continuity"] > 0.93
    assert scores["knn_recall"] > 2 * untrained["knn_recall"]


def test_a_seed_gives_the_same_points_and_another_one_others(digits):
    x, _ = digits
    np.testing.assert_array_equal(small().fit_transform(x), small().fit_transform(x))
    assert not np.array_equal(small().fit_transform(x), small(random_state=1).fit_transform(x))


def test_the_callers_random_numbers_and_threads_stay_as_they_are(digits):
    import torch

    torch.manual_seed(5)
    expected, threads = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(5)
    small(n_jobs=2).fit(digits[0])
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_new_points_land_beside_their_like(digits, fitted):
    moved = fitted.transform(digits[0][:50] + 1e-3)
    assert np.abs(moved - fitted.embedding_[:50]).max() < 0.02 * np.ptp(fitted.embedding_)


def test_settings_reach_the_recipe(digits):
    base = small().fit_transform(digits[0])
    for change in (
        {"loss": "gkl"},
        {"n_neighbors": 4},
        {"metric": "cosine"},
        {"nu_z": 1.0},
        {"sigma_x": 3.0},
        {"exaggeration": 1.0},
        {"hidden": (8, 8)},
        {"hidden": 8},
        {"batch_size": 100},
        {"learning_rate": 1e-2},
    ):
        assert not np.array_equal(small(**change).fit_transform(digits[0]), base), change
    assert small(n_components=3).fit_transform(digits[0]).shape == (600, 3)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"loss": "hinge"}, "method.kind"),
        ({"metric": "manhattan"}, "metric"),
        ({"nu_z": 0}, "nu_z"),
        ({"hidden": (0,)}, "widths"),
        ({"n_components": 0}, "widths"),
        ({"epochs": 0}, "epochs=0"),
        ({"learning_rate": np.inf}, "finite number"),
        ({"device": "abacus"}, "device='abacus' cannot be used"),
    ],
)
def test_a_bad_setting_is_a_value_error_in_one_sentence(digits, setting, message):
    with pytest.raises(ValueError, match=message):
        small(**setting).fit(digits[0])


def test_duplicates_and_few_points_are_fine():
    same = np.ones((30, 3))
    assert np.isfinite(small().fit_transform(same)).all()
    assert small().fit_transform(np.eye(2)).shape == (2, 2)


def test_it_survives_pickling_and_cloning(digits, fitted):
    import pickle

    copy = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(copy.transform(digits[0][:5]), fitted.embedding_[:5])
    assert clone(fitted).get_params() == fitted.get_params()


def test_names_of_the_output_and_a_plot(digits, fitted, tmp_path):
    assert fitted.get_feature_names_out().tolist() == ["genurl0", "genurl1"]
    fitted.plot(tmp_path / "classes.png", digits[1])
    fitted.plot(tmp_path / "numbers.png", np.linspace(0, 1, 600))
    classes, numbers = ((tmp_path / f"{name}.png").read_bytes() for name in ("classes", "numbers"))
    assert classes[:8] == b"\x89PNG\r\n\x1a\n"
    assert classes != numbers


def test_importing_raysurl_stays_light():
    code = "import sys, raysurl; print([m for m in ('torch', 'sklearn', 'ray') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
