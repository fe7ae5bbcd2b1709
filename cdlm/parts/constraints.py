"""Which words a sampled caption may have at which place.

Every constraint gives a table L V of what it allows; several hold together. At each step the
sampler's estimate is moved to the nearest allowed word wherever its own nearest word is barred.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor

from cdlm.errors import CdlmError
from cdlm.protocols import Tokenizer
from cdlm.values import Count

FREE = re.compile(r"\[\s*\]")  # a place for one word of the model's choice
SHOWN = 3  # near words in an error text
FEW = 60  # words of a vocabulary that is shown whole where none is near


@dataclass(frozen=True, kw_only=True)
class Template:
    """Words that are given, at their places, and places to fill in: "a [ ] dog on [ ]".

    `[ ]` is one word of one token; a given word may be several tokens. The caption ends after the
    last word, unless the text ends with "...": then the model goes on as it likes.
    Shapes: -> L V.   Raises ValueError for a text that gives nothing; CdlmError for words that the
    tokenizer can't spell, naming near ones, and for a text that is longer than a caption.
    """

    text: str  # such as "a [ ] dog on [ ]", or "two dogs ..."

    def __post_init__(self) -> None:
        if not self._words():
            raise ValueError(f'text: "{self.text}" has no word and no [ ]')

    def _words(self) -> list[str | None]:
        """The words in order; None for a place to fill in."""
        apart = FREE.sub(" [] ", self.text.removesuffix("..."))
        return [None if word == "[]" else word for word in apart.split()]

    def allowed(self, tokenizer: Tokenizer, length: int) -> Tensor:
        spelt = _places(tokenizer, self._words())
        if len(spelt) >= length:
            raise CdlmError(
                f'constraint template: "{self.text}" has {len(spelt)} tokens, and with the end of '
                f"the caption more than model.length = {length}\n    use a shorter one"
            )
        table = torch.zeros(length, len(tokenizer), dtype=torch.bool)
        fresh = _fresh_words(tokenizer)
        for place, token in enumerate(spelt):
            table[place] = fresh if token is None else torch.arange(len(tokenizer)) == token
        table[len(spelt) :] = self._rest(tokenizer, length - len(spelt), fresh)
        return table

    def _rest(self, tokenizer: Tokenizer, places: int, fresh: Tensor) -> Tensor:
        """What may follow: the end and padding, or anything that leaves the last word whole."""
        if self.text.endswith("..."):
            rest = torch.ones(places, len(tokenizer), dtype=torch.bool)
            rest[0] = fresh | _marks(tokenizer)
            rest[0, tokenizer.end] = True
        else:
            rest = torch.zeros(places, len(tokenizer), dtype=torch.bool)
            rest[0, tokenizer.end] = True
            rest[1:, tokenizer.pad] = True
        return rest


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
        if not [word for word in self.words if word.strip()]:
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
        table[:, sorted(set().union(*tokens.values()))] = False
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


# ------------------------------------------------------------------------- what a token stands for


def _texts(tokenizer: Tokenizer, times: int = 1) -> list[str]:
    """What each token says by itself, or several times over."""
    return tokenizer.decode(torch.arange(len(tokenizer))[:, None].expand(-1, times))


def _seen(tokenizer: Tokenizer) -> Tensor:
    """V bool: the tokens that are seen in a caption, unlike end, padding and unknown words."""
    return torch.tensor([bool(text) for text in _texts(tokenizer)])


def _fresh_words(tokenizer: Tokenizer) -> Tensor:
    """V bool: the tokens that are words by themselves: said twice, they are two."""
    twice = [text.split() for text in _texts(tokenizer, times=2)]
    return torch.tensor([len(it) == 2 and bool(re.search(r"\w", it[0])) for it in twice])


def _marks(tokenizer: Tokenizer) -> Tensor:
    """V bool: punctuation, which does not change the word that it follows."""
    return torch.tensor([bool(re.fullmatch(r"[^\w\s\ufffd]+", it)) for it in _texts(tokenizer)])


def _spelt(tokenizer: Tokenizer, word: str, first: bool) -> list[int]:
    """The tokens of a word at the beginning of a caption, or after another word."""
    alone, twice = _ids(tokenizer, word), _ids(tokenizer, f"{word} {word}")
    follows = twice[: len(alone)] == alone
    return alone if first or not follows else twice[len(alone) :]


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    ids, mask = tokenizer.encode([text], 8 * len(text) + 8)  # a letter has at most a few tokens
    return ids[mask].tolist()[:-1]


def _places(tokenizer: Tokenizer, words: Sequence[str | None]) -> list[int | None]:
    """The token of every place; None where any word may stand. Raises CdlmError."""
    _check_known(tokenizer, [word for word in words if word is not None])
    found: list[int | None] = []
    for word in words:
        found += [None] if word is None else _spelt(tokenizer, word, first=not found)
    return found


def _single_tokens(tokenizer: Tokenizer, word: str) -> set[int]:
    """The tokens that are this word by themselves, in any case, wherever it stands."""
    cases = (word, word.lower(), word.capitalize(), word.upper())
    ways = [_spelt(tokenizer, it, first) for it in cases for first in (True, False)]
    return {way[0] for way in ways if len(way) == 1 and _says(tokenizer, way, word)}


def _says(tokenizer: Tokenizer, ids: list[int], word: str) -> bool:
    """Whether these tokens give the word back, whatever its case and accents."""
    return bool(ids) and _bare(tokenizer.decode(torch.tensor([ids]))[0]) == _bare(word)


def _bare(text: str) -> str:
    letters = unicodedata.normalize("NFKD", text.casefold())
    return "".join(it for it in letters if not unicodedata.combining(it) and not it.isspace())


def _check_known(tokenizer: Tokenizer, words: Iterable[str]) -> None:
    """Raises CdlmError naming the words that the tokenizer can't spell, and near ones."""
    unknown = [it for it in dict.fromkeys(words) if not _says(tokenizer, _ids(tokenizer, it), it)]
    if unknown:
        known = sorted({text for text in _texts(tokenizer) if text})
        near = {it: get_close_matches(it.lower(), known, n=SHOWN) for it in unknown}
        hints = [f"near {_quoted([it])}: {_quoted(found)}" for it, found in near.items() if found]
        if not hints and len(known) <= FEW:
            hints = [f"allowed: {', '.join(known)}"]
        raise CdlmError(
            f"constraint: {_quoted(unknown)}: not in the vocabulary of this run"
            + "".join(f"\n    {hint}" for hint in hints)
        )


def _quoted(words: Iterable[str]) -> str:
    return ", ".join(f'"{word}"' for word in words)
