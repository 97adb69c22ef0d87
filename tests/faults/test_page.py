"""docs/reliability.md is of these tests, and nothing on it was lost or crashed; each test looks for its own row there."""

import json

from tests.faults import report


def test_nothing_was_lost_and_nothing_crashed():
    found = report.rows(report.PAGE.read_text())
    assert len(found) > 40 and {(row["lost"], row["crashed"]) for row in found} == {("0", "0")}
    tried = {row["fault"]: int(row["tried"]) for row in found}
    assert len(tried) == len(found) and min(tried.values()) > 0
    assert [n for fault, n in tried.items() if fault.startswith("kill -9")] == [10] * 4


def test_a_page_is_read_as_it_is_written():
    row = {"name": "a `b`", "tried": 2, "lost": 1, "crashed": 0, "message": "/tmp/x y/of it/here.csv: 1 | 2\n /a/b.png"}
    page = report.page(json.dumps(row) + "\n" + json.dumps(row | {"name": "c", "message": "x" * 999}))
    first, second = report.rows(page)
    assert first == {
        "fault": "a `b`",
        "tried": "2",
        "lost": "1",
        "crashed": "0",
        "message": "…/x y/of it/here.csv: 1 \\| 2 …/b.png",
    }
    assert second["message"] == "x" * 239 + "…"
