"""Finds sounds that end before their header says: a download that broke off, a full disk.

The rule: a sound that lacks more than 1% of what its header states is rejected, with what is missing, as a truncated picture is.
WAV, RF64, W64, AIFF and AU state their length; an MP3 does in the Xing or Info frame that encoders write, and a cut one without it
is just a shorter MP3. FLAC, Ogg and Opus are refused by libsndfile itself. A WAV written to a pipe states no length (its size is
2 GB or more) and is whole.
"""

import re
from typing import TYPE_CHECKING

from mmtune.errors import Rejected

if TYPE_CHECKING:
    from soundfile import SoundFile

TOLERANCE = 0.01
MPEG_SLACK = 2304
"""Samples of an MP3: its header counts whole frames, and a decoder may leave out the first and the last."""
UNKNOWN_SIZE = 0x7FFF0000
"""Bytes from which on a size was written by a program that did not know it."""
STATED = re.compile(r"^ *(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
"""A size in libsndfile's log of a header, and the one that the file allows."""


def check_header_length(file: "SoundFile") -> None:
    """Raise Rejected where the file has fewer bytes of samples than its header states."""
    for stated, present in STATED.findall(file.extra_info):
        if 0 < int(stated) < UNKNOWN_SIZE:
            _check(file.frames, round(file.frames * int(stated) / max(1, int(present))), file.samplerate)


def check_decoded_length(file: "SoundFile", frames: int) -> None:
    """Raise Rejected where `frames` samples were decoded of a header that states more."""
    _check(frames, file.frames, file.samplerate, MPEG_SLACK if file.format in ("MP3", "MPEG") else 0)


def _check(present: int, stated: int, rate: int, slack: int = 0) -> None:
    if present + slack < stated * (1 - TOLERANCE):
        raise Rejected(f"truncated: {present / rate:.4g} of {stated / rate:.4g} s are there")
