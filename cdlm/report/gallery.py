"""Images with what runs say of them: the best, the worst, and some drawn at random."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cdlm.errors import CdlmError
from cdlm.evaluate import plain
from cdlm.parts.metrics import tokenize
from cdlm.parts.selections import sentence_bleu
from cdlm.records import Answers
from cdlm.report.facts import Facts

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 256  # pixels of the longer side: sharp enough at the width of a card
SMALL = 160  # pixels; up to here an image is kept as it is, without loss
EACH = 6  # images of a group
SHOWN_REFERENCES = 2


@dataclass(frozen=True, kw_only=True)
class Caption:
    """What one run says of an image."""

    label: str  # the run's
    words: list[tuple[str, bool]]  # and whether some reference has the word
    verdict: bool | None  # the first metric's, where it gives one
    bleu: float  # sentence BLEU-4, smoothed


@dataclass(frozen=True, kw_only=True)
class Card:
    """An image and all that is said of it."""

    image_id: str
    picture: str  # a data URI, or "" where the image is not to be had
    references: list[str]
    captions: list[Caption]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Some cards under a heading."""

    title: str
    about: str
    cards: list[Card]


def groups(runs: Sequence[Facts], seed: int) -> list[Group]:
    """The best, the worst and random images of those that all these runs captioned.

    Best and worst are of those that were not drawn, by the first metric's verdicts, then by the
    mean over runs of sentence BLEU-4; of equals some at random. Where pictures
    are missing, the first run's facts then say why.
    """
    runs = [facts for facts in runs if facts.answers]
    ids = _common(runs)
    if not ids:
        return []
    known = [_captions(facts, ids) for facts in runs]
    order = random.Random(seed).sample(ids, len(ids))
    drawn, rest = sorted(order[:EACH]), order[EACH:]
    rest.sort(key=lambda it: _worth([captions[it] for captions in known]), reverse=True)
    best, worst = rest[:EACH], rest[EACH:][-EACH:][::-1]
    pictures = _pictures(runs[0], {*drawn, *best, *worst})
    by = "by verdict, then sentence BLEU-4" + (", mean of the runs" if len(runs) > 1 else "")

    cards = {
        it: _card(runs[0], it, pictures, [captions[it] for captions in known])
        for it in (*drawn, *best, *worst)
    }
    made = [
        ("Random", f"drawn with seed {seed}", drawn),
        ("Best", f"of the others, {by}; of equals some at random", best),
        ("Worst", "of the others, the worst first", worst),
    ]
    return [
        Group(title=title, about=about, cards=[cards[it] for it in chosen])
        for title, about, chosen in made
        if chosen
    ]


def _common(runs: Sequence[Facts]) -> list[str]:
    """The images that every run captioned, in the first one's order."""
    if not runs:
        return []
    others = [set(facts.answers.image_ids) for facts in runs if facts.answers]
    assert runs[0].answers
    return [it for it in runs[0].answers.image_ids if all(it in other for other in others)]


def _captions(facts: Facts, ids: Sequence[str]) -> dict[str, Caption]:
    """What a run says of these images."""
    answers = facts.answers
    assert answers
    rows = {image_id: i for i, image_id in enumerate(answers.image_ids)}
    return {it: _caption(facts.label, answers, rows[it], facts.verdicts[rows[it]]) for it in ids}


def _caption(label: str, answers: Answers, row: int, verdict: bool | None) -> Caption:
    text, truth = answers.captions[row], [tokenize(it) for it in answers.references[row]]
    seen = {word for words in truth for word in words}
    return Caption(
        label=label,
        words=[(word, seen.issuperset(tokenize(word))) for word in plain(text).split()],
        verdict=verdict,
        bleu=sentence_bleu(tokenize(text), truth),
    )


def _worth(captions: Sequence[Caption]) -> tuple[float, float]:
    """How good captions of one image are, the larger the better."""
    right = sum(it.verdict is not False for it in captions)
    return right / len(captions), sum(it.bleu for it in captions) / len(captions)


def _card(facts: Facts, image_id: str, pictures: dict[str, str], captions: list[Caption]) -> Card:
    assert facts.answers
    row = facts.answers.image_ids.index(image_id)
    return Card(
        image_id=plain(image_id),
        picture=pictures.get(image_id, ""),
        references=[plain(it) for it in facts.answers.references[row][:SHOWN_REFERENCES]],
        captions=captions,
    )


# --------------------------------------------------------------------------------------- pictures


def _pictures(facts: Facts, ids: set[str]) -> dict[str, str]:
    """Data URIs of these images; none, and the reason noted, where they are not to be had."""
    if facts.split is None:
        return {}
    rows = {image_id: i for i, image_id in enumerate(facts.split.ids)}
    wanted = sorted(ids)
    try:
        images = facts.split.images([rows[it] for it in wanted])
    except CdlmError as error:
        facts.missing["images"] = str(error).partition("\n")[0]
        return {}
    return {it: data_uri(image) for it, image in zip(wanted, images, strict=True)}


def data_uri(image: Image) -> str:
    """The image, small, as text that a page can hold."""
    from PIL import Image as pillow

    out, small = io.BytesIO(), max(image.size) <= SMALL
    if small:
        image.convert("RGB").save(out, format="PNG", optimize=True)
    else:
        shrunk = image.convert("RGB")
        shrunk.thumbnail((SIDE, SIDE), pillow.Resampling.LANCZOS)
        shrunk.save(out, format="JPEG", quality=80, optimize=True, progressive=True)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"
