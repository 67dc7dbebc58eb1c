"""What comes before and after the networks, against the reference implementation's goldens."""

from __future__ import annotations

import pytest

from tests.golden.geometry_cases import CASES


@pytest.mark.parametrize("name", CASES)
def test_geometry_equals_the_reference_implementation(name: str) -> None:
    measured = list(CASES[name]())
    assert measured
    assert [m for m in measured if not m.error <= m.tolerance] == []
