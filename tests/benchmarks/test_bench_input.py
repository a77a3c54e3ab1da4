"""What feeds the towers, by processor time (one thread each, in turn, medians): the loader alone against bare decoding and
resizing, embedding against a bare forward, and how long the command takes to start.

    python -m pytest tests/benchmarks/test_bench_input.py -m bench -s
    MMTUNE_BENCH_ROUNDS=3 (the default)
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from clap_init import clap_init
from clip_init import clip_init
from speed_corpus import corpus

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]
ROUNDS = int(os.environ.get("MMTUNE_BENCH_ROUNDS", "3"))
ROWS = 512

COMMON = """
import io, json, os, sys, time
os.environ["HF_HUB_OFFLINE"] = "1"
import mmtune
import numpy as np, torch
from mmtune.data.shards.dataset import open_data
kind, init, shards, rows, rounds = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
torch.set_num_threads(1)
data = open_data(shards).subset(range(rows))

def in_turn(ways):
    found = {k: [] for k in ways}
    for way in ways.values():
        way()
    for _ in range(rounds):
        for k, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            found[k].append([rows / (time.perf_counter() - wall), rows / (time.process_time() - cpu)])
    print(json.dumps(found))
"""

LOADER = """
from torchvision.transforms.v2 import functional as F
from mmtune.data.shards.weighted_concat import WeightedConcat
from mmtune.data.loader.loader import Loader
import PIL.Image, soundfile
from transformers import AutoProcessor
preprocess = mmtune.load(f"hf:{init}").towers[kind].preprocess
stream = Loader(WeightedConcat([data], [1.0]), {kind: preprocess}, {}, workers=1)
batches = np.split(np.arange(rows), range(64, rows, 64))
raw = [data.read(i, kind) for i in range(rows)]
extractor = AutoProcessor.from_pretrained(init).feature_extractor if kind == "audio" else None

def bare_item(value):
    if kind == "audio":
        samples, rate = soundfile.read(io.BytesIO(value), dtype="float32")
        return extractor(samples, sampling_rate=rate, return_tensors="pt")["input_features"][0]
    picture = PIL.Image.open(io.BytesIO(value)).convert("RGB")
    short = min(picture.size)
    size = [round(64 * picture.height / short), round(64 * picture.width / short)]
    x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return F.center_crop(F.resize(x, size, F.InterpolationMode.BICUBIC, antialias=True), [64, 64])

def ours():
    for batch in stream.epoch(0, batches):
        pass

def bare():  # bytes in memory; decoded whole, resized, stacked; not even normalised
    for part in batches:
        torch.stack([bare_item(raw[i]) for i in part])

in_turn({"ours": ours, "bare": bare})
"""

EMBED = """
from mmtune.embedding.embed_rows import embed_data
from transformers import AutoModel
model, peer = mmtune.load(f"hf:{init}"), AutoModel.from_pretrained(init).eval()
tower = peer.get_image_features if kind == "image" else peer.get_audio_features
from mmtune.data.decode import decode_row
preprocess = model.towers[kind].preprocess

def batch(part):
    return preprocess.collate([preprocess(decode_row(data, i, kind)) for i in part])

parts = [range(i, min(i + 64, rows)) for i in range(0, rows, 64)]
ready = [batch(p) for p in parts]

def forward(inputs):
    with torch.inference_mode():
        return torch.nn.functional.normalize(tower(**inputs).pooler_output, dim=1).numpy()

a = embed_data(model, data, [kind])[kind].vectors
b = np.concatenate([forward(x) for x in ready])
assert np.abs(a - b).max() < 1e-4, np.abs(a - b).max()
in_turn({
    "ours": lambda: embed_data(model, data, [kind]),
    "bare loop": lambda: [forward(batch(p)) for p in parts],
    "tower alone": lambda: [forward(x) for x in ready],
})
"""


def measured(code: str, kind: str, home: Path) -> dict[str, dict[str, float]]:
    """{way: {"per_s": items a second, "per_core_s": items a second of processor time}}, medians."""
    init = clip_init(home / "clip_init") if kind == "image" else clap_init(home / "clap_init")
    _, shards = corpus(home / f"input-{kind}", kind, ROWS)
    argv = [sys.executable, "-c", COMMON + code, kind, str(init), str(shards), str(ROWS), str(ROUNDS)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    middle = {way: [round(statistics.median(x), 1) for x in zip(*runs, strict=True)] for way, runs in found.items()}
    return {way: {"per_s": a, "per_core_s": b} for way, (a, b) in middle.items()}


@pytest.fixture
def home(tmp_path_factory):
    return tmp_path_factory.getbasetemp().parent


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_the_loader_alone(kind, home):
    """At least 0.9 of decoding and resizing alone, a core."""
    found = measured(LOADER, kind, home)
    ratio = round(found["ours"]["per_core_s"] / found["bare"]["per_core_s"], 2)
    print(json.dumps({"bench": f"loader, {kind}", "rows": ROWS, **found, "over_bare": ratio, "rounds": ROUNDS}))
    assert ratio >= 0.9


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_embedding(kind, home):
    """In items a second at least 0.95 of the tower alone on tensors in memory (the thread that decodes has a core of its own);
    a core, at least 0.9 of a plain loop that decodes, prepares and encodes."""
    found = measured(EMBED, kind, home)
    line = {"bench": f"embedding, {kind}", "rows": ROWS, **found, "rounds": ROUNDS}
    line["over_tower_alone"] = round(found["ours"]["per_s"] / found["tower alone"]["per_s"], 2)
    line["over_bare_loop_a_core"] = round(found["ours"]["per_core_s"] / found["bare loop"]["per_core_s"], 2)
    print(json.dumps(line))
    assert line["over_tower_alone"] >= 0.95 and line["over_bare_loop_a_core"] >= 0.9


def test_starting():
    """Processor seconds until the help stands there and until the package is imported, in multiples of an empty interpreter."""
    commands = {
        "python -c pass": ["-c", "pass"],
        "import mmtune": ["-c", "import mmtune"],
        "mmtune --help": ["-m", "mmtune", "--help"],
        "import torch": ["-c", "import torch"],
        "import open_clip": ["-c", "import open_clip"],
        "import sentence_transformers": ["-c", "import sentence_transformers"],
    }
    times: dict[str, list[float]] = {k: [] for k in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            before = os.times()
            subprocess.run([sys.executable, *command], capture_output=True, check=True)
            after = os.times()
            times[name].append(after.children_user + after.children_system - before.children_user - before.children_system)
    middle = {k: round(statistics.median(v), 3) for k, v in times.items()}
    print(json.dumps({"bench": "starting, processor seconds", **middle, "rounds": ROUNDS}))
    assert middle["mmtune --help"] < 5 * middle["python -c pass"] and middle["import mmtune"] < 5 * middle["python -c pass"]
