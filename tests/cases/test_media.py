"""Pictures of public bug reports that were once read wrongly here: each test makes the input and states what is right."""

import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from mmtune.data.decode import decode_row
from mmtune.data.shards import open_data
from tests.support import checkpoints

THIN = """
import resource, sys, PIL.Image, mmtune
model = mmtune.load(sys.argv[1], device="cpu")
peaks = []
for size in ((64, 64), (int(sys.argv[2]), int(sys.argv[3]))):
    model.encode(image=[PIL.Image.new("RGB", size, (9, 9, 9))])
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(peaks[1] - peaks[0])
"""


@pytest.mark.parametrize("family, size", [("hf", (60_000, 1)), ("hf", (1, 60_000)), ("open_clip", (60_000, 1))])
def test_a_thin_picture_takes_the_memory_of_its_crop(family, size, tmp_path):
    """Depth-Anything-V2 #256: a picture of 1 x N pixels, whose short side was resized to the tower's before the centre crop."""
    make = checkpoints.clip if family == "hf" else checkpoints.open_clip_dir
    command = [sys.executable, "-c", THIN, f"{family}:{make(tmp_path / 'model')}", *map(str, size)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.split()[-1]) < 50  # MB; resized first it is a picture of 32 x 1,920,000


@pytest.mark.parametrize("top", [1.0, 255.0, 4000.0])
def test_a_float_picture_keeps_its_tones(top, verb, tmp_path):
    """oculante #313: a 32-bit float TIFF with values 0..1 was packed as black."""
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    PIL.Image.fromarray(ramp * np.float32(top)).save(tmp_path / "f32.tif")
    (tmp_path / "t.csv").write_text("image,text\nf32.tif,ramp\n")
    assert verb("pack", tmp_path / "t.csv", "--out", tmp_path / "d")[0] == 0
    pixels = np.asarray(decode_row(open_data(str(tmp_path / "d")), 0, "image"))[..., 0]
    assert np.abs(pixels[0].astype(float) - 255 * ramp[0]).max() <= 1
