"""Which words may stand where: whole words, pieces of words, and pieces of bytes."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor

from cdlm.errors import CdlmError
from cdlm.parts.constraints import Forbid, Known, Size, Template
from cdlm.parts.lengths import Generated, Histogram
from cdlm.parts.tokenizers import Bpe, HuggingFace, Words
from cdlm.protocols import Constraint, Tokenizer
from cdlm.sample import captions, forbidden
from cdlm.testing.examples import CAPTIONS, DIMS, rng
from cdlm.testing.whole import captioner

TEXTS = [*CAPTIONS, "a dog , running ."]


def whole_words() -> Words:
    part = Words()
    part.fit(TEXTS)
    return part


def ready(engine: Engine) -> HuggingFace:
    """A ready tokenizer, without the detour over a file."""
    part = HuggingFace(source="nowhere")
    part._adopt(engine, "[PAD]", "[SEP]")
    return part


def word_pieces() -> HuggingFace:
    """As BERT's: the rest of a word begins with ##."""
    vocabulary = ["[PAD]", "[UNK]", "[SEP]", "a", "dog", "run", "##s", "##ning", ",", "Dog"]
    model = models.WordPiece({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]")
    engine = Engine(model)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece()
    engine.add_special_tokens(["[PAD]", "[UNK]", "[SEP]"])
    return ready(engine)


def byte_pieces() -> HuggingFace:
    """As GPT-2's: a word has its space in front, but for the first one of a text."""
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["[PAD]", "[SEP]"], show_progress=False
    )
    engine.train_from_iterator(["dog a dog", "dog runs on a dog"], trainer)
    return ready(engine)


def said(tokenizer: Tokenizer, row: Tensor) -> set[str]:
    """What the allowed tokens of one place say; padding says nothing."""
    return {text for text, ok in zip(texts(tokenizer), row.tolist(), strict=True) if ok}


def texts(tokenizer: Tokenizer) -> list[str]:
    return tokenizer.decode(torch.arange(len(tokenizer))[:, None])


def only(tokenizer: Tokenizer, row: Tensor) -> int:
    """The one token that is allowed."""
    (token,) = row.nonzero().flatten().tolist()
    return int(token)


# --------------------------------------------------------------------------------------- template


def test_a_template_keeps_its_words_and_ends() -> None:
    tokenizer = whole_words()
    table = Template(text="a [ ] dog").allowed(tokenizer, 6)
    wanted, _ = tokenizer.encode(["a red dog"], 6)
    for place in (0, 2, 3, 4, 5):
        assert only(tokenizer, table[place]) == int(wanted[0, place])


def test_a_free_place_takes_any_word_but_no_mark_and_nothing_unseen() -> None:
    tokenizer = whole_words()
    row = Template(text="[ ] dog").allowed(tokenizer, 6)[0]
    words = {word for text in TEXTS for word in text.split()} - {",", "."}
    assert said(tokenizer, row) == words


@pytest.mark.parametrize("text", ["[]", "[ ]", "[   ]"])
def test_free_places_are_written_in_several_ways(text: str) -> None:
    tokenizer = whole_words()
    one, two = (Template(text=f"a {it} dog").allowed(tokenizer, 6) for it in (text, "[ ]"))
    assert torch.equal(one, two)


def test_an_open_template_lets_the_caption_go_on() -> None:
    tokenizer = whole_words()
    for text in ("a dog ...", "a dog...", "a dog ... "):
        table = Template(text=text).allowed(tokenizer, 6)
        assert said(tokenizer, table[1]) == {"dog"}
        assert bool(table[2, tokenizer.end]) and said(tokenizer, table[2]) >= {"on", ",", "a"}
        assert bool(table[3:].all())


def test_a_word_of_several_pieces_takes_several_places() -> None:
    tokenizer = word_pieces()
    table = Template(text="a dog running").allowed(tokenizer, 6)
    assert [only(tokenizer, row) for row in table] == [3, 4, 5, 7, 2, 0]


def test_a_free_place_never_prolongs_a_word() -> None:
    tokenizer = word_pieces()
    assert said(tokenizer, Template(text="a [ ]").allowed(tokenizer, 6)[1]) == {
        "a", "dog", "run", "Dog",
    }  # fmt: skip
    behind = Template(text="a dog ...").allowed(tokenizer, 6)[2]
    assert not bool(behind[[6, 7]].any()) and bool(behind[8])  # "dogs", "dogning"; "dog,"


def test_the_first_word_of_byte_pieces_has_no_space() -> None:
    tokenizer = byte_pieces()
    table = Template(text="dog dog [ ] dog").allowed(tokenizer, 6)
    spelt, _ = tokenizer.encode(["dog dog a dog"], 6)
    kept = [0, 1, 3, 4, 5]
    assert [only(tokenizer, table[place]) for place in kept] == spelt[0, kept].tolist()
    assert len(set(spelt[0, :2].tolist())) == 2
    assert bool(table[2, spelt[0, 2]]) and not bool(table[2, spelt[0, 0]])  # "dogdog"


def test_case_and_composition_of_letters_are_the_tokenizers_affair() -> None:
    tokenizer = Words()
    tokenizer.fit(["a caf\u00e9"])
    table = Template(text="A CAFE\u0301").allowed(tokenizer, 4)
    assert said(tokenizer, table[1]) == {"caf\u00e9"}


@pytest.mark.parametrize("text", ["", "  ", "...", " ... "])
def test_a_template_that_gives_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"has no word and no \[ \]"):
        Template(text=text)


def test_dots_elsewhere_are_refused() -> None:
    with pytest.raises(ValueError, match="may stand at its end only"):
        Template(text="a dog ... on grass")


def test_a_template_that_is_too_long_says_how_long() -> None:
    with pytest.raises(CdlmError, match=r"has 6 tokens, and .* model.length = 6"):
        Template(text="a a a a a a").allowed(whole_words(), 6)
    assert Template(text="a a a a a").allowed(whole_words(), 6)[5].sum() == 1


def test_unknown_words_are_named_beside_near_ones() -> None:
    with pytest.raises(CdlmError) as caught:
        Template(text="a bull on gras").allowed(whole_words(), 6)
    assert str(caught.value).splitlines() == [
        'constraint: "bull", "gras": not in the vocabulary of this run',
        '    near "bull": "ball"',
        '    near "gras": "grass"',
    ]


def test_where_nothing_is_near_a_small_vocabulary_is_shown() -> None:
    with pytest.raises(CdlmError, match=r"allowed: ,, \., a, ball, dog, dogs, grass"):
        Template(text="zzz").allowed(whole_words(), 6)


def test_pieces_can_spell_words_that_no_caption_had() -> None:
    tokenizer = Bpe(vocabulary=40)
    tokenizer.fit(TEXTS)
    table = Template(text="a gnu").allowed(tokenizer, 16)
    ids = torch.tensor([[only(tokenizer, row) for row in table]])
    assert tokenizer.decode(ids) == ["a gnu"]
    with pytest.raises(CdlmError, match='"zebra": not in the vocabulary'):
        Template(text="a zebra").allowed(tokenizer, 16)  # no caption has a z


# ----------------------------------------------------------------------------------------- forbid


def test_forbidden_words_are_barred_everywhere_and_nothing_else_is() -> None:
    tokenizer = whole_words()
    table = Forbid(words=["DOG", "grass"]).allowed(tokenizer, 6)
    everything = set(texts(tokenizer))
    assert all(everything - said(tokenizer, row) == {"dog", "grass"} for row in table)
    assert int((~table).sum()) == 2 * 6


def test_a_word_is_forbidden_in_every_case_that_is_a_token() -> None:
    table = Forbid(words=["dog"]).allowed(word_pieces(), 6)
    assert sorted((~table[0]).nonzero().flatten().tolist()) == [4, 9]


def test_a_word_is_forbidden_with_its_space_and_without() -> None:
    tokenizer = byte_pieces()
    barred = ~Forbid(words=["dog"]).allowed(tokenizer, 6)[0]
    assert [text.strip() for text in said(tokenizer, barred)] == ["dog"]
    assert int(barred.sum()) == 2


def test_a_word_of_several_tokens_can_not_be_forbidden() -> None:
    with pytest.raises(CdlmError, match='"running": written with several tokens'):
        Forbid(words=["a", "running"]).allowed(word_pieces(), 6)


def test_an_unknown_word_can_not_be_forbidden() -> None:
    with pytest.raises(CdlmError, match=r'"gras": not in the vocabulary of this run\n.*"grass"'):
        Forbid(words=["gras"]).allowed(whole_words(), 6)


@pytest.mark.parametrize("words", [[], [" "]])
def test_nothing_to_forbid_is_refused(words: list[str]) -> None:
    with pytest.raises(ValueError, match="expected words to forbid"):
        Forbid(words=words)


# ------------------------------------------------------------------------------------------- size


def test_the_first_places_are_seen_and_the_last_are_empty() -> None:
    tokenizer = whole_words()
    table = Size(least=2, most=4).allowed(tokenizer, 6)
    unseen = [tokenizer.pad, tokenizer.end, 2]  # the third is [UNK]
    assert not bool(table[:2, unseen].any()) and int(table[:2].sum()) == 2 * (len(tokenizer) - 3)
    assert bool(table[2:4].all())
    assert (table[4:].nonzero()[:, 1].view(2, 2) == torch.tensor([0, 1])).all()


@pytest.mark.parametrize(
    ("least", "most", "words"),
    [(0, None, "it limits nothing"), (5, 3, "no caption is so long"), (0, 0, "no caption is so")],
)
def test_sizes_without_sense_are_refused(least: int, most: int | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Size(least=least, most=most)


@pytest.mark.parametrize(("least", "most"), [(6, None), (1, 6)])
def test_sizes_beyond_the_model_are_refused(least: int, most: int | None) -> None:
    with pytest.raises(CdlmError, match=r"at most 5 tokens and their end \(model.length = 6\)"):
        Size(least=least, most=most).allowed(whole_words(), 6)


def test_where_words_are_known_only_the_unknown_one_is_barred() -> None:
    for tokenizer in (whole_words(), word_pieces()):
        table = Known().allowed(tokenizer, 4)
        assert table.shape == (4, len(tokenizer)) and bool((table == table[0]).all())
        barred = (~table[0]).nonzero().flatten().tolist()
        assert barred == tokenizer.encode(["☃"], 2)[0][0, :1].tolist()


# --------------------------------------------------------------------------------------- together


@pytest.mark.parametrize("histogram", [False, True])
def test_several_constraints_hold_together_whatever_length_is_drawn(histogram: bool) -> None:
    length = Histogram(dims=DIMS) if histogram else Generated(dims=DIMS)
    if isinstance(length, Histogram):
        length.counts[:] = 1.0
    rules: list[Constraint] = [
        Template(text="a [ ] ..."), Forbid(words=["dog", "dogs"]), Size(least=3, most=4),
    ]  # fmt: skip
    parts = captioner(constraint=rules, length=length)
    features = torch.randn(60, DIMS.image_tokens, DIMS.image_width, generator=rng())
    found = [it.caption.split() for it in captions(parts, features, rng())]
    assert {words[0] for words in found} == {"a"}
    assert not {"dog", "dogs"} & {word for words in found for word in words}
    # An unknown word may be drawn behind `least`, and is not seen.
    assert {len(words) for words in found} <= {3, 4}
    assert len({tuple(words) for words in found}) > 1


def test_a_closed_template_is_kept_whatever_length_is_drawn() -> None:
    length = Histogram(dims=DIMS)
    for drawn, text in product((0, 2, 5), ("a dog on [ ]", "[ ]")):
        length.counts.zero_()
        length.counts[drawn] = 1.0
        parts = captioner(constraint=[Template(text=text)], length=length)
        features = torch.randn(9, DIMS.image_tokens, DIMS.image_width, generator=rng())
        for it in captions(parts, features, rng()):
            assert len(it.caption.split()) == len(text.replace("[ ]", "x").split())


def test_constraints_that_leave_no_word_name_the_place_and_themselves() -> None:
    rules = [Template(text="a [ ] dog"), Size(least=1), Forbid(words=["dog"])]
    parts = captioner(constraint=rules)
    with pytest.raises(CdlmError) as caught:
        forbidden(parts, torch.device("cpu"))
    first, second = str(caught.value).splitlines()
    assert first == "constraint: no word is left for place 3 of the caption"
    assert "Template(text='a [ ] dog'), Forbid(words=['dog'])" in second
