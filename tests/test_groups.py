"""Tests that share what their module makes run in one process of pytest-xdist."""

import os

import pytest


@pytest.fixture(scope="module")
def made_once() -> int:
    return os.getpid()


def test_a_group_stands_in_the_names_by_which_tests_are_shared_out(request, made_once):
    """Else every process makes all that modules share: pytest 9.2 leaves names as they are."""
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("tests are not shared out by groups")
    assert request.node.nodeid.endswith("@test_groups")
