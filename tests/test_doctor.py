"""The doctor survives what it examines, and says how to mend it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

import cdlm.doctor as doctor
from cdlm.doctor import CPU_ONLY, ORDINARY, Finding, examine, explain_import_error

ROOT = Path(doctor.__file__).parents[1]

TORCH = """
from torch.version import __version__, cuda as cuda_version
from types import SimpleNamespace
version = SimpleNamespace(cuda=cuda_version)
cuda = SimpleNamespace(is_available=lambda: False)
get_num_threads = lambda: 2
zeros = lambda *shape: None
"""
NMS = 'raise RuntimeError("operator torchvision::nms does not exist")'
CRASH = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
OPS = "nms = lambda boxes, scores, overlap: None"
MISUSED = 'def nms(*args): raise RuntimeError("Couldn\'t load custom C++ ops. This can happen")'


def put(place: Path, text: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


def pair_of(folder: Path, torch: str, vision: str, init: str = "", ops: str = OPS) -> Finding:
    """What the doctor finds where these two stand before the real torch and torchvision."""
    cuda = None if torch.endswith("+cpu") else "13.2"
    put(folder / "torch" / "__init__.py", TORCH)
    put(folder / "torch" / "version.py", f"__version__ = '{torch}'\ncuda: str | None = {cuda!r}")
    put(folder / "torchvision" / "__init__.py", init)
    put(folder / "torchvision" / "version.py", f"__version__ = '{vision}'\n")
    put(folder / "torchvision" / "ops.py", ops)
    code = "import json; from cdlm.doctor import _pair, _probe\n"
    code += "print(json.dumps(vars(_pair(_probe()))))"
    env = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    return Finding(**json.loads(done.stdout))


@pytest.mark.parametrize(
    ("torch", "vision", "broken"),
    [
        ("2.15.0+cpu", "0.29.2+cu132", {"init": NMS}),
        ("2.15.0+cu132", "0.29.2+cpu", {"init": NMS}),
        ("2.15.0+cpu", "0.29.2+cu132", {"ops": MISUSED}),
    ],
)
def test_a_broken_pair_is_recognised_and_mended(tmp_path, torch, vision, broken):
    found = pair_of(tmp_path, torch, vision, **broken)
    assert found.status == "bad"
    assert f"torch {torch}, torchvision {vision}: torch and torchvision do not fit" in found.text
    assert ORDINARY in found.mend and CPU_ONLY in found.mend


def test_a_crash_on_import_does_not_take_the_doctor_down(tmp_path):
    found = pair_of(tmp_path, "2.15.0+cpu", "0.29.2+cpu", init=CRASH)
    assert found.status == "bad" and "the process ended with -11" in found.text


@pytest.mark.parametrize(
    ("torch", "vision", "status"),
    [
        ("2.15.0+cu132", "0.29.2+cu132", "ok"),
        ("2.15.0", "0.29.2", "ok"),  # as built on macOS
        ("2.15.0+cpu", "0.29.2+cpu", "ok"),
        ("2.15.0+cu132", "0.29.2+cpu", "warn"),
        ("2.7.1+cpu", "0.22.1+cpu", "warn"),
    ],
)
def test_a_pair_that_imports_is_judged_by_its_versions(tmp_path, torch, vision, status):
    found = pair_of(tmp_path, torch, vision)
    assert found.status == status, found
    assert (found.mend == "") == (status == "ok")


@pytest.mark.parametrize("absent", ["torch", "torchvision"])
def test_a_missing_half_of_the_pair_is_told(monkeypatch, absent):
    monkeypatch.setattr(doctor, "_built", lambda name: None if name == absent else "1.0")
    found = doctor._pair({"error": "ModuleNotFoundError"})
    assert found.status == "bad" and found.mend.startswith(f"pip install {absent}")


# ----------------------------------------------------------------------- errors in other commands


@pytest.mark.parametrize(
    ("message", "meaning"),
    [
        ("operator torchvision::nms does not exist", "do not fit together"),
        (
            "Failed to import transformers.models.distilbert.modeling_distilbert because of the "
            "following error: operator torchvision::nms does not exist",
            "do not fit together",
        ),
        (
            "Detected that PyTorch and torchvision were compiled with different CUDA major "
            "versions. PyTorch has CUDA Version=13.2 and torchvision has CUDA Version=12.6.",
            "do not fit together",
        ),
        (
            "partially initialized module 'torchvision' has no attribute 'extension' (most likely "
            "due to a circular import)",
            "do not fit together",
        ),
        (
            "/lib/torchvision/_C.so: undefined symbol: _ZN3c1017RegisterOperatorsD1Ev",
            "do not fit together",
        ),
        ("torch/lib/libtorch_cuda.so: undefined symbol: ncclCommRegister", "of another version"),
        ("libcudart.so.13: cannot open shared object file: No such file", "misses one of its lib"),
        (
            "A module that was compiled using NumPy 1.x cannot be run in NumPy 2.4.6 as",
            "for another version of numpy",
        ),
    ],
)
@pytest.mark.parametrize("kind", [RuntimeError, ImportError, AttributeError])
def test_the_known_messages_are_explained(message, meaning, kind):
    explained = explain_import_error(kind(message))
    assert explained is not None
    assert meaning in explained and "pip install" in explained


def test_a_cause_that_another_error_wraps_is_found():
    try:
        try:
            raise RuntimeError("operator torchvision::nms does not exist")
        except RuntimeError as inner:
            raise ModuleNotFoundError("Could not import module 'DistilBertModel'") from inner
    except ModuleNotFoundError as outer:
        assert ORDINARY in (explain_import_error(outer) or "")


@pytest.mark.parametrize(
    ("module", "package"),
    [("torch", "torch"), ("open_clip.factory", "open_clip_torch"), ("PIL", "pillow")],
)
def test_a_missing_package_is_named_as_pip_knows_it(module, package):
    error = ModuleNotFoundError(f"No module named '{module}'", name=module)
    assert explain_import_error(error) == f"{package} is not installed\n    pip install {package}"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("shapes do not fit"),
        KeyError("torchvision"),
        ModuleNotFoundError("No module named 'my_film'", name="my_film"),
        FileNotFoundError(2, "No such file or directory", "photo.jpg"),
        RuntimeError("operator my::thing does not exist"),
    ],
)
def test_other_errors_are_left_to_others(error):
    assert explain_import_error(error) is None


def test_a_loop_of_causes_ends():
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert explain_import_error(one) is None


# --------------------------------------------------------------------------------------- the rest


def test_a_machine_is_examined_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("CDLM_CACHE", str(tmp_path / "cache"))
    found = {finding.name: finding for finding in examine({"film": "ImportError: no film"})}
    looked_at = {"Python", "cdlm", *doctor.REQUIRED, "torch + torchvision", "triton", "Java"}
    assert looked_at | {"disk here", "feature cache", "plugin film"} <= found.keys()
    assert found["plugin film"].text == "ImportError: no film"
    assert "device" in found or "cuda:0" in found
    assert found["Python"].status == found["torch"].status == "ok"
    for finding in found.values():
        assert finding.text and bool(finding.mend) == (finding.status != "ok"), finding


def test_gpus_are_listed_with_their_memory(monkeypatch):
    probe = {"torch": "2.15.0", "cuda": "13.2", "gpus": [["H100", 80 * 2**30], ["T4", 15 * 2**30]]}
    found = [(finding.name, finding.text) for finding in doctor._devices(probe)]
    assert found == [("cuda:0", "H100, 80 GiB"), ("cuda:1", "T4, 15 GiB")]


@pytest.mark.parametrize(
    ("cuda", "said", "mend"),
    [(None, "built for the CPU only", ORDINARY), ("13.2", "can't use the driver", "nvidia-smi")],
)
def test_a_driver_that_torch_does_not_use_is_told(monkeypatch, cuda, said, mend):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    (found,) = doctor._devices({"torch": "2.15.0", "cuda": cuda, "gpus": [], "threads": 2})
    assert found.status == "warn" and said in found.text and mend in found.mend


def test_no_java_is_a_warning_that_says_what_needs_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = doctor._java()
    assert found.status == "warn" and "METEOR" in found.text
    put(tmp_path / "java", "#!/bin/sh\necho 'Unable to locate a Java Runtime.' >&2; exit 1")
    (tmp_path / "java").chmod(0o755)
    found = doctor._java()
    assert found.status == "warn" and "Unable to locate a Java Runtime" in found.text


@pytest.mark.parametrize(
    ("free", "status", "text"),
    [
        (2**40, "ok", "1.0 TiB free"),
        (2**30, "warn", "1 GiB free"),
        (5 * 2**20, "bad", "5 MiB free"),
    ],
)
def test_the_free_disk_is_that_of_the_folder_to_be(tmp_path, monkeypatch, free, status, text):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(2**41, 0, free))
    found = doctor._disk("disk", tmp_path / "not" / "yet")
    assert (found.status, found.text) == (status, f"{text} at {tmp_path}")


def test_the_cache_is_measured_and_a_file_in_its_way_told(tmp_path):
    assert doctor._cache(tmp_path / "new").text.endswith("empty so far")
    put(tmp_path / "cache" / "a" / "b.safetensors", "x" * 3000)
    found = doctor._cache(tmp_path / "cache")
    assert (found.status, found.text) == ("ok", f"{tmp_path / 'cache'}: 3 KiB")
    put(tmp_path / "file", "")
    found = doctor._cache(tmp_path / "file" / "cache")
    assert found.status == "bad" and f"{tmp_path / 'file'} is not a folder" in found.text
    assert "CDLM_CACHE" in found.mend


def test_a_cache_that_may_not_be_written_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    found = doctor._cache(tmp_path)
    assert found.status == "bad" and "can't be written" in found.text
