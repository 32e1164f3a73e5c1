"""GenURL's kernel and losses against float64 transcriptions of eqs. 1 and 7-10 and openmixup's generalised KL."""

import numpy as np
import pytest
import torch
from golden import load

from raysurl.functional import log_student_kernel, similarity_loss

KINDS = {"mse": "mse", "kl": "kl_correct", "bce": "bce", "gkl": "gkl"}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_case = pytest.mark.parametrize("case", ["rand", "onehot"])


@pytest.fixture(scope="module")
def kernel():
    return load("genurl_kernel")


@pytest.fixture(scope="module")
def losses():
    return load("genurl_losses")


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 3e-5)])
def test_the_kernel_is_equation_1_for_every_nu(kernel, dtype, rtol):
    distance = torch.tensor(kernel["d"], dtype=dtype)
    for nu, expected in zip(kernel["nu"], kernel["kappa"], strict=True):
        ours = log_student_kernel(distance, float(nu))
        assert ours.dtype == dtype
        # at ν = 10⁶ the golden value itself has only the digits that a difference of lgammas leaves
        digits = max(rtol, 1e-8) if nu > 1e5 else rtol
        np.testing.assert_allclose(ours.exp(), expected, rtol=digits, atol=torch.finfo(dtype).tiny)


def test_the_kernel_takes_several_nu_at_once(kernel):
    ours = log_student_kernel(torch.tensor(kernel["d"]), torch.tensor(kernel["nu"])[:, None]).exp()
    np.testing.assert_allclose(ours, kernel["kappa"], rtol=1e-8)


def test_with_many_degrees_of_freedom_the_kernel_is_gaussian(kernel):
    distance = torch.tensor(kernel["d"])
    near = distance.abs() < 5
    expected = torch.exp(-distance.square() / 2)[near]
    np.testing.assert_allclose(log_student_kernel(distance, 1e6).exp()[near], expected, rtol=2e-4)
    np.testing.assert_allclose(log_student_kernel(distance, 1e12).exp()[near], expected, rtol=1e-9)


@every_case
@every_kind
def test_losses_and_gradients_are_equations_7_to_10(losses, case, kind):
    name = f"{case}_{KINDS[kind]}"
    p, q = (torch.tensor(losses[f"{case}_{side}"]) for side in ("pX", "pZ"))
    other_pairs = ~torch.eye(len(p), dtype=torch.bool)
    for given in ({"q": q}, {"log_q": q.log()}):
        total = similarity_loss(p, **given, kind=kind, reduction="sum")
        np.testing.assert_allclose(total, losses[f"{name}_sum"], rtol=1e-9)
        np.testing.assert_allclose(similarity_loss(p, **given, kind=kind), losses[f"{name}_mean"], rtol=1e-9)
        masked = similarity_loss(p, **given, kind=kind, mask=other_pairs)
        np.testing.assert_allclose(masked, losses[f"{name}_offdiag_mean"], rtol=1e-9, atol=1e-12)
    moving = q.clone().requires_grad_()
    target = p.clone().requires_grad_()
    similarity_loss(target, moving, kind=kind, reduction="sum").backward()
    np.testing.assert_allclose(moving.grad, losses[f"{name}_grad_pZ_of_sum"], rtol=1e-7, atol=1e-9)
    assert target.grad is None


@every_case
@every_kind
def test_single_precision_has_the_same_value(losses, case, kind):
    p, q = (torch.tensor(losses[f"{case}_{side}"]).float() for side in ("pX", "pZ"))
    expected = losses[f"{case}_{KINDS[kind]}_mean"]
    np.testing.assert_allclose(similarity_loss(p, q, kind=kind), expected, rtol=1e-4, atol=1e-5)


@every_case
def test_the_generalised_kl_is_openmixups(losses, case):
    p, q = (torch.tensor(losses[f"{case}_{side}"]) for side in ("pX", "pZ"))
    np.testing.assert_allclose(
        similarity_loss(p, q, kind="gkl", gamma=0.1), losses[f"{case}_openmixup_general_kl_mean"], rtol=1e-7
    )
