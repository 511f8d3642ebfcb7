"""The event file that TensorBoard reads, for scalars: records of length, checksum, protocol-buffer message, checksum.

Formats: TFRecord (masked CRC-32C), and the messages Event and Summary of TensorFlow's event.proto and summary.proto.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

__all__ = ["EventFile", "crc32c"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types

_LARGEST = 3.4028234e38  # float32, which is what TensorBoard stores


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """The Castagnoli checksum (RFC 3720)."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def _masked(data: bytes) -> bytes:
    """TFRecord stores checksums rotated by 15 bits and offset, so that a checksum of checksums stays useful."""
    value = crc32c(data)
    return struct.pack("<I", (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _key(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


def _message(number: int, payload: bytes) -> bytes:
    return _key(number, _BYTES) + _varint(len(payload)) + payload


class EventFile:
    """An event file that grows record by record; each record is flushed.

    Parameters
    ----------
    folder
        Where to make it; made itself where it is missing.

    Raises
    ------
    OSError
        The folder or the file cannot be made.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        stamp = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        number = 0
        while (target / f"{stamp}.{number}").exists():
            number += 1
        self.path = target / f"{stamp}.{number}"
        self._stream = open(self.path, "xb")  # noqa: SIM115  stays open until close()
        self._record(_message(3, b"brain.Event:2"))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add tag -> value at a step."""
        summary = b"".join(
            _message(1, _message(1, tag.encode()) + _key(2, _FIXED32) + struct.pack("<f", min(value, _LARGEST)))
            for tag, value in values.items()
        )
        self._record(_key(2, _VARINT) + _varint(step) + _message(5, summary))

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _record(self, event: bytes) -> None:
        event = _key(1, _FIXED64) + struct.pack("<d", time.time()) + event
        length = struct.pack("<Q", len(event))
        self._stream.write(length + _masked(length) + event + _masked(event))
        self._stream.flush()
