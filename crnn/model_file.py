"""One file holds a language model: weights, configuration and vocabulary, as ``.safetensors``.

The format is a length (8 bytes, little-endian), a JSON header of that length, and the tensors' bytes; any safetensors
reader finds the weights under the names of `LanguageModel.params`. The header's ``__metadata__`` holds strings:

===================  =================================================================================================
``format``           ``"crnn-language-model"``
``version``          of this layout, ``"1"`` or ``"2"``; a newer one is refused
``configuration``    JSON: the fields of `crnn.model_configuration.Configuration`
``vocabulary``       JSON: `Vocabulary.to_dict`; absent for a model over bare ids
``crc32``            of the tensors' bytes, in file order, as eight hexadecimal digits
``crnn``             the version of crnn that wrote the file
===================  =================================================================================================

Tied weights are stored once, as ``output.weight``. The same model always gives the same bytes.

A mappable file holds one tensor, ``parameters``: the buffer of `crnn.parameters.Parameters` as it lies in memory, with
its guard, from a multiple of 64 bytes on. Its metadata have one more string, ``layout``: JSON of where each tensor
starts in it. Its ``version`` is "2", so that a crnn that knows only named tensors refuses it by its version.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import zlib
from collections.abc import Collection, Mapping
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .atomic import atomic_write
from .language_model import LanguageModel
from .model_configuration import Configuration

if TYPE_CHECKING:
    from .text.vocabulary import Vocabulary

__all__ = ["FORMAT", "VERSION", "ModelFileError", "load", "read_configuration", "save"]

FORMAT = "crnn-language-model"
VERSION = 2  # the highest that is read; files of named tensors are of version 1
_NAMED, _MAPPABLE = 1, 2
_BUFFER = "parameters"
_LINE = 64  # bytes

_NAMES = {"float32": "F32", "float64": "F64"}


class ModelFileError(ValueError):
    """A file that is no model, a damaged one, or one of a newer version; the message names the file and the fault."""


def save(model: LanguageModel, path: str | os.PathLike[str], *, mappable: bool = False) -> None:
    """Write a model, atomically: `path` holds the whole old file or the whole new one at any moment.

    Parameters
    ----------
    model, path
        What, and where.
    mappable
        Write the weights as the kernels want them in memory, so that `load` can map the file.

    Raises
    ------
    ValueError
        A weight that is not finite: such a model is not worth a file, and must not replace a good one.
    OSError
        The file cannot be written. A file that was there stays as it was.
    """
    for name, view in model.parameters.items():
        if not np.isfinite(view).all():
            raise ValueError(f"{name} holds NaN or infinite weights, so the model is not written to {os.fspath(path)}")
    metadata = {
        "format": FORMAT,
        "version": str(_MAPPABLE if mappable else _NAMED),
        "configuration": json.dumps(dataclasses.asdict(model.configuration)),
        "crnn": _crnn_version(),
    }
    if model.vocabulary is not None:
        metadata["vocabulary"] = json.dumps(model.vocabulary.to_dict())
    tensors: Mapping[str, NDArray[Any]] = model.parameters
    if mappable:
        metadata["layout"] = json.dumps(model.parameters.places)
        flat = model.parameters.flat
        tensors = {_BUFFER: np.concatenate([flat, np.zeros(model.parameters.guard, flat.dtype)])}
    with atomic_write(path) as stream:
        _write(stream, tensors, _NAMES[model.configuration.dtype], metadata)


def load(path: str | os.PathLike[str], *, mmap: bool = False) -> LanguageModel:
    """Read a model that `LanguageModel.save` wrote, on this or another machine.

    Parameters
    ----------
    path
        The file.
    mmap
        Map the weights instead of reading them: read-only, shared by all processes that map the file, there at once
        however large it is, and good for everything but training. The file must have been saved with ``mappable=True``,
        and its checksum is not looked at, which would read it all. A process that still uses the model while somebody
        overwrites the file in place (`save` does not: it replaces it) sees other weights.

    Returns
    -------
    LanguageModel
        With the same weights, bit by bit; its rng is fresh.

    Raises
    ------
    OSError
        The file cannot be read.
    crnn.model_file.ModelFileError
        It is no crnn model, is truncated or damaged, or needs a newer crnn. A ValueError.

    Examples
    --------
    >>> import crnn
    >>> crnn.LanguageModel(9, "lstm", hidden_size=5, rng=0).save("model.safetensors")
    >>> crnn.load("model.safetensors")
    LanguageModel(9 words one-hot, lstm 1 x 5, float32, 374 parameters)
    """
    with open(path, "rb") as stream:  # a missing or forbidden file is an OSError, not a damaged model
        if not stream.seekable():
            raise OSError(f"{os.fspath(path)}: a pipe or a device, but a model is read from a file")
    from safetensors import SafetensorError, safe_open

    name = os.fspath(path)
    try:
        with safe_open(name, framework="numpy") as file:
            return _map(file, name) if mmap else _read(file)
    except SafetensorError as error:
        raise ModelFileError(f"{name}: not a model file, or truncated or damaged ({error})") from None
    except ModelFileError as error:
        raise ModelFileError(f"{name}: {error}") from None


def _write(stream: IO[bytes], tensors: Mapping[str, NDArray[Any]], dtype: str, metadata: Mapping[str, str]) -> None:
    header: dict[str, Any] = {}
    start = 0
    for name, view in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(view.shape), "data_offsets": [start, start + view.nbytes]}
        start += view.nbytes
    header["__metadata__"] = {**metadata, "crc32": _checksum(tensors)}
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-(len(text) + 8) % _LINE)  # the tensors start on a cache line
    stream.write(len(text).to_bytes(8, "little"))
    stream.write(text)
    for view in tensors.values():
        stream.write(_plain(view).data)


def _read(file: Any) -> LanguageModel:
    metadata, version = _metadata(file)
    model = _model(metadata, _layout(metadata) if version == _MAPPABLE else file.keys())
    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    wrong = [f"{name} is {a.dtype}" for name, a in tensors.items() if a.dtype != model.dtype]
    if wrong:
        raise ModelFileError(f"damaged, its configuration says {model.dtype}, but {', '.join(wrong)}")
    if version == _MAPPABLE:
        _check_layout(metadata, model, {name: a.shape for name, a in tensors.items()})
        if not np.isfinite(tensors[_BUFFER]).all():
            raise ModelFileError("damaged, it holds weights that are not finite")
        model.parameters.flat[...] = tensors[_BUFFER][: model.parameters.flat.size]
    else:
        try:
            model.parameters.assign(tensors)
        except ValueError as error:
            raise ModelFileError(f"damaged, {error}") from None
    if _checksum(tensors if version == _MAPPABLE else model.parameters) != metadata.get("crc32"):
        raise ModelFileError("damaged, the weights do not match their checksum")
    return model


def _map(file: Any, path: str) -> LanguageModel:
    metadata, version = _metadata(file)
    if version != _MAPPABLE:
        raise ModelFileError("cannot be mapped, it holds one tensor a name: save the model with mappable=True")
    configuration, _ = _read_description(metadata)
    tensor = file.get_slice(_BUFFER) if _BUFFER in file.keys() else None  # noqa: SIM118
    shape = tuple(tensor.get_shape()) if tensor is not None else ()
    dtype = np.dtype(configuration.dtype).newbyteorder("<")
    if tensor is None or len(shape) != 1 or tensor.get_dtype() != _NAMES[configuration.dtype]:
        raise ModelFileError(f"damaged, it has no buffer of {configuration.dtype} weights")
    if sys.byteorder != "little":
        raise ModelFileError("cannot be mapped on a machine that is not little-endian")
    start = os.path.getsize(path) - shape[0] * dtype.itemsize  # the one tensor ends where the file ends
    if start % _LINE:
        raise ModelFileError(
            f"cannot be mapped, its weights do not start on a multiple of {_LINE} bytes: save it again"
        )
    weights = np.memmap(path, dtype.newbyteorder("="), "r", start, shape)
    model = _model(metadata, _layout(metadata), weights.view(np.ndarray))
    _check_layout(metadata, model, {_BUFFER: shape})
    return model


def _metadata(file: Any) -> tuple[dict[str, str], int]:
    """What the header says about the file, and the file's version."""
    metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise ModelFileError(
            "a safetensors file, but not a crnn language model (crnn.interop reads layers of other frameworks)"
        )
    version = metadata.get("version", "")
    if not (version.isascii() and version.isdecimal() and 0 < len(version) < 10 and int(version) > 0):
        raise ModelFileError(f"damaged, its version is {version!r}")
    if int(version) > VERSION:
        raise ModelFileError(
            f"written in version {version} of the format, this crnn reads up to {VERSION}: upgrade crnn"
        )
    return metadata, int(version)


def _model(
    metadata: Mapping[str, str], names: Collection[str], weights: NDArray[Any] | None = None
) -> LanguageModel:
    configuration, vocabulary = _read_description(metadata)
    if configuration.num_layers > len(names):  # layers cost memory before any weight is looked at
        raise ModelFileError(
            f"damaged, its configuration says {configuration.num_layers} layers, but it names {len(names)} tensors"
        )
    try:
        return LanguageModel.from_configuration(configuration, vocabulary, weights=weights)
    except (TypeError, ValueError, MemoryError, OverflowError) as error:
        raise ModelFileError(f"damaged, its configuration makes no model ({error})") from None


def _layout(metadata: Mapping[str, str]) -> dict[str, int]:
    """Where each tensor starts in the buffer of a mappable file."""
    try:
        layout: dict[str, int] = dict(json.loads(metadata["layout"]))
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ModelFileError("damaged, its layout is missing or cannot be read") from None
    return layout


def _check_layout(metadata: Mapping[str, str], model: LanguageModel, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """The buffer must be laid out as this crnn does it; a later one may do it otherwise."""
    wanted = (model.parameters.flat.size + model.parameters.guard,)
    if _layout(metadata) != model.parameters.places or dict(shapes) != {_BUFFER: wanted}:
        raise ModelFileError("its buffer is laid out otherwise than this crnn does it: save the model again")


def _read_description(metadata: Mapping[str, str]) -> tuple[Configuration, Vocabulary | None]:
    from .text.vocabulary import Vocabulary

    configuration = read_configuration(metadata)
    if "vocabulary" not in metadata:
        return configuration, None
    try:
        return configuration, Vocabulary.from_dict(json.loads(metadata["vocabulary"]))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ModelFileError(f"damaged, its vocabulary cannot be read ({error})") from None


def read_configuration(metadata: Mapping[str, str]) -> Configuration:
    """The configuration out of a header's metadata; ModelFileError, which does not name the file, without one."""
    try:
        return Configuration(**json.loads(metadata["configuration"]))
    except KeyError:
        raise ModelFileError("damaged, its configuration is missing") from None
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ModelFileError(f"damaged, its configuration cannot be read ({error})") from None


def _checksum(tensors: Mapping[str, NDArray[Any]]) -> str:
    check = 0
    for view in tensors.values():
        check = zlib.crc32(_plain(view).data, check)
    return f"{check:08x}"


def _plain(view: NDArray[Any]) -> NDArray[Any]:
    """C-contiguous, little-endian, as in the file."""
    return np.ascontiguousarray(view, view.dtype.newbyteorder("<"))


def _crnn_version() -> str:
    from . import __version__

    return __version__
