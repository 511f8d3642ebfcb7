import base64
import json

import numpy as np
import pytest

import crnn
from crnn.inspection import inspect
from crnn.inspection_page import page

SENTENCES = [["a", "b", "c", "a"], ["c", "zzz", "b"]]
VARIANTS = [
    ("rnn", {"nonlinearity": "relu"}),
    ("lstm", {}),
    ("lstm", {"bias": False}),
    ("gru", {}),
    ("gru", {"reset_after": True, "z_weighs": "state"}),
]


def make_model(cell="lstm", embedding=None, vocabulary=None, **options):
    vocabulary = vocabulary or crnn.Vocabulary.build([["a", "b", "c"]])
    model = crnn.LanguageModel(vocabulary, cell, 5, 2, embedding_size=embedding, dtype=np.float64, rng=2, **options)
    model.initialise(2, scale=0.8)
    return model


def sequences(model):
    return [model.vocabulary.encode(sentence) for sentence in SENTENCES]


def test_surprise_and_guesses_are_the_models():
    model = make_model()
    result = inspect(model, SENTENCES, top=3)
    assert result.tokens[:6] == ["SENTENCE_START", "a", "b", "c", "a", "SENTENCE_END"]
    assert result.tokens[8] == "zzz"
    assert np.flatnonzero(~result.known).tolist() == [8]
    at = 0
    for ids in sequences(model):
        losses = model.token_losses(ids[:-1], ids[1:])
        probabilities = model.probabilities(ids[:-1])
        assert np.isnan(result.surprise[at])
        assert result.guesses[at] == []
        np.testing.assert_allclose(result.surprise[at + 1 : at + len(ids)], losses, rtol=1e-12)
        for row, guesses in zip(probabilities, result.guesses[at + 1 :]):
            assert [word for word, _ in guesses] == [model.vocabulary.token(i) for i in np.argsort(-row)[:3]]
            np.testing.assert_allclose([p for _, p in guesses], np.sort(row)[::-1][:3])
        at += len(ids)
    assert result.loss == pytest.approx(np.nanmean(result.surprise))
    assert result.predictions == sum(len(ids) - 1 for ids in sequences(model))


@pytest.mark.parametrize("embedding", [None, 4])
@pytest.mark.parametrize(("cell", "options"), VARIANTS)
def test_gates_lead_from_state_to_state(cell, options, embedding):
    """The equations that join gates and states hold along the text; with the weights they make the gates themselves."""
    model = make_model(cell, embedding, **options)
    traces = inspect(model, SENTENCES).traces
    starts = {0, len(SENTENCES[0]) + 2}
    for layer in ("1", "2"):
        h = traces[f"hidden {layer}"]
        before = np.array([h[t - 1] * (t not in starts) for t in range(len(h))])
        if cell == "lstm":
            c, i, f, g, o = (
                traces[f"{name} {layer}"] for name in ("cell", "input gate", "forget gate", "candidate", "output gate")
            )
            c_before = np.array([c[t - 1] * (t not in starts) for t in range(len(c))])
            np.testing.assert_allclose(c, f * c_before + i * g, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(h, o * np.tanh(c), rtol=1e-9, atol=1e-12)
        elif cell == "gru":
            z, n = traces[f"update gate {layer}"], traces[f"candidate {layer}"]
            weighs = z if options.get("z_weighs") == "state" else 1 - z
            np.testing.assert_allclose(h, weighs * before + (1 - weighs) * n, rtol=1e-9, atol=1e-12)
            assert ((traces[f"reset gate {layer}"] > 0) & (traces[f"reset gate {layer}"] < 1)).all()
        else:
            assert list(traces) == ["hidden 1", "hidden 2"]
            assert (h >= 0).all()
            weight = model.params["rnn.weight_hh_l1"]
            if layer == "2":
                inner = traces["hidden 1"] @ model.params["rnn.weight_ih_l1"].T + before @ weight.T
                inner += model.params["rnn.bias_ih_l1"] + model.params["rnn.bias_hh_l1"]
                np.testing.assert_allclose(h, np.maximum(inner, 0), rtol=1e-9, atol=1e-12)


def test_probabilities_that_underflow_have_their_surprise():
    vocabulary = crnn.Vocabulary.build([["a", "b", "c"]])
    model = crnn.LanguageModel(vocabulary, "gru", 4, rng=0)
    model.params["output.bias"][vocabulary.id("a")] = -400.0
    ids = vocabulary.encode(["a", "a"])
    result = inspect(model, [["a", "a"]])
    np.testing.assert_allclose(result.surprise[1:], model.token_losses(ids[:-1], ids[1:]))
    assert result.surprise[1] > 390.0
    assert result.loss == pytest.approx(model.loss(ids[:-1], ids[1:]))


def test_a_prediction_that_is_nan_is_told():
    model = make_model("rnn", nonlinearity="relu")
    for array in model.params.values():
        array[...] = 0.0
    model.params["rnn.weight_ih_l0"][:2, model.vocabulary.id("b")] = 1e200
    model.params["rnn.weight_ih_l1"][:2, :2] = np.eye(2)
    model.params["output.weight"][model.vocabulary.id("c"), :2] = [1e200, -1e200]  # after "b": inf - inf
    with pytest.raises(ArithmeticError, match="model: the loss of token 5, 'c', is nan; its weights are not usable"):
        inspect(model, [["a"], ["b", "c", "a"]])


def test_one_marker_makes_one_stream():
    vocabulary = crnn.Vocabulary.build([["a", "b", "c"]], start="$", end="$")
    model = make_model(vocabulary=vocabulary)
    result = inspect(model, SENTENCES)
    assert result.tokens == ["a", "b", "c", "a", "$", "c", "zzz", "b", "$"]
    assert result.predictions == 8
    ids = vocabulary.encode_stream(SENTENCES)
    np.testing.assert_allclose(result.surprise[1:], model.token_losses(ids[:-1], ids[1:]), rtol=1e-12)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="no vocabulary"):
        inspect(crnn.LanguageModel(5, rng=0), SENTENCES)
    with pytest.raises(ValueError, match="sentences: got none"):
        inspect(make_model(), [])
    one_marker = make_model(vocabulary=crnn.Vocabulary.build([["a", "b", "c"]], start="$", end="$"))
    with pytest.raises(ValueError, match="sentences: got one without tokens"):
        inspect(one_marker, [[]])
    with pytest.raises(ValueError, match="top"):
        inspect(make_model(), SENTENCES, top=0)
    assert len(inspect(make_model(), SENTENCES, top=99).guesses[1]) == 6


def test_the_page_holds_everything():
    model = make_model()
    sentences = [["a", "</script>", "b"], ["<i>", "c"]]
    result = inspect(model, sentences)
    text = page(result, "<title>", "word", ("SENTENCE_START", "SENTENCE_END"))
    assert "&lt;title&gt;" in text
    assert text.count("</script>") == 2
    assert text.count("<script") == 2
    for outside in ("http:", "https:", "src=", "@import", "url("):
        assert outside not in text
    raw = text.split('id="data">')[1].split("</script>")[0]
    data = json.loads(raw)
    assert [word["token"] for word in data["words"]] == result.tokens
    assert data["words"][0]["surprise"] is None
    trace = data["traces"]["cell 2"]
    values = np.frombuffer(base64.b64decode(trace["bytes"]), np.uint8).reshape(len(result.tokens), data["units"])
    restored = trace["low"] + (trace["high"] - trace["low"]) * values / 255
    np.testing.assert_allclose(restored, result.traces["cell 2"], atol=(trace["high"] - trace["low"]) / 500)
    assert set(data["traces"]) == set(result.traces)
    assert all(f'<option value="{name}">' in text for name in result.traces)


def test_a_constant_trace_has_no_scale():
    model = make_model("rnn", nonlinearity="relu")
    for array in model.params.values():
        array[...] = 0.0
    result = inspect(model, [["a"]])
    assert '"low": 0.0, "high": 0.0' in page(result, "t")


def test_characters_stand_without_blanks():
    vocabulary = crnn.Vocabulary.build(["ab"], level="character", start="\n", end="\n")
    text = page(inspect(make_model(vocabulary=vocabulary), [["a", "b"], ["b"]]), "t", "character", ("\n", "\n"))
    assert "</span><span" in text
    assert "</span> <span" not in text
    assert text.count("<br>") == 2
