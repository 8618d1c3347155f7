"""The section of the gateway: its plain listener, what it grants and its limits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from headwater.declarations import DurationUs
from headwater.listeners import CONNECT_RATE, ListenerSection, ListenerSettings


class MqttSettings(ListenerSection):
    """The MQTT listener and its limits."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(1883, ge=0, le=65535, description="TCP port; 0 picks a free one.")
    insecure: bool = Field(
        False,
        description="Allows a listener beyond loopback that lacks TLS or authentication.",
    )
    threads: int = Field(0, ge=0, le=64, description="Event-loop threads; 0: one per core.")
    max_connections: int = Field(
        1_000_000, gt=0, description="Connections at a time; more are closed as soon as they come."
    )
    max_connect_rate: int | None = CONNECT_RATE
    max_message_rate: int | None = Field(
        None,
        ge=0,
        le=10_000_000,
        description="PUBLISH packets a second of one client; beyond it the client is read no faster. 0: no bound; "
        "absent: 10000, on loopback no bound.",
    )
    max_byte_rate: int | None = Field(
        None,
        ge=0,
        le=1 << 31,
        description="The same in bytes. 0: no bound; absent: 16777216, on loopback no bound.",
    )
    flapping_connects: int | None = Field(
        None,
        ge=0,
        le=1_000_000,
        description="CONNECTs of one client id from one address within `flapping_window`; further ones are refused "
        "with 0x9F (3.1.1: 3) for `flapping_ban`. 0: no bound; absent: 60, on loopback no bound.",
    )
    max_takeovers: int | None = Field(
        None,
        ge=0,
        le=1_000_000,
        description="How often connections may take one client id from each other within `flapping_window`; then the "
        "one that is connected stays, others get 0x9F (3.1.1: 3) for `flapping_ban`. 0: no bound; absent: 10, on "
        "loopback no bound.",
    )
    flapping_window: DurationUs = Field(
        60_000_000, ge=1_000_000, le=86_400_000_000, description="Time within which both are counted."
    )
    flapping_ban: DurationUs = Field(
        300_000_000, ge=1_000_000, le=86_400_000_000, description="How long a client is refused then."
    )
    max_keep_alive_s: int = Field(65535, ge=1, le=65535, description="Longest keep alive granted, seconds.")
    first_packet_timeout_s: int = Field(
        10, ge=1, description="A connection without CONNECT is closed after this."
    )
    receive_maximum: int = Field(
        1000, ge=1, le=65535, description="Unacknowledged messages of QoS 1 and 2 per MQTT 5 client."
    )
    maximum_qos: Literal[0, 1, 2] = Field(2, description="Highest QoS accepted.")
    topic_alias_maximum: int = Field(
        32, ge=0, le=1024, description="Topic aliases that an MQTT 5 client may set; 0: none."
    )
    max_session_expiry_s: int = Field(
        604_800,
        ge=0,
        le=0xFFFF_FFFF,
        description="Longest time that a session outlives its connection, seconds; 4294967295: no bound; 0: none does.",
    )
    max_sessions: int = Field(
        1_000_000,
        ge=0,
        description="Sessions kept for clients that are away; beyond it a new one ends with its connection.",
    )
    durable_sessions: bool = Field(
        True,
        description="Whether sessions survive a restart, `kill -9` and power loss; else they are in memory alone.",
    )
    retain_available: bool = Field(True, description="Whether retained messages are accepted.")
    max_retained_messages: int = Field(1_000_000, gt=0, description="Retained messages kept; more get 0x97.")
    max_retained_bytes: int = Field(256 << 20, gt=0, description="Bytes of retained messages kept.")
    max_payload_bytes: int = Field(
        128 << 10,
        gt=0,
        description="Largest payload; a larger one is refused (MQTT 5, QoS 1: PUBACK 0x97) or ends the connection.",
    )
    max_packet_bytes: int = Field(
        256 << 10, gt=0, description="Largest packet; a larger one ends the connection."
    )
    max_queued_messages: int = Field(
        1000,
        gt=0,
        description="Messages waiting for one slow or absent subscriber; further ones are dropped and counted.",
    )
    max_queued_bytes: int = Field(
        4 << 20, gt=0, description="Bytes waiting for one slow or absent subscriber."
    )
    max_total_queued_bytes: int = Field(
        256 << 20,
        ge=1024,
        description="Bytes waiting for all slow and absent subscribers together; further ones are dropped and counted.",
    )
    max_subscriptions: int = Field(1000, gt=0, description="Subscriptions of one client; more get 0x97.")
    max_topic_levels: int = Field(32, gt=0, le=128, description="Levels of a topic; deeper ones are invalid.")
    max_topic_bytes: int = Field(
        65_535, gt=0, le=65_535, description="Length of a topic or filter, bytes; longer ones are invalid."
    )
    max_inflight_bytes: int = Field(
        64 << 20,
        ge=2 << 20,
        description="Messages read and not yet durable, bytes; above it sockets stay unread.",
    )
    io_uring: bool = Field(
        True,
        description="Acknowledgements of a pass leave in one system call where the kernel (5.18 or newer) allows it.",
    )
    shed_after: DurationUs = Field(
        5_000_000,
        description="QoS 0 messages are dropped and counted when sockets stayed unread for so long; 0s: never.",
    )
    sys_interval: DurationUs = Field(
        10_000_000, description="How often the topics below `$SYS` are published; 0s: never."
    )
    listeners: list[ListenerSettings] = Field(
        default_factory=list, description="Further listeners, as tables `[[mqtt.listeners]]`."
    )
