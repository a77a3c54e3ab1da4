"""What a core prepares for the towers, by processor time (one thread, in turn, medians): 640 x 480 JPEG to a tensor of 224 x 224, and
10 s of FLAC at 44.1 kHz to the log-mel spectrogram of CLAP, beside other libraries.

    python -m pytest tests/benchmarks/test_bench_decode.py -m bench -s
    MMTUNE_BENCH_ROUNDS=3 (the default)
"""

import io
import json
import os
import statistics
import time

import numpy as np
import pytest
import torch

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1800)]
ROUNDS = int(os.environ.get("MMTUNE_BENCH_ROUNDS", "3"))
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rates(ways, values):
    """{way: values per second of processor time}, medians over the rounds."""
    found = {name: [] for name in ways}
    for way in ways.values():
        way(values[0])
    for _ in range(ROUNDS):
        for name, way in ways.items():
            begin = time.process_time()
            for value in values:
                way(value)
            found[name].append(len(values) / (time.process_time() - begin))
    return {name: round(statistics.median(v), 1) for name, v in found.items()}


def photos(n):
    import PIL.Image

    rng, out = np.random.default_rng(0), []
    for _ in range(n):
        soft = PIL.Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize((640, 480), PIL.Image.Resampling.BICUBIC)
        grain = np.asarray(soft) + rng.normal(0, 6, (480, 640, 3))
        file = io.BytesIO()
        PIL.Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        out.append(file.getvalue())
    return out


def test_photos():
    import PIL.Image
    import simplejpeg
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from torchvision.io import decode_jpeg
    from torchvision.transforms.v2 import functional as F
    from transformers import CLIPImageProcessor

    from mmtune import modalities
    from mmtune.backbones.hf_image_preprocess import ImagePreprocess
    from mmtune.backbones.open_clip_image_preprocess import OpenClipImagePreprocess

    kind, preprocess = modalities.get("image"), OpenClipImagePreprocess({"size": 224, "mean": MEAN, "std": STD})
    theirs = image_transform_v2(PreprocessCfg(size=224, mean=MEAN, std=STD), is_train=False)
    processor = CLIPImageProcessor()
    of_hf = ImagePreprocess(processor)

    def opened(data):
        return PIL.Image.open(io.BytesIO(data)).convert("RGB")

    def bare(data):
        picture = PIL.Image.fromarray(simplejpeg.decode_jpeg(data, "RGB")).resize((299, 224), PIL.Image.Resampling.BICUBIC)
        return F.normalize(F.to_dtype(F.pil_to_tensor(picture.crop((37, 0, 261, 224))), torch.float32, scale=True), MEAN, STD)

    def torchvision(data):
        x = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        x = F.center_crop(F.resize(x, [224], F.InterpolationMode.BICUBIC, antialias=True), [224, 224])
        return F.normalize(F.to_dtype(x, torch.float32, scale=True), MEAN, STD)

    ways = {
        "mmtune": lambda data: preprocess(kind.decode_scaled(data, 224.0))["image"],
        "mmtune (Hugging Face checkpoint)": lambda data: of_hf(kind.decode_scaled(data, 224.0))["pixel_values"],
        "bare simplejpeg + Pillow resize": bare,
        "open_clip (Pillow)": lambda data: theirs(opened(data)),
        "sentence-transformers (transformers' processor)": lambda data: processor(opened(data), return_tensors="pt")[
            "pixel_values"
        ],
        "torchvision (decode_jpeg, uint8 resize)": torchvision,
        "decode alone: mmtune": kind.decode,
        "decode alone: Pillow": opened,
        "decode alone: simplejpeg": lambda data: simplejpeg.decode_jpeg(data, "RGB"),
    }
    values = photos(100)
    exact = ways["open_clip (Pillow)"](values[0])
    assert torch.equal(ways["mmtune"](values[0]), exact)
    of_transformers = ways["sentence-transformers (transformers' processor)"](values[0])[0]
    assert torch.allclose(ways["mmtune (Hugging Face checkpoint)"](values[0]), of_transformers, atol=2e-6)
    levels = float((torchvision(values[0]) - exact).abs().max() * min(STD) * 255)
    line = {"bench": "640 x 480 JPEG to 224 x 224, images/s a core", "rates": rates(ways, values), "torchvision_levels": levels}
    print(json.dumps({**line, "load": [round(x, 1) for x in os.getloadavg()], "rounds": ROUNDS}))
    assert line["rates"]["mmtune"] >= 0.95 * line["rates"]["bare simplejpeg + Pillow resize"]
    assert line["rates"]["mmtune (Hugging Face checkpoint)"] > line["rates"]["sentence-transformers (transformers' processor)"]


def clips(n):
    import soundfile

    rng, out = np.random.default_rng(0), []
    for _ in range(n):
        t = np.arange(441_000) / 44_100
        tone = np.sin(2 * np.pi * rng.uniform(40, 5000) * t) * 0.2 + rng.normal(0, 0.05, len(t))
        file = io.BytesIO()
        soundfile.write(file, tone.astype(np.float32), 44_100, format="FLAC")
        out.append(file.getvalue())
    return out


def test_sounds():
    import soundfile
    import soxr
    from transformers import ClapFeatureExtractor

    from mmtune import modalities
    from mmtune.backbones.hf_audio_preprocess import ClapPreprocess

    torchaudio = pytest.importorskip("torchaudio", reason="needs the extra augment")
    kind, extractor = modalities.get("audio"), ClapFeatureExtractor(truncation="rand_trunc")
    preprocess = ClapPreprocess(extractor, fused=False)

    def read(data):
        return soundfile.read(io.BytesIO(data), dtype="float32")[0]

    def bare(data):
        samples = soxr.resample(read(data), 44_100, 48_000)
        return extractor(samples, sampling_rate=48_000, return_tensors="pt")["input_features"]

    samples, x = read(clips(1)[0]), torch.from_numpy(read(clips(1)[0]))
    ways = {
        "mmtune": lambda data: preprocess(kind.decode(data)),
        "soundfile + soxr + transformers' extractor (sentence-transformers)": bare,
        "decode alone: mmtune": kind.decode,
        "decode alone: soundfile": read,
        "resample alone: soxr HQ": lambda _: soxr.resample(samples, 44_100, 48_000),
        "resample alone: soxr VHQ": lambda _: soxr.resample(samples, 44_100, 48_000, quality="VHQ"),
        "resample alone: torchaudio, sinc 6": lambda _: torchaudio.functional.resample(x, 44_100, 48_000),
        "resample alone: torchaudio, Kaiser 64": lambda _: torchaudio.functional.resample(
            x, 44_100, 48_000, lowpass_filter_width=64, rolloff=0.9475937167399596, resampling_method="sinc_interp_kaiser"
        ),
    }
    try:
        from torchcodec.decoders import AudioDecoder

        ways["decode alone: torchcodec"] = lambda data: AudioDecoder(data).get_all_samples().data
    except (ImportError, RuntimeError, OSError):
        print("torchcodec: not installed, or no FFmpeg")
    line = {"bench": "10 s FLAC at 44.1 kHz to log-mel, clips/s a core", "rates": rates(ways, clips(20))}
    print(json.dumps({**line, "load": [round(x, 1) for x in os.getloadavg()], "rounds": ROUNDS}))
    assert line["rates"]["mmtune"] >= line["rates"]["soundfile + soxr + transformers' extractor (sentence-transformers)"]
