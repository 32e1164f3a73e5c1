"""raysurl.GenURL: scikit-learn's own checks of an estimator, and what it promises beside them."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.utils.estimator_checks import parametrize_with_checks

import raysurl
from raysurl.evaluate.embedding import neighbourhood_scores


def small(**settings):
    return raysurl.GenURL(**{"epochs": 2, "hidden": (16,), "random_state": 0, **settings})


@pytest.mark.slow
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


@pytest.mark.slow
def test_neighbours_are_kept_far_better_than_by_an_untrained_network(digits, fitted):
    x, _ = digits
    scores = neighbourhood_scores(x, fitted.embedding_, k=10)
    before = small(hidden=(500, 500), epochs=1, learning_rate=1e-12).fit(x)
    untrained = neighbourhood_scores(x, before.embedding_, k=10)
    assert scores["trustworthiness"] > 0.93 > untrained["trustworthiness"] + 0.05
    assert scores["continuity"] > 0.93
    assert scores["knn_recall"] > 2 * untrained["knn_recall"]


@pytest.mark.slow
def test_a_seed_gives_the_same_points_and_another_one_others(digits):
    x, _ = digits
    np.testing.assert_array_equal(small().fit_transform(x), small().fit_transform(x))
    assert not np.array_equal(small().fit_transform(x), small(random_state=1).fit_transform(x))


@pytest.mark.slow
def test_the_callers_random_numbers_and_threads_stay_as_they_are(digits):
    import torch

    torch.manual_seed(5)
    expected, threads = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(5)
    small(n_jobs=2).fit(digits[0])
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_new_points_land_beside_their_like(digits, fitted):
    moved = fitted.transform(digits[0][:50] + 1e-3)
    assert np.abs(moved - fitted.embedding_[:50]).max() < 0.02 * np.ptp(fitted.embedding_)


@pytest.mark.slow
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


RANGES = {
    "n_components": "an int in the range [1, inf)",
    "n_neighbors": "an int in the range [1, inf)",
    "epochs": "an int in the range [1, inf) or None",
    "batch_size": "an int in the range [2, inf)",
    "nu_z": "a float in the range (0.0, inf)",
    "learning_rate": "a float in the range (0.0, inf)",
    "sigma_x": "a float in the range (0.0, inf) or None",
    "exaggeration": "a float in the range [0.0, inf)",
}
BAD = [(name, value) for name in RANGES for value in (0, None, -1, "3", np.nan, np.inf, [2])]
BAD = [(n, v) for n, v in BAD if not (v is None and n in ("epochs", "sigma_x"))]
BAD = [(n, v) for n, v in BAD if not (v == 0 and n == "exaggeration")]


@pytest.mark.parametrize(("name", "value"), BAD, ids=str)
def test_a_number_out_of_place_is_refused_in_scikit_learns_words(digits, name, value):
    with pytest.raises(ValueError, match="parameter of GenURL must be") as found:
        small(**{name: value}).fit(digits[0])
    assert (
        str(found.value) == f"The {name!r} parameter of GenURL must be {RANGES[name]}. Got {value!r} instead."
    )


@pytest.mark.parametrize(
    "setting",
    [
        {"loss": "hinge"},
        {"metric": "manhattan"},
        {"metric": None},
        {"hidden": (0,)},
        {"hidden": None},
        {"hidden": (16, 2.5)},
        {"hidden": "16"},
        {"n_jobs": 1.5},
        {"verbose": None},
        {"random_state": "seed"},
        {"device": None},
    ],
    ids=str,
)
def test_any_other_bad_setting_is_too(digits, setting):
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f"The '{name}' parameter of GenURL must be") as found:
        small(**setting).fit(digits[0])
    assert str(found.value).endswith(f"Got {value!r} instead.")


def test_a_device_that_is_not_here_and_no_jobs_at_all_are_value_errors(digits):
    with pytest.raises(ValueError, match="device='abacus' cannot be used"):
        small(device="abacus").fit(digits[0])
    with pytest.raises(ValueError, match="n_jobs == 0"):
        small(n_jobs=0).fit(digits[0])


def test_numbers_of_numpy_mean_what_pythons_do(digits):
    plain = {
        "n_components": 3,
        "n_neighbors": 4,
        "batch_size": 100,
        "epochs": 1,
        "hidden": (8, 8),
        "nu_z": 0.5,
    }
    of_numpy = {
        "n_components": np.int64(3),
        "n_neighbors": np.uint8(4),
        "batch_size": np.int32(100),
        "epochs": np.int16(1),
        "hidden": np.array([8, 8]),
        "nu_z": np.float32(0.5),
        "random_state": np.int64(0),
        "learning_rate": np.float64(1e-3),
        "exaggeration": np.int64(8),
        "verbose": np.bool_(False),
    }
    expected = small(**plain).fit_transform(digits[0])
    np.testing.assert_array_equal(small(**of_numpy).fit_transform(digits[0]), expected)
    one = small(hidden=np.int64(8)).fit_transform(digits[0])
    np.testing.assert_array_equal(one, small(hidden=[8]).fit_transform(digits[0]))


@pytest.mark.parametrize(("n_jobs", "threads"), [(None, 1), (-1, "all"), (-2, "all but one"), (2, 2)])
def test_n_jobs_counts_as_scikit_learn_counts(monkeypatch, digits, n_jobs, threads):
    from joblib import cpu_count

    import raysurl.estimator

    seen = []
    start = raysurl.estimator.trainer.start
    monkeypatch.setattr(
        raysurl.estimator.trainer,
        "start",
        lambda recipe, *rest: (seen.append(recipe.scale.threads), start(recipe, *rest))[1],
    )
    small(n_jobs=n_jobs).fit(digits[0][:50])
    assert seen == [{"all": cpu_count(), "all but one": max(cpu_count() - 1, 1)}.get(threads, threads)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csr_matrix", "csc_array", "coo_array", "lil_matrix"])
def test_sparse_rows_are_the_dense_ones(digits, kind):
    import scipy.sparse

    x = digits[0]
    expected, given = small().fit(x), getattr(scipy.sparse, kind)(x)
    model = small().fit(given)
    np.testing.assert_array_equal(model.embedding_, expected.embedding_)
    np.testing.assert_array_equal(
        model.transform(given[:7] if kind != "coo_array" else given),
        model.transform(x)[: 7 if kind != "coo_array" else None],
    )


def test_sparse_rows_that_no_memory_holds_are_refused():
    import scipy.sparse

    wide = scipy.sparse.csr_array(([1.0, 2.0], ([0, 1], [0, 5])), shape=(1_000_000, 50_000_000))
    with pytest.raises(ValueError, match=r"fit holds it dense, and .* GiB are more than"):
        small().fit(wide)


@pytest.mark.parametrize("how", ["set_output", "config", "after a fit"])
@pytest.mark.parametrize("frame", ["pandas", "polars"])
def test_the_output_may_be_a_frame(how, frame):
    import sklearn

    pytest.importorskip(frame)
    pd = pytest.importorskip("pandas")
    x = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 5)), columns=list("abcde"), index=range(7, 67))
    plain = small().fit_transform(x)
    if how == "config":
        with sklearn.config_context(transform_output=frame):
            outputs = small().fit_transform(x), small().fit(x).transform(x)
    elif how == "set_output":
        model = small().set_output(transform=frame)
        outputs = model.fit_transform(x), model.transform(x)
    else:
        model = small().fit(x).set_output(transform=frame).fit(x)
        assert isinstance(model.embedding_, np.ndarray)
        outputs = model.transform(x), model.transform(x)
    for output in outputs:
        assert type(output).__module__.startswith(frame)
        assert list(output.columns) == ["genurl0", "genurl1"]
        np.testing.assert_array_equal(output.to_numpy(), plain)
        assert frame == "polars" or list(output.index) == list(x.index)


@pytest.mark.slow
def test_inverse_transform_is_not_offered(fitted):
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    assert not hasattr(fitted, "inverse_transform")
    assert not hasattr(make_pipeline(StandardScaler(), fitted), "inverse_transform")


def test_rows_of_any_size_are_told_apart_or_refused(digits):
    """A power of two changes no digit, so that the points are the same; beyond what is held it is an error."""
    rows = digits[0].astype(np.float64)
    plain = small().fit(rows)
    for power in (2.0**900, 2.0**-900):
        assert np.array_equal(small().fit(rows * power).embedding_, plain.embedding_)
    for estimator, power in ((small(sigma_x=1.0), 2.0**900), (small(), 2.0**1018)):
        with pytest.raises(ValueError, match="too large for the network's float32"):
            estimator.fit(rows * power)


def test_duplicates_and_few_points_are_fine():
    same = np.ones((30, 3))
    assert np.isfinite(small().fit_transform(same)).all()
    assert small().fit_transform(np.eye(2)).shape == (2, 2)


@pytest.mark.slow
def test_it_survives_pickling_and_cloning(digits, fitted):
    import pickle

    copy = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(copy.transform(digits[0][:5]), fitted.embedding_[:5])
    assert clone(fitted).get_params() == fitted.get_params()


@pytest.mark.slow
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


@pytest.mark.parametrize(
    "change",
    [lambda x: x, lambda x: x * 1e-3 + 1000, lambda x: x * 1e-36],
    ids=["plain", "far from 0", "tiny"],
)
def test_points_in_float32_lie_where_those_in_float64_do_whatever_their_company(digits, change):
    rows = change(digits[0]).astype(np.float32)
    model = small().fit(rows)
    found = model.transform(rows)
    assert found.dtype == np.float32
    spread = np.ptp(found)
    np.testing.assert_allclose(found, model.transform(rows.astype(np.float64)), rtol=0, atol=1e-5 * spread)
    np.testing.assert_array_equal(found, model.embedding_)
    order = np.random.default_rng(0).permutation(len(rows))
    np.testing.assert_allclose(model.transform(rows[order]), found[order], rtol=0, atol=1e-6 * spread)
    np.testing.assert_allclose(model.transform(rows[300:301]), found[300:301], rtol=0, atol=1e-6 * spread)


@pytest.mark.parametrize("form", ["reversed", "columns reversed", "read only", "of a record", "kept on disk"])
def test_float32_rows_may_lie_in_memory_as_they_like(digits, form, tmp_path):
    rows = np.ascontiguousarray(digits[0][:200])
    other = np.zeros(200, [("id", "u1"), ("x", np.float32, 64)])
    other["x"] = rows
    np.save(tmp_path / "rows.npy", rows)
    given = {
        "reversed": rows[::-1].copy()[::-1],
        "columns reversed": rows[:, ::-1].copy()[:, ::-1],
        "read only": rows.copy(),
        "of a record": other["x"],
        "kept on disk": np.load(tmp_path / "rows.npy", mmap_mode="r"),
    }[form]
    if form == "read only":
        given.flags.writeable = False
    expected = small().fit(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = small().fit(given)
        np.testing.assert_array_equal(found.transform(given), expected.transform(rows))
    np.testing.assert_array_equal(found.embedding_, expected.embedding_)


def test_what_float32_does_not_hold_is_placed_all_the_same(digits):
    rows = digits[0][:200]
    model = small().fit(rows)
    far = np.vstack([rows[:3], np.full((1, 64), 3e38, np.float32)])
    with np.errstate(all="raise", under="ignore"):
        found = model.transform(far)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:3], model.embedding_[:3], rtol=1e-4, atol=1e-5)
