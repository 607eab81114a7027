"""The floor plan: which room may import which, and that nothing else stands loose on the top level."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
# From the ground up; a room imports only rooms of lower floors. A file on avjax's top level is a room of its own, and
# `avjax` is the public face, which loads names when they are first used.
FLOORS = (
    ("nearest", "progress", "intervals", "devices"),
    ("models", "statistics"),
    ("families", "media"),
    ("prompts",),
    ("edits", "model"),
    ("metrics", "provenance", "caching", "checkpoint"),
    ("engine",),
    ("sweeping",),
    ("runs", "tpu", "converters"),
    ("analysis",),
    ("organism",),
    ("demo", "avjax"),
    ("cli",),
    ("sweeps",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
DATA = {"assets"}  # no code
MOST_LOOSE = 8


def modules() -> dict[str, Path]:
    """Files by dotted name."""
    files = [path for package in ("avjax", "converters", "sweeps") for path in (ROOT / package).rglob("*.py")]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]
    return dict(zip(names, files, strict=True))


MODULES = modules()


def room(module: str) -> str:
    top, *rest = module.split(".")
    return rest[0] if top == "avjax" and rest else top


def imports(module: str) -> Iterator[str]:
    """Modules of this project that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{module}: expected absolute imports"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in MODULES or node.module in MODULES:
                    yield whole if whole in MODULES else node.module


def test_every_room_has_a_floor():
    assert {room(module) for module in MODULES} - DATA == FLOOR.keys()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_import_runs_up(module: str):
    for other in imports(module):
        if room(other) != room(module):
            assert FLOOR[room(other)] < FLOOR[room(module)], f"{module} imports {other}, which is not below it"


def test_no_files_import_each_other():
    edges = {module: set(imports(module)) - {module} for module in MODULES if module != "avjax"}
    assert tuple(graphlib.TopologicalSorter(edges).static_order())


def test_few_files_are_loose():
    loose = {path.name for path in (ROOT / "avjax").glob("*.py")} - {"__init__.py"}
    assert len(loose) <= MOST_LOOSE


def test_a_folder_hides_no_public_function():
    """Importing a submodule puts its name on `avjax`: a folder called `sweep` would replace the function."""
    import avjax

    folders = {path.parent.name for path in (ROOT / "avjax").glob("*/__init__.py")}
    assert {name for name in folders & set(avjax.__all__) if not isinstance(getattr(avjax, name), ModuleType)} == set()
