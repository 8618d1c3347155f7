"""The demo's faults raise their alarms at whatever hour it runs."""

from __future__ import annotations

import tomllib

from headwater.demo import CONFIG, planted
from headwater.simulate import ROOM_SENSOR, FaultKind

#: Noise beyond so many sigma is not to be expected.
NOISE_SIGMA = 4


def test_spikes_show_and_nothing_else_does_at_any_hour() -> None:
    humidity = next(field for field in ROOM_SENSOR if field.name == "humidity")
    alarm = tomllib.loads(CONFIG)["alarms"]["humidity_spike"]
    raised, cleared = (float(alarm[name].split()[-1]) for name in ("where", "clear"))
    spikes = [fault for fault in planted(1000) if fault.kind is FaultKind.SPIKE]
    assert spikes
    for spike in spikes:
        assert spike.magnitude is not None
        lowest = humidity.mean - humidity.amplitude + (spike.magnitude - NOISE_SIGMA) * humidity.sigma
        assert lowest > raised
    assert humidity.mean + humidity.amplitude + NOISE_SIGMA * humidity.sigma < cleared
