"""The demo's machine sounds: clips and captions of machines with graded faults, as a source folder.

A recording is of one individual machine; its clips never fall into two splits. The column `text` names the fault and its
severity, `coarse` only the machine.
"""

import io
from pathlib import Path

import numpy as np

from mmtune.demo.sounds import FAULTS, MACHINES, SEVERITIES, describe_condition, machine_sound
from mmtune.demo.source_folder import SourceFolder, rng_of
from mmtune.errors import DataError

TEXTS = ("{machine} with {condition}", "{condition} in a {machine}", "sound of a {machine}, {condition}")
COARSE = ("a {machine}", "sound of a {machine}", "{machine} in the hall")
_RECORDING, _BASE = range(2)


def conditions() -> list[tuple[str | None, str]]:
    """(fault, severity) of every condition a machine can be in, the healthy one first."""
    return [(None, "none"), *((fault, severity) for fault in FAULTS for severity in SEVERITIES)]


def write_machines(
    out: str | Path,
    *,
    seed: int = 0,
    machines: int = 3,
    train_recordings: int = 5,
    val_recordings: int = 2,
    clips: int = 4,
    base_recordings: int = 24,
    seconds: float = 1.0,
    rate: int = 8000,
) -> Path:
    """Synthesise recordings of `machines` machines in 16 conditions into `out`, cut in `clips` of `seconds`; returns `out`.

    Writes clips/*.flac, train.csv, val.csv with columns id, audio, text, coarse, group (machine and condition), category (the
    machine), defect, severity, recording; and base.csv (id, audio, text, group, category), a generic corpus of
    `base_recordings` recordings a machine, whose captions name the right machine and sometimes a random condition: a base model
    trained on it distinguishes machines only. The same arguments give the same bytes. Raises DataError for more machines than
    there are.
    """
    if not 1 <= machines <= len(MACHINES):
        raise DataError(f"machines={machines}: the demo can synthesise 1 to {len(MACHINES)} machines")
    source = SourceFolder(out)
    for m, machine in enumerate(list(MACHINES)[:machines]):
        for c, (fault, severity) in enumerate(conditions()):
            group = f"{machine}-{fault}-{severity}" if fault else f"{machine}-healthy"
            for r in range(train_recordings + val_recordings):
                split = "train" if r < train_recordings else "val"
                rng = rng_of(seed, _RECORDING, m, c, r)
                sound = machine_sound(machine, fault, SEVERITIES.get(severity, 0.0), rng, seconds * clips, rate)
                for k, clip in enumerate(np.split(sound, clips)):
                    name = f"{group}-r{r:02d}-c{k}"
                    fields = {"machine": machine, "condition": describe_condition(fault, severity)}
                    n = r * clips + k
                    text, coarse = TEXTS[n % len(TEXTS)].format(**fields), COARSE[n % len(COARSE)].format(**fields)
                    audio = source.file(f"clips/{split}/{name}.flac", flac(clip, rate))
                    source.add(
                        split,
                        {
                            "id": name,
                            "audio": audio,
                            "text": text,
                            "coarse": coarse,
                            "group": group,
                            "category": machine,
                            "defect": fault or "none",
                            "severity": severity,
                            "recording": f"{group}-r{r:02d}",
                        },
                    )
        _base(source, seed, m, machine, base_recordings, clips, seconds, rate)
    return source.close()


def _base(
    source: SourceFolder, seed: int, m: int, machine: str, recordings: int, clips: int, seconds: float, rate: int
) -> None:
    """The generic corpus: the same kinds of machine in random conditions, with captions of random conditions."""
    for r in range(recordings):
        rng = rng_of(seed, _BASE, m, r)
        fault = [None, *FAULTS][int(rng.integers(len(FAULTS) + 1))]
        sound = machine_sound(machine, fault, float(rng.uniform(0.5, 6.0)), rng, seconds * clips, rate)
        for k, clip in enumerate(np.split(sound, clips)):
            name = f"base-{machine}-r{r:02d}-c{k}"
            random_condition = describe_condition(*conditions()[int(rng.integers(len(conditions())))])
            text = (*COARSE, *TEXTS)[int(rng.integers(6))].format(machine=machine, condition=random_condition)
            audio = source.file(f"clips/base/{name}.flac", flac(clip, rate))
            source.add("base", {"id": name, "audio": audio, "text": text, "group": f"any-{machine}", "category": machine})


def flac(samples: np.ndarray, rate: int) -> bytes:
    """Samples in -1..1 as a 16-bit FLAC file."""
    import soundfile

    out = io.BytesIO()
    soundfile.write(out, np.rint(samples * 32767).astype(np.int16), rate, format="FLAC", subtype="PCM_16")
    return out.getvalue()
