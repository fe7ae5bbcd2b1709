"""Captions into ids and back, through Hugging Face's tokenizers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Engine
from torch import Tensor

from cdlm.errors import CdlmError
from cdlm.values import Positive

PAD, END, UNKNOWN = "[PAD]", "[END]", "[UNK]"


class _Wrapped:
    """What all tokenizers share: an engine whose padding and end tokens are known by name."""

    engine: Engine
    pad: int
    end: int

    def _adopt(self, engine: Engine, pad: str, end: str) -> None:
        engine.no_padding()
        engine.no_truncation()
        self.engine, self.pad, self.end = engine, _id(engine, pad), _id(engine, end)

    def __len__(self) -> int:
        return self.engine.get_vocab_size()

    def encode(self, captions: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """captions -> ids B L, mask B L; a longer one is cut so that its end token fits."""
        rows = self.engine.encode_batch(list(captions), add_special_tokens=False)
        ids = torch.full((len(rows), length), self.pad)
        for i, row in enumerate(rows):
            plain = [word for word in row.ids if word not in (self.pad, self.end)]  # spelt out
            words = [*plain[: length - 1], self.end]
            ids[i, : len(words)] = torch.tensor(words)
        ends = (ids == self.end).int().argmax(1)
        return ids, torch.arange(length) <= ends[:, None]

    def save(self, path: Path) -> None:
        path.write_text(self.engine.to_str(pretty=True) + "\n", encoding="utf-8")


def _joined(engine: Engine, end: int, ids: Tensor) -> list[str]:
    """ids B L -> captions: pieces joined by the engine, special tokens left out."""
    rows = [row[: row.index(end)] if end in row else row for row in ids.tolist()]
    texts = engine.decode_batch(rows, skip_special_tokens=True)
    return [re.sub(r"\s+", " ", text).strip() for text in texts]


def _plain() -> normalizers.Sequence:
    """One form for every letter, and lower case."""
    return normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])


def _without_marks() -> normalizers.Sequence:
    return normalizers.Sequence([_plain(), normalizers.Replace(Regex(r"[^\w\s]"), " ")])


def _id(engine: Engine, token: str) -> int:
    found = engine.token_to_id(token)
    if found is None:
        raise CdlmError(
            f"tokenizer: no token {token} among its {engine.get_vocab_size():,}\n"
            '    name its padding and end tokens: pad = "...", end = "..."'
        )
    return found


class Words(_Wrapped):
    """Whole words and punctuation marks, lower case, from the training captions.

    A word seen fewer than `min_count` times is [UNK]. Ids are by falling count, then alphabet, so
    that equal captions give equal ids. Without punctuation a mark is as a space: coco-caption's
    scorers do not see marks either. Shapes: captions -> ids B L, mask B L.
    """

    def __init__(
        self,
        *,
        min_count: Positive = 1,  # captions must hold a word this often
        punctuation: bool = True,  # marks are words too
    ):
        self.min_count, self.punctuation = min_count, punctuation

    def fit(self, captions: Sequence[str]) -> None:
        blank = self._engine({UNKNOWN: 0})
        counts: Counter[str] = Counter()
        for caption in captions:
            normal = blank.normalizer.normalize_str(caption)
            counts.update(word for word, _ in blank.pre_tokenizer.pre_tokenize_str(normal))
        often = [word for word in counts if counts[word] >= self.min_count]
        ordered = [PAD, END, UNKNOWN, *sorted(often, key=lambda word: (-counts[word], word))]
        self._adopt(self._engine({word: i for i, word in enumerate(ordered)}), PAD, END)

    def load(self, path: Path) -> None:
        self._adopt(Engine.from_file(str(path)), PAD, END)

    def decode(self, ids: Tensor) -> list[str]:
        """ids B L -> captions; words are joined by spaces, special tokens left out."""
        return [" ".join(words) for words in self._words(ids)]

    def _words(self, ids: Tensor) -> list[list[str]]:
        rows = [row[: row.index(self.end)] if self.end in row else row for row in ids.tolist()]
        special = {PAD, END, UNKNOWN}
        named = ([self.engine.id_to_token(i) for i in row] for row in rows)
        return [[word for word in row if word and word not in special] for row in named]

    def _engine(self, vocabulary: dict[str, int]) -> Engine:
        engine = Engine(models.WordLevel(vocabulary, unk_token=UNKNOWN))
        engine.normalizer = _plain() if self.punctuation else _without_marks()
        engine.pre_tokenizer = pre_tokenizers.Whitespace()
        return engine


class Bpe(_Wrapped):
    """Pieces of words, from the training captions by byte-pair encoding, lower case.

    Begin with single letters; until there are `vocabulary` tokens, the two neighbours that stand
    together most often become one. A mark at its front says that a piece begins a word; pieces
    never cross words or punctuation. A letter that training did not have is [UNK]. Equal captions
    give equal ids. Few captions give fewer tokens: there is nothing left to join.
    Shapes: captions -> ids B L, mask B L.   Source: Sennrich et al. 2016, section 3.2.
    Raises CdlmError where the vocabulary has no room for the letters.
    """

    def __init__(self, *, vocabulary: Positive = 1000):  # tokens, padding, end and [UNK] included
        self.vocabulary = vocabulary

    def fit(self, captions: Sequence[str]) -> None:
        engine = Engine(models.BPE(unk_token=UNKNOWN, fuse_unk=True))
        engine.normalizer = _plain()
        spaced = pre_tokenizers.Metaspace(prepend_scheme="always")
        engine.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), spaced])
        engine.decoder = decoders.Metaspace(prepend_scheme="always")
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocabulary, special_tokens=[PAD, END, UNKNOWN], show_progress=False
        )
        engine.train_from_iterator(captions, trainer)
        if engine.get_vocab_size() > self.vocabulary:
            raise CdlmError(
                f"tokenizer.vocabulary = {self.vocabulary}: the letters of the captions alone are "
                f"{engine.get_vocab_size()} tokens, with padding, end and [UNK]; set it higher"
            )
        self._adopt(engine, PAD, END)

    def load(self, path: Path) -> None:
        self._adopt(Engine.from_file(str(path)), PAD, END)

    def decode(self, ids: Tensor) -> list[str]:
        """ids B L -> captions: pieces joined to words, special tokens left out."""
        return _joined(self.engine, self.end, ids)


class HuggingFace(_Wrapped):
    """A ready tokenizer: a tokenizer.json file, a folder that holds one, or a hub name.

    The end of a caption is its `end` token; nothing is put in front. Shapes: captions -> ids B L,
    mask B L.   Raises CdlmError where the file is missing or has no such tokens.
    """

    provides: ClassVar[set[str]] = {"vocabulary"}  # one that was there before the captions

    def __init__(
        self,
        *,
        source: str,  # tokenizer.json, a folder, or a hub name such as "bert-base-uncased"
        pad: str = "[PAD]",
        end: str = "[SEP]",
    ):
        self.source, self.pad_token, self.end_token = source, pad, end

    def fit(self, captions: Sequence[str]) -> None:
        path = Path(self.source).expanduser()
        file = path / "tokenizer.json" if path.is_dir() else path
        if file.is_file():
            self.load(file)
        else:
            self._adopt(_from_hub(self.source), self.pad_token, self.end_token)

    def load(self, path: Path) -> None:
        try:
            engine = Engine.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise CdlmError(f"tokenizer.source: {path} is no tokenizer.json: {error}") from error
        self._adopt(engine, self.pad_token, self.end_token)

    def decode(self, ids: Tensor) -> list[str]:
        """ids B L -> captions: pieces joined by the tokenizer, special tokens left out."""
        return _joined(self.engine, self.end, ids)


def _from_hub(source: str) -> Engine:
    from transformers import AutoTokenizer

    if source.endswith(".json") or source.startswith((".", "/", "~")):
        raise CdlmError(f"tokenizer.source: no file or folder {source}")
    try:
        return AutoTokenizer.from_pretrained(source, use_fast=True).backend_tokenizer
    except (OSError, ValueError) as error:
        raise CdlmError(
            f'tokenizer.source: "{source}" is no file, no folder with tokenizer.json, nor '
            "to be had from the hub (is this machine offline?)"
        ) from error
