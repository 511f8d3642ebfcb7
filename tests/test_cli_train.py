import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_runs import fails, run, write_comments

import crnn
from crnn.cli.corpus import Files, find_files
from crnn.cli.train_data import split
from crnn.history import History

SMALL = ("--hidden", "8", "--epochs", "2", "--samples", "2", "--lr", "0.05")


@pytest.fixture(scope="module")
def comments(tmp_path_factory):
    return write_comments(tmp_path_factory.mktemp("text") / "comments.csv")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def weights(path):
    return crnn.load(path).parameters.flat.tobytes()


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_a_run_says_what_it_does_and_leaves_a_model(capsys, comments, cell, tmp_path):
    code, out, err = run(
        capsys,
        "train",
        comments,
        "--column",
        "body",
        "--cell",
        cell,
        *SMALL,
        "--out",
        "m.safetensors",
        "--log",
        "h.jsonl",
    )
    assert code == 0, err
    assert "recipe     notes" in out
    assert "108 sentences" in out
    assert "valid ppl" in out
    assert "  1/2 " in out
    assert "  2/2 " in out
    assert "\nsaved m.safetensors\n" in out
    written = out.split("the model writes:\n\n")[1].splitlines()
    assert len(written) == 2
    assert "instead of 8000" in err
    model = crnn.load("m.safetensors")
    assert model.configuration.cell == cell
    assert model.configuration.bias is False
    assert model.vocabulary.words_found == len(model.vocabulary) - 3
    history = History.load("h.jsonl")
    assert [record["epoch"] for record in history] == [1, 2]
    assert history[1]["valid_loss"] < history[0]["valid_loss"]
    assert sorted(os.listdir(tmp_path)) == ["h.jsonl", "m.safetensors"]


@pytest.mark.skipif(os.name == "nt", reason="pipes by name")
def test_a_text_from_a_pipe(capsys, comments):
    command = [sys.executable, "-m", "crnn", "train", "--column", "body", "--quiet", *SMALL, "--out"]
    assert run(capsys, *command[3:], "a", comments)[0] == 0
    subprocess.run([*command, "b", "/dev/stdin"], input=comments.read_bytes(), check=True)
    assert weights("a") == weights("b")
    twice = [*command, "c", "/dev/stdin", "--valid", "/dev/stdin"]
    done = subprocess.run(twice, input=comments.read_bytes(), capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(b"crnn train: /dev/stdin: a pipe can be read only once, but two parts")
    assert not os.path.exists("c")


def test_the_same_seed_gives_the_same_model(capsys, comments):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(capsys, "train", comments, "--column", "1", *SMALL, "--seed", seed, "--out", name)[0] == 0
    assert weights("a") == weights("b") != weights("c")


def test_without_a_file_the_default_corpus_and_the_default_name(capsys, monkeypatch):
    texts = [f"Return the {word} of the object. Raise an error when it has none." for word in ("name", "size", "type")]
    monkeypatch.setattr("crnn.text.default_documents", lambda progress=None: iter(texts * 4))
    code, out, err = run(capsys, "train", *SMALL)
    assert code == 0, err
    assert "Python's own documentation" in out
    assert "name" in crnn.load("crnn-model.safetensors").vocabulary


def test_the_first_run_has_a_time_limit(capsys, monkeypatch):
    texts = ["Return the name of the object. Raise an error when it has none."] * 9
    monkeypatch.setattr("crnn.text.default_documents", lambda progress=None: iter(texts))
    limits = []
    fit = crnn.Trainer.fit
    monkeypatch.setattr(crnn.Trainer, "fit", lambda *a, **k: (limits.append(k["max_seconds"]), fit(*a, **k))[1])
    for options in ([], ["--epochs", "1"], ["--minutes", "0.5"]):
        assert run(capsys, "train", "--hidden", "4", "--quiet", *options)[0] == 0
    assert limits == [150.0, None, 30.0]


def test_quiet(capsys, comments):
    assert run(capsys, "train", comments, "--column", "body", *SMALL, "--quiet") == (0, "", "")


def test_the_tutorials_way_of_evaluating(capsys, comments):
    code, out, _ = run(capsys, "train", comments, "--column", "body", *SMALL, "--valid-on-train", "--sentences", "30")
    assert code == 0
    assert "30 sentences" in out
    assert "  0/2 " in out


def test_all_the_options_reach_the_model_and_the_trainer(capsys, comments):
    code, out, err = run(
        capsys, "train", comments, "--column", "body", *SMALL,
        *("--cell", "gru", "--layers", "2", "--embedding", "8", "--tie-weights", "--bias", "--reset-after"),
        *("--z-weighs", "state", "--dropout", "0.1", "--dtype", "float64", "--vocab", "20", "--truncate", "chunk:3:5"),
        *("--batch", "4", "--shuffle", "--bucket", "--optimizer", "adamw", "--lr", "0.01", "--weight-decay", "0.1"),
        *("--schedule", "plateau:0.5:1", "--warmup", "3", "--normalise", "tokens"),
        *("--clip", "1", "--clip-value", "0.5"),
        *("--accumulate", "2", "--keep-best", "--patience", "5", "--threads", "1", "--init-scale", "0.2"),
    )  # fmt: skip
    assert code == 0, err
    assert "Chunk(k1=3, k2=5)" in out
    assert "AdamW(learning_rate=0.01" in out
    assert "weight_decay=0.1" in out
    assert "clip 1" in out
    c = crnn.load("crnn-model.safetensors").configuration
    assert (c.cell, c.num_layers, c.embedding_size, c.tie_weights, c.bias) == ("gru", 2, 8, True, True)
    assert (c.reset_after, c.z_weighs, c.dropout, c.dtype) == (True, "state", 0.1, "float64")
    assert c.vocabulary_size == 20


def test_a_stream_of_characters(capsys, tmp_path):
    text = "".join(f"Line {i % 7} is here.\n\n" if i % 3 else "And ANOTHER one?\n" for i in range(90))
    (tmp_path / "play.txt").write_text(text, encoding="utf-8")
    code, out, err = run(
        capsys, "train", "--recipe", "char-rnn", "play.txt", *SMALL, "--layers", "1", "--batch", "4", "--truncate", "10"
    )
    assert code == 0, err
    assert "Chunk(k1=10, k2=10)" in out
    model = crnn.load("crnn-model.safetensors")
    assert set(model.vocabulary) == {*text, "UNKNOWN_TOKEN"}
    code, out, _ = run(capsys, "generate", "crnn-model.safetensors", "-n", "2", "--seed", "4", "--max-length", "50")
    assert code == 0
    assert "SENTENCE" not in out
    code, out, _ = run(capsys, "evaluate", "crnn-model.safetensors", "play.txt")
    assert code == 0
    assert out.splitlines()[2].split() == ["tokens", str(len(text) - 1)]


def test_a_folder_with_three_parts(capsys, tmp_path):
    rng = random.Random(1)
    for part, lines in (("train", 80), ("valid", 12), ("test", 9)):
        words = ("the", "<unk>", "market", "fell", "N", "points")
        text = "".join(f" {' '.join(rng.choices(words, k=rng.randint(3, 7)))} \n" for _ in range(lines))
        (tmp_path / f"ptb.{part}.txt").write_text(text, encoding="utf-8")
    code, out, err = run(capsys, "train", "--recipe", "zaremba-small", ".", *SMALL, "--embedding", "8", "--batch", "3")
    assert code == 0, err
    assert "test       loss" in out
    model = crnn.load("crnn-model.safetensors")
    assert set(model.vocabulary) == {"the", "<unk>", "market", "fell", "N", "points", "<eos>"}
    code, _, _ = run(capsys, "evaluate", "crnn-model.safetensors", "ptb.test.txt")
    assert code == 0


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (("train.csv", "validation.csv", "valid.csv.bak"), ("train.csv", "validation.csv", None)),
        (("train.csv", "train.csv~", "valid.orig", "test.csv.part"), ("train.csv", None, None)),
        (("ptb.TRAIN.txt.gz", "ptb.valid.txt", "test.tsv"), ("ptb.TRAIN.txt.gz", "ptb.valid.txt", "test.tsv")),
        (("wiki.train.tokens", "wiki.valid.raw", "train.md5"), ("wiki.train.tokens", "wiki.valid.raw", None)),
        (("ptb.train", "test"), ("ptb.train", None, "test")),
    ],
)
def test_only_texts_are_parts_of_a_corpus(tmp_path, names, parts):
    for name in names:
        (tmp_path / name).touch()
    assert find_files(tmp_path) == Files(*(None if part is None else tmp_path / part for part in parts))


def test_folders_without_clear_parts(tmp_path):
    (tmp_path / "train.csv.bak").touch()
    with pytest.raises(FileNotFoundError, match=r"no file like ptb\.train\.txt .*suffixes: txt, text, csv"):
        find_files(tmp_path)
    for name in ("train.csv", "valid.csv", "validation.csv"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"several valid files \(valid\.csv, validation\.csv\)"):
        find_files(tmp_path)


def test_validation_and_test_files(capsys, comments, tmp_path):
    write_comments(tmp_path / "v.csv", 7, seed=8)
    write_comments(tmp_path / "t.csv", 5, seed=9)
    code, out, err = run(
        capsys, "train", "--train", comments, "--valid", "v.csv", "--test", "t.csv", "--column", "body", *SMALL
    )
    assert code == 0, err
    assert "120 sentences" in out
    assert "test       loss" in out


def test_split():
    numbers = [[str(i)] for i in range(100)]
    train, valid = split(list(numbers), 0.1, 0)
    assert [v[0] for v in valid] == [str(i) for i in range(9, 100, 10)]
    assert len(train) == 90
    train, valid = split(list(numbers), 0.1, 1)
    assert train == numbers[:90]
    assert valid == numbers[90:]
    train, valid = split(list(numbers), 0.1, 4)
    # two tokens each; where a sentence's last one is among the last 5 of a quarter's 50
    assert [v[0] for v in valid] == [str(i) for i in (22, 23, 24, 47, 48, 49, 72, 73, 74, 97, 98, 99)]
    assert train == [n for n in numbers if n not in valid]
    assert split([["a"], ["b"]], 0.1, pieces=0) == ([["a"]], [["b"]])
    assert split([["a"], ["b"]], 1e-310, pieces=0) == ([["a"]], [["b"]])
    assert split([["a"], ["b"]], 0.1, pieces=1) == ([["a"]], [["b"]])
    with pytest.raises(ValueError, match="too few"):
        split([["a"]], 0.1, pieces=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["none.csv"], "none.csv: no such file or folder"),
        ([".", "--column", "body"], "no file like ptb.train.txt"),
        (["FILE", "--column", "text"], "no column 'text'; its columns are 'id' (0), 'body' (1)"),
        (["FILE", "--column", "2"], "2 column(s), 0 to 1, not 2"),
        (["--column", "body"], "--column: the default corpus is plain text"),
        (["FILE", "--encoding", "klingon"], "no text encoding 'klingon'"),
        (["FILE", "--out", "no/such/folder/m"], "--out: the folder"),
        (["FILE", "--log", "."], "--log: . is a folder"),
        (["FILE", "--train", "x.csv"], "FILE and --train"),
        (["FILE", "--valid", "none.csv"], "--valid: none.csv: no such file"),
        (["FILE", "--valid", "x.csv", "--valid-on-train"], "--valid and --valid-on-train"),
        (["FILE", "--hidden", "0"], "hidden_size"),
        (["FILE", "--epochs", "0"], "epochs"),
        (["FILE", "--lr", "-1"], "learning_rate"),
        (["FILE", "--clip", "-2"], "clip_norm"),
        (["FILE", "--vocab", "2"], "at least 4"),
        (["FILE", "--sentences", "0"], "--sentences"),
        (["FILE", "--valid-fraction", "0.9"], "--valid-fraction: got 0.9, wanted 0 (none) to 0.5"),
        (["FILE", "--valid-fraction", "-0.1"], "--valid-fraction: got -0.1, wanted 0 (none) to 0.5"),
        (["FILE", "--valid-fraction", "nan", "--valid-on-train"], "--valid-fraction: got nan, wanted 0 (none) to 0.5"),
        (["FILE", "--cell", "lstm", "--nonlinearity", "relu"], "--nonlinearity: only the rnn cell"),
        (["FILE", "--reset-after"], "--reset-after: only the gru cell"),
        (["FILE", "--optimizer", "adam", "--momentum", "0.9"], "--momentum: only sgd"),
        (["FILE", "--recipe", "char-rnn", "--optimizer", "sgd"], "give one with --lr"),
        (["FILE", "--layout", "stream", "--truncate", "full"], "--truncate: got full for a stream"),
        (["FILE", "--tie-weights"], "tie_weights"),
        (["FILE", "--checkpoint-every", "1"], "--checkpoint-every: give the folder"),
        (["FILE", "--valid-fraction", "0", "--keep-best"], "--keep-best: there is no validation text"),
        (["FILE", "--valid-fraction", "0", "--patience", "2"], "--patience: there is no validation text"),
        (["FILE", "--cosine", "--schedule", "constant"], "--cosine and --schedule"),
        (["FILE", "--out", "m.x", "--log", "m.x"], "--log: m.x is the file of --out too"),
        (["FILE", "--out", os.devnull], f"--out: {os.devnull} is a device or a pipe"),
        (["--resume", "nowhere"], "there is no checkpoint here"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(capsys, comments, tmp_path, options, message):
    arguments = [comments if option == "FILE" else option for option in options]
    assert message in fails(capsys, "train", "--quiet", *arguments)
    assert os.listdir(tmp_path) == []


def test_columns_and_names_of_files(capsys, comments, tmp_path):
    (tmp_path / "data").write_bytes(comments.read_bytes())
    assert run(capsys, "train", "data", "--column", "body", *SMALL, "--quiet")[0] == 0
    (tmp_path / "t.txt").write_text("a b", encoding="utf-8")
    assert "t.txt is plain text without columns" in fails(capsys, "train", "t.txt", "--column", "0", "--quiet")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"body\n", "empty.csv: documents: the corpus is empty"),
        (b"", "empty.csv: the file is empty"),
        (b"body\nHello.\n", "too few to keep a part for validation"),
        (b"body\nGr\xfc\xdfe\n", "empty.csv: byte 7 is not utf-8"),
    ],
)
def test_bad_texts(capsys, tmp_path, content, message):
    (tmp_path / "empty.csv").write_bytes(content)
    assert message in fails(capsys, "train", "--quiet", "empty.csv")


@pytest.mark.filterwarnings("always:.*never closed")
def test_an_open_quotation_mark_is_told_and_the_rest_is_used(capsys, tmp_path):
    (tmp_path / "open.csv").write_text('body\n"Never closed. \nYes.\nNo.\n', encoding="utf-8")
    code, _, err = run(capsys, "train", "open.csv", *SMALL, "--quiet")
    assert code == 0, err
    assert "row that starts on line 2 is never closed" in err


def test_one_word_sentences_are_fine(capsys, tmp_path):
    (tmp_path / "c.csv").write_text("body\nYes\nNo\nYes\nNo\n", encoding="utf-8")
    code, out, err = run(capsys, "train", "c.csv", *SMALL)
    assert code == 0, err
    assert "3 sentences, 6 tokens" in out


def test_divergence_keeps_the_last_good_weights(capsys, comments):
    line = fails(
        capsys, "train", comments, "--column", "body", *SMALL, "--quiet", "--nonlinearity", "relu", "--lr", "1e30"
    )
    assert "at step" in line
    assert "Try a lower learning rate" in line
    assert "saved in crnn-model.safetensors" in line
    code, out, _ = run(capsys, "evaluate", "crnn-model.safetensors", comments, "--column", "body")
    assert code == 0
    assert float(out.split()[1]) < 10.0


def test_an_unwritable_model_goes_elsewhere(capsys, comments, monkeypatch, tmp_path):
    save = crnn.LanguageModel.save

    def full(self, path):
        if Path(path).name == "m.safetensors":  # the name of a temporary file may end so
            raise OSError(28, "No space left on device", str(path))
        save(self, path)

    monkeypatch.setattr(crnn.LanguageModel, "save", full)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    line = fails(capsys, "train", comments, "--column", "body", *SMALL, "--quiet", "--out", "m.safetensors")
    assert "cannot write m.safetensors (No space left on device); the model is saved in" in line
    assert crnn.load(line.split("saved in ")[1].split(" instead")[0]).vocabulary is not None


def test_plots_and_tensorboard(capsys, comments, tmp_path):
    pytest.importorskip("matplotlib")
    code, _, err = run(
        capsys, "train", comments, "--column", "body", *SMALL, "--plot", "h.svg", "--tensorboard", "events"
    )
    assert code == 0, err
    assert (tmp_path / "h.svg").read_text(encoding="utf-8").lstrip().startswith("<?xml")
    assert len(os.listdir(tmp_path / "events")) == 1


RUN = ("--cell", "lstm", "--hidden", "8", "--epochs", "40", "--lr", "0.05", "--shuffle", "--dropout", "0.1", "--quiet")


def start(*arguments):
    environment = os.environ | {"CRNN_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [
        sys.executable,
        "-c",
        "import sys; from crnn.cli.main import main; sys.exit(main())",
        *map(str, arguments),
    ]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path, process):
    """Until `path` exists; the process must still run then."""
    for _ in range(6000):
        if path.exists():
            return
        if process.poll() is not None:
            break
        time.sleep(0.01)
    raise AssertionError(f"{path} did not appear: {process.communicate()}")


def timeless(path):
    """The records of a history without what a clock says."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in r.items() if k not in ("seconds", "tokens_per_second")} for r in records]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_and_resumed_is_the_same_run(capsys, comments, tmp_path, monkeypatch, number):
    monkeypatch.setenv("CRNN_NUM_THREADS", "1")
    text = ("train", comments, "--column", "body", *RUN)
    assert run(capsys, *text, "--out", "whole", "--log", "whole.jsonl", "--threads", "1")[0] == 0
    process = start(*text, "--out", "m", "--log", "m.jsonl", "--checkpoint", "ck", "--checkpoint-every", "0.0005")
    wait_for(tmp_path / "ck" / "checkpoint.safetensors", process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 130, err
        assert out == ""
        assert "the model is saved in m" in err
        assert "crnn train --resume ck" in err
        assert crnn.load("m").configuration.cell == "lstm"
    else:
        assert process.returncode == -signal.SIGKILL
    where = tmp_path / "elsewhere"
    where.mkdir()
    monkeypatch.chdir(where)
    assert run(capsys, "train", "--resume", tmp_path / "ck", "--threads", "1")[0] == 0
    assert weights(tmp_path / "m") == weights(tmp_path / "whole")
    assert os.listdir(where) == []
    assert timeless(tmp_path / "m.jsonl") == timeless(tmp_path / "whole.jsonl")


def test_resume_refuses_other_options_and_other_data(capsys, comments, tmp_path):
    own = tmp_path / "own.csv"
    own.write_bytes(comments.read_bytes())
    assert run(capsys, "train", own, "--column", "body", *SMALL, "--checkpoint", "ck")[0] == 0
    line = fails(capsys, "train", "--resume", "ck", "--quiet", "--hidden", "9", "--clip", "3", comments)
    assert "--hidden is 9, was 8" in line
    assert "--clip is 3.0, was not given" in line
    assert "--file" in line
    before = weights("crnn-model.safetensors")
    with own.open("a", encoding="utf-8") as stream:
        stream.write("99,Something new here.\n")
    line = fails(capsys, "train", "--resume", "ck", "--quiet")
    assert "vocabulary" in line
    assert weights("crnn-model.safetensors") == before


def test_resume_can_go_further(capsys, comments):
    text = ("train", comments, "--column", "body", "--hidden", "8", "--lr", "0.05", "--quiet")
    assert run(capsys, *text, "--epochs", "3", "--out", "whole")[0] == 0
    assert run(capsys, *text, "--epochs", "2", "--out", "m", "--checkpoint", "ck")[0] == 0
    assert run(capsys, "train", "--resume", "ck", "--epochs", "3", "--quiet")[0] == 0
    assert weights("m") == weights("whole")


def test_damaged_checkpoint(capsys, comments, tmp_path):
    assert run(capsys, "train", comments, "--column", "body", *SMALL, "--checkpoint", "ck", "--quiet")[0] == 0
    path = tmp_path / "ck" / "checkpoint.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 0xFF
    path.write_bytes(content)
    assert "damaged" in fails(capsys, "train", "--resume", "ck")


def test_a_run_that_breaks_off_leaves_its_model(capsys, comments, monkeypatch):
    def broken(self, trainer, record):
        if record["epoch"] == 2:
            raise RuntimeError("something is broken")

    monkeypatch.setattr(crnn.callbacks.EpochTable, "on_epoch_end", broken)
    code, _, error = run(capsys, "train", comments, "--column", "body", *SMALL, "--epochs", 3, "--out", "m.safetensors")
    assert code == 1
    assert "note: training broke off after step" in error
    assert "the model is saved in m.safetensors" in error
    assert crnn.load("m.safetensors").vocabulary is not None


def test_a_picture_of_no_known_kind_is_refused_before_training(capsys, comments, tmp_path):
    pytest.importorskip("matplotlib")
    message = "--plot: got curve.foo, wanted a name that ends in .png"
    assert message in fails(capsys, "train", "--quiet", comments, "--plot", "curve.foo")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("option", ["--out", "--log"])
def test_the_text_is_not_written_over(capsys, comments, option):
    before = comments.read_bytes()
    assert "is the file of the training text too" in fails(capsys, "train", "--quiet", comments, option, comments)
    assert comments.read_bytes() == before
