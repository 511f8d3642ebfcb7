"""Atomic file writes: a reader sees the whole old file or the whole new one, never a part."""

from __future__ import annotations

import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

__all__ = ["atomic_write", "check_writable", "sync_folder"]

_SHOWN = 24  # characters of a file's name in its temporary file's: a name of the greatest length must leave room
_STALE = 3600.0  # seconds after which a temporary file that nobody wrote to is taken for a killed process's


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Flush a folder's entries to disk, so that a finished rename survives a power cut.

    Systems that cannot open a folder (Windows) keep their own promises; there this does nothing.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network and FUSE file systems refuse to sync a folder; the file itself is on disk already
    finally:
        os.close(descriptor)


def check_writable(path: str | os.PathLike[str], what: str = "path") -> Path:
    """Fail now rather than after an hour of training when `path` cannot be written.

    Parameters
    ----------
    path
        The file that will be written later. It need not exist, its folder must.
    what
        How the error message names the argument.

    Raises
    ------
    OSError
        The folder is missing, `path` is a folder, a device or a pipe, its name is too long, its symbolic links go round
        in a circle, or a file cannot be created beside it.
    """
    target = Path(path)
    real = _real(target, f"{what}: ")
    folder = real.parent
    if target.is_dir():
        raise IsADirectoryError(f"{what}: {target} is a folder, a file name was wanted")
    _refuse_devices(target, f"{what}: ")
    if not folder.is_dir():
        raise FileNotFoundError(f"{what}: the folder {folder} does not exist, so {target.name} cannot be written there")
    try:
        descriptor, probe = _create_beside(real)
    except OSError as error:
        raise type(error)(f"{what}: cannot write {target}: {error.strerror or error}") from error
    os.close(descriptor)
    os.unlink(probe)
    return target


def _real(path: str | os.PathLike[str], what: str = "") -> Path:
    """Where the symbolic links of `path` lead; OSError for a circle of them and for what no file can be called."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass  # a new file; a wrong folder is found when something is created in it
    except OSError as error:
        raise type(error)(f"{what}cannot write {os.fspath(path)}: {error.strerror or error}") from error
    return Path(os.path.realpath(path))


def _create_beside(target: Path) -> tuple[int, Path]:
    """A new temporary file in the folder of `target`, open for writing."""
    temporary = target.with_name(f".{target.name[:_SHOWN]}.{os.getpid()}.{secrets.token_hex(4)}.part")
    # os.open rather than tempfile: mkstemp makes private files, a model should get the permissions open() gives
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    return os.open(temporary, flags, 0o666), temporary


def _sweep(target: Path, now: float) -> None:
    """Remove what killed processes left of `target`; `now` by the clock of its file system.

    A writer may sit on another machine or in another container, where its process id says nothing. But it writes all
    the time, so age alone decides.
    """
    with suppress(OSError):
        for left in target.parent.glob(f".{glob.escape(target.name[:_SHOWN])}.[0-9]*.{'[0-9a-f]' * 8}.part"):
            if now - left.lstat().st_mtime > _STALE:
                left.unlink()


def _refuse_devices(target: Path, what: str = "") -> None:
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise OSError(f"{what}{target} is a device or a pipe, the name of a file was wanted")


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb", encoding: str | None = None) -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; on success it replaces `path`, on any error `path` stays as it was.

    The content is flushed and fsynced before the rename and the folder after it. Symbolic links are followed, and a
    file that is replaced keeps its permissions. A process that is killed leaves its temporary file, hidden; writing
    the same file more than an hour later removes it.

    Parameters
    ----------
    path
        Where the content should stand in the end.
    mode
        "wb" or "w".
    encoding
        For text; UTF-8 when not given.

    Yields
    ------
    IO
        The open temporary file.

    Raises
    ------
    OSError
        The file cannot be written, its symbolic links go round in a circle, or `path` is a device or a pipe, which a
        file must not replace.
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"mode: got {mode!r}, wanted 'wb' or 'w'")
    target = _real(path)
    _refuse_devices(target)
    descriptor, temporary = _create_beside(target)
    try:
        text = {"encoding": encoding or "utf-8", "newline": "\n"} if mode == "w" else {}
        with os.fdopen(descriptor, mode, **text) as stream:  # type: ignore[call-overload]
            _sweep(target, os.fstat(descriptor).st_mtime)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        if target.exists():
            os.chmod(temporary, target.stat().st_mode & 0o7777)
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_folder(target.parent)
