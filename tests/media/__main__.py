"""`python -m tests.media FOLDER`: tries each media file of a folder against ffmpeg; exit status 1 on a difference."""

import shutil
import sys
from pathlib import Path

from tests.media.folder_check import differences, media_files


def main() -> int:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: python -m tests.media FOLDER")
    if shutil.which("ffprobe") is None or shutil.which("ffmpeg") is None:
        sys.exit("expected ffmpeg and ffprobe; install them, with `apt-get install ffmpeg` for one")
    files, wrong = media_files(Path(sys.argv[1])), 0
    for path in files:
        different = list(differences(path))
        wrong += bool(different)
        sys.stdout.writelines(f"{line}\n" for line in different)
        sys.stdout.flush()
    sys.stdout.write(f"{len(files)} files, {wrong} of them read otherwise than by ffmpeg\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
