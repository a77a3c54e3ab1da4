"""Reading shards from start to end: our streamed loader beside open_clip's WebDataset pipeline and Hugging Face datasets (streaming), on
the same shards, by processor time and by the clock, one thread or process each, in turn, medians. litdata and MosaicML streaming read the same
rows from shards of their own formats, if they are installed (`pip install --no-deps litdata mosaicml-streaming`, and what they import).

    python -m pytest tests/benchmarks/test_bench_streams.py -m bench -s
    MMTUNE_BENCH_ROUNDS=3 MMTUNE_BENCH_ROWS=512 (the defaults)

All decode JPEGs of 640 x 480, resize them to 224 x 224, tokenise a caption and make batches of 64 from a shuffle buffer of 256 rows.
"""

import csv
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from clip_init import clip_init
from test_bench_decode import photos

from mmtune.data.pack.pack import pack

ROUNDS, ROWS = int(os.environ.get("MMTUNE_BENCH_ROUNDS", "3")), int(os.environ.get("MMTUNE_BENCH_ROWS", "512"))

COMMON = """
import glob, io, json, sys, time
import torch
from transformers import CLIPImageProcessor, CLIPTokenizerFast
shards, init = sys.argv[1:3]
torch.set_num_threads(1)
processor, tokenizer = CLIPImageProcessor(), CLIPTokenizerFast.from_pretrained(init)
def measured(epoch):
    epoch(0)
    wall, cpu = time.perf_counter(), time.process_time()
    rows = epoch(1)
    print(json.dumps({"rows": rows, "per_s": rows / (time.perf_counter() - wall), "per_core_s": rows / (time.process_time() - cpu)}))
"""

OWN_FORMAT = """
import tarfile
from PIL import Image
def rows():
    for path in sorted(glob.glob(shards + "/*.tar")):
        with tarfile.open(path) as tar:
            found = {}
            for member in tar:
                found[member.name.rpartition(".")[2]] = tar.extractfile(member).read()
                if {"jpg", "json", "txt"} <= found.keys():
                    yield {"jpg": found["jpg"], "txt": found["txt"].decode()}
                    found = {}
def collate(rows):
    images = [processor(Image.open(io.BytesIO(r["jpg"])).convert("RGB"), return_tensors="pt")["pixel_values"][0] for r in rows]
    return torch.stack(images), tokenizer([r["txt"] for r in rows], padding=True, truncation=True, return_tensors="pt")
def epoch(number):
    data.set_number(number)
    return sum(len(images) for images, _ in torch.utils.data.DataLoader(data, batch_size=64, collate_fn=collate))
"""
"""For peers that convert a corpus to a format of their own, before anything is measured. They decode by the same code as `datasets`."""

WAYS = {
    "mmtune": """
import mmtune
from mmtune.backbones.hf_image_preprocess import ImagePreprocess
from mmtune.data.loader.stream_loader import StreamLoader
from mmtune.data.shards.shard_lru import ShardCache
from mmtune.data.shards.streamed_sets import StreamedSets
text = mmtune.load(f"hf:{init}").towers["text"].preprocess
loader = StreamLoader(StreamedSets([shards], [1.0], ShardCache(0)), {"image": ImagePreprocess(processor), "text": text}, {},
                      pairs=[("text", "image")], batch_size=64, workers=1, shuffle_buffer=256)
measured(lambda epoch: sum(len(batch.ids) for batch in loader.epoch(epoch)))
""",
    "open_clip's pipeline (webdataset, Pillow)": """
import open_clip, webdataset as wds
from open_clip.transform import PreprocessCfg, image_transform_v2
transform, words = image_transform_v2(PreprocessCfg(size=224), is_train=False), open_clip.SimpleTokenizer()
def epoch(number):
    data = wds.DataPipeline(
        wds.SimpleShardList(sorted(glob.glob(shards + "/*.tar"))), wds.split_by_worker, wds.tarfile_to_samples(),
        wds.shuffle(bufsize=256, initial=256), wds.decode("pilrgb"), wds.rename(image="jpg;png", text="txt"),
        wds.map_dict(image=transform, text=lambda t: words(t)[0]), wds.to_tuple("image", "text"), wds.batched(64, partial=True))
    return sum(len(images) for images, _ in data)
measured(epoch)
""",
    "datasets, streaming (transformers' processor)": """
from datasets import load_dataset
def collate(rows):
    images = [processor(r["jpg"].convert("RGB"), return_tensors="pt")["pixel_values"][0] for r in rows]
    return torch.stack(images), tokenizer([r["txt"] for r in rows], padding=True, truncation=True, return_tensors="pt")
def epoch(number):
    data = load_dataset("webdataset", data_files=sorted(glob.glob(shards + "/*.tar")), split="train", streaming=True)
    batches = torch.utils.data.DataLoader(data.shuffle(seed=number, buffer_size=256), batch_size=64, collate_fn=collate)
    return sum(len(images) for images, _ in batches)
measured(epoch)
""",
}
PEERS = {
    "litdata": OWN_FORMAT
    + """
import os, litdata
class Data(litdata.StreamingDataset):
    def set_number(self, number):
        self.set_epoch(number + 1)
out = shards + "-litdata"
if not os.path.isdir(out):
    os.makedirs(out)
    writer = litdata.streaming.writer.BinaryWriter(out, chunk_bytes="8MB")
    for i, row in enumerate(rows()):
        writer[i] = row
    writer.done(); writer.merge()
data = Data(out, shuffle=True, seed=0)
measured(epoch)
""",
    "streaming": OWN_FORMAT
    + """
import os, streaming
class Data(streaming.StreamingDataset):
    def set_number(self, number):
        self.next_epoch = number
out = shards + "-mds"
if not os.path.isdir(out):
    with streaming.MDSWriter(out=out, columns={"jpg": "bytes", "txt": "str"}, size_limit=8_000_000) as writer:
        for row in rows():
            writer.write(row)
data = Data(local=out, shuffle=True, batch_size=64)
measured(epoch)
""",
}
"""Module name -> its way."""


@pytest.mark.bench
@pytest.mark.timeout(3600)
def test_streams(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    files = photos(64)
    with open(source / "rows.csv", "w", newline="") as f:
        table = csv.writer(f)
        table.writerow(["id", "image", "text"])
        for i in range(ROWS):
            (source / f"{i}.jpg").write_bytes(files[i % len(files)] + bytes([i // 256, i % 256]))  # no two are equal
            table.writerow([f"row-{i:05d}", f"{i}.jpg", f"the photo of number {i} on a plain table"])
    pack(source / "rows.csv", tmp_path / "shards", shard_size=f"{ROWS // 8 * len(files[0])}B")
    init = clip_init(tmp_path / "init")
    argv = [str(tmp_path / "shards"), str(init)]
    ways = WAYS | {name: code for name, code in PEERS.items() if importlib.util.find_spec(name)}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, code in ways.items():
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
                "HF_DATASETS_CACHE": str(tmp_path / "hf"),
            }
            command = [sys.executable, "-c", COMMON + code, *argv]
            done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2])
            assert done.returncode == 0, (name, done.stderr[-3000:])
            found[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
    assert {run["rows"] for runs in found.values() for run in runs} == {ROWS}
    middle = {
        n: {k: round(statistics.median(r[k] for r in runs), 1) for k in ("per_s", "per_core_s")} for n, runs in found.items()
    }
    print(
        json.dumps(
            {"bench": "streams", "rows": ROWS, **middle, "load": [round(x, 1) for x in os.getloadavg()], "rounds": ROUNDS}
        )
    )
    ours, *peers = (way["per_core_s"] for way in middle.values())
    assert ours > max(peers)
