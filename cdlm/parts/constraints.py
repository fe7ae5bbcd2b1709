"""Which words a sampled caption may have at which place.

Every constraint gives a table L V of what it allows; several hold together. At each step the
sampler's estimate is moved to the nearest allowed word wherever its own nearest word is barred.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor

from cdlm.errors import CdlmError
from cdlm.protocols import Tokenizer
from cdlm.values import Count

FREE = re.compile(r"\[\s*\]")  # a place for one word of the model's choice
ANYTHING = "..."  # at the end of a template: the caption may go on
SHOWN = 3  # near words in an error text
FEW = 60  # words of a vocabulary that is shown whole where none is near


@dataclass(frozen=True, kw_only=True)
class Template:
    """Words that are given, at their places, and places to fill in: "a [ ] dog on [ ]".

    `[ ]` is one word of one token; a given word may be several tokens. The caption ends after the
    last word, unless the text ends with "...": then the model goes on as it likes.
    Shapes: -> L V.   Raises ValueError for a text that gives nothing, or has "..." elsewhere;
    CdlmError for words that the tokenizer can't spell, naming near ones, and for a text that is
    longer than a caption.
    """

    text: str  # such as "a [ ] dog on [ ]", or "two dogs ..."

    def __post_init__(self) -> None:
        if not self._given():
            raise ValueError(f'text: "{self.text}" has no word and no [ ]')
        if ANYTHING in self._given():
            raise ValueError(f'text: "{self.text}": "{ANYTHING}" may stand at its end only')

    def _given(self) -> list[str | None]:
        """The words in order; None for a place to fill in."""
        apart = FREE.sub(" [] ", self.text.rstrip().removesuffix(ANYTHING))
        return [None if word == "[]" else word for word in apart.split()]

    def allowed(self, tokenizer: Tokenizer, length: int) -> Tensor:
        tokens = _tokens(tokenizer, self._given())
        if len(tokens) >= length:
            raise CdlmError(
                f'constraint template: "{self.text}" has {len(tokens)} tokens, and with the end of '
                f"the caption more than model.length = {length}\n    use a shorter one"
            )
        table = torch.zeros(length, len(tokenizer), dtype=torch.bool)
        for place, token in enumerate(tokens):
            if token is None:
                table[place] = _words(tokenizer)
            else:
                table[place, token] = True
        behind = len(tokens)
        table[behind, tokenizer.end] = True
        if self.text.rstrip().endswith(ANYTHING):
            table[behind] |= _words(tokenizer) | _marks(tokenizer)  # the last word stays whole
            table[behind + 1 :] = True
        else:
            table[behind + 1 :, tokenizer.pad] = True
        return table


@dataclass(frozen=True, kw_only=True)
class Forbid:
    """Words that no caption may have, in any case.

    Every token that is such a word by itself is barred from every place. A tokenizer of pieces may
    still spell the word with smaller ones.
    Shapes: -> L V.   Raises ValueError for an empty list; CdlmError for words that the tokenizer
    does not have, naming near ones, and for words of several tokens: a table of places and tokens
    can't bar a sequence.
    """

    words: list[str]

    def __post_init__(self) -> None:
        if not any(word.strip() for word in self.words):
            raise ValueError(f"words: expected words to forbid, got {self.words}")

    def allowed(self, tokenizer: Tokenizer, length: int) -> Tensor:
        _check_known(tokenizer, self.words)
        tokens = {word: _single_tokens(tokenizer, word) for word in self.words}
        if long := [word for word, ids in tokens.items() if not ids]:
            raise CdlmError(
                f"constraint forbid: {_quoted(long)}: written with several tokens, and only single "
                "ones can be forbidden\n    forbid other words, or train with whole words: "
                'tokenizer = { use = "words" }'
            )
        table = torch.ones(length, len(tokenizer), dtype=torch.bool)
        for ids in tokens.values():
            table[:, list(ids)] = False
        return table


@dataclass(frozen=True, kw_only=True)
class Size:
    """How long a caption is, in tokens of the tokenizer, its end not counted.

    The first `least` places have a token that is seen in the caption; the place after the first
    `most`, and all behind it, have only the end or padding.
    Shapes: -> L V.   Units: tokens; with the tokenizer `words`, words and punctuation marks.
    Raises ValueError for sizes that bar nothing or cross, CdlmError where captions can't be so
    long.
    """

    least: Count = 0  # at least so many
    most: Count | None = None  # at most so many

    def __post_init__(self) -> None:
        if not self.least and self.most is None:
            raise ValueError("it limits nothing; give least, most or both")
        if self.most is not None and not max(self.least, 1) <= self.most:
            raise ValueError(f"least = {self.least} and most = {self.most}: no caption is so long")

    def allowed(self, tokenizer: Tokenizer, length: int) -> Tensor:
        if self.least >= length or (self.most is not None and self.most >= length):
            raise CdlmError(
                f"constraint size: captions have at most {length - 1} tokens and their end "
                f"(model.length = {length}), got least = {self.least}, most = {self.most}"
            )
        table = torch.ones(length, len(tokenizer), dtype=torch.bool)
        table[: self.least] = _seen(tokenizer)
        if self.most is not None:
            table[self.most :] = False
            table[self.most :, [tokenizer.end, tokenizer.pad]] = True
        return table


@dataclass(frozen=True, kw_only=True)
class Known:
    """No unknown words: every token is seen in the caption, or ends it.

    Where training had rare words as [UNK], a captioner says [UNK] for what it can't name, and the
    caption lacks a word there: "a man sitting in front of a". Barred, the likeliest word that it
    knows takes its place.
    Shapes: -> L V.
    """

    def allowed(self, tokenizer: Tokenizer, length: int) -> Tensor:
        known = _seen(tokenizer)
        known[[tokenizer.end, tokenizer.pad]] = True
        return known.repeat(length, 1)


# ------------------------------------------------------------------------- what a token stands for


def _texts(tokenizer: Tokenizer, times: int = 1) -> list[str]:
    """What each token says by itself, or said so many times."""
    return tokenizer.decode(torch.arange(len(tokenizer))[:, None].expand(-1, times))


def _seen(tokenizer: Tokenizer) -> Tensor:
    """V bool: the tokens that are seen in a caption, unlike end, padding and unknown words."""
    return torch.tensor([bool(text) for text in _texts(tokenizer)])


def _words(tokenizer: Tokenizer) -> Tensor:
    """V bool: the tokens that are words, not marks and not the rest of a word.

    Said twice they are two words; the rest of a word, such as "ing", makes one: "inging".
    """
    twice = [text.split() for text in _texts(tokenizer, times=2)]
    return torch.tensor([len(it) == 2 and bool(re.search(r"\w", it[0])) for it in twice])


def _marks(tokenizer: Tokenizer) -> Tensor:
    """V bool: punctuation, which does not change the word that it follows."""
    return torch.tensor([bool(re.fullmatch(r"[^\w\s\ufffd]+", it)) for it in _texts(tokenizer)])


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text, without the end."""
    ids, mask = tokenizer.encode([text], 8 * len(text) + 8)  # a letter has a few tokens at most
    return ids[mask].tolist()[:-1]


def _spelt(tokenizer: Tokenizer, word: str, first: bool) -> list[int]:
    """The tokens of a word at the beginning of a caption, or behind another word."""
    if first:
        return _ids(tokenizer, word)
    return _ids(tokenizer, f"a {word}")[len(_ids(tokenizer, "a")) :]


def _tokens(tokenizer: Tokenizer, words: Sequence[str | None]) -> list[int | None]:
    """The token of every place; None where any word may stand. Raises CdlmError."""
    _check_known(tokenizer, [word for word in words if word is not None])
    found: list[int | None] = []
    for word in words:
        found += [None] if word is None else _spelt(tokenizer, word, first=not found)
    return found


def _single_tokens(tokenizer: Tokenizer, word: str) -> set[int]:
    """The tokens that are this word by themselves, in any case, first in a caption or not."""
    cases = (word, word.lower(), word.capitalize(), word.upper())
    ways = [_spelt(tokenizer, it, first) for it in cases for first in (True, False)]
    return {way[0] for way in ways if len(way) == 1 and _says(tokenizer, way, word)}


# ------------------------------------------------------------------------------------ known words


def _says(tokenizer: Tokenizer, ids: list[int], word: str) -> bool:
    """Whether these tokens give the word back, whatever its case."""
    return _plain(tokenizer.decode(torch.tensor([ids]))[0]) == _plain(word) if ids else False


def _plain(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _check_known(tokenizer: Tokenizer, words: Sequence[str]) -> None:
    """Raises CdlmError naming the words that the tokenizer can't spell, and near ones."""
    unknown = [it for it in words if not _says(tokenizer, _ids(tokenizer, it), it)]
    if not unknown:
        return
    known = sorted({text for text in _texts(tokenizer) if text})
    lines = [f"constraint: {_quoted(unknown)}: not in the vocabulary of this run"]
    for word in unknown:
        if near := get_close_matches(word.lower(), known, n=SHOWN):
            lines.append(f'    near "{word}": {_quoted(near)}')
    if len(lines) == 1 and len(known) <= FEW:
        lines.append(f"    allowed: {', '.join(known)}")
    raise CdlmError("\n".join(lines))


def _quoted(words: Sequence[str]) -> str:
    return ", ".join(f'"{word}"' for word in words)
