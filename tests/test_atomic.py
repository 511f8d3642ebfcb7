import os
import stat
import time

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


def test_the_longest_names_can_be_written(tmp_path):
    for name in ("m" * 255, "\N{SNAKE}" * 63):
        check_writable(tmp_path / name, "out")
        with atomic_write(tmp_path / name) as stream:
            stream.write(b"new")
        assert (tmp_path / name).read_bytes() == b"new"
    with pytest.raises(OSError, match=r"out: cannot write .*mm: File name too long"):
        check_writable(tmp_path / ("m" * 256), "out")
    with pytest.raises(OSError, match=r"cannot write .*mm: File name too long"), atomic_write(tmp_path / ("m" * 256)):
        pass
    assert len(os.listdir(tmp_path)) == 2


def test_links_that_go_round_in_circles(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match=r"out: cannot write .*a: Too many levels of symbolic links"):
        check_writable(tmp_path / "a", "out")
    with pytest.raises(OSError, match=r"cannot write .*a: Too many levels"), atomic_write(tmp_path / "a") as stream:
        stream.write(b"x")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_what_killed_writers_left_of_the_same_file_goes_after_an_hour(tmp_path):
    old = time.time() - 4000.0
    for name, when in (
        (".m[1].17.0123abcd.part", old),
        (".m[1].18.0123abcd.part", None),
        (".m1.17.0123abcd.part", old),
        (".m[1].mine.part", old),
    ):
        (tmp_path / name).write_bytes(b"half")
        if when is not None:
            os.utime(tmp_path / name, (when, when))
    with atomic_write(tmp_path / "m[1]") as stream:
        stream.write(b"new")
    assert sorted(os.listdir(tmp_path)) == [".m1.17.0123abcd.part", ".m[1].18.0123abcd.part", ".m[1].mine.part", "m[1]"]
