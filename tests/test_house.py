"""The rules of the house that can be read from the source: who imports whom, what is listed where."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayecg.archives.base import Archive
from rayecg.archives.catalogue import ARCHIVES
from rayecg.core.catalogue import look_up
from rayecg.core.errors import ERROR_CODES
from rayecg.core.experiment import Experiment
from rayecg.core.settings import load_settings
from rayecg.models.catalogue import ARCHITECTURES
from rayecg.tasks.task import load_task, task_names

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "rayecg"
LINES = 450

SECOND = {"archives", "metrics", "models", "signal", "tasks"}
STAGES = {"audit", "explain", "report", "score", "search", "shards", "train"}
#: What each room may import beside itself.
ALLOWED = {
    "core": set(),
    **{room: {"core"} for room in SECOND},
    "archives": {"core", "signal"},
    "models": {"core", "signal"},
    **{stage: {"core", *SECOND} for stage in STAGES},
    "search": {"core", *SECOND, "train"},  # its trials are runs
    "pipeline": {"core", *SECOND, *STAGES},
    "rayecg": {"archives", "core", "models"},  # the Python door
    "jobs": {"core", *SECOND, "pipeline", "rayecg"},
}
WITHOUT_TORCH_AND_RAY = ("audit", "report")


def sources() -> list[Path]:
    return sorted([*PACKAGE.rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])


def room_of(file: Path) -> str:
    if ROOT / "jobs" in file.parents:
        return "jobs"
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return "rayecg" if parts == ("__init__",) else parts[0]


def imported(file: Path) -> Iterator[str]:
    """Yield the full names of all modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def strangers(room: str, names: Iterator[str]) -> list[str]:
    """Give the imported names of the package that a room may not import."""
    found = []
    for name in names:
        if name.split(".")[0] in ("rayecg", "jobs"):
            parts = [*name.split("."), "rayecg"]
            of = "jobs" if parts[0] == "jobs" else parts[1]
            # `from rayecg import pipeline` is the pipeline, `import rayecg` the door.
            of = of if of in ALLOWED else "rayecg"
            if of not in ALLOWED[room] | {room}:
                found.append(name)
    return found


def test_imports_go_one_way():
    wrong = {
        str(file.relative_to(ROOT)): found
        for file in sources()
        if (found := strangers(room_of(file), imported(file)))
    }
    assert wrong == {}


def test_every_room_has_its_place():
    rooms = {room_of(file) for file in sources()}
    assert rooms <= set(ALLOWED)
    assert {"core", "shards", "train", "score", "audit", "pipeline", "jobs"} <= rooms


@pytest.mark.parametrize(
    ("room", "name"),
    [
        ("core", "rayecg.signal.leads"),
        ("archives", "rayecg.models.catalogue"),
        ("models", "rayecg.tasks.task"),
        ("signal", "rayecg.archives.base"),
        ("train", "rayecg.score.run"),
        ("report", "rayecg.audit.findings"),
        ("shards", "rayecg.pipeline"),
        ("shards", "rayecg"),
        ("pipeline", "jobs.train"),
        ("tasks", "rayecg.load"),
    ],
)
def test_a_wrong_direction_would_be_seen(room, name):
    assert strangers(room, iter([name, "rayecg.core.files", "numpy"])) == [name]


@pytest.mark.parametrize("room", WITHOUT_TORCH_AND_RAY)
def test_audit_and_report_need_neither_torch_nor_ray(room):
    files = [file for file in sources() if room_of(file) == room]
    assert files
    for file in files:
        tops = {name.split(".")[0] for name in imported(file)}
        assert not tops & {"ray", "safetensors", "torch", "wfdb"}, file


def modules_of(room: str) -> list[str]:
    files = [file for file in sources() if room_of(file) == room and PACKAGE in file.parents]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names]


def test_importing_loads_nothing_heavy():
    """What a room must not need, its imports must not bring in on another's account."""
    light = [
        name for room in ("rayecg", "core", *WITHOUT_TORCH_AND_RAY) for name in modules_of(room)
    ]
    everything = light + [name for room in sorted({*SECOND, "shards"}) for name in modules_of(room)]
    script = f"""
import importlib, sys, threading
for name in {light!r}:
    importlib.import_module(name)
assert not {{"ray", "torch", "wfdb"}} & set(sys.modules), sorted(sys.modules)
for name in {everything!r}:
    importlib.import_module(name)
assert not {{"ray", "wfdb", "pyts"}} & set(sys.modules)
assert threading.active_count() == 1
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


def test_every_catalogue_entry_resolves():
    n_catalogues = 0
    for file in PACKAGE.rglob("catalogue.py"):
        module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
        for name, table in vars(module).items():
            if name.isupper() and isinstance(table, dict):
                n_catalogues += 1
                for entry in table:
                    assert callable(look_up(table, entry, name)), (file, entry)
    assert n_catalogues >= 2


def public(folder: str) -> Iterator[tuple[str, object]]:
    """Yield `module:attribute` and what it names, for all public names that a room defines."""
    for name in modules_of(folder):
        module = importlib.import_module(name)
        for attribute, value in vars(module).items():
            if not attribute.startswith("_") and getattr(value, "__module__", None) == name:
                yield f"{name}:{attribute}", value


def test_every_archive_kind_is_listed():
    kinds = {
        place
        for place, value in public("archives")
        if inspect.isclass(value) and issubclass(value, Archive) and value is not Archive
    }
    assert kinds == set(ARCHIVES.values())
    for kind in ARCHIVES.values():
        module, attribute = kind.split(":")
        assert getattr(importlib.import_module(module), attribute).index is not Archive.index


def is_architecture(value: object) -> bool:
    """Whether it can be built from inputs and number of outputs alone."""
    if not callable(value):
        return False
    parameters = list(inspect.signature(value).parameters.values())
    if [parameter.name for parameter in parameters[:2]] != ["inputs", "n_outputs"]:
        return False
    return all(parameter.default is not parameter.empty for parameter in parameters[2:])


def test_every_architecture_is_listed():
    found = {place for place, value in public("models") if is_architecture(value)}
    assert found == set(ARCHITECTURES.values())


def test_every_task_file_loads():
    assert {file.stem for file in (PACKAGE / "tasks").glob("*.yaml")} == set(task_names())
    for name in task_names():
        load_task(type(Experiment().task)(name))


def test_experiments_and_defaults_name_what_is_listed():
    files = sorted((ROOT / "jobs" / "experiments").glob("*.yaml"))
    assert files
    for file in (None, *files):
        found = load_settings(Experiment, file)
        assert {each.name for each in found.architectures} <= set(ARCHITECTURES), file
        assert found.archive.kind in ARCHIVES, file
        assert found.task.name in task_names(), file


def strings(file: Path) -> tuple[set[str], set[str]]:
    """Give a file's string constants, and those that are the code of a `RecordError`.

    Keys of the table of codes itself do not count.
    """
    texts, codes = set(), set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    table = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ERROR_CODES"
    ]
    listed = {id(node) for root in table for node in ast.walk(root)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in listed
        ):
            texts.add(node.value)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("RecordError"):
            first = node.args[0]
            codes |= {first.value} if isinstance(first, ast.Constant) else set()
    return texts, codes


def test_error_codes_are_all_documented_and_all_used():
    found = [strings(file) for file in PACKAGE.rglob("*.py")]
    raised = set().union(*(codes for _, codes in found))
    assert raised <= set(ERROR_CODES)
    assert len(raised) > 8
    mentioned = set().union(*(texts for texts, _ in found))
    assert set(ERROR_CODES) <= mentioned


def tracked() -> list[Path]:
    """List the files that belong to the project: those of git, or all where there is no git."""
    if not (ROOT / ".git").exists():
        return [file for top in ("rayecg", "jobs", "tests") for file in (ROOT / top).rglob("*.*")]
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [file for name in names.split("\0") if name and (file := ROOT / name).is_file()]


def test_no_file_is_long():
    code = (".py", ".yaml", ".html", ".css", ".toml")
    folders = ("rayecg", "jobs", "tests", "benchmarks")
    long = {
        str(file.relative_to(ROOT)): n_lines
        for file in tracked()
        if file.suffix in code and file.relative_to(ROOT).parts[0] in folders
        if (n_lines := file.read_text(encoding="utf-8").count("\n")) > LINES
    }
    assert long == {}


def test_no_drawer_for_everything():
    names = {file.stem for file in tracked()}
    assert not names & {"utils", "util", "helpers", "misc", "common"}


#: A path of somebody's machine, but not the end of another path (`OUT/work`, `{out}/work`).
MACHINE_PATH = re.compile(r"(?<![\w.*>}\])/-])/(?:root|work|home/ray)(?![\w-])")
#: Files that name such paths, and why.
MAY_NAME_PATHS = {
    "cluster.yaml": "where the project lies inside its containers",
    "tests/test_cluster_yaml.py": "tests that file",
    "tests/test_report.py": "tests that a report holds no such path",
}


@pytest.mark.parametrize("top", ["root", "work", "home/ray"])
def test_a_machine_path_would_be_seen(top):
    for text in (f"in /{top}/data", f'"/{top}"', f"=/{top}", f"(/{top}/main)"):
        assert MACHINE_PATH.search(text), text
    assert not MACHINE_PATH.search(f"{top}/data")


@pytest.mark.parametrize(
    "text", ["OUT/work/train", "{out}/work", "reports/*/work/", "/workers", "a/root", "<out>/work"]
)
def test_other_paths_are_not_taken_for_one(text):
    assert not MACHINE_PATH.search(text)


def test_no_machine_paths():
    found = []
    for file in tracked():
        place = file.relative_to(ROOT).as_posix()
        if place in MAY_NAME_PATHS:
            continue
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # an image
        found += [f"{place}:{i}" for i, line in enumerate(lines, 1) if MACHINE_PATH.search(line)]
    assert found == []


def test_the_zoo_holds_every_architecture():
    zoo = load_settings(Experiment, ROOT / "jobs" / "experiments" / "zoo_smoke.yaml")
    assert {each.name for each in zoo.architectures} == set(ARCHITECTURES)
