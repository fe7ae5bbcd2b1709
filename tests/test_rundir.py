"""A run's folder is never overwritten, never half there, and says what is wrong with it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import cdlm.rundir
from cdlm import places
from cdlm.errors import RunError
from cdlm.rundir import (
    DIFF_BYTES,
    METRICS,
    RunDir,
    draft,
    options_slug,
    provenance,
    run_path,
    runs,
    sweep,
    write_bytes,
    write_json,
)

ROOT = Path(cdlm.rundir.__file__).parents[1]


def create(root: Path, name: str = "extra_token", options: tuple[str, ...] = (), seed: int = 0):
    return RunDir.create(root, name, options, seed, "0123456789abcdef", "seed = 0\n", {"seed": 0})


def python(code: str, *argv: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, argv)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


# ------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("options", "slug"),
    [
        ([], "default"),
        (["train.steps=100"], "steps=100"),
        (["train.steps=5", "model.width=32"], "steps=5_width=32"),
        (["model.width=32", "train.steps=5"], "steps=5_width=32"),
        (["train.steps=5", "train.steps=9"], "steps=9"),
        (["train.steps=5", "sampler.steps=9"], "sampler.steps=9_train.steps=5"),
        (["seed=3"], "default"),
        (['denoiser={ use = "mlp", depth = 2 }'], "denoiser=mlp"),
        (["loss=[{use='mse'}, {use='rounding', weight=2}]"], "loss=mse+rounding"),
        (["dataset.root=/data/fotos é"], "root=fotos"),
    ],
)
def test_options_read_as_a_short_name(options, slug):
    assert options_slug(options) == slug


HOSTILE = ["../../etc/x", "/etc", "..", ".", "", "a/b", "a\0b", "\n", "é" * 300, "=" * 9, "~"]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_name_leads_out_of_the_runs_folder(tmp_path, text):
    """R14: the run lies two folders below the root, whatever the recipe and the options are."""
    for path in (
        run_path(tmp_path, text, [], 0, "ab"),
        run_path(tmp_path, "r", [text], 0, "ab"),
        run_path(tmp_path, "r", [f"{text}={text}", f"a.b={text}"], 0, text),
    ):
        assert path.resolve() == path
        assert path.parents[1] == tmp_path
        assert len(path.name) < 100 and not path.name.startswith((".", "-"))
        path.mkdir(parents=True, exist_ok=True)  # the file system takes it


# --------------------------------------------------------------------------------- create and open


def test_a_new_run_holds_its_recipe_and_provenance(tmp_path):
    run = create(tmp_path / "runs", options=("train.steps=100",))
    assert run.path == tmp_path / "runs" / "extra_token" / "steps=100-s0-01234567"
    assert run.recipe_text() == "seed = 0\n"
    assert json.loads((run.path / "provenance.json").read_text()) == {"seed": 0}
    assert run.checkpoints.is_dir() and not run.finished and run.last_step is None
    assert RunDir.open(run.path).path == run.path
    assert runs(tmp_path / "runs") == [run.path]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("steps", "finished", "said"),
    [
        ([], False, "unfinished, without a checkpoint\n    go on with --resume, or"),
        ([500, 1000], False, "its last checkpoint is of step 1000\n    go on with --resume, or"),
        ([500], True, "this run has finished, and is not overwritten\n    run it again with"),
    ],
)
def test_a_run_that_exists_is_never_overwritten(tmp_path, steps, finished, said):
    run = create(tmp_path)
    for step in steps:
        (run.checkpoints / f"step-{step:08d}").mkdir()
    if finished:
        run.finish({"bleu": 0.5})
    before = contents(tmp_path)
    with pytest.raises(RunError) as error:
        create(tmp_path)
    for words in (str(run.path), said, "another seed (--set seed=N)", "--runs DIR"):
        assert words in str(error.value)
    assert contents(tmp_path) == before


def test_what_is_no_run_is_not_overwritten_either(tmp_path):
    path = run_path(tmp_path, "extra_token", [], 0, "0123456789")
    path.mkdir(parents=True)
    (path / "thesis.txt").write_text("precious")
    with pytest.raises(RunError, match="something that is no run is in the way"):
        create(tmp_path)
    assert contents(path) == {"thesis.txt": b"precious"}


CREATE = """
import sys
from pathlib import Path
from cdlm.rundir import RunDir
RunDir.create(Path(sys.argv[1]), "extra_token", [], 0, "0123456789abcdef", "theirs", {})
"""


def test_a_run_made_by_another_process_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    real = os.rename

    def rename(source, target):
        if Path(source).is_dir():  # the last moment before the run is there
            assert python(CREATE, tmp_path).returncode == 0
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(RunError, match="unfinished, without a checkpoint"):
        create(tmp_path)
    assert [run.name for run in (tmp_path / "extra_token").iterdir()] == ["default-s0-01234567"]
    assert RunDir.open(runs(tmp_path)[0]).recipe_text() == "theirs"


def test_a_kill_while_creating_leaves_nothing_in_the_way(tmp_path):
    die = """
import os
from pathlib import Path
real = os.rename
os.rename = lambda source, target: os._exit(9) if Path(source).is_dir() else real(source, target)
"""
    assert python(die + CREATE, tmp_path).returncode == 9
    assert len(list((tmp_path / "extra_token").iterdir())) == 1  # the half-made folder
    assert runs(tmp_path) == []
    run = create(tmp_path)
    assert list((tmp_path / "extra_token").iterdir()) == [run.path]


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunError) as error:
        create(tmp_path / "runs" / "deep")
    assert str(error.value).startswith(f"{tmp_path / 'runs'}: can't make the run's folder there")
    assert "Not a directory" in str(error.value) and "--runs DIR" in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_told(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="can't make the run's folder there: Permission denied"):
        create(tmp_path)


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("call", ["mkdir", "write", "fsync", "rename"])
def test_a_create_that_fails_says_why_and_leaves_nothing(tmp_path, monkeypatch, call, reason):
    def fail(*args, **kwargs):
        raise OSError(reason, os.strerror(reason))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(RunError, match=os.strerror(reason)):
            create(tmp_path)
    assert contents(tmp_path) == {}
    create(tmp_path)


def test_open_names_the_runs_nearby(tmp_path):
    run = create(tmp_path / "runs", seed=1)
    wrong = run.path.with_name("default-s2-01234567")
    for path in (wrong, tmp_path / "runs", run.path.parent, tmp_path / "run" / "extra_token"):
        with pytest.raises(RunError) as error:
            RunDir.open(path)
        assert f"{path}: there is no run here" in str(error.value)
        assert run.path.name in str(error.value)


def test_open_of_a_place_inside_a_run_names_the_run(tmp_path):
    run = create(tmp_path)
    for path in (run.recipe, run.checkpoints, run.checkpoints / "step-00000001"):
        with pytest.raises(RunError, match=f"inside the run {run.path}"):
            RunDir.open(path)


@pytest.mark.parametrize("path", [Path("nowhere"), Path("a\0b"), Path("x" * 300), Path("/")])
def test_open_of_nonsense_is_an_error_for_people(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="there is no run here"):
        RunDir.open(path)


# ----------------------------------------------------------------------------------------- records


def test_records_come_back_as_they_went(tmp_path):
    run = create(tmp_path)
    records = [{"step": 1, "value": 0.1}, {"text": "é\u2028\r\n \udcff"}, {"list": [1, None]}]
    for record in records:
        run.append(METRICS, record)
    assert run.records(METRICS) == records
    assert run.records("samples.jsonl") == []


def test_numbers_that_json_lacks_become_null(tmp_path):
    run = create(tmp_path)
    run.append(METRICS, {"loss": float("nan"), "more": [float("inf"), 1.5]})
    run.finish({"loss": float("-inf")})
    assert run.records(METRICS) == [{"loss": None, "more": [None, 1.5]}]
    assert run.summary() == {"loss": None} and run.finished


def test_a_line_torn_at_any_byte_is_dropped_and_written_over(tmp_path):
    run = create(tmp_path)
    place = run.path / METRICS
    run.append(METRICS, {"step": 1})
    whole = place.read_bytes()
    run.append(METRICS, {"step": 2, "name": "long" * 3000})
    last = place.read_bytes()[len(whole) :]
    for cut in (*range(30), 5000, len(last) - 2, len(last) - 1):
        place.write_bytes(whole + last[:cut])
        assert run.records(METRICS) == [{"step": 1}]
        run.append(METRICS, {"step": 3})
        assert run.records(METRICS) == [{"step": 1}, {"step": 3}]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    run = create(tmp_path)
    (run.path / METRICS).write_text('{"step": 1}\n{"step\n{"step": 3}\n')
    with pytest.raises(RunError, match=r"metrics.jsonl, line 2: not a record"):
        run.records(METRICS)


def test_rewind_gives_the_file_that_an_undisturbed_run_has(tmp_path):
    run, place = create(tmp_path), create(tmp_path, seed=1).path / METRICS
    for step in range(1, 11):
        run.append(METRICS, {"step": step, "loss": step / 3})
        if step <= 6:
            RunDir(place.parent).append(METRICS, {"step": step, "loss": step / 3})
    run.rewind(6)
    assert (run.path / METRICS).read_bytes() == place.read_bytes()
    run.rewind(6)
    assert [record["step"] for record in run.records(METRICS)] == [1, 2, 3, 4, 5, 6]


# -------------------------------------------------------------------------------------------- lock

HOLD = """
import sys
from pathlib import Path
from cdlm.rundir import RunDir
with RunDir.open(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_kept_out_until_the_first_is_killed(tmp_path):
    run = create(tmp_path)
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLD, str(run.path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"process {other.pid} works in this run"), run.lock():
            pytest.fail("two processes hold the lock")
        other.kill()
        other.wait()
    for _ in range(2):
        with run.lock():
            pass


def test_who_waits_for_the_lock_gets_it_when_the_first_has_ended(tmp_path):
    run = create(tmp_path)
    hold = f"""
import pathlib, sys, time
from cdlm.rundir import RunDir
with RunDir(pathlib.Path({str(run.path)!r})).lock():
    print("held", flush=True)
    sys.stdin.read()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", hold],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "held\n"
    threading.Timer(0.2, other.stdin.close).start()
    with run.lock(wait=True):
        assert other.wait(timeout=10) == 0
    other.stdout.close()


def test_a_run_is_found_by_its_recipes_hash_whatever_it_is_called(tmp_path):
    digest = "0123456789abcdef"
    assert cdlm.rundir.find(tmp_path, digest) is None
    create(tmp_path, "nameless")  # says nothing of its hash
    assert cdlm.rundir.find(tmp_path, digest) is None
    one, two = (
        RunDir.create(tmp_path, name, (), 0, digest, "seed = 0\n", {"hash": digest})
        for name in ("one", "two")
    )
    assert cdlm.rundir.find(tmp_path, digest) in (one.path, two.path)
    two.finish({})
    assert cdlm.rundir.find(tmp_path, digest) == two.path
    assert cdlm.rundir.find(tmp_path, digest[:8] + "another") is None
    (two.path / "provenance.json").write_text("torn")
    assert cdlm.rundir.find(tmp_path, digest) == one.path


def test_locking_sweeps_what_dead_writers_left(tmp_path):
    run = create(tmp_path)
    dead = python("import os; print(os.getpid())").stdout.strip()
    left = run.path / f".summary.json.tmp-{dead}-{dead}"
    left.write_text("half")
    with run.lock():
        assert not left.exists()


# ---------------------------------------------------------------------------------- files in whole


@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_write_that_fails_leaves_the_old_file_or_the_new(tmp_path, monkeypatch, call, nth):
    path, real, calls = tmp_path / "file", getattr(os, call), []
    write_bytes(path, b"old")

    def fail_once(*args, **kwargs):
        calls.append(args)
        if len(calls) == nth:
            raise OSError(errno.EIO, "Input/output error")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail_once)
        try:
            write_bytes(path, b"new")
        except OSError:
            assert path.read_bytes() in (b"old", b"new")
        else:
            assert len(calls) < nth and path.read_bytes() == b"new"
    assert calls
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_draft_left_by_an_error_changes_nothing(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), draft(path) as place:
        place.write_text("half of the new")
        raise KeyboardInterrupt
    assert contents(tmp_path) == {"file": b"old"}


def test_a_large_file_is_written_whole_by_short_writes(tmp_path, monkeypatch):
    real, data = os.write, bytes(range(256)) * 40
    monkeypatch.setattr(os, "write", lambda file, rest: real(file, rest[:1000]))
    write_bytes(tmp_path / "file", data)
    assert (tmp_path / "file").read_bytes() == data


def test_sweep_leaves_all_that_is_not_a_dead_writers(tmp_path):
    dead = python("import os; print(os.getpid())").stdout.strip()
    kept = {"file", ".hidden", f".a.tmp-{os.getpid()}-1", ".a.tmp-x-1", f"a.tmp-{dead}-1"}
    for name in (*kept, f".a.tmp-{dead}-1", f".b.tmp-{dead}-1"):
        (tmp_path / name).write_text("")
    sweep(tmp_path, "a")
    assert {p.name for p in tmp_path.iterdir()} == kept | {f".b.tmp-{dead}-1"}
    sweep(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == kept
    sweep(tmp_path / "missing")


# -------------------------------------------------------------------------------------- provenance


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository with one commit, as the current folder."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    (tmp_path / "a.txt").write_text("one\n")
    for words in ("init", "add .", "-c user.name=n -c user.email=e commit -m m"):
        subprocess.run(["git", *words.split()], check=True, capture_output=True)
    return tmp_path


def test_provenance_tells_commit_and_changes(repository):
    git = provenance(["cdlm", "run"], seed=3)["git"]
    assert len(git["commit"]) == 40 and git["changed"] == [] and git["diff"] == ""
    (repository / "a.txt").write_text("two\n")
    (repository / "new.txt").write_text("")
    git = provenance(["cdlm", "run"], seed=3)["git"]
    assert git["changed"] == [" M a.txt", "?? new.txt"]
    assert "-one\n+two\n" in git["diff"]


def test_a_huge_change_is_cut_and_said_to_be(repository):
    (repository / "a.txt").write_text("x" * 10 * DIFF_BYTES)
    diff = provenance([], seed=0)["git"]["diff"]
    assert DIFF_BYTES < len(diff) < DIFF_BYTES + 100
    assert diff.endswith("bytes in all]\n")


def test_provenance_without_git_or_repository_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    if shutil.which("git"):
        assert "not a git repository" in provenance([], seed=0)["git"]["reason"]
    monkeypatch.setenv("PATH", str(tmp_path))
    git = provenance([], seed=0)["git"]
    assert git["commit"] is None and "git" in git["reason"]


def test_provenance_is_json_that_repeats_the_run(tmp_path):
    record = provenance(["cdlm", "run", "\udcff"], seed=3, threads=2, plugins={"film": "1.0"})
    write_json(tmp_path / "provenance.json", record)
    assert json.loads((tmp_path / "provenance.json").read_text()) == record
    assert record["argv"] == ["cdlm", "run", "\udcff"]
    assert (record["seed"], record["threads"], record["plugins"]) == (3, 2, {"film": "1.0"})
    assert record["versions"]["python"].startswith(f"{sys.version_info.major}.")
    assert record["started"].endswith("+00:00")


# ------------------------------------------------------------------------------------------ places


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CDLM_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert places.cache_dir() == tmp_path / ".cache" / "cdlm"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the specification
    assert places.cache_dir() == tmp_path / ".cache" / "cdlm"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert places.cache_dir() == Path("/xdg/cdlm")
    monkeypatch.setenv("CDLM_CACHE", "~/mine")
    assert places.cache_dir() == tmp_path / "mine"


def test_the_spine_does_not_import_torch():
    code = "import sys, cdlm.rundir, cdlm.doctor, cdlm.places; print('torch' in sys.modules)"
    done = python(code)
    assert done.stdout == "False\n", done.stderr
