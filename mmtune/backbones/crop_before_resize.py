"""The centre crop of a resized image without the resized image: of a strip of 8,000 x 1 pixels, whose shorter side a tower wants
224 pixels long, that would be a picture of 1,792,000 x 224."""

import math

import PIL.Image as PILImage

MAX_OVER_CROP = 8
"""A resized image with at most this many times the crop's pixels is made; images of usual shapes are below it."""
SUPPORT = 3  # pixels that a filter reaches to either side at most (Lanczos), in pixels of the smaller of the two images


def shortest_edge_size(width: int, height: int, edge: int) -> tuple[int, int]:
    """(width, height) after the shorter side is resized to `edge`, as torchvision and transformers round it."""
    longer = int(edge * max(width, height) / min(width, height))
    return (edge, longer) if width <= height else (longer, edge)


def centre_crop_of_resized(
    image: PILImage.Image, resized: tuple[int, int], crop: tuple[int, int], resample: int
) -> PILImage.Image | None:
    """What `image.resize(resized, resample)` and a centre crop give, by Pillow's own arithmetic, in the memory of the crop.

    resized, crop: (width, height); a side of `resized` that is shorter than the crop's stays as it is. None where `resized` is
    small enough to be made (MAX_OVER_CROP).
    """
    (width, height), (crop_width, crop_height) = resized, (min(a, b) for a, b in zip(resized, crop, strict=True))
    if width * height <= MAX_OVER_CROP * crop_width * crop_height:
        return None
    x, first_x, last_x = _window(image.width, width, crop_width)
    y, first_y, last_y = _window(image.height, height, crop_height)
    part = image.crop((first_x, first_y, last_x, last_y))
    box = (x[0] - first_x, y[0] - first_y, min(x[1] - first_x, part.width), min(y[1] - first_y, part.height))
    return part.resize((crop_width, crop_height), PILImage.Resampling(resample), box=box)


def _window(length: int, resized: int, crop: int) -> tuple[tuple[float, float], int, int]:
    """Of one side: where the crop begins and ends in the image, and the first and the end of the pixels that it depends on."""
    scale = length / resized
    start = round((resized - crop) / 2)
    begin, end = start * scale, min((start + crop) * scale, float(length))
    margin = math.ceil(SUPPORT * max(scale, 1.0)) + 1
    return (begin, end), max(0, math.floor(begin) - margin), min(length, math.ceil(end) + margin)
