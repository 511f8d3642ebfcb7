import os
import stat

import pytest

from crnn.atomic import atomic_write, check_writable


def test_replaces_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    path.chmod(0o640)
    with atomic_write(path) as stream:
        stream.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["file.bin"]


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old", encoding="utf-8")

    def interrupted():
        with atomic_write(path, "w") as stream:
            stream.write("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    assert path.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_links_are_followed(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with atomic_write(tmp_path / "link") as stream:
        stream.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_text_is_utf8_with_plain_newlines(tmp_path):
    with atomic_write(tmp_path / "t", "w") as stream:
        stream.write("ü\n")
    assert (tmp_path / "t").read_bytes() == "ü\n".encode()


def test_wrong_mode(tmp_path):
    with pytest.raises(ValueError, match="mode"), atomic_write(tmp_path / "t", "a"):
        pass


def test_check_writable(tmp_path):
    assert check_writable(tmp_path / "new") == tmp_path / "new"
    assert os.listdir(tmp_path) == []
    with pytest.raises(IsADirectoryError, match=r"out: .* is a folder"):
        check_writable(tmp_path, "out")
    with pytest.raises(FileNotFoundError, match=r"out: the folder .*missing does not exist"):
        check_writable(tmp_path / "missing" / "m", "out")
    with pytest.raises(OSError, match="out"):
        check_writable("/proc/new-file", "out")


def test_devices_and_pipes_are_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link", os.devnull):
        with pytest.raises(OSError, match=r"what: .* is a device or a pipe"):
            check_writable(path, "what")
        with pytest.raises(OSError, match="is a device or a pipe"), atomic_write(path) as stream:
            stream.write(b"x")
    assert pipe.is_fifo()
