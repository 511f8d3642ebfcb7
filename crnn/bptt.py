"""Truncated back-propagation through time: how far back the loss of a step reaches.

For the loss at step ``t`` (steps count from 0) a scheme names ``r(t)``, the first step whose parameters and input
still receive its gradient. The forward state always flows through; only gradients are cut: the state that enters
step ``r(t)`` counts as a constant, except that the initial state receives its gradient where ``r(t) = 0``.
"""

from __future__ import annotations

from dataclasses import dataclass

from crnn.arguments import whole_number

__all__ = ["Chunk", "Full", "Truncation", "Window"]

_MOST = 1 << 62  # steps: more than any sequence has, and the kernels' numbers have 64 bits


@dataclass(frozen=True, slots=True)
class Full:
    """Back-propagation through the whole sequence: ``r(t) = 0``."""

    @property
    def schedule(self) -> tuple[int, int, int]:
        """The scheme as the kernels take it."""
        return (0, 0, 0)

    def first_step(self, t: int) -> int:
        """``r(t)``: the first step that the loss at step `t` reaches."""
        return 0


@dataclass(frozen=True, slots=True)
class Window:
    """A window of `k` steps that slides with every step: ``r(t) = max(0, t - k + 1)``.

    This is the ``bptt_truncate`` of the WildML tutorial and BPTT(k) of Williams & Peng (1990). With ``k >= T`` it
    equals `Full` exactly.

    Parameters
    ----------
    k : int
        Steps that a loss reaches, its own included; at least 1.

    Examples
    --------
    >>> [Window(3).first_step(t) for t in range(6)]
    [0, 0, 0, 1, 2, 3]
    """

    k: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", whole_number(self.k, "Window: k"))

    @property
    def schedule(self) -> tuple[int, int, int]:
        """The scheme as the kernels take it."""
        return (1, min(self.k, _MOST), 0)

    def first_step(self, t: int) -> int:
        """``r(t)``: the first step that the loss at step `t` reaches."""
        return max(0, t - self.k + 1)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Chunks of `k1` steps whose losses reach `k2` steps back from the chunk's last step.

    With ``e`` the last step of the chunk that holds ``t``, ``r(t) = max(0, e - k2 + 1)``. ``k2 = k1`` is the scheme of
    Zaremba et al. (2014) and of Keras' stateful layers; ``k2 > k1`` is rnnlm's ``bptt`` with ``bptt-block``. The
    last chunk of a sequence may be short: its ``e`` still counts as if the chunk were whole.

    Parameters
    ----------
    k1 : int
        Steps in a chunk; at least 1.
    k2 : int, optional
        Steps that a chunk's losses reach, counted from the chunk's last step; at least `k1`, by default `k1`.

    Examples
    --------
    >>> [Chunk(3).first_step(t) for t in range(8)]
    [0, 0, 0, 3, 3, 3, 6, 6]
    >>> [Chunk(3, 5).first_step(t) for t in range(8)]
    [0, 0, 0, 1, 1, 1, 4, 4]
    """

    k1: int
    k2: int | None = None

    def __post_init__(self) -> None:
        k1 = whole_number(self.k1, "Chunk: k1")
        k2 = k1 if self.k2 is None else whole_number(self.k2, "Chunk: k2")
        if k2 < k1:
            raise ValueError(f"Chunk: k2 must be at least k1 = {k1}, got {k2}")
        object.__setattr__(self, "k1", k1)
        object.__setattr__(self, "k2", k2)

    @property
    def schedule(self) -> tuple[int, int, int]:
        """The scheme as the kernels take it."""
        assert self.k2 is not None
        return (2, min(self.k1, _MOST), min(self.k2, _MOST))

    def first_step(self, t: int) -> int:
        """``r(t)``: the first step that the loss at step `t` reaches."""
        assert self.k2 is not None
        last = t - t % self.k1 + self.k1 - 1
        return max(0, last - self.k2 + 1)


Truncation = Full | Window | Chunk

FULL = Full()


def resolve(truncation: Truncation | None) -> Truncation:
    """`truncation` itself, or `Full` for None; anything else is refused.

    Raises
    ------
    TypeError
        If `truncation` is not one of the schemes of this module.
    """
    if truncation is None:
        return FULL
    if not isinstance(truncation, (Full, Window, Chunk)):
        raise TypeError(
            "truncation must be None, crnn.bptt.Full(), crnn.bptt.Window(k) or crnn.bptt.Chunk(k1, k2), "
            f"not {truncation!r}"
        )
    return truncation


def schedule(truncation: Truncation | None, bidirectional: bool) -> tuple[int, int, int]:
    """A scheme as the kernels take it.

    Raises
    ------
    TypeError
        If `truncation` is not one of the schemes of this module.
    ValueError
        Anything but `Full` in a bidirectional layer.
    """
    if truncation is None:
        return FULL.schedule
    scheme = resolve(truncation)
    if bidirectional and not isinstance(scheme, Full):
        raise ValueError(
            f"truncation {scheme} has no agreed meaning in a bidirectional layer, whose second direction runs against "
            "time: use Full()"
        )
    return scheme.schedule
