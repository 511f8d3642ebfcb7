"""History: a list of records, JSON lines, pictures."""

from __future__ import annotations

import json
import math
import sys

import pytest

from crnn.history import FIELDS, History, perplexity_of, plot_histories


def record(epoch: int, train: float = 2.0, valid: float | None = 3.0) -> dict:
    values = (epoch, train, valid, None if valid is None else math.exp(valid), 0.1, 100, 0.5, 200.0)
    return dict(zip(FIELDS, values, strict=True))


@pytest.fixture
def history() -> History:
    return History([record(1, 3.0, 3.5), record(2, 2.5, 3.25), record(3, 2.25, 3.375)])


def test_it_is_a_list_of_records(history) -> None:
    assert len(history) == 3
    assert history[-1]["epoch"] == 3
    assert [r["epoch"] for r in history] == [1, 2, 3]
    assert [r["epoch"] for r in history[:2]] == [1, 2]
    assert history.column("train_loss") == [3.0, 2.5, 2.25]
    assert record(2, 2.5, 3.25) in history
    assert next(reversed(history))["epoch"] == 3


def test_best_is_by_validation_loss_and_by_training_loss_without_one(history) -> None:
    assert history.best["epoch"] == 2
    assert History([record(1, 2.0, None), record(2, 1.0, None), record(3, 1.5, None)]).best["epoch"] == 2
    assert History([record(1, 1.0, None), record(2, 2.0, 9.0)]).best["epoch"] == 2
    assert History().best is None


def test_json_lines_there_and_back(history, tmp_path) -> None:
    path = tmp_path / "h.jsonl"
    history.save(path)
    lines = path.read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
    assert list(History.load(path)) == list(history)


def test_a_last_line_cut_short_is_left_out_and_other_damage_is_named(history, tmp_path) -> None:
    path = tmp_path / "h.jsonl"
    history.save(path)
    content = path.read_text()
    path.write_text(content[:-20])
    assert len(History.load(path)) == 2
    path.write_text("{}\n" + content)
    with pytest.raises(ValueError, match=r"line 1: not a history record \(the keys epoch"):
        History.load(path)
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match="got list, wanted an object"):
        History.load(path)
    path.write_text("nonsense\n")
    with pytest.raises(ValueError, match="line 1"):
        History.load(path)


def test_state_goes_through_json(history) -> None:
    history.stopped = "interrupted"
    history.initial = record(0)
    history.evaluations.append({"step": 3, "epoch": 1, "valid_loss": 2.0, "valid_perplexity": math.exp(2.0)})
    other = History()
    other.load_state_dict(json.loads(json.dumps(history.state_dict())))
    assert list(other) == list(history)
    assert other.state_dict() == history.state_dict()
    assert other.interrupted


def test_later_epochs_can_be_dropped(history) -> None:
    history.drop_after(1)
    assert history.column("epoch") == [1]


def test_representation(history) -> None:
    assert repr(history) == "History(3 epochs, train_loss=2.2500, valid_loss=3.3750)"
    history.stopped = "finished"
    assert repr(history).endswith(", finished)")
    assert repr(History()) == "History(no epoch yet)"


def test_records_are_checked() -> None:
    with pytest.raises(ValueError, match="valid_loss"):
        History([{"epoch": 1, "train_loss": 1.0}])


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_pictures(history, suffix, magic, tmp_path) -> None:
    pytest.importorskip("matplotlib", reason="MATPLOTLIB IS NOT INSTALLED: plots were NOT tested")
    path = tmp_path / f"curve{suffix}"
    history.plot(path, title="a run")
    assert path.read_bytes().startswith(magic)


def test_what_a_picture_shows(history) -> None:
    pytest.importorskip("matplotlib", reason="MATPLOTLIB IS NOT INSTALLED: plots were NOT tested")
    other = History([record(1, 2.0, None)])
    figure = plot_histories({"lstm": history, "gru": other}, perplexity=True)
    axes, rates = figure.axes
    curves = {line.get_label(): line for line in axes.lines}
    assert set(curves) == {"lstm: train", "lstm: valid", "gru: train"}
    assert list(curves["lstm: valid"].get_xdata()) == [1, 2, 3]
    assert list(curves["lstm: valid"].get_ydata()) == pytest.approx([math.exp(x) for x in (3.5, 3.25, 3.375)])
    assert axes.get_yscale() == "log"
    assert list(rates.lines[0].get_ydata()) == [0.1] * 3
    axes = history.plot().axes[0]
    assert list(axes.lines[0].get_ydata()) == [3.0, 2.5, 2.25]
    assert axes.get_ylabel() == "loss (nats per token)"


def test_nothing_to_plot() -> None:
    with pytest.raises(ValueError, match="no epoch to plot"):
        History().plot()


def test_perplexity_never_overflows() -> None:
    assert perplexity_of(2.0) == math.exp(2.0)
    assert perplexity_of(1e9) == sys.float_info.max
