"""Scores with their N, and tables that read well on a terminal and in a file."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
from rich.console import Console, RenderableType

from cdlm.errors import PluginError, Unavailable
from cdlm.evaluate import (
    ORACLE,
    SINGLE,
    Score,
    available,
    choose,
    evaluate,
    oracle,
    plain,
    records,
    sample_table,
    signature,
    table,
)  # fmt: skip
from cdlm.parts.metrics.coco import Bleu, RougeL
from cdlm.parts.metrics.text import ExactMatch
from cdlm.records import Answers, Said, Tally

ANSWERS = Answers(
    image_ids=["a.jpg", "b.jpg", "c.jpg"],
    captions=["a dog", "[red]two[/red] cats \x1b[31m\ud800", "\u2028"],
    references=[["A dog .", "one dog", "never shown"], ["Cats"], ["A very long reference " * 9]],
    truths=[None, None, None],
)


@dataclass(frozen=True, kw_only=True)
class Words:
    """Mean number of words; and a constant."""

    needs: ClassVar[set[str]] = set()
    name: str = "words"

    def __call__(self, answers: Answers) -> dict[str, float]:
        return {self.name: sum(len(c.split()) for c in answers.captions) / 3, f"{self.name}_2": 1}

    def tally(self, answers: Answers) -> None:
        """Nothing."""


class Nowhere(ExactMatch):
    """A metric whose files are not here."""

    def tally(self, answers: Answers) -> Tally:
        raise Unavailable(["spice", "spice_2"], "no files of it are here")


def printed(table: RenderableType, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(table)
    return file.getvalue()


def test_every_score_has_its_number_of_images() -> None:
    got = evaluate([Words(), Words(name="again")], ANSWERS)
    assert [score.name for score in got] == ["words", "words_2", "again", "again_2"]
    assert got[0] == Score("words", 5 / 3, 3)
    assert {score.n for score in got} == {3}


def test_what_cannot_be_scored_is_shown_with_its_reason_and_stops_nothing() -> None:
    got = evaluate([Nowhere(), ExactMatch()], ANSWERS)
    assert available(got) == {"exact_match": pytest.approx(1 / 3)}
    lines = printed(table(got, "test")).splitlines()
    rows = {line.split()[0]: line.split()[-2:] for line in lines if line.endswith(" 3  ")}
    assert rows == {"SPICE": ["n/a", "3"], "spice": ["n/a", "3"], "exact": ["0.3333", "3"]}
    assert "n/a: SPICE, spice 2: no files of it are here" in "\n".join(lines)
    assert "SPICE as coco-caption" not in "\n".join(lines)


def test_two_scores_of_one_name_are_refused() -> None:
    with pytest.raises(PluginError, match='"words"'):
        evaluate([Words(), Words()], ANSWERS)


def test_the_table_aligns_its_numbers_and_names_the_protocol() -> None:
    given = [Score("bleu_4", 0.12344, 1000), Score("cider_d", 10.5, 5), Score("true_caption", 1, 5)]
    lines = printed(table(given, "test [split]")).splitlines()
    assert lines[0].strip() == "test [split]"
    rows = [line for line in lines if line.rstrip().endswith(("1,000", " 5"))]
    assert [row.split()[0] for row in rows] == ["BLEU-4", "CIDEr-D", "true"]
    assert [row.split()[-2] for row in rows] == ["0.1234", "10.5000", "1.0000"]
    assert len({row.rindex(".") for row in rows}) == 1  # decimal points in one column
    assert signature(given) in " ".join(" ".join(lines).split())
    assert not any("\x1b" in line for line in lines)


def many(right: int, images: int) -> Answers:
    """So many images, of which so many are captioned right."""
    said = ["a dog runs on grass"] * right + ["two cats sit on a mat"] * (images - right)
    return Answers(
        image_ids=[str(i) for i in range(images)],
        captions=said,
        references=[["a dog runs on grass", "a dog"]] * images,
        truths=[None] * images,
    )


def test_the_interval_of_a_share_is_that_of_theory() -> None:
    """0.3 of 400: 0.3 +- 1.96 sqrt(0.3 0.7 / 400), to the noise of 1,000 draws; none unasked."""
    (score,) = evaluate([ExactMatch()], many(120, 400), resamples=1000)
    spread = 1.96 * (0.3 * 0.7 / 400) ** 0.5
    assert score.interval == pytest.approx((0.3 - spread, 0.3 + spread), abs=0.1 * spread)
    assert evaluate([ExactMatch()], many(120, 400), resamples=1000) == [score]
    assert evaluate([ExactMatch()], many(120, 400))[0].interval is None


def test_a_draw_scores_as_its_images_scored_anew() -> None:
    """For BLEU and ROUGE-L, whose scores look at no other image, sums are the whole truth."""
    given, rows = many(3, 6), [0, 0, 5, 3, 3, 3]
    again = Answers(**{
        name: [value[i] for i in rows]
        for name, value in vars(given).items()
        if isinstance(value, list)
    })  # fmt: skip
    for metric in (Bleu(), RougeL(), ExactMatch()):
        tally = metric.tally(given)
        found = {name: float(it) for name, it in tally.score(tally.rows[rows].sum(0)).items()}
        assert found == pytest.approx(metric(again), abs=1e-12)


def test_intervals_stand_in_the_table_where_there_are_some() -> None:
    got = evaluate([Bleu(), Words()], many(30, 40), resamples=200)
    lines = printed(table(got, "test"), 100).splitlines()
    (row,) = [line.split() for line in lines if "BLEU-4" in line]
    low, high = got[3].interval or (0, 0)
    assert row == ["BLEU-4", f"{got[3].value:.4f}", f"{low:.4f}", "to", f"{high:.4f}", "40"]
    assert 0 < low < got[3].value < high < 1
    assert all(score.interval is None for score in got[4:])
    assert "95 %: 1,000 resamples of the images" in " ".join(" ".join(lines).split())


def test_selected_captions_stand_between_single_samples_and_an_oracle_that_is_not_fair() -> None:
    given = [[Score("bleu_4", value, 7)] for value in (0.1, 0.2, 0.3)]
    beside = {SINGLE: given[0], ORACLE: given[2]}
    lines = printed(table(given[1], "test", "selected of 5 by mbr", beside)).splitlines()
    assert lines[2].split() == ["metric", "single", "sample", "selected", "oracle", "N"]
    (row,) = [line for line in lines if "BLEU-4" in line]
    assert row.split() == ["BLEU-4", "0.1000", "0.2000", "0.3000", "7"]
    words = " ".join(" ".join(lines).split())
    assert "selected of 5 by mbr; oracle: chosen by the references, not a fair score" in words
    assert "oracle" not in printed(table(given[0], "test"))


PAIR = Answers(
    image_ids=["a", "b"],
    captions=["", ""],
    references=[["a dog runs on grass", "wet"], ["two cats"]],
    truths=[None, None],
)
DRAWN = [Said(["a dog runs on the grass", "wet", "a dog"], 2), Said(["x", "y", "cats"], 0)]


def test_the_oracle_takes_the_candidate_nearest_to_the_references() -> None:
    assert oracle([Bleu()], PAIR, DRAWN) == ["wet", "cats"]
    assert oracle([], PAIR, [Said(["x", "y"], 1), Said(["a", "two cats"], 0)]) == ["x", "two cats"]


def test_the_oracle_takes_who_is_right_by_the_first_metric_that_gives_verdicts() -> None:
    """A right answer that is less like the references than a wrong one."""

    class LastIsRight(ExactMatch):
        def marks(self, answers: Answers) -> list[bool]:
            return [text in ("a dog", "cats") for text in answers.captions]

    assert oracle([Bleu(), LastIsRight(), ExactMatch()], PAIR, DRAWN) == ["a dog", "cats"]
    assert oracle([ExactMatch()], PAIR, DRAWN) == ["wet", "cats"]


def test_the_signature_claims_only_what_was_scored() -> None:
    assert "BLEU" not in signature([Score("true_caption", 1.0, 5)])
    coco = [Score(name, 0.5, 5) for name in ("bleu_1", "bleu_4", "rouge_l")]
    assert signature(coco).startswith("corpus BLEU, ROUGE-L as coco-caption scores them; ")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_samples_fit_any_width_and_show_captions_as_they_are(width: int) -> None:
    text = printed(sample_table(ANSWERS, n=3, seed=0), width)
    assert max(map(len, text.splitlines())) <= width
    assert all(name in text for name in ANSWERS.image_ids)
    assert "[red]" in text and "(empty)" in text and "never" not in text
    text.encode("utf-8")  # the lone surrogate is gone
    assert "\x1b" not in text


def test_samples_follow_the_seed() -> None:
    assert choose(1000, 5, seed=1) == choose(1000, 5, seed=1) != choose(1000, 5, seed=2)
    assert choose(3, 5, seed=1) == [0, 1, 2]


def test_records_keep_everything_through_json() -> None:
    got = [json.loads(json.dumps(record)) for record in records(ANSWERS)]
    assert [record["caption"] for record in got] == ANSWERS.captions
    assert [record["references"] for record in got] == ANSWERS.references
    assert [record["image_id"] for record in got] == ANSWERS.image_ids


def test_records_keep_the_candidates_where_there_are_several() -> None:
    first, second = records(PAIR, [DRAWN[0], Said(["x"], 0)])
    assert first["candidates"] == DRAWN[0].candidates
    assert "candidates" not in second


def test_plain_text_is_one_printable_line() -> None:
    assert plain(" a\r\n b\u2028c\x1b\ud800 é犬 ") == "a b c\ufffd\ufffd é犬"
