"""Schemas of all tables, planned from the settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from headwater import config
from headwater.errors import ConfigError
from headwater.schemas import planned

STREAM = '[streams.t]\ntopic = "dt/{device}"\nfields = { x = "double" }\n[queries.q]\n'
SESSION = (
    "SELECT device, COUNT(*) AS n FROM TABLE(SESSION(TABLE t PARTITION BY device, DESCRIPTOR(ts), "
    "INTERVAL '1' MINUTE)) GROUP BY device, window_start, window_end"
)


def load(tmp_path: Path, text: str) -> config.Settings:
    path = tmp_path / "headwater.toml"
    path.write_text(text, encoding="utf-8")
    return config.load(path, (), {})


MATCH = (
    "SELECT * FROM t MATCH_RECOGNIZE (PARTITION BY device ORDER BY ts MEASURES B.x AS x PATTERN (A B) "
    "WITHIN INTERVAL '1' MINUTE DEFINE A AS A.x > 1)"
)


HAVING = (
    "SELECT device, COUNT(*) AS n FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' MINUTE)) "
    "GROUP BY device, window_start, window_end HAVING COUNT(*) > 1"
)


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        (SESSION, "bounds, which name its row, change"),
        (MATCH, "no result before it is complete"),
        (HAVING, "HAVING could become untrue"),
    ],
)
def test_a_query_whose_rows_are_not_replaced_has_no_early_results(tmp_path: Path, sql: str, why: str) -> None:
    text = f'{STREAM}sql = "{sql}"\nearly = "10s"\n'
    with pytest.raises(ConfigError, match=rf"queries\.q\.early: found 10 s, but .*{why}"):
        planned(load(tmp_path, text))
    if sql == HAVING:
        planned(load(tmp_path, text.replace(" HAVING COUNT(*) > 1", "")))


@pytest.mark.parametrize(
    ("sql", "why"), [(SESSION, "would change the bounds"), (MATCH, "would change which rows match")]
)
def test_a_result_that_cannot_be_amended_refuses_to_be(tmp_path: Path, sql: str, why: str) -> None:
    text = f'{STREAM}sql = "{sql}"\n'
    tables, plans = planned(load(tmp_path, text))
    assert plans["q"].final is not None
    assert tables["q"].key == "device"
    planned(load(tmp_path, text + 'late = "drop"\n'))
    with pytest.raises(ConfigError, match=rf"queries\.q\.late: found 'amend', but a late row {why}"):
        planned(load(tmp_path, text + 'late = "amend"\n'))
