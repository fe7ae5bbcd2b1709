"""Every built-in keeps every law of its kind; a few laws of the contract itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import DistilBertConfig, DistilBertModel

from cdlm import plugins
from cdlm.errors import CdlmError
from cdlm.parts.metrics import coco, java, similarity
from cdlm.registry import KINDS
from cdlm.testing import Law, build, conformance, laws
from cdlm.testing.examples import CAPTIONS, DIMS, IDS

needs_java = pytest.mark.skipif(bool(java.lacking()), reason="needs Java")

# -------------------------------------------------------------- what needs nothing but parameters

test_gaussian = conformance("process", "gaussian")
test_process_loss = conformance("objective", "process_loss")

test_no_views = conformance("views", "none")
test_crops = conformance("views", "crops")

test_cosine = conformance("schedule", "cosine")
test_cosine_noisier = conformance("schedule", "cosine", noise=4.0)
test_linear = conformance("schedule", "linear")
test_sqrt = conformance("schedule", "sqrt")

test_sigmoid = conformance("schedule", "sigmoid")
test_discrete = conformance("schedule", "discrete")
test_discrete_linear = conformance("schedule", "discrete", table="linear", steps=100)
test_discrete_sqrt = conformance("schedule", "discrete", table="sqrt", steps=2000, noise=2.0)
test_learned_schedule = conformance("schedule", "learned")

test_independent = conformance("noise", "independent")
test_shared = conformance("noise", "shared")

test_uniform = conformance("timesteps", "uniform")
test_uniform_of_steps = conformance("timesteps", "uniform", steps=100)
test_shared_time = conformance("timesteps", "shared")
test_stratified = conformance("timesteps", "stratified")
FAVOURS = {"weigh_fairly": "its density is meant as a weighting"}
test_logit_normal = conformance("timesteps", "logit_normal", waive=FAVOURS)
test_importance = conformance("timesteps", "importance")

test_x0 = conformance("target", "x0")
test_eps = conformance("target", "eps")
test_v = conformance("target", "v")
test_earlier = conformance("target", "earlier")
test_earlier_mean = conformance("target", "earlier", gap=0.1, coupling="posterior_mean")

test_learned = conformance("embedding", "learned")
test_learned_frozen = conformance("embedding", "learned", frozen=True)
test_learned_free = conformance("embedding", "learned", norm="free")
test_bits = conformance("embedding", "bits")

test_mse = conformance("loss", "mse")
test_l1 = conformance("loss", "l1")
NEVER_CERTAIN = {"is_nothing_for_the_truth": "the score of the right word is never certain"}
test_rounding_loss = conformance("loss", "rounding", waive=NEVER_CERTAIN)
test_rounding_of_text = conformance("loss", "rounding", of="x0", waive=NEVER_CERTAIN)
test_huber = conformance("loss", "huber", delta=0.5)
test_min_snr = conformance("loss", "min_snr")
test_anchor = conformance("loss", "anchor")
test_anchor_l1 = conformance("loss", "anchor", norm="l1")
test_anchor_rounding = conformance("loss", "anchor_rounding", waive=NEVER_CERTAIN)
test_prior = conformance("loss", "prior")
test_vlb = conformance("loss", "vlb", steps=100)
SPREAD_ALONE = {"teaches": "it teaches the variance alone"}
test_vlb_hybrid = conformance("loss", "vlb", steps=10, hybrid=True, waive=SPREAD_ALONE)

CONTRASTIVE = {"counts_each_caption_alone": "the other images of the batch are what it compares"}
HEAD_ALONE = {"teaches": "it teaches another part's head, and nothing else"}
GUESSES = {"prefers_the_truth": "an untrained head may find noise more like the image"}
test_match = conformance("loss", "match", waive=CONTRASTIVE | HEAD_ALONE | GUESSES | NEVER_CERTAIN)
test_length_loss = conformance("loss", "length", waive=HEAD_ALONE | NEVER_CERTAIN)

test_time_add = conformance("conditioning", "time_add")
test_feature_add = conformance("conditioning", "feature_add")
test_extra_token = conformance("conditioning", "extra_token")
test_extra_token_plain = conformance("conditioning", "extra_token", segment=False)

test_time_token = conformance("conditioning", "time_token")
test_time_norm = conformance("conditioning", "time_norm")
test_feature_elementwise = conformance("conditioning", "feature_elementwise")
test_feature_norm = conformance("conditioning", "feature_norm")
test_cross_attention = conformance("conditioning", "cross_attention")
test_text_token = conformance("conditioning", "text_token")

test_modern = conformance("denoiser", "modern", layers=2, dropout=0.1)
test_linear_denoiser = conformance("denoiser", "linear")
test_transformer = conformance("denoiser", "transformer", layers=2, dropout=0.1)
test_distilbert = conformance("denoiser", "distilbert", layers=2, heads=2)
test_distilbert_unnormed = conformance(
    "denoiser", "distilbert", layers=1, heads=2, input_norm=False
)

test_plain = conformance("guidance", "none")
test_scale = conformance("guidance", "scale")
test_scale_window = conformance("guidance", "scale", least_t=0.3, most_t=0.6)
test_linear_guidance = conformance("guidance", "linear")
test_transformer_guidance = conformance("guidance", "transformer", inner=8, heads=2)
NOT_BRANCHES = {"keeps_what_both_say": "the image moves it, whatever the other branch says"} | {
    "asks_for_both_if_both_count": "it moves the prediction without asking for the other one"
}
test_classifier = conformance("guidance", "classifier", waive=NOT_BRANCHES)
test_scale_of_one = conformance("guidance", "scale", scale=1.0)

test_forgetful = conformance("self_conditioning", "none")
test_last = conformance("self_conditioning", "last")

test_last_ahead = conformance("self_conditioning", "last", ahead=0.2)

test_fixed = conformance("variance", "fixed")
test_learned_variance = conformance("variance", "learned")
test_fixed_forward = conformance("variance", "fixed", spread=1.0)

test_free = conformance("rounding", "none")
test_clamp = conformance("rounding", "clamp")
test_late_clamp = conformance("rounding", "clamp", below=0.3)
test_soft = conformance("rounding", "soft")
test_late_soft = conformance("rounding", "soft", below=0.3)

test_uniform_grid = conformance("grid", "uniform")
test_quadratic = conformance("grid", "quadratic", td=0.05)
test_log_snr = conformance("grid", "log_snr")
test_uniform_grid_ahead = conformance("grid", "uniform", td=0.2)

test_ddim = conformance("sampler", "ddim")
test_ddim_half_fresh = conformance("sampler", "ddim", eta=0.5)
test_ddpm = conformance("sampler", "ddpm")
test_renoise = conformance("sampler", "renoise")
test_refeed = conformance("sampler", "refeed")
test_dpm_solver = conformance("sampler", "dpm_solver")
test_dpm_solver_first = conformance("sampler", "dpm_solver", order=1)
test_heun = conformance("sampler", "heun")

test_template = conformance("constraint", "template", text="a [ ] dog on [ ]")
test_template_open = conformance("constraint", "template", text="a dog ...")
test_forbid = conformance("constraint", "forbid", words=["grass", "dog"])
test_size = conformance("constraint", "size", least=2, most=4)
test_known = conformance("constraint", "known")

test_first = conformance("selection", "first")
test_mbr = conformance("selection", "mbr", count=4)
test_mbr_by_cider = conformance("selection", "mbr", count=4, by="cider")
test_mbr_of_one = conformance("selection", "mbr", count=1)
test_consensus = conformance("selection", "consensus", count=4, nearest=2)
test_similarity = conformance("selection", "similarity", count=4)

test_generated = conformance("length", "generated")
test_histogram = conformance("length", "histogram")
test_predicted = conformance("length", "predicted")
test_predicted_most_likely = conformance("length", "predicted", draw="most_likely")

test_words = conformance("tokenizer", "words")
test_bpe = conformance("tokenizer", "bpe", vocabulary=30)

test_shapes = conformance("dataset", "shapes", train=8, held_out=4)
test_shapes_three = conformance("dataset", "shapes", train=8, held_out=4, things=3)

test_shapes_clip = conformance("encoder", "open_clip", model="cdlm:shapes_clip")

test_bleu = conformance("metric", "bleu")
BATCHES = {"ignores_the_order": "its batches follow the order, as published"}
test_batch_bleu = conformance("metric", "batch_bleu", batch=3, waive=BATCHES)
test_rouge_l = conformance("metric", "rouge_l")
test_cider_d = conformance("metric", "cider_d")
NEAREST = {"ignores_the_order": "of references equally near the first one counts, as published"}
test_meteor = needs_java(conformance("metric", "meteor", waive=NEAREST))
SHOWN = {"use": "open_clip", "model": "cdlm:shapes_clip"}
test_image_similarity = conformance("metric", "image_similarity", encoder=SHOWN)
test_exact_match = conformance("metric", "exact_match")
ALONE = {"tells_right_from_wrong": "it looks at captions alone, as a whole"}
test_diversity = conformance("metric", "diversity", waive=ALONE)
test_novelty = conformance("metric", "novelty", waive=ALONE)
test_repetition = conformance("metric", "repetition", waive=ALONE)
test_caption_length = conformance("metric", "caption_length", waive=ALONE)
test_true_caption = conformance("metric", "true_caption")

test_local = conformance("launcher", "local")

# ---------------------------------------------------------------------- what needs files of its own


def every_law(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("law", list(laws(kind).values()), ids=list(laws(kind)))


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A word-level tokenizer with BERT's names for padding and end, 13 words."""
    words = sorted({word for caption in CAPTIONS for word in caption.split()})
    ids = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[SEP]", *words])}
    engine = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    engine.add_special_tokens(["[PAD]", "[UNK]", "[SEP]"])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    engine.save(str(path))
    return path


def write_bert(folder: Path, width: int) -> Path:
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=DIMS.vocab, pad_token_id=0, dim=width, hidden_dim=2 * width, n_layers=2,
        n_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    DistilBertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small DistilBERT of the width of the transformer."""
    return write_bert(tmp_path_factory.mktemp("bert"), DIMS.hidden)


@pytest.fixture(scope="module")
def narrow_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller one, of the width of the diffused embedding."""
    return write_bert(tmp_path_factory.mktemp("narrow_bert"), DIMS.width)


@pytest.fixture(scope="module")
def flickr8k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photos in the original layout, two for each split."""
    root = tmp_path_factory.mktemp("flickr8k")
    (root / "Flicker8k_Dataset").mkdir()
    lines = []
    for i, word in enumerate(("train", "dev", "test")):
        names = [f"{word}-{j}.jpg" for j in range(2)]
        (root / f"Flickr_8k.{word}Images.txt").write_text("\n".join(names) + "\n")
        for j, name in enumerate(names):
            colour = (90 * i, 120 * j, 60)
            Image.new("RGB", (16 + i, 12), colour).save(root / "Flicker8k_Dataset" / name)
            lines += [f"{name}#{k}\ta {word} caption {k} ." for k in range(2)]
    (root / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def feature_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("features") / "features.safetensors"
    rows = torch.randn(len(IDS), 3, 5, generator=torch.Generator().manual_seed(0))
    save_file({"features": rows}, path, metadata={"image_ids": json.dumps(IDS)})
    return path


@pytest.fixture(scope="module")
def caption_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("captions") / "captions.safetensors"
    rows = torch.randn(len(CAPTIONS), 5, generator=torch.Generator().manual_seed(1))
    save_file({"features": rows}, path, metadata={"captions": json.dumps(CAPTIONS)})
    return path


@every_law("tokenizer")
def test_hugging_face(law: Law, tokenizer_json: Path) -> None:
    law(build("tokenizer", "hugging_face", source=str(tokenizer_json)))


@every_law("denoiser")
def test_distilbert_pretrained(law: Law, bert: Path) -> None:
    law(build("denoiser", "distilbert", pretrained=str(bert), layers=2, heads=2))


@pytest.mark.parametrize("frozen", [True, False])
@every_law("embedding")
def test_pretrained(law: Law, frozen: bool, narrow_bert: Path) -> None:
    law(build("embedding", "pretrained", source=str(narrow_bert), frozen=frozen))


@every_law("dataset")
def test_flickr8k(law: Law, flickr8k: Path) -> None:
    law(build("dataset", "flickr8k", root=str(flickr8k)))


TWO_IN_TRAINING = "photos of val are trained on: that is what it replays"


@pytest.mark.parametrize(
    "law",
    [
        pytest.param(
            law,
            id=name,
            marks=pytest.mark.xfail(reason=TWO_IN_TRAINING, strict=True)
            if name == "keeps_splits_apart"
            else (),
        )
        for name, law in laws("dataset").items()
    ],
)
def test_flickr8k_by_caption(law: Law, flickr8k: Path) -> None:
    law(build("dataset", "flickr8k", root=str(flickr8k), by="caption"))


@pytest.fixture(scope="module")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photos in the layouts of flickr30k, coco and folder at once."""
    root = tmp_path_factory.mktemp("photos")
    lines, entries, tokens = [], [], []
    for i, split in enumerate(("train", "train", "val", "val", "test", "test")):
        name = f"{i}.jpg"
        for below in ("flickr30k-images", "val2014", "."):
            (root / below).mkdir(exist_ok=True)
            Image.new("RGB", (16, 12), (40 * i, 90, 60)).save(root / below / name)
        texts = [f"a {split} caption {i} {k} ." for k in range(2)]
        lines.append(json.dumps({"image": name, "captions": texts, "split": split}))
        tokens += [f"{name}#{k}\t{text}" for k, text in enumerate(texts)]
        sentences = [{"raw": text} for text in texts]
        entries.append(
            {"filepath": "val2014", "filename": name, "split": split, "sentences": sentences}
        )
    (root / "captions.jsonl").write_text("\n".join(lines))
    (root / "flickr30k.token.txt").write_text("\n".join(tokens))
    (root / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    for split in ("train", "val", "test"):
        names = [it["filename"] for it in entries if it["split"] == split]
        (root / f"{split}.txt").write_text("\n".join(map(str, names)))
    return root


@every_law("dataset")
def test_flickr30k(law: Law, photo_folder: Path) -> None:
    law(build("dataset", "flickr30k", root=str(photo_folder)))


@every_law("dataset")
def test_coco(law: Law, photo_folder: Path) -> None:
    law(build("dataset", "coco", root=str(photo_folder), splits="karpathy"))


@every_law("dataset")
def test_folder(law: Law, photo_folder: Path) -> None:
    law(build("dataset", "folder", root=str(photo_folder)))


@every_law("dataset")
def test_mix(law: Law, photo_folder: Path, flickr8k: Path) -> None:
    parts = [
        {"use": "folder", "root": str(photo_folder), "file": "captions.jsonl"},
        {"use": "flickr8k", "root": str(flickr8k)},
    ]
    law(build("dataset", "mix", of=parts, weights=[1.0, 2.0]))


@every_law("encoder")
def test_features(law: Law, feature_file: Path) -> None:
    law(build("encoder", "features", path=str(feature_file)))


@every_law("metric")
def test_spice(law: Law, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its program and 384 MB of files stood in for: each caption's share of words."""

    def scores(rows: Sequence[tuple[str, list[str]]]) -> list[float]:
        return [float(caption in references) for caption, references in rows]

    monkeypatch.setattr(java, "lacking", lambda *files: "")
    monkeypatch.setattr(coco, "_spice_scores", scores)
    law(build("metric", "spice"))


@every_law("metric")
def test_clip_score(law: Law, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its encoder stood in for, whose weights are not here."""
    encoder = build("encoder", "open_clip", model="cdlm:shapes_clip")
    monkeypatch.setattr(similarity, "_openai", lambda: encoder)
    monkeypatch.setattr(similarity, "PROMPT", "")
    law(build("metric", "clip_score"))


@every_law("encoder")
def test_joined(law: Law, feature_file: Path) -> None:
    ready = {"use": "features", "path": str(feature_file)}
    law(build("encoder", "joined", of=[ready, ready]))


@every_law("encoder")
def test_paired_features(law: Law, feature_file: Path, caption_file: Path) -> None:
    paths = {"path": str(feature_file), "captions": str(caption_file)}
    law(build("encoder", "paired_features", **paths))


# ----------------------------------------------------------------------------- the contract itself


def test_every_built_in_is_checked_above() -> None:
    here = Path(__file__).read_text()
    for entry in plugins.load().registry.entries():
        if entry.built_in:
            assert f'("{entry.kind}", "{entry.name}"' in here, f"{entry.kind} {entry.name}"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_laws_and_each_says_what_it_is(kind: str) -> None:
    found = laws(kind)
    assert len(found) >= 3
    for name, law in found.items():
        doc = getattr(law, "func", law).__doc__
        assert doc and doc.split("\n")[0].endswith((".", ":", ";", ",")), name


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(CdlmError, match='did you mean "schedule"'):
        conformance("schedul", "cosine")


def test_an_unknown_law_can_not_be_waived() -> None:
    with pytest.raises(CdlmError, match='did you mean "loses_signal"'):
        conformance("schedule", "cosine", waive={"loses_signals": "typing error"})


def test_a_waived_law_must_fail() -> None:
    test = conformance("schedule", "cosine", waive={"loses_signal": "by design"})
    marked = {case.id: case.marks for case in test.pytestmark[0].args[1]}  # type: ignore[attr-defined]
    (mark,) = marked.pop("loses_signal")
    assert mark.name == "xfail" and mark.kwargs["strict"] and mark.kwargs["reason"] == "by design"
    assert not any(marked.values())


def cases(test: Any) -> dict[str, Any]:
    """The laws of a test that `conformance` made, by name."""
    return {case.id: case.values[0] for case in test.pytestmark[0].args[1]}


def test_an_unknown_component_fails_the_test_once_and_not_the_collection() -> None:
    test = conformance("schedule", "cosin")
    found = cases(test)
    with pytest.raises(CdlmError, match='did you mean "cosine"'):
        test(found.pop("can_be_built"))
    for law in found.values():
        with pytest.raises(pytest.skip.Exception, match="can_be_built says why"):
            test(law)


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    build("denoiser", "transformer")
    assert torch.equal(torch.get_rng_state(), before)
