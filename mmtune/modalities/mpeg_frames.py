"""The true length of an MP3, which libsndfile takes from its first frame.

An encoder may write a Xing or Info frame first, with the number of frames. Without one, libsndfile estimates the number from the size
of the file: too many samples are promised where an ID3 tag is part of that size, and the end of a file with a variable bit rate is
never read where its first frames are larger than the mean. So frames are counted here (ISO/IEC 11172-3, 13818-3, layer III), and
a file whose first frame does not state their number gets a Xing frame that does.
"""

import functools
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ID3_HEADER = 10
TAG_NAMES = re.compile(rb"Xing|Info|VBRI")
SYNC = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")
"""The first two bytes of a frame of layer III: MPEG 2.5, 2 or 1, with or without a checksum."""
PADDING = re.compile(rb"\0*")
KBPS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Whether it is MPEG 1 -> bit rates by their index; 0 is a rate of the encoder's own."""
RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
"""Version -> sample rates by their index."""


class Frame(NamedTuple):
    """One frame: its offset and size in bytes, what all frames of a file have in common, and the bytes of its side information."""

    offset: int
    size: int
    kind: tuple[int, int]
    side: int


def frame_at(data: bytes, offset: int) -> Frame | None:
    """Return the frame of layer III that starts at `offset`; None if none does, or if its bit rate is the encoder's own."""
    if not SYNC.match(data, offset) or offset + 4 > len(data):
        return None
    version, bits, mono = data[offset + 1] >> 3 & 3, data[offset + 2], data[offset + 3] >> 6 == 3
    index, rate_index = bits >> 4, bits >> 2 & 3
    if index in (0, 15) or rate_index == 3:
        return None
    first = version == 3
    rate = RATES[version][rate_index]
    size = (144 if first else 72) * KBPS[first][index] * 1000 // rate + (bits >> 1 & 1)
    return Frame(offset, size, (version, rate), (17 if mono else 32) if first else (9 if mono else 17))


def frames(data: bytes) -> Iterator[Frame]:
    """Yield the frames of a file in their order. Bytes between frames, such as tags, are passed over."""
    offset, kind = _after_tags(data), None
    while (match := SYNC.search(data, offset)) is not None:
        frame = frame_at(data, match.start())
        if frame is None or (kind is not None and frame.kind != kind):
            offset = match.start() + 1
            continue
        after = frame.offset + frame.size
        following = frame_at(data, after)
        is_last = after >= len(data) - 128 - 32  # followed by nothing, or by a tag: ID3v1 has 128 bytes, APEv2 32 and more
        is_found = kind is None or match.start() != offset  # not where the frame before it ends
        if is_found and not is_last and (following is None or following.kind != frame.kind):
            offset = match.start() + 1  # two bytes inside something else that look like a frame
            continue
        yield frame
        offset, kind = after, frame.kind


def _after_tags(data: bytes) -> int:
    """Return the offset behind the ID3v2 tags at the start."""
    offset = 0
    while data[offset : offset + 3] == b"ID3" and len(data) >= offset + ID3_HEADER:
        a, b, c, d = data[offset + 6 : offset + ID3_HEADER]
        footer = ID3_HEADER if data[offset + 5] & 0x10 else 0
        offset += ID3_HEADER + footer + (a << 21 | b << 14 | c << 7 | d)
    return offset


def is_mp3(data: bytes) -> bool:
    """Return whether a file starts with a frame of layer III, perhaps behind ID3 tags and bytes of value 0."""
    padding = PADDING.match(data, _after_tags(data))
    frame = frame_at(data, padding.end()) if padding else None
    following = frame and frame_at(data, frame.offset + frame.size)
    return frame is not None and (following is None or following.kind == frame.kind)


def with_frame_count(data: bytes) -> bytes:
    """Return an MP3 whose first frame states how many follow; other files, and an MP3 that states enough, as they are.

    An MP3 that states more frames than it has is truncated, and stays as it is, too.
    """
    if not is_mp3(data):
        return data
    found = list(frames(data))
    if not found:
        return data
    first = found[0]
    tag = TAG_NAMES.search(data, first.offset, first.offset + first.size)
    if tag is not None and tag.start() <= first.offset + 4 + 32:
        found = found[1:]
        if not found or (tag.group() != b"VBRI" and _stated(data, tag.start()) >= len(found) - 1):
            return data
    return _xing_frame(data, found[0], len(found)) + data[found[0].offset :]


def _stated(data: bytes, tag: int) -> int:
    """Return the number of frames that a Xing or Info tag states; 0 if it states none."""
    has_frames = data[tag + 7 : tag + 8] and data[tag + 7] & 1
    return int.from_bytes(data[tag + 8 : tag + 12], "big") if has_frames else 0


def _xing_frame(data: bytes, like: Frame, count: int) -> bytes:
    """Return a silent frame like the frame `like`, without a checksum, that states `count` frames."""
    head = bytearray(data[like.offset : like.offset + 4])
    head[1] |= 1  # no checksum
    for index in range(1, 15):  # the smallest bit rate whose frame holds the tag
        head[2] = index << 4 | head[2] & 0b1100
        frame = frame_at(bytes(head), 0)
        assert frame is not None
        tag = bytes(head) + bytes(like.side) + b"Xing" + (1).to_bytes(4, "big") + count.to_bytes(4, "big")
        if frame.size >= len(tag):
            return tag.ljust(frame.size, b"\0")
    raise AssertionError("a frame of the highest bit rate holds 48 bytes")


def readable_sound(path: str | Path) -> str | io.BytesIO:
    """Return what libsndfile reads a file from: its path, or the bytes of an MP3, see `with_frame_count`. Raises OSError."""
    path = Path(path)
    with path.open("rb") as f:
        start = f.read(3)
    if start != b"ID3" and not SYNC.match(start):
        return str(path)
    stat = path.stat()
    return io.BytesIO(_counted_file(str(path), stat.st_mtime_ns, stat.st_size))


@functools.lru_cache(maxsize=1)  # a recording is opened once for each of its clips
def _counted_file(path: str, mtime: int, size: int) -> bytes:
    return with_frame_count(Path(path).read_bytes())
