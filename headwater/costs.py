"""The cost model: cores, memory and disk that a fleet needs, from measured costs per message, connection and reading.

`docs/performance.md` states where each figure was measured and shows the arithmetic; `headwater doctor` applies it to
this machine. Costs are of one core as measured there; a core twice as fast halves them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured costs.

    flat_out_us:      CPU of gateway and log per message that arrives among many in one read
    one_per_write_us: the same for one message per write, as separate devices send; nearly all of it is the kernel's
    pipeline_us:      CPU of store, one window and ten alarm rules per reading
    kernel_bytes:     of a TCP connection in the kernel
    connection_bytes: of ours per connection with its session
    device_bytes:     of ours per device: dictionary of keys, three open panes of a window
    log_bytes:        per reading of three fields with one to three decimals in the log, from 100,000/s on
    store_bytes:      the same in the table
    """

    flat_out_us: float = 0.36
    one_per_write_us: float = 9.3
    pipeline_us: float = 0.37
    kernel_bytes: float = 4_200
    connection_bytes: float = 434
    device_bytes: float = 248
    log_bytes: float = 9.7
    store_bytes: float = 4.0


#: As measured on the machine that `docs/performance.md` names.
MEASURED: Final = Costs()


@dataclass(frozen=True, slots=True)
class Needs:
    """What a fleet needs: cores kept busy, bytes of memory, bytes a second to the log and to the table."""

    cores: float
    memory_bytes: float
    log_bytes_s: float
    store_bytes_s: float

    @property
    def store_bytes_day(self) -> float:
        """Bytes that the table grows by in a day."""
        return self.store_bytes_s * 86_400


def needs(devices: int, rate: float, costs: Costs = MEASURED, *, connected: bool = True) -> Needs:
    """What `devices` need that send `rate` messages a second each.

    connected: every device has a connection of its own and sends one message per write; else gateways bundle them

    >>> round(needs(1_000_000, 1.0, Costs(one_per_write_us=10, pipeline_us=1)).cores)
    11
    """
    messages_s = devices * rate
    us = (costs.one_per_write_us if connected else costs.flat_out_us) + costs.pipeline_us
    per_device = costs.device_bytes + (costs.kernel_bytes + costs.connection_bytes if connected else 0)
    return Needs(
        cores=messages_s * us / 1e6,
        memory_bytes=devices * per_device,
        log_bytes_s=messages_s * costs.log_bytes,
        store_bytes_s=messages_s * costs.store_bytes,
    )


@dataclass(frozen=True, slots=True)
class Takes:
    """What a machine takes: messages a second bundled and one per write, and connected devices."""

    bundled_s: float
    one_per_write_s: float
    devices: float


def takes(cores: float, memory_bytes: float, disk_bytes_s: float, costs: Costs = MEASURED) -> Takes:
    """What a machine with this much of each takes, the whole pipeline on.

    memory_bytes: that connections and devices may take
    disk_bytes_s: that the disk takes with a sync per commit

    >>> round(takes(2, 1e9, 1e9, Costs(flat_out_us=1, pipeline_us=1)).bundled_s)
    1000000
    """
    per_s = cores * 1e6
    by_disk = disk_bytes_s / (costs.log_bytes + costs.store_bytes)
    per_device = costs.kernel_bytes + costs.connection_bytes + costs.device_bytes
    return Takes(
        bundled_s=min(per_s / (costs.flat_out_us + costs.pipeline_us), by_disk),
        one_per_write_s=min(per_s / (costs.one_per_write_us + costs.pipeline_us), by_disk),
        devices=memory_bytes / per_device,
    )
