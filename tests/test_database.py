"""The database: registry, offsets, and transactions that hold both or neither."""

from pathlib import Path

import pytest
import sqlalchemy as sa

from headwater import database as db
from headwater.errors import DataDirectoryError
from headwater.records import FIRST_USER_STREAM, OWN_SCHEMAS, Column, ColumnType

DOUBLE = Column("x", ColumnType.DOUBLE)
BIGINT = Column("x", ColumnType.BIGINT)


@pytest.fixture
def database(tmp_path: Path) -> db.Database:
    return db.Database.in_directory(tmp_path, None)


def test_schema_is_registered_once_and_found_again(tmp_path: Path, database: db.Database) -> None:
    with database.begin() as connection:
        first = db.register(connection, "t", [DOUBLE], None)
        again = db.register(connection, "t", [DOUBLE], None)
        wider = db.register(connection, "t", [DOUBLE, Column("y", ColumnType.STRING)], "y")
    assert first == again
    assert first.stream == wider.stream == FIRST_USER_STREAM
    assert wider.id != first.id
    database.close()
    reopened = db.Database.in_directory(tmp_path, None)
    with reopened.read() as connection:
        assert db.schemas(connection) == [*OWN_SCHEMAS, first, wider]


def test_field_never_changes_type(database: db.Database) -> None:
    with database.begin() as connection:
        db.register(connection, "t", [DOUBLE], None)
        known = db.schemas(connection)
    assert "field 'x' is declared bigint but was double" in (db.conflict(known, "t", [BIGINT]) or "")
    assert db.conflict(known, "other", [BIGINT]) is None
    assert db.conflict(known, "t", [DOUBLE]) is None


def test_offsets_are_those_last_committed(database: db.Database) -> None:
    with database.begin() as connection:
        assert db.load_offsets(connection, "store", 16) == ()
        db.save_offsets(connection, "store", 16, (1, 2, 3))
    with database.begin() as connection:
        db.save_offsets(connection, "store", 16, (4, 5, 6))
        db.save_offsets(connection, "alarms", 16, (9,))
    with database.read() as connection:
        assert db.load_offsets(connection, "store", 16) == (4, 5, 6)
        assert db.load_offsets(connection, "alarms", 16) == (9,)


def test_failed_transaction_leaves_nothing(database: db.Database) -> None:
    def fail(connection: sa.Connection) -> None:
        db.save_offsets(connection, "store", 16, (1,))
        raise RuntimeError

    with pytest.raises(RuntimeError), database.begin() as connection:
        fail(connection)
    with database.read() as connection:
        assert db.load_offsets(connection, "store", 16) == ()


def test_reader_does_not_wait_for_a_writer(database: db.Database) -> None:
    with database.begin() as writer, database.read() as reader:
        db.save_offsets(writer, "store", 16, (1,))
        assert db.load_offsets(reader, "store", 16) == ()


def test_commit_is_synced(database: db.Database) -> None:
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def test_a_database_of_before_gets_what_it_lacks(tmp_path: Path, database: db.Database) -> None:
    with database.begin() as connection:
        for table in ("alarm_rows", "alarm_clocks"):
            connection.exec_driver_sql(f"DROP TABLE {table}")
        connection.exec_driver_sql("ALTER TABLE alarm_states DROP COLUMN memory")
        connection.execute(sa.update(db.VERSION).values(version=1))
    database.close()
    again = db.Database.in_directory(tmp_path, None)
    with again.read() as connection:
        for table in (db.ALARM_STATES, db.ALARM_ROWS, db.ALARM_CLOCKS):
            assert connection.execute(sa.select(table)).all() == []
        assert connection.scalar(sa.select(db.VERSION.c.version)) == len(db.MIGRATIONS)
    again.close()


def test_newer_database_is_refused(tmp_path: Path, database: db.Database) -> None:
    with database.begin() as connection:
        connection.execute(sa.update(db.VERSION).values(version=99))
    database.close()
    with pytest.raises(DataDirectoryError, match="it has version 99"):
        db.Database.in_directory(tmp_path, None)


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "headwater.db").write_bytes(b"no database, certainly" * 100)
    with pytest.raises(DataDirectoryError, match="opening the database"):
        db.Database.in_directory(tmp_path, None)
