"""TensorBoard's event files, read back from the format's description."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from crnn.tensorboard import EventFile, crc32c


def test_castagnoli_checksums() -> None:
    # RFC 3720, B.4
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"123456789") == 0xE3069283


def events(path: Path) -> list[dict]:
    """A reader of event files, written from the format's description."""

    def varint(data: bytes, at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            value |= (data[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 0x80:
                return value, at

    def fields(data: bytes) -> list[tuple[int, bytes | int]]:
        found, at = [], 0
        while at < len(data):
            key, at = varint(data, at)
            if key & 7 == 0:
                value, at = varint(data, at)
            else:
                size = {1: 8, 5: 4}.get(key & 7)
                if size is None:
                    size, at = varint(data, at)
                value, at = data[at : at + size], at + size
            found.append((key >> 3, value))
        return found

    def masked(data: bytes) -> int:
        crc = crc32c(data)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    content, found = path.read_bytes(), []
    while content:
        length, check = struct.unpack("<QI", content[:12])
        assert check == masked(content[:8])
        payload = content[12 : 12 + length]
        assert struct.unpack("<I", content[12 + length : 16 + length]) == (masked(payload),)
        content = content[16 + length :]
        event = {"step": 0, "values": {}}
        for number, value in fields(payload):
            if number == 1:
                event["time"] = struct.unpack("<d", value)[0]
            elif number == 2:
                event["step"] = value
            elif number == 3:
                event["version"] = value.decode()
            else:
                assert number == 5
                for one, body in fields(value):
                    assert one == 1
                    parts = dict(fields(body))
                    event["values"][parts[1].decode()] = struct.unpack("<f", parts[2])[0]
        found.append(event)
    return found


def test_event_files_do_not_overwrite_each_other_and_hold_large_numbers(tmp_path) -> None:
    files = [EventFile(tmp_path) for _ in range(2)]
    for number, file in enumerate(files):
        file.scalars(300 + number, {"huge": 1e300, "small": -0.5})
        file.close()
    assert len(list(tmp_path.iterdir())) == 2
    assert events(files[1].path)[1]["step"] == 301
    assert events(files[1].path)[1]["values"] == {"huge": pytest.approx(3.4028234e38), "small": -0.5}


def test_tensorboard_itself_reads_the_file(tmp_path) -> None:
    pytest.importorskip("tensorboard", reason="TENSORBOARD IS NOT INSTALLED: its own reader was NOT tried")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    file = EventFile(tmp_path)
    file.scalars(5, {"loss/train": 2.5})
    file.close()
    reader = EventAccumulator(str(tmp_path))
    reader.Reload()
    [event] = reader.Scalars("loss/train")
    assert (event.step, event.value) == (5, 2.5)
