"""Draw products with a kind, a colour and one fine detail. Two products of one kind and colour differ only in the detail.

Drawings use a coordinate system of 100 x 100 units, are deformed by a pose, and are supersampled four times.
"""

import colorsys
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from PIL import Image, ImageDraw

Point = tuple[float, float]
Color = tuple[int, int, int]
OVERSAMPLE = 4  # drawn at four times the size and reduced, for smooth edges

COLORS: dict[str, Color] = {
    "navy": (44, 62, 112),
    "red": (186, 50, 52),
    "green": (58, 122, 82),
    "grey": (142, 146, 152),
    "mustard": (206, 160, 52),
    "plum": (116, 62, 116),
}
BANDS: dict[str, Color] = {
    "a turquoise band": (40, 205, 200),
    "an orange band": (250, 130, 30),
    "a pink band": (250, 120, 190),
    "a lime band": (170, 225, 50),
    "a violet band": (150, 90, 240),
    "a black band": (25, 25, 30),
}


@dataclass(frozen=True)
class Pose:
    """The deformation of a drawing.

    lean, bend: horizontal shift in units, linear and curved over the height
    flare: widening towards the bottom, as a share of the width
    arms: angle of the sleeves in degrees
    """

    lean: float = 0.0
    bend: float = 0.0
    flare: float = 0.0
    arms: float = 18.0


class Pen:
    """Draws in units, deformed by a pose, so that details are deformed together with the product."""

    def __init__(self, size: int, pose: Pose):
        self.side = size * OVERSAMPLE
        self.scale = self.side / 100
        self.pose = pose
        self.canvas = Image.new("RGBA", (self.side, self.side), (0, 0, 0, 0))
        self.draw = ImageDraw.Draw(self.canvas)

    def at(self, point: Point) -> Point:
        x, y = point
        p, down = self.pose, (point[1] - 50) / 50
        x = 50 + (x - 50) * (1 + p.flare * down) + p.lean * down + p.bend * math.sin(math.pi * y / 100)
        return x * self.scale, y * self.scale

    def shape(self, points: Iterable[Point], fill: Color, edge: Color | None = None, width: float = 1.4) -> None:
        mapped = [self.at(p) for p in points]
        self.draw.polygon(mapped, fill=fill)
        if edge:
            self.draw.line([*mapped, mapped[0], mapped[1]], fill=edge, width=round(width * self.scale), joint="curve")

    def line(self, points: Iterable[Point], fill: Color, width: float = 1.4) -> None:
        mapped, w = [self.at(p) for p in points], max(1, round(width * self.scale))
        self.draw.line(mapped, fill=fill, width=w, joint="curve")
        for x, y in (mapped[0], mapped[-1]):
            self.draw.ellipse((x - w / 2, y - w / 2, x + w / 2, y + w / 2), fill=fill)

    def disc(self, center: Point, radius: float, fill: Color, edge: Color | None = None, width: float = 1.2) -> None:
        self.shape(arc(center, radius, radius, 0, 360), fill, edge, width)

    def done(self) -> Image.Image:
        return self.canvas.reduce(OVERSAMPLE)


def arc(center: Point, rx: float, ry: float, start: float, stop: float, steps: int = 28) -> list[Point]:
    """Return points of an ellipse from `start` to `stop` degrees (0 = right, 90 = down)."""
    angles = (math.radians(start + (stop - start) * i / steps) for i in range(steps + 1))
    return [(center[0] + rx * math.cos(a), center[1] + ry * math.sin(a)) for a in angles]


def shade(color: Color, factor: float) -> Color:
    """Return the colour with its lightness multiplied by `factor`."""
    h, lightness, s = colorsys.rgb_to_hls(*(c / 255 for c in color))
    r, g, b = colorsys.hls_to_rgb(h, min(0.96, lightness * factor), s)
    return round(r * 255), round(g * 255), round(b * 255)


def contrast(color: Color) -> Color:
    """Return the colour of thread and buttons: cream on dark products, nearly black on light ones."""
    return (250, 243, 222) if 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] < 128 else (34, 30, 34)


def _garment(pen: Pen, color: Color, sleeve: float, wide: float = 24) -> None:
    """Draw the body, and two sleeves of length `sleeve` at the angle `pose.arms`."""
    edge, side = shade(color, 0.5), shade(color, 0.86)
    for sign in (-1, 1):
        swing = math.radians(pen.pose.arms)
        x0, y0 = 50 + sign * (wide - 2), 22.0
        dx, dy = sign * math.sin(swing), math.cos(swing)
        x1, y1 = x0 + dx * sleeve, y0 + 2 + dy * sleeve
        shoulder = [(x0 - sign * 3, 42.0), (x0 - sign * 5, 17.0), (x0 + sign * 6 * dy, y0 - 1)]
        cuff = [(x1 + sign * 5.5 * dy, y1 - 3 * abs(dx)), (x1 - sign * 5.5 * dy, y1 + 4 * abs(dx))]
        pen.shape([*shoulder, *cuff], side, edge)
    half = [(wide * 0.5, 14.0), (wide, 20.0), (wide - 2, 45.0), (wide - 1, 88.0)]
    pen.shape([*((50 + x, y) for x, y in half), *((50 - x, y) for x, y in reversed(half))], color, edge)


def _jacket(pen: Pen, color: Color, detail: str) -> None:
    """Draw a zipped jacket; the detail is the stitching on both front panels."""
    _garment(pen, color, 50)
    dark, thread = shade(color, 0.5), contrast(color)
    pen.line([(50, 20), (50, 87)], dark, 1.6)
    pen.shape([(38, 13), (50, 23), (62, 13), (58, 9), (42, 9)], shade(color, 0.72), dark)
    for x in (38.0, 62.0):
        _stitch(pen, x, 30, 82, detail, thread)


def _stitch(pen: Pen, x: float, top: float, bottom: float, detail: str, thread: Color) -> None:
    n = 6
    step = (bottom - top) / n
    ys = [top + step * i for i in range(n + 1)]
    match detail:
        case "straight stitching":
            pen.line([(x, top), (x, bottom)], thread, 2.6)
        case "double stitching":
            for dx in (-4.2, 4.2):
                pen.line([(x + dx, top), (x + dx, bottom)], thread, 2.6)
        case "zigzag stitching":
            pen.line([(x + (-6 if i % 2 else 6), y) for i, y in enumerate(ys)], thread, 2.6)
        case "cross stitching":
            for y in ys[:-1]:
                pen.line([(x - 4.6, y + 0.5), (x + 4.6, y + step - 1.5)], thread, 2.2)
                pen.line([(x + 4.6, y + 0.5), (x - 4.6, y + step - 1.5)], thread, 2.2)
        case "ladder stitching":
            for y in ys:
                pen.line([(x - 5.5, y), (x + 5.5, y)], thread, 2.6)
        case "dotted stitching":
            for y in ys:
                pen.disc((x, y), 2.7, thread)


COUNTS = {"two": 2, "three": 3, "four": 4, "five": 5}


def _shirt(pen: Pen, color: Color, detail: str) -> None:
    """Draw a short-sleeved shirt; the detail is the number of buttons and their position."""
    _garment(pen, color, 20, 27)
    dark, white = shade(color, 0.5), contrast(color)
    number, _, where = detail.partition(" buttons")
    x = {"": 50.0, " on the left": 38.0, " on the right": 62.0}[where]
    pen.shape([(x - 5, 20), (x + 5, 20), (x + 5, 87), (x - 5, 87)], shade(color, 1.12), shade(color, 0.7), 0.8)
    pen.shape([(39, 12), (50, 24), (45, 30), (34, 18)], shade(color, 1.2), dark)
    pen.shape([(61, 12), (50, 24), (55, 30), (66, 18)], shade(color, 1.2), dark)
    n = COUNTS[number]
    for i in range(n):
        pen.disc((x, 36 + 45 * i / (n - 1)), 4.2, white, dark, 0.8)


def _bag(pen: Pen, color: Color, detail: str) -> None:
    """Draw a tote bag; the detail is the number and position of its pockets."""
    dark, thread = shade(color, 0.5), contrast(color)
    for y in (0, 5):
        pen.line(arc((50, 38 + y), 17, 30, 180, 360), shade(color, 0.65 if y else 0.5), 3.4)
    pen.shape([(16, 36), (84, 36), (89, 84), (85, 90), (15, 90), (11, 84)], color, dark)
    pen.line([(16, 41), (84, 41)], shade(color, 0.7), 1.6)
    boxes = {
        "a left pocket": [(18, 55, 46, 80)],
        "a right pocket": [(54, 55, 82, 80)],
        "two pockets": [(18, 55, 46, 80), (54, 55, 82, 80)],
        "a wide pocket": [(18, 55, 82, 80)],
        "a high pocket": [(36, 46, 64, 62)],
        "no pocket": [],
    }[detail]
    for x0, y0, x1, y1 in boxes:
        pen.shape([(x0, y0), (x1, y0), (x1, y1 - 3), (x1 - 3, y1), (x0 + 3, y1), (x0, y1 - 3)], shade(color, 0.78), thread, 1.9)
        pen.shape([(x0, y0), (x1, y0), (x1, y0 + 5), ((x0 + x1) / 2, y0 + 10), (x0, y0 + 5)], shade(color, 1.18), thread, 1.6)


def _cap(pen: Pen, color: Color, detail: str) -> None:
    """Draw a cap; the detail is the shape of its badge."""
    dark, light = shade(color, 0.5), contrast(color)
    pen.shape([*arc((50, 60), 36, 42, 180, 360), (86, 64), (14, 64)], color, dark)
    for x in (27.0, 73.0):
        pen.line([(50, 18), (50 + (x - 50) * 0.75, 32), (x, 63)], shade(color, 0.7), 1.2)
    pen.disc((50, 18), 2.6, dark)
    brim = [(12.0, 62.0), *arc((50, 66), 40, 9, 180, 360), (90.0, 66.0), *arc((50, 70), 42, 14, 0, 180), (8.0, 68.0)]
    pen.shape(brim, shade(color, 0.74), dark)
    x, y, r = 50.0, 43.0, 13.5
    corners = {"a square badge": (4, 45, 0.98), "a diamond badge": (4, 0, 1.2), "a triangle badge": (3, -90, 1.15)}
    if detail in corners:
        n, turn, grow = corners[detail]
        pen.shape(arc((x, y + (2 if n == 3 else 0)), r * grow, r * grow, turn, turn + 360, n)[:-1], light)
    elif detail == "a star badge":
        points = [
            (x + s * math.sin(a), y - s * math.cos(a))
            for i in range(10)
            for a, s in [(math.pi * i / 5, r * 1.2 if i % 2 == 0 else r * 0.45)]
        ]
        pen.shape(points, light)
    elif detail == "a round badge":
        pen.disc((x, y), r * 0.92, light)
    elif detail == "a ring badge":
        pen.disc((x, y), r * 0.98, light)
        pen.disc((x, y), r * 0.52, color)


def _mug(pen: Pen, color: Color, detail: str) -> None:
    """Draw a mug; the detail is the colour of its band."""
    dark, cream = shade(color, 0.5), (246, 242, 232)
    pen.line(arc((70, 52), 20, 20, -75, 75), dark, 8.6)
    pen.line(arc((70, 52), 20, 20, -75, 75), shade(color, 0.85), 6)
    pen.shape([(20, 20), *arc((46, 82), 26, 7, 180, 0), (72, 20)], color, dark)
    pen.shape([*arc((46, 44), 26, 6, 180, 0), *arc((46, 68), 26, 6.5, 0, 180)], cream)
    pen.shape([*arc((46, 47), 26, 6, 180, 0), *arc((46, 65), 26, 6.5, 0, 180)], BANDS[detail])
    pen.line([(20, 20), (20, 80)], dark, 1.4)
    pen.line([(72, 20), (72, 80)], dark, 1.4)
    pen.shape(arc((46, 20), 26, 7, 0, 360), shade(color, 0.55), dark)
    pen.line([(27, 30), (27, 76)], shade(color, 1.35), 1.6)


def _sweater(pen: Pen, color: Color, detail: str) -> None:
    """Draw a knitted sweater; the detail is the shape of its collar."""
    _garment(pen, color, 48)
    dark, inside, rim = shade(color, 0.5), shade(color, 0.34), contrast(color)
    for y in (80.0, 83.5, 87.0):
        pen.line([(28, y), (72, y)], shade(color, 0.72), 1.0)
    cuts: dict[str, list[Point]] = {
        "a round collar": arc((50, 14), 12, 17, 0, 180),
        "a V collar": [(64, 14), (50, 46), (36, 14)],
        "a square collar": [(63, 14), (63, 33), (37, 33), (37, 14)],
        "a boat collar": arc((50, 15), 20, 8, 0, 180),
        "a keyhole collar": [*arc((50, 14), 11, 9, 0, 80), *arc((50, 34), 5, 10, -70, 250), *arc((50, 14), 11, 9, 100, 180)],
    }
    if cut := cuts.get(detail):
        pen.shape(cut, inside)
        pen.line(cut, rim, 3.0)
    else:  # a rolled collar
        pen.shape([(38, 4), (62, 4), (64, 21), (36, 21)], shade(color, 1.2), dark)
        pen.line([(36.5, 21), (63.5, 21)], rim, 3.0)
        pen.line([(38, 5), (62, 5)], rim, 2.4)


Artist = Callable[[Pen, Color, str], None]
KINDS: dict[str, tuple[Artist, tuple[str, ...]]] = {
    "jacket": (
        _jacket,
        (
            "straight stitching",
            "zigzag stitching",
            "cross stitching",
            "double stitching",
            "ladder stitching",
            "dotted stitching",
        ),
    ),
    "shirt": (
        _shirt,
        (
            "two buttons",
            "three buttons",
            "five buttons",
            "five buttons on the left",
            "four buttons",
            "five buttons on the right",
        ),
    ),
    "bag": (_bag, ("a left pocket", "two pockets", "a wide pocket", "a high pocket", "a right pocket", "no pocket")),
    "cap": (_cap, ("a star badge", "a ring badge", "a square badge", "a triangle badge", "a round badge", "a diamond badge")),
    "mug": (_mug, tuple(BANDS)),
    "sweater": (
        _sweater,
        ("a round collar", "a V collar", "a square collar", "a rolled collar", "a boat collar", "a keyhole collar"),
    ),
}


def draw(kind: str, color: Color, detail: str, pose: Pose, size: int) -> Image.Image:
    """Draw the product on a transparent background, RGBA [size, size]."""
    pen = Pen(size, pose)
    KINDS[kind][0](pen, color, detail)
    return pen.done()
