"""The benchmark harness: what it counts, what it compares, and what it writes."""

import json

import numpy as np
import pytest

pytest.importorskip("benchmarks", reason="benchmarks are part of the checkout, not of the wheel")

from benchmarks import __main__ as command
from benchmarks import drawn, figures, flops, machine_state, process, report, runner
from benchmarks.workloads import Workload, arrays, groups, parameter_shapes, workloads

LAYER = Workload("layer-training", "layer", "lstm", 20, 35, 200, 200)


def record(workload, threads=2, **peers):
    times = {
        peer: {
            variant: {"seconds": t, "spread": t / 50, "best": t, "calls": 3, "error": 1e-7} for variant, t in variants
        }
        for peer, variants in peers.items()
    }
    work = {"flops": 2_000_000_000, "tokens": 700, "peak": 200.0, "rounds": 3, "refused": {}}
    return {"name": workload.name, "threads": threads, "workload": workload.to_json(), "peers": times, **work}


def test_every_workload_has_its_own_name_and_survives_json():
    every = workloads()
    assert len({w.name for w in every}) == len(every)
    assert all(Workload.from_json(json.loads(json.dumps(w.to_json()))) == w for w in every)
    assert groups()[0] == "layer-training"


def test_a_seed_draws_the_same_shapes_and_another_one_others():
    shapes = drawn.drawn(12, 3)
    assert shapes == drawn.drawn(12, 3)
    assert len({w.name for w in shapes}) == len(shapes) == 12 * len(drawn.GROUPS)
    assert not {w.name for w in shapes} & {w.name for w in drawn.drawn(12, 4)}
    assert {w.group for w in shapes} == set(drawn.GROUPS)
    assert all(w.shortest >= 1 for w in shapes if w.kind == "ragged")
    assert all(flops.flops(w, arrays(w)) <= drawn.MOST for w in shapes if w.kind == "layer")


def test_issue_shapes_are_measured_on_all_cells():
    names = {w.name for w in workloads()}
    assert all(f"layer-training/{cell}-b64-t50-500-500" in names for cell in ("rnn", "lstm", "gru"))
    assert "batch1-training/gru-b1-t50-512-512" in names


@pytest.mark.parametrize(("cell", "gates"), [("rnn", 1), ("lstm", 4), ("gru", 3)])
def test_layer_flops(cell, gates):
    shape = Workload("x", "layer", cell, 3, 5, 7, 11)
    data = arrays(shape)
    assert flops.flops(shape, data) == 6 * 3 * 5 * gates * 11 * (7 + 11)
    inference = Workload("x", "layer", cell, 3, 5, 7, 11, train=False)
    assert flops.flops(inference, data) * 3 == flops.flops(shape, data)


def test_flops_of_a_stack_in_both_directions():
    stack = Workload("x", "layer", "gru", 3, 5, 7, 11, layers=2, directions=2)
    assert flops.per_token(stack) == 6 * 2 * 3 * 11 * ((7 + 11) + (2 * 11 + 11))
    assert arrays(stack)["dy"].shape == (3, 5, 22)
    assert parameter_shapes(stack)["weight_ih_l1_reverse"] == (33, 22)
    assert [name for name in parameter_shapes(stack) if name.startswith("bias_hh")] == [
        "bias_hh_l0", "bias_hh_l0_reverse", "bias_hh_l1", "bias_hh_l1_reverse",
    ]  # fmt: skip
    assert stack.name == "x/gru-b3-t5-7-11x2-both"


def test_model_flops_count_the_output_layer_and_no_lookup():
    sentences = Workload("x", "sentences", "rnn", 1, 0, 0, 10, vocabulary=50, units=4)
    stream = Workload("x", "stream", "lstm", 4, 5, 8, 8, layers=2, vocabulary=40, units=3)
    assert flops.per_token(sentences) == 6 * (10 * 10 + 50 * 10)
    assert flops.per_token(stream) == 6 * (2 * 4 * 8 * 16 + 40 * 8)
    assert flops.rows(stream, arrays(stream)) == 60
    data = arrays(sentences)
    assert flops.rows(sentences, data) == data["ids"].size - 4


def test_ragged_rows_are_the_lengths_and_padding_gets_no_gradient():
    ragged = Workload("x", "ragged", "gru", 6, 9, 3, 4, shortest=2)
    data = arrays(ragged)
    assert flops.rows(ragged, data) == data["lengths"].sum()
    assert data["lengths"].max() == 9
    padding = np.arange(9) >= data["lengths"][:, None]
    assert not data["dy"][padding].any()
    assert data["dy"][~padding].all()


def test_arrays_are_the_same_at_every_call_and_in_both_dtypes():
    first, again, wide = arrays(LAYER), arrays(LAYER), arrays(LAYER.widened())
    assert set(first) == {*parameter_shapes(LAYER), "x", "dy"}
    for name, array in first.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, again[name])
        np.testing.assert_array_equal(array, wide[name].astype(np.float32))


def test_compare_finds_the_worst_tensor():
    reference = {"a": np.array([1.0, -4.0]), "b": np.zeros(3), "only here": np.ones(1)}
    found = {"a": np.array([1.0, -4.004]), "b": np.array([0.0, 2e-4, 0.0])}
    error, where = runner.compare(found, reference)
    assert where == "a"
    assert error == pytest.approx(1e-3)
    assert runner.compare({"a": np.array([1.0, np.nan])}, reference)[0] == np.inf
    assert runner.compare({"a": np.ones(3)}, reference)[0] == np.inf
    assert runner.compare({"c": np.ones(3)}, reference)[0] == np.inf


def test_declared_rounding_is_taken_off():
    reference = {"update": np.array([1.0, 2.0])}
    found = {"update": np.array([1.0, 2.5]), "rounding of update": np.array([0.4])}
    assert runner.compare(found, reference)[0] == pytest.approx(0.05)


class Answers:
    """A worker process that gives prepared answers."""

    def __init__(self, **answers):
        self.answers = {do: list(given) for do, given in answers.items()}

    def ask(self, do, **fields):
        return self.answers[do].pop(0)


def burst(monkeypatch, rates, bursts, patience=60.0):
    """Looks are rates of multiply-adds, or whole answers."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    state = machine_state.MachineState.__new__(machine_state.MachineState)
    state.looks, state.process = {}, Answers(rate=[r if isinstance(r, dict) else {"gflops": r} for r in rates])
    made = runner.Runner.__new__(runner.Runner)
    made.machine, made.seconds, made.patience = state, 0.05, patience
    made.workers = {"crnn": Answers(time=[{"samples": [time], "stolen": 0.0} for time in bursts])}
    record = {"rounds": [], "samples": [], "stolen": 0.0, "repeated": 0, "disturbed": 0}
    made._burst(LAYER, "crnn", "layer", record)
    assert not state.process.answers["rate"], "fewer looks than prepared"
    return record


def test_a_burst_is_timed_once_where_the_machine_keeps_its_peak(monkeypatch):
    record = burst(monkeypatch, [200.0, 190.0], [1.0])
    assert (record["samples"], record["repeated"], record["disturbed"]) == ([1.0], 0, 0)


def test_a_burst_is_timed_again_where_the_machine_fell_below_its_peak(monkeypatch):
    record = burst(monkeypatch, [200.0, 100.0, 150.0, 199.0, 198.0], [2.0, 1.0])
    assert (record["samples"], record["repeated"], record["disturbed"]) == ([1.0], 1, 0)


@pytest.mark.parametrize(
    ("usual", "disturbed"),
    [
        ({"shared": 180.0, "handover": 0.11}, {"shared": 130.0, "handover": 0.11}),
        ({"shared": 180.0, "handover": 0.11}, {"shared": 180.0, "handover": 0.34}),
    ],
)
def test_a_busy_cache_and_far_cores_are_disturbances_too(monkeypatch, usual, disturbed):
    looks = [{"gflops": 200.0, **fields} for fields in (usual, disturbed, usual, usual)]
    record = burst(monkeypatch, looks, [2.0, 1.0])
    assert (record["samples"], record["repeated"], record["disturbed"]) == ([1.0], 1, 0)


def test_the_handover_of_two_threads_on_one_core_is_no_measure(monkeypatch):
    usual = {"gflops": 200.0, "shared": 180.0, "handover": 0.11}
    looks = [usual, {"gflops": 100.0, "shared": 180.0, "handover": 0.04}, usual, usual]
    record = burst(monkeypatch, looks, [2.0, 1.0])
    assert (record["samples"], record["repeated"], record["disturbed"]) == ([1.0], 1, 0)


def test_one_thread_has_no_handover(monkeypatch):
    record = burst(monkeypatch, [{"gflops": 100.0, "shared": 90.0, "handover": None}] * 2, [1.0])
    assert (record["repeated"], record["disturbed"]) == (0, 0)


def test_patience_ends(monkeypatch):
    record = burst(monkeypatch, [200.0, 100.0], [2.0], patience=0.0)
    assert (record["samples"], record["repeated"], record["disturbed"]) == ([2.0], 0, 1)


def test_what_stays_disturbed_is_kept_and_counted(monkeypatch):
    looks = [200.0, 100.0, *[100.0] * (runner.TRIES - 2), 100.0, 100.0]
    record = burst(monkeypatch, looks, [2.0, 3.0])
    assert (record["samples"], record["repeated"], record["disturbed"]) == ([3.0], 1, 1)


def test_a_machine_that_slows_down_for_good_is_calm_again_in_time():
    state = machine_state.MachineState.__new__(machine_state.MachineState)
    state.looks = {}
    state.process = Answers(rate=[{"gflops": 200.0}] + [{"gflops": 100.0}] * machine_state.MEMORY)
    calm = [state.calm("float32") for _ in range(machine_state.MEMORY + 1)]
    assert calm == [True] + [False] * (machine_state.MEMORY - 1) + [True]


def test_summary_of_samples():
    made = runner.summary({"samples": [3.0, 1.0, 2.0, 10.0, 2.5], "error": 0.5, "rounds": [2.0]})
    assert made["seconds"] == 2.5
    assert made["spread"] == 0.5
    assert made["best"] == 1.0
    assert made["calls"] == 5
    assert "samples" not in made


def test_the_rival_is_the_fastest_variant_of_all_peers():
    made = record(LAYER, crnn=[("layer", 0.010)], torch=[("eager", 0.016), ("ATen", 0.015)], jax=[("scan", 0.020)])
    assert figures.rival(made) == ("torch ATen", 0.015)
    assert figures.ratio(made) == pytest.approx(1.5)
    assert figures.gflops(made) == pytest.approx(200.0)
    assert figures.share(made) == pytest.approx(1.0)


def test_the_notes_code_is_a_baseline_of_its_own():
    notes = Workload("notes", "sentences", "rnn", 1, 0, 0, 100, vocabulary=8000, window=4, units=24)
    gru = Workload("notes", "sentences", "gru", 1, 0, 0, 100, vocabulary=8000, window=4, units=24)
    records = [
        record(notes, crnn=[("sgd_step", 0.01)], torch=[("dense", 0.08)], notes_numpy=[("float64", 0.9)]),
        record(gru, crnn=[("sgd_step", 0.015)], torch=[("dense", 0.09)]),
    ]
    lines = {line.label: line for line in figures.summarise(records, 2)}
    assert lines["the notes' run, window 4, against torch"].worst == pytest.approx(6.0)
    against = lines["the notes' run, against the notes' NumPy code (RNN)"]
    assert against.count == 2
    assert against.worst == pytest.approx(60.0)
    assert against.met


def test_ragged_ratio_is_told_for_packed_and_padded():
    ragged = Workload("ragged-training", "ragged", "lstm", 64, 100, 128, 256, shortest=12)
    records = [record(ragged, crnn=[("layer", 0.05)], torch=[("packed", 0.25), ("padded", 0.06)])]
    lines = {line.label: line.worst for line in figures.summarise(records, 2)}
    assert lines["ragged training, against torch packed sequences"] == pytest.approx(5.0)
    assert lines["ragged training, against padded batches of torch and JAX"] == pytest.approx(1.2)


def test_speed_up_of_threads_and_cost_of_float64():
    double = Workload("float64-training", "layer", "lstm", 20, 35, 200, 200, dtype="float64")
    records = [
        record(LAYER, 2, crnn=[("layer", 0.010)]) | {"beside": {"one thread": {"seconds": 0.018}}},
        record(double, 2, crnn=[("layer", 0.020)]) | {"beside": {"float32": {"seconds": 0.010}}},
        record(LAYER, 1, crnn=[("layer", 0.030)]),  # of another run: no part of either figure
    ]
    lines = {line.label: line for line in figures.summarise(records, 2)}
    assert lines["speed-up of 2 threads, batched shapes"].worst == pytest.approx(1.8)
    assert lines["float32 time x 2.2 over float64 time"].worst == pytest.approx(1.1)


def test_limits_are_the_peak_and_the_bandwidth():
    made = record(LAYER, crnn=[("layer", 0.012)], torch=[("eager", 0.015)])  # 2 GFLOP at 200 GFLOP/s: 10 ms
    assert figures.limit(made) == pytest.approx(1.5)
    assert figures.limit(made | {"peak": None}) is None
    single = Workload("batch1-training", "layer", "lstm", 1, 10, 30, 50)
    assert flops.bytes_per_step(single) == 4 * 50 * 50 * 4
    work = 6 * 10 * 4 * 50 * (30 + 50)
    recurrent = 2 * 10 * 4 * 50 * 50  # forward and backward read each weight once a step and do two operations with it
    expected = (work - 2 * recurrent) / 200e9 + recurrent * 4 / 50e9
    assert flops.least_seconds(single, work, 200.0, 50.0) == pytest.approx(expected)
    assert flops.least_seconds(single, work, 200.0, None) == pytest.approx(work / 200e9)
    step = Workload("step", "step", "gru", 1, 7, 30, 50, train=False)
    size = 3 * 50 * 80 * 4
    assert flops.bytes_per_step(step) == size
    assert flops.least_seconds(step, 7 * 2 * 3 * 50 * 80, 200.0, 50.0) == pytest.approx(7 * size / 50e9)
    line = figures.summarise([made], 2)[0]
    assert (line.worst_limit, line.mean_limit) == pytest.approx((1.5, 1.5))


@pytest.fixture
def run():
    records = [
        record(LAYER, threads, crnn=[("layer", 0.01 / threads)], torch=[("eager", 0.02)]) | {"commit": "abc"}
        for threads in (1, 2)
    ]
    windows = [w for w in workloads() if w.group == "scaling-window" and w.cell == "gru"]
    records += [record(w, crnn=[("layer", 0.01 + w.window / 1000)]) for w in windows]
    machine = {"processor": "P", "family": "1/2/3", "processors": 2, "caches": ["L1 data 32K"], "system": "S"}
    machine |= {"python": "3", "commit": "abc", "date": "D"}
    build = {"isa": "avx2", "blas": {"library": "B"}}
    return {"format": 1, "machine": machine, "build": build, "versions": {"crnn": "0"},
            "settings": {"rounds": 3, "seconds": 0.1}, "records": records}  # fmt: skip


def test_report_has_a_summary_and_a_table_for_each_thread_count(run):
    text = report.markdown(run)
    assert "| lstm | batch 20, T 35, 200 -> 200 | 400.0 | 2.0 % | 200 % | 100.0 | torch | 4.00 |" in text
    assert "Summary, 2 threads" in text
    assert "Summary, one thread" in text
    assert "commit abc" in text


def test_plots_are_written(run, tmp_path):
    pytest.importorskip("matplotlib")
    plots = report.write_plots(run, tmp_path)
    assert {path.name for path in plots} == {"training.png", "scaling-window.png", "scaling-threads.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in plots)


def test_command_lists_and_refuses(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks", "--only", "step", "--match", "gru", "--list"])
    assert command.main() == 0
    assert capsys.readouterr().out.split() == [f"step/gru-b1-t256-{n}-{n}" for n in (64, 128, 256, 512)]
    monkeypatch.setattr("sys.argv", ["benchmarks", "--only", "stp", "--list"])
    assert command.main() == 2
    assert "unknown groups stp" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["benchmarks", "--only", "drawn-step", "--list"])
    assert command.main() == 2
    assert "--drawn N" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["benchmarks", "--only", "drawn-step", "--drawn", "5", "--list"])
    assert command.main() == 0
    assert len(capsys.readouterr().out.split()) == 5


def test_peers_are_kept_to_an_instruction_set(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(process.subprocess, "Popen", lambda command, **rest: started.append((command, rest["env"])))
    monkeypatch.setenv("XLA_FLAGS", "--xla_of_the_shell")
    process.Process("jax", 2, "python", tmp_path / "log")
    process.Process("jax", 2, "python", tmp_path / "log", "avx2")
    (_, free), (_, kept) = started
    assert "XLA_FLAGS" not in free
    assert kept["XLA_FLAGS"] == "--xla_cpu_max_isa=AVX2"
    assert (kept["CRNN_ISA"], kept["ONEDNN_MAX_CPU_ISA"]) == ("avx2", "AVX2")


def test_figures_of_two_instruction_sets_do_not_mix(monkeypatch, capsys, tmp_path, run):
    kept = run | {"format": command.FORMAT, "settings": run["settings"] | {"isa": "avx2"}}
    (tmp_path / "results.json").write_text(json.dumps(kept))
    monkeypatch.setattr("sys.argv", ["benchmarks", "--out", str(tmp_path)])
    assert command.main() == 2
    assert "--isa avx2; use another --out" in capsys.readouterr().err
    assert command.load(tmp_path / "results.json", fresh=False, isa="avx2")["settings"] == kept["settings"]
    assert "no peer beyond avx2" in report.markdown(kept)


@pytest.mark.parametrize("options", [["--threads", "0"], ["--peers", "tensorflow"], ["--seconds", "-1"]])
def test_command_refuses_impossible_options(monkeypatch, capsys, options):
    monkeypatch.setattr("sys.argv", ["benchmarks", *options])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert options[1] in capsys.readouterr().err
