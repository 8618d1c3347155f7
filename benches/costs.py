"""The cost model's figures out of a run of the bench, and its arithmetic for ten million devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benches.table import Row, median
from headwater.costs import MEASURED, Costs, needs

DEVICES, RATE = 10_000_000, 1.0
#: A window's record of one device, 64 bytes, in each of the three panes that are open at a time.
WINDOW_BYTES = 3 * 64
#: Days that the disk arithmetic keeps readings for.
DAYS = 30


def of_rows(rows: Sequence[Row]) -> Costs:
    """Costs as these rows measured them; what they did not measure is as `headwater.costs.MEASURED` has it."""
    by_number = {row.number: row.figures for row in rows if row.figures}
    found = MEASURED
    if "1" in by_number:
        found = replace(found, flat_out_us=by_number["1"]["headwater"]["cpus_us"])
    if "3b" in by_number:
        found = replace(found, one_per_write_us=median(by_number["3b"]["headwater_us"]))
    if "2b" in by_number:
        found = replace(found, pipeline_us=max(by_number["2b"]["cpu_us"] - found.flat_out_us, 0.0))
        if by_number["2b"]["store_bytes"] is not None:
            found = replace(found, store_bytes=by_number["2b"]["store_bytes"])
    if "6b" in by_number:
        found = replace(found, log_bytes=median(by_number["6b"]["bytes"]))
    if "7a" in by_number:
        memory = [median(values) for values in by_number["7a"]["rss_bytes"].values()]
        in_gateway = max(memory[-1] - memory[0], 0.0) / (1_000_000 - 10_000)
        found = replace(found, device_bytes=in_gateway + WINDOW_BYTES)
    if "8" in by_number:
        found = replace(found, connection_bytes=by_number["8"]["bytes"])
    return found


def arithmetic(costs: Costs) -> list[str]:
    """What ten million devices at one message a second need, step by step, as Markdown."""
    direct = needs(DEVICES, RATE, costs)
    bundled = needs(DEVICES, RATE, costs, connected=False)
    per_s, each = f"{DEVICES * RATE:,.0f}/s", costs.pipeline_us
    connection = costs.kernel_bytes + costs.connection_bytes + costs.device_bytes
    parts = (
        f"{costs.kernel_bytes:,.0f} kernel + {costs.connection_bytes:,.0f} connection + "
        f"{costs.device_bytes:,.0f} device"
    )
    table_tb = direct.store_bytes_day * DAYS / 1e12
    rows = [
        (
            "cores, each device on a connection of its own, one message per write",
            f"{per_s} × ({costs.one_per_write_us:.2f} + {each:.2f}) µs",
            f"{direct.cores:,.0f}",
        ),
        (
            "cores, bundled by gateways in front",
            f"{per_s} × ({costs.flat_out_us:.2f} + {each:.2f}) µs",
            f"{bundled.cores:,.0f}",
        ),
        (
            "memory, each device on a connection of its own",
            f"{DEVICES:,} × ({parts}) B = {DEVICES:,} × {connection:,.0f} B",
            f"{direct.memory_bytes / 1e9:,.0f} GB",
        ),
        (
            "memory, bundled",
            f"{DEVICES:,} × {costs.device_bytes:,.0f} B",
            f"{bundled.memory_bytes / 1e9:,.1f} GB",
        ),
        (
            "disk, log (a buffer, trimmed behind its readers)",
            f"{per_s} × {costs.log_bytes:.1f} B",
            f"{direct.log_bytes_s / 1e6:,.0f} MB/s",
        ),
        (
            "disk, table",
            f"{per_s} × {costs.store_bytes:.1f} B × 86,400 s × {DAYS} days",
            f"{direct.store_bytes_s / 1e6:,.0f} MB/s, {table_tb:,.0f} TB for {DAYS} days",
        ),
    ]
    heading = f"| for {DEVICES:,} devices at {RATE:g} message a second | arithmetic | needs |"
    return [heading, "| --- | --- | --- |", *(f"| {' | '.join(row)} |" for row in rows)]
