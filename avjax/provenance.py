"""What decided the numbers of a dataset or a run: versions, device, checkpoint, the user's own code."""

import functools
import importlib.metadata
import json
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import jax

from avjax.model import Model

CONVERTED = "avjax.json"  # what the converters say of a checkpoint
GIT_SECONDS = 10.0  # a repository on a slow disk is left out
PACKAGES = ("avjax", "jax", "jaxlib", "flax", "transformers", "numpy")


def provenance(model: Model, **settings: Any) -> dict[str, Any]:
    """Plain attributes for a dataset; `settings` that are None are left out."""
    device = jax.local_devices()[0]
    return {
        "checkpoint": model.host.source,
        "family": model.config.family,
        "dtype": str(model.dtype),
        "device": device_name(device.platform, device.device_kind),
        **_versions(),
        **{name: value for name, value in settings.items() if value is not None},
    }


def device_name(platform: str, kind: str) -> str:
    """The platform and the kind of a device, each once: "cpu", "gpu NVIDIA H200", "TPU v5 lite"."""
    return kind if kind.lower().split()[:1] == [platform.lower()] else f"{platform} {kind}".strip()


@functools.cache
def _versions() -> dict[str, str]:
    return {f"version_{name}": importlib.metadata.version(name) for name in PACKAGES}


def run_provenance(model: Model, directory: Path, **settings: Any) -> dict[str, Any]:
    """What `provenance` says, and more that a run on disk keeps.

    Args:
      directory: of the specification, or where the script was started; its git commit is kept.
    """
    devices = [*model.mesh.devices.flat] if model.mesh is not None else jax.local_devices()[:1]
    return {
        **provenance(model, **settings),
        "checkpoint": str(Path(model.host.source).absolute()),
        "devices": len(devices),
        "mesh": None if model.mesh is None else dict(model.mesh.shape),
        "licence": licence(Path(model.host.source)),
        "git": git_state(directory),
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def git_state(directory: Path) -> dict[str, Any] | None:
    """The commit of a directory, and whether files that git knows differ from it; None where there is no commit."""
    # It neither writes to the repository nor runs the monitor that the repository may name.
    git = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(directory)]

    def git_output(*words: str) -> str:
        done = subprocess.run([*git, *words], capture_output=True, text=True, check=True, timeout=GIT_SECONDS)
        return done.stdout

    try:
        return {
            "commit": git_output("rev-parse", "HEAD").strip(),
            "dirty": bool(git_output("status", "--porcelain", "-uno")),
        }
    except (OSError, UnicodeDecodeError, subprocess.SubprocessError):
        return None


def licence(directory: Path) -> str | None:
    """Of a checkpoint: what its conversion kept, its card declares, or a licence file begins with."""
    converted = directory / CONVERTED
    if converted.is_file():
        return json.loads(converted.read_text()).get("licence")
    card = directory / "README.md"
    if card.is_file():
        text = card.read_text(errors="replace")
        for key in ("license_name", "license"):  # `license` says only "other" where the name stands apart
            match = re.search(rf"^{key}:\s*(\S+)", text, re.MULTILINE)
            if match:
                return match[1]
    for path in sorted(directory.glob("LICENSE*")):
        lines = (line.strip() for line in path.read_text(errors="replace").splitlines())
        return next((line for line in lines if line), None)
    return None
