"""Damage files the way networks, disks, editors and programs do. Everything is a function of the random generator that is given."""

import copy
import json
import random
import struct
from collections.abc import Callable

Damage = Callable[[bytes, random.Random], bytes]
ODD_VALUES: list[object] = [
    None, True, -1, 0, 2**70, 1e308, float("nan"), "", "x" * 5000, "\ud800", "\0", "../../etc/passwd", "a\u2028b", [], {}, [[]],
    {"": {}}, [None] * 50, "1" * 6000,
]  # fmt: off


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _flip_bits(data: bytes, rng: random.Random) -> bytes:
    noisy = bytearray(data)
    for _ in range(rng.choice([1, 3, 30, 300])):
        noisy[rng.randrange(len(noisy))] ^= 1 << rng.randrange(8)
    return bytes(noisy)


def _swap_blocks(data: bytes, rng: random.Random) -> bytes:
    a, b, c = sorted(rng.randrange(len(data) + 1) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def _huge_length(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(min(len(data), 600))
    form = rng.choice(["<I", ">I", "<Q", ">Q", "<H"])
    number = rng.choice([2**31 - 1, 2**32 - 1, 2**63 - 1, 2**16 - 1, 0]) % 2 ** (8 * struct.calcsize(form))
    return data[:at] + struct.pack(form, number) + data[at + struct.calcsize(form) :]


def _wrong_encoding(data: bytes, rng: random.Random) -> bytes:
    return data.decode("latin-1").encode(rng.choice(["utf-16", "utf-16-be", "utf-8", "utf-32"]))


def _nuls(data: bytes, rng: random.Random) -> bytes:
    at, count = rng.randrange(len(data) + 1), rng.choice([1, 16, 4096])
    return data[:at] + bytes(count) + data[at + (count if rng.random() < 0.5 else 0) :]


def _deep(data: bytes, rng: random.Random) -> bytes:
    at, depth = rng.randrange(len(data) + 1), rng.choice([100, 3000, 100_000])
    return data[:at] + rng.choice([b"[", b'{"a":', b"<a>", b"- ", b"("]) * depth + data[at:]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:b] + data[a:b] * rng.choice([1, 2, 20]) + data[b:]


def _insert_noise(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice([1, 7, 513])) + data[at:]


def _line_ends(data: bytes, rng: random.Random) -> bytes:
    return data.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\n\n", b"\xe2\x80\xa8", b"\x85", b"\x1c"]))


def _empty(data: bytes, rng: random.Random) -> bytes:
    return rng.choice([b"", b"\n", b" ", b"\xef\xbb\xbf", bytes(512)])


DAMAGES: list[Damage] = [
    _truncate, _flip_bits, _swap_blocks, _huge_length, _wrong_encoding, _nuls, _deep, _repeat, _insert_noise, _line_ends, _empty,
]  # fmt: off


def mangle(data: bytes, rng: random.Random) -> bytes:
    """Damage the bytes of a file once, sometimes twice."""
    for _ in range(1 if rng.random() < 0.8 else 2):
        if data:
            data = rng.choice(DAMAGES)(data, rng)
    return data


def mangle_json(document: object, rng: random.Random) -> object:
    """Replace, remove or repeat one to three values at random places of a document; or nest it deeply."""
    document = copy.deepcopy(document)
    for _ in range(rng.choice([1, 1, 3])):
        holder, key = _random_place(document, rng)
        if holder is None:
            document = rng.choice(ODD_VALUES)
        elif rng.random() < 0.25:
            del holder[key]
        elif rng.random() < 0.1:
            holder[key] = {"a": holder[key]}
        else:
            holder[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    return document


def _random_place(document: object, rng: random.Random):  # noqa: ANN202 (a holder is a dict or a list)
    holder, key, at = None, None, document
    while isinstance(at, dict | list) and at and (holder is None or rng.random() < 0.7):
        holder = at
        key = rng.choice(sorted(at, key=str) if isinstance(at, dict) else range(len(at)))
        at = holder[key]
    return holder, key


def json_bytes(document: object, rng: random.Random) -> bytes:
    """A document as JSON, sometimes with a repeated key or deep nesting in it, and then sometimes damaged as bytes."""
    text = json.dumps(document, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.1 and text.startswith(b"{"):
        text = text[:1] + text[1:-1] + b"," + text[1:]
    return mangle(text, rng) if rng.random() < 0.4 else text
