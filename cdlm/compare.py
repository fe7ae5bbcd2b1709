"""Runs beside each other: means over seeds, and what of a difference is more than noise.

Two things are drawn by chance in a score: the images that it is measured on, and the seed that its
run was trained with. A difference between two recipes counts where it is larger than both: where 0
lies outside of the interval from resampled images, and outside of that from the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdlm.errors import Unavailable
from cdlm.rundir import write_bytes

if TYPE_CHECKING:
    from numpy import ndarray

    from cdlm.protocols import Metric
    from cdlm.records import Answers, Tally

ROUNDS = 1000  # of the bootstrap
T_975 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
)  # fmt: skip
"""0.975 quantiles of Student's t, for 1 to 20 degrees of freedom."""

HIGHER, LOWER, NOISE, SAME = "higher", "lower", "inside the noise", "the same run"
ONE_SEED = ", of one seed"  # behind a verdict that no second seed bears out

Interval = tuple[float, float]


# ------------------------------------------------------------------------------- resampled images


def resampled(tally: Tally) -> dict[str, ndarray]:
    """Each score on ROUNDS bootstrap samples of the images, by name.

    The samples depend on the number of images alone: those of two runs on the same images are
    paired, and the difference of their scores is that of a paired bootstrap.
    Source: Koehn 2004, "Statistical significance tests for machine translation evaluation".
    """
    import numpy as np

    count = len(tally.rows)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=ROUNDS)
    return tally.score(drawn.astype(np.float64) @ tally.rows)


def write_draws(path: Path, metrics: Sequence[Metric], answers: Answers) -> None:
    """Keep the scores on resampled images, of metrics that have them here. Raises OSError."""
    from safetensors.numpy import save

    found: dict[str, ndarray] = {}
    for metric in metrics:
        with suppress(Unavailable):  # `evaluate` says why
            tally = metric.tally(answers)
            found |= {} if tally is None else resampled(tally)
    images = sha256("\n".join(answers.image_ids).encode("utf-8", "backslashreplace")).hexdigest()
    write_bytes(path, save(found, metadata={"images": images}))


@dataclass(frozen=True)
class Draws:
    """The scores of one run on resampled images."""

    images: str  # which ones, as a digest
    scores: dict[str, ndarray]  # by name, ROUNDS each


def read_draws(path: Path) -> Draws:
    """What `write_draws` kept; nothing, where there is no such file or it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            images = (file.metadata() or {}).get("images", "")
            return Draws(images, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError):
        return Draws("", {})


# ---------------------------------------------------------------------------------------- seeds


def t_975(freedom: int) -> float:
    """The 0.975 quantile of Student's t; beyond the table Cornish and Fisher's expansion."""
    if freedom <= len(T_975):
        return T_975[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def over_seeds(values: Sequence[float]) -> Interval | None:
    """The 95 % t-interval of a mean over seeds; None for a single one."""
    count = len(values)
    if count < 2:
        return None
    mean = sum(values) / count
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    half = t_975(count - 1) * spread / math.sqrt(count)
    return mean - half, mean + half


# ----------------------------------------------------------------------------------- differences


@dataclass(frozen=True)
class Result:
    """What one finished run says."""

    run: Path
    scores: dict[str, float]
    draws: Draws


@dataclass(frozen=True, kw_only=True)
class Difference:
    """By how much one recipe's score lies above another's, and what is known of that."""

    value: float
    images: Interval | None  # 95 % of the paired bootstrap; None where there is none
    seeds: Interval | None  # 95 % t-interval of the differences seed by seed; None for one seed
    verdict: str

    def record(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {
            "difference": rounded(self.value),
            "images": self.images and [rounded(it) for it in self.images],
            "seeds": self.seeds and [rounded(it) for it in self.seeds],
            "verdict": self.verdict,
        }


Pairs = Sequence[Sequence[tuple[Result, Result]]]
"""Of each seed the pairs to be compared: (of one recipe, of the other), alike in all else."""


def difference(pairs: Pairs, name: str) -> Difference | None:
    """How the first of each pair differs from the second in a score, averaged over all pairs.

    None where a run does not have the score, or there is no pair.
    """
    flat = [pair for of_seed in pairs for pair in of_seed]
    if not flat or any(name not in run.scores for pair in flat for run in pair):
        return None
    each = [
        sum(one.scores[name] - two.scores[name] for one, two in of_seed) / len(of_seed)
        for of_seed in pairs
        if of_seed
    ]
    value, images, seeds = sum(each) / len(each), _over_images(flat, name), over_seeds(each)
    same = all(one.run == two.run for one, two in flat)
    verdict = SAME if same else _verdict(value, images, seeds)
    return Difference(value=value, images=images, seeds=seeds, verdict=verdict)


def _over_images(flat: Sequence[tuple[Result, Result]], name: str) -> Interval | None:
    """95 % of the mean difference on resampled images; None where the images are not the same."""
    import numpy as np

    draws = [(one.draws, two.draws) for one, two in flat]
    for one, two in draws:
        if one.images != two.images or name not in one.scores or name not in two.scores:
            return None
    each = [one.scores[name] - two.scores[name] for one, two in draws]
    low, high = np.percentile(np.mean(each, axis=0), [2.5, 97.5])
    return float(low), float(high)


def _verdict(value: float, images: Interval | None, seeds: Interval | None) -> str:
    """Higher or lower, where every interval that there is says so, and one there is."""
    known = [it for it in (images, seeds) if it is not None]
    if not known or any(low <= 0 <= high for low, high in known):
        return NOISE
    return (HIGHER if value > 0 else LOWER) + ("" if seeds else ONE_SEED)


def rounded(value: float) -> float:
    """To a millionth: what lies below differs between machines."""
    return round(float(value), 6) + 0.0
