"""Makes environments with several versions of transformers, and keeps what each of them saves and computes.

    python -m tests.versions.build DIRECTORY [VERSION ...]

DIRECTORY keeps the environments: a version's packages lie over those of the Python that runs this, so that torch is
installed once. The files go to `tests/versions/files/VERSION`, which `tests/versions/test_*.py` read. It takes minutes,
and the network for packages that are not installed yet. 4.50 knows Qwen2.5-VL alone; Qwen2.5-Omni came with 4.52.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

VERSIONS = ("4.50.3", "4.52.4", "4.57.6", "5.0.0", "5.24.0")
REPOSITORY = Path(__file__).resolve().parents[2]
FILES = Path(__file__).resolve().parent / "files"
PROGRAM = """
import sys, transformers
from pathlib import Path
from tests.versions import probe, save
if transformers.__version__ != sys.argv[1]:
    sys.exit(f"expected transformers {sys.argv[1]}, got {transformers.__version__} from {transformers.__file__}")
save.main(Path(sys.argv[2]))
probe.main(Path(sys.argv[2]))
"""


def make_environment(directory: Path, version: str) -> Path:
    """A directory of packages with one version of transformers, and the versions of what it needs."""
    environment = directory.resolve() / f"transformers-{version}"
    if not environment.is_dir():
        options = ["--quiet", "--no-input", "--disable-pip-version-check", "--target", str(environment)]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, f"transformers=={version}"], check=True)
    return environment


def write_files(environment: Path, version: str) -> None:
    """Runs `save` and `probe` under a version, and puts what they leave in the place of what was there."""
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / version
        variables = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(environment), str(REPOSITORY)]),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "PYTHONWARNINGS": "ignore",
        }
        subprocess.run([sys.executable, "-c", PROGRAM, version, str(written)], check=True, env=variables, cwd=scratch)
        shutil.rmtree(FILES / version, ignore_errors=True)
        shutil.copytree(written, FILES / version)
    size = sum(path.stat().st_size for path in (FILES / version).rglob("*") if path.is_file())
    print(f"{version}: {size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="of the environments")
    parser.add_argument("versions", nargs="*", default=VERSIONS, metavar="VERSION", help=f"of {', '.join(VERSIONS)}")
    arguments = parser.parse_args()
    FILES.mkdir(exist_ok=True)
    for version in arguments.versions:
        write_files(make_environment(arguments.directory, version), version)


if __name__ == "__main__":
    main()
