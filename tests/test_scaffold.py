"""`cdlm new plugin` writes, for every kind, a package that works as it is."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import Command

import cdlm as package
from cdlm import scaffold
from cdlm.errors import CdlmError
from cdlm.registry import KINDS
from cdlm.testing import laws

TEMPLATE = Path(package.__file__).parent / "templates" / "plugin"


def installed(place: Path) -> Path:
    """What pip would write beside the package; the folder that goes on Python's path."""
    project = tomllib.loads((place / "pyproject.toml").read_text())["project"]
    info = place / "src" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    points = "\n".join(f"{k} = {v}" for k, v in project["entry-points"]["cdlm"].items())
    (info / "entry_points.txt").write_text(f"[cdlm]\n{points}\n")
    return place / "src"


def called(kind: str) -> str:
    return f"cdlm-my-{kind.replace('_', '-')}"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plugin of every kind, installed side by side."""
    folder = tmp_path_factory.mktemp("written")
    for kind in KINDS:
        scaffold.plugin(called(kind), kind, folder)
    return folder


def beside(folder: Path) -> dict[str, str]:
    """An environment in which all of them are installed."""
    paths = [installed(place) for place in sorted(folder.glob("cdlm-my-*"))]
    known = [str(Path(package.__file__).parents[1]), *map(str, paths)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(known), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def results(written: Path) -> dict[str, list[ElementTree.Element]]:
    """The cases of each plugin's own tests, all run by one pytest."""
    report = written / "report.xml"
    (written / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    subprocess.run(
        [*command, "--import-mode=importlib", f"--junitxml={report}", str(written)],
        env=beside(written), cwd=written, capture_output=True, timeout=300,
    )  # fmt: skip
    cases = ElementTree.parse(report).getroot().iter("testcase")
    found: dict[str, list[ElementTree.Element]] = {kind: [] for kind in KINDS}
    for case in cases:
        module = case.attrib["classname"].rpartition(".")[2]
        found[module.removeprefix("test_my_")].append(case)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_tests_of_a_new_plugin_pass(
    kind: str, results: dict[str, list[ElementTree.Element]]
) -> None:
    cases = results[kind]
    assert len(cases) == len(laws(kind)) + 2, "every law, can_be_built, recipe and study"
    for case in cases:
        assert not list(case), f"{case.attrib['name']}: {[it.get('message') for it in case]}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_is_written_against_public_names_alone(kind: str, written: Path) -> None:
    public = ["cdlm.errors", "cdlm.protocols", "cdlm.records", "cdlm.values", "cdlm.testing"]
    if kind == "process":  # where the others meet: it asks the network, and knows all parts
        public += ["cdlm.network", "cdlm.sample"]
    for path in (written / called(kind)).rglob("*.py"):
        for line in path.read_text().splitlines():
            if line.startswith(("from cdlm", "import cdlm")):
                assert line.split()[1] in ("cdlm", *public), f"{path.name}: {line}"


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_to_fill_in(kind: str, written: Path) -> None:
    place = written / called(kind)
    for path in (it for it in place.rglob("*") if it.is_file() and it.suffix != ".xml"):
        text = path.read_text()
        for word in ("DISTRIBUTION", "PACKAGE", "COMPONENT", "KIND", "CONTRACT", "CHOICE", "AXIS"):
            assert word not in text, f"{path}: {word}"


@pytest.mark.parametrize("kind", KINDS)
def test_its_manual_has_every_method_of_the_protocol(kind: str, written: Path) -> None:
    text = (written / called(kind) / "README.md").read_text()
    for name in scaffold.contract.contracts()[kind].methods:
        assert f"`{name}(" in text


def test_every_kind_has_a_component_to_begin_with() -> None:
    assert {path.stem for path in (TEMPLATE / "components").glob("*.py")} == set(KINDS)


def test_a_study_picks_the_new_component_and_its_like(written: Path) -> None:
    study = tomllib.loads(
        (written / called("loss") / "recipes" / "studies" / "my_loss.toml").read_text()
    )
    assert study["study"]["baseline"] == {"loss": "mse"}
    assert study["axis"]["loss"]["my_loss"]["loss"][0] == {"use": "my_loss", "weight": 0.3}
    assert study["axis"]["loss"]["mse"]["loss"][1:] == study["axis"]["loss"]["my_loss"]["loss"][1:]


# ----------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Film", '"Film" is no name for a package'),
        ("-x", "is no name for a package"),
        ("../film", "is no name for a package"),
        ("cdlm-lambda", '"lambda" is no name for a component'),
        ("cdlm-2d", '"2d" is no name for a component'),
        ("random", 'there is a Python package "random" already'),
        ("cdlm-cosine", 'cdlm 0.1.0 has a schedule called "cosine" already'),
    ],
)
def test_a_name_that_can_not_be_used_is_refused(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(CdlmError) as error:
        scaffold.plugin(name, "schedule", tmp_path)
    assert said.replace(" 0.1.0", "") in str(error.value).replace(" 0.1.0", "")
    assert not list(tmp_path.iterdir())


def test_an_unknown_kind_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(CdlmError, match='did you mean "schedule"'):
        scaffold.plugin("cdlm-mine", "schedul", tmp_path)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "cdlm-mine").mkdir()
    with pytest.raises(CdlmError, match="it is not overwritten"):
        scaffold.plugin("cdlm-mine", "schedule", tmp_path)


def test_a_class_takes_no_name_that_its_file_uses(tmp_path: Path) -> None:
    place = scaffold.plugin("cdlm-level", "schedule", tmp_path)
    text = (place / "src" / "cdlm_level" / "level.py").read_text()
    assert "class LevelSchedule:" in text and "import Level\n" in text


def test_a_folder_that_can_not_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CdlmError, match="can't be written: Not a directory"):
        scaffold.plugin("cdlm-mine", "schedule", tmp_path / "file")


def test_the_command_says_what_to_do_next(tmp_path: Path, cdlm: Command) -> None:
    said = cdlm("new", "plugin", "cdlm-mine", "--kind", "schedule", "--into", tmp_path)
    assert said.code == 0 and f"pip install -e {tmp_path}/cdlm-mine" in said.out
    again = cdlm("new", "plugin", "cdlm-mine", "--kind", "schedule", "--into", tmp_path)
    assert again.code == 2 and "it is not overwritten" in again.err
