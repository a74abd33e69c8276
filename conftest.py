"""Tests of exercises say what is wrong in the language of the locale, as `python -m common.grade` does."""

import pytest

from common.grade.marking.messages import language, translator


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> None:
    """Translate the message of a failed assertion before pytest reports it."""
    if call.excinfo is None or item.path.name != "test_exercises.py" or language() == "en":
        return
    problem = call.excinfo.value
    if isinstance(problem, AssertionError) and problem.args:
        message, *rest = str(problem.args[0]).split("\n")  # behind the message, pytest writes the values compared
        problem.args = ("\n".join([translator(language(), item.path.parent)(message), *rest]),)
