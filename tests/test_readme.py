"""The README's examples run as they stand."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from avjax.organism import world

README = Path(__file__).parent.parent / "README.md"


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    clips = tmp_path / "avjax-demo" / "clips"
    clips.mkdir(parents=True)
    world.clip("test", 0, "counterfactual").write(clips / "conflict-00.mp4")
    code, analysis = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "README.md", "exec"), names)
        exec(compile(analysis, "README.md", "exec"), names)
    (shown,) = re.findall(r"# (Prompt\(.*\))", code)
    assert printed.getvalue().splitlines()[0] == shown and names["prompt"].counts() == {
        "text": 36,
        "audio": 51,
        "video": 18,
    }
    assert "a dog is seen, ticking is heard" in code
    clip = world.clip("test", 0, "counterfactual")
    assert (world.KINDS[clip.seen or 0].thing, world.KINDS[clip.heard or 0].sound) == ("dog", "ticking")
    assert set(names["gain"].dims) == {"sample", "key", "layers", "heads"}
    assert names["clean"].text and names["deep"].touched.edges > 0
    effects = names["effects"]
    assert effects["logit_diff"].dims == ("key", "layers", "sample")
    assert abs(effects["logit_diff"] - effects["logit_diff_clean"]).max() > 0.1


def test_what_the_readme_links_to_is_there():
    targets = re.findall(r"\]\(([^)\s#]+)", README.read_text())
    files = [target for target in targets if "://" not in target]
    assert "docs/demo.png" in files
    for target in files:
        assert (README.parent / target).exists(), target
