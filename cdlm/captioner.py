"""Captions for your own images from a trained run, in Python.

import cdlm

captioner = cdlm.Captioner.load("runs/extra_token/default-s0-1a2b3c4d")
captioner("photo.jpg")
captioner(["a.jpg", "b.jpg"], steps=10, sampler="ddim", seed=1)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias, overload

from PIL.Image import Image
from torch import Tensor

from cdlm import toml
from cdlm.errors import DataError
from cdlm.parts.datasets import photos
from cdlm.run import Job, caption_features, choose_device
from cdlm.rundir import RunDir

Picture: TypeAlias = str | Path | Image
SamplerTable: TypeAlias = str | dict[str, Any]


class Captioner:
    """A trained diffusion captioner: images in, captions out."""

    def __init__(self, job: Job):
        self._job = job  # with its weights loaded

    @classmethod
    def load(cls, run: str | Path, device: str = "auto") -> Captioner:
        """The captioner of a run's newest checkpoint. Raises RunError, CdlmError."""
        job = Job.open(RunDir.open(Path(run)), choose_device(device))
        job.load_weights()
        return cls(job)

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a text is a sequence of texts too
        self,
        images: Picture,
        *,
        steps: int | None = None,
        sampler: SamplerTable | None = None,
        guidance: float | None = None,
        seed: int = 0,
    ) -> str: ...

    @overload
    def __call__(
        self,
        images: Sequence[Picture],
        *,
        steps: int | None = None,
        sampler: SamplerTable | None = None,
        guidance: float | None = None,
        seed: int = 0,
    ) -> list[str]: ...

    def __call__(
        self,
        images: Picture | Sequence[Picture],
        *,
        steps: int | None = None,
        sampler: SamplerTable | None = None,
        guidance: float | None = None,
        seed: int = 0,
    ) -> str | list[str]:
        """The caption of one image, or the captions of several.

        images: paths or PIL images.   steps: sampling steps.   sampler: a name ("ddpm") or a table
        ({"use": "ddim", "eta": 0.5}); one that is not the recipe's brings its own default steps.
        guidance: the scale of classifier-free guidance, 1 for none; the run must have been trained
        with some images withheld.   What is None is as in the run's recipe.
        Equal calls give equal captions; one image's caption may change with the others in the call.
        Raises DataError for an image that can't be read, RecipeError for a sampler that there is
        not, CdlmError for guidance of a run that was not trained for it.
        """
        one = isinstance(images, str | Path) or not isinstance(images, Sequence)
        many: Sequence[Picture] = [images] if one else images  # type: ignore[list-item, assignment]
        said = self.of_features(
            self._job.parts.encoder.encode([_read(image) for image in many]),
            steps=steps,
            sampler=sampler,
            guidance=guidance,
            seed=seed,
        )
        return said[0] if one else said

    def of_features(
        self,
        features: Tensor,
        *,
        steps: int | None = None,
        sampler: SamplerTable | None = None,
        guidance: float | None = None,
        seed: int = 0,
    ) -> list[str]:
        """Captions for ready features B N C of the run's encoder; options as for images."""
        shape = self._job.parts.encoder.shape()
        if features.shape[1:] != shape:
            raise ValueError(f"features: expected B x {shape}, got {tuple(features.shape)}")
        if len(features) == 0:
            return []
        job = self._job.sampling(self._sets(steps, sampler, guidance))
        return caption_features(job, features, seed, job.recipe.evaluate.batch)

    def _sets(
        self, steps: int | None, sampler: SamplerTable | None, guidance: float | None
    ) -> list[str]:
        """The options as --set would give them."""
        sets = []
        if sampler is not None:
            table = {"use": sampler} if isinstance(sampler, str) else sampler
            sets.append(f"sampler={toml.text(table)}")
        if steps is not None:
            sets.append(f"sampler.steps={steps}")
        if guidance is not None:
            sets.append(f"guidance={toml.text({'use': 'scale', 'scale': guidance})}")
        return sets


def _read(image: Picture) -> Image:
    if isinstance(image, str | Path):
        return photos.read(Path(image))
    if not isinstance(image, Image):
        raise DataError(f"expected an image: a path or a PIL image, got {type(image).__name__}")
    return image.convert("RGB")
