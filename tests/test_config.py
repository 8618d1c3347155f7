"""Settings: sources, durations, and mistakes that name key, value and remedy."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater import config, declarations, reference
from headwater.errors import ConfigError

STREAM = '[streams.t]\ntopic = "dt/{device}"\nfields = { temperature = "double" }\n'


def load(
    tmp_path: Path, text: str, *overrides: str, environ: dict[str, str] | None = None
) -> config.Settings:
    path = tmp_path / "headwater.toml"
    path.write_text(text, encoding="utf-8")
    return config.load(path, overrides, environ or {})


def refusal(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, *overrides)
    return str(caught.value)


def test_defaults_bind_to_loopback() -> None:
    settings = config.load(None, (), {})
    assert (settings.mqtt.host, settings.mqtt.port) == ("127.0.0.1", 1883)
    assert (settings.http.host, settings.http.port) == ("127.0.0.1", 8080)
    assert settings.log.durability == "sync"


def test_override_beats_environment_beats_file(tmp_path: Path) -> None:
    text = "[mqtt]\nport = 1\n[http]\nport = 1\n[log]\npartitions = 1\n"
    environ = {
        "HEADWATER_HTTP__PORT": "2",
        "HEADWATER_LOG__PARTITIONS": "2",
        "HEADWATER_ADMIN_TOKEN": "secret",
    }
    settings = load(tmp_path, text, "log.partitions=3", environ=environ)
    assert (settings.mqtt.port, settings.http.port, settings.log.partitions) == (1, 2, 3)
    assert settings.admin_token is not None
    assert "secret" not in repr(settings)


def test_port_may_name_its_host(tmp_path: Path) -> None:
    settings = load(tmp_path, "", "mqtt.port=127.0.0.2:0", "http.port=[::1]:80")
    assert (settings.mqtt.host, settings.mqtt.port) == ("127.0.0.2", 0)
    assert (settings.http.host, settings.http.port) == ("::1", 80)


def test_listeners_beside_the_plain_one(tmp_path: Path) -> None:
    text = (
        '[mqtts]\nport = "0.0.0.0:8883"\nclient_ca = "ca.pem"\n[ws]\nport = 0\n'
        '[[mqtt.listeners]]\nname = "fleet"\ntransport = "tcp"\nport = 1884\nproxy_protocol = true\n'
    )
    found = {each.name: each for each in load(tmp_path, text).listeners}
    assert list(found) == ["mqtts", "ws", "fleet"]
    assert (found["mqtts"].transport, found["mqtts"].host, found["mqtts"].port) == ("tls", "0.0.0.0", 8883)
    assert (found["mqtts"].clients, found["ws"].clients) == ("required", "none")
    assert (found["ws"].host, found["fleet"].proxy_protocol) == ("127.0.0.1", True)
    assert config.load(None, (), {}).listeners == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ('transport = "tcp"\nhost = "0.0.0.0"', "mqtt.listeners.x.insecure = true"),
        ('transport = "ws"\nhost = "192.0.2.1"', "mqtt.listeners.x.insecure = true"),
        (
            'transport = "tcp"\ncertificate = "c.pem"\nkey = "k.pem"',
            "certificate means nothing with transport = 'tcp'",
        ),
        ('transport = "tls"\norigins = ["*"]', "origins means nothing with transport = 'tls'"),
        ('transport = "tls"\ncertificate = "c.pem"', "certificate and key belong together, key is missing"),
        ('transport = "tls"\nclient_ca = "c.pem"\nclient_certificate = "none"', "mean nothing"),
        ('transport = "quic"', "found 'quic'"),
    ],
)
def test_a_listener_that_makes_no_sense_is_refused(tmp_path: Path, settings: str, said: str) -> None:
    assert said in refusal(tmp_path, f'[[mqtt.listeners]]\nname = "x"\nport = 0\n{settings}\n')


@pytest.mark.parametrize("name", ["mqtt", "wss", "http", "pid", "A", ""])
def test_names_of_listeners(tmp_path: Path, name: str) -> None:
    refusal(tmp_path, f'[[mqtt.listeners]]\nname = "{name}"\ntransport = "tcp"\nport = 0\n')


def test_two_listeners_have_two_names(tmp_path: Path) -> None:
    one = '[[mqtt.listeners]]\nname = "x"\ntransport = "tcp"\nport = 0\n'
    assert "two listeners have the name 'x'" in refusal(tmp_path, one + one)


_USERS = '[auth.password]\nfile = "users.json"\n'
_FURTHER = '[[mqtt.listeners]]\nname = "x"\nhost = "0.0.0.0"\nport = 0\ntransport = '


@pytest.mark.parametrize(
    ("settings", "section", "missing"),
    [
        ("[mqtt]\nhost = '0.0.0.0'\n", "mqtt", "without TLS and authentication"),
        (_USERS + "[mqtt]\nhost = '0.0.0.0'\n", "mqtt", "without TLS;"),
        ("[ws]\nport = '0.0.0.0:0'\n", "ws", "without TLS and authentication"),
        ("[mqtts]\nport = '0.0.0.0:0'\n", "mqtts", "without authentication"),
        ("[mqtts]\nport = '[::]:0'\n", "mqtts", "without authentication"),
        ("[wss]\nport = '192.0.2.1:0'\n", "wss", "without authentication"),
        ("[mqtts]\nport = '0.0.0.0:0'\nclient_certificate = 'optional'\n", "mqtts", "without authentication"),
        (_FURTHER + "'tls'\n", "mqtt.listeners.x", "without authentication"),
        (_FURTHER + "'tcp'\n", "mqtt.listeners.x", "without TLS and authentication"),
        (_FURTHER + "'ws'\n" + _USERS, "mqtt.listeners.x", "without TLS;"),
    ],
)
def test_a_listener_beyond_loopback_has_tls_and_authentication(
    tmp_path: Path, settings: str, section: str, missing: str
) -> None:
    said = refusal(tmp_path, settings)
    assert f"{section}.host" in said
    assert missing in said
    assert f"{section}.insecure = true" in said


@pytest.mark.parametrize(
    "settings",
    [
        "[mqtt]\nhost = '0.0.0.0'\ninsecure = true\n",
        "[ws]\nport = '0.0.0.0:0'\ninsecure = true\n",
        "[mqtts]\nport = '0.0.0.0:0'\ninsecure = true\n",
        "[wss]\nport = '0.0.0.0:0'\ninsecure = true\n",
        "[mqtts]\nport = '0.0.0.0:0'\nclient_certificate = 'required'\n",
        "[mqtts]\nport = '0.0.0.0:0'\nclient_ca = 'ca.pem'\n",
        _USERS + "[mqtts]\nport = '0.0.0.0:0'\n[wss]\nport = '0.0.0.0:0'\n",
        "[mqtts]\nport = 0\n[ws]\nport = 0\n[wss]\nport = '127.0.0.2:0'\n",
        _FURTHER + "'tls'\nclient_ca = 'ca.pem'\n",
    ],
)
def test_a_listener_that_is_safe_or_says_that_it_is_not_may_start(tmp_path: Path, settings: str) -> None:
    load(tmp_path, settings)


def test_stream_declaration(tmp_path: Path) -> None:
    text = (
        '[streams.t]\ntopic = "dt/{site}/{device}/x"\ntime = "ts"\nlateness = "1h"\n'
        'fields = { a = "double", rssi = { type = "bigint", path = "radio.rssi" } }\n'
    )
    stream = load(tmp_path, text).streams["t"]
    assert stream.captures == ["site", "device"]
    assert stream.key_column == "device"
    assert stream.lateness == 3_600_000_000
    assert stream.fields["rssi"].path == "radio.rssi"


@pytest.mark.parametrize(
    ("topic", "fields", "key"),
    [
        ("a/{device}/{sensor}", '{ x = "double" }', "device"),
        ("a/{plant}/{line}", '{ x = "double" }', "line"),
        ("a/b", '{ device = "string" }', "device"),
        ("a/b", '{ x = "double" }', None),
    ],
)
def test_key_defaults(tmp_path: Path, topic: str, fields: str, key: str | None) -> None:
    settings = load(tmp_path, f'[streams.t]\ntopic = "{topic}"\nfields = {fields}\n')
    assert settings.streams["t"].key_column == key


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[mqtt]\nprot = 1\n", "mqtt.prot: unknown key; did you mean 'port'?"),
        ("[mqt]\nport = 1\n", "mqt: unknown key; did you mean 'mqtt'?"),
        ("[mqtt]\nport = 70000\n", "mqtt.port: Input should be less than or equal to 65535 (found 70000)"),
        (
            '[log]\ndurability = "never"\n',
            "log.durability: Input should be 'sync' or 'async' (found 'never')",
        ),
        ('[log]\nkind = "kafka"\n', "log.kind: Input should be 'embedded' (found 'kafka')"),
        ('[store]\nflush_interval = "10 minutes"\n', "is no duration; write a number with ms, s, m, h or d"),
        ("x = \n", "reading configuration"),
        ('[streams.t]\ntopic = "a"\n', "streams.t.fields: is required"),
        ('[streams.t]\ntopic = "a"\nfields = {}\n', "at least one declared field"),
        ('[streams.t]\ntopic = "a/{x"\nfields = { y = "double" }\n', "level '{x' is neither text"),
        ('[streams.t]\ntopic = "a/#/b"\nfields = { y = "double" }\n', "level '#' is neither text"),
        ('[streams.t]\ntopic = "$SYS/a"\nfields = { y = "double" }\n', "`$` topics belong to the server"),
        ('[streams.t]\ntopic = "a/{x}/{x}"\nfields = { y = "double" }\n', "captures a name twice"),
        (
            '[streams.t]\ntopic = "a/{x}"\nbooks = ["y"]\nfields = { y = "double" }\n',
            "books: 'y' is no captured level; there are ['x']",
        ),
        ('[streams.t]\ntopic = "a"\nfields = { ts = "double" }\n', "column 'ts' is reserved"),
        ('[streams.t]\ntopic = "a"\nfields = { Y = "double" }\n', "a name is lower-case letters"),
        ('[streams.t]\ntopic = "a"\nfields = { y = "binary" }\n', "JSON holds no binary"),
        (
            '[streams.t]\ntopic = "a"\nkey = "z"\nfields = { y = "double" }\n',
            "key 'z' is neither a captured level",
        ),
        ('[streams.t]\ntopic = "a"\nkey = "y"\nfields = { y = "double" }\n', "a key must be a string"),
        (STREAM + '[queries.t]\nsql = "SELECT 1"\n', "'t' is both a stream and a query"),
        (
            STREAM + '[alarms.a]\non = "tt"\nwhere = "x > 1"\n',
            "'tt' is no stream or query; did you mean 't'?",
        ),
        (STREAM + '[alarms.a]\non = "t"\nwhere = "x"\nnotify = ["ops"]\n', "'ops' is no [notify.*] target"),
        (STREAM + '[alarms.a]\non = "t"\n', "alarms.a: an alarm needs where, any, all, steps or silent"),
        (
            STREAM + '[alarms.a]\non = "t"\nwhere = "y > 1"\nany = ["y > 2"]\n',
            "where and any: an alarm has one of",
        ),
        (STREAM + '[alarms.a]\non = "t"\nsilent = "5m"\nfor = "1m"\n', "for: an alarm with silent"),
        (
            STREAM + '[alarms.a]\non = "t"\nwhere = "y > 1"\nrepeat = { count = 4, of = 3 }\n',
            "alarms.a.repeat: repeat: 4 of the last 3 rows can never be true",
        ),
        (
            STREAM
            + '[alarms.a]\non = "t"\nsteps = [{ where = "y > 2", severity = "major" }, { where = "y > 1", '
            'severity = "minor" }]\n',
            "each step must be more severe",
        ),
        (
            STREAM + '[alarms.a]\non = "t"\nwhere = "y > 1"\nschedule = { zone = "Mars" }\n',
            "alarms.a.schedule.0.zone: 'Mars' is no time zone",
        ),
        (
            STREAM + '[alarms.a]\non = "t"\nwhere = "y > 1"\nlabels = { severity = "x" }\n',
            "labels: 'severity': a label is",
        ),
        ('[streams.dead_letters]\ntopic = "a"\nfields = { y = "double" }\n', "is a table of the product"),
    ],
)
def test_mistake_names_key_value_and_remedy(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refusal(tmp_path, text)


def test_open_listener_must_be_asked_for_in_so_many_words(tmp_path: Path) -> None:
    assert "mqtt.insecure = true" in refusal(tmp_path, "", "mqtt.host=0.0.0.0")
    assert "http.insecure = true" in refusal(tmp_path, "", "http.host=0.0.0.0")
    assert load(tmp_path, "", "mqtt.host=0.0.0.0", "mqtt.insecure=true").mqtt.insecure


def test_override_without_value_is_refused(tmp_path: Path) -> None:
    assert "write section.key=value" in refusal(tmp_path, "", "mqtt.port")


def test_commented_config_is_a_working_config(tmp_path: Path) -> None:
    settings = load(tmp_path, reference.commented_config())
    assert list(settings.streams) == ["telemetry"]
    assert list(settings.alarms) == ["overheat"]


def test_every_default_of_the_commented_config_is_accepted(tmp_path: Path) -> None:
    uncommented = [
        line.removeprefix("# ").split("  # ")[0]
        for line in reference.commented_config().split(reference.EXAMPLE)[1].splitlines()
    ]
    assert load(tmp_path, "\n".join(uncommented)) == config.load(None, (), {})


@given(st.integers(min_value=0, max_value=10**6), st.sampled_from(["ms", "s", "m", "h", "d"]))
def test_duration_is_its_number_times_its_unit(number: int, unit: str) -> None:
    unit_us = {"ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}[unit]
    assert declarations.parse_duration_us(f"{number}{unit}") == number * unit_us
