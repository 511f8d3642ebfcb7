import codecs
import csv
import gzip
import os
import threading
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crnn.text import read_csv, read_documents, read_text
from crnn.text.documents import detect_encoding

ROWS = [
    ["id", "body", "score"],
    ["a1", "One line, with a comma.", "3"],
    ["b2", 'Two lines,\nand a "quoted" word.', "-1"],
    ["c3", "Grüße aus Köln — 東京 😀", "0"],
    ["d4", "", "7"],
]
BODIES = [row[1] for row in ROWS[1:]]


def write_csv(path, rows=ROWS, encoding="utf-8", opener=open, **options):
    with opener(path, "wt", encoding=encoding, newline="") as stream:
        csv.writer(stream, **options).writerows(rows)
    return path


@pytest.mark.parametrize("column", ["body", 1, "1"])
def test_column_by_name_and_number(tmp_path, column):
    path = write_csv(tmp_path / "c.csv")
    assert list(read_csv(path, column)) == BODIES


def test_default_column_is_the_first(tmp_path):
    assert list(read_csv(write_csv(tmp_path / "c.csv"))) == ["a1", "b2", "c3", "d4"]


def test_documents_can_be_read_again_and_know_their_columns(tmp_path):
    documents = read_csv(write_csv(tmp_path / "c.csv"), "body")
    assert documents.columns == ("id", "body", "score")
    assert list(documents) == list(documents) == BODIES


def test_an_abandoned_loop_closes_the_file(tmp_path):
    # pytest turns the ResourceWarning of an unclosed file into an error
    loop = iter(read_csv(write_csv(tmp_path / "c.csv"), "body"))
    assert next(loop) == BODIES[0]
    loop.close()


def test_a_header_that_is_a_number_wins_over_the_position(tmp_path):
    path = write_csv(tmp_path / "c.csv", [["x", "0"], ["left", "right"]])
    assert list(read_csv(path, "0")) == ["right"]
    assert list(read_csv(path, 0)) == ["left"]


def test_without_header(tmp_path):
    path = write_csv(tmp_path / "c.csv", ROWS[1:])
    assert list(read_csv(path, 1, header=False)) == BODIES
    with pytest.raises(ValueError, match="without a header"):
        read_csv(path, "body", header=False)


def test_gzip_is_recognised_by_content(tmp_path):
    assert list(read_csv(write_csv(tmp_path / "c.csv.gz", opener=gzip.open), "body")) == BODIES
    disguised = (tmp_path / "c.csv.gz").rename(tmp_path / "plain.csv")
    assert list(read_csv(disguised, "body")) == BODIES


def test_tabs_and_other_delimiters(tmp_path):
    assert list(read_csv(write_csv(tmp_path / "c.tsv", delimiter="\t"), "body")) == BODIES
    assert list(read_csv(write_csv(tmp_path / "c.csv", delimiter=";"), "body", delimiter=";")) == BODIES
    with pytest.raises(ValueError, match="delimiter"):
        read_csv(tmp_path / "c.csv", delimiter=";;")


@pytest.mark.parametrize(
    ("encoding", "detected"),
    [("utf-8", "utf-8"), ("utf-8-sig", "utf-8-sig"), ("utf-16", "utf-16"), ("utf-32", "utf-32")],
)
def test_encodings_are_detected(tmp_path, encoding, detected):
    path = write_csv(tmp_path / "c.csv", encoding=encoding)
    assert detect_encoding(path) == detected
    assert read_csv(path, "id").columns[0] == "id"
    assert list(read_csv(path, "body")) == BODIES


def test_big_endian_utf16(tmp_path):
    path = tmp_path / "c.csv"
    path.write_bytes(codecs.BOM_UTF16_BE + "body\r\nGrüße\r\n".encode("utf-16-be"))
    assert list(read_csv(path, "body")) == ["Grüße"]


def test_encoding_given(tmp_path):
    path = tmp_path / "c.csv"
    path.write_bytes("body\r\nGrüße\r\n".encode("latin-1"))
    assert list(read_csv(path, "body", encoding="latin-1")) == ["Grüße"]
    path.write_bytes(codecs.BOM_UTF8 + b"body\r\nx\r\n")
    assert read_csv(path, encoding="utf-8").columns == ("body",)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-16-le", "utf_16_be", "UTF-32-LE", "utf-32-be", "utf-16", "utf-32", "gb18030", "utf-7"]
)
def test_a_mark_is_no_text_in_any_encoding(tmp_path, encoding, compressed):
    # the codecs without a byte order in their name write the mark themselves
    mark = "" if encoding in ("utf-16", "utf-32") else "\ufeff"
    content = (mark + "body\r\nGrüße\r\n").encode(encoding)
    path = tmp_path / "c.csv"
    path.write_bytes(gzip.compress(content) if compressed else content)
    assert read_csv(path, "body", encoding=encoding).columns == ("body",)
    assert list(read_csv(path, "body", encoding=encoding)) == ["Grüße"]
    assert list(read_text(path, unit="line", encoding=encoding)) == ["body", "Grüße"]


def test_only_one_mark_at_the_very_start_is_taken_away(tmp_path):
    path = tmp_path / "t.txt"
    for encoding in ("utf-8", "utf-16-le"):
        path.write_bytes("\ufeff\ufeffa \ufeff b".encode(encoding))
        assert list(read_text(path, encoding=encoding)) == ["\ufeffa \ufeff b"]
    path.write_bytes(b"")
    assert list(read_text(path, encoding="utf-16-le")) == []


def test_a_zero_byte_in_utf8_is_refused_with_the_cure(tmp_path):
    path = tmp_path / "c.csv"
    path.write_bytes(b"body\na\0b\n")
    with pytest.raises(ValueError, match=r"zero byte at byte 6.*--encoding utf-16-le.*UTF-8.*--encoding utf-8\)"):
        read_csv(path)
    assert list(read_csv(path, "body", encoding="utf-8")) == ["a\0b"]


@pytest.mark.parametrize("padding", [0, 3, 65530, 200_001])
@pytest.mark.parametrize("compressed", [False, True])
def test_wrong_encoding_names_the_byte(tmp_path, padding, compressed):
    content = b"body\n" + b"x" * padding + "é".encode() + b"\n" + "Grüße\n".encode("latin-1")
    position = content.index(b"\xfc")
    path = tmp_path / "c.csv"
    path.write_bytes(gzip.compress(content) if compressed else content)
    with pytest.raises(ValueError, match=rf"c\.csv: byte {position} is not utf-8 .*--encoding latin-1") as caught:
        list(read_csv(path, "body"))
    assert not isinstance(caught.value, UnicodeError)


def test_a_character_cut_off_at_the_end_of_the_file(tmp_path):
    path = tmp_path / "c.txt"
    path.write_bytes(b"abc\xe6\x9d")
    with pytest.raises(ValueError, match="byte 3 is not utf-8"):
        list(read_text(path))


def test_utf16_without_mark_is_refused(tmp_path):
    path = tmp_path / "c.csv"
    path.write_bytes("body\nhello\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"zero byte at byte 1.*utf-16-le"):
        read_csv(path)
    assert list(read_csv(path, encoding="utf-16-le")) == ["hello"]


@pytest.mark.parametrize("name", ["klingon", "hex"])
def test_unknown_encoding(tmp_path, name):
    with pytest.raises(ValueError, match=f"encoding: .*{name!r}"):
        read_csv(write_csv(tmp_path / "c.csv"), encoding=name)


def test_missing_file_is_found_by_the_call_itself(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_csv(tmp_path / "none.csv")
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "none.txt", encoding="latin-1")


def test_missing_column_names_those_there_are(tmp_path):
    path = write_csv(tmp_path / "c.csv")
    with pytest.raises(ValueError, match=r"no column 'text'; its columns are 'id' \(0\), 'body' \(1\), 'score' \(2\)"):
        read_csv(path, "text")
    for number in (3, -1, "17"):
        with pytest.raises(ValueError, match=r"3 column\(s\), 0 to 2, not .*'body' \(1\)"):
            read_csv(path, number)
    for wrong in (1.0, None, True):
        with pytest.raises(TypeError, match="column"):
            read_csv(path, wrong)


def test_repeated_column_name(tmp_path):
    path = write_csv(tmp_path / "c.csv", [["body", "body"], ["l", "r"]])
    with pytest.raises(ValueError, match="2 columns named 'body'"):
        read_csv(path, "body")
    assert list(read_csv(path, 1)) == ["r"]


def test_empty_file(tmp_path):
    (tmp_path / "c.csv").write_bytes(b"")
    with pytest.raises(ValueError, match="the file is empty"):
        read_csv(tmp_path / "c.csv")


def test_header_alone_gives_no_documents(tmp_path):
    assert list(read_csv(write_csv(tmp_path / "c.csv", ROWS[:1]), "body")) == []


def test_short_row_is_named_and_empty_rows_are_skipped(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text("a,b\n1,2\n\n3\n", encoding="utf-8")
    loop = iter(read_csv(path, "b"))
    assert next(loop) == "2"
    with pytest.raises(ValueError, match=r"line 4: the row has 1 field\(s\)"):
        next(loop)


def test_an_open_quotation_mark_is_told(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text('body\nfirst\n"second, never closed\nthird, ""fourth""\n')
    with pytest.warns(UserWarning, match=r"starts on line 3 is never closed.*one field"):
        documents = list(read_csv(path))
    assert documents == ["first", 'second, never closed\nthird, "fourth"\n']
    path.write_text('body\n"closed\n at the end"')
    assert list(read_csv(path)) == ["closed\n at the end"]  # any warning is an error here


def test_long_fields(tmp_path):
    long = "word " * 60_000
    assert list(read_csv(write_csv(tmp_path / "c.csv", [["body"], [long]]), "body")) == [long]


def test_damaged_gzip(tmp_path):
    path = write_csv(tmp_path / "c.csv.gz", opener=gzip.open)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(OSError, match="damaged gzip"):
        list(read_csv(path, "body"))


@contextmanager
def pipe_with(path, content):
    """A named pipe that gives `content` once."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(content,))
    writer.start()
    yield path
    writer.join()


@pytest.mark.parametrize("opener", [open, gzip.open])
def test_a_pipe_is_read_once_and_gives_its_documents_again(tmp_path, opener):
    rows = [["body"], *[[f"text {i}"] for i in range(9000)]]  # more than a pipe holds
    content = write_csv(tmp_path / "c.csv", rows, opener=opener).read_bytes()
    calls = []
    with pipe_with(tmp_path / "pipe", content) as path:
        documents = read_csv(path, "body", progress=lambda done, total: calls.append((done, total)))
    assert documents.columns == ("body",)
    assert list(documents) == list(documents) == [row[0] for row in rows[1:]]
    assert calls[-1] == (len(content), len(content))
    assert documents.path == path


def test_plain_text_from_a_pipe(tmp_path):
    with pipe_with(tmp_path / "pipe", b"one\n\ntwo") as path:
        documents = read_documents(path)
    assert list(documents) == list(documents) == ["one", "two"]
    with pipe_with(tmp_path / "latin", "Grüße".encode("latin-1")) as path:
        documents = read_text(path)
    with pytest.raises(ValueError, match="latin: byte 2 is not utf-8"):
        list(documents)


def test_progress_ends_at_the_size_of_the_file(tmp_path):
    calls = []
    path = write_csv(tmp_path / "c.csv", [["body"], *[[f"text {i}"] for i in range(1000)]])
    list(read_csv(path, progress=lambda done, total: calls.append((done, total))))
    size = path.stat().st_size
    assert calls[-1] == (size, size)
    assert len(calls) > 3
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


TEXTS = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30).map(str.lstrip), max_size=8
)


@settings(deadline=None, max_examples=50)
@given(TEXTS, st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]), st.booleans())
def test_what_the_csv_module_writes_is_read(tmp_path_factory, texts, encoding, compressed):
    path = tmp_path_factory.mktemp("csv") / "c.csv"
    rows = [["body", "n"], *([text, str(n)] for n, text in enumerate(texts))]
    write_csv(path, rows, encoding, gzip.open if compressed else open)
    assert list(read_csv(path, "body")) == texts
    assert list(read_csv(path, 1)) == [str(n) for n in range(len(texts))]


TEXT = "First line,\nrunning on.\n\n\n  Second paragraph.\r\n \r\nThird."


@pytest.mark.parametrize(
    ("unit", "documents"),
    [
        ("paragraph", ["First line,\nrunning on.", "Second paragraph.", "Third."]),
        ("line", ["First line,", "running on.", "", "", "  Second paragraph.", " ", "Third."]),
        ("file", [TEXT]),
    ],
)
def test_plain_text_units(tmp_path, unit, documents):
    path = tmp_path / "t.txt"
    path.write_bytes(TEXT.encode())
    assert list(read_text(path, unit=unit)) == documents
    assert list(read_documents(path, unit=unit)) == documents


def test_unknown_unit(tmp_path):
    with pytest.raises(ValueError, match="unit"):
        read_text(tmp_path / "t.txt", unit="chapter")


def test_names_decide_how_a_file_is_read(tmp_path):
    (tmp_path / "t.txt").write_text("a, b\n\nc", encoding="utf-8")
    assert list(read_csv(tmp_path / "t.txt")) == ["a, b", "c"]
    assert list(read_documents(write_csv(tmp_path / "C.CSV.gz", opener=gzip.open), "body")) == BODIES


def test_spaces_around_names_and_before_fields_do_not_matter(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text('id , body ,score\na1, "One, two", 3\nb2,three,4\n')
    documents = read_csv(path, "body")
    assert documents.columns == ("id", "body", "score")
    assert list(documents) == ["One, two", "three"]
