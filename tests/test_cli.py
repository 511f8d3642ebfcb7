import os
import subprocess
import sys

import pytest
from cli_runs import fails, run

import crnn
from crnn.cli import main as program

COMMANDS = ("train", "evaluate", "generate", "info", "gradcheck", "recipes", "plot", "inspect", "export", "benchmark")


def test_help_lists_every_command(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for command in COMMANDS:
        assert f"\n    {command}" in out
    assert "examples:" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert out.startswith(f"usage: crnn {command}")


def test_version(capsys):
    assert run(capsys, "--version")[1] == f"crnn {crnn.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["bogus"], "invalid choice: 'bogus'"),
        (["train", "--lr", "fast"], "argument --lr: invalid float value"),
        (["train", "--truncate", "0"], "k must be at least 1"),
        (["train", "--truncate", "some"], "wanted K, full, window:K"),
        (["train", "--truncate", "chunk:4:2"], "at least k1"),
        (["train", "--truncate", "chunk:"], "argument --truncate: got 'chunk:', wanted K, full, window:K"),
        (["train", "--truncate", "window:x"], "argument --truncate: got 'window:x', wanted K, full"),
        (["train", "--truncate", "chunk:4:-2"], "argument --truncate: got 'chunk:4:-2', wanted K, full"),
        (["gradcheck", "--truncate", "4:"], "argument --truncate: got '4:', wanted K, full"),
        (["train", "--schedule", "step"], "wanted constant, halve"),
        (["train", "--schedule", "step:0.5"], "argument --schedule: 'step:0.5': step takes 2 to 3 number(s), got 1;"),
        (
            ["train", "--schedule", "constant:1"],
            "argument --schedule: 'constant:1': constant takes 0 number(s), got 1;",
        ),
        (["train", "--schedule", "halve:x"], "argument --schedule: 'halve:x': 'x' is not a number; wanted constant"),
        (["train", "--schedule", "plateau:0.5:-1"], "'plateau:0.5:-1': patience must be at least 0, got -1; wanted"),
        (["train", "--schedule", "plateau:0.5:1.5"], "'plateau:0.5:1.5': patience must be a whole number, not float;"),
        (["train", "--schedule", "exponential:"], "argument --schedule: 'exponential:': '' is not a number; wanted"),
        (["train", "--samples", "-1"], "argument --samples: got '-1', wanted a whole number of at least 0"),
        (["train", "--threads", "0"], "argument --threads: got '0', wanted a whole number of at least 1"),
        (
            ["evaluate", "m", "f", "--threads", "-2"],
            "argument --threads: got '-2', wanted a whole number of at least 1",
        ),
        (["gradcheck", "--tolerance", "nan"], "argument --tolerance: got 'nan', wanted a finite number above 0"),
        (["gradcheck", "--tolerance", "0"], "argument --tolerance: got '0', wanted a finite number above 0"),
        (["gradcheck", "--samples", "0"], "argument --samples: got '0', wanted a whole number of at least 1"),
        (
            ["inspect", "m", "--text", "t", "--most", "0"],
            "argument --most: got '0', wanted a whole number of at least 1",
        ),
        (["inspect", "m", "--text", "t", "--top", "-1"], "argument --top: got '-1', wanted a whole number of at least"),
        (["train", "--recipe", "soup"], "invalid choice: 'soup'"),
        (["train", "--seed", "-1"], "argument --seed: got '-1', wanted a whole number of at least 0"),
        (["generate", "m", "--seed", "x"], "argument --seed: got 'x', wanted a whole number of at least 0"),
        (["gradcheck", "--seed", "-1"], "argument --seed"),
        (["generate"], "required: MODEL"),
        (["inspect", "m"], "--text --file"),
    ],
)
def test_wrong_usage_is_one_line(capsys, arguments, message):
    line = fails(capsys, *arguments, code=2)
    assert message in line
    assert line.endswith("--help)")


def test_unexpected_errors_are_one_line_too(capsys, monkeypatch):
    def broken(options):
        raise KeyError("inner")

    monkeypatch.setattr("crnn.cli.recipes.run", broken)
    assert "unexpected KeyError: 'inner'" in fails(capsys, "recipes")
    monkeypatch.setenv("CRNN_TRACEBACK", "1")
    with pytest.raises(KeyError):
        program.main(["recipes"])


def test_interruption_anywhere(capsys, monkeypatch):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("crnn.cli.recipes.run", interrupted)
    code, out, err = run(capsys, "recipes")
    assert (code, out, err.strip()) == (130, "", "crnn: interrupted")


def test_interruption_while_the_program_loads(capsys, monkeypatch):
    from crnn.__main__ import start

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "build_parser", interrupted)
    assert start() == 130
    assert capsys.readouterr().err.strip() == "crnn: interrupted"


def test_errors_of_several_lines_become_one():
    assert program.describe(ValueError("first:\n  second\n  third")) == "first: second; third"
    assert program.describe(FileNotFoundError(2, "No such file or directory", "x.csv")) == (
        "x.csv: no such file or directory"
    )
    assert program.describe(MemoryError()) == "not enough memory"


def test_the_module_is_the_program_and_survives_a_closed_pipe():
    command = f'"{sys.executable}" -m crnn recipes | "{sys.executable}" -c "import sys; sys.stdin.read(1)"'
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=os.environ.copy(), check=False)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def program_run(code, **options):
    command = [sys.executable, "-c", f"from crnn.cli import main as program; {code}"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, encoding="ascii", check=False, **options)


def test_an_output_that_lacks_a_character_shows_its_escape():
    code = "program.recipes.run = lambda options: print('na\\u00efve \\u2192'); program.main(['recipes'])"
    done = program_run(code, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.stdout == "na\\xefve \\u2192\n"
    done = program_run(code, env={**os.environ, "PYTHONIOENCODING": "ascii:replace"})
    assert done.stdout == "na?ve ?\n"


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_closed_streams_are_no_obstacle(closed):
    code = (
        f"import sys; sys.{closed} = None\n"
        "from crnn.cli.options import note, progress_bar\n"
        "def run(options):\n"
        "    note('seen')\n"
        "    print('printed')\n"
        "    with progress_bar('title', 'unit') as update: update(1, 2)\n"
        "    return 7\n"
        "program.recipes.run = run\n"
        "code = program.main(['recipes']); sys.exit(code)"
    )
    done = program_run(code)
    assert (done.returncode, done.stdout) == (7, "" if closed == "stdout" else "printed\n")


def test_warnings_are_lines_of_ours(capsys, monkeypatch):
    import warnings

    def warns(options):
        warnings.simplefilter("always")
        warnings.warn("mind the gap", RuntimeWarning, stacklevel=1)
        return 0

    monkeypatch.setattr("crnn.cli.recipes.run", warns)
    assert run(capsys, "recipes") == (0, "", "crnn: warning: mind the gap\n")
