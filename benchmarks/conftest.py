"""How a race is timed, and the table of ratios at the end."""

from __future__ import annotations

import gc
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import pytest
import torch
from goals import Row, grouped
from problems import SMALL
from tables import ratio_lines
from torch import Tensor

T = TypeVar("T")
ROWS = pytest.StashKey[list[Row]]()
PACKAGES = (
    "cdlm", "torch", "triton", "transformers", "faiss-cpu", "flash-kmeans", "flashlib", "fastkmeans"
)  # fmt: skip
CPU_SECONDS = 0.02 if SMALL else 1.5  # that one measurement may take
GPU_SECONDS = 0.002 if SMALL else 0.2


def clock() -> float:
    """Seconds, once the GPU has done what was asked of it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Race:
    """Times one call and notes it: for the report at the end, and in pytest-benchmark's JSON.

    On a GPU calls follow each other without a wait, so that the GPU's own time counts; with `graph`
    each is replayed from a CUDA graph.
    """

    def __init__(self, benchmark: Any, rows: list[Row]):
        self.benchmark = benchmark
        self.rows = rows

    def __call__(
        self,
        call: Callable[[], Tensor],
        group: str,
        provider: str,
        device: str,
        graph: bool = False,
        **facts: Any,
    ) -> Tensor:
        """Time it; -> what it gives. `facts` are stored beside the timing."""
        begun = seconds_of(call)  # with all that is built at a first call
        info = _where(provider, device) | facts
        if device == "cuda":
            info["extra_mb"] = extra_memory(call)
        timed = captured(call) if graph and device == "cuda" else call
        info["graph"] = timed is not call
        sure = device == "cpu" and begun > 1  # building would not matter beside it
        rounds, iterations = often(begun if sure else seconds_of(timed), device)
        self.benchmark.group = group
        given: Tensor = self.benchmark.pedantic(timed, rounds=rounds, iterations=iterations)
        self.benchmark.extra_info.update(info)
        return given

    def once(self, call: Callable[[], T], group: str, provider: str, device: str) -> T:
        """A long call, timed once; -> what it gives."""
        self.benchmark.group = group
        given: T = self.benchmark.pedantic(call)
        self.benchmark.extra_info.update(_where(provider, device))
        return given

    def note(self, **facts: Any) -> None:
        """Store facts beside the timing, found after it."""
        info = self.benchmark.extra_info
        info.update(facts)
        stats = self.benchmark.stats
        if stats is not None:  # None where timing is switched off
            self.rows.append(Row(self.benchmark.group, info["provider"], stats.stats.min, info))


def _where(provider: str, device: str) -> dict[str, Any]:
    threads = torch.get_num_threads()
    return {
        "provider": provider,
        "kind": device,
        "device": device_name(device),
        "threads": threads,
    }


def seconds_of(call: Callable[[], object]) -> float:
    begin = clock()
    call()
    return clock() - begin


def often(seconds: float, device: str) -> tuple[int, int]:
    """Rounds, and calls in each: at least 3 rounds, each of a time that a clock can measure."""
    budget = GPU_SECONDS if device == "cuda" else CPU_SECONDS
    calls = max(1, int(0.005 / seconds))
    least = 3 if seconds > 1 else 5
    return min(max(least, int(budget / (seconds * calls))), 100), calls


def captured(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The call as a CUDA graph; the call itself where it can't be captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            given = call()
    except RuntimeError:
        torch.cuda.synchronize()
        return call

    def replay() -> Tensor:
        graph.replay()
        return given

    return replay


def extra_memory(call: Callable[[], Tensor]) -> float:
    """The most memory on the GPU that a call needs beyond what was there, in MB (10^6 bytes)."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def device_name(device: str) -> str:
    """The processor's name."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return processor()


def processor() -> str:
    """The CPU's model, where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


# ------------------------------------------------------------------------------------- fixtures


@pytest.fixture
def race(benchmark: Any, request: pytest.FixtureRequest) -> Iterator[Race]:
    """`race(call, group, provider, device, ...)`, then `race.note(...)`."""
    yield Race(benchmark, request.config.stash[ROWS])
    if torch.cuda.is_available():  # captured graphs hold on to memory
        gc.collect()
        torch.cuda.empty_cache()


@pytest.fixture(autouse=True)
def _plain_arithmetic() -> Iterator[None]:
    """Whatever precision a provider asked torch for ends with its test."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


# ------------------------------------------------------------------------------- pytest's hooks


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []
    config.addinivalue_line("markers", "gpu: runs on a GPU alone")
    config.addinivalue_line("markers", "cpu: runs on the CPU alone")
    torch.set_num_threads(int(os.environ.get("CDLM_BENCH_THREADS", "1")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every race is timed by the same clock, and those of a GPU are skipped where there is none."""
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=clock))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="there is no GPU here"))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: Any) -> None:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    machine_info["cdlm"] = {
        "processor": processor(),
        "gpu": gpu,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "small": SMALL,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Each provider's time over cdlm's, group by group; then why others were not measured."""
    groups = grouped(config.stash[ROWS])
    if not groups:
        return
    terminalreporter.section("how many times as long as cdlm takes")
    for line in ratio_lines(groups):
        terminalreporter.write_line(line)
    reasons = Counter(
        str(report.longrepr[2]).removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    )
    for reason, count in reasons.items():
        terminalreporter.write_line(f"not measured: {count} x {reason}")
