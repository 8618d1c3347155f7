"""OpenMetrics: every number an operator watches, collected at the scrape from the parts themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from headwater.api.books import OUTCOMES, books, each_level
from headwater.api.parts import Parts
from headwater.gateway.logins import LoginService
from headwater.latency import Latency

#: Gateway counters that are exported under their own names: counter -> help.
GATEWAY_COUNTERS = {
    "received": "PUBLISH packets received",
    "rows": "Rows decoded",
    "acks": "PUBACK packets sent",
    "delivered": "Messages delivered to subscribers",
    "dropped_deliveries": "Messages not delivered because a subscriber was too slow",
    "dropped_total_queued": "Of those, the ones dropped because max_total_queued_bytes waited for all subscribers",
    "session_snapshots": "Snapshots of durable sessions written",
    "connections_total": "Connections accepted since the start",
    "lifecycle_dropped": "Lifecycle events that were not sent, because a pass had too many",
    "unwatched": "Times that a connection which sends much beside others was left to be read from time to time",
    "retained_refused": "Retained messages not retained, because max_retained_messages or _bytes are",
    "sessions_not_kept": "Clients whose session is not kept, because max_sessions are",
    "bytes_in": "Bytes received",
    "bytes_out": "Bytes sent",
}


class Metrics:
    """A collector over the parts of one pipeline."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def collect(self) -> Iterator[Metric]:
        yield from self._gateway()
        yield from self._listeners()
        yield from self._log()
        yield from self._services()
        yield from self._books()

    def _gateway(self) -> Iterator[Metric]:
        counters: dict[str, Any] = self._parts.gateway.counters()
        for name, text in GATEWAY_COUNTERS.items():
            base = "accepted" if name == "connections_total" else name
            yield CounterMetricFamily(f"headwater_gateway_{base}", text, counters[name])
        yield GaugeMetricFamily("headwater_gateway_connections", "Open connections", counters["connections"])
        yield GaugeMetricFamily(
            "headwater_gateway_sessions", "Sessions that wait for their clients", counters["sessions"]
        )
        yield GaugeMetricFamily(
            "headwater_gateway_retained_messages", "Retained messages", counters["retained"]
        )
        yield GaugeMetricFamily(
            "headwater_gateway_retained_bytes", "Bytes of retained messages", counters["retained_bytes"]
        )
        yield GaugeMetricFamily(
            "headwater_gateway_queued_bytes",
            "Bytes of messages that wait for subscribers",
            counters["queued_bytes"],
        )
        for name, text in (
            ("refused", "CONNECT packets refused"),
            ("ended", "Connections that the gateway ended"),
        ):
            family = CounterMetricFamily(f"headwater_gateway_{name}_connections", text, labels=["reason"])
            for reason, count in counters[f"{name}_connections"].items():
                family.add_metric([reason], count)
            yield family
        denied = CounterMetricFamily("headwater_denied", "Refused by a policy", labels=["action"])
        for action in ("connect", "publish", "subscribe", "receive"):
            denied.add_metric([action], counters[f"denied_{action}"])
        yield denied
        text = "Connections ended because what the client came in by has expired, or counts no more"
        ended = CounterMetricFamily("headwater_access_ended", text, labels=["why"])
        for why in ("expired", "revoked"):
            ended.add_metric([why], counters[f"access_{why}"])
        yield ended
        yield from self._logins(self._parts.logins)
        messages = CounterMetricFamily(
            "headwater_messages", "Messages by what became of them", labels=["outcome"]
        )
        for outcome in OUTCOMES:
            if outcome != "in_flight":
                messages.add_metric([outcome], counters[outcome])
        yield messages
        yield GaugeMetricFamily(
            "headwater_messages_in_flight", "Messages not yet settled", counters["in_flight"]
        )
        loops = GaugeMetricFamily(
            "headwater_pressure_loops",
            "Event loops that leave sockets unread, or shed QoS 0",
            labels=["state"],
        )
        for state in ("unread", "shedding"):
            loops.add_metric([state], counters[f"loops_{state}"])
        yield loops
        text = "Time in which sockets with something to read were left unread, summed over the event loops"
        yield CounterMetricFamily("headwater_gateway_unread_seconds", text, counters["unread_ms"] / 1000)
        latency = self._parts.gateway.ack_latency()
        seconds = GaugeMetricFamily(
            "headwater_ack_latency_seconds", "From PUBLISH to PUBACK", labels=["quantile"]
        )
        for quantile, name in (("0.5", "p50_ms"), ("0.99", "p99_ms"), ("1", "max_ms")):
            seconds.add_metric([quantile], latency[name] / 1000)
        yield seconds

    def _listeners(self) -> Iterator[Metric]:
        label = ["listener"]
        connections = GaugeMetricFamily("headwater_listener_connections", "Open sockets", labels=label)
        accepted = CounterMetricFamily("headwater_listener_accepted", "Sockets accepted", labels=label)
        refused = CounterMetricFamily("headwater_listener_refused", "Sockets closed at a bound", labels=label)
        handshakes = CounterMetricFamily(
            "headwater_listener_handshakes", "TLS handshakes completed", labels=["listener", "resumed"]
        )
        failures = CounterMetricFamily(
            "headwater_listener_handshake_failures",
            "Connections that did not come as far as MQTT",
            labels=["listener", "reason"],
        )
        limits = CounterMetricFamily(
            "headwater_listener_limits", "Limits that were reached", labels=["listener", "limit"]
        )
        refusals = CounterMetricFamily(
            "headwater_listener_refused_connections", "CONNECT packets refused", labels=["listener", "reason"]
        )
        endings = CounterMetricFamily(
            "headwater_listener_ended_connections",
            "Connections that the gateway ended",
            labels=["listener", "reason"],
        )
        for each in self._parts.gateway.listeners():
            name = each["name"]
            for family, counts in ((limits, "limits"), (refusals, "refusals"), (endings, "endings")):
                for kind, count in each[counts].items():
                    family.add_metric([name, kind], count)
            connections.add_metric([name], each["connections"])
            accepted.add_metric([name], each["accepted"])
            refused.add_metric([name], each["refused"])
            if each["transport"] in ("tls", "wss"):
                handshakes.add_metric([name, "true"], each["resumed"])
                handshakes.add_metric([name, "false"], each["handshakes"] - each["resumed"])
            for reason, count in each["failures"].items():
                failures.add_metric([name, reason], count)
        yield from (connections, accepted, refused, handshakes, failures, limits, refusals, endings)

    @staticmethod
    def _logins(logins: LoginService | None) -> Iterator[Metric]:
        text = "Logins by the source that decided and its result"
        results = CounterMetricFamily("headwater_logins", text, labels=["source", "result"])
        counts = logins.results() if logins is not None else {}
        for (source, result), count in sorted(counts.items()):
            results.add_metric([source, result], count)
        yield results
        text = "CONNECT packets that wait for an answer"
        waiting = logins.waiting() if logins is not None else 0
        yield GaugeMetricFamily("headwater_logins_waiting", text, waiting)

    def _log(self) -> Iterator[Metric]:
        stats = self._parts.log.native.stats()
        for name, text in (
            ("commits", "Commits"),
            ("bytes", "Bytes written"),
            ("sync_errors", "Failed syncs"),
            ("write_errors", "Failed writes"),
        ):
            yield CounterMetricFamily(f"headwater_log_{name}", text, stats[name])
        for name, text in (
            ("segments", "Segment files"),
            ("disk_bytes", "Bytes of segment files"),
            ("queued_bytes", "Bytes waiting for a commit"),
            ("full", "1 while nothing from devices is accepted because space is missing"),
        ):
            yield GaugeMetricFamily(f"headwater_log_{name}", text, stats[name])
        offsets = CounterMetricFamily("headwater_log_rows", "Rows durable in the log", labels=["stream"])
        for schema in self._parts.schemas.all():
            offsets.add_metric([schema.name], sum(self._parts.log.end(schema.stream)))
        yield offsets
        duplicates = CounterMetricFamily("headwater_dedupe_duplicates", "Rows left out", labels=["stream"])
        evicted = CounterMetricFamily(
            "headwater_dedupe_evicted", "Readings forgotten early", labels=["stream"]
        )
        keys = GaugeMetricFamily("headwater_dedupe_keys", "Readings remembered", labels=["stream"])
        for name, stream in self._parts.settings.streams.items():
            if stream.dedupe:
                found = self._parts.log.native.dedupe_stats(self._parts.schemas[name].stream)
                duplicates.add_metric([name], found["duplicates"])
                evicted.add_metric([name], found["evicted"])
                keys.add_metric([name], found["keys"])
        yield from (duplicates, evicted, keys)

    def _services(self) -> Iterator[Metric]:
        healthy = GaugeMetricFamily(
            "headwater_service_healthy", "1 while a service steps", labels=["service"]
        )
        for worker in self._parts.workers:
            healthy.add_metric([worker.name], int(worker.healthy))
        yield healthy
        if self._parts.store is not None:
            yield from self._tables()
            text = "From a reading's arrival until a query sees it"
            yield _histogram("headwater_visible_latency_seconds", text, self._parts.store.latency)
        if self._parts.notifier is not None:
            text = "From a reading's arrival until the alarm that it fired is delivered"
            yield _histogram("headwater_alarm_latency_seconds", text, self._parts.notifier.latency)
            notifications = GaugeMetricFamily(
                "headwater_notifications", "Notifications kept", labels=["target", "state"]
            )
            for target, states in self._parts.notifier.status().items():
                for state, count in states.items():
                    notifications.add_metric([target, state], count)
            yield notifications
        if self._parts.alarms is not None:
            refused = CounterMetricFamily(
                "headwater_alarm_refused", "Keys that an alarm does not watch", labels=["alarm"]
            )
            for alarm, count in self._parts.alarms.refused().items():
                refused.add_metric([alarm], count)
            yield refused
        if self._parts.engine is not None:
            yield from self._queries()

    def _tables(self) -> Iterator[Metric]:
        assert self._parts.store is not None
        rows = CounterMetricFamily("headwater_store_rows", "Rows in the files of a table", labels=["table"])
        files = GaugeMetricFamily("headwater_store_files", "Files of a table", labels=["table"])
        size = GaugeMetricFamily("headwater_store_bytes", "Bytes of a table's files", labels=["table"])
        for table in self._parts.store.tables():
            rows.add_metric([table.name], table.rows_stored)
            files.add_metric([table.name], table.files)
            size.add_metric([table.name], table.bytes)
        yield from (rows, files, size)

    def _queries(self) -> Iterator[Metric]:
        assert self._parts.engine is not None
        texts = {
            "rows": "Rows read by a query",
            "late": "Rows that amended a closed window",
            "dropped": "Rows too late for any window kept",
            "windows": "Result rows written",
        }
        per_query: dict[str, Any] = dict(self._parts.engine.metrics())
        for name, text in texts.items():
            family = CounterMetricFamily(f"headwater_query_{name}", text, labels=["query"])
            for query, values in per_query.items():
                family.add_metric([query], values[name])
            yield family
        gauges = {
            "state_bytes": ("state_bytes", "Memory of a query's windows", 1),
            "checkpoint_bytes": ("checkpoint_bytes", "Bytes of a query's newest checkpoint", 1),
            "checkpoint_seconds": ("checkpoint_us", "From taking its state until it was on disk", 1e6),
            "checkpoint_pause_seconds": ("checkpoint_pause_us", "For how long the query stood still", 1e6),
        }
        for name, (key, text, unit) in gauges.items():
            gauge = GaugeMetricFamily(f"headwater_query_{name}", text, labels=["query"])
            for query, values in per_query.items():
                gauge.add_metric([query], values[key] / unit)
            yield gauge

    def _books(self) -> Iterator[Metric]:
        found = books(self._parts)
        yield GaugeMetricFamily(
            "headwater_books_balanced", "1 while both equations hold", int(found["balanced"])
        )
        rows = GaugeMetricFamily(
            "headwater_books_rows", "Terms of the equation of rows", labels=["stream", "term"]
        )
        for stream, terms in found["rows"].items():
            for term in ("decoded", "stored", "duplicates", "in_flight"):
                rows.add_metric([stream, term], terms[term])
        yield rows
        levels = GaugeMetricFamily(
            "headwater_books_level_rows",
            "Terms of the equation of rows by value of a captured level",
            labels=["stream", "level", "value", "term"],
        )
        for stream, terms in found["rows"].items():
            for (level, value), account in each_level(terms).items():
                for term in ("decoded", "stored", "in_flight"):
                    levels.add_metric([stream, level, value, term], account[term])
        yield levels


def _histogram(name: str, text: str, latency: Latency) -> Metric:
    buckets, sum_s = latency.buckets()
    return HistogramMetricFamily(name, text, buckets, sum_s)
