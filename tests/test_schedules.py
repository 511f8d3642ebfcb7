"""Learning-rate schedules against literal rates and against torch's."""

from __future__ import annotations

import json
import math

import pytest

from crnn import schedules
from crnn.schedules import Constant, Cosine, Exponential, HalveOnIncrease, Plateau, StepDecay, Warmup


def by_epoch(schedule: schedules.Schedule, epochs: int, base: float = 1.0) -> list[float]:
    return [schedule.rate(base, epoch, 0) for epoch in range(1, epochs + 1)]


def by_loss(schedule: schedules.Schedule, losses: list[float], base: float = 1.0) -> list[float]:
    """The rate after each loss."""
    rates = []
    for epoch, loss in enumerate(losses, start=1):
        schedule.observe(loss)
        rates.append(schedule.rate(base, epoch + 1, 0))
    return rates


def test_constant() -> None:
    assert by_epoch(Constant(), 3, 0.7) == [0.7] * 3


def test_halve_on_increase_compares_with_the_loss_before() -> None:
    assert by_loss(HalveOnIncrease(), [5.0, 4.0, 4.5, 4.4, 4.4, 4.6, 4.7], 0.8) == [0.8, 0.8, 0.4, 0.4, 0.4, 0.2, 0.1]


def test_zarembas_small_model_halves_after_four_epochs() -> None:
    assert by_epoch(StepDecay(factor=0.5, after=4), 7) == [1, 1, 1, 1, 0.5, 0.25, 0.125]


def test_step_decay_every_few_epochs() -> None:
    assert by_epoch(StepDecay(factor=0.1, after=2, every=2), 6) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_plateau_with_no_patience_is_pytorchs_word_model() -> None:
    assert by_loss(Plateau(), [5, 4, 4, 3.9, 4.2, 3.95, 3.8], 20.0) == [20, 20, 5, 5, 1.25, 0.3125, 0.3125]


def test_plateau_threshold_and_minimum() -> None:
    rates = by_loss(Plateau(0.5, patience=1, threshold=0.1, minimum=0.2), [3, 2.95, 2.91, 2.8, 2.79, 2.78, 2.77, 2.76])
    assert rates == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2]


def test_plateau_leaves_a_rate_alone_that_is_below_the_minimum_from_the_start() -> None:
    assert by_loss(Plateau(0.5, minimum=0.3), [3, 4, 5], base=0.1) == [0.1, 0.1, 0.1]
    assert by_loss(Plateau(0.5, minimum=0.3), [3, 4, 5], base=0.8) == [0.8, 0.4, 0.3]


def test_exponential() -> None:
    assert by_epoch(Exponential(0.9), 3) == pytest.approx([1.0, 0.9, 0.81])


def test_cosine() -> None:
    schedule = Cosine(10, final=0.1)
    rates = [schedule.rate(2.0, 1, step) for step in (0, 5, 10, 11, 1000)]
    assert rates == pytest.approx([2.0, 1.1, 0.2, 0.2, 0.2])
    assert schedule.per_step


def test_warm_up_rises_to_the_full_rate_then_hands_over() -> None:
    schedule = Warmup(4, Cosine(4))
    rates = [schedule.rate(1.0, 1, step) for step in range(9)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(5)])


def test_warm_up_passes_losses_on() -> None:
    schedule = Warmup(1, HalveOnIncrease())
    assert by_loss(schedule, [1.0, 2.0]) == [1.0, 0.5]
    assert Warmup(2).rate(1.0, 5, 7) == 1.0


@pytest.mark.parametrize(
    ("make", "losses"),
    [
        (HalveOnIncrease, [3.0, 4.0, 3.0, 5.0, 4.0, 6.0]),
        (lambda: Plateau(0.5, patience=1), [3.0, 3.0, 3.0, 3.0, 2.0, 3.0]),
        (lambda: Warmup(2, Plateau(0.5)), [3.0, 4.0, 3.0, 5.0, 4.0, 6.0]),
        (Constant, [1.0] * 6),
        (lambda: StepDecay(0.5, 2), [1.0] * 6),
    ],
)
def test_state_goes_through_json_and_continues(make, losses) -> None:
    whole, first, second = make(), make(), make()
    expected = by_loss(whole, losses)
    by_loss(first, losses[:3])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    rates = []
    for epoch, loss in enumerate(losses[3:], start=4):
        second.observe(loss)
        rates.append(second.rate(1.0, epoch + 1, 0))
    assert rates == expected[3:]


def test_foreign_states_are_refused() -> None:
    with pytest.raises(ValueError, match=r"state of HalveOnIncrease: got the keys \['best'"):
        HalveOnIncrease().load_state_dict(Plateau().state_dict())
    with pytest.raises(ValueError, match="state of Warmup"):
        Warmup(1).load_state_dict({})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: HalveOnIncrease(0.0), ValueError, "factor: got 0.0, wanted 0 < factor <= 1"),
        (lambda: StepDecay(1.5, 4), ValueError, "factor"),
        (lambda: StepDecay(0.5, -1), ValueError, "after"),
        (lambda: StepDecay(0.5, 4, every=0), ValueError, "every"),
        (lambda: Plateau(patience=-1), ValueError, "patience"),
        (lambda: Plateau(threshold=-0.1), ValueError, "threshold"),
        (lambda: Exponential(-1.0), ValueError, "factor"),
        (lambda: Cosine(0), ValueError, "steps"),
        (lambda: Cosine(9, final=2.0), ValueError, "final"),
        (lambda: Warmup(2.5), TypeError, "steps"),
        (lambda: Warmup(2, "cosine"), TypeError, "then: got 'cosine'"),
    ],
)
def test_arguments_are_checked(make, error, message) -> None:
    with pytest.raises(error, match=message):
        make()


def test_representations_say_everything_that_was_given() -> None:
    schedule = Warmup(3, StepDecay(0.5, 4))
    assert repr(schedule) == "Warmup(steps=3, then=StepDecay(factor=0.5, after=4, every=1))"
    halved = HalveOnIncrease()
    by_loss(halved, [1.0, 2.0])
    assert repr(halved) == "HalveOnIncrease(factor=0.5)"


def test_against_torch() -> None:
    torch = pytest.importorskip("torch", reason="TORCH IS NOT INSTALLED: schedules were NOT compared with it")
    parameter = torch.nn.Parameter(torch.zeros(1))
    pairs = [
        (StepDecay(0.5, 3, every=3), lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.5)),
        (Exponential(0.8), lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.8)),
    ]
    for ours, make in pairs:
        optimizer = torch.optim.SGD([parameter], 0.3)
        theirs, rates = make(optimizer), []
        for _ in range(10):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            theirs.step()
        assert by_epoch(ours, 10, 0.3) == pytest.approx(rates, rel=1e-12)
    optimizer = torch.optim.SGD([parameter], 0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8, eta_min=0.03)
    for step in range(8):
        assert Cosine(8, final=0.1).rate(0.3, 1, step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        theirs.step()
    optimizer = torch.optim.SGD([parameter], 0.3)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1, threshold=0.0)
    ours = Plateau(0.5, patience=1)
    for loss in (3.0, 2.0, 2.1, 2.2, 2.3, 2.4, 2.5, 1.9, 1.95, 1.96):
        theirs.step(loss)
        ours.observe(loss)
        assert ours.rate(0.3, 1, 0) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
