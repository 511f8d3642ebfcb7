"""Readable text from tokens: the way back from word tokenisation, for reading, not for byte-exact round trips."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["join"]

# Tokens that stand directly behind the word before them, and those that the next word follows directly.
_CLOSING = frozenset(".,;:!?%)]}…’”»") | {"...", "''", "?!", "!!", "n't"}
_OPENING = frozenset("([{$#@“‘«") | {"``"}
_CONTRACTIONS = frozenset({"'s", "'re", "'ve", "'ll", "'d", "'m", "'em", "’s", "’re", "’ve", "’ll", "’d", "’m", "n’t"})
# NLTK cuts these words in two although nothing stands between the halves.
_PAIRS = frozenset(
    {
        ("can", "not"),
        ("gon", "na"),
        ("wan", "na"),
        ("got", "ta"),
        ("gim", "me"),
        ("lem", "me"),
        ("d'", "ye"),
        ("more", "'n"),
        ("'t", "is"),
        ("'t", "was"),
    }
)


def join(tokens: Iterable[str], *, level: str = "word") -> str:
    """Tokens as one readable line.

    At word level punctuation is set tight, contractions are closed (``do n't`` -> ``don't``), and the ````...''``
    pairs of the tokeniser become plain quotation marks again. A straight quotation mark opens when no quotation is
    open, and closes otherwise.

    Parameters
    ----------
    tokens
        Words or characters, without sentence markers.
    level
        "word", "character" (tokens are put together as they are) or "whitespace" (blanks between them).

    Returns
    -------
    str
    """
    if level == "character":
        return "".join(tokens)
    if level == "whitespace":
        return " ".join(tokens)
    pieces: list[str] = []
    previous = ""
    glue = True  # nothing comes between the start of the line and the first word
    open_quotes = {'"': False, "'": False}
    for token in tokens:
        text, tight_before, tight_after = token, False, False
        if token in open_quotes or token in ("``", "''"):
            text = "'" if token == "'" else '"'
            closes = token == "''" or (token != "``" and open_quotes[text])
            open_quotes[text] = not closes
            tight_before, tight_after = closes, not closes
        elif token in _OPENING:
            tight_after = True
        elif token in _CLOSING or token in _CONTRACTIONS or (previous, token) in _PAIRS:
            tight_before = True
        if pieces and not (glue or tight_before):
            pieces.append(" ")
        pieces.append(text)
        glue = tight_after
        previous = token
    return "".join(pieces)
