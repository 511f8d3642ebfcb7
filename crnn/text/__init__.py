"""From files to ids: documents -> sentences -> vocabulary -> ids.

    documents = crnn.text.read_csv("comments.csv", column="body")    # lazy, read again on every loop
    sentences = crnn.text.sentences(documents)                        # lists of words, without markers
    vocabulary = crnn.Vocabulary.build(sentences, size=8000)
    ids = [vocabulary.encode(sentence) for sentence in sentences]     # markers added: x = ids[:-1], y = ids[1:]

`encode` adds the sentence markers, not `sentences`: they belong to the vocabulary, where they can be renamed. A text
that keeps its capitals may spell a marker (`SENTENCE_END`, as the Penn Treebank spells `<unk>`): that word is the
marker then. NLTK is imported when the first text is cut, not before.
"""

from __future__ import annotations

from crnn.text.corpus import default_documents
from crnn.text.detokenise import join
from crnn.text.documents import Documents, read_csv, read_documents, read_text
from crnn.text.tokenise import sentences, words
from crnn.text.vocabulary import SENTENCE_END, SENTENCE_START, UNKNOWN_TOKEN, Vocabulary

__all__ = [
    "SENTENCE_END",
    "SENTENCE_START",
    "UNKNOWN_TOKEN",
    "Documents",
    "Vocabulary",
    "default_documents",
    "join",
    "read_csv",
    "read_documents",
    "read_text",
    "sentences",
    "words",
]
