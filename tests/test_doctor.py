"""What limits a machine: each check on a machine laid out for it, and all of them on this one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater import costs, doctor
from headwater.config import Settings, load


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return root


def test_descriptors_are_held_against_the_connections_asked_for() -> None:
    [enough] = doctor.descriptors(1_000, 1_024, 20_000)
    [few] = doctor.descriptors(1_000_000, 1_024, 20_000)
    [none] = doctor.descriptors(1_000, 256, 256)
    assert (enough.level, few.level, none.level) == ("ok", "warn", "fail")
    assert "20,000" in few.found
    assert "max_connections = 19400" in few.remedy


@pytest.mark.parametrize(
    ("file", "bad", "good", "check"),
    [
        ("proc/sys/net/core/somaxconn", "128\n", "4096\n", doctor.backlog),
        ("proc/sys/net/ipv4/ip_local_port_range", "50000\t60000\n", "1024\t65535\n", doctor.ports),
        (
            "sys/kernel/mm/transparent_hugepage/enabled",
            "[always] madvise never\n",
            "always [madvise] never\n",
            doctor.huge_pages,
        ),
        (
            "proc/meminfo",
            "MemTotal: 1 kB\nSwapTotal: 2097152 kB\nSwapFree: 1048576 kB\n",
            "MemTotal: 1 kB\nSwapTotal: 2097152 kB\nSwapFree: 2097152 kB\n",
            doctor.swap,
        ),
    ],
)
def test_a_kernel_setting_that_limits_is_named_with_its_remedy(
    tmp_path: Path, file: str, bad: str, good: str, check: object
) -> None:
    assert callable(check)
    found = {finding.name: finding for finding in check(machine(tmp_path, {file: bad}))}
    warned = [finding for finding in found.values() if finding.level == "warn"]
    assert len(warned) == 1
    assert warned[0].remedy
    assert all(finding.level == "ok" for finding in check(machine(tmp_path, {file: good})))


def test_the_disk_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    bytes_s, [finding] = doctor.disk(tmp_path, "sync", budget_s=0.15)
    assert bytes_s > 0
    assert all(size in finding.found for size in ("4 KiB", "64 KiB", "1024 KiB"))
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_fails(tmp_path: Path) -> None:
    bytes_s, [finding] = doctor.disk(tmp_path / "absent", "sync", budget_s=0.1)
    assert (bytes_s, finding.level) == (0.0, "fail")
    assert str(tmp_path / "absent") in finding.found


MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:30 / {top}/net rw - nfs4 server:/x rw
31 22 0:31 / {top}/with\\040space rw - tmpfs tmpfs rw
"""


def test_the_file_system_is_that_of_the_longest_mount_point(tmp_path: Path) -> None:
    mounts = MOUNTS.format(top=tmp_path)
    assert doctor.file_system_of(tmp_path, mounts) == "ext4"
    assert doctor.file_system_of(tmp_path / "net" / "data", mounts) == "nfs4"
    assert doctor.file_system_of(tmp_path / "network", mounts) == "ext4"
    assert doctor.file_system_of(tmp_path / "with space", mounts) == "tmpfs"
    assert doctor.file_system_of(tmp_path, "") == "unknown"


def test_network_and_short_lived_file_systems_are_warned_of(tmp_path: Path) -> None:
    root = machine(tmp_path / "root", {"proc/self/mountinfo": MOUNTS.format(top=tmp_path)})
    for name, level in (("net", "warn"), ("with space", "warn"), ("data", "ok")):
        (tmp_path / name).mkdir()
        kind, space = doctor.file_system(tmp_path / name, root, disk_max_bytes=1)
        assert (kind.level, space.name) == (level, "free space")
    _, space = doctor.file_system(tmp_path, root, disk_max_bytes=1 << 60)
    assert space.level in ("warn", "fail")
    assert space.remedy


def test_a_control_group_bounds_cores_and_memory(tmp_path: Path) -> None:
    meminfo = "MemTotal:       8388608 kB\n"
    assert doctor.memory(machine(tmp_path, {"proc/meminfo": meminfo})) == 8 << 30
    assert doctor.memory(machine(tmp_path, {"sys/fs/cgroup/memory.max": "1073741824\n"})) == 1 << 30
    assert doctor.memory(machine(tmp_path, {"sys/fs/cgroup/memory.max": "max\n"})) == 8 << 30
    assert doctor.cpus(machine(tmp_path, {"sys/fs/cgroup/cpu.max": "50000 100000\n"})) == 0.5
    assert doctor.cpus(machine(tmp_path, {"sys/fs/cgroup/cpu.max": "max 100000\n"})) >= 1


def test_settings_that_do_not_fit_the_memory_fail() -> None:
    [fits] = doctor.budget(16e9, 4_000_000_000)
    [tight] = doctor.budget(3e9, 4_000_000_000)
    [too_small] = doctor.budget(1e9, 4_000_000_000)
    assert (fits.level, tight.level, too_small.level) == ("ok", "warn", "fail")


def test_this_machine_is_examined_in_full(tmp_path: Path) -> None:
    settings = load(None, [f'data_dir="{tmp_path / "not" / "yet"}"', "mqtt.max_connections=10"], {})
    examination = doctor.examine(settings, devices=10_000_000)
    names = [finding.name for finding in examination.findings]
    for name in (
        "file descriptors",
        "disk sync",
        "file system",
        "free space",
        "cores",
        "memory",
        "swap",
        "clock",
    ):
        assert name in names
    assert examination.estimate["bundled_s"] > examination.estimate["one_per_write_s"] > 0
    assert examination.estimate["devices"] <= 10
    [line] = examination.json_lines()
    assert json.loads(line)["fails"] == examination.fails
    assert all(any(name in shown for shown in examination.lines()) for name in names)
    assert not (tmp_path / "not").exists()


def test_the_bounds_of_the_settings_add_up() -> None:
    one, two = Settings(), load(None, ["store.flush_bytes=1073741824"], {})
    assert two.memory_bound - one.memory_bound == 2 * ((1 << 30) - one.store.flush_bytes)


@given(
    devices=st.integers(1, 10**8),
    rate=st.floats(1e-3, 100),
    times=st.integers(2, 100),
    connected=st.booleans(),
)
def test_needs_grow_in_proportion(devices: int, rate: float, times: int, connected: bool) -> None:
    one = costs.needs(devices, rate, connected=connected)
    many = costs.needs(devices * times, rate, connected=connected)
    for name in ("cores", "memory_bytes", "log_bytes_s", "store_bytes_s"):
        assert getattr(many, name) == pytest.approx(times * getattr(one, name))
    assert one.store_bytes_day == pytest.approx(86_400 * one.store_bytes_s)


@given(cores=st.floats(0.5, 128), memory=st.floats(1e6, 1e12), disk=st.floats(1e5, 1e10))
def test_a_machine_takes_what_its_needs_allow(cores: float, memory: float, disk: float) -> None:
    found = costs.takes(cores, memory, disk)
    asked = costs.needs(1, found.one_per_write_s)
    assert asked.cores <= cores * 1.0001
    assert asked.log_bytes_s + asked.store_bytes_s <= disk * 1.0001
    assert costs.needs(int(found.devices), 0.0).memory_bytes <= memory * 1.0001
