"""Laws of the metrics, and of the tokens that they count."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cdlm.errors import CdlmError, DataError, Unavailable
from cdlm.parts.metrics import coco, common, java, similarity, tokens
from cdlm.parts.metrics.batch_bleu import BatchBleu, _bleu_4
from cdlm.parts.metrics.coco import METEOR, Bleu, CiderD, Meteor, RougeL, Spice
from cdlm.parts.metrics.similarity import ClipScore, ImageSimilarity
from cdlm.parts.metrics.text import CaptionLength, Diversity, ExactMatch, Novelty, Repetition
from cdlm.parts.metrics.tokens import PUNCTUATION, joined, tokenize
from cdlm.protocols import Metric
from cdlm.records import Answers

METRICS: list[Metric] = [Bleu(), RougeL(), CiderD(), ExactMatch()]

CAPTIONS = [
    "a brown dog runs over the grass",
    "Two men aren't playing chess in the park.",
    "the girl's red hat",
    "a man rides a bike",
    "snow",
]
REFERENCES = [
    ["A brown dog is running over green grass .", "The dog runs over the grass ."],
    ["Two men play chess in a park.", "Men aren't standing; they play in the park!", "Chess"],
    ["A girl wears a red hat .", "The girl's hat is red"],
    ["A man rides his bike down the hill .", "a man rides a bike"],
    ["A snowy hill", "Snow, snow, snow!"],
]

# Hard captions; the first word of each is one that begins a sentence, as in caption files.
HARD = """
A man isn't, can't, won't; he's sure they'll say it's the dogs' toys, or James's dog's.
A cannot gonna gotta wanna lemme gimme 'tis 'twas person
A black/white and/or 50/50 half 1/2 of 24/7 w/o his/her thing
A t-shirt, tug-of-war; jack-o-lantern -- a 3-year-old - a 4-wheeler and 49ers at 10am
A 3.5-inch 1,000 dollar $5 US$5 £5 5€ 5% #1 #tag @home 7:30 .5 thing
A sign (left) says [sic] {x}; AT&T, A&amp;M, R&B, rock&roll, Q & A, C# and c++
A woman on St. John Ave. in the U.S. near Mr. Smith Jr. and No. 5, e.g. at 5 p.m. or so
A letter J. P. Morgan. A letter a. b and a crowd d. The end
A 'quoted' "word", ‘single’ “double” it’s – dash — dash… ½ naïve café
A rock 'n' roll band of the '80s, 1950's and 80's o'clock O'Neil ma'am y'all c'mon 'em
A dog.The cat www.google.com word,word word;word word:word well... what?! really!! a+b a*b
A हिन्दी ภาษาไทย 犬が走る 한국어 © ° ™ × ★ thing
A car wash. A pl. of Tex. and Mass. on Mon. in Dec. at the fire dept.
""".strip().split("\n")


def answers(captions: list[str], references: list[list[str]]) -> Answers:
    ids = [f"image{i}" for i in range(len(captions))]
    none = [None] * len(captions)
    return Answers(image_ids=ids, captions=captions, references=references, truths=none)


def scores(given: Answers) -> dict[str, float]:
    return {name: value for metric in METRICS for name, value in metric(given).items()}


# ---------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A Dog , running .", "a dog running"),
        ("The dogs' owner isn't here; he's out!", "the dogs owner is n't here he 's out"),
        ("I cannot and can't", "i can not and ca n't"),
        ("black/white t-shirt (new)", "black/white t-shirt -lrb- new -rrb-"),
        ("it’s “fine” — really…", "it 's fine really"),
        ("Mr. Smith of the U.S. costs $1,000.50", "mr. smith of the u.s. costs $ 1,000.50"),
        ("at AT&amp;T with tom&jerry", "at at&t with tom & jerry"),
        ("...", ""),
        ("", ""),
    ],
)
def test_tokens_are_those_of_the_penn_treebank(caption: str, tokens: str) -> None:
    assert tokenize(caption) == tokens.split()


@pytest.mark.parametrize(
    "separator", ["\r", "\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"]
)
def test_a_line_separator_only_separates_words(separator: str) -> None:
    assert tokenize(f"a dog{separator}runs") == ["a", "dog", "runs"]


@pytest.mark.parametrize("code", [0xD800, 0xDFFF, 0x00, 0x1B, 0x1F600, 0xFFFD])
def test_what_is_no_text_is_dropped(code: int) -> None:
    assert tokenize(f"a {chr(code)} dog{chr(code)}") == ["a", "dog"]


def test_tokens_hold_no_white_space_capitals_or_punctuation() -> None:
    rng = random.Random(0)
    letters = "aAbnts0159 .,-'\"/&;:!?()[]<>@#$%*_\\’“½é\u2028\ud800\r"
    for _ in range(3000):
        tokens = tokenize("".join(rng.choices(letters, k=rng.randint(0, 20))))
        assert not PUNCTUATION & set(tokens)
        assert all(token == token.lower() and re.fullmatch(r"\S+", token) for token in tokens)


def test_tokens_equal_those_of_the_stanford_tokenizer(tmp_path: Path) -> None:
    """The control is the Java program itself, called as coco-caption calls it."""
    ptb = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    jar = Path(ptb.__file__).with_name(ptb.STANFORD_CORENLP_3_4_1_JAR)
    if not shutil.which("java") or not jar.is_file():
        pytest.skip("needs Java and the jar that pycocoevalcap ships")
    file = tmp_path / "captions.txt"
    file.write_text("\n".join(HARD), encoding="utf-8")
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    options = ["-encoding", "utf-8", "-preserveLines", "-lowerCase"]
    done = subprocess.run([*command, *options, str(file)], capture_output=True, check=True)
    lines = done.stdout.decode("utf-8").split("\n")
    theirs = [[t for t in line.split() if t not in ptb.PUNCTUATIONS] for line in lines]
    assert list(map(tokenize, HARD)) == theirs[: len(HARD)]


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine without Java."""
    monkeypatch.setattr(java, "lacking", lambda *files: "Java is not installed")
    tokens._stanford.cache_clear()
    yield
    tokens._stanford.cache_clear()


def test_scores_have_the_tokens_of_the_original_where_java_is() -> None:
    if java.lacking(tokens.JAR):
        pytest.skip("needs Java and the jar that pycocoevalcap ships")
    assert tokens.engine() == "PTB tokenizer 3.4.1"
    odd = ["tel. 555-1234 ext. 5", "a 3rd a.m. train"]  # where ours is only near
    assert joined([*HARD, *odd])[: len(HARD)] == [" ".join(tokenize(text)) for text in HARD]


def test_without_java_scores_have_our_tokens_and_say_so(no_java: None) -> None:
    assert tokens.engine() == "cdlm's tokenizer"
    assert joined(HARD) == [" ".join(tokenize(text)) for text in HARD]


@pytest.mark.parametrize("broken", ["fails", "loses count"])
def test_a_tokenizer_that_fails_is_replaced_with_a_warning(
    broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def output(*given: object) -> bytes:
        if broken == "fails":
            raise java.JavaFailed("no answer within 1 s")
        return b"a dog"

    monkeypatch.setattr(java, "lacking", lambda *files: "")
    monkeypatch.setattr(java, "output", output)
    tokens._stanford.cache_clear()
    assert joined(["A dog.", "A cat!"]) == ["a dog", "a cat"]
    assert "cdlm's own is used" in caplog.text
    tokens._stanford.cache_clear()


@pytest.mark.parametrize(
    "separator", ["\r", "\r\n", "\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028"]
)
def test_a_separator_moves_no_caption_to_another_image(separator: str) -> None:
    """The trap of coco-caption itself: one line too many, and all that follows is shifted."""
    assert joined([f"a dog{separator}runs", "a cat"]) == ["a dog runs", "a cat"]


def test_what_has_no_bytes_stops_no_tokenizer() -> None:
    assert joined(["a \ud800dog", "", "a cat"]) == ["a dog", "", "a cat"]


# ----------------------------------------------------------------------------------- Java programs


def test_a_program_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "JAVA", ("sleep",))
    with pytest.raises(java.JavaFailed, match="no answer within"):
        java.output(["60"], b"", 0.1)
    program = java.Companion(["60"])
    with pytest.raises(java.JavaFailed, match="gave no answer within"):
        program.ask("a dog", 0.1)
    assert program._process.returncode is not None  # gone, and waited for: no zombie
    with pytest.raises(java.JavaFailed):  # and later questions fail at once
        program.ask("a dog", 60)


def test_a_program_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "JAVA", ("sh",))
    with pytest.raises(java.JavaFailed, match="exit code 3: no room"):
        java.output(["-c", "echo no room >&2; exit 3"], b"", 10)
    monkeypatch.setattr(java, "JAVA", ("no-such-program",))
    with pytest.raises(java.JavaFailed, match="No such file"):
        java.output([], b"", 10)
    with pytest.raises(java.JavaFailed, match="No such file"):
        java.Companion([])


def test_a_program_that_is_kept_answers_line_by_line_and_ends_with_us(tmp_path: Path) -> None:
    """Also where we are killed: its input ends, and so does it."""
    script = (
        "from cdlm.parts.metrics import java\n"
        "java.JAVA = ('cat',)\n"
        "it = java.companion()\n"
        "assert it.ask('é', 9) == 'é' and java.companion() is it\n"
        "print(it._process.pid, flush=True)\n"
    )
    for end in ("", "import os; os.kill(os.getpid(), 9)"):
        done = subprocess.run([sys.executable, "-c", script + end], capture_output=True, timeout=60)
        process = Path("/proc", done.stdout.decode().strip())
        for _ in range(50):
            if not process.exists():
                break
            time.sleep(0.1)
        assert done.stdout and not process.exists()


def test_without_java_meteor_and_spice_are_not_there(no_java: None) -> None:
    for metric, name in ((Meteor(), "meteor"), (Spice(), "spice")):
        with pytest.raises(Unavailable, match="Java is not installed") as why:
            metric(answers(CAPTIONS, REFERENCES))
        assert why.value.scores == [name]


def test_meteor_that_breaks_off_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: str) -> java.Companion:
        raise java.JavaFailed("exit code 1: no memory")

    monkeypatch.setattr(java, "lacking", lambda *files: "")
    monkeypatch.setattr(java, "companion", fails)
    with pytest.raises(Unavailable, match="the program failed: exit code 1: no memory"):
        Meteor()(answers(["words of no other test"], [["any"]]))


def test_meteor_equals_its_own_program_on_a_corpus() -> None:
    """The program sums counts in its own way: one of the captions is a reference, whole."""
    if java.lacking(METEOR):
        pytest.skip("needs Java and the jar that pycocoevalcap ships")
    given = answers([*CAPTIONS, "", "a running man |||"], [*REFERENCES, ["x"], ["a man runs"]])
    rows = [coco._meteor_counts(c, tuple(refs)) for c, refs in common.pairs(given)]
    counts = [" ".join(map(str, row)) for row in rows]
    program = java.companion("-Xmx2G", "-jar", str(METEOR), "-", "-", "-stdio", "-l", "en", "-norm")
    program.ask(" ||| ".join(("EVAL", *counts)), 60)
    lines = [program._process.stdout.readline() for _ in rows]  # type: ignore[union-attr]
    assert Meteor()(given)["meteor"] == pytest.approx(float(lines[-1]), rel=1e-12)


def test_spice_is_the_mean_of_what_its_program_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    def output(command: list[str], given: bytes, seconds: float) -> bytes:
        asked, told = Path(command[3]), Path(command[5])
        rows = json.loads(asked.read_text())
        assert rows[0]["test"] == CAPTIONS[0] and len(rows[1]["refs"]) == 3
        found = [{"image_id": i, "scores": {"All": {"f": 0.1 * i}}} for i in range(len(rows))]
        told.write_text(json.dumps(found[::-1]))
        return b""

    monkeypatch.setattr(common, "joined", lambda texts: list(texts))
    monkeypatch.setattr(java, "lacking", lambda *files: "")
    monkeypatch.setattr(java, "output", output)
    given = answers(CAPTIONS, REFERENCES)
    assert Spice()(given) == {"spice": pytest.approx(0.2)}
    assert Spice().tally(given).rows[:, 0].tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


# ------------------------------------------------------------------------------- against the field


def test_scores_equal_those_of_pycocoevalcap() -> None:
    """R11: on equal tokens, to 1e-12."""
    from pycocoevalcap.bleu.bleu import Bleu as TheirBleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    res = {i: [" ".join(tokenize(caption))] for i, caption in enumerate(CAPTIONS)}
    gts = {i: [" ".join(tokenize(r)) for r in given] for i, given in enumerate(REFERENCES)}
    theirs = {f"bleu_{n + 1}": b for n, b in enumerate(TheirBleu(4).compute_score(gts, res, 0)[0])}
    theirs["rouge_l"] = Rouge().compute_score(gts, res)[0]
    theirs["cider_d"] = Cider().compute_score(gts, res)[0]
    ours = scores(answers(CAPTIONS, REFERENCES))
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, rel=0, abs=1e-12)


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    scores(answers(CAPTIONS, REFERENCES))
    assert capsys.readouterr() == ("", "")


# ------------------------------------------------------------------------------------ closed forms


def test_a_word_counts_as_often_as_in_one_reference() -> None:
    """Papineni's example: "the" x 7 has a unigram precision of 2/7."""
    got = Bleu()(answers(["the " * 7], [["The cat is on the mat."]]))
    assert got["bleu_1"] == pytest.approx(2 / 7, abs=1e-9)
    assert got["bleu_2"] < 1e-6


def batch_bleu(captions: list[str], references: list[list[str]], **options: int) -> float:
    return BatchBleu(**options)(answers(captions, references))["batch_bleu_4"]


def test_batch_bleu_counts_marks_and_padding_as_words() -> None:
    """[CLS] a dog runs [SEP] [PAD]: p_n = (6 - n) / (7 - n); with two dogs of 8, one [PAD] each."""
    alone = (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25
    assert batch_bleu(["a dog runs"], [["A dog runs"]]) == pytest.approx(alone, rel=1e-12)
    assert batch_bleu(["a dog runs"], [["A dog runs"]], length=5) == pytest.approx(1)
    # beside a caption that reaches 16 pieces all padding stays: 13 words, 5 of them right
    long = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    right = [(6 - n) + (17 - n) for n in (1, 2, 3, 4)]
    parts = math.prod(r / (2 * (17 - n)) for n, r in enumerate(right, start=1))
    found = batch_bleu(["a dog runs", long], [["a dog runs"], [long]])
    assert found == pytest.approx(parts**0.25, rel=1e-12)


def test_batch_bleu_glues_the_captions_punctuation_alone() -> None:
    """[CLS] a dog runs. [SEP] against [CLS] a dog runs . [SEP]: 4/5, 2/4, 1/3, 0."""
    assert batch_bleu(["a dog runs ."], [["a dog runs ."]], length=6) == 0
    stuck = batch_bleu(["a big dog runs ."], [["a big dog runs ."]], length=7)
    brevity = math.exp(1 - 7 / 6)
    assert stuck == pytest.approx(brevity * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25, rel=1e-12)
    assert batch_bleu(["it 's a dog"], [["it's a dog"]], length=6) == pytest.approx(1)


def test_batch_bleu_is_a_mean_over_full_batches() -> None:
    """Of one right and one wrong caption: (1 + 0) / 2, but of both together something else."""
    said, truth = ["a dog", "a dog"], [["a dog"], ["a cat"]]
    assert batch_bleu(said, truth, batch=1, length=4) == pytest.approx(0.5)
    together = (7 / 8 * 4 / 6 * 2 / 4 * 1 / 2) ** 0.25
    assert batch_bleu(said, truth, batch=2, length=4) == pytest.approx(together)
    left_out = batch_bleu([*said, "junk"], [*truth, ["a hat"]], batch=2, length=4)
    assert left_out == pytest.approx(together)


def test_batch_bleu_takes_the_nearest_length_the_first_of_two() -> None:
    """[CLS] a dog [SEP] of 4 words, between references of 5 and 3: 5 costs, 3 does not."""
    rest = [["[CLS]", "a", "dog", "[SEP]"]]
    known = [["[CLS]", "a", "dog", "[SEP]", "x"], ["x", "y", "z"]]
    assert _bleu_4(rest, [known]) == pytest.approx(math.exp(1 - 5 / 4))
    assert _bleu_4(rest, [known[::-1]]) == pytest.approx(1)


def test_a_short_caption_pays_for_its_brevity() -> None:
    """exp(1 - r/c), with r the closest reference: 4 rather than 9."""
    given = answers(["a dog"], [["a dog runs fast", "a dog runs over the green grass very fast"]])
    assert Bleu()(given)["bleu_1"] == pytest.approx(0.36787944117, abs=1e-8)  # exp(1 - 4/2)


def test_corpus_bleu_is_not_the_mean_over_captions() -> None:
    captions, references = ["a b c d e f", "x"], [["a b c d e f"], ["y"]]
    alone = [Bleu()(answers([c], [r]))["bleu_1"] for c, r in zip(captions, references, strict=True)]
    both = Bleu()(answers(captions, references))["bleu_1"]
    assert both == pytest.approx(6 / 7, abs=1e-9)
    assert sum(alone) / 2 == pytest.approx(1 / 2, abs=1e-9)


def test_rouge_is_an_f_score_of_the_longest_common_subsequence() -> None:
    """LCS "a c d" of "a c d e" and "a b c d f g": P = 3/4, R = 3/6."""
    got = RougeL()(answers(["a c d e"], [["a b c d f g"]]))["rouge_l"]
    assert got == pytest.approx((1 + 1.44) * 0.75 * 0.5 / (0.5 + 1.44 * 0.75), abs=1e-12)


def test_an_own_single_reference_scores_ten_unless_it_is_alone() -> None:
    captions = ["a brown dog runs over grass", "two men play some chess", "one red hat hangs there"]
    assert CiderD()(answers(captions, [[c] for c in captions]))["cider_d"] == pytest.approx(10)
    assert CiderD()(answers(captions[:1], [captions[:1]]))["cider_d"] == 0


def test_own_references_match_exactly() -> None:
    own = [references[-1].upper() + " ." for references in REFERENCES]
    assert ExactMatch()(answers(own, REFERENCES)) == {"exact_match": 1.0}
    assert ExactMatch()(answers(["x", *own[1:]], REFERENCES)) == {"exact_match": 0.8}


# ------------------------------------------------------------------------------- captions alone


def test_diversity_counts_what_is_different() -> None:
    """Four of eight words differ, three of five pairs: a dog, dog runs, a cat."""
    got = Diversity()(answers(["A dog runs.", "a dog runs", "a cat"], [["x"]] * 3))
    assert (got["distinct_1"], got["distinct_2"]) == (4 / 8, 3 / 5)
    assert (got["vocabulary"], got["unique_captions"]) == (4, 2 / 3)
    assert Diversity()(answers([""], [["x"]]))["distinct_2"] == 0


def plain_self_bleu(rows: list[list[str]]) -> float:
    """Self-BLEU by its definition, every caption against all the others."""
    scores = []
    for i, row in enumerate(rows):
        others = [it for j, it in enumerate(rows) if j != i]
        logs = 0.0
        for n in range(1, 5):
            grams = [Counter(zip(*(it[k:] for k in range(n)), strict=False)) for it in others]
            most = Counter({key: max(it[key] for it in grams) for it in grams for key in it})
            said = Counter(zip(*(row[k:] for k in range(n)), strict=False))
            hits = (said & most).total()
            if n == 1 and not hits:
                break
            logs += math.log((hits or 0.1) / max(said.total(), 1)) / 4
        else:
            near = min((abs(len(it) - len(row)), len(it)) for it in others)[1]
            scores.append(min(1, math.exp(1 - near / len(row))) * math.exp(logs))
    return sum(scores) / len(rows)


def test_self_bleu_is_each_caption_against_all_others() -> None:
    rng = random.Random(0)
    for _ in range(20):
        rows = [rng.choices("abcde", k=rng.randint(1, 9)) for _ in range(rng.randint(2, 9))]
        got = Diversity()(answers([" ".join(f"w{it}" for it in row) for row in rows], [["x"]] * 9))
        assert got["self_bleu_4"] == pytest.approx(plain_self_bleu(rows), abs=1e-12)
    same = Diversity()(answers(["a dog runs on grass"] * 3, [["x"]] * 3))
    assert same["self_bleu_4"] == pytest.approx(1)
    assert Diversity()(answers(["a dog"], [["x"]]))["self_bleu_4"] == 0


def test_novelty_is_what_training_does_not_say() -> None:
    """Sequences of four: 1 of 2 is new, then none of none, then 0 of 1."""
    given = answers(["a dog runs on sand", "a dog", "A dog runs on!"], [["x"]] * 3)
    known = replace(given, training=lambda: ["A dog.", "a dog runs on grass"])
    got = Novelty()(known)
    assert got == {"novel_captions": pytest.approx(2 / 3), "novel_4grams": pytest.approx(1 / 3)}
    with pytest.raises(Unavailable, match="not known here"):
        Novelty()(given)

    def lost() -> Sequence[str]:
        raise DataError("data: no such folder\n    say where it is")

    with pytest.raises(Unavailable, match="data: no such folder") as why:
        Novelty()(replace(given, training=lost))
    assert why.value.why == "data: no such folder"


def test_repetition_counts_pairs_said_again_and_doubled_words() -> None:
    """a-a a-a a-dog: one of three again; a-dog dog-and and-a a-dog: one of four; none of none."""
    got = Repetition()(answers(["a a a dog", "a dog and a dog", "snow"], [["x"]] * 3))
    assert got == {"repeated_bigrams": pytest.approx(2 / 7), "doubled_words": pytest.approx(1 / 3)}


def test_length_stands_beside_that_of_the_references() -> None:
    got = CaptionLength()(answers(["a dog.", "..."], [["a b c", "a"], ["one two"]]))
    assert got == {"words": 1.0, "reference_words": 2.0, "empty_captions": 0.5}


# -------------------------------------------------------------------------------- against images


class Reader:
    """An encoder whose vectors are known: of texts by their last word, of images one each."""

    def __init__(self, images: list[list[float]], words: dict[str, list[float]]):
        self.images, self.words, self.read = torch.tensor(images)[:, None], words, list[str]()

    def encode(self, images: object) -> torch.Tensor:
        return self.images

    def texts(self, captions: Sequence[str]) -> torch.Tensor:
        self.read += captions
        return torch.tensor([self.words[text.split()[-1]] for text in captions])[:, None]


def seen(captions: list[str], references: list[list[str]]) -> Answers:
    return replace(answers(captions, references), features=lambda it: it.encode(None))


READER = {"dog": [3.0, 4.0], "cat": [0.0, 2.0], "sky": [-1.0, 0.0], "sea": [1.0, 0.0]}


def test_clip_score_and_its_form_with_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """cos 0.6: 2.5 x 0.6 = 1.5, with the best reference 0.8: 2 x 1.5 x 0.8 / 2.3; cos < 0: 0."""
    reader = Reader([[5.0, 0.0], [1.0, 0.0]], READER)
    monkeypatch.setattr(similarity, "_openai", lambda: reader)
    got = ClipScore()(seen(["a dog", "the sky"], [["a sky", "a cat"], ["a sky"]]))
    assert got["clip_score"] == pytest.approx(1.5 / 2)
    assert got["ref_clip_score"] == pytest.approx(2 * 1.5 * 0.8 / 2.3 / 2)
    assert reader.read[0] == "A photo depicts a dog"
    assert all(text.startswith("A photo depicts ") for text in reader.read)


def test_clip_score_asks_for_the_one_encoder_that_it_is_defined_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, Any]] = []

    class Encoder:
        def __init__(self, **options: Any):
            asked.append(options)

        def identity(self) -> None:
            raise CdlmError("the weights can't be downloaded\n    and more")

    monkeypatch.setattr(similarity, "OpenClip", Encoder)
    similarity._why_not.cache_clear()
    for _ in range(2):  # the second time without another try: it may take minutes
        with pytest.raises(Unavailable, match="weights can't be downloaded") as why:
            ClipScore()(seen(["a dog"], [["a cat"]]))
        assert why.value.scores == ["clip_score", "ref_clip_score"]
        assert "and more" not in why.value.why
    assert asked == [{"model": "ViT-B-32", "pretrained": "openai"}]
    similarity._why_not.cache_clear()


def test_image_similarity_is_a_plain_cosine_under_its_own_name() -> None:
    reader = Reader([[5.0, 0.0], [1.0, 0.0]], READER)
    given = seen(["a dog", "the sky"], [["x"], ["x"]])
    assert ImageSimilarity(encoder=reader)(given) == {"image_similarity": pytest.approx(-0.2)}
    assert reader.read == ["a dog", "the sky"]
    with pytest.raises(Unavailable, match="no images"):
        ImageSimilarity(encoder=reader)(answers(["a dog"], [["x"]]))


# ------------------------------------------------------------------------------------------- laws


def test_the_order_of_images_and_of_references_changes_nothing() -> None:
    order = [3, 0, 4, 1, 2]
    moved = [REFERENCES[i][::-1] for i in order]
    there = scores(answers([CAPTIONS[i] for i in order], moved))
    assert there == pytest.approx(scores(answers(CAPTIONS, REFERENCES)), rel=0, abs=1e-12)


def test_images_of_one_name_are_counted_apart() -> None:
    given = answers(CAPTIONS, REFERENCES)
    same = Answers(
        image_ids=["x"] * 5, captions=CAPTIONS, references=REFERENCES, truths=given.truths
    )
    assert scores(same) == scores(given)


@pytest.mark.parametrize("caption", ["", " ", "...", "\u2028", "\ud800"])
def test_an_empty_caption_scores_nothing(caption: str) -> None:
    for references in (["a dog runs"], ["", "..."]):
        for others in (["a cat sits"], [""]):
            got = scores(answers([caption] * 2, [references, others]))
            assert got == pytest.approx(dict.fromkeys(got, 0.0), abs=1e-12)


@pytest.mark.parametrize("separator", ["\r", "\x0b", "\x0c", "\u2028"])
def test_a_separator_in_a_caption_shifts_no_other(separator: str) -> None:
    broken = [CAPTIONS[0].replace(" ", separator), *CAPTIONS[1:]]
    assert scores(answers(broken, REFERENCES)) == scores(answers(CAPTIONS, REFERENCES))


@pytest.mark.parametrize(
    "metric", [*METRICS, BatchBleu()], ids=lambda metric: type(metric).__name__
)
def test_a_missing_reference_names_its_image(metric: Metric) -> None:
    with pytest.raises(DataError, match="image1"):
        metric(answers(CAPTIONS[:2], [REFERENCES[0], []]))
    with pytest.raises(DataError, match="no captions"):
        metric(answers([], []))
