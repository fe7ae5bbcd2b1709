"""Results as files: what they hold, COCO's form of them, and files that are not of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Finished

from cdlm.errors import DataError, RunError
from cdlm.evaluate import available, evaluate
from cdlm.job import Job
from cdlm.records import Answers
from cdlm.results import _slug, coco_results, keep, published, read_answers
from cdlm.run import evaluate_run
from cdlm.rundir import RunDir

NOTES = [
    {"image_id": 9, "caption": "a dog"},
    {"image_id": 7, "caption": "a cat"},
    {"image_id": 9, "caption": "the dog"},
]


def files(folder: Path, said: Any, notes: Any = None) -> tuple[Path, Path]:
    """A file of results and one of annotations."""
    notes = {"annotations": NOTES} if notes is None else notes
    for name, found in (("said", said), ("notes", notes)):
        (folder / f"{name}.json").write_text(json.dumps(found))
    return folder / "said.json", folder / "notes.json"


def test_captions_meet_their_references_in_the_order_of_the_annotations(tmp_path: Path) -> None:
    said = [{"image_id": 7, "caption": "one"}, {"image_id": 9, "caption": "two"}]
    got = read_answers(*files(tmp_path, said))
    assert got.image_ids == ["9", "7"]
    assert got.captions == ["two", "one"]
    assert got.references == [["a dog", "the dog"], ["a cat"]]
    assert read_answers(*files(tmp_path, said[:1])).captions == ["one"]


@pytest.mark.parametrize(
    ("said", "notes", "words"),
    [
        ([{"image_id": 9, "caption": "x"}] * 2, None, "image 9: captioned twice"),
        ([{"image_id": 8, "caption": "x"}], None, "image 8: has no reference in"),
        ({"9": "x"}, None, "said.json: expected a list of"),
        ([{"image_id": 9}], None, "said.json: expected a list of"),
        ([{"image_id": 9, "caption": 5}], None, "said.json: expected a list of"),
        ([], NOTES, "notes.json: expected a list of"),
        ([], {"annotations": "none"}, "notes.json: expected a list of"),
    ],
    ids=str,
)
def test_files_of_another_form_are_named(tmp_path: Path, said: Any, notes: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_answers(*files(tmp_path, said, notes))


def test_files_that_are_not_there_or_no_json_are_named(tmp_path: Path) -> None:
    said, notes = files(tmp_path, [])
    with pytest.raises(DataError, match="there is no such file"):
        read_answers(tmp_path / "gone.json", notes)
    said.write_text("[{")
    with pytest.raises(DataError, match="not a file of JSON"):
        read_answers(said, notes)


def test_images_of_coco_are_named_by_their_numbers() -> None:
    names = ["000000000285.jpg", "COCO_val2014_000000391895.jpg", "1000092795.jpg", "a.png"]
    given = Answers(image_ids=names, captions=["x"] * 4, references=[["x"]] * 4, truths=[None] * 4)
    assert [it["image_id"] for it in coco_results(given)] == [285, 391895, *names[2:]]


def test_a_result_that_cannot_be_kept_is_named(tiny_run: Finished, tmp_path: Path) -> None:
    job = Job.open(RunDir.open(tiny_run.path), "cpu", ["evaluate.limit=3"])
    outcome = evaluate_run(job)
    (tmp_path / "eval").write_text("in the way")
    place = RunDir(tmp_path)
    with pytest.raises(RunError, match="can't keep the result"):
        keep(Job(place, job.recipe, job.parts, "cpu", job.splits), outcome, [])


def test_the_file_that_coco_brings_is_scored_as_coco_caption_scores_it() -> None:
    """Measured with coco-caption's own code, PTB tokenizer and METEOR by Java, on 2,416 images."""
    data = Path(__file__).parents[2] / "shared" / "coco"
    if not data.is_dir():
        pytest.skip("needs COCO's captions of val2017 and a file of results beside this folder")
    said = data / "results" / "captions_val2017_fakecap_results_a.json"
    given = read_answers(said, data / "annotations" / "captions_val2017_subset.json")
    bleu, _, rouge, cider, *_ = published()
    assert available(evaluate([bleu, rouge, cider], given)) == pytest.approx(
        {
            "bleu_1": 0.14951801241975654,
            "bleu_2": 0.004025135426082999,
            "bleu_3": 1.0180323779656692e-08,
            "bleu_4": 2.4289080450473924e-11,
            "rouge_l": 0.3344244562112469,
            "cider_d": 0.000158529401246049,
        },
        rel=1e-12,
    )


def test_names_of_many_options_are_told_apart() -> None:
    """Also where they differ behind what a name has room for."""
    many = ["process.beams=5", "metric=[{use='bleu'},{use='meteor'}]", "process.penalty=1.5"]
    names = {_slug([*many, "process.order=left", f"step={step}"]) for step in (240, 2400)}
    assert len(names) == 2 and all(len(name) <= 60 for name in names)
    assert _slug(["step=240"]) == "step=240"
