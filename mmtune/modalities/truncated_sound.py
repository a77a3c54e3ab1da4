"""Detect truncated sound files, e.g. from an interrupted download or a full disk.

A sound is rejected if more than 1% of the duration in its header is missing. WAV, RF64, W64, AIFF and AU files have their
length in the header. MP3 files have it in the Xing or Info frame, which most encoders write; a truncated MP3 without that frame
cannot be detected, and its frames are counted instead (`mpeg_frames`). Truncated FLAC, Ogg and Opus files are rejected by libsndfile itself. A WAV file that was written to a pipe
does not have its length in the header (the header has a size of 2 GB or more), and is accepted.
"""

import re
from typing import TYPE_CHECKING

from mmtune.errors import Rejected

if TYPE_CHECKING:
    from soundfile import SoundFile

TOLERANCE = 0.01
MPEG_SLACK = 2304
"""Samples that may be missing from an MP3: its header counts whole frames (of 1152 samples), of which a decoder may skip the
first and the last."""
UNKNOWN_SIZE = 0x7FFF0000
"""A size in a header, in bytes, that is at least this large means that the program that wrote the file did not know the
size."""
STATED = re.compile(r"^ *(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
"""Matches a line of libsndfile's log: the size in the header, and the size that the length of the file allows."""


def check_header_length(file: "SoundFile") -> None:
    """Raise Rejected if the file is shorter than its header says."""
    for stated, present in STATED.findall(file.extra_info):
        if 0 < int(stated) < UNKNOWN_SIZE:
            check_length(file.frames, round(file.frames * int(stated) / max(1, int(present))), file.samplerate)


def check_decoded_length(file: "SoundFile", frames: int) -> None:
    """Raise Rejected if fewer samples were decoded than the header says.

    frames: number of decoded samples of each channel
    """
    check_length(frames, file.frames, file.samplerate, MPEG_SLACK if file.format in ("MP3", "MPEG") else 0)


def check_length(present: int, stated: int, rate: int, slack: int = 0) -> None:
    """Raise Rejected if more than TOLERANCE of the samples are missing.

    present, stated: number of samples of a channel that the file has, and that its header says
    slack: number of samples that may always be missing
    """
    if present + slack < stated * (1 - TOLERANCE):
        raise Rejected(f"truncated: the file has {present / rate:.4g} s of the {stated / rate:.4g} s in its header")
