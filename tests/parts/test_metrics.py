"""Laws of the metrics, and of the tokens that they count."""

from __future__ import annotations

import math
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cdlm.errors import DataError
from cdlm.parts.metrics.batch_bleu import BatchBleu, _bleu_4
from cdlm.parts.metrics.coco import Bleu, CiderD, RougeL
from cdlm.parts.metrics.text import ExactMatch
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
