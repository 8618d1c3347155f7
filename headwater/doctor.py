"""What limits this machine and what to set, each finding with why it matters, and what the machine should take.

Everything is read below `root`, so that a test can lay out a machine of its own; the disk is measured for real.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Literal

from headwater import costs
from headwater.config import Settings

Level = Literal["ok", "warn", "fail"]

#: Descriptors beside those of connections: log, store, database, listeners.
_SPARE_DESCRIPTORS: Final = 600
#: What the disk is measured with: the commit sizes from a quiet to a busy server, bytes.
_SYNC_SIZES: Final = (4 << 10, 64 << 10, 1 << 20)
_SYNC_BUDGET_S: Final = 1.8
_NETWORK: Final = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "ceph", "glusterfs", "afs"}
_SHORT_LIVED: Final = {"overlay", "aufs", "tmpfs", "ramfs"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, what was found, why it matters, what to set (empty when nothing)."""

    name: str
    level: Level
    found: str
    why: str
    remedy: str = ""


@dataclass
class Examination:
    """All findings, and what the machine is estimated to take."""

    findings: list[Finding] = field(default_factory=list)
    estimate: dict[str, float] = field(default_factory=dict)
    needs: dict[str, float] = field(default_factory=dict)

    @property
    def fails(self) -> bool:
        """Whether something must be changed before this machine can serve these settings."""
        return any(finding.level == "fail" for finding in self.findings)

    def json_lines(self) -> list[str]:
        """One JSON object."""
        return [json.dumps({**asdict(self), "fails": self.fails})]

    def lines(self) -> list[str]:
        """As a person reads it."""
        lines = []
        for each in self.findings:
            lines.append(f"{each.level:4}  {each.name}: {each.found}")
            lines.append(f"      {each.why}")
            if each.remedy:
                lines.append(f"      set: {each.remedy}")
        if self.estimate:
            lines.append("")
            lines.append("estimated from the costs measured in docs/performance.md, the whole pipeline on:")
            lines.append(
                f"      {self.estimate['bundled_s']:,.0f} messages/s that arrive bundled, "
                f"{self.estimate['one_per_write_s']:,.0f}/s as one message per write, "
                f"{self.estimate['devices']:,.0f} connected devices"
            )
        if self.needs:
            lines.append(
                f"      the fleet asked for needs {self.needs['cores']:,.1f} cores, "
                f"{self.needs['memory_bytes'] / 1e9:,.1f} GB of memory, {self.needs['log_bytes_s'] / 1e6:,.1f} MB/s "
                f"to the log and {self.needs['store_bytes_day'] / 1e9:,.1f} GB of table a day"
            )
        return lines


def examine(
    settings: Settings, *, root: Path = Path("/"), devices: int | None = None, rate: float = 1.0
) -> Examination:
    """Every check, in the order in which a reading meets what they look at; takes about two seconds.

    raises: nothing of its own; what cannot be read is reported as such
    """
    directory = existing(settings.data_dir)
    found = Examination()
    found.findings += descriptors(settings.mqtt.max_connections, *resource.getrlimit(resource.RLIMIT_NOFILE))
    found.findings += backlog(root)
    found.findings += ports(root)
    rate_bytes_s, measured = disk(directory, settings.log.durability)
    found.findings += measured
    found.findings += file_system(directory, root, settings.log.disk_max_bytes)
    cores, memory_bytes = cpus(root), memory(root)
    found.findings += processor(cores, settings.mqtt.threads)
    found.findings += budget(memory_bytes, settings.memory_bound)
    found.findings += swap(root)
    found.findings += huge_pages(root)
    found.findings += clock()
    left = max(memory_bytes - settings.memory_bound, 0)
    found.estimate = asdict(costs.takes(cores, left, rate_bytes_s))
    by_descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - _SPARE_DESCRIPTORS
    found.estimate["devices"] = max(
        0, min(found.estimate["devices"], by_descriptors, settings.mqtt.max_connections)
    )
    if devices is not None:
        asked = costs.needs(devices, rate)
        found.needs = {**asdict(asked), "store_bytes_day": asked.store_bytes_day}
    return found


def descriptors(max_connections: int, soft: int, hard: int) -> Iterator[Finding]:
    """File descriptors against `mqtt.max_connections`; the server raises the soft limit to the hard one itself."""
    why = "every connection is a file descriptor; at the limit new devices are turned away"
    needed = max_connections + _SPARE_DESCRIPTORS
    found = f"soft limit {soft:,}, hard limit {hard:,}, mqtt.max_connections = {max_connections:,}"
    if hard >= needed:
        yield Finding("file descriptors", "ok", found, why)
        return
    remedy = f"LimitNOFILE={needed} (systemd), ulimit -Hn {needed} (shell), or mqtt.max_connections = "
    remedy += f"{max(hard - _SPARE_DESCRIPTORS, 1)}"
    yield Finding(
        "file descriptors", "fail" if hard < 1024 + _SPARE_DESCRIPTORS else "warn", found, why, remedy
    )


def backlog(root: Path) -> Iterator[Finding]:
    """Handshakes that wait to be accepted."""
    why = "a fleet that reconnects at once overflows a short queue, and its devices wait seconds for a retry"
    for name, enough in (("net/core/somaxconn", 1024), ("net/ipv4/tcp_max_syn_backlog", 1024)):
        value = number(root / "proc/sys" / name)
        key = name.replace("/", ".")
        if value is None:
            yield Finding(key, "ok", "not readable here", why)
        elif value < enough:
            yield Finding(key, "warn", f"{value}", why, f"sysctl -w {key}=4096")
        else:
            yield Finding(key, "ok", f"{value}", why)


def ports(root: Path) -> Iterator[Finding]:
    """Ports for outgoing connections, which only a load generator on this machine runs out of."""
    why = "a load generator or bridge on one address has one port per connection to the same server"
    words = text(root / "proc/sys/net/ipv4/ip_local_port_range").split()
    if len(words) != 2:
        return
    count = int(words[1]) - int(words[0]) + 1
    level: Level = "ok" if count >= 20_000 else "warn"
    remedy = "" if level == "ok" else 'sysctl -w net.ipv4.ip_local_port_range="1024 65535"'
    yield Finding("ephemeral ports", level, f"{count:,} ({words[0]} to {words[1]})", why, remedy)


def disk(directory: Path, durability: str, budget_s: float = _SYNC_BUDGET_S) -> tuple[float, list[Finding]]:
    """Bytes a second with a sync after each largest write, and the finding; writes one file and removes it."""
    why = "a message is acknowledged when its commit is on disk, so a sync's time is in every acknowledgement"
    path = directory / f".headwater-doctor-{os.getpid()}"
    parts, bytes_s, middle_ms = [], 0.0, 0.0
    try:
        for size in _SYNC_SIZES:
            times_s = sync_times(path, size, budget_s / len(_SYNC_SIZES))
            times_s.sort()
            p50, p99 = times_s[len(times_s) // 2], times_s[len(times_s) * 99 // 100]
            bytes_s = size * len(times_s) / sum(times_s)
            middle_ms = p50 * 1e3 if size == _SYNC_SIZES[1] else middle_ms
            parts.append(
                f"{size >> 10} KiB p50 {p50 * 1e3:.2f}, p99 {p99 * 1e3:.2f} ms, {bytes_s / 1e6:,.0f} MB/s"
            )
    except OSError as error:
        remedy = "free space, or name a directory that can be written with --data-dir"
        found = f"writing {path} failed: {error.strerror}"
        return 0.0, [Finding("disk sync", "fail", found, why, remedy)]
    finally:
        path.unlink(missing_ok=True)
    level: Level = "ok" if middle_ms <= 5 else "warn"
    remedy = ""
    if level == "warn":
        remedy = "put data_dir on a local SSD with power-loss protection; log.commit_interval_ms above one sync's time"
    found = "; ".join(parts)
    if durability == "async":
        found += "; log.durability = async does not wait for it"
    return bytes_s, [Finding("disk sync", level, found, why, remedy)]


def sync_times(path: Path, size: int, budget_s: float) -> list[float]:
    """Seconds of each write and fdatasync of `size` bytes into blocks written before, as the log's segments are."""
    block, room = os.urandom(size), max(size * 4, 1 << 20)
    file = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        os.pwrite(file, bytes(room), 0)
        os.fsync(file)
        times_s: list[float] = []
        begin = time.perf_counter()
        while not times_s or time.perf_counter() - begin < budget_s:
            before = time.perf_counter()
            os.pwrite(file, block, len(times_s) * size % room)
            os.fdatasync(file)
            times_s.append(time.perf_counter() - before)
        return times_s
    finally:
        os.close(file)


def file_system(directory: Path, root: Path, disk_max_bytes: int) -> Iterator[Finding]:
    """Type and free space of the data directory's file system."""
    kind = file_system_of(directory, text(root / "proc/self/mountinfo"))
    why = "what was acknowledged must survive a restart, and a sync must reach the disk"
    level: Level = "ok"
    remedy = ""
    if kind in _NETWORK:
        level, remedy = (
            "warn",
            "put data_dir on a local disk: a sync over the network is slow and locks may not hold",
        )
    elif kind in _SHORT_LIVED:
        level = "warn"
        remedy = f"put data_dir on a volume of its own: {kind} ends with the container or the machine"
    yield Finding("file system", level, f"{directory} is on {kind}", why, remedy)
    free = shutil.disk_usage(directory).free
    why = "a full disk stops acknowledgements; lagging readers may take log.disk_max_bytes"
    found = f"{free / 1e9:,.1f} GB free, log.disk_max_bytes = {disk_max_bytes / 1e9:,.1f} GB"
    if free < 1 << 30:
        yield Finding("free space", "fail", found, why, "free at least 1 GiB")
    elif free < disk_max_bytes:
        yield Finding(
            "free space", "warn", found, why, f"log.disk_max_bytes = {int(free * 0.8)}, or a larger disk"
        )
    else:
        yield Finding("free space", "ok", found, why)


def processor(cores: float, threads: int) -> Iterator[Finding]:
    """Cores that this process may use."""
    why = "event loops, the log's commits, the store and the windows share them"
    found = f"{cores:g} usable, mqtt.threads = {threads or 'one per core'}"
    if threads > cores:
        yield Finding("cores", "warn", found, why, f"mqtt.threads = {int(cores)}")
    else:
        yield Finding(
            "cores", "ok" if cores >= 2 else "warn", found, why, "" if cores >= 2 else "at least 2 cores"
        )


def budget(memory_bytes: float, bound_bytes: int) -> Iterator[Finding]:
    """Memory against the sum of the settings' bounds."""
    why = "every buffer has a bound; when they do not fit together, the kernel ends the process instead"
    found = (
        f"{memory_bytes / 1e9:,.1f} GB usable, bounds of the settings add up to {bound_bytes / 1e9:,.1f} GB"
    )
    if memory_bytes < bound_bytes:
        remedy = f"memory_budget = {int(memory_bytes * 0.8)}, which makes the buffers fit, or more memory"
        yield Finding("memory", "warn" if memory_bytes > bound_bytes / 2 else "fail", found, why, remedy)
    else:
        yield Finding("memory", "ok", found, why)


def swap(root: Path) -> Iterator[Finding]:
    """Swap in use makes pauses of seconds."""
    values = dict(line.split(":", 1) for line in text(root / "proc/meminfo").splitlines() if ":" in line)
    total = int(values.get("SwapTotal", "0").split()[0])
    used = total - int(values.get("SwapFree", "0").split()[0])
    why = "a page that must be read back stalls every device of an event loop"
    if used > 64 << 10:
        remedy = "sysctl -w vm.swappiness=1, and more memory or smaller bounds"
        yield Finding("swap", "warn", f"{used >> 10} of {total >> 10} MiB in use", why, remedy)
    else:
        yield Finding("swap", "ok", "none in use" if total else "none", why)


def huge_pages(root: Path) -> Iterator[Finding]:
    """Transparent huge pages."""
    line = text(root / "sys/kernel/mm/transparent_hugepage/enabled")
    chosen = line[line.find("[") + 1 : line.find("]")] if "[" in line else "not readable here"
    why = "always: memory of many small sessions is rounded up to 2 MiB, and compaction stalls threads"
    if chosen == "always":
        remedy = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
        yield Finding("transparent huge pages", "warn", chosen, why, remedy)
    else:
        yield Finding("transparent huge pages", "ok", chosen, why)


def clock() -> Iterator[Finding]:
    """Whether the kernel's clock is disciplined (adjtimex(2): STA_UNSYNC)."""
    why = "received_at, windows by time of arrival and certificates follow this clock"
    synchronised = clock_is_synchronised()
    if synchronised is None:
        yield Finding("clock", "ok", "its state is not readable here", why)
    elif synchronised:
        yield Finding("clock", "ok", "synchronised", why)
    else:
        yield Finding("clock", "warn", "not synchronised", why, "run chrony or systemd-timesyncd")


def clock_is_synchronised() -> bool | None:
    """By adjtimex; None where it cannot be asked."""
    import ctypes

    adjtimex: Callable[[object], int] | None = getattr(ctypes.CDLL(None), "adjtimex", None)
    if adjtimex is None:
        return None
    # struct timex: modes 0 only asks. TIME_ERROR (5) is what an undisciplined clock answers.
    state = adjtimex(ctypes.create_string_buffer(512))
    return None if state < 0 else state != 5


def cpus(root: Path) -> float:
    """Cores that this process may use: affinity and the control group's quota."""
    cores = float(len(os.sched_getaffinity(0)))
    words = text(root / "sys/fs/cgroup/cpu.max").split()
    if len(words) == 2 and words[0] != "max":
        cores = min(cores, int(words[0]) / int(words[1]))
    return cores


def memory(root: Path) -> float:
    """Bytes that this process may use: the machine's, or the control group's bound."""
    total = 0
    for line in text(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            total = int(line.split()[1]) << 10
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        bound = number(root / "sys/fs/cgroup" / name)
        if bound is not None and 0 < bound < total:
            return float(bound)
    return float(total)


def file_system_of(directory: Path, mountinfo: str) -> str:
    """Type of the file system that holds `directory`, by the longest mount point above it (proc(5), mountinfo)."""
    best, kind = -1, "unknown"
    target = str(directory.resolve())
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        words = before.split()
        if len(words) < 5 or not after:
            continue
        point = words[4].replace("\\040", " ")
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:
            best, kind = len(point), after.split()[0]
    return kind


def existing(directory: Path) -> Path:
    """The directory or the nearest one above it that exists."""
    directory = directory.absolute()
    while not directory.is_dir():
        directory = directory.parent
    return directory


def text(path: Path) -> str:
    """A file's text, empty when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def number(path: Path) -> int | None:
    """A file's number; None when there is none."""
    try:
        return int(text(path).strip())
    except ValueError:
        return None
