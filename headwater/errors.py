"""Every exception that Headwater raises on purpose.

    HeadwaterError
    ├── ConfigError          the configuration is wrong: names the key, the value found and the remedy
    ├── DataDirectoryError   the data directory is in use, unreadable or from a newer version
    ├── LogError             the durable log
    │   ├── LogFullError     disk or bound reached: nothing was stored, try again later
    │   └── LogCorruptError  stored bytes fail their checksum: names segment and byte
    ├── IdentityError        a file or key set of identities cannot be read or written
    ├── ListenError          a listener cannot be opened: names the address and who to ask
    ├── SqlError             SQL that is not accepted: names position and reason
    ├── QueryLimitError      a query ran into its time, row or memory limit
    ├── RecordError          a record does not fit its stream: names field and value
    ├── StoreError           the table store
    ├── NotFoundError        a stream, alarm, dead letter or shadow that does not exist
    ├── TraceError           a trace that cannot begin: no filter, or too many run
    ├── ConflictError        a change of an object that is not allowed as things are
    ├── OutdatedError        a change of an object, or a plan, that somebody else has changed since
    ├── AlarmStateError      an action that an alarm's state does not allow
    └── ShadowError          a refused shadow request, with the AWS error code

Messages say what was attempted, on what, what was found, and how to fix it.
"""

from __future__ import annotations


class HeadwaterError(Exception):
    """Base of all exceptions raised on purpose."""


class ConfigError(HeadwaterError):
    """The configuration is wrong."""


class DataDirectoryError(HeadwaterError):
    """The data directory cannot be used."""


class LogError(HeadwaterError):
    """The durable log failed."""


class LogFullError(LogError):
    """The log accepts nothing now: disk full, or its bound reached. Nothing was stored."""


class LogCorruptError(LogError):
    """Stored bytes of the log fail their checksum."""


class IdentityError(HeadwaterError):
    """A file, key set or certificate authority of identities cannot be read or written."""


class ListenError(HeadwaterError):
    """A listener cannot be opened."""


class SqlError(HeadwaterError):
    """SQL that is not accepted.

    position: 0-based character offset into the text, None where no place can be named
    """

    def __init__(self, message: str, position: int | None = None) -> None:
        super().__init__(message)
        self.position = position


class QueryLimitError(HeadwaterError):
    """A query ran into its time, row or memory limit."""


class RecordError(HeadwaterError):
    """A record does not fit its stream."""


class TooLargeError(RecordError):
    """What was appended at once does not fit into a segment of the log; nothing of it was stored."""


class StoreError(HeadwaterError):
    """The table store failed."""


class NotFoundError(HeadwaterError):
    """What was asked for does not exist."""


class TraceError(HeadwaterError):
    """A trace that cannot begin."""


class ConflictError(HeadwaterError):
    """A change of a stream, query, alarm or route that is not allowed as things are."""


class OutdatedError(HeadwaterError):
    """The object or plan is not what it was when the change was asked for."""


class AlarmStateError(HeadwaterError):
    """An action that an alarm's state does not allow."""


class ShadowError(HeadwaterError):
    """A shadow request that is refused.

    code: the HTTP status AWS gives (400, 404, 409, 413, ...)
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
