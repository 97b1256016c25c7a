"""Every method keeps the promises of the contract, one at a time."""

import pytest

from byol.conformance import CHECKS
from byol.names import METHODS


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", METHODS)
def test_a_method_keeps_its_promises(name, check):
    check(name)
