"""What the tests of the command line share: a small corpus and a way to run a command in this process."""

import csv
import random

from crnn.cli.main import main

_SUBJECTS = ("The cat", "My dog", "A bird", "The old man", "She", "Nobody")
_VERBS = ("sees", "likes", "can't find", "follows")
_OBJECTS = ("the house", "a red ball", 'the "new" garden', "them", "it, again")


def write_comments(path, count=60, seed=3):
    """A CSV with a column of comments, two sentences each, quoted where needed."""
    rng = random.Random(seed)

    def sentence():
        return f"{rng.choice(_SUBJECTS)} {rng.choice(_VERBS)} {rng.choice(_OBJECTS)}."

    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "body"])
        for number in range(count):
            writer.writerow([number, f"{sentence()}\n\n{sentence()}"])
    return path


def run(capsys, *arguments):
    """(exit code, standard output, standard error) of one command."""
    capsys.readouterr()
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    return code, out, err


def fails(capsys, *arguments, code=1):
    """The error message of a command that must fail with one line on standard error, and nothing like a traceback."""
    got, _, err = run(capsys, *arguments)
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert got == code, err
    assert len(lines) == 1, err
    assert lines[0].startswith("crnn")
    return lines[0]
