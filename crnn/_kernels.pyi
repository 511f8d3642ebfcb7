"""Types of the extension module; layouts and meanings are described in docs/internals.md."""

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt

_Real = npt.NDArray[np.floating[Any]]
_Ids = npt.NDArray[np.int64]

CELLS: dict[str, int]

@final
class Tape:
    @property
    def nbytes(self) -> int: ...

class NotFinite(ValueError):
    row: int
    def __init__(self, row: int) -> None: ...

@final
class Block: ...

@final
class Stack:
    def __new__(
        cls,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        directions: int,
        weights: Sequence[_Real | None],
        reset_after: bool = False,
        z_state: bool = False,
        onehot: bool = False,
    ) -> Stack: ...
    def forward(
        self,
        x: _Real | _Ids | list[_Real],
        offsets: _Ids,
        h0: _Real | None,
        c0: _Real | None,
        y: _Real,
        h_n: _Real,
        c_n: _Real | None,
        keep: bool,
        masks: _Real | None = None,
        order: _Ids | None = None,
    ) -> Tape | None: ...
    def step(self, x: Any, h0: Any, c0: Any) -> tuple[_Real, _Real, _Real | None] | None: ...
    def backward(
        self,
        tape: Tape,
        dy: _Real | list[_Real] | None,
        dh_n: _Real | None,
        dc_n: _Real | None,
        schedule: tuple[int, int, int],
        dx: _Real | None,
        dh0: _Real | None,
        dc0: _Real | None,
        grads: list[Any] | None,
        accumulate: bool = False,
        order: _Ids | None = None,
    ) -> None: ...

@final
class Outputs:
    def __new__(cls, rows: int, columns: int, dtype: np.dtype[Any]) -> Outputs: ...
    def take(self) -> _Real: ...

@final
class Stepper:
    def __new__(cls, stack: Stack, batch: int) -> Stepper: ...
    @property
    def entering(self) -> list[_Real]: ...
    def step(self, x: _Real | _Ids) -> _Real | None: ...

def first_outside(ids: _Ids, words: int) -> int: ...
def empty(shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]: ...
def unpack_sequences(rows: _Real, order: _Ids, offsets: _Ids, sequences: _Real | list[_Real]) -> None: ...
def all_finite(a: _Real) -> bool: ...
def softmax_loss(
    h: _Real,
    weight_t: _Real,
    bias: _Real | None,
    targets: _Ids,
    dh: _Real | None = None,
    grad_w: _Real | None = None,
    grad_b: _Real | None = None,
    sgd_rate: float = 0.0,
    scale: float = 1.0,
    accumulate: bool = False,
    losses: npt.NDArray[np.float64] | None = None,
) -> float: ...
def softmax_probabilities(h: _Real, weight_t: _Real, bias: _Real | None, out: _Real) -> None: ...
def take_rows(src: npt.NDArray[Any], index: _Ids, out: npt.NDArray[Any]) -> None: ...
def put_rows(src: npt.NDArray[Any], index: _Ids, out: npt.NDArray[Any]) -> None: ...
def take_columns(src_t: _Real, ids: _Ids, out: _Real) -> None: ...
def add_rows(dst: _Real, ids: _Ids, rows: _Real, alpha: float) -> None: ...
def add_columns(dst_t: _Real, ids: _Ids, rows: _Real, alpha: float) -> None: ...
def sgd(p: _Real, g: _Real, rate: float) -> None: ...
def momentum(p: _Real, g: _Real, v: _Real, rate: float, mu: float) -> None: ...
def adagrad(p: _Real, g: _Real, s: _Real, rate: float, eps: float) -> None: ...
def rmsprop(p: _Real, g: _Real, s: _Real, rate: float, alpha: float, eps: float) -> None: ...
def adam(
    p: _Real,
    g: _Real,
    m: _Real,
    v: _Real,
    rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    decay: float,
) -> None: ...
def sgd_rows(p: _Real, ids: _Ids, g: _Real, rate: float) -> None: ...
def momentum_rows(p: _Real, ids: _Ids, g: _Real, v: _Real, rate: float, mu: float) -> None: ...
def adagrad_rows(p: _Real, ids: _Ids, g: _Real, s: _Real, rate: float, eps: float) -> None: ...
def rmsprop_rows(p: _Real, ids: _Ids, g: _Real, s: _Real, rate: float, alpha: float, eps: float) -> None: ...
def adam_rows(
    p: _Real,
    ids: _Ids,
    g: _Real,
    m: _Real,
    v: _Real,
    rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    decay: float,
) -> None: ...
def sum_squares(a: _Real) -> float: ...
def scale(a: _Real, factor: float) -> None: ...
def function(name: str, x: _Real, out: _Real) -> None: ...
def fma_peak(dtype: str, threads: int, seconds: float) -> float: ...
def set_threads(n: int) -> None: ...
def get_threads() -> int: ...
def isa() -> str: ...
def available_isas() -> list[str]: ...
def set_isa(name: str) -> None: ...
def use_blas(wanted: bool) -> None: ...
def blas_info() -> dict[str, str]: ...
