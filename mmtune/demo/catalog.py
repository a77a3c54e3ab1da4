"""Draw the demo's catalog: a source folder with photos and captions of products, some of which differ in one detail only.

A product (SKU) is a kind, a colour and a detail (`products.KINDS`). Its photos vary in pose, position, size, rotation,
background, light, shadow and noise. The column `text` describes the product in full; `coarse` names only its kind. The poses of
the validation photos do not occur in training.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from mmtune.demo.products import COLORS, KINDS, Color, Pose, draw
from mmtune.demo.source_folder import SourceFolder, rng_of
from mmtune.errors import DataError

TEXTS = ("{color} {kind} with {detail}", "{kind} in {color}, {detail}", "{detail} on a {color} {kind}")
COARSE = ("a {kind}", "photo of a {kind}", "{kind} from the shop")
DETAILS = 4
"""Number of details used for every kind and colour first. The other details are used only if more SKUs are wanted."""
POSES = {"base": range(10), "train": range(10), "val": range(10, 13)}
_BASE, _PHOTO, _POSE = range(3)  # each purpose has its own random generators, see `rng_of`


def skus() -> list[tuple[str, str, str]]:
    """Return all products (kind, colour, detail) in the order in which `write_catalog` uses them.

    The first DETAILS details of every kind and colour come first.
    """
    everything = []
    for start, stop in ((0, DETAILS), (DETAILS, None)):
        for i in range(len(COLORS)):
            for k, (kind, (_, details)) in enumerate(KINDS.items()):
                color = list(COLORS)[(i + k) % len(COLORS)]
                everything += [(kind, color, d) for d in details[start:stop]]
    return everything


def write_catalog(
    out: str | Path,
    *,
    seed: int = 0,
    skus: int = 48,
    train_per_sku: int = 20,
    val_per_sku: int = 5,
    base_per_kind: int = 80,
    size: int = 80,
) -> Path:
    """Draw the catalog into the folder `out`: photos/*.jpg, train.csv, val.csv and base.csv. Returns `out`.

    skus: number of products
    train_per_sku, val_per_sku: photos per product in train.csv and val.csv
    base_per_kind: photos per kind in base.csv
    size: width and height of the photos in pixels

    Columns: id, image, text, coarse, group (the product), category (the kind), color, detail, pose.

    base.csv (id, image, text, group, category) is a generic corpus of products in arbitrary colours. Its captions are noisy
    like
    those of the web: the kind is right, but colours and details are random if they are mentioned. A base model trained on it
    can tell apart kinds only.

    Deterministic: the same arguments give the same bytes. Raises DataError if `skus` is 0 or more than can be drawn.
    """
    products = _products(skus)
    source = SourceFolder(out)
    for s, (kind, color, detail) in enumerate(products):
        group = "-".join((kind, color, *detail.removeprefix("a ").removeprefix("an ").split())).lower()
        first = 0
        for split, count in (("train", train_per_sku), ("val", val_per_sku)):
            for n, (pose, photo) in enumerate(_photos(seed, s, kind, COLORS[color], detail, split, count, size), first):
                name = f"{group}-{n:03d}"
                fields = {"kind": kind, "color": color, "detail": detail}
                # counted over the photos of a SKU, so that every caption template occurs in both splits
                text, coarse = TEXTS[n % len(TEXTS)].format(**fields), COARSE[n % len(COARSE)].format(**fields)
                image = source.file(f"photos/{split}/{name}.jpg", photo)
                source.add(
                    split,
                    {
                        "id": name,
                        "image": image,
                        "text": text,
                        "coarse": coarse,
                        "group": group,
                        "category": kind,
                        "color": color,
                        "detail": detail,
                        "pose": f"pose-{pose}",
                    },
                )
            first += count
    _base(source, seed, base_per_kind, size)
    return source.close()


def _products(count: int) -> list[tuple[str, str, str]]:
    products = skus()
    if not 1 <= count <= len(products):
        raise DataError(f"skus={count}: the demo can draw 1 to {len(products)} products")
    return products[:count]


def _base(source: SourceFolder, seed: int, per_kind: int, size: int) -> None:
    """Write the generic corpus: each kind in random colours and details, with several photos of up to 12 products per kind."""
    for k, (kind, (_, details)) in enumerate(KINDS.items()):
        for a in range(min(12, per_kind)):
            rng = rng_of(seed, _BASE, k, a)
            color = tuple(int(v) for v in rng.integers(40, 215, 3))
            detail = details[int(rng.integers(len(details)))]
            count = len(range(a, per_kind, 12))
            shots = _photos(seed, 1000 + 12 * k + a, kind, (color[0], color[1], color[2]), detail, "base", count, size)
            for n, (_, photo) in enumerate(shots):
                name = f"base-{kind}-{a:02d}-{n:03d}"
                random_fields = rng.choice(list(COLORS)), details[int(rng.integers(len(details)))]
                fields = {"kind": kind, "color": random_fields[0], "detail": random_fields[1]}
                text = (*COARSE, *TEXTS)[int(rng.integers(6))].format(**fields)
                image = source.file(f"photos/base/{name}.jpg", photo)
                source.add("base", {"id": name, "image": image, "text": text, "group": f"any-{kind}", "category": kind})


def _photos(
    seed: int, sku: int, kind: str, color: Color, detail: str, split: str, count: int, size: int
) -> Iterator[tuple[int, bytes]]:
    """Yield (pose, JPEG bytes) of `count` photos of one product, cycling through the poses of the split."""
    poses = POSES[split] if split != "base" else [POSES["base"][sku % len(POSES["base"])]]
    arts: dict[int, Image.Image] = {}
    for n in range(count):
        pose = poses[n % len(poses)]
        if pose not in arts:
            arts[pose] = draw(kind, color, detail, _pose(seed, pose), round(size * 1.25))
        rng = rng_of(seed, _PHOTO, sku, list(POSES).index(split), n)
        yield pose, _jpeg(photograph(arts[pose], rng, size))


def _pose(seed: int, number: int) -> Pose:
    rng = rng_of(seed, _POSE, number)
    lean, bend, flare = rng.uniform(-4, 4), rng.uniform(-3.5, 3.5), rng.uniform(-0.05, 0.09)
    return Pose(float(lean), float(bend), float(flare), float(rng.uniform(8, 34)))


def photograph(art: Image.Image, rng: np.random.Generator, size: int) -> Image.Image:
    """Turn the drawing `art` into an RGB photo [size, size]: random position, lit backdrop, shadow and sensor noise."""
    turn, grow = np.deg2rad(rng.uniform(-9, 9)), rng.uniform(0.84, 1.02)
    shift = rng.uniform(-0.045, 0.045, 2) * size
    cos, sin, k = np.cos(turn), np.sin(turn), art.width / (size * grow)
    c, half = art.width / 2, size / 2
    # affine map from output pixels to pixels of the drawing: undo the shift, the rotation about the centre, and the scaling
    m = [k * cos, k * sin, 0.0, -k * sin, k * cos, 0.0]
    m[2] = c - m[0] * (half + shift[0]) - m[1] * (half + shift[1])
    m[5] = c - m[3] * (half + shift[0]) - m[4] * (half + shift[1])
    placed = art.transform((size, size), Image.Transform.AFFINE, m, Image.Resampling.BICUBIC)

    pixels = np.asarray(placed, np.float32)
    alpha = pixels[..., 3:] / 255
    blurred = placed.getchannel("A").filter(ImageFilter.GaussianBlur(size * 0.035))
    drop = np.roll(np.asarray(blurred, np.float32)[..., None] / 255, (round(size * 0.03), round(size * 0.02)), (0, 1))
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)[..., None]
    scene = _backdrop(rng, x, y) * (1 - rng.uniform(0.3, 0.5) * drop)
    scene = scene * (1 - alpha) + pixels[..., :3] * alpha

    gx, gy = rng.uniform(-0.13, 0.13, 2)
    warm = rng.uniform(-0.04, 0.04)
    light = rng.uniform(0.86, 1.1) * (1 + gx * x + gy * y) * np.array([1 + warm, 1, 1 - warm], np.float32)
    scene = scene * light + rng.standard_normal(scene.shape, np.float32) * np.float32(rng.uniform(1, 4.5))
    return Image.fromarray(scene.clip(0, 255).round().astype(np.uint8))


def _backdrop(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Paint a background in a soft tint, float32 [size, size, 3]: plain paper, planks, or a wall above a table."""
    tint = rng.uniform(176, 236) + rng.uniform(-14, 14, 3)
    scene = np.broadcast_to(tint.astype(np.float32), (*x.shape[:2], 3))
    style = rng.integers(3)
    if style == 1:  # planks at a random angle
        angle, width = rng.uniform(0, np.pi), rng.uniform(0.3, 0.5)
        across = (x * np.cos(angle) + y * np.sin(angle)) / width + 20
        tone = rng.uniform(0.9, 1.04, 48).astype(np.float32)[across.astype(int)]
        scene = scene * tone * np.where(across % 1 < 0.05, np.float32(0.84), np.float32(1))
    elif style == 2:
        scene = np.where(y > rng.uniform(0.35, 0.75), scene * np.float32(rng.uniform(0.78, 0.9)), scene)
    return scene.astype(np.float32)


def _jpeg(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=90, subsampling=0)
    return out.getvalue()
