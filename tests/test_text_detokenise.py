import pytest

from crnn.text import join


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ("i do n't know .", "i don't know."),
        ("he 's here , and we 'll go !", "he's here, and we'll go!"),
        ("( a note ) follows : yes ?", "(a note) follows: yes?"),
        ("`` hello , '' she said .", '"hello," she said.'),
        ('he said " go away " twice', 'he said "go away" twice'),
        ("you can not , gon na try", "you cannot, gonna try"),
        ("50 % of $ 3 and # 4", "50% of $3 and #4"),
        ("the dogs ' tails", "the dogs 'tails"),
        ("wait ... what", "wait... what"),
        ("", ""),
        (". start", ". start"),
    ],
)
def test_words(tokens, text):
    assert join(tokens.split()) == text


def test_other_levels():
    assert join(["a", " ", "b", "\n"], level="character") == "a b\n"
    assert join(["a", ",", "b"], level="whitespace") == "a , b"
