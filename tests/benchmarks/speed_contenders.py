"""One contender trains on one corpus: `python speed_contenders.py NAME JOB` where JOB is JSON with the keys of `Job`.

Each is timed the same way, by a hook behind every optimizer step: wall clock and processor time (of all its processes) from the
end of step WARM to the end of step LAST of a longer run, so that nobody profits from what was prepared while others started,
nor from a queue that runs dry. Each has the environment that a user's shell would give it. All train the same towers in the
same precision with a symmetric InfoNCE, AdamW and gradients clipped at 1, from a first epoch over JPEG or FLAC files.
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

WARM, LAST, PLANNED = 4, 20, 28  # steps


@dataclass
class Job:
    kind: str  # image or audio
    init: str  # a checkpoint in transformers' layout
    table: str  # CSV with a column `kind` of paths and one of texts
    shards: str
    out: str
    batch: int
    precision: str  # fp32 or bf16
    workers: int = 2
    compile: bool = False


class Clock:
    """Stops the process at step LAST and prints what it saw."""

    def __init__(self, job: Job):
        import psutil
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self.job, self.step, self.me = job, 0, psutil.Process()
        register_optimizer_step_post_hook(lambda *_: self.tick())

    def used(self) -> tuple[float, float]:
        """(processor seconds, memory in MB) of this process and its children now."""
        all_of_us = [self.me, *self.me.children(recursive=True)]
        cpu = sum(t.user + t.system for t in (p.cpu_times() for p in all_of_us))
        return cpu, sum(p.memory_full_info().pss for p in all_of_us) / 2**20

    def tick(self) -> None:
        self.step += 1
        if self.step == WARM:
            self.begin, (self.cpu, _) = time.perf_counter(), self.used()
        if self.step == LAST:
            seconds, (cpu, memory) = time.perf_counter() - self.begin, self.used()
            pairs = (LAST - WARM) * self.job.batch
            found = {"pairs_per_s": pairs / seconds, "cpu_ms_per_pair": 1e3 * (cpu - self.cpu) / pairs, "memory_mb": memory}
            print("\n" + json.dumps(found), flush=True)
            for child in self.me.children(recursive=True):
                child.kill()
            os._exit(0)


def mmtune(job: Job) -> None:
    """`mmtune train` on packed shards."""
    from mmtune.run import train

    Clock(job)
    train(
        {
            "model": f"hf:{job.init}",
            "data": {"train": job.shards, "workers": job.workers, "cache": 0},
            "objective": [{"loss": "info_nce"}],
            "train": {
                "epochs": 1,
                "batch_size": job.batch,
                "precision": job.precision,
                "lr": 5e-4,
                **({"compile": True} if job.compile else {}),
            },
            "run": {"dir": job.out},
        },
        quiet=True,
    )


def bare(job: Job) -> None:
    """A plain loop with every input in memory, as tensors, before the clock starts: nothing is read, decoded or tokenised."""
    import csv

    import numpy as np
    import torch
    from PIL import Image
    from transformers import AutoModel, AutoProcessor

    rows = list(csv.DictReader(open(job.table)))[: PLANNED * job.batch]
    processor, model = AutoProcessor.from_pretrained(job.init), AutoModel.from_pretrained(job.init).train()
    if job.kind == "image" and job.precision == "bf16":
        model.set_attn_implementation("eager")  # faster, see mmtune/backbones/hf.py
    folder, batches = Path(job.table).parent, []
    for i in range(0, len(rows), job.batch):
        part = rows[i : i + job.batch]
        words = dict(processor.tokenizer([r["text"] for r in part], padding=True, return_tensors="pt"))
        if job.kind == "image":
            pictures = [Image.open(folder / r["image"]).convert("RGB") for r in part]
            signal = dict(processor.image_processor(images=pictures, return_tensors="pt"))
        else:
            import soundfile

            sounds = [soundfile.read(folder / r["audio"], dtype=np.float32) for r in part]
            features = processor.feature_extractor([s for s, _ in sounds], sampling_rate=sounds[0][1], return_tensors="pt")
            signal = dict(features) | {"is_longer": torch.zeros(len(part), 1, dtype=torch.bool)}
        batches.append((signal, words))
    encode = model.get_image_features if job.kind == "image" else model.get_audio_features
    log = model.logit_scale if job.kind == "image" else model.logit_scale_a
    optimizer = torch.optim.AdamW(model.parameters(), 5e-4, weight_decay=0.05, fused=True)
    target = torch.arange(job.batch)
    Clock(job)
    for signal, words in batches:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=job.precision == "bf16"):
            a, b = encode(**signal).pooler_output, model.get_text_features(**words).pooler_output
        a, b = (torch.nn.functional.normalize(x.float(), dim=1) for x in (a, b))
        logits = log.exp() * a @ b.T
        cross = torch.nn.functional.cross_entropy
        ((cross(logits, target) + cross(logits.T, target)) / 2).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def sentence_transformers(job: Job) -> None:
    """SentenceTransformerTrainer on a table of files."""
    import csv

    from datasets import Dataset, Image
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    rows, folder = list(csv.DictReader(open(job.table))), Path(job.table).parent
    data = Dataset.from_dict({"text": [r["text"] for r in rows], job.kind: [str(folder / r[job.kind]) for r in rows]})
    if job.kind == "image":
        data = data.cast_column("image", Image())
    model = SentenceTransformer(job.init, device="cpu")
    both = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    options = SentenceTransformerTrainingArguments(
        output_dir=job.out,
        num_train_epochs=1,
        per_device_train_batch_size=job.batch,
        learning_rate=5e-4,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=job.precision == "bf16",
        dataloader_drop_last=True,
        disable_tqdm=True,
        logging_strategy="no",
        dataloader_num_workers=job.workers,
        dataloader_pin_memory=False,
    )
    Clock(job)
    loss = MultipleNegativesRankingLoss(model, **both)
    SentenceTransformerTrainer(model=model, args=options, train_dataset=data, loss=loss).train()


def open_clip(job: Job) -> None:
    """open_clip's own trainer on the same shards, with a model of the same size (its text tower pads to 48 tokens)."""
    import functools

    import open_clip
    import open_clip_train.data
    from open_clip_train.main import main

    # webdataset 1.0 marks the end of a shard, which open_clip's own grouping takes for a file and stumbles over
    open_clip_train.data.tar_file_expander = functools.partial(open_clip_train.data.tar_file_expander, eof_value=None)

    name = f"small-{os.getpid()}"
    size = {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 64, "layers": 6, "width": 192, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 48, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 4},
        "quick_gelu": True,
    }
    (Path(job.out).parent / f"{name}.json").write_text(json.dumps(size))
    open_clip.add_model_config(Path(job.out).parent / f"{name}.json")
    shards = sorted(Path(job.shards).glob("*.tar"))
    names = f"{job.shards}/shard-{{{0:06d}..{len(shards) - 1:06d}}}.tar"
    Clock(job)
    options = {
        "model": name,
        "train-data": names,
        "dataset-type": "webdataset",
        "train-num-samples": PLANNED * job.batch,
        "batch-size": job.batch,
        "workers": job.workers,
        "epochs": 1,
        "lr": 5e-4,
        "wd": 0.05,
        "warmup": 1,
        "grad-clip-norm": 1,
        "precision": "fp32" if job.precision == "fp32" else "amp_bf16",
        "device": "cpu",
        "logs": job.out,
        "save-frequency": 0,
        "log-every-n-steps": 1000,
    }
    main([str(x) for k, v in options.items() for x in (f"--{k}", v)])


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    job = Job(**json.loads(sys.argv[2]))
    import torch

    torch.set_num_threads(2)
    {f.__name__: f for f in (mmtune, bare, sentence_transformers, open_clip)}[sys.argv[1]](job)
    raise SystemExit(f"{sys.argv[1]}: fewer than {LAST} steps")
