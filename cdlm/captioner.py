"""Captions for your own images from a trained run, in Python.

import cdlm

captioner = cdlm.Captioner.load("runs/extra_token/default-s0-1a2b3c4d")
captioner("photo.jpg")
captioner(["a.jpg", "b.jpg"], steps=10, sampler="ddim", seed=1)
captioner("photo.jpg", n=5, template="a [ ] dog on [ ]", forbid=["grass"])
captioner.details("photo.jpg", candidates=10).confidence
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypedDict, Unpack, overload

import torch
from PIL.Image import Image
from torch import Generator, Tensor

from cdlm import toml
from cdlm.errors import CdlmError, DataError, Mistake, RecipeError
from cdlm.job import SAMPLING, Job, choose_device
from cdlm.layers import SET, joined, key_of
from cdlm.parts.datasets import photos
from cdlm.parts.selections import agreement
from cdlm.recipe import Recipe
from cdlm.run import caption_features
from cdlm.rundir import RunDir
from cdlm.sample import at_once, candidates, forbidden, searches, traces

Picture: TypeAlias = str | Path | Image
SamplerTable: TypeAlias = str | dict[str, Any]
WordCount: TypeAlias = tuple[int | None, int | None]  # at least, at most

TRIES = 8  # rounds of n draws until n captions differ
SEARCHES = 3  # of n, 2n, 4n captions, until n differ
CANDIDATES = 5  # that `details` draws where the recipe draws one


@dataclass(frozen=True)
class Caption:
    """A caption, and what speaks for it."""

    text: str
    confidence: float | None  # its mean sentence BLEU-4 against the other candidates; None: alone
    candidates: list[str]  # in the order in which they were drawn
    trace: list[str]  # the caption at every step, from the first noise on; [] unless asked for


class Options(TypedDict, total=False):
    """What a call may set, as `Captioner.__call__` says it."""

    steps: int | None
    sampler: SamplerTable | None
    guidance: float | None
    template: str | None
    forbid: Sequence[str]
    words: WordCount | None
    sets: Sequence[str]
    seed: int


class Captioner:
    """A trained diffusion captioner: images in, captions out."""

    def __init__(self, job: Job):
        self._job = job  # with its weights loaded

    @classmethod
    def load(cls, run: str | Path, device: str = "auto", sets: Sequence[str] = ()) -> Captioner:
        """The captioner of a run's newest checkpoint.

        sets: what is to differ from the run's recipe, as --set says it. A run on ready features
        captions photos with the encoder that those features are of: sets=['encoder={use=...}'].
        Raises RunError, CdlmError; RecipeError for what the weights rest on.
        """
        job = Job.open(RunDir.open(Path(run)), choose_device(device), sets)
        job.load_weights()
        return cls(job)

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a text is a sequence of texts too
        self, images: Picture, *, n: None = None, **options: Unpack[Options]
    ) -> str: ...

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, images: Picture, *, n: int, **options: Unpack[Options]
    ) -> list[str]: ...

    @overload
    def __call__(
        self, images: Sequence[Picture], *, n: None = None, **options: Unpack[Options]
    ) -> list[str]: ...

    @overload
    def __call__(
        self, images: Sequence[Picture], *, n: int, **options: Unpack[Options]
    ) -> list[list[str]]: ...

    def __call__(
        self,
        images: Picture | Sequence[Picture],
        *,
        n: int | None = None,
        steps: int | None = None,
        sampler: SamplerTable | None = None,
        guidance: float | None = None,
        template: str | None = None,
        forbid: Sequence[str] = (),
        words: WordCount | None = None,
        sets: Sequence[str] = (),
        seed: int = 0,
    ) -> str | list[str] | list[list[str]]:
        """The caption of one image, or the captions of several.

        images: paths or PIL images.
        n: so many different captions of each image, as a list, in the order in which they were
        drawn and without the recipe's selection; fewer where TRIES x n draws give no more. Of a
        process that searches, such as one with beams, the n best that it finds, the best first.
        steps: sampling steps.   sampler: a name ("ddpm") or a table ({"use": "ddim", "eta": 0.5});
        one that is not the recipe's brings its own default steps.
        guidance: the scale of classifier-free guidance, 1 for none; the run must have been trained
        with some images withheld.
        template: words to keep, [ ] to fill in ("a [ ] dog on [ ]"); a "..." at its end lets the
        caption go on.   forbid: words that no caption may have.   words: the least and the most
        words, (5, 12); None for no limit. These hold beside the recipe's own constraints. (With a
        tokenizer of pieces, a word here is one token.)
        sets: what else is to differ from the recipe, as --set says it ("rounding.below=0.5").
        What is left out is as in the run's recipe.
        Equal calls give equal captions; one image's caption may change with the others in the call.
        Raises DataError for an image that can't be read, RecipeError for options that there are
        not, CdlmError for guidance of a run that was not trained for it, and for words that the
        run does not know or that leave no caption.
        """
        one = isinstance(images, str | Path) or not isinstance(images, Sequence)
        many: Sequence[Picture] = [images] if one else images  # type: ignore[list-item, assignment]
        job = self._sampling(steps, sampler, guidance, _rules(template, forbid, words), sets)
        features = self._job.parts.encoder.encode([_read(image) for image in many])
        said = _said(job, features, n, seed)
        return said[0] if one else said

    @overload
    def details(  # type: ignore[overload-overlap]
        self,
        images: Picture,
        *,
        candidates: int | None = None,
        trace: bool = False,
        **options: Unpack[Options],
    ) -> Caption: ...

    @overload
    def details(
        self,
        images: Sequence[Picture],
        *,
        candidates: int | None = None,
        trace: bool = False,
        **options: Unpack[Options],
    ) -> list[Caption]: ...

    def details(
        self,
        images: Picture | Sequence[Picture],
        *,
        candidates: int | None = None,
        trace: bool = False,
        **options: Unpack[Options],
    ) -> Caption | list[Caption]:
        """The caption of one image, or of several, each with its confidence and its rivals.

        candidates: captions drawn for each image, of which the recipe's selection chooses one; as
        many as it says, or CANDIDATES where it draws one. Where it draws one and several are asked
        for, `mbr` chooses: the one that is most like the others. Of a process that searches, such
        as one with beams, they are the best ones that it finds, and the best is chosen.
        trace: also the caption as it reads at every step of sampling.
        The confidence is how much the candidates agree with the chosen one: its mean sentence
        BLEU-4 against the others, 0 to 1. It is no probability of being right.
        Other options, equal calls and errors are as for calling the captioner.
        """
        one = isinstance(images, str | Path) or not isinstance(images, Sequence)
        many: Sequence[Picture] = [images] if one else images  # type: ignore[list-item, assignment]
        job, count = _drawing(self._job_of(options), candidates)
        features = self._job.parts.encoder.encode([_read(image) for image in many])
        found = detailed(job, features, count, options.get("seed", 0), trace)
        return found[0] if one else found

    @overload
    def of_features(
        self, features: Tensor, *, n: None = None, **options: Unpack[Options]
    ) -> list[str]: ...

    @overload
    def of_features(
        self, features: Tensor, *, n: int, **options: Unpack[Options]
    ) -> list[list[str]]: ...

    def of_features(
        self,
        features: Tensor,
        *,
        n: int | None = None,
        steps: int | None = None,
        sampler: SamplerTable | None = None,
        guidance: float | None = None,
        template: str | None = None,
        forbid: Sequence[str] = (),
        words: WordCount | None = None,
        sets: Sequence[str] = (),
        seed: int = 0,
    ) -> list[str] | list[list[str]]:
        """Captions for ready features B N C of the run's encoder; options as for images."""
        shape = self._job.parts.encoder.shape()
        if features.shape[1:] != shape:
            raise ValueError(f"features: expected B x {shape}, got {tuple(features.shape)}")
        rules = _rules(template, forbid, words)
        return _said(self._sampling(steps, sampler, guidance, rules, sets), features, n, seed)

    def _job_of(self, options: Options) -> Job:
        """The run's job with these options. Raises TypeError for one that there is not."""
        if unknown := options.keys() - Options.__annotations__.keys():
            raise TypeError(f"there is no option {', '.join(sorted(unknown))} here")
        rules = _rules(options.get("template"), options.get("forbid") or (), options.get("words"))
        ways = options.get("steps"), options.get("sampler"), options.get("guidance")
        return self._sampling(*ways, rules, options.get("sets") or ())

    def _sampling(
        self,
        steps: int | None,
        sampler: SamplerTable | None,
        guidance: float | None,
        rules: list[dict[str, Any]],
        sets: Sequence[str],
    ) -> Job:
        """The run's job with these options, its constraints found to leave words."""
        options = _as_sets(steps, sampler, guidance, self._job.recipe.stepped_by)
        job = self._job.sampling([*_of_sampling(sets, self._job.recipe), *options])
        if steps is not None and searches(job.parts):
            raise CdlmError(f"steps = {steps}: of no effect, a search shows a word in each step")
        if rules:
            tables = [*(choice.table() for choice in job.recipe.many("constraint")), *rules]
            job = job.sampling([f"constraint={toml.text(tables)}"])
        forbidden(job.parts, torch.device("cpu"))
        return job


def _said(job: Job, features: Tensor, n: int | None, seed: int) -> Any:
    """A caption for each row of features, or a list of n."""
    if len(features) == 0:
        return []
    if n is not None:
        return different_captions(job, features, n, seed)
    said = caption_features(job, features, seed, job.recipe.evaluate.batch)
    return [it.caption for it in said]


def _drawing(job: Job, count: int | None) -> tuple[Job, int]:
    """The job with so many candidates for each image, and how many they are.

    None: as many as it draws, if several.
    """
    if count is not None and count < 1:
        raise ValueError(f"candidates: expected a whole number above 0, got {count}")
    before = job.parts.selection.count
    wanted = count or (before if before > 1 else CANDIDATES)
    if wanted == before or (before == 1 and searches(job.parts)):
        return job, wanted
    if wanted == 1:
        return job.sampling(["selection={ use = 'first' }"]), 1
    fewer_or_more = f"selection.count={wanted}"
    mbr = f"selection={{ use = 'mbr', count = {wanted} }}"
    return job.sampling([fewer_or_more if before > 1 else mbr]), wanted


def detailed(job: Job, table: Tensor, count: int, seed: int, trace: bool) -> list[Caption]:
    """A caption for each row of features N C, chosen from so many, with its confidence.

    And with its trace, if asked for.
    """
    job.begin_selection()
    rng, parts = Generator(job.device).manual_seed(seed), job.parts
    found = list[Caption]()
    for rows in table.split(at_once(parts, job.recipe.evaluate.batch, count)) if len(table) else ():
        given = rows.to(job.device)
        if trace:
            walks = traces(parts, given, rng, count)
            drawn = [[walk[-1] for walk in walks_of] for walks_of in walks]
        else:
            walks, drawn = [], candidates(parts, given, rng, count)
        for i, chosen in enumerate(parts.selection(drawn, given, parts.encoder)):
            found.append(_caption(drawn[i], chosen, walks[i][chosen] if trace else []))
    return found


def _caption(texts: list[str], chosen: int, trace: list[str]) -> Caption:
    confidence = agreement(texts)[chosen] if len(texts) > 1 else None
    return Caption(texts[chosen], confidence, texts, trace)


def different_captions(job: Job, table: Tensor, n: int, seed: int) -> list[list[str]]:
    """n different captions for each row of features N C, in the order in which they were drawn.

    Fewer where TRIES n draws give no more, or a search for 2^(SEARCHES - 1) n. Equal calls give
    equal captions.
    """
    if n < 1:
        raise ValueError(f"n: expected a whole number above 0, got {n}")
    rng = Generator(job.device).manual_seed(seed)
    found: list[dict[str, None]] = [{} for _ in table]  # as sets that keep their order
    sought = searches(job.parts)
    for attempt in range(SEARCHES if sought else TRIES):
        short = torch.tensor([i for i, texts in enumerate(found) if len(texts) < n])
        each = at_once(job.parts, job.recipe.evaluate.batch, n)
        for rows in short.split(each) if len(short) else ():
            many = n << attempt if sought else n  # a search gives the same ones again
            drawn = candidates(job.parts, table[rows].to(job.device), rng, many)
            for i, texts in zip(rows.tolist(), drawn, strict=True):
                found[i].update(dict.fromkeys(texts))
    return [list(texts)[:n] for texts in found]


def _rules(
    template: str | None, forbid: Sequence[str], words: WordCount | None
) -> list[dict[str, Any]]:
    """The constraints of a call, as tables of a recipe."""
    if isinstance(forbid, str):
        raise ValueError(f'forbid: expected a list of words, got "{forbid}"')
    rules: list[dict[str, Any]] = []
    if template is not None:
        rules.append({"use": "template", "text": template})
    if forbid:
        rules.append({"use": "forbid", "words": list(forbid)})
    if words is not None:
        if not isinstance(words, tuple | list) or len(words) != 2:
            raise ValueError(f"words: expected the least and the most, as in (5, 12), got {words}")
        rules.append({"use": "size", "least": words[0] or 0, "most": words[1]})
    return rules


def _as_sets(
    steps: int | None, sampler: SamplerTable | None, guidance: float | None, stepped_by: str
) -> list[str]:
    """The options as --set would give them; `stepped_by` is the kind that counts the steps."""
    sets = []
    if sampler is not None:
        table = {"use": sampler} if isinstance(sampler, str) else sampler
        sets.append(f"sampler={toml.text(table)}")
    if steps is not None:
        sets.append(f"{stepped_by}.steps={steps}")
    if guidance is not None:
        sets.append(f"guidance={toml.text({'use': 'scale', 'scale': guidance})}")
    return sets


def _of_sampling(sets: Sequence[str], recipe: Recipe) -> Sequence[str]:
    """The sets themselves. Raises RecipeError for one that changes no caption."""
    allowed = ("encoder", *(kind for kind in SAMPLING if kind not in recipe.without))
    wrong, late = "it does not say how your images are captioned", "it is said to Captioner.load"
    hint = f"allowed: {', '.join(allowed)}"
    mistakes = [
        Mistake(joined(SET, key), late if key[0] == "encoder" else wrong, hint)
        for key in map(key_of, sets)
        if key[0] not in SAMPLING
    ]
    if mistakes:
        raise RecipeError(mistakes)
    return sets


def _read(image: Picture) -> Image:
    if isinstance(image, str | Path):
        return photos.read(Path(image))
    if not isinstance(image, Image):
        raise DataError(f"expected an image: a path or a PIL image, got {type(image).__name__}")
    return image.convert("RGB")
