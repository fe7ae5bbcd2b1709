"""Captions against their images, through an encoder of both."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

from cdlm.errors import CdlmError, Unavailable
from cdlm.parts.encoders.open_clip import OpenClip
from cdlm.parts.metrics.common import mean, require_captions, require_references
from cdlm.records import Answers, Tally
from cdlm.values import AnyEncoder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from cdlm.protocols import Encoder

PROMPT = "A photo depicts "  # before every caption and reference
WEIGHT = 2.5  # brings CLIPScore to about 0 to 1


@dataclass(frozen=True, kw_only=True)
class ClipScore:
    """CLIPScore and RefCLIPScore: how near a caption is to its image, and to its references too.

    CLIPScore = 2.5 max(cos(image, caption), 0); RefCLIPScore = the harmonic mean of that and of
    max(max_r cos(reference_r, caption), 0). Captions and references begin with "A photo depicts ".
    The encoder is OpenAI's ViT-B/32, and no other: with another one the numbers are not these, and
    `image_similarity` is the metric.
    Units: clip_score, ref_clip_score, about 0 to 1; higher is better. A captioner that sees or
    selects by this encoder is judged by what it was tuned on.
    Source: Hessel et al. 2021, eq. 1 and 2. Raises Unavailable without the weights or the images,
    DataError without references.
    """

    needs: ClassVar[set[str]] = {"images"}

    def __call__(self, answers: Answers) -> dict[str, float]:
        return self.tally(answers).total()

    def tally(self, answers: Answers) -> Tally:
        """Each caption's scores."""
        require_references(answers)
        try:
            return _clip_scores(_openai(), answers)
        except CdlmError as error:  # no weights, or no photos
            why = str(error).partition("\n")[0]
            raise Unavailable(["clip_score", "ref_clip_score"], why) from error

    def marks(self, answers: Answers) -> None:
        """It gives no verdict on a single caption."""


@dataclass(frozen=True, kw_only=True)
class ImageSimilarity:
    """Cosine of the image's and the caption's features, by any encoder of both.

    mean_i cos(encoder.encode(image_i), encoder.texts(caption_i)); no prompt, no factor: it is not
    CLIPScore, and is comparable under one encoder only.
    Units: image_similarity, -1 to 1; higher is better. A captioner that sees or selects by this
    encoder is judged by what it was tuned on.
    Raises Unavailable without images, CdlmError where the encoder can't read captions.
    """

    needs: ClassVar[set[str]] = {"images"}

    encoder: AnyEncoder  # of images and of new captions, such as open_clip

    def __call__(self, answers: Answers) -> dict[str, float]:
        return self.tally(answers).total()

    def tally(self, answers: Answers) -> Tally:
        """Each caption's cosine."""
        require_captions(answers)
        if answers.features is None:
            raise Unavailable(["image_similarity"], NO_IMAGES)
        images = _unit(answers.features(self.encoder)[:, 0])
        near = (images * _unit(self.encoder.texts(answers.captions)[:, 0])).sum(-1)
        return mean({"image_similarity": near.numpy()})

    def marks(self, answers: Answers) -> None:
        """It gives no verdict on a single caption."""


NO_IMAGES = "there are no images here"


def _openai() -> Encoder:
    """The encoder that CLIPScore is defined for. Raises CdlmError where it can't be had."""
    if why := _why_not():
        raise CdlmError(why)
    return OpenClip(model="ViT-B-32", pretrained="openai")


@cache  # without a network, the hub's client tries for a minute
def _why_not() -> str:
    try:
        OpenClip(model="ViT-B-32", pretrained="openai").identity()
    except CdlmError as error:
        return str(error)
    return ""


def _clip_scores(encoder: Encoder, answers: Answers) -> Tally:
    """The scores of each caption, by this encoder. Raises CdlmError."""
    if answers.features is None:
        raise CdlmError(NO_IMAGES)
    images = _unit(answers.features(encoder)[:, 0])
    read = _reader(encoder)
    captions = read(answers.captions)
    near = WEIGHT * (images * captions).sum(-1).clamp(min=0)
    truth = read([text for texts in answers.references for text in texts])
    groups = truth.split([len(texts) for texts in answers.references])
    best = [(group @ row).max() for group, row in zip(groups, captions, strict=True)]
    like = near.new_tensor(best).clamp(min=0)
    both = 2 * near * like / (near + like).clamp(min=1e-12)
    return mean({"clip_score": near.numpy(), "ref_clip_score": both.numpy()})


def _reader(encoder: Encoder) -> Callable[[Sequence[str]], Tensor]:
    """texts -> their directions, prompt in front; B C."""
    return lambda texts: _unit(encoder.texts([PROMPT + text for text in texts])[:, 0])


def _unit(rows: Tensor) -> Tensor:
    """Rows of length 1, float64."""
    return rows.double() / rows.double().norm(dim=-1, keepdim=True).clamp(min=1e-12)
