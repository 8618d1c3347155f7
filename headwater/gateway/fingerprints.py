"""Client certificates: who holds the certificate with this SHA-256 fingerprint, from a table in a file."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Final

from headwater.gateway.identity import Login, Reason, Refusal, Verdict, identity_of
from headwater.gateway.recordfile import RecordFile, Records
from headwater.security import CertificateSettings

KIND: Final = "certificates"
#: Lower-case hex SHA-256 of the certificate's DER, as AWS IoT's certificateId is.
FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")


class Certificates:
    """The source `certificates`. The listener has verified chain, validity and revocation list before.

    default: the table's file where the settings name none
    raises:  IdentityError
    """

    name = "certificates"

    def __init__(self, settings: CertificateSettings, default: Path) -> None:
        self._accept_unknown = settings.unknown == "accept"
        path = settings.file or default
        # With a table that may not be there, certificates that it lacks are accepted.
        missing = settings.file is None and self._accept_unknown and not path.exists()
        self._file = None if missing else RecordFile(path, KIND, _check)

    def identify(self, login: Login) -> Verdict | None:
        """The holder of the login's certificate; a login without one is another source's."""
        if login.fingerprint is None:
            return None
        record, line = self._file.find(login.fingerprint) if self._file is not None else (None, None)
        if record is None:
            if not self._accept_unknown or not login.common_name:
                return Refusal(Reason.NOT_AUTHORIZED, f"certificate {login.fingerprint} is not in the table")
            record = {"name": login.common_name}
        if record.get("status", "active") != "active":
            return Refusal(Reason.NOT_AUTHORIZED, f"certificate {login.fingerprint} is {record['status']}")
        name = record["name"]
        found = identity_of(record, name, f"certificate {login.fingerprint}")
        vouched = login.client_id in (name, login.common_name)
        thing = login.client_id if vouched else ""
        return replace(found, thing=thing, line=line)

    def changed(self) -> tuple[int, dict[str, int]] | None:
        """Marks of all certificates of the table, where it has changed."""
        return self._file.changed() if self._file is not None else None

    def close(self) -> None:
        """Nothing is open."""


def _check(records: Records) -> None:
    for fingerprint, record in records.items():
        if not FINGERPRINT.fullmatch(fingerprint):
            raise ValueError(f"{fingerprint!r} is no fingerprint; it has 64 digits 0-9 and a-f")
        name = record.get("name")
        if not isinstance(name, str) or not name:
            raise ValueError(f"certificate {fingerprint}: name must be a text")
        if record.get("status", "active") not in ("active", "inactive", "revoked"):
            raise ValueError(f"certificate {fingerprint}: status is active, inactive or revoked")
        identity_of(record, name, f"certificate {fingerprint}")
