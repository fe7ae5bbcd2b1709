"""kind `metric`: captions against their references, by the protocol that the field publishes.

The protocol is coco-caption's: Penn Treebank tokens in lower case without punctuation, corpus BLEU
with the closest reference length, ROUGE-L with beta 1.2, CIDEr-D with document frequencies from
the evaluated images. The scores come from pycocoevalcap's own scorers; only its tokenizer, which
needs Java, is replaced by `tokenize`. All are fractions from 0 to 1, but CIDEr-D, from 0 to 10.
"""

from __future__ import annotations

import html
import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from cdlm.errors import DataError
from cdlm.records import Answers, Tally
from cdlm.values import Positive

# ---------------------------------------------------------------------------------------- tokens

# The tokens that coco-caption drops. It writes brackets there as -LRB- and so on, after its
# tokenizer has lowered them: "-lrb-" has never been dropped in a published figure, nor is it here.
_MARKS = ["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
PUNCTUATION = frozenset(_MARKS) | {"-LRB-", "-RRB-", "-LCB-", "-RCB-"}

_BRACKETS = str.maketrans(
    {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
)
_PLAIN = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "–": "--", "—": "--", "…": "..."}
    | {"£": "#", "€": "$", "¢": " cents", "½": "1/2", "¼": "1/4", "¾": "3/4"}
)
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp);", re.IGNORECASE)

# Accents and vowel signs stand apart from their letter in Unicode, but belong to the word.
_W = r"[\w\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0dff\u0e31-\u0e4e]"

# Words that keep their full stop: anywhere, and only when capitalised (they mean something else).
_ABBREVIATIONS = """
    jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri
    calif fla penn va ky ga mich minn ind conn ariz ala colo kan md mo mont neb nev okla tenn vt
    wis wyo prof gov sen rep gen col maj capt lt sgt hon rev pres msgr sr jr esq bros ltd assn cos
    univ dept est ft mt rd sq bldg ct blvd ave cf al pvt cpl comdr adm messrs invt elec natl intl
    seq tel mr mrs ms dr drs st corp inc co etc vs v plc pty alex wm jos cie ph\\.d
"""
_CAPITALISED = "Tex Mass Wash La Miss Ill Ark Del Ore Pa"

# After a single letter and a full stop, these words begin a new sentence.
_STARTERS = """
    A After An As At But He Her Here However If In It Many One Our She So Some That The Their
    Then There These They This We What When While You
"""


def _any(words: str) -> str:
    return "|".join(words.split())


# Of several alternatives the first one wins, so their order is part of the rules.
_TOKEN = re.compile(
    rf"""
    # addresses and tags
      (?: https?:// | www\. ) [^\s"<>]* [\w/]
    | [\w.+-]{{1,64}} @ [\w-]+ (?: \. [\w-]+ )+
    | </? [a-z] [^<>\s]* >
    # can|not, gon|na, got|ta, wan|na, lem|me, gim|me, 't|is, 't|was
    | can (?= not\b ) | (?<= \bcan ) not\b
    | (?: gon (?= na\b ) | got (?= ta\b ) | wan (?= na\b ) | (?: lem | gim ) (?= me\b ) )
    | 't (?= (?: is | was ) \b )
    # is|n't, dog|'s; 'n' and '80s stay whole
    | [^\W_]+? (?= n't\b ) | n't\b
    | ' (?: s | m | d | re | ve | ll | em | til ) \b
    | 'n' | 'n (?! {_W} ) | '\d\ds \b | y' (?= \w ) | \b (?: dunkin | ol ) '
    # u.s. and, unless it ends the sentence, a.
    | \b [a-z] (?: \.[a-z] )+ \.? (?! \w )
    | \b [a-z] \. (?! \s*$ | \s+ (?-i: {_any(_STARTERS)} ) \b | {_W} )
    | \b (?: {_any(_ABBREVIATIONS)} | (?-i: {_any(_CAPITALISED)} ) ) \.
    | \b (?: nos? | pp? | figs? ) \. (?= \s*\d )
    # R&B, C#, c++, US$, dog.cat
    | (?-i: [A-Z]+ (?: & [A-Z]+ )+ ) | \b (?: [cf]\# | c\+\+ ) | \b (?: us | hk | nz | c | a ) \$
    | [a-z] [\w-]* (?: \. [a-z] [\w-]* )+
    # 3.5-inch, 1,000, 7:30, -5, black/white, 1/2
    | [+-]? \d* (?: [.,:]\d+ )+ (?: -[a-z]+ )*
    | [^\W_]+ (?: -[^\W_]+ ){{0,2}} (?: / [^\W_]+ (?: -[^\W_]+ ){{0,2}} ){{1,2}}
    | (?<! [\w)] ) [+-] \d+
    # ma'am, c'mon, and any word: t-shirt, o'clock, jack-o'lantern
    | \b (?: c'mon | s'mores ) \b
    | [a-z]* [aeiou] ' [aeiou] [a-z]*
    | (?: [dol] ' (?= \w ) )? {_W}+ (?: - (?: [dol] ' )? {_W}+ )*
    | [@\#] [a-z] \w*
    # smileys, runs of marks, and what is left: one sign at a time, no controls, no emoji
    | [:;=] -? [()dp] (?! \w )
    | \.{{2,}} | -{{2,}} | [?!]+ | [`'"]+
    | [^\w\s\x00-\x1f\x7f-\x9f\ud800-\udfff\ufeff\ufffd\U00010000-\U0010ffff]
    """,
    re.VERBOSE | re.IGNORECASE,
)


def tokenize(caption: str) -> list[str]:
    """The words of a caption as coco-caption counts them, in pure Python.

    Lower case; contractions and possessives split off ("is n't", "dog 's"); hyphens and slashes
    between letters kept; abbreviations keep their full stop; currency signs become # and $, round
    brackets -lrb- and -rrb-; the 17 tokens of PUNCTUATION dropped. Any kind of white space
    separates words, line separators and U+2028 too; a lone surrogate is dropped.

    Source: written against the output of the Stanford PTBTokenizer 3.4.1 (-preserveLines
    -lowerCase), which pycocoevalcap calls. Captions whose tokens differ from it: 0 of the 35,460 of
    Flickr8k, 2 of the 155,070 of Flickr30k (it looks for the end of a sentence in the next
    caption, this function never does), 0 of 24,619 of COCO. The rules were written with these
    captions in view; rarer writing (telephone numbers, HTML) may differ more often.
    """
    return list(_tokens(caption))


@lru_cache(maxsize=1 << 16)  # each metric asks for the same captions
def _tokens(caption: str) -> tuple[str, ...]:
    text = _ENTITY.sub(lambda entity: html.unescape(entity[0]), caption).translate(_PLAIN)
    found = _TOKEN.findall(text)
    return tuple(token.lower().translate(_BRACKETS) for token in found if not _dropped(token))


def _dropped(token: str) -> bool:
    """Whether a token is punctuation; runs of dots, dashes and quotes count as one mark each."""
    return token in PUNCTUATION or not token.strip(".") or not token.strip("-`'\"")


# --------------------------------------------------------------------------------------- metrics


@dataclass(frozen=True, kw_only=True)
class Bleu:
    """Share of n-grams that occur in a reference, geometric mean over n, times brevity.

    BLEU-N = min(1, exp(1 - r/c)) (p_1 ... p_N)^(1/N), with counts summed over the corpus before
    dividing; a word counts at most as often as in one reference; c is the length of the captions,
    r that of the closest references. It is not the mean of the BLEU of single captions.
    Units: bleu_1 ... bleu_4, 0 to 1; higher is better. Papers print 100 times this.
    Source: Papineni et al. 2002, as scored by coco-caption. Raises DataError without references.
    """

    needs: ClassVar[set[str]] = set()

    def __call__(self, answers: Answers) -> dict[str, float]:
        from pycocoevalcap.bleu.bleu_scorer import BleuScorer

        scorer = BleuScorer(n=4)
        for caption, references in _pairs(answers):
            scorer += (caption, references)
        corpus, _ = scorer.compute_score(option="closest", verbose=0)
        return {f"bleu_{n}": float(score) for n, score in enumerate(corpus, start=1)}

    def tally(self, answers: Answers) -> Tally:
        """Of each image, for n = 1 to 4, the n-grams that are right and all; then both lengths."""
        from pycocoevalcap.bleu.bleu_scorer import BleuScorer

        scorer = BleuScorer(n=4)
        for caption, references in _pairs(answers):
            scorer += (caption, references)
        rows = []
        for said in scorer.ctest:
            near = min(said["reflen"], key=lambda r: (abs(r - said["testlen"]), r))
            rows.append([*said["correct"], *said["guess"], said["testlen"], near])
        return Tally(np.array(rows, dtype=np.float64), _bleu_of)

    def marks(self, answers: Answers) -> None:
        """It gives no verdict on a single caption."""


def _bleu_of(sums: np.ndarray) -> dict[str, np.ndarray]:
    """BLEU-1 to 4 of summed counts ... 10, with coco-caption's tiny numbers against zeros."""
    right, all_ = sums[..., :4] + 1e-15, sums[..., 4:8] + 1e-9
    means = np.exp(np.cumsum(np.log(right / all_), -1) / np.arange(1, 5))
    ratio = (sums[..., 8] + 1e-15) / (sums[..., 9] + 1e-9)
    brevity = np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)
    return {f"bleu_{n}": means[..., n - 1] * brevity for n in range(1, 5)}


def _mean(name: str, values: list[float]) -> Tally:
    """A score that is the mean of a number for each image."""
    rows = np.array([[value, 1.0] for value in values], dtype=np.float64)
    return Tally(rows, lambda sums: {name: sums[..., 0] / sums[..., 1]})


@dataclass(frozen=True, kw_only=True)
class BatchBleu:
    """BLEU-4 as CLIP-Diffusion-LM computed it; only for standing beside its figures.

    Mean over batches of the corpus BLEU of each, in the order of the split; a last batch that is
    not full is left out, and one without a common 4-gram scores 0. Both sides are in lower case
    between [CLS] and [SEP], which count as words, and are split at white space alone: the captions
    have their punctuation stuck to the word before ("dog."), the references as they stand in the
    file ("dog ."). Captions go on with [PAD] to one beyond the longest of the batch, `length` at
    most. It is neither corpus BLEU (`bleu`: no marks, no punctuation, all images at once) nor a
    mean over images, and its batches change with the order.
    Units: batch_bleu_4, 0 to 1; higher is better.
    Source: the released code of Xu 2022 (CLIP-Diffusion-LM), with torchmetrics' BLEUScore. There
    [PAD] fills up word pieces; here a rare word is one piece. There an image counts once for each
    of its captions in the split, here once.
    Raises DataError without references.
    """

    needs: ClassVar[set[str]] = set()

    batch: Positive = 8  # images in a batch
    length: Positive = 16  # pieces of a caption, marks and padding included

    def __call__(self, answers: Answers) -> dict[str, float]:
        _require_references(answers)
        count = len(answers.captions)
        full = count - count % self.batch or count  # fewer than a batch are one
        scores = []
        for start in range(0, full, self.batch):
            rows = slice(start, start + self.batch)
            said = _padded(answers.captions[rows], self.length)
            truth = [
                [f"[CLS] {text.lower()} [SEP]".split() for text in texts]
                for texts in answers.references[rows]
            ]
            scores.append(_bleu_4(said, truth))
        return {"batch_bleu_4": sum(scores) / len(scores)}

    def tally(self, answers: Answers) -> None:
        """A caption counts by the batch that it stands in."""

    def marks(self, answers: Answers) -> None:
        """It gives no verdict on a single caption."""


_PIECE = re.compile(r"[^\W_]+|[^\w\s]|_")  # as BERT splits words from signs
_LOOSE = re.compile(r" (?=[.?!,]|n't|'(?:m|s|ve|re)\b)")  # what its tokenizer joins again


def _padded(captions: list[str], length: int) -> list[list[str]]:
    """The words of each caption between its marks, and the padding that is left behind them.

    Padding that all captions of the batch share goes, but for one, as equal columns did there.
    """
    pieces = [len(_PIECE.findall(caption)) + 2 for caption in captions]
    width = min(length, max(pieces) + 1)
    return [
        ["[CLS]", *_LOOSE.sub("", caption.lower()).split(), "[SEP]", *["[PAD]"] * (width - used)]
        for caption, used in zip(captions, pieces, strict=True)
    ]


def _bleu_4(said: list[list[str]], truth: list[list[list[str]]]) -> float:
    """Corpus BLEU-4 of words, not smoothed; of references equally near in length the first."""
    right, all_, length, near = [0] * 4, [0] * 4, 0, 0
    for words, references in zip(said, truth, strict=True):
        length += len(words)
        near += len(min(references, key=lambda it: abs(len(it) - len(words))))
        for n in range(4):
            found = _grams(words, n + 1)
            known: Counter[tuple[str, ...]] = Counter()
            for reference in references:
                known |= _grams(reference, n + 1)
            right[n] += (found & known).total()
            all_[n] += found.total()
    if not all(right):
        return 0.0
    precision = math.prod(r / a for r, a in zip(right, all_, strict=True)) ** (1 / 4)
    return precision * min(1.0, math.exp(1 - near / length))


def _grams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


@dataclass(frozen=True, kw_only=True)
class RougeL:
    """Longest common subsequence with the references, as an F-score, averaged over images.

    F = (1 + b^2) P R / (R + b^2 P), b = 1.2; P and R are the best over the references, each apart.
    Units: rouge_l, 0 to 1; higher is better; an empty caption scores 0.
    Source: Lin 2004, as scored by coco-caption. Raises DataError without references.
    """

    needs: ClassVar[set[str]] = set()

    def __call__(self, answers: Answers) -> dict[str, float]:
        return self.tally(answers).total()

    def tally(self, answers: Answers) -> Tally:
        """Each caption's F-score."""
        from pycocoevalcap.rouge.rouge import Rouge

        score = Rouge().calc_score
        # The scorer takes an empty caption for one empty word, which an empty reference matches.
        scores = [score([c], references) if c else 0.0 for c, references in _pairs(answers)]
        return _mean("rouge_l", scores)

    def marks(self, answers: Answers) -> None:
        """It gives no verdict on a single caption."""


@dataclass(frozen=True, kw_only=True)
class CiderD:
    """Likeness of n-grams to the references, rare ones counting more, averaged over images.

    10 times the mean over n = 1..4 and over references of the cosine of tf-idf vectors, clipped,
    times exp(-(difference in length)^2 / 2 sigma^2), sigma = 6; idf = ln(images / images whose
    references have the n-gram), over the evaluated images: it means little for a few, and is 0
    for one.
    Units: cider_d, 0 to 10; higher is better. A caption equal to its image's only reference
    scores 10. Papers print 100 times this ("CIDEr 114" is 1.14).
    Source: Vedantam et al. 2015, as scored by coco-caption. Raises DataError without references.
    """

    needs: ClassVar[set[str]] = set()

    def __call__(self, answers: Answers) -> dict[str, float]:
        return self.tally(answers).total()

    def tally(self, answers: Answers) -> Tally:
        """Each caption's likeness; document frequencies stay those of all images."""
        from pycocoevalcap.cider.cider_scorer import CiderScorer

        scorer = CiderScorer(n=4, sigma=6.0)
        pairs = _pairs(answers)
        for caption, references in pairs:
            scorer += (caption, references)
        if not any(any(references) for _, references in pairs):  # the scorer has no answer to this
            return _mean("cider_d", [0.0] * len(pairs))
        return _mean("cider_d", list(scorer.compute_score()[1]))

    def marks(self, answers: Answers) -> None:
        """It gives no verdict on a single caption."""


@dataclass(frozen=True, kw_only=True)
class ExactMatch:
    """Share of captions that equal one of their references, word by word.

    Case and punctuation don't count: both sides are compared as `tokenize` gives them.
    Units: exact_match, 0 to 1; higher is better; an empty caption scores 0.
    Raises DataError without references.
    """

    needs: ClassVar[set[str]] = set()

    def __call__(self, answers: Answers) -> dict[str, float]:
        return self.tally(answers).total()

    def tally(self, answers: Answers) -> Tally:
        """1 for each caption that equals a reference."""
        hits = [caption != "" and caption in references for caption, references in _pairs(answers)]
        return _mean("exact_match", [float(hit) for hit in hits])

    def marks(self, answers: Answers) -> None:
        """It gives no verdict on a single caption: another wording may be as right."""


def _pairs(answers: Answers) -> list[tuple[str, list[str]]]:
    """Each caption and its references, as tokens joined by single spaces."""
    _require_references(answers)
    joined = zip(answers.captions, answers.references, strict=True)
    return [(_join(caption), [_join(r) for r in references]) for caption, references in joined]


def _require_references(answers: Answers) -> None:
    if not answers.captions:
        raise DataError("metrics: there are no captions to score; allowed: one caption or more")
    for image_id, references in zip(answers.image_ids, answers.references, strict=True):
        if not references:
            raise DataError(
                f'image "{image_id}": has no reference caption to score against; '
                "give it at least one, or leave the image out"
            )


def _join(caption: str) -> str:
    return " ".join(_tokens(caption))
