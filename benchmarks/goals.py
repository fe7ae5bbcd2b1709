"""What the timings are held against: floors of the hardware, and goals of cdlm's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from problems import BERT, WIDTHS, Shape

# ------------------------------------------------------------------------------------- the floor

TENSOR = 790e12  # fp16 multiplications and additions a second, dense, of an H100 (measured)
SMS, CLOCK = 132, 1.755e9  # streaming multiprocessors and cycles a second of an H100
ALU = 64  # results a cycle of a multiprocessor's half-rate pipe, where maxima and selects run
LEAN = 1.92  # such instructions for each score: top-2 of buckets of 4 (counted in machine code)


def floor(shape: Shape) -> float:
    """No kernel that scores every word for every row with one fp16 product is faster, in seconds.

    max(2 N V E / TENSOR,  N V LEAN / (SMS ALU CLOCK)): the product, or the search for the best.
    A model of an H100; memory is not what bounds it.
    """
    scores = shape.rows * shape.words
    return max(2 * scores * shape.width / TENSOR, scores * LEAN / (SMS * ALU * CLOCK))


# --------------------------------------------------------------------------------------- results

OURS, UNCERTIFIED = "cdlm", "cdlm, uncertified pass"
DIFFUSION_LM = "Diffusion-LM"
ALONE, FUSED, APART = "rounding alone", "round_and_step", "rounding, then torch"
FULL, MEMORY = "full scans", "remembering"


@dataclass(frozen=True)
class Row:
    """One measurement: a provider in a group of providers that do the same work."""

    group: str
    provider: str
    seconds: float  # the least of the rounds
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def base(self) -> bool:
        """Whether the others of its group are compared with it."""
        return bool(self.info.get("base"))


def from_json(benchmark: dict[str, Any]) -> Row:
    """A row of pytest-benchmark's JSON."""
    info = benchmark["extra_info"]
    return Row(benchmark["group"], info["provider"], benchmark["stats"]["min"], info)


Groups = dict[str, dict[str, Row]]
"""Rows by group, then provider."""


def grouped(rows: Sequence[Row]) -> Groups:
    """In the order in which they were measured; of equal ones the last counts."""
    groups: Groups = {}
    for row in rows:
        groups.setdefault(row.group, {})[row.provider] = row
    return groups


def base(group: dict[str, Row]) -> Row | None:
    """The row that the others of a group are compared with, if it was measured."""
    return next((row for row in group.values() if row.base), None)


# ----------------------------------------------------------------------------------------- goals

Measure = Callable[[Groups], float | None]


@dataclass(frozen=True)
class Goal:
    """A number that must be reached; None where there is no harder one to stretch for."""

    device: str
    title: str
    must: float
    stretch: float | None
    measure: Measure  # None where it was not measured
    unit: str = "x"
    at_most: bool = False  # whether less is better

    def verdict(self, value: float | None) -> str:
        """met, stretch, missed, or not measured."""
        if value is None:
            return "not measured"
        if self.stretch is not None and self._reaches(value, self.stretch):
            return "stretch"
        return "met" if self._reaches(value, self.must) else "missed"

    def _reaches(self, value: float, wanted: float) -> bool:
        return value <= wanted if self.at_most else value >= wanted


def ratio(group: str, slow: str, *fast: str) -> Measure:
    """The time of one provider, divided by another's; of several by that of the quickest."""

    def measure(groups: Groups) -> float | None:
        rows = groups.get(group, {})
        found = [rows[name].seconds for name in fast if name in rows]
        return rows[slow].seconds / min(found) if found and slow in rows else None

    return measure


def fact(group: str, provider: str, name: str) -> Measure:
    """A number that was noted beside a timing."""

    def measure(groups: Groups) -> float | None:
        row = groups.get(group, {}).get(provider)
        return None if row is None else row.info.get(name)

    return measure


def share(group: str, provider: str) -> Measure:
    """The floor of the hardware as a share of the time, in per cent."""

    def measure(groups: Groups) -> float | None:
        row = groups.get(group, {}).get(provider)
        return None if row is None else 100 * row.info["floor"] / row.seconds

    return measure


def wrong(task: str, device: str, rows: int) -> Measure:
    """Wrong tokens of cdlm in all groups of some tasks; None below so many rows."""

    def measure(groups: Groups) -> float | None:
        ours = [
            row.info
            for group in groups.values()
            for row in group.values()
            if row.info["task"] in task.split() and row.info["kind"] == device and row.info["ours"]
        ]
        seen = sum(info["rows"] for info in ours)
        return sum(info["wrong"] for info in ours) if seen >= rows else None

    return measure


def nearest(device: str, rows: int, width: int) -> str:
    """The name of a group: rounding once."""
    return f"nearest token: {Shape(device, rows, BERT, width)}"


def remembering(shape: Shape, steps: int) -> str:
    """The name of a group: rounding along a trajectory."""
    return f"{steps} denoising steps: {shape}"


def stepping(shape: Shape) -> str:
    """The name of a group: rounding and the sampler's update."""
    return f"rounding and update: {shape}"


def captioning(device: str, batch: int) -> str:
    """The name of a group: whole captions."""
    return f"captions: {device}, B={batch:,}"


def _by_width(
    device: str,
    rows: int,
    title: str,
    provider: str,
    musts: Sequence[float],
    stretches: Sequence[float],
    widths: Sequence[int] = WIDTHS,
) -> Iterator[Goal]:
    """One goal for each width: cdlm against a provider."""
    for width, must, stretch in zip(widths, musts, stretches, strict=True):
        measure = ratio(nearest(device, rows, width), provider, OURS)
        yield Goal(device, f"{title}, N={rows:,}, E={width}", must, stretch, measure)


def _on_cpu() -> Iterator[Goal]:
    yield from _by_width(
        "cpu", 512, "vs Diffusion-LM's code", DIFFUSION_LM, (15, 9, 6, 2), (25, 14, 9, 2.7)
    )
    yield from _by_width(
        "cpu", 512, "vs addmm+argmax", "addmm+argmax fp32", (4, 2.5, 2, 1.3), (6, 4, 3, 1.8)
    )
    yield from _by_width(
        "cpu", 512, "vs faiss IndexFlatL2", "faiss-cpu", (2.5, 2, 2, 1), (4.5, 3, 3.5, 1.2)
    )
    for width, must, stretch in ((64, 2, 3), (128, 2.5, 4), (768, 6, 12)):
        group = remembering(Shape("cpu", 512, BERT, width), 50)
        title = f"remembering vs full scans, 50 steps, E={width}"
        yield Goal("cpu", title, must, stretch, ratio(group, FULL, MEMORY))
    many = wrong("remembering exact", "cpu", 1_000_000)
    yield Goal("cpu", "wrong tokens in 10^6 row-steps", 0, None, many, "", at_most=True)
    for batch, must, stretch in ((1, 2.5, 6), (32, 1.2, 2.8)):
        group, title = captioning("cpu", batch), f"captions vs GPT-2 with KV cache, B={batch}"
        yield Goal("cpu", f"{title}, 10 steps", must, None, ratio(group, GPT2, ours(10)))
        yield Goal("cpu", f"{title}, 5 steps", must, stretch, ratio(group, GPT2, ours(5)))


GPT2, GPT2_UNCACHED = "GPT-2, KV cache", "GPT-2, no cache"


def ours(steps: int, size: str = "19M") -> str:
    """The name of a provider of captions: cdlm."""
    return f"cdlm {size}, {steps} steps"


GRAPH = f"{ours(10)}, graph"  # the network's call as a CUDA graph


def eager(steps: int) -> str:
    """The name of a provider of captions: a plain loop around the same network."""
    return f"eager loop, {steps} steps"


def _rounding_on_gpu() -> Iterator[Goal]:
    yield from _by_width(
        "cuda", 8_192, "vs Diffusion-LM's code", DIFFUSION_LM, (40, 30), (80, 60), (16, 128)
    )
    for kind, must, stretch in (("fp32", 8, 12), ("TF32", 4, 6), ("bf16", 2, 3)):
        yield from _by_width(
            "cuda", 8_192, f"vs addmm+argmax {kind}", f"addmm+argmax {kind}", (must,), (stretch,),
            (128,),
        )  # fmt: skip
    yield from _by_width(
        "cuda", 8_192, "vs torch.compile TF32", "torch.compile TF32", (3.5,), (6,), (128,)
    )
    for rival in ("flash-kmeans", "flashlib"):
        yield from _by_width(
            "cuda", 65_536, f"vs {rival} fp16", rival, (1.8, 1.5, 1.4, 1), (3, 2.5, 2, 1.2)
        )
        yield from _by_width("cuda", 2_048, f"vs {rival} fp16", rival, (3,) * 4, (6,) * 4)


def _kernel_on_gpu() -> Iterator[Goal]:
    for width, must, stretch in zip(WIDTHS, (45, 45, 50, 65), (70, 65, 70, 80), strict=True):
        group = nearest("cuda", 65_536, width)
        title = f"share of the floor, N=65,536, E={width}"
        yield Goal("cuda", title, must, stretch, share(group, OURS), " %")
        title = f"extra memory, N=65,536, E={width}"
        memory = fact(group, OURS, "extra_mb")
        yield Goal("cuda", title, 64, 16, memory, " MB", at_most=True)
        certain = ratio(group, OURS, UNCERTIFIED)
        title = f"cost of exactness, N=65,536, E={width}"
        yield Goal("cuda", title, 1.35, 1.15, certain, at_most=True)
        fused = ratio(stepping(Shape("cuda", 65_536, BERT, width)), FUSED, ALONE)
        title = f"rounding and update vs rounding alone, N=65,536, E={width}"
        yield Goal("cuda", title, 1.15, None, fused, at_most=True)
    many = wrong("exact", "cuda", 10_000_000)
    yield Goal("cuda", "wrong tokens in 10^7 rows", 0, None, many, "", at_most=True)


def _captions_on_gpu() -> Iterator[Goal]:
    for batch, must, stretch in ((1, 5, 15), (64, 5, 15), (1_024, 2, 4)):
        found = ratio(captioning("cuda", batch), eager(10), ours(10), GRAPH)
        title = f"captions vs an eager loop of as many steps, B={batch:,}"
        yield Goal("cuda", title, must, stretch, found)
    found = ratio(captioning("cuda", 64), eager(200), ours(10), GRAPH)
    yield Goal("cuda", "captions in 10 steps vs an eager loop of 200, B=64", 60, 200, found)
    for batch, must, stretch in ((1, 8, 30), (64, 8, 20)):
        found = ratio(captioning("cuda", batch), GPT2, ours(10), GRAPH)
        yield Goal("cuda", f"captions vs GPT-2 with KV cache, B={batch}", must, stretch, found)


GOALS = [*_on_cpu(), *_rounding_on_gpu(), *_kernel_on_gpu(), *_captions_on_gpu()]
