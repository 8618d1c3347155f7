"""Texts as whole numbers in the same order, where the texts are as alike as names of devices are.

Hashing and comparing a million different names costs more than all else in writing a file. Most names share all their
bytes but a few, and these few take few values (digits), so a name is a number of a mixed base: one digit per byte that
varies, whose base is the range of that byte.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

#: Longest text that is numbered, bytes: every row costs that many steps. Ours.
_MAX_BYTES: Final = 64


def numbers(texts: pa.Array, limit: int) -> npt.NDArray[np.int64] | None:
    """One number per text: equal where the texts are equal, and else in the order of their bytes.

    texts: strings
    limit: every number is below it
    gives: None where there is a NULL, a NUL byte or a long text, or where the texts are not alike enough for `limit`

    >>> numbers(pa.array(["pump-07", "pump-12", "pump-07"]), 100).tolist()
    [0, 6, 0]
    """
    if not len(texts) or texts.null_count or texts.type != pa.string():
        return None
    _, offsets_buffer, bytes_buffer = texts.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    lengths = np.diff(offsets)
    shortest, longest = int(lengths.min()), int(lengths.max())
    if longest > _MAX_BYTES:
        return None
    data = np.frombuffer(bytes_buffer or b"", np.uint8)[: offsets[-1]]
    # Shorter texts are filled up with zeros, so no text may hold one.
    if shortest != longest and not data[offsets[0] :].all():
        return None
    starts = offsets[:-1].astype(np.int64)
    alike = data[offsets[0] :].reshape(len(texts), longest) if shortest == longest else None
    found = np.zeros(len(texts), np.int64)
    count = 1
    for at in range(longest):
        if alike is not None:
            digit = alike[:, at]
        else:
            # Below the start of the next text, or clipped to some byte that is not looked at.
            digit = data[np.minimum(starts + at, len(data) - 1)]
            if at >= shortest:
                digit = np.where(at < lengths, digit, 0)
        low = int(digit.min())
        base = int(digit.max()) - low + 1
        if base == 1:
            continue
        count *= base
        if count > limit:
            return None
        found *= base
        found += digit
        found -= low
    return found
