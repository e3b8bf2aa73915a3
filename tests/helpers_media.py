"""Small tables of text and images, and a tiny transformer made by transformers' own classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

CITIES = ["york", "lima", "new delhi", "san jose", "oslo"]
FOODS = ["rice", "red beans", "unbelievable soup", "tea"]
WORDS = ["fly", "to", "eat", "some", "please", "now", "i", "want"]


def tiny_transformer(folder: Path) -> Path:
    """A BERT of two layers of 16 units with random weights, and a tokenizer that cuts some words in two."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    cut = {"unbelievable": ["un", "##believ", "##able"], "delhi": ["del", "##hi"], "jose": ["jo", "##se"]}
    words = [part for text in [*CITIES, *FOODS, *WORDS] for word in text.split() for part in cut.get(word, [word])]
    vocabulary = {word: place for place, word in enumerate(dict.fromkeys([*special.values(), *words]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    settings = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(settings).save_pretrained(folder)
    return folder


def requests(rows: int = 160, seed: int = 0) -> pd.DataFrame:
    """Requests for journeys and meals: the words, a slot for each, what is asked for, and how many words there are."""
    random = np.random.default_rng(seed)
    table = []
    for _ in range(rows):
        travels = random.random() < 0.5
        kind, thing = ("city", random.choice(CITIES)) if travels else ("food", random.choice(FOODS))
        before = ["i", "want"] * int(random.integers(2)) + (["fly", "to"] if travels else ["eat", "some"])
        after = ["please"] * int(random.integers(2)) + ["now"] * int(random.integers(2))
        inside = thing.split()
        slots = ["O"] * len(before) + [f"B-{kind}", *[f"I-{kind}"] * (len(inside) - 1)] + ["O"] * len(after)
        words = [*before, *inside, *after]
        table.append(
            {
                "words": " ".join(words),
                "slots": " ".join(slots),
                "intent": "travel" if travels else "meal",
                "length": float(len(words)),
            }
        )
    return pd.DataFrame(table)
