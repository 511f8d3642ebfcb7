"""What can be known of an ONNX graph without running it: constants, and where a recurrent node's inputs come from.

A foreign file may be small and ask for much, so nothing is computed before it is needed, nothing becomes much larger
than what the file stores, and no walk goes round in circles.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from crnn.interop._weights import as_array
from crnn.interop.onnx_export import KINDS

if TYPE_CHECKING:
    from onnx import NodeProto

__all__ = ["Graph", "attributes"]

_MOVING = frozenset({"Identity", "Transpose", "Unsqueeze", "Squeeze", "Concat", "Slice", "Reshape", "Split"})
_COUNTING = frozenset({"Shape", "Gather", "Mul", "Cast"})  # what exporters do to shapes besides
_SPREADING = _MOVING | {"Expand", "Tile", "Gather", "Cast", "CastLike"}  # all zeros in, all zeros out
_DEPTH = 100  # nodes in a row
_GROWTH = 4  # times the constants read so far; a weight is assembled of things that are stored
_COUNTS = 64  # elements of a shape, with room


def attributes(node: NodeProto) -> dict[str, Any]:
    """A node's attributes by name, text as str."""
    import onnx

    def text(value: Any) -> Any:
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {name: [text(one) for one in v] if isinstance(v, list) else text(v) for name, v in values.items()}


class Graph:
    """Nodes and stored constants.

    Parameters
    ----------
    stored
        Name -> tensor of the file, or array.
    nodes
        All nodes; none if only the constants are known.
    opsets
        Domain -> version.
    shape_of
        A tensor that is not constant, and its shape, to compute other shapes with.
    """

    def __init__(
        self,
        stored: Mapping[str, Any],
        nodes: Iterable[NodeProto] = (),
        opsets: Mapping[str, int] | None = None,
        shape_of: tuple[str, tuple[int, ...]] | None = None,
    ) -> None:
        self._stored = stored
        self._nodes = list(nodes)
        self._opsets = dict(opsets or {})
        self._shape_of = shape_of
        self.producers = {name: node for node in self._nodes for name in node.output if name}
        self._known: dict[str, npt.NDArray[Any] | None] = {}
        self._read = 0  # bytes

    def get(self, name: str, depth: int = 0) -> npt.NDArray[Any] | None:
        """The constant of this name: stored, or made of stored ones by moving numbers about; None if it is not one."""
        if name and name not in self._known:
            self._known[name] = None  # should the way lead back here
            self._known.update(self._found(name, depth))
        return self._known.get(name)

    def _found(self, name: str, depth: int) -> dict[str, npt.NDArray[Any]]:
        from onnx.reference import ReferenceEvaluator

        node = self.producers.get(name)
        if name in self._stored or (node is not None and node.op_type == "Constant"):
            array = _array(self._stored[name], name) if node is None or name in self._stored else _value(node, name)
            self._read += array.nbytes
            return {name: array}
        if node is None or depth > _DEPTH or node.domain not in ("", "ai.onnx"):
            return {}
        if self._shape_of is not None and node.op_type == "Shape" and node.input[0] == self._shape_of[0]:
            values = attributes(node)
            return {name: np.array(self._shape_of[1][values.get("start", 0) : values.get("end")], np.int64)}
        if node.op_type not in (_MOVING if self._shape_of is None else _MOVING | _COUNTING):
            return {}
        if node.op_type == "Split" and attributes(node).get("num_outputs", 0) > len(node.output):
            return {}
        given: dict[str, npt.NDArray[Any]] = {}
        for entering in filter(None, node.input):
            array_or_none = self.get(entering, depth + 1)
            if array_or_none is None:
                return {}
            given[entering] = array_or_none
        arrays = [given[entering] for entering in node.input if entering]
        if self._shape_of is None:
            too_large = sum(array.nbytes for array in arrays) > _GROWTH * self._read
        else:
            too_large = any(array.size > _COUNTS for array in arrays)
        if too_large:
            return {}
        # What cannot be computed is no constant; a weight that needs it will be named.
        with contextlib.suppress(RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError):
            made = ReferenceEvaluator(node, opsets=self._opsets).run(None, given)
            return dict(zip(node.output, map(np.asarray, made), strict=False))
        return {}

    def state_problem(self, name: str, own: set[str]) -> str | None:
        """Why a layer without its graph would not start where this initial state says; None if nothing is lost.

        Zeros are what a layer starts from, and what is fed into the graph or comes from a recurrent node that is not
        imported is the caller's to give. `own` are the outputs of the nodes that are imported.
        """
        waiting, seen = [name], set()
        while waiting:
            at = waiting.pop()
            if at in seen:
                continue
            seen.add(at)
            value, node = self.get(at), self.producers.get(at)
            if value is None and node is not None and node.op_type == "ConstantOfShape":
                fill = attributes(node).get("value")
                value = np.zeros(1) if fill is None else _array(fill, at)
            if value is not None:
                if np.any(value):
                    return "a constant that is not zero"
            elif node is not None and node.op_type in _SPREADING and node.input:
                waiting += node.input if node.op_type == "Concat" else node.input[:1]
            elif node is not None and (node.op_type not in KINDS or at in own):
                return f"what the {node.op_type} node {node.name!r} computes"
        return None

    def reshaped(self, node: NodeProto, shape: tuple[int, ...]) -> list[int] | None:
        """The shape that a Reshape node gives to data of a shape; None if that cannot be told."""
        values = attributes(node)
        if len(node.input) > 1:
            known = Graph(self._stored, self._nodes, self._opsets, (node.input[0], shape)).get(node.input[1])
        else:
            known = np.array(values["shape"]) if "shape" in values else None
        if known is None or known.ndim != 1 or known.dtype.kind != "i" or values.get("allowzero"):
            return None
        sizes = [shape[i] if size == 0 and i < len(shape) else int(size) for i, size in enumerate(known)]
        rest = math.prod(size for size in sizes if size != -1)
        return [math.prod(shape) // rest if size == -1 and rest else size for size in sizes]


def _value(node: NodeProto, name: str) -> npt.NDArray[Any]:
    """What a Constant node holds."""
    for kind, value in attributes(node).items():
        return _array(value, name) if kind == "value" else np.asarray(value)
    raise ValueError(f"model: the Constant node of {name!r} holds nothing")


def _array(tensor: Any, name: str) -> npt.NDArray[Any]:
    from onnx import TensorProto, numpy_helper

    if not isinstance(tensor, TensorProto):
        return as_array(name, tensor)
    if tensor.data_location == TensorProto.EXTERNAL:
        raise ValueError(f"model: the tensor {name!r} is stored in another file: give the path, not the content")
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"model: the tensor {name!r} is damaged or of an unknown type ({error})") from None
