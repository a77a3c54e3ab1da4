"""A small shop of images and captions for tests of mining, its random vectors, and options without guards."""

import io

import numpy as np
from PIL import Image as PILImage

from mmtune.contracts import Embeddings
from mmtune.recipe.mining_block import MiningOptions


def smooth_image(seed, n=48):
    """A smooth picture, so that re-encoding and scaling leave its low frequencies alone."""
    rng = np.random.default_rng(seed)
    coarse = PILImage.fromarray(rng.integers(0, 255, (12, 12, 3), np.uint8))
    return coarse.resize((n, n), PILImage.Resampling.BICUBIC)


def encoded_image(picture, kind="PNG", **how):
    out = io.BytesIO()
    picture.save(out, kind, **how)
    return out.getvalue()


COLOURS = ["red", "blue", "green"]


def content_vectors(data, seed=0, dim=16):
    """Random unit vectors for every distinct content."""
    out = {}
    for m in data.modalities:
        v = np.zeros((len(data), dim), np.float32)
        for label in np.unique(data.labels[m]):
            x = np.random.default_rng([seed, int(label) & 0xFFFFFFFF]).standard_normal(dim)
            v[data.labels[m] == label] = (x / np.linalg.norm(x)).astype(np.float32)
        out[m] = Embeddings(data.ids, data.groups, data.labels, v, "print")
    return out


def unguarded(**more):
    return MiningOptions(guards={"relative_margin": None, "near_duplicates": False, "hub_cap": None}, **more)
