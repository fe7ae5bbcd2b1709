"""Captions into ids and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from cdlm.errors import CdlmError
from cdlm.parts.tokenizers import Bpe, HuggingFace, Words


def words(*captions: str, min_count: int = 1) -> Words:
    part = Words(min_count=min_count)
    part.fit(captions)
    return part


def test_words_are_lower_case_and_marks_stand_alone() -> None:
    part = words("A dog, running!")
    ids, _ = part.encode(["a DOG , running !"], 8)
    assert torch.equal(ids, part.encode(["A dog, running!"], 8)[0])
    assert part.decode(ids) == ["a dog , running !"]


def test_marks_are_spaces_where_they_are_not_wanted() -> None:
    part = Words(punctuation=False)
    part.fit(["A dog, running!", "the man's well-known hat."])
    ids, _ = part.encode(["a dog , running .", "the man's well-known hat"], 8)
    assert part.decode(ids) == ["a dog running", "the man s well known hat"]


def test_ids_follow_falling_counts_then_the_alphabet() -> None:
    """So that equal captions in another order give equal ids."""
    one, two = words("b b c a", "c b"), words("c b", "b b c a")
    assert one.encode(["b c a"], 5)[0].tolist() == [[3, 4, 5, 1, 0]]
    assert torch.equal(one.encode(["b c a"], 5)[0], two.encode(["b c a"], 5)[0])


def test_rare_and_unknown_words_are_left_out_of_a_caption_that_comes_back() -> None:
    part = words("a dog", "a cat", "a dog", min_count=2)
    assert len(part) == 3 + 2
    assert part.decode(part.encode(["a cat dog zebra"], 8)[0]) == ["a dog"]


def test_a_caption_that_is_empty_is_its_end() -> None:
    ids, mask = words("a dog").encode([""], 4)
    assert ids.tolist() == [[1, 0, 0, 0]] and mask.tolist() == [[True, False, False, False]]


def test_equal_letters_of_other_encodings_are_one_word() -> None:
    """é as one character and as e with an accent; NFKC."""
    part = words("caf\u00e9")
    assert torch.equal(part.encode(["cafe\u0301"], 3)[0], part.encode(["caf\u00e9"], 3)[0])


# ---------------------------------------------------------------------------------------- bpe


def pieces_of(*captions: str, vocabulary: int = 1000) -> Bpe:
    part = Bpe(vocabulary=vocabulary)
    part.fit(captions)
    return part


def spelt(part: Bpe, text: str) -> list[str | None]:
    ids, _ = part.encode([text], 32)
    row = ids[0].tolist()
    return [part.engine.id_to_token(i) for i in row[: row.index(part.end)]]


def test_the_neighbours_that_meet_most_often_become_one() -> None:
    """Seven letters and the mark; "l o" comes six times, then "lo w" five times."""
    captions = ("low low lower", "slow slow lot")
    letters = 3 + len("lowerst") + 1
    assert spelt(pieces_of(*captions, vocabulary=letters), "low") == ["▁", "l", "o", "w"]
    assert spelt(pieces_of(*captions, vocabulary=letters + 1), "low") == ["▁", "lo", "w"]
    assert spelt(pieces_of(*captions, vocabulary=letters + 2), "slow") == ["▁", "s", "low"]


def test_the_vocabulary_is_as_large_as_asked_or_as_there_is_to_join() -> None:
    assert len(pieces_of("a brown dog runs", "two dogs run", vocabulary=20)) == 20
    assert len(pieces_of("a dog")) < 20


def test_frequent_words_are_one_token_and_new_words_are_spelt() -> None:
    part = pieces_of("a dog runs", "two dogs run on grass", "A DOG!")
    assert spelt(part, "A Dog") == ["▁a", "▁dog"]
    ids, _ = part.encode(["a sand dog, runs in!"], 32)
    assert part.decode(ids) == ["a sand dog runs n !"]  # no caption had a comma or an i


def test_pieces_do_not_cross_words() -> None:
    part = pieces_of(*["of the"] * 9)
    assert spelt(part, "of the") == ["▁of", "▁the"]


def test_equal_captions_in_another_order_give_equal_pieces() -> None:
    captions = ["ab cd ab", "cd ef", "gh ef", "a b c d"]
    one, two = pieces_of(*captions, vocabulary=16), pieces_of(*captions[::-1], vocabulary=16)
    assert one.engine.to_str() == two.engine.to_str()


def test_a_vocabulary_too_small_for_the_letters_says_so() -> None:
    with pytest.raises(CdlmError, match=r"vocabulary = 5: the letters .* alone are 8 tokens"):
        pieces_of("a dog", vocabulary=5)


# ------------------------------------------------------------------------------- hugging_face


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    """A folder with a WordPiece tokenizer."""
    vocabulary = ["[PAD]", "[UNK]", "[SEP]", "a", "dog", "run", "##s", "##ning"]
    engine = Tokenizer(
        models.WordPiece({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece()
    engine.add_special_tokens(["[PAD]", "[UNK]", "[SEP]"])
    engine.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def adopted(source: object, **names: str) -> HuggingFace:
    part = HuggingFace(source=str(source), **names)
    part.fit([])
    return part


def test_a_folder_and_its_file_are_one_tokenizer(pieces: Path) -> None:
    for source in (pieces, pieces / "tokenizer.json"):
        part = adopted(source)
        assert (part.pad, part.end, len(part)) == (0, 2, 8)
        ids, _ = part.encode(["a dog runs"], 6)
        assert ids.tolist() == [[3, 4, 5, 6, 2, 0]]
        assert part.decode(ids) == ["a dog runs"]


def test_a_caption_that_spells_the_end_token_goes_on_behind_it(pieces: Path) -> None:
    part = adopted(pieces)
    ids, mask = part.encode(["a [SEP] dog [PAD] runs"], 6)
    assert ids.tolist() == [[3, 4, 5, 6, 2, 0]] and mask.sum().item() == 5


def test_padding_and_truncation_of_its_own_are_put_out(pieces: Path) -> None:
    engine = Tokenizer.from_file(str(pieces / "tokenizer.json"))
    engine.enable_padding(length=9)
    engine.enable_truncation(2)
    engine.save(str(pieces / "tokenizer.json"))
    assert adopted(pieces).encode(["a dog runs"], 6)[0].tolist() == [[3, 4, 5, 6, 2, 0]]


def test_tokens_that_are_missing_are_named(pieces: Path) -> None:
    with pytest.raises(CdlmError, match=r"no token </s>"):
        adopted(pieces, end="</s>")


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(CdlmError, match=r"is no tokenizer.json"):
        adopted(tmp_path)


def test_a_path_that_is_not_there_is_not_looked_up_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(CdlmError, match=r"no file or folder"):
        adopted(tmp_path / "nothing.json")
