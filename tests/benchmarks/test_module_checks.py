"""What the modules' look at their children costs; the figures are `python -m benchmarks.module_checks`'s."""

from benchmarks.module_checks import BUDGET, checks, main, microseconds


def test_each_module_finds_its_children_as_they_were_made_and_is_quick():
    for name, check in checks().items():
        assert check() is None, name
        assert microseconds(check, number=1000, rounds=5) < 5 * BUDGET, name  # of a machine that does much else


def test_the_table(monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.module_checks.microseconds", lambda function: 3.0)
    assert main() == 1
    assert "GELUFFN with dropout                 3.00  OVER" in capsys.readouterr().out
