import json
import math
import sys

import numpy as np
import pytest
from cli_runs import fails, run, write_comments

import crnn
from crnn.language_model import LanguageModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="module")
def comments(folder):
    return write_comments(folder / "comments.csv")


@pytest.fixture(scope="module")
def model_path(folder, comments):
    sentences = crnn.text.sentences(crnn.text.read_csv(comments, "body"))
    vocabulary = crnn.Vocabulary.build(sentences, size=20)
    model = crnn.LanguageModel(vocabulary, "lstm", 7, 2, embedding_size=5, rng=3)
    model.initialise(3, scale=0.9)
    model.save(folder / "m.safetensors")
    return folder / "m.safetensors"


@pytest.fixture(scope="module")
def bare_path(folder):
    crnn.LanguageModel(9, "gru", 4, rng=1).save(folder / "bare.safetensors")
    return folder / "bare.safetensors"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---------------------------------------------------------------------------------------------------- evaluate


def test_evaluate_agrees_with_the_library(capsys, model_path, comments):
    code, out, err = run(capsys, "evaluate", model_path, comments, "--column", "body")
    assert code == 0
    model = crnn.load(model_path)
    ids = [model.vocabulary.encode(s) for s in crnn.text.sentences(crnn.text.read_csv(comments, "body"))]
    loss = model.loss([i[:-1] for i in ids], [i[1:] for i in ids])
    values = dict(line.split()[:2] for line in out.splitlines())
    assert list(values) == ["loss", "perplexity", "tokens"]
    assert float(values["loss"]) == pytest.approx(loss, abs=2e-6)
    assert float(values["perplexity"]) == pytest.approx(math.exp(loss), rel=1e-3)
    assert int(values["tokens"]) == sum(len(i) - 1 for i in ids)
    assert "are outside the vocabulary and count as UNKNOWN_TOKEN" in err


def test_evaluate_as_json(capsys, model_path, comments):
    code, out, err = run(capsys, "evaluate", model_path, comments, "--column", "1", "--json", "--quiet")
    assert (code, err) == (0, "")
    values = json.loads(out)
    assert values["perplexity"] == pytest.approx(math.exp(values["loss"]))
    assert values["unknown"] > 0


def test_evaluate_as_json_beyond_the_range_of_floats(capsys, tmp_path):
    vocabulary = crnn.Vocabulary.build([["a", "b"]], level="whitespace")
    model = crnn.LanguageModel(vocabulary, "gru", 4, rng=0)
    model.params["output.bias"][vocabulary.id("a")] = -4000.0
    model.save("m.safetensors")
    (tmp_path / "t.txt").write_text("a a a\n", encoding="utf-8")
    code, out, _ = run(capsys, "evaluate", "m.safetensors", "t.txt", "--json")
    assert code == 0
    assert json.loads(out, parse_constant=pytest.fail)["perplexity"] == sys.float_info.max


def test_evaluate_errors(capsys, model_path, bare_path, comments, tmp_path):
    assert "no column 'text'" in fails(capsys, "evaluate", model_path, comments, "--column", "text")
    assert "none.csv: no such file" in fails(capsys, "evaluate", model_path, "none.csv")
    assert "this model has no vocabulary" in fails(capsys, "evaluate", bare_path, comments)
    assert "no such file" in fails(capsys, "evaluate", "none.safetensors", comments)
    (tmp_path / "cut.safetensors").write_bytes(model_path.read_bytes()[:-100])
    assert "cut.safetensors: not a model file, or truncated" in fails(capsys, "evaluate", "cut.safetensors", comments)


# ---------------------------------------------------------------------------------------------------- generate


def test_generate_prints_sentences_and_nothing_else(capsys, model_path):
    code, out, err = run(capsys, "generate", model_path, "-n", "6", "--seed", "2", "--max-length", "12")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 6
    assert "SENTENCE" not in out
    assert "UNKNOWN" not in out
    assert run(capsys, "generate", model_path, "-n", "6", "--seed", "2", "--max-length", "12")[1] == out
    assert run(capsys, "generate", model_path, "-n", "6", "--seed", "3", "--max-length", "12")[1] != out


def test_generate_options_reach_the_model(capsys, model_path, monkeypatch):
    seen = {}

    def generate(self, n, **options):
        seen.update(options, n=n)
        return ["one", "two\nlines"]

    monkeypatch.setattr(LanguageModel, "generate", generate)
    code, out, _ = run(
        capsys, "generate", model_path, "-n", "2", "--seed", "5", "--temperature", "0.5", "--top-k", "3", "--top-p",
        "0.9", "--greedy", "--prompt", "the cat", "--min-length", "2", "--max-length", "9", "--unknown",
    )  # fmt: skip
    assert code == 0
    assert out == "one\ntwo lines\n"
    assert seen == {
        "n": 2, "seed": 5, "temperature": 0.5, "top_k": 3, "top_p": 0.9, "greedy": True, "prompt": "the cat",
        "min_length": 2, "max_length": 9, "allow_unknown": True, "until_end": True,
    }  # fmt: skip


def test_generate_from_a_prompt(capsys, model_path):
    code, out, _ = run(capsys, "generate", model_path, "-n", "3", "--prompt", "The cat", "--max-length", "8")
    assert code == 0
    assert all(line.startswith("the cat") for line in out.splitlines())


@pytest.mark.parametrize(
    ("options", "message"),
    [(["-n", "0"], "n must be"), (["--temperature", "0"], "temperature"), (["--top-p", "2"], "top_p")],
)
def test_generate_errors(capsys, model_path, options, message):
    assert message in fails(capsys, "generate", model_path, *options)


def test_generate_needs_words(capsys, bare_path):
    assert "this model has no vocabulary" in fails(capsys, "generate", bare_path)


# ---------------------------------------------------------------------------------------------------- info


def test_info_of_a_model(capsys, model_path):
    code, out, _ = run(capsys, "info", model_path)
    assert code == 0
    model = crnn.load(model_path)
    assert f"parameters ({model.parameters.size:,})" in out
    for name, array in model.params.items():
        line = next(line for line in out.splitlines() if line.split()[:1] == [name])
        assert line.split(maxsplit=1)[1].strip() == " x ".join(map(str, array.shape))
    assert "entries                     20" in out


def test_info_as_json(capsys, model_path, bare_path):
    facts = json.loads(run(capsys, "info", model_path, "--json")[1])
    assert facts["configuration"]["cell"] == "lstm"
    assert facts["vocabulary"]["entries"] == 20
    assert facts["bytes"] == model_path.stat().st_size
    assert json.loads(run(capsys, "info", bare_path, "--json")[1])["vocabulary"] is None
    assert "vocabulary: none" in run(capsys, "info", bare_path)[1]


def test_info_of_the_machine(capsys):
    code, out, _ = run(capsys, "info")
    assert code == 0
    assert "isa:" in out
    assert json.loads(run(capsys, "info", "--json")[1])["crnn"] == crnn.__version__


# ---------------------------------------------------------------------------------------------------- gradcheck


@pytest.mark.parametrize(("cell", "checks"), [("rnn", 3), ("lstm", 1), ("gru", 4)])
def test_gradcheck_lists_every_tensor(capsys, cell, checks):
    code, out, err = run(capsys, "gradcheck", "--cell", cell, "--truncate", "3", "--samples", "6", "--length", "6")
    assert (code, err) == (0, "")
    assert out.count("Window(k=3): passed") == checks
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        assert out.count(f"rnn.{name} ") == checks
    assert out.count("output.weight ") == out.count("output.bias ") == checks


def test_gradcheck_of_every_truncation_and_a_stack(capsys):
    code, out, _ = run(
        capsys, "gradcheck", "--cell", "lstm", "--layers", "2", "--hidden", "3", "--vocab", "7", "--embedding", "4",
        "--no-bias", "--samples", "3",
    )  # fmt: skip
    assert code == 0
    assert out.count("passed") == 4
    assert "embedding.weight" in out
    assert "bias" not in out


def test_gradcheck_fails_loudly(capsys, monkeypatch):
    correct = LanguageModel.gradients

    def wrong(self, x, y, truncation=None):
        gradients = correct(self, x, y, truncation)
        gradients["rnn.weight_hh_l0"] = gradients["rnn.weight_hh_l0"] * 1.001
        return gradients

    monkeypatch.setattr(LanguageModel, "gradients", wrong)
    code, out, err = run(capsys, "gradcheck", "--cell", "lstm", "--truncate", "full", "--samples", "4")
    assert code == 1
    assert "WRONG" in out
    assert "rnn.weight_hh_l0" in err
    assert "1 check(s) failed" in err


# ---------------------------------------------------------------------------------------------------- the others


def test_recipes(capsys):
    from crnn.recipes import RECIPES

    code, out, _ = run(capsys, "recipes")
    assert code == 0
    for name, recipe in RECIPES.items():
        assert f"{name}: {recipe.about}" in out
    assert len(run(capsys, "recipes", "--brief")[1].splitlines()) == len(RECIPES)
    assert "hidden_size         200" in run(capsys, "recipes", "zaremba-small")[1]
    assert "'soup'" in fails(capsys, "recipes", "soup")


RECORD = {
    "epoch": 1, "train_loss": 5.0, "valid_loss": 4.0, "valid_perplexity": 54.6, "learning_rate": 0.1, "tokens": 10,
    "seconds": 1.0, "tokens_per_second": 10.0,
}  # fmt: skip


def test_plot(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("a", "b"):
        lines = [json.dumps(RECORD | {"epoch": epoch}) for epoch in (1, 2, 3)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert run(capsys, "plot", "a.jsonl")[0] == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = run(capsys, "plot", "a.jsonl", "b.jsonl", "--perplexity", "--title", "two", "--out", "two.svg")
    assert (code, err) == (0, "wrote two.svg\n")
    assert "no such file" in fails(capsys, "plot", "none.jsonl")
    (tmp_path / "x.jsonl").write_text("{}\n", encoding="utf-8")
    assert "not a history record" in fails(capsys, "plot", "x.jsonl")


def test_export_arrays_and_words(capsys, model_path, tmp_path):
    code, _, err = run(capsys, "export", model_path, "m.npz", "--vocabulary", "v.json")
    assert (code, err) == (0, "wrote m.npz\nwrote v.json\n")
    model = crnn.load(model_path)
    with np.load("m.npz") as arrays:
        assert set(arrays) == set(model.params)
        assert all(np.array_equal(arrays[name], array) for name, array in model.params.items())
    assert crnn.Vocabulary.load("v.json") == model.vocabulary
    assert "ends in .onnx or .npz" in fails(capsys, "export", model_path, "m.txt")
    assert "--probabilities" in fails(capsys, "export", model_path, "m.npz", "--probabilities")
    assert "OUT: the folder" in fails(capsys, "export", model_path, "no/folder/m.npz")


def test_export_onnx(capsys, model_path, tmp_path):
    onnx = pytest.importorskip("onnx")
    code, _, err = run(capsys, "export", model_path, "m.onnx", "--probabilities")
    assert code == 0, err
    assert "probabilities" in [output.name for output in onnx.load("m.onnx").graph.output]
    assert "note:" not in err


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_export_tells_that_onnx_runtime_has_no_float64(capsys, cell):
    pytest.importorskip("onnx")
    crnn.LanguageModel(9, cell, 4, dtype="float64", rng=1).save("m.safetensors")
    code, _, err = run(capsys, "export", "m.safetensors", "m.onnx")
    assert code == 0, err
    assert "note: the graph is float64" in err
    assert "note:" not in run(capsys, "export", "m.safetensors", "m.npz")[2]
    # the cure that the note names
    crnn.load("m.safetensors").copy("float32").save("c.safetensors")
    assert run(capsys, "export", "c.safetensors", "c.onnx")[2] == "wrote c.onnx\n"
    runtime = pytest.importorskip("onnxruntime")
    states = {name: np.zeros((1, 1, 4), np.float32) for name in (("h_0", "c_0") if cell == "lstm" else ("h_0",))}
    session = runtime.InferenceSession("c.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {"ids": np.zeros((1, 2), np.int64), **states})[0].shape == (1, 2, 9)


def test_inspect(capsys, model_path, tmp_path):
    code, out, err = run(
        capsys,
        "inspect",
        model_path,
        "--text",
        "The cat sees <b> it. My dog!",
        "--html",
        "look.html",
        "--title",
        "A & B",
    )
    assert (code, err) == (0, "wrote look.html\n")
    page = (tmp_path / "look.html").read_text(encoding="utf-8")
    assert "<h1>A &amp; B</h1>" in page
    assert "&lt;" in page
    assert "<b>" not in page
    assert "http" not in page
    assert out.split()[1] == "nats/token"
    assert page.count("<span data-n=") == int(out.split()[3]) + 2  # nothing predicts the markers that begin sentences


def test_inspect_a_file_in_part(capsys, model_path, tmp_path):
    (tmp_path / "t.txt").write_text("The cat sees it. It sees the cat. " * 20, encoding="utf-8")
    code, out, err = run(capsys, "inspect", model_path, "--file", "t.txt", "--most", "7")
    assert code == 0
    assert "first 7 tokens only, of 200" in err
    assert (tmp_path / "inspection.html").exists()
    assert int(out.split()[3]) == 7 + 2
    assert "corpus is empty" in fails(capsys, "inspect", model_path, "--text", "")
    assert "--encoding: says how a file is read" in fails(
        capsys, "inspect", model_path, "--text", "x", "--encoding", "utf-8"
    )


def test_inspect_tells_that_one_long_sentence_is_cut(capsys, model_path, tmp_path):
    for most, told in (("5", True), ("6", False)):
        code, out, err = run(capsys, "inspect", model_path, "--text", "The cat sees the cat.", "--most", most)
        assert (code, int(out.split()[3])) == (0, int(most) + 1)
        assert ("first 5 tokens only, of 6 (--most)" in err) == told


@pytest.fixture(scope="module")
def readers(folder):
    """Models of every level, of sentences and of streams."""
    paths = []
    for level in ("word", "whitespace", "character"):
        for markers in ({}, {"start": "\n", "end": "\n"}):
            tokens = [list("abcdefghi .\t")] if level == "character" else [["a", "bc", "def", "."]]
            vocabulary = crnn.Vocabulary.build(tokens, level=level, **markers)
            model = crnn.LanguageModel(vocabulary, "gru", 5, rng=3)
            model.initialise(3, scale=0.9)
            paths.append(folder / f"{level}-{len(markers)}.safetensors")
            model.save(paths[-1])
    return paths


@pytest.mark.parametrize("name", ["t.txt", "t.csv"])
def test_inspect_reads_a_file_as_evaluate_does(capsys, readers, tmp_path, name):
    content = "a bc\r\n\r\n\n def. A bc\rxyz\t\n\n\n" * 3
    (tmp_path / name).write_bytes(f'n,body\n1,"{content}"\n'.encode() if name == "t.csv" else content.encode())
    options = ["--column", "body"] if name == "t.csv" else []
    for path in readers:
        _, out, _ = run(capsys, "evaluate", path, name, *options, "--json", "--quiet")
        wanted = json.loads(out)
        code, out, err = run(capsys, "inspect", path, "--file", name, *options)
        assert (code, err) == (0, "wrote inspection.html\n")
        assert int(out.split()[3]) == wanted["tokens"]
        assert float(out.split()[0]) == pytest.approx(wanted["loss"], abs=1e-4)
        if name == "t.txt":
            assert run(capsys, "inspect", path, "--text", content)[1] == out


def test_a_model_that_is_a_circle_of_links(capsys, tmp_path):
    (tmp_path / "m").symlink_to("m")
    assert "m: too many levels of symbolic links" in fails(capsys, "inspect", "m", "--text", "x")


def test_names_that_are_not_utf8(capsys, model_path, tmp_path):
    name = "o\udce9.safetensors"  # what Python makes of the byte E9
    try:
        (tmp_path / name).write_bytes(model_path.read_bytes())
    except (OSError, UnicodeError):
        pytest.skip("this file system has UTF-8 names only")
    code, _, err = run(capsys, "inspect", name, "--text", "caf\udce9 it")
    assert code == 0, err
    assert "<h1>o\ufffd.safetensors</h1>" in (tmp_path / "inspection.html").read_text(encoding="utf-8")


def test_benchmark(capsys, monkeypatch):
    from crnn import selfbench

    monkeypatch.setattr(selfbench, "measure", lambda *a: {"peak": 1.0, "isa": "x", "threads": 1, "timings": []})
    code, out, _ = run(capsys, "benchmark", "--cell", "rnn", "--json")
    assert code == 0
    assert json.loads(out)["threads"] == 1
    assert "--threads must be at least 1, got 0" in fails(capsys, "benchmark", "--threads", "0")
