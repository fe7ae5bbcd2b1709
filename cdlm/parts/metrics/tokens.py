"""The words of a caption as coco-caption counts them: its own tokenizer, or ours without Java."""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Sequence
from functools import lru_cache

from cdlm.parts.metrics import java

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


# ------------------------------------------------------------------------------- with Java

JAR = java.shipped("tokenizer/stanford-corenlp-3.4.1.jar")
PROGRAM = ("edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase")
UTF8 = ("-encoding", "utf-8")
LEAST_SECONDS, LINES_A_SECOND = 60.0, 1000  # it starts in 0.2 s, and reads 100,000 lines a second

# Python's line ends, of which the program takes some for its own. Left in, they would move all
# captions that follow to other images.
_LINE_ENDS = re.compile("[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")

log = logging.getLogger(__name__)


def joined(captions: Sequence[str]) -> list[str]:
    """Each caption's tokens with single spaces between, as coco-caption hands them to its scorers.

    By its own program, the Stanford PTBTokenizer 3.4.1, where Java is; else as `tokenize`.
    """
    found = _stanford(tuple(captions))
    return [" ".join(_tokens(text)) for text in captions] if found is None else list(found)


def engine() -> str:
    """Whose tokens `joined` gives, for people."""
    return "cdlm's tokenizer" if _stanford(("a dog",)) is None else "PTB tokenizer 3.4.1"


@lru_cache(maxsize=32)  # each metric asks for the same captions and references
def _stanford(captions: tuple[str, ...]) -> tuple[str, ...] | None:
    """Tokens by the Java program; None where it can't be run."""
    if java.lacking(JAR):
        return None
    # A lone surrogate has no bytes; the original breaks off at one.
    given = "\n".join(_LINE_ENDS.sub(" ", text) for text in captions).encode("utf-8", "ignore")
    seconds = LEAST_SECONDS + len(captions) / LINES_A_SECOND
    quick = "-XX:TieredStopAtLevel=1"  # it ends before a better compiler would pay
    try:
        out = java.output([quick, "-cp", str(JAR), *PROGRAM, *UTF8], given, seconds)
    except java.JavaFailed as error:
        log.warning("the Stanford tokenizer failed (%s); cdlm's own is used", error)
        return None
    lines = out.decode("utf-8", "replace").split("\n")
    if len(lines) != len(captions):
        log.warning("the Stanford tokenizer lost count of the lines; cdlm's own is used")
        return None
    words = (line.rstrip().split(" ") for line in lines)
    return tuple(" ".join(word for word in row if word not in PUNCTUATION) for row in words)


# ---------------------------------------------------------------------------- without Java


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
