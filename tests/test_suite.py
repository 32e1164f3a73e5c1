"""How the suite is divided between its processes."""

import pytest


def test_one_process_has_all_tests_of_a_file(request: pytest.FixtureRequest) -> None:
    """And so each thing that they share is made once, the cluster too."""
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("the suite is not divided by groups")
    assert request.node.nodeid.endswith(f"@{request.node.path}")
