"""A report: what stands in it, what is measured for it and kept, and what it says is missing."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from conftest import Command, Finished

from cdlm import report as reports
from cdlm.compare import HIGHER, LOWER, ONE_SEED, SAME
from cdlm.compose import metrics
from cdlm.errors import CdlmError
from cdlm.evaluate import evaluate
from cdlm.job import Job
from cdlm.report import figures, gallery, kept, page, tables
from cdlm.report.facts import Facts, gather, labels
from cdlm.report.figures import Chart
from cdlm.report.kept import Kept
from cdlm.report.tables import Cell, Row, Table
from cdlm.report.trace import settling, up_to_end
from cdlm.rundir import SAMPLES, RunDir

SECTIONS = (
    "scores", "learning", "restoration", "quality", "gallery", "traces", "provenance", "recipe",
)  # fmt: skip


@pytest.fixture(scope="module")
def measured(tiny_run: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run with all that a report measures, in little. Not to be changed."""
    run = shutil.copytree(tiny_run.path, tmp_path_factory.mktemp("report") / "tiny" / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "STEPS", (1, 2))
        patch.setattr(kept, "IMAGES", 4)
        patch.setattr(kept, "POINTS", 4)
        reports.report([run], run / "report", device="cpu")
    return run


@pytest.fixture
def run(measured: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return shutil.copytree(measured, tmp_path / "tiny" / "run")


def of(run: Path, sampling: bool = False, fresh: bool = False) -> Facts:
    folder = RunDir.open(run)
    return gather(folder, "it", Kept(folder, "cpu", fresh, sampling))


def html(folder: Path) -> str:
    """The page, less what differed from the commit: that may be this very file."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    return re.sub(r"(What differed from the commit).*?</pre>", r"\1", text, flags=re.DOTALL)


# ------------------------------------------------------------------------------------------ whole


def test_the_page_has_every_section_and_needs_nothing_else(measured: Path) -> None:
    text = html(measured / "report")
    assert re.findall(r'<section id="(\w+)">', text) == list(SECTIONS)
    assert "Not in this report" not in text
    for address in re.findall(r'(?:src|href|action|srcset)="([^"]*)"', text):
        assert address.startswith(("data:", "#")), address
    assert "@import" not in text and "url(http" not in text
    size = float(re.search(r"This page is ([\d.]+) MB", text)[1])  # type: ignore[index]
    whole = (measured / "report" / "report.html").stat().st_size
    assert size == pytest.approx(whole / 1e6, abs=0.01)


def test_ids_are_there_once_and_links_lead_to_them(measured: Path) -> None:
    text = html(measured / "report")
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    inside = re.findall(r'(?:href="#|data-copy="|url\(#)([^")]+)', text)
    assert inside and set(inside) <= set(ids)


def test_a_second_report_measures_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept.Job, "open", lambda *_: pytest.fail("sampled again"))
    assert reports.report([run], run / "report").missing == []
    shutil.rmtree(run / "probe")
    again = reports.report([run], run / "report", sampling=False)
    assert again.missing == [
        ("tiny", "restoration curve", "it has not been measured yet, and --no-sampling was given")
    ]
    assert 'id="restoration"' not in html(run / "report")
    assert "Not in this report" in html(run / "report")


def test_newer_weights_or_fresh_measure_again(run: Path) -> None:
    place = run / "probe" / "probe.json"
    facts = json.loads(place.read_text())
    place.write_text(json.dumps(facts | {"words": -1}))
    assert of(run).probe.words == -1  # type: ignore[union-attr]
    place.write_text(json.dumps(facts | {"words": -1, "step": 3}))
    folder = RunDir.open(run)
    assert Kept(folder, "cpu", False, True).probe().words > 0
    place.write_text(json.dumps(facts | {"words": -1}))
    assert Kept(folder, "cpu", True, True).probe().words > 0


def test_a_kept_file_that_is_damaged_is_made_anew(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (run / "report" / "trace.json").write_text('{"traces": []}')
    assert of(run, sampling=True).traces.traces  # type: ignore[union-attr]
    assert "can't be used, and is made anew" in caplog.text


@pytest.mark.parametrize("lost", ["checkpoints", "summary.json", "metrics.jsonl"])
def test_what_a_run_lacks_is_named_and_the_rest_is_there(run: Path, lost: str) -> None:
    for measurement in ("probe", "frontier", "report"):
        shutil.rmtree(run / measurement)
    shutil.rmtree(run / lost) if lost == "checkpoints" else (run / lost).unlink()
    written = reports.report([run], run / "report", sampling=lost == "checkpoints")
    missing = {what: why for _, what, why in written.missing}
    text = html(run / "report")
    if lost == "checkpoints":
        lacking = "restoration curve, quality against steps, denoising trace"
        assert missing[lacking] == "there is no sound checkpoint yet; train it first"
        assert 'id="gallery"' in text and 'id="scores"' in text
    elif lost == "summary.json":
        assert "has not been evaluated yet" in missing["scores, gallery"]
        assert 'id="learning"' in text and 'id="gallery"' not in text
    else:
        assert "has not been trained" in missing["learning curves"]
        assert 'id="learning"' not in text
    assert 'id="recipe"' in text and all(why in text for why in missing.values())


def test_without_the_data_captions_are_shown_without_pictures(run: Path) -> None:
    text = (run / "recipe.toml").read_text()
    gone = 'dataset = { use = "flickr8k", root = "/nowhere" }'
    (run / "recipe.toml").write_text(re.sub(r"dataset = .*", gone, text))
    facts = of(run)
    assert "/nowhere" in facts.missing["images"]
    cards = [card for group in gallery.groups([facts], 0) for card in group.cards]
    assert cards and not any(card.picture for card in cards)


def test_captions_are_text_and_never_markup(run: Path) -> None:
    place = run / SAMPLES
    lines = [json.loads(line) for line in place.read_text().splitlines()]
    lines = [it | {"caption": "<script>alert('a')</script> & \"b\""} for it in lines]
    place.write_text("".join(f"{json.dumps(it)}\n" for it in lines))
    reports.report([run], run / "report", sampling=False)
    text = html(run / "report")
    assert text.count("<script>") == 1  # the page's own
    assert "&lt;script&gt;alert(&#39;a&#39;)&lt;/script&gt;" in text


def test_runs_side_by_side(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other" / "run")
    recipe = (other / "recipe.toml").read_text()
    (other / "recipe.toml").write_text(recipe.replace("seed = 0\n", "seed = 7\n", 1))
    written = reports.report([run, other], tmp_path / "both", ("html", "md"), sampling=False)
    assert [it.name for it in written.files] == ["report.html", "report.md"]
    text = html(tmp_path / "both")
    assert re.findall(r'<section id="(\w+)">', text) == ["scores", "differences", *SECTIONS[1:]]
    assert "<code>7</code>" in text and "inside the noise" in text
    assert (tmp_path / "both" / "report.md").read_text().startswith("|  | exact match | BLEU-1 |")


STUDY = """
extends = "{recipe}"
about   = "Which <target>?"

[study]
seeds = [0]

[axis.target]
x0 = {{ target = {{ use = "x0" }} }}
v  = {{ target = {{ use = "v" }} }}
"""


def test_a_study_is_shown_with_its_findings_and_a_run_of_each_point(
    tiny_recipe: Path, tmp_path: Path, cdlm: Command
) -> None:
    file = tmp_path / "targets.toml"
    file.write_text(STUDY.format(recipe=tiny_recipe))
    small = ["--set", "train.steps=4", "--runs", tmp_path / "runs"]
    said = cdlm("study", file, *small)
    assert said.code == 0, said.err
    study = tmp_path / "runs" / "targets"
    said = cdlm("report", study, "--format", "html", "--format", "md")
    assert said.code == 0, said.err
    text = html(study / "report")
    found = json.loads((study / "table.json").read_text())
    assert re.findall(r'<section id="(\w+)">', text) == [
        "scores", "effects", "differences", *SECTIONS[1:],
    ]  # fmt: skip
    assert f"<li>{found['findings'][0]}</li>" in text and "Which &lt;target&gt;?" in text
    assert f"{found['rows'][1]['scores']['bleu_4']['mean']:.4f}" in text
    rows = (study / "report" / "report.md").read_text().splitlines()
    assert [row.split("|")[1].strip() for row in rows[2:4]] == ["x0", "v"]
    assert "Every point of the study" in text and "Samplers were tried" not in text


def test_a_study_names_the_runs_that_failed(run: Path, tmp_path: Path) -> None:
    folder = run.parent.parent
    scores = json.loads((run / "summary.json").read_text())["scores"]
    there = {"seed": 0, "run": run.relative_to(folder).as_posix(), "scores": scores}
    time = {"training_seconds": None, "seconds_per_caption": 0.1, "frontier": True}
    row = {
        "label": "x0", "options": {"target": "x0"}, "baseline": True, "parameters": 1,
        "runs": [there, {"seed": 1, "failed": "out of <memory>"}],
        "scores": {k: {"mean": it, "interval": None} for k, it in scores.items()},
        "against_baseline": None, "time": time,
    }  # fmt: skip
    study = folder / "study"
    study.mkdir()
    table = {
        "study": "study", "about": "", "design": "grid", "axes": {"target": ["x0"]},
        "baseline": {"target": "x0"}, "seeds": [0, 1], "split": "val", "n": 12,
        "scores": list(scores), "rows": [row], "effects": {"target": {}}, "findings": [],
    }  # fmt: skip
    (study / "table.json").write_text(json.dumps(table))
    written = reports.report([study], tmp_path / "out", sampling=False)
    assert written.missing == [("x0", "the run with seed 1", "out of <memory>")]
    assert "out of &lt;memory&gt;" in html(tmp_path / "out")
    with pytest.raises(CdlmError, match="a study has a report of its own"):
        reports.report([study, run], tmp_path / "out")


# -------------------------------------------------------------------------------------- commands


def test_the_command_writes_the_formats_that_were_asked_for(run: Path, cdlm: Command) -> None:
    shutil.rmtree(run / "report")
    said = cdlm("report", run, "--format", "md", "--format", "latex", "--no-sampling")
    assert said.code == 0, said.err
    assert "left out of tiny: denoising trace: it has not been measured yet" in said.err
    assert f"report: {run / 'report' / 'report.tex'}" in said.out
    assert sorted(it.name for it in (run / "report").glob("report.*")) == [
        "report.md",
        "report.tex",
    ]


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path, cdlm: Command) -> None:
    said = cdlm("report", tmp_path / "runs")
    assert said.code == 2 and "there is no run here" in said.err
    assert not (tmp_path / "runs").exists()


# ----------------------------------------------------------------------------------------- traces


def test_a_word_has_settled_where_its_place_keeps_the_final_word() -> None:
    ids = torch.tensor([[[5, 1, 3]], [[5, 2, 4]], [[5, 1, 4]], [[5, 1, 4]]])
    assert settling(ids).tolist() == [[0, 2, 1]]
    assert up_to_end(torch.tensor([[5, 1, 1], [2, 3, 4]]), 1).tolist() == [
        [True, True, False], [True, True, True],
    ]  # fmt: skip


def test_a_trace_ends_in_the_caption_that_the_run_wrote_down(measured: Path) -> None:
    facts = of(measured)
    assert facts.answers and facts.traces
    captions = dict(zip(facts.answers.image_ids, facts.answers.captions, strict=True))
    assert len(facts.traces.traces) == kept.TRACED
    for trace in facts.traces.traces:
        assert " ".join(filter(None, trace.said[-1])) == captions[trace.image_id]
        assert len(trace.settled) == len(trace.said[-1])
    assert len(facts.traces.times) == 3 and facts.traces.share[-1] == 1.0


# ----------------------------------------------------------------------------------------- tables


def saying(facts: Facts, captions: list[str]) -> Facts:
    """These facts, as if this had been said by another run."""
    assert facts.answers
    other = shutil.copytree(facts.run.path, facts.run.path.parent / "other")
    answers = replace(facts.answers, captions=captions)
    judges = metrics(facts.recipe)
    scores = {score.name: score.value for score in evaluate(judges, answers)}
    draws = Kept(RunDir(other), "cpu", True, False).draws(judges, answers)
    summary = facts.summary | {"scores": scores}
    return replace(facts, run=RunDir(other), answers=answers, draws=draws, summary=summary)


def test_a_difference_counts_where_it_is_larger_than_the_noise(run: Path) -> None:
    facts = of(run)
    assert facts.answers
    right = saying(facts, [texts[0] for texts in facts.answers.references])
    first, second = tables.of_runs([facts, right]).rows
    assert first.cells["bleu_4"].verdict == ""
    assert second.cells["bleu_4"].verdict == f"{HIGHER}{ONE_SEED}"
    assert second.cells["bleu_4"].sign == "▲"
    assert tables.of_runs([right, facts]).rows[1].cells["bleu_4"].verdict.startswith(LOWER)
    same = tables.of_runs([facts, replace(facts)]).rows[1].cells["bleu_4"]
    assert same.verdict == SAME and same.gain == 0


def test_intervals_and_what_was_not_scored_are_the_run_s_own(run: Path) -> None:
    place = run / "summary.json"
    summary = json.loads(place.read_text())
    more = {"intervals": {"bleu_4": [0.125, 0.875]}, "not_scored": {"meteor": "needs Java"}}
    place.write_text(json.dumps(summary | more | {"protocol": "coco <1>"}))
    facts = of(run)
    table = tables.of_runs([facts])
    (row,) = table.rows
    assert (row.cells["bleu_4"].low, row.cells["bleu_4"].high) == (0.125, 0.875)
    assert facts.missing["METEOR"] == "needs Java" and "Coco <1>." in table.about
    low, high = row.cells["bleu_1"].low, row.cells["bleu_1"].high
    assert low is not None and high is not None and low <= row.cells["bleu_1"].value <= high


TABLE = Table(
    rows=[
        Row(label="a_b & c|d", images=1200, cells={"bleu_4": Cell(value=0.5, low=0.4, high=0.6)}),
        Row(label="50 %", images=9, cells={
            "bleu_4": Cell(value=0.7, gain=0.2, verdict=HIGHER, best=True),
        }),
    ],
    metrics=["bleu_4", "cider_d"],
    about="100 % of it",
)  # fmt: skip


def test_the_table_as_markdown() -> None:
    assert tables.markdown(TABLE).splitlines() == [
        "|  | BLEU-4 | CIDEr-D (0 to 10) | N |",
        "| --- | ---: | ---: | ---: |",
        r"| a\_b & c\|d | 0.5000 [0.4000, 0.6000] | n/a | 1,200 |",
        "| 50 % | **0.7000** (higher) | n/a | 9 |",
        "",
        "100 % of it",
    ]


def test_the_table_as_latex() -> None:
    text = tables.latex(TABLE)
    assert r"a\_b \& c|d & 0.5000 {\scriptsize [0.4000, 0.6000]} & n/a & 1,200 \\" in text
    assert r"50 \% & \textbf{0.7000}$^{\uparrow}$ & n/a & 9 \\" in text
    assert r"\caption{100 \% of it $\uparrow$ higher.}" in text


def test_of_a_single_run_metrics_are_the_rows() -> None:
    lines = tables.markdown(replace(TABLE, rows=TABLE.rows[:1])).splitlines()
    assert lines[2] == "| BLEU-4 | 0.5000 [0.4000, 0.6000] | 1,200 |"
    assert lines[3] == "| CIDEr-D (0 to 10) | n/a | 1,200 |"


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["a/default-s0-1a2b3c4d", "b/default-s0-1a2b3c4d"], ["a", "b"]),
        (["a/default-s0-1a2b3c4d", "a/lr=1-s0-5a2b3c4d"], ["default-s0", "lr=1-s0"]),
        (["a/x-s0-1", "a/y-s0-2", "b/x-s0-1"], ["a x-s0", "a y-s0", "b x-s0"]),
        (["a/x-s0-1", "a/x-s0-2"], ["x-s0 (1)", "x-s0 (2)"]),
    ],
)
def test_labels_are_short_and_differ(paths: list[str], expected: list[str], tmp_path: Path) -> None:
    assert labels([RunDir(tmp_path / path) for path in paths]) == expected


# ---------------------------------------------------------------------------------------- figures


def test_a_figure_takes_its_colours_and_type_from_the_page() -> None:
    curves = {f"run $x_{i}$": ([1.0, 10.0, 100.0], [0.1, 0.2, i / 10]) for i in range(9)}
    chart = Chart(name="c", title="T", across="x < y", up="y", curves=curves, log=True)
    text = figures.svg(chart)
    root = ElementTree.fromstring(text)
    assert not re.search(r"#[0-9a-f]{6}\b", text), "a colour that no theme can change"
    assert "font-family" not in text and "var(--series-8)" in text and "var(--ink)" in text
    words = [it.text for it in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "run $x_3$" in words and "100" in words
    assert "run $x_3$: from 0.1 at 1 to 0.3 at 100" in root.get("aria-label", "")


def test_numbers_under_a_figure_are_few() -> None:
    assert page._evenly(range(1000), 5) == [0, 250, 500, 749, 999]
    assert page._evenly([1, 2], 5) == [1, 2]


def test_a_large_picture_is_shrunk_and_a_small_one_kept() -> None:
    import base64
    import io

    from PIL import Image

    for size, kind, kept_size in (((96, 64), "png", (96, 64)), ((900, 600), "jpeg", (256, 171))):
        uri = gallery.data_uri(Image.new("L", size))
        assert uri.startswith(f"data:image/{kind};base64,")
        with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
            assert image.size == kept_size


def test_a_measurement_that_fails_is_missing_and_no_more(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Job:
        raise CdlmError(f"{run}: out of order\n    mend it")

    monkeypatch.setattr(kept.Job, "open", broken)
    facts = of(run, sampling=True, fresh=True)
    assert facts.missing["denoising trace"] == "out of order"
    assert facts.answers and not facts.traces
