"""The methods of the benchmark, and a virtual environment for each.

Pins of one library would hold back another's, so none shares an environment with another or with avjax.
"""

import dataclasses
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

WORKERS = Path(__file__).parent / "workers"
TORCH = "torch==2.13.0"
TRANSFORMERS = "transformers==5.23.0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A worker, what it runs in, and what is said of it in the table.

    Attributes:
      environment: a directory's name; None is the interpreter that runs the benchmark.
    """

    script: str
    about: str
    environment: str | None = None
    requirements: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()


HF = ("numpy", TORCH, TRANSFORMERS)
METHODS = {
    "avjax": Method(script="with_avjax.py", about="replay sweep"),
    "hooks": Method(script="hooks.py", about="published hooks on HF, eager", environment="hooks", requirements=HF),
    "hooks_sdpa": Method(
        script="hooks.py",
        about="the same hooks, sdpa",
        environment="hooks",
        requirements=HF,
        arguments=("--attention", "sdpa"),
    ),
    "nnsight": Method(
        script="with_nnsight.py",
        about="nnsight traces, sdpa",
        environment="nnsight",
        requirements=(*HF, "nnsight==0.8.1"),
    ),
    "transformer_lens": Method(
        script="with_transformer_lens.py",
        about="TransformerLens bridge, its own attention",
        environment="transformer_lens",
        requirements=(*HF, "transformer_lens==4.3.0"),
    ),
    "pyvene": Method(
        script="with_pyvene.py",
        about="pyvene, sdpa",
        environment="pyvene",
        requirements=(*HF, "pyvene==0.1.8"),
    ),
    "strong": Method(
        script="strong.py",
        about="by hand: cached prompt, batched rows and suffixes, sdpa",
        environment="strong",
        requirements=HF,
    ),
}


def python_of(method: Method, directory: Path, reuse_current: bool = False) -> Path:
    """The method's interpreter; builds its environment when there is none.

    Args:
      reuse_current: methods that need no more than HF run in the interpreter of the benchmark, which has it with the
        test extra; workers state their versions.

    Raises:
      RuntimeError: pip could not install what the method needs; the message is pip's.
    """
    if method.environment is None or (reuse_current and method.requirements == HF):
        return Path(sys.executable)
    home = directory / method.environment
    python, done = home / "bin" / "python", home / "installed.txt"
    wanted = "\n".join(method.requirements) + "\n"
    if done.is_file() and done.read_text() == wanted:
        return python
    print(f"building {home}: {' '.join(method.requirements)}", flush=True)
    venv.create(home, with_pip=True, symlinks=True)
    _install(python, method.requirements)
    done.write_text(wanted)
    return python


def _install(python: Path, requirements: Sequence[str]) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", *requirements]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"pip failed in {python.parent.parent}:\n{ended.stderr[-2000:]}")
