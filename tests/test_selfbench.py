"""crnn.selfbench: the figures follow from the times, and wrong options are refused."""

import argparse
import json
import math

import pytest

import crnn
from crnn import selfbench


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(selfbench, "SHAPES", ((3, 5, 7, 9),))
    monkeypatch.setattr(selfbench, "STEP_WIDTHS", (6,))
    monkeypatch.setattr(selfbench, "VOCABULARY", 30)
    monkeypatch.setattr(selfbench, "HIDDEN", 8)


def options(*words):
    parser = argparse.ArgumentParser()
    selfbench.add_arguments(parser)
    return parser.parse_args(list(words))


def test_a_line_per_cell_and_kind_of_work(small):
    report = selfbench.measure(("rnn", "lstm", "gru"), "float64", 0.002)
    units = [timing.unit for timing in report["timings"]]
    assert units == ["GFLOP/s"] * 3 + ["us/step"] * 3 + ["words/s"] * 3
    assert report["peak"] > 0
    assert report["isa"] in crnn._kernels.available_isas()


def test_figures_follow_from_the_times(small):
    training, step, model = selfbench.measure(("lstm",), "float32", 0.002)["timings"]
    assert math.isclose(training.value, 6 * 3 * 5 * 4 * 9 * (7 + 9) / training.seconds / 1e9)
    assert math.isclose(step.value, step.seconds * 1e6)
    assert math.isclose(model.value, selfbench.WORDS / model.seconds)
    assert training.of_peak is not None
    assert step.of_peak is None


def test_the_command_prints_json_and_restores_the_thread_count(small, capsys):
    before = crnn.get_num_threads()
    assert selfbench.main(options("--cell", "gru", "--threads", "1", "--seconds", "0.002", "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["threads"] == 1
    assert len(report["timings"]) == 3
    assert crnn.get_num_threads() == before


def test_the_command_prints_a_table(small, capsys):
    assert selfbench.main(options("--cell", "rnn", "--seconds", "0.002")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert "of peak" in lines[2]


@pytest.mark.parametrize(
    ("cells", "dtype", "seconds", "message"),
    [
        (("elman",), "float32", 0.1, "elman"),
        ((), "float32", 0.1, "cells"),
        (("rnn",), "float16", 0.1, "float16"),
        (("rnn",), "float32", 0.0, "seconds"),
        (("rnn",), "float32", math.nan, "seconds"),
    ],
)
def test_wrong_options_are_named(cells, dtype, seconds, message):
    with pytest.raises(ValueError, match=message):
        selfbench.measure(cells, dtype, seconds)
