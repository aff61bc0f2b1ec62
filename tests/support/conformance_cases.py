"""Laws that many cases are held to: which of them `make test` runs, and which are left to `make test-slow`."""

import pytest
from conftest import mostly_slow


def every_case(test):
    """A law that each case may break in its own way: `make test` runs all of them."""
    test.runs_every_case = True
    return test


class CasesMixin:
    """Gives each test of a class its fixture `case`, by default for a few cases only and for the others as slow ones.

    Attributes:
        cases: `{name: case}`.
        few: names of cases that stand for the others.
    """

    cases = {}
    few = ()

    def pytest_generate_tests(self, metafunc):
        fast = self.cases if hasattr(metafunc.function, "runs_every_case") else self.few
        metafunc.parametrize("case", mostly_slow(self.cases, fast), indirect=True)

    @pytest.fixture
    def case(self, request):
        return self.cases[request.param]
