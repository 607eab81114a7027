"""Options that commands share are the same on each of them, and reach what they bound."""

import dataclasses
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from avjax.cli import app
from avjax.cli.option_groups import with_option_groups
from avjax.cli.options import Commands
from avjax.devices.memory import checked_memory_bytes, default_memory_bytes, memory_limit
from avjax.organism import world
from avjax.organism.world import PROMPT

READING = {"fps", "min_pixels", "max_pixels", "sync", "media"}
RESOURCES = {"memory_bytes", "cache_dir", "no_cache"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    width: int = 2
    height: Annotated[int, typer.Option("--high")] = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    name: Annotated[str, typer.Option()]
    size: Size


def test_groups_become_options_and_come_back_as_groups():
    commands, seen = Commands(), []

    @commands.command()
    def draw(title: Annotated[str, typer.Option()], picture: Picture, twice: bool = False) -> None:
        seen.append((title, picture, twice))

    result = CliRunner().invoke(commands, ["--title", "a", "--name", "b", "--high", "7", "--twice"])
    assert result.exit_code == 0, result.output
    assert seen == [("a", Picture(name="b", size=Size(width=2, height=7)), True)]


def test_a_command_without_groups_stays_as_it_is():
    def command(title: str) -> None: ...

    assert with_option_groups(command) is command


def commands() -> dict[str, set[str]]:
    """Options of every command, by its words."""
    options, waiting = {}, [("avjax", get_command(app))]
    while waiting:
        name, command = waiting.pop()
        options[name] = {parameter.name for parameter in command.params}
        waiting += [(f"{name} {word}", sub) for word, sub in getattr(command, "commands", {}).items()]
    return options


@pytest.mark.parametrize("group", [READING, RESOURCES], ids=["reading", "resources"])
def test_a_command_takes_a_group_whole_or_not_at_all(group: set[str]):
    taking = {name: options & group for name, options in commands().items() if options & group}
    taking.pop("avjax cache", None)  # shows a directory, and needs nothing else
    assert len(taking) >= 10 and all(options == group for options in taking.values()), taking


def test_a_limit_of_memory_is_the_default_meanwhile():
    before = default_memory_bytes()
    with memory_limit(1234):
        assert checked_memory_bytes(None) == 1234 and checked_memory_bytes(99) == 99
        with memory_limit(None):
            assert checked_memory_bytes(None) > before / 4
        assert checked_memory_bytes(None) == 1234
    assert checked_memory_bytes(None) > before / 4


def test_an_analysis_keeps_to_the_memory_of_the_command_line(tmp_path: Path):
    clip = tmp_path / "clip.mp4"
    world.clip("test", 0, "counterfactual").write(clip)
    given = ["run", "knockout", "-m", "tiny-av", "-p", PROMPT, "-v", str(clip), "--answer", "ticking"]
    refused = CliRunner().invoke(app, [*given, "--memory-bytes", "1000"])
    assert refused.exit_code == 2 and "memory_bytes: expected at least" in refused.output, refused.output
