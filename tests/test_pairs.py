"""All pairs: every two components that can go together train and sample; the rest are refused.

Every recipe here has one component of each kind, so that a few hundred recipes hold all the pairs
(a covering array). What can't go together is written down below, apart from what components say of
themselves, and each such pair must be refused by `cdlm check`, with the reason.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import DistilBertConfig, DistilBertModel

from cdlm import plugins, recipe, toml
from cdlm.compose import Parts, compose, dataset, make, metrics
from cdlm.data import Captions
from cdlm.errors import RecipeError
from cdlm.evaluate import evaluate
from cdlm.features import features, text_features
from cdlm.recipe import Recipe
from cdlm.records import Answers, Condition, State
from cdlm.registry import IN_RECIPES
from cdlm.sample import captions, sample
from cdlm.testing.examples import rng
from cdlm.testing.whole import plan
from cdlm.train import learner, train

Item = tuple[str, str]  # kind, name
Pair = frozenset[Item]

LISTS: dict[str, list[str]] = {  # what stands in a list besides the component in question
    "conditioning": ["time_add", "extra_token"],
    "loss": ["mse", "rounding"],
    "constraint": [],
    "metric": [],
}
PLAIN = {  # of each kind, what stands beside a pair that is refused, if it can
    "dataset": "shapes", "encoder": "features", "views": "none", "tokenizer": "words",
    "process": "gaussian",
    "length": "generated", "embedding": "learned", "schedule": "cosine", "noise": "independent",
    "timesteps": "uniform", "target": "x0", "conditioning": "time_add", "denoiser": "transformer",
    "self_conditioning": "none", "guidance": "none", "variance": "fixed", "loss": "mse",
    "objective": "process_loss", "rounding": "none", "grid": "uniform", "sampler": "ddim",
    "constraint": "size", "selection": "first", "metric": "bleu",
}  # fmt: skip
OPTIONS: dict[Item, dict[str, Any]] = {  # what a component can't do without, or is small with
    ("dataset", "shapes"): {"train": 4, "held_out": 3},
    ("encoder", "open_clip"): {"model": "cdlm:shapes_clip"},
    ("encoder", "features"): {"path": "{files}/images.safetensors"},
    ("encoder", "joined"): {
        "of": [
            {"use": "features", "path": "{files}/images.safetensors"},
            {"use": "features", "path": "{files}/images.safetensors"},
        ]
    },
    ("encoder", "paired_features"): {
        "path": "{files}/images.safetensors",
        "captions": "{files}/captions.safetensors",
    },
    ("dataset", "flickr8k"): {"root": "{files}/flickr8k"},
    ("dataset", "flickr30k"): {"root": "{files}/photos"},
    ("dataset", "coco"): {"root": "{files}/photos", "splits": "karpathy"},
    ("dataset", "folder"): {"root": "{files}/photos"},
    ("dataset", "mix"): {
        "of": [
            {"use": "folder", "root": "{files}/photos"},
            {"use": "flickr8k", "root": "{files}/flickr8k"},
        ]
    },
    ("tokenizer", "bpe"): {"vocabulary": 40},
    ("tokenizer", "hugging_face"): {"source": "{files}/tokenizer.json"},
    ("embedding", "pretrained"): {"source": "{files}/bert"},
    ("denoiser", "distilbert"): {"layers": 1, "heads": 2},
    ("denoiser", "transformer"): {"layers": 1, "heads": 2},
    ("denoiser", "modern"): {"layers": 1, "heads": 2},
    ("guidance", "transformer"): {"inner": 8, "heads": 2},
    ("loss", "vlb"): {"steps": 50},
    ("constraint", "template"): {"text": "[ ] ..."},
    ("constraint", "forbid"): {"words": ["a"]},
    ("constraint", "size"): {"least": 1, "most": 10},
    ("selection", "mbr"): {"count": 2},
    ("selection", "similarity"): {"count": 2},
    ("selection", "consensus"): {"count": 2},
    ("metric", "image_similarity"): {"encoder": {"use": "open_clip", "model": "cdlm:shapes_clip"}},
}

# --------------------------------------------------------------- what goes together and what not

DEAF = {"linear"}  # hears no token but its own
TIMELESS = {"distilbert", "transformer", "linear"}  # have no adaptive norms
BLIND = {"distilbert", "linear"}  # have no cross-attention
NO_TEXTS = {"features", "joined"}  # encoders without features of captions
READY = {"features", "joined", "paired_features"}  # encoders that can't read what is sampled
APART: list[tuple[Item, str, set[str]]] = [  # a component, a kind, and whom of it it can't stand
    (("conditioning", "time_norm"), "denoiser", TIMELESS),
    (("conditioning", "feature_norm"), "denoiser", TIMELESS),
    (("conditioning", "cross_attention"), "denoiser", BLIND),
    (("conditioning", "extra_token"), "denoiser", DEAF),
    (("conditioning", "time_token"), "denoiser", DEAF),
    (("conditioning", "text_token"), "denoiser", DEAF),
    (("conditioning", "text_token"), "encoder", NO_TEXTS),
    (("selection", "similarity"), "encoder", READY),
    (("guidance", "classifier"), "target", {"eps", "v", "earlier"}),
    (("loss", "match"), "target", {"eps", "v", "earlier"}),  # it needs the classifier
]
# A component, a kind, and whom alone of it it can stand:
ALONE: list[tuple[Item, str, set[str]]] = [
    (("loss", "match"), "guidance", {"classifier"}),
    (("loss", "length"), "length", {"predicted"}),
    (("embedding", "pretrained"), "tokenizer", {"hugging_face"}),
    (("metric", "true_caption"), "dataset", {"shapes"}),
]
BRINGS: dict[Item, Item] = {  # whom a component must bring along: a list has room for it
    ("schedule", "learned"): ("loss", "vlb"),
    ("variance", "learned"): ("loss", "vlb"),
    ("guidance", "classifier"): ("loss", "match"),
    ("length", "predicted"): ("loss", "length"),
}


def items() -> list[Item]:
    entries = plugins.load().registry.entries()
    return [(e.kind, e.name) for e in entries if e.owner.split()[0] == "cdlm"]


def together(one: Item, two: Item) -> bool:
    """Whether these two can stand in one recipe, by what is written above."""
    for a, b in ((one, two), (two, one)):
        if any(a == it and b[0] == kind and b[1] in names for it, kind, names in APART):
            return False
        if any(a == it and b[0] == kind and b[1] not in names for it, kind, names in ALONE):
            return False
    return True


def pairs() -> tuple[set[Pair], set[Pair]]:
    """All pairs of different kinds: those that go together, those that do not."""
    every = {frozenset(it) for it in combinations(items(), 2) if it[0][0] != it[1][0]}
    good = {pair for pair in every if together(*pair)}
    return good, every - good


def covering() -> list[dict[str, str]]:
    """One name for each kind, so often that all pairs that go together are met; greedily."""
    names = {kind: [name for k, name in items() if k == kind] for kind in IN_RECIPES}
    left, rows = set(pairs()[0]), []
    while left:
        row = dict(sorted(min(left, key=sorted)))
        for kind in IN_RECIPES:
            if kind not in row:
                row[kind] = _best(kind, names[kind], row, left)
        met = {frozenset(pair) for pair in combinations(row.items(), 2)}
        assert met & left, f"no progress: {row}"
        left -= met
        rows.append(row)
    return rows


def _best(kind: str, names: list[str], row: dict[str, str], left: set[Pair]) -> str:
    """The name that meets the most new pairs, of those that fit to all in the row."""
    fits = [name for name in names if all(together((kind, name), it) for it in row.items())]
    return max(
        fits, key=lambda name: sum(frozenset([(kind, name), it]) in left for it in row.items())
    )


def beside(pair: Pair) -> dict[str, str]:
    """The plain recipe with these two; what can't stand beside them gives way to what can.

    So nothing but the two can be at fault.
    """
    chosen = PLAIN | dict(pair)
    for kind in set(IN_RECIPES) - dict(pair).keys():
        names = sorted(name for k, name in items() if k == kind)
        fits = [name for name in names if all(together((kind, name), it) for it in pair)]
        alone = [name for it, k, names in ALONE if it in pair and k == kind for name in names]
        if PLAIN[kind] not in fits:
            chosen[kind] = [*alone, *fits][0]
    return chosen


def written(row: dict[str, str], files: Path) -> str:
    """A recipe with these components, and what they bring along."""
    brought = [BRINGS[it] for it in row.items() if it in BRINGS]
    lines = []
    for kind in IN_RECIPES:
        if kind in LISTS:
            also = [name for k, name in brought if k == kind]
            usual = [
                it for it in LISTS[kind] if together((kind, it), ("denoiser", row["denoiser"]))
            ]
            uses = list(dict.fromkeys([*usual, *also, row[kind]]))
            lines.append(f"{kind} = [{', '.join(table(kind, use, files) for use in uses)}]")
        else:
            lines.append(f"{kind} = {table(kind, row[kind], files)}")
    return "\n".join([*lines, MODEL])


MODEL = "[model]\nwidth = 8\nhidden = 16\nlength = 24\n[train]\nbatch = 4"


def table(kind: str, use: str, files: Path) -> str:
    options = OPTIONS.get((kind, use), {})
    return toml.text({"use": use, **options}).replace("{files}", str(files))


# ------------------------------------------------------------------------------------- toy files

COLOURS = ("red", "blue", "green", "black", "white", "brown", "pink", "grey")
PLACES = ("grass", "beach", "snow", "street", "bed", "sofa", "hill", "bridge")
SENTENCES = [f"a {colour} dog on the {place}" for colour in COLOURS for place in PLACES]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos in Flickr8k's layout, features for all images and captions, a tokenizer, a BERT."""
    root = tmp_path_factory.mktemp("pairs")
    write_flickr8k(root / "flickr8k")
    write_photos(root / "photos")
    write_features(root)
    write_tokenizer(root / "tokenizer.json")
    config = DistilBertConfig(
        vocab_size=VOCABULARY, pad_token_id=0, dim=8, hidden_dim=16, n_layers=1, n_heads=2,
        max_position_embeddings=32,
    )  # fmt: skip
    DistilBertModel(config).save_pretrained(root / "bert")
    return root


def write_flickr8k(root: Path) -> None:
    from PIL import Image

    (root / "Flicker8k_Dataset").mkdir(parents=True)
    lines, texts = [], iter(SENTENCES[::7])
    for part, size in (("train", 4), ("dev", 3), ("test", 1)):
        names = [f"{part}{i}.jpg" for i in range(size)]
        (root / f"Flickr_8k.{part}Images.txt").write_text("\n".join(names) + "\n")
        for name in names:
            colour = (len(lines) * 20, 90, 60)
            Image.new("RGB", (24, 24), colour).save(root / "Flicker8k_Dataset" / name)
            lines.append(f"{name}#0\t{next(texts)} .")
    (root / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")


def write_photos(root: Path) -> None:
    """Seven photos in the layouts of flickr30k, coco and folder at once."""
    from PIL import Image

    (root / "flickr30k-images").mkdir(parents=True)
    (root / "val2014").mkdir()
    tokens, lines, entries = [], [], []
    for i, split in enumerate(["train"] * 4 + ["val"] * 2 + ["test"]):
        name, text = f"{i}.jpg", SENTENCES[5 * i]
        for below in (".", "flickr30k-images", "val2014"):
            Image.new("RGB", (24, 24), (30 * i, 60, 90)).save(root / below / name)
        tokens.append(f"{name}#0\t{text} .")
        lines.append({"image": name, "caption": text, "split": split})
        words = [{"raw": text}]
        entries.append(
            {"filepath": "val2014", "filename": name, "split": split, "sentences": words}
        )
    (root / "flickr30k.token.txt").write_text("\n".join(tokens))
    (root / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (root / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    for split in ("train", "val", "test"):
        names = [it["image"] for it in lines if it["split"] == split]
        (root / f"{split}.txt").write_text("\n".join(names))


def write_features(root: Path) -> None:
    """Random ones, for every image and caption that any dataset here has."""
    ids, texts = [], set()
    for name in [name for kind, name in items() if kind == "dataset"]:
        source = dataset(resolved(PLAIN | {"dataset": name, "metric": "bleu"}, root))
        for split in map(source.split, ("train", "val")):
            ids += split.ids
            texts |= {text for found in split.captions for text in found}
    for file, key, names in (
        ("images", "image_ids", list(dict.fromkeys(ids))),
        ("captions", "captions", sorted(texts)),
    ):
        rows = torch.randn(len(names), 12, generator=rng())
        about = {key: json.dumps(names)}
        save_file({"features": rows}, root / f"{file}.safetensors", metadata=about)


VOCABULARY = 50


def write_tokenizer(path: Path) -> None:
    words = sorted({word for text in SENTENCES for word in text.split()})
    known = ["[PAD]", "[UNK]", "[SEP]", *words][:VOCABULARY]
    known += [f"unused{i}" for i in range(VOCABULARY - len(known))]
    engine = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="[UNK]"))
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    engine.add_special_tokens(["[PAD]", "[UNK]", "[SEP]"])
    engine.save(str(path))


# ---------------------------------------------------------------------------------------- tests


def resolved(row: dict[str, str], files: Path) -> Recipe:
    return recipe.loads(written(row, files), "pairs")


@cache
def encoded(tables: str) -> tuple[Any, Any, Any, dict[str, torch.Tensor]]:
    """Encoder, training split, validation split and features, of the recipe with these tables."""
    found = recipe.loads(tables, "pairs")
    encoder, source = make(found.one("encoder")), dataset(found)
    splits = {name: source.split(name) for name in ("train", "val")}
    return encoder, splits["train"], splits["val"], {
        name: features(encoder, split, None) for name, split in splits.items()
    }  # fmt: skip


ROWS = covering()


@pytest.mark.parametrize("row", ROWS, ids=[f"{i}" for i in range(len(ROWS))])
def test_all_pairs_train_and_sample(row: dict[str, str], files: Path) -> None:
    found = resolved(row, files)
    source = PLAIN | {kind: row[kind] for kind in ("dataset", "encoder")}
    encoder, learnt, held, tensors = encoded(written(source, files))
    tokenizer = make(found.one("tokenizer"))
    texts = [text for them in learnt.captions for text in them]
    tokenizer.fit([*texts, *SENTENCES])
    if row["embedding"] == "bits":  # whose width follows from the number of words
        found = found.with_sets([f"model.width={(len(tokenizer) - 1).bit_length()}"])
    parts = compose(found, encoder, tokenizer)
    modes = parts.network.conditioning
    reads = any("texts" in getattr(mode, "needs", ()) for mode in modes)
    read = text_features(encoder, texts, None) if reads else None
    data = Captions.of(learnt, tensors["train"], tokenizer, found.model.length, 0, "cpu", read)
    steps = plan(steps=2)
    for event in train(parts, learner(parts, steps, "cpu"), data, steps, seed=0):
        assert math.isfinite(event.value), f"{event.name} is {event.value}"
    parts.modules().eval()
    if begin := getattr(parts.selection, "begin", None):
        begin(learnt.captions, tensors["train"])
    for state in sampled(parts, tensors["val"]):
        assert bool(state.x.isfinite().all()), f"x at t = {state.t} is not finite"
    said = [it.caption for it in captions(parts, tensors["val"], rng(), steps=2)]
    answers = Answers(
        image_ids=held.ids, captions=said, references=held.captions, truths=held.truths
    )
    scores = evaluate(metrics(found), answers)  # some need what is not on every machine
    assert all(bool(score.missing) != math.isfinite(score.value) for score in scores)


def sampled(parts: Parts, table: torch.Tensor) -> Iterator[State]:
    """Two steps of sampling, for these features."""
    condition = Condition(features=table, keep=torch.ones(len(table), dtype=torch.bool))
    mask = parts.length.draw(condition, rng())
    return sample(parts, condition, mask, 2, rng())


REFUSED = sorted(pairs()[1], key=sorted)


@pytest.mark.parametrize("pair", REFUSED, ids=["-".join(n for _, n in sorted(p)) for p in REFUSED])
def test_a_pair_that_does_not_fit_is_refused_with_the_reason(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        resolved(beside(pair), tmp_path)
    (mistake,) = caught.value.mistakes
    asking = {name for it in pair for _, name in (it, BRINGS.get(it, it))}
    asking |= {name for it, _, names in ALONE if it in pair for name in names}
    assert any(f"{it} {asks} " in mistake.what for it in asking for asks in ("needs", "writes"))


def test_the_plain_recipe_is_refused_nothing(tmp_path: Path) -> None:
    assert all(together(*pair) for pair in combinations(PLAIN.items(), 2))
    resolved(PLAIN, tmp_path)


def test_every_component_is_met_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = pairs()
    met = {frozenset(pair) for row in ROWS for pair in combinations(row.items(), 2)}
    assert good <= met and not bad & met
    with capsys.disabled():
        print(
            f"\n{len(items())} components: {len(good):,} pairs go together, met in {len(ROWS)} "
            f"recipes; {len(bad)} are refused"
        )
