"""Progress bars: lively on a terminal, sparing in a log file."""

import sys

import pytest

from common.io.progress import refresh_interval, with_progress


@pytest.mark.parametrize(("terminal", "seconds"), [(True, 1.0), (False, 30.0)])
def test_a_log_file_gets_a_line_twice_a_minute(monkeypatch, terminal, seconds):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert refresh_interval() == seconds
    assert with_progress("drawing", range(3)).mininterval == seconds


def test_a_quick_or_a_quiet_loop_prints_nothing(capsys):
    assert list(with_progress("drawing", range(2000))) == list(range(2000))
    assert list(with_progress("drawing", range(3), quiet=True)) == [0, 1, 2]
    with with_progress("drawing", total=2000) as bar:
        bar.update(2000)
    assert capsys.readouterr().err == ""
