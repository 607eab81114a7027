"""What a process imports before it needs it: seconds that everybody waits for."""

import subprocess
import sys
from pathlib import Path

CAPTION = """
import sys
import avjax
model = avjax.load("tiny-av")
prompt = model.prompt("Describe what you see and hear.", video=sys.argv[1])
avjax.generate(model, prompt, "answer->video", max_new_tokens=2)
print(*{"torch", "xarray", "zarr", "pandas", "pyarrow", "h5py", "matplotlib", "orbax"} & sys.modules.keys())
"""


def test_a_caption_needs_neither_torch_nor_tables(clip: Path):
    done = subprocess.run([sys.executable, "-c", CAPTION, str(clip)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
