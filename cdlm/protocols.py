"""Every kind of component, as the one or two methods that it must have: the framework's manual.

A recipe picks one component for each kind. Components are written against this file and
`cdlm.records` alone. The kinds meet in a process, which never asks which component it was given;
`train.py` and `sample.py` never ask which process. See `cdlm list` for what is there,
`cdlm show KIND NAME` for one of them, and `cdlm.testing` for the checks that each must pass.

A component is a keyword-only frozen dataclass, or an nn.Module with a keyword-only `__init__`. Its
signature is the schema of its TOML table. A parameter named `dims` is filled in by `compose`, for
every kind but dataset, encoder, views, tokenizer and metric, which are built before the widths are
known. Any part that is an nn.Module is trained, moved and saved with the network.

What a component `needs`, another one of the recipe must `provide`, whatever its kind: a class-level
set of texts each, such as needs = {"scenes"}. `cdlm check` refuses a recipe where nothing does.
A process also says which kinds it goes `without`; a recipe that chooses it has none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from random import Random

    from PIL.Image import Image
    from torch import Generator, Tensor

    from cdlm.compose import Parts
    from cdlm.records import (
        Answers,
        Batch,
        Condition,
        Estimate,
        Guess,
        Level,
        Noised,
        State,
        Stream,
        Tally,
    )

Denoise = Callable[["Tensor", float], "Estimate"]
"""(x B L E, t) -> the estimate of x0: network, guidance, decoding and rounding in one."""

Think = Callable[["Tensor", "Tensor"], "Tensor"]
"""(x_t B L E, t B) -> the x0 B L E that the network implies, in training."""


# ---------------------------------------------------------------------------------------- data


class Split(Protocol):
    """Some images of a dataset, in a fixed order, each with its captions."""

    ids: list[str]  # unique
    captions: list[list[str]]  # of each image, at least one
    truths: list[Any]  # of each image: what is known beyond captions, or None
    weights: list[float]  # of each image: how often training sees its captions; 1 unless mixed
    pictured: list[bool]  # of each image: whether there is a photo; if not, training withholds it

    @property
    def fingerprint(self) -> str:
        """Changes when any image of the split may have changed."""

    def images(self, indices: Sequence[int]) -> list[Image]:
        """The images at these positions, RGB. Raises DataError naming an unreadable file."""


class Dataset(Protocol):
    """kind `dataset`: images with captions, in named splits; the same at every call."""

    provides: ClassVar[set[str]]  # of {"images", "scenes", ...}; what encoders and metrics need

    def split(self, name: str) -> Split:
        """The split called `train`, `val` or `test`. Raises DataError where it is not to be had."""


class Encoder(Protocol):
    """kind `encoder`: images into features, frozen."""

    needs: ClassVar[set[str]]  # of what the dataset provides
    provides: ClassVar[set[str]]  # "texts": features of the dataset's captions, "new_texts": of any

    def identity(self) -> dict[str, Any]:
        """All that changes its output (model, weights' sha256, preprocessing): the cache's key."""

    def shape(self) -> tuple[int, int]:
        """(N, C) of one image's feature."""

    def to(self, device: str) -> None:
        """Work on this device from now on."""

    def lookup(self, ids: Sequence[str]) -> Tensor | None:
        """Ready features len(ids) N C for these image ids, or None where they must be computed."""

    def encode(self, images: Sequence[Image]) -> Tensor:
        """images -> B N C, float32 on the CPU."""

    def texts(self, captions: Sequence[str]) -> Tensor:
        """captions -> B 1 C in the space of pooled image features, float32 on the CPU.

        Raises CdlmError where it has no text encoder.
        """


class Views(Protocol):
    """kind `views`: how else training looks at a photo; each time it sees one view, or the photo.

    Their features are computed once and kept. Captions are made of the photo itself.
    """

    count: int  # of each photo, besides itself

    def identity(self) -> dict[str, Any]:
        """All that changes the views: with the encoder's, the cache's key."""

    def __call__(self, image: Image, rng: Random) -> Sequence[Image]:
        """image RGB -> `count` others. The generator's numbers are the photo's own, every time."""


class Tokenizer(Protocol):
    """kind `tokenizer`: captions into ids and back."""

    pad: int  # the id of padding
    end: int  # the id that ends a caption

    def fit(self, captions: Sequence[str]) -> None:
        """Learn the vocabulary from the training captions; nothing to do for a ready one."""

    def __len__(self) -> int:
        """V."""

    def encode(self, captions: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """captions -> ids B L, mask B L (True up to and including the end token)."""

    def decode(self, ids: Tensor) -> list[str]:
        """ids B L -> captions; what follows the first end token is dropped."""

    def save(self, path: Path) -> None:
        """Write all that `load` needs into one file."""

    def load(self, path: Path) -> None:
        """Become the tokenizer that was saved."""


class Length(Protocol):
    """kind `length`: which of the L positions a caption occupies, in training and in sampling."""

    def mask(self, batch: Batch) -> Tensor:
        """-> B L bool: the positions that are attended to and scored in training."""

    def draw(self, condition: Condition, rng: Generator) -> Tensor:
        """-> B L bool: the positions that a sampled caption occupies."""


class Metric(Protocol):
    """kind `metric`: captions against what is known of their images."""

    needs: ClassVar[set[str]]  # of what the dataset provides, beyond captions

    def __call__(self, answers: Answers) -> dict[str, float]:
        """-> {name: value}; higher is better unless the docstring says otherwise.

        Raises Unavailable where a program or a file that it needs is not on this machine.
        """

    def tally(self, answers: Answers) -> Tally | None:
        """What each image adds to these scores; None where they are no function of a sum."""

    def marks(self, answers: Answers) -> list[bool] | None:
        """Each caption's own verdict, or None where the metric has none."""


# ------------------------------------------------------------------------------------- process


class Process(Protocol):
    """kind `process`: how captions are taken apart in training and put together in sampling.

    Where all other kinds meet. It may be a Module. One that provides "ensemble" asks all voices of
    the parts, in sampling, and says what they say together. One that provides "draws" has two more
    methods, for objectives that judge what the network says by chance:

        draw(parts, condition, rng) -> Drawn: a caption for each row, every word drawn by its p;
        log_p(parts, drawn, condition, rng) -> B: its log p in nats, or an estimate that has the
        right mean, with a gradient.

    One that provides "search" can look for captions instead of drawing them:

        searches: bool: whether it does, as it is set, so that all samples of an image are alike;
        search(parts, condition, mask, count) -> Iterator[State]: as `sample`, with the `count` best
        captions of each row in turn, B count L, the best one first.
    """

    without: ClassVar[set[str]]  # kinds that it has no use for; the parts have none of them
    afterwards: ClassVar[set[str]]  # its parameters that no weight depends on

    def loss(self, parts: Parts, batch: Batch, rng: Generator) -> dict[str, Tensor]:
        """Every term of the training loss by name, weighted and averaged over the batch."""

    def sample(
        self, parts: Parts, condition: Condition, mask: Tensor, steps: int | None, rng: Generator
    ) -> Iterator[State]:
        """Every state from t = 1 to t = 0. Shapes: mask B L, the positions that captions occupy.

        steps: how many, None for as many as the recipe says; of no effect where a word is a step.
        """

    def words(self, parts: Parts, state: State, mask: Tensor) -> Tensor:
        """What any of these states would be read as. -> ids B L, padding outside the mask."""


class Embedding(Protocol):
    """kind `embedding`: word ids into the space that is diffused, and back. Module."""

    def __call__(self, ids: Tensor) -> Tensor:
        """ids B L -> B L E."""

    def logits(self, x: Tensor) -> Tensor:
        """x B L E -> B L V: a score for every word."""

    def table(self) -> Tensor:
        """V E: the vector of every word, as `__call__` gives it."""


class Schedule(Protocol):
    """kind `schedule`: signal turns into noise; the ratio of the two falls strictly with t."""

    def __call__(self, t: Tensor) -> Level:
        """t B -> Level(alpha B, sigma B), alpha^2 + sigma^2 = 1."""


class Noise(Protocol):
    """kind `noise`: the noise that a batch is corrupted with."""

    def __call__(self, x0: Tensor, rng: Generator) -> Tensor:
        """x0 B L E -> eps of its shape; every number by itself is N(0, 1)."""


class Timesteps(Protocol):
    """kind `timesteps`: which noise levels training visits, and how much each counts."""

    def __call__(self, batch: int, rng: Generator) -> tuple[Tensor, Tensor]:
        """-> t B in (0, 1], weight B."""

    def observe(self, t: Tensor, loss: Tensor) -> None:
        """Told of every loss B at its t B; most do nothing with it."""


class Target(Protocol):
    """kind `target`: what the network is asked to say."""

    def encode(self, noised: Noised, schedule: Schedule) -> Tensor:
        """-> B L E: the right answer."""

    def decode(self, y: Tensor, x_t: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        """The x0 B L E that the answer y B L E implies; decode(encode(z)) = x0."""


class Loss(Protocol):
    """kind `loss`: one term. Terms are logged each under its own name, and summed by weight."""

    weight: float

    def __call__(self, guess: Guess) -> Tensor:
        """-> B: averaged over the scored positions of each caption, never over the batch."""


class Objective(Protocol):
    """kind `objective`: what training makes smaller."""

    def begin(self, references: Sequence[Sequence[str]]) -> None:
        """Told of the training captions, image by image, before the first step of a training."""

    def __call__(self, parts: Parts, batch: Batch, rng: Generator) -> dict[str, Tensor]:
        """Its terms by name, as a process gives those of its loss; their sum is made smaller."""


class Variance(Protocol):
    """kind `variance`: how freely a step back is drawn, for samplers that draw."""

    def __call__(self, x0_hat: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """B L E, B L E, t B -> the spread of `Estimate`: 0 to 1, B L E or a scalar."""


# ------------------------------------------------------------------------------------- network


class Conditioning(Protocol):
    """kind `conditioning`: writes time or image into the stream; modes chain in order. Module."""

    writes: ClassVar[set[str]]  # of {"tokens", "time", "context"}; the denoiser must read them.
    # What is added to the caption's own positions every denoiser hears; tokens are extra ones.
    extra: int  # tokens that it adds to the sequence

    def __call__(self, stream: Stream, condition: Condition) -> Stream:
        """The stream with its part written."""


class Denoiser(Protocol):
    """kind `denoiser`: the transformer. Module."""

    reads: ClassVar[set[str]]  # of {"tokens", "time", "context"}

    def __call__(self, stream: Stream) -> Tensor:
        """-> B M H. Positions where stream.mask is False must not change the others."""


class SelfConditioning(Protocol):
    """kind `self_conditioning`: what the network is told of its own last estimate. Module."""

    def practise(
        self, think: Think, noised: Noised, schedule: Schedule, rng: Generator
    ) -> Tensor | None:
        """In training: the estimate B L E that it is told, without a gradient; None: nothing."""

    def __call__(self, before: Tensor | None, x_t: Tensor) -> Tensor | None:
        """The last estimate B L E, None at first -> what is added to the sequence, B L H.

        None adds nothing. An estimate of 0 is as none.
        """


class Guidance(Protocol):
    """kind `guidance`: combines the predictions with and without the image. Module.

    In training too: one that learns nothing gives the prediction with the image there.
    """

    drop: float  # share of training captions whose image is withheld

    def both(self, t: Tensor) -> bool:
        """Whether the prediction without the image makes a difference at any of these t B."""

    def __call__(
        self, with_: Tensor, without: Tensor, t: Tensor, mask: Tensor, condition: Condition
    ) -> Tensor:
        """B L E, B L E, t B, mask B L -> B L E."""


# ------------------------------------------------------------------------------------ sampling


class Rounding(Protocol):
    """kind `rounding`: what is done to the estimate of x0 before the sampler uses it."""

    def __call__(
        self, x0_hat: Tensor, t: float, embedding: Embedding, nearest: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """B L E -> B L E. `nearest` gives for each vector that of its nearest word."""


class Grid(Protocol):
    """kind `grid`: the times that sampling visits."""

    def __call__(self, steps: int, schedule: Schedule) -> list[tuple[float, float]]:
        """A pair (t, s) for each step: x is taken to be at t, and brought to s < t.

        The first t is 1 and the last s is 0; t falls strictly. Usually each s is the next t.
        """


class Sampler(Protocol):
    """kind `sampler`: from noise to text, step by step."""

    steps: int  # unless the caller asks for another number
    order: int  # the error of N steps falls as 1 / N^order; 0 where it never vanishes

    def step(
        self, state: State, s: float, denoise: Denoise, schedule: Schedule, rng: Generator
    ) -> State:
        """From state.t to s < state.t."""


class Constraint(Protocol):
    """kind `constraint`: which words a sampled caption may have at which place."""

    def allowed(self, tokenizer: Tokenizer, length: int) -> Tensor:
        """-> L V, bool. Several constraints hold together. Raises CdlmError for unknown words."""


class Selection(Protocol):
    """kind `selection`: one caption of several candidates.

    One that has a method `begin(captions, features)` is shown the captions of each training photo
    and the photos' features, images N C, before it chooses.
    """

    count: int  # candidates for each image
    needs: ClassVar[set[str]]  # {"new_texts"} where it asks the encoder to read captions

    def __call__(
        self, candidates: list[list[str]], features: Tensor, encoder: Encoder
    ) -> list[int]:
        """The candidates of each image, features B N C -> the position of the chosen one."""


# --------------------------------------------------------------------------------------- studies


class Running(Protocol):
    """A process that a launcher has started."""

    def code(self) -> int | None:
        """Its exit code; None while it waits or runs."""

    def stop(self) -> None:
        """Ask it to end, with time to save what it has. Does not wait; nothing, if it has ended."""


class Launcher(Protocol):
    """kind `launcher`: starts the points of a study, on this machine or elsewhere.

    Wherever that is, the same folders have to be there under the same paths.
    """

    def start(self, command: Sequence[str], log: Path) -> Running:
        """Start a process in the current folder; what it prints goes into `log`. Does not wait.

        Raises CdlmError where it can't be started.
        """
