"""The machine and the versions that figures belong to."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import psutil

import headwater


def describe(directory: Path) -> list[str]:
    """Lines about this machine, the disk below `directory` and the versions in use."""
    models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    disk = _first_line(["stat", "-f", "-c", "%T", str(directory)])
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    hardware = (
        f"{os.cpu_count()} cores of {models[0] if models else platform.machine()}, "
        f"{psutil.virtual_memory().total >> 30} GiB, {platform.system()} {platform.release()}, data on {disk}; "
        f"load before the run {load}"
    )
    versions = (
        f"Headwater {headwater.__version__}, Python {platform.python_version()}, "
        f"{_first_line(['rustc', '--version'])}, mosquitto {mosquitto_version() or 'not installed'}"
    )
    return [hardware, versions]


def mosquitto() -> str | None:
    """Path of the broker, None where it is not installed."""
    return shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")


def mosquitto_version() -> str | None:
    """Such as 2.0.11."""
    program = mosquitto()
    if program is None:
        return None
    done = subprocess.run([program, "-h"], capture_output=True, text=True, check=False)
    found = re.search(r"version (\S+)", done.stdout)
    return found[1] if found else "of unknown version"


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return f"no {command[0]}"
    return (done.stdout.splitlines() or ["unknown"])[0]
