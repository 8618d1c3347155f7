"""What runs out while the server is down: session expiry, message expiry and delayed wills.

The wall clock of the server is ahead after each restart (tests/clocks)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.clocks.ahead import ahead
from tests.integration.device import Device
from tests.integration.fleet import MESSAGE_EXPIRY
from tests.integration.server import Server, await_that
from tests.integration.test_session_restarts import LEAN, metric, send
from tests.preload import COMPILER

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler (cc) to build the clock with")

Starts = Callable[..., Server]


def later(up: Server, seconds: int) -> None:
    """`kill -9`, and a start as of `seconds` after the first one. What came before the kill is durable."""
    send(up, "before/a/kill", b"")
    up.kill()
    up.environment |= ahead(seconds)
    up.start()


def expiring(seconds: int) -> bytes:
    """The property Message Expiry Interval."""
    return bytes([MESSAGE_EXPIRY]) + seconds.to_bytes(4, "big")


@pytest.fixture
def up(server: Starts) -> Server:
    made = server(LEAN)
    made.environment |= ahead(0)
    return made.start()


def test_a_session_expires_while_the_server_is_down(up: Server) -> None:
    with Device(up.mqtt, "short", expiry_s=600) as device:
        device.subscribe("a", 1)
        device.disconnect()
    send(up, "a", b"x")
    later(up, 300)
    with Device(up.mqtt, "short", expiry_s=600) as device:
        assert device.present
        assert device.rest() == [b"x"]
        device.disconnect()
    later(up, 800)
    with Device(up.mqtt, "short", expiry_s=600) as device:
        assert device.present
        device.disconnect(expiry_s=100)
    later(up, 1000)
    with Device(up.mqtt, "short", expiry_s=600) as device:
        assert not device.present
        send(up, "a", b"y")
        assert device.rest() == []


def test_the_longest_expiry_bounds_sessions_of_3_1_1(server: Starts) -> None:
    up = server(LEAN + "[mqtt]\nmax_session_expiry_s = 600\n")
    up.environment |= ahead(0)
    up.start()
    with Device(up.mqtt, "old", 4) as device:
        device.disconnect()
    later(up, 500)
    with Device(up.mqtt, "old", 4) as device:
        assert device.present
        device.disconnect()
    later(up, 1200)
    with Device(up.mqtt, "old", 4) as device:
        assert not device.present


def test_the_rest_of_an_expiry_runs_on_after_a_restart(up: Server) -> None:
    with Device(up.mqtt, "short", expiry_s=600) as device:
        device.disconnect()
    later(up, 597)
    await_that("the session is gone", lambda: metric(up, "headwater_gateway_sessions") == 0)
    later(up, 598)
    with Device(up.mqtt, "short", expiry_s=600) as device:
        assert not device.present


def test_an_expiry_begins_with_the_start_for_who_was_connected(up: Server) -> None:
    with Device(up.mqtt, "there", expiry_s=600):
        later(up, 10_000)
    with Device(up.mqtt, "there", expiry_s=600) as device:
        assert device.present


def test_messages_expire_while_the_server_is_down(up: Server) -> None:
    with Device(up.mqtt, "away") as device:
        device.subscribe("a", 1)
        device.disconnect()
    send(up, "a", b"short", properties=expiring(100))
    send(up, "a", b"long", properties=expiring(600))
    send(up, "a", b"for ever")
    later(up, 200)
    with Device(up.mqtt, "away") as device:
        message = device.take()
        assert message.payload == b"long"
        [left] = message.properties[MESSAGE_EXPIRY]
        assert isinstance(left, int)
        assert 300 < left <= 400
        assert device.rest() == [b"for ever"]


@pytest.fixture
def watcher(up: Server) -> str:
    """A client id whose session waits for wills."""
    with Device(up.mqtt, "watcher") as device:
        device.subscribe("will/#", 1)
        device.disconnect()
    return "watcher"


def lose(up: Server, name: str, delay_s: int, expiry_s: int = 3600, level: int = 5) -> None:
    """A client with a will loses its connection, and the server knows."""
    with Device(up.mqtt, name, level, will=(f"will/{name}", delay_s), expiry_s=expiry_s):
        pass
    await_that("the connection is gone", lambda: metric(up, "headwater_gateway_connections") == 0)


def waiting(up: Server, name: str) -> list[bytes]:
    with Device(up.mqtt, name) as device:
        found = device.rest()
        device.disconnect()
    return found


def test_a_will_waits_for_its_delay_over_restarts(up: Server, watcher: str) -> None:
    lose(up, "lost", 600)
    later(up, 100)
    assert waiting(up, watcher) == []
    later(up, 700)
    with Device(up.mqtt, watcher) as device:
        assert device.take().topic == "will/lost"
        device.disconnect()
    later(up, 2000)
    assert waiting(up, watcher) == []
    with Device(up.mqtt, "lost") as device:
        assert device.present


def test_the_rest_of_a_delay_runs_on_after_a_restart(up: Server, watcher: str) -> None:
    lose(up, "lost", 600)
    later(up, 597)
    with Device(up.mqtt, watcher) as device:
        assert device.take().topic == "will/lost"


def test_who_comes_back_in_time_leaves_no_will(up: Server, watcher: str) -> None:
    lose(up, "lost", 600)
    later(up, 100)
    with Device(up.mqtt, "lost") as device:
        assert device.present
        device.disconnect()
    later(up, 700)
    assert waiting(up, watcher) == []


def test_a_will_does_not_wait_longer_than_its_session(up: Server, watcher: str) -> None:
    lose(up, "lost", 600, expiry_s=200)
    later(up, 300)
    with Device(up.mqtt, watcher) as device:
        assert device.take().topic == "will/lost"
    with Device(up.mqtt, "lost") as device:
        assert not device.present


@pytest.mark.parametrize("level", [4, 5], ids=["3.1.1", "5"])
def test_who_was_connected_at_a_kill_leaves_its_will(up: Server, watcher: str, level: int) -> None:
    with Device(up.mqtt, "there", level, will=("will/there", 0)):
        later(up, 0)
    with Device(up.mqtt, watcher) as device:
        message = device.take()
        assert (message.topic, message.payload) == ("will/there", b"gone")
        device.disconnect()
    later(up, 0)
    assert waiting(up, watcher) == []


def test_a_delayed_will_of_who_was_connected_at_a_kill(up: Server, watcher: str) -> None:
    with Device(up.mqtt, "there", will=("will/there", 600)):
        later(up, 0)
    assert waiting(up, watcher) == []
    later(up, 700)
    with Device(up.mqtt, watcher) as device:
        assert device.take().topic == "will/there"


def test_an_orderly_end_leaves_no_wills(up: Server, watcher: str) -> None:
    with Device(up.mqtt, "there", will=("will/there", 0)):
        up.stop()
        up.start()
    assert waiting(up, watcher) == []


def test_retained_messages_expire_while_the_server_is_down(up: Server) -> None:
    send(up, "kept/short", b"s", retain=True, properties=expiring(100))
    send(up, "kept/long", b"l", retain=True, properties=expiring(600))
    later(up, 200)
    with Device(up.mqtt, "reader", clean=True, expiry_s=0) as device:
        device.subscribe("kept/#", 1)
        message = device.take()
        assert message.topic == "kept/long"
        [left] = message.properties[MESSAGE_EXPIRY]
        assert isinstance(left, int)
        assert 300 < left <= 400
        assert device.rest() == []
