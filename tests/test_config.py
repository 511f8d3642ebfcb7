"""Thread counts from affinity, quota, environment and caller; and what show_config says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import crnn
from crnn import _kernels, config


@pytest.fixture(autouse=True)
def _same_threads_after():
    before = crnn.get_num_threads()
    yield
    crnn.set_num_threads(before)


def tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def quota(root: Path, process: str, files: dict[str, str]) -> float | None:
    tree(root, files)
    (root / "cgroup").write_text(process)
    return config._cgroup_quota(root, root / "cgroup")


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, None),
        ({"a/b/cpu.max": "max 100000\n"}, None),
        ({"a/b/cpu.max": "250000 100000\n"}, 2.5),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "150000 100000\n"}, 1.5),
        ({"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "800000 100000\n"}, 4.0),
        ({"cpu.max": "50000 100000\n"}, 0.5),
        ({"a/b/cpu.max": "nonsense\n"}, None),
        ({"a/b/cpu.max": "1000 0\n"}, None),
        ({"elsewhere/cpu.max": "100000 100000\n"}, None),
    ],
)
def test_quota_of_version_two_control_groups(tmp_path, files, wanted):
    assert quota(tmp_path, "0::/a/b\n\nnonsense\n", files) == wanted


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, None),
        ({"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"}, 3.0),
        ({"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ({"memory/a/cpu.cfs_quota_us": "300000", "memory/a/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_quota_of_version_one_control_groups(tmp_path, files, wanted):
    assert quota(tmp_path, "5:memory:/a\n4:cpu,cpuacct:/a\n", files) == wanted


def test_no_control_groups_at_all(tmp_path):
    assert config._cgroup_quota(tmp_path, tmp_path / "missing") is None


@pytest.mark.parametrize(("quota", "wanted"), [(None, 6), (2.5, 2), (0.5, 1), (64.0, 6)])
def test_default_is_the_smaller_of_affinity_and_quota(monkeypatch, quota, wanted):
    monkeypatch.delenv("CRNN_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr(config, "_cgroup_quota", lambda: quota)
    assert config.default_threads() == wanted


def test_the_environment_overrides(monkeypatch):
    monkeypatch.setenv("CRNN_NUM_THREADS", " 3 ")
    assert config.default_threads() == 3
    monkeypatch.setenv("CRNN_NUM_THREADS", "")
    assert config.default_threads() >= 1
    for bad in ("0", "-1", "two", "1.5", "²"):
        monkeypatch.setenv("CRNN_NUM_THREADS", bad)
        with pytest.raises(ValueError, match="CRNN_NUM_THREADS must be a whole number of at least 1"):
            config.default_threads()


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=Path(crnn.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_default_is_in_force_from_the_first_layer_on():
    done = run("import crnn; crnn.RNN(2, 2); print(crnn.get_num_threads())", CRNN_NUM_THREADS="3")
    assert done.stdout.strip() == "3", done.stderr
    done = run("import crnn; crnn.RNN(2, 2)", CRNN_NUM_THREADS="many")
    assert done.returncode != 0
    assert "CRNN_NUM_THREADS must be a whole number of at least 1, got 'many'" in done.stderr


def test_importing_crnn_is_light():
    done = run(
        "import sys, crnn; print(*sorted({'numpy', 'scipy', 'nltk', 'tqdm', 'safetensors', 'matplotlib', 'torch'} "
        "& set(sys.modules)))"
    )
    assert done.stdout.strip() == "", done.stderr
    done = run(
        "import sys, crnn; crnn.LSTM(2, 2); print(*sorted({'nltk', 'tqdm', 'safetensors', 'matplotlib', 'torch'} "
        "& set(sys.modules)))"
    )
    assert done.stdout.strip() == "", done.stderr


@pytest.mark.parametrize("zipped", [False, True])
def test_sources_that_were_not_built_say_so_in_one_sentence(tmp_path, zipped):
    """As in a checkout after `pip install .`, whose folder Python searches before the installed package."""
    package = Path(crnn.__file__).parent
    shutil.copytree(package, tmp_path / "crnn", ignore=shutil.ignore_patterns("_kernels.*", "__pycache__"))
    place = tmp_path
    if zipped:
        place = Path(shutil.make_archive(str(tmp_path / "copy"), "zip", tmp_path, "crnn"))
        shutil.rmtree(tmp_path / "crnn")
    # Without site-packages' .pth files, where an editable install hooks in; NumPy is found all the same.
    path = os.pathsep.join([str(place), str(Path(np.__file__).parents[1])])

    def error(*arguments: str) -> str:
        command = [sys.executable, "-S", *arguments]
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(command, env=environment, cwd=place.parent, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        return done.stderr

    wanted = (
        f"the crnn in {place} has no compiled kernels for this Python (sources that were not built, or a zip file): "
        "start Python in another folder to get an installed crnn, or build this one: pip install -e ."
    )
    for code in ("import crnn; crnn.LSTM", "from crnn import LanguageModel", "from crnn.optim import SGD"):
        assert error("-c", code).splitlines()[-1] == f"ImportError: {wanted}"
    assert error("-m", "crnn", "info") == f"crnn: {wanted}\n"


def test_setting_the_number_of_threads():
    crnn.set_num_threads(np.int64(2))
    assert crnn.get_num_threads() == 2
    assert type(crnn.get_num_threads()) is int
    crnn.set_num_threads(1)
    assert crnn.get_num_threads() == 1
    for bad in (0, -3):
        with pytest.raises(ValueError, match=f"n must be at least 1, got {bad}"):
            crnn.set_num_threads(bad)
    for bad in (1.0, "2", None, True):
        with pytest.raises(TypeError, match="n must be a whole number"):
            crnn.set_num_threads(bad)
    assert crnn.get_num_threads() == 1


def test_show_config_prints_and_returns_what_runs(capsys):
    crnn.set_num_threads(1)
    shown = crnn.show_config()
    printed = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    assert list(printed) == list(shown) == list(config.describe())
    assert shown["crnn"] == crnn.__version__
    assert shown["numpy"] == np.__version__
    assert shown["isa"] == _kernels.isa() in shown["available_isas"]
    assert printed["isa"].strip() == shown["isa"]
    assert shown["threads"] == 1
    assert shown["blas"]


def test_kept_memory_goes_back_when_asked():
    statm = Path("/proc/self/statm")

    def resident() -> int | None:
        """Bytes that the system has given to this process, where it says so."""
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else None

    size = 96 << 20
    crnn.release_memory()
    held = _kernels.empty((size,), np.uint8)
    held.fill(1)
    at, full = held.ctypes.data, resident()
    del held
    if full is not None:
        assert resident() > full - size // 4
    again = _kernels.empty((size,), np.uint8)  # kept for the next call
    assert again.ctypes.data == at
    assert again[0] == again[-1] == 1
    crnn.release_memory()  # what somebody holds stays
    assert again[0] == again[-1] == 1
    del again
    crnn.release_memory()
    if full is not None:
        assert resident() < full - size // 4 * 3
