"""The letters, and the frozen records that travel between parts.

One letter, one meaning, in every docstring and every shape suffix of cdlm:

    B  batch                              V  vocabulary
    L  caption length                     N  image tokens (1 for a pooled CLIP vector)
    E  width of the diffused embedding    C  width of an image feature
    H  width of the transformer           M  length the transformer sees (L + extra tokens)

    t in [0, 1]: 0 is clean text, 1 is noise; s < t is the time stepped to.
    x0, eps, x_t, x0_hat: the clean embeddings, the noise, the mixture, and the estimate of x0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy import ndarray
    from torch import Tensor

    from cdlm.protocols import Embedding, Encoder, Guidance, Length, Schedule


T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Dims:
    """The widths that belong to the whole model; the one thing that is injected into parts."""

    length: int  # L
    width: int  # E
    hidden: int  # H
    vocab: int  # V
    image_tokens: int  # N
    image_width: int  # C
    seen: int  # M
    written: frozenset[str] = frozenset({"tokens", "time", "context"})  # by the conditioning


@dataclass(frozen=True)
class Level:
    """How much signal and how much noise: x_t = alpha x0 + sigma eps. Shapes: B (or scalar)."""

    alpha: Tensor
    sigma: Tensor

    def over(self, x: Tensor) -> Level:
        """The same level, shaped to multiply x (B ...)."""
        shape = (-1, *[1] * (x.ndim - 1))
        return Level(self.alpha.view(shape), self.sigma.view(shape))


@dataclass(frozen=True)
class Once:
    """What is made of a tensor once for all steps of sampling; in training it is made every time.

    The image does not change from step to step, nor do its tokens or their keys and values.
    """

    made: dict[object, tuple[Tensor, Any]] | None = None  # None: nothing is kept

    def __call__(self, owner: object, of: Tensor, make: Callable[[], T]) -> T:
        """What `make` says of this very tensor, for this owner; another tensor is asked anew."""
        if self.made is None:
            return make()
        if owner not in self.made or self.made[owner][0] is not of:
            self.made[owner] = (of, make())
        return self.made[owner][1]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Captions and the features of their images."""

    ids: Tensor  # B L, integer
    mask: Tensor  # B L, bool: True up to and including the end-of-caption token
    features: Tensor  # B N C
    text: Tensor | None = None  # B 1 C: the encoder's feature of the caption, where a part needs it
    pictured: Tensor | None = None  # B, bool: whether there is a photo; None: of all
    references: list[list[str]] = field(default_factory=list)  # B: all captions of its image


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What a caption is conditioned on; where `keep` is False the image is withheld."""

    features: Tensor  # B N C
    keep: Tensor  # B, bool
    text: Tensor | None = None  # B 1 C: the caption's own feature, in training alone
    once: Once = Once()


@dataclass(frozen=True, kw_only=True)
class Noised:
    """A batch of embedded captions, corrupted to time t."""

    x0: Tensor  # B L E
    eps: Tensor  # B L E
    x_t: Tensor  # B L E
    t: Tensor  # B


@dataclass(frozen=True, kw_only=True)
class Stream:
    """What conditioning writes and the denoiser reads."""

    h: Tensor  # B M H: the sequence; caption positions and extra tokens
    mask: Tensor  # B M, bool: the positions that may be attended to
    t: Tensor  # B
    text: slice  # where the L caption positions stand within M
    time: Tensor | None = None  # B H: for denoisers with adaptive normalisation
    context: Tensor | None = None  # B N H: for denoisers with cross-attention
    once: Once = Once()


@dataclass(frozen=True, kw_only=True)
class Guess:
    """All that a loss may look at."""

    batch: Batch
    condition: Condition
    noised: Noised
    mask: Tensor  # B L, bool: the positions that are scored
    wanted: Tensor  # B L E: what the network should have said
    got: Tensor  # B L E: what it said
    x0_hat: Tensor  # B L E: the x0 that this implies
    spread: Tensor  # as in Estimate
    think: Callable[[Tensor, Tensor], Tensor]  # (x_t B L E, t B) -> the x0 B L E that it implies
    embedding: Embedding
    schedule: Schedule
    guidance: Guidance
    length: Length


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a sampler is told of x0."""

    x0_hat: Tensor  # B L E
    spread: Tensor | float = 0.0  # B L E or a scalar, 0 to 1: how far the log-variance of a step
    # back goes from that of the posterior q(x_s | x_t, x0) to that of the forward step


@dataclass(frozen=True, kw_only=True)
class State:
    """Where sampling stands; `carry` is a sampler's or process's own memory between steps."""

    x: Tensor  # at time t: B L E, or of a process on words ids B L
    t: float
    x0_hat: Tensor | None = None  # as x: the estimate that led here; None before the first step
    carry: Any = None


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Captions that the network has said by chance, each word by its p; what a reward judges."""

    ids: Tensor  # B L, padding outside the mask
    mask: Tensor  # B L, bool
    order: Tensor  # B L, integer: the place that was said first, second, ...; then those unsaid


@dataclass(frozen=True)
class Said:
    """What was sampled for one image."""

    candidates: list[str]  # in the order in which they were drawn
    chosen: int  # the position of the selected one

    @property
    def caption(self) -> str:
        return self.candidates[self.chosen]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Captions of a split beside what is known of their images; all that a metric may look at."""

    image_ids: list[str]
    captions: list[str]
    references: list[list[str]]
    truths: list[Any]  # what the dataset knows of each image beyond its captions, or None
    # What takes time to get, for metrics that ask for it; None where there is nothing to be had.
    features: Callable[[Encoder], Tensor] | None = None  # -> B N C: the images, by any encoder
    training: Callable[[], Sequence[str]] | None = None  # -> the captions that training saw


@dataclass(frozen=True)
class Tally:
    """What each image adds to the scores of a split; the scores are a function of the sum."""

    rows: ndarray  # images K, float64
    score: Callable[[ndarray], dict[str, ndarray]]  # sums ... K -> {name: ...}

    def total(self) -> dict[str, float]:
        """The scores of all images."""
        return {name: float(value) for name, value in self.score(self.rows.sum(0)).items()}


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened in a run: a logged value, a checkpoint due, an end."""

    step: int
    name: str  # "loss", "loss/mse", "learning_rate", "checkpoint", "step", "score/BLEU-4", ...
    value: float
