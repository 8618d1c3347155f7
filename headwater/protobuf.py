"""Protocol Buffers descriptors, as far as a stream's declaration needs them while it is read.

The gateway compiles the same descriptor again when it starts; both are one function in Rust.
"""

from __future__ import annotations

from headwater._native import check, message_fields

__all__ = ["check", "message_fields"]
