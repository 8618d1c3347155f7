"""Schemas of tests, in one line each."""

from headwater.records import FIRST_USER_STREAM, Column, ColumnType, Schema


def table(name: str, columns: str, number: int = FIRST_USER_STREAM, key: str = "device") -> Schema:
    """A stream's schema.

    columns: name and type of each: `device string, ts timestamp`
    number:  of the stream, and of the schema

    >>> table("t", "device string, x double").columns[1].type.value
    'double'
    """
    pairs = (each.split() for each in columns.split(","))
    return Schema(
        number, number, name, tuple(Column(column, ColumnType(type_)) for column, type_ in pairs), key
    )
