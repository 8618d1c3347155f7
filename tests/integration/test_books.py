"""Both equations of the books hold at every look, under load, with bad input, and after restarts."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable
from pathlib import Path

from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.integration import peer
from tests.integration.peer import Peer
from tests.integration.server import TELEMETRY, Server

CONFIG = '[store]\nflush_interval = "300ms"\n' + TELEMETRY.replace(
    "[streams.telemetry.fields]", 'books = ["site"]\n[streams.telemetry.fields]'
)
SITES = ("hall", "roof")
OUTCOMES = ("decoded", "raw_only", "live_only", "dead_lettered", "shed", "refused")


def families(server: Server) -> list[Metric]:
    """One scrape; the text must be OpenMetrics, each name once."""
    answer = server.http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    return list(text_string_to_metric_families(answer.text))


def scraped(server: Server) -> dict[tuple[str, tuple[str, ...]], float]:
    """Samples of one scrape by name and label values."""
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in families(server)
        for sample in family.samples
    }


def look(server: Server) -> dict[str, float]:
    """One scrape and one page of the books; both must balance. Returns the terms of the messages' equation."""
    metrics = scraped(server)
    terms = {outcome: metrics["headwater_messages_total", (outcome,)] for outcome in OUTCOMES}
    terms["in_flight"] = metrics["headwater_messages_in_flight", ()]
    terms["received"] = metrics["headwater_gateway_received_total", ()]
    assert terms["received"] == sum(terms[each] for each in (*OUTCOMES, "in_flight")), terms
    assert metrics["headwater_books_balanced", ()] == 1
    for stream in ("telemetry", "dead_letters"):
        decoded, stored, duplicates, in_flight = (
            metrics["headwater_books_rows", (stream, term)]
            for term in ("decoded", "stored", "duplicates", "in_flight")
        )
        assert decoded == stored + duplicates + in_flight
        assert min(decoded, stored, duplicates, in_flight) >= 0
    assert all(not math.isnan(value) for value in metrics.values())
    page = server.get("/api/v1/books")
    assert page["balanced"], page
    messages = page["messages"]
    assert messages["received"] == sum(messages[each] for each in (*OUTCOMES, "in_flight"))
    for stream, rows in page["rows"].items():
        assert rows["decoded"] == rows["stored"] + rows["duplicates"] + rows["in_flight"], stream
    for site, account in page["rows"]["telemetry"]["levels"]["site"].items():
        assert account["decoded"] == account["stored"] + account["in_flight"], site
    return terms


def load(
    address: tuple[str, int], level: int, rounds: int, stop: threading.Event, totals: list[dict[str, int]]
) -> None:
    """Messages of every outcome, 100 a round; adds to `totals` how many of each were acknowledged."""
    sent = dict.fromkeys(("decoded", "dead_lettered", "live_only", "raw_only", "refused", *SITES), 0)
    with Peer(address, level) as device:
        device.login(f"load{level}")
        for _ in range(rounds):
            if stop.is_set():
                break
            data = b""
            for n in range(1, 101):
                kind = ("decoded", "decoded", "decoded", "dead_lettered", "live_only")[n % 5]
                if n == 50:
                    kind = "raw_only"
                if n == 51 and level == 5:
                    kind = "refused"
                topic, payload = {
                    "decoded": (f"dt/{SITES[n % 2]}/d{n}/telemetry", b'{"seq": 1}'),
                    "dead_lettered": (f"dt/hall/d{n}/telemetry", b"{"),
                    "live_only": ("elsewhere", b"1"),
                    "raw_only": ("kept/here", b"1"),
                    "refused": ("$SYS/mine", b"1"),
                }[kind]
                sent[kind] += 1
                if kind == "decoded":
                    sent[SITES[n % 2]] += 1
                data += peer.publish(level, topic, payload, qos=1, packet_id=n, retain=kind == "raw_only")
            device.send(data)
            for _ in range(100):
                answer = device.read()
                assert answer is not None
                assert answer.kind == peer.PUBACK
    totals.append(sent)


def test_the_books_balance_at_every_look_under_load_and_after_restarts(server: Callable[..., Server]) -> None:
    up = server(CONFIG)
    rows = letters = 0
    by_site = dict.fromkeys(SITES, 0)
    for restart in range(2):
        up.start()
        look(up)
        totals: list[dict[str, int]] = []
        stop = threading.Event()
        threads = [
            threading.Thread(target=load, args=(up.mqtt, level, 400, stop, totals)) for level in (4, 5)
        ]
        for thread in threads:
            thread.start()
        looks = 0
        try:
            while any(thread.is_alive() for thread in threads):
                look(up)
                looks += 1
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert looks > 3
        assert len(totals) == 2
        # At rest the counts are those of the senders: the gateway counts from its start, the tables over all starts.
        terms = look(up)
        assert terms["in_flight"] == 0
        for outcome in ("decoded", "dead_lettered", "live_only", "raw_only", "refused"):
            assert terms[outcome] == sum(total[outcome] for total in totals), outcome
        rows += sum(total["decoded"] for total in totals)
        letters += sum(total["dead_lettered"] for total in totals)
        for site in SITES:
            by_site[site] += sum(total[site] for total in totals)
        assert up.value("SELECT COUNT(*) FROM telemetry") == rows
        assert up.value("SELECT COUNT(*) FROM dead_letters") == letters
        book = up.get("/api/v1/books")["rows"]["telemetry"]
        assert book["decoded"] == rows
        levels = book["levels"]["site"]
        assert {site: account["decoded"] for site, account in levels.items()} == by_site
        if restart == 0:
            up.kill()
        else:
            up.stop()


def test_the_page_of_metrics_names_those_of_a_running_server_and_no_others(
    server: Callable[..., Server],
) -> None:
    query = '''
[queries.counts]
sql = """SELECT device, window_start, window_end, COUNT(*) AS n
       FROM TABLE(TUMBLE(TABLE telemetry, DESCRIPTOR(ts), INTERVAL '1' MINUTES))
       GROUP BY device, window_start, window_end"""
'''
    up = server(CONFIG + query).start()
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    documented = {name.removesuffix("_total") for name in re.findall(r"`(headwater_[a-z_]+)", page)}
    assert {family.name for family in families(up)} == documented
