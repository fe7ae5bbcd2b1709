"""Captions for your own images from a finished run, in Python.

import cdlm

captioner = cdlm.Captioner.load("runs/extra_token/default-s0-1a2b3c4d")
captioner("photo.jpg")
captioner(["a.jpg", "b.jpg"], steps=10, sampler="ddpm", guidance=2.0, seed=1)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from torch import Tensor

from cdlm import toml
from cdlm.errors import CdlmError
from cdlm.parts.datasets import photos
from cdlm.run import Job, caption_features, choose_device
from cdlm.rundir import RunDir

if TYPE_CHECKING:
    from PIL.Image import Image

Picture = "str | Path | Image"


class Captioner:
    """A trained diffusion captioner: images in, captions out."""

    def __init__(self, job: Job):
        self._job = job
        self._loaded: dict[tuple[str, ...], Job] = {(): job}

    @classmethod
    def load(cls, run: str | Path, device: str = "auto") -> Captioner:
        """The captioner of a run's newest checkpoint. Raises RunError, CdlmError."""
        job = Job.open(RunDir.open(Path(run)), choose_device(device))
        job.load_weights()
        return cls(job)

    @overload
    def __call__(self, images: str | Path | Image, **options: Any) -> str: ...
    @overload
    def __call__(self, images: Sequence[str | Path | Image], **options: Any) -> list[str]: ...

    def __call__(
        self,
        images: str | Path | Image | Sequence[str | Path | Image],
        *,
        steps: int | None = None,
        sampler: str | dict[str, Any] | None = None,
        guidance: float | None = None,
        seed: int = 0,
    ) -> str | list[str]:
        """The caption of one image, or the captions of several.

        images: paths or PIL images.   steps: sampling steps.   sampler: a name ("ddpm") or a table
        ({"use": "ddim", "eta": 0.5}).   guidance: the scale of classifier-free guidance, 1 for
        none; the run must have been trained with some images withheld.   What is None is as in the
        run's recipe. Equal seeds give equal captions.
        Raises DataError for an unreadable image, RecipeError for a sampler that there is not.
        """
        many = isinstance(images, Sequence) and not isinstance(images, str)
        pictures = [_read(image) for image in (images if many else [images])]  # type: ignore[union-attr, list-item]
        said = self.of_features(
            self._job.parts.encoder.encode(pictures),
            steps=steps,
            sampler=sampler,
            guidance=guidance,
            seed=seed,
        )
        return said if many else said[0]

    def of_features(
        self,
        features: Tensor,
        *,
        steps: int | None = None,
        sampler: str | dict[str, Any] | None = None,
        guidance: float | None = None,
        seed: int = 0,
    ) -> list[str]:
        """Captions for ready features B N C of the run's encoder; options as for images."""
        job = self._with(steps, sampler, guidance)
        return caption_features(job, features, seed, job.recipe.evaluate.batch)

    def _with(
        self, steps: int | None, sampler: str | dict[str, Any] | None, guidance: float | None
    ) -> Job:
        sets = sampling_sets(steps, sampler, guidance)
        if sets not in self._loaded:
            job = Job.open(self._job.run, self._job.device, sets)
            require_withheld(job, guidance)
            job.load_weights()
            self._loaded[sets] = job
        return self._loaded[sets]


def sampling_sets(
    steps: int | None, sampler: str | dict[str, Any] | None, guidance: float | None
) -> tuple[str, ...]:
    """The options as --set would give them."""
    sets = []
    if sampler is not None:
        table = {"use": sampler} if isinstance(sampler, str) else sampler
        sets.append(f"sampler={toml.text(table)}")
    if steps is not None:
        sets.append(f"sampler.steps={steps}")
    if guidance is not None:
        sets.append(f"guidance.scale={guidance}")
    return tuple(sets)


def require_withheld(job: Job, guidance: float | None) -> None:
    """Guidance needs a network that has learnt to do without the image."""
    if guidance not in (None, 1) and not job.parts.guidance.drop:
        raise CdlmError(
            f"guidance {guidance}: this run never trained without the image\n"
            '    train with guidance = { use = "scale", drop = 0.1 }, or leave it at 1'
        )


def _read(image: str | Path | Image) -> Image:
    return photos.read(Path(image)) if isinstance(image, str | Path) else image.convert("RGB")
