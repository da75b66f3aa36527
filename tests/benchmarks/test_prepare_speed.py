"""The measure of `prepare`'s speed measures what it says."""

import pytest

pytestmark = pytest.mark.needs("tiktoken")


def test_the_table(monkeypatch):
    from benchmarks import prepare_speed

    calls = []
    monkeypatch.setattr(
        prepare_speed, "measured", lambda path, n: calls.append((path.name, n)) or prepare_speed.alone(str(path), n)
    )
    monkeypatch.setattr(prepare_speed, "KINDS", {"JSON Lines, .gz": "all.jsonl.gz"})
    lines = list(prepare_speed.table([], 0.02, 2))
    assert calls == [("all.jsonl", 0), ("all.jsonl.gz", 1), ("all.jsonl.gz", 2)] * 2
    assert "0 MB of the embedded Shakespeare" in lines[0]
    assert [line.split(" | ")[1] for line in lines[-3:]] == [
        "plain tiktoken, in memory", "prepare, 1 thread", "prepare, 2 threads",
    ]  # fmt: skip
    assert lines[-3].split(" | ")[3:5] == ["1.00", "1.00"]
