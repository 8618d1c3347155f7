"""A flood of events becomes few lines, and the next line counts what was left out."""

from __future__ import annotations

from typing import Any

from headwater.gateway.logpace import LogPace


def event(kind: str, reason: str = "ServerBusy", client: str = "") -> dict[str, Any]:
    return {"kind": kind, "reason": reason, "client": client}


def test_a_flood_is_cut_and_counted_by_kind_and_reason() -> None:
    now = [0.0]
    pace = LogPace(lambda: now[0])
    flood = [event("connection-refused", client=str(n)) for n in range(1000)]
    shown = pace.pick([*flood, event("log-failed"), event("connection-refused", "NotAuthorized")])
    assert [each["client"] for each in shown[:20]] == [str(n) for n in range(20)]
    assert [(each["kind"], each["reason"]) for each in shown[20:]] == [
        ("log-failed", "ServerBusy"),
        ("connection-refused", "NotAuthorized"),
    ]
    now[0] = 0.9
    assert pace.pick(flood) == []
    now[0] = 1.0
    [line] = pace.pick([event("connection-refused")])
    assert line["left_out"] == 980 + 1000
    [line] = pace.pick([event("connection-refused")])
    assert "left_out" not in line
