"""Generate the demo's machine sounds: a source folder with clips and captions of machines with faults of different severity.

Each recording is of one individual machine and is cut into clips, all of which are in the same split. The column `text` names
the fault and its severity; `coarse` names only the machine.
"""

import io
from pathlib import Path

import numpy as np

from mmtune.demo.sounds import FAULTS, MACHINES, SEVERITIES, describe_condition, machine_sound
from mmtune.demo.source_folder import SourceFolder, rng_of
from mmtune.errors import DataError

TEXTS = ("{machine} with {condition}", "{condition} in a {machine}", "sound of a {machine}, {condition}")
COARSE = ("a {machine}", "sound of a {machine}", "{machine} in the hall")
_RECORDING, _BASE = range(2)  # each purpose has its own random generators, see `rng_of`


def conditions() -> list[tuple[str | None, str]]:
    """Return (fault, severity) of all 16 conditions of a machine, the healthy one first."""
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
    """Synthesise recordings of machines in all conditions into the folder `out`. Returns `out`.

    machines: number of machines
    train_recordings, val_recordings: recordings per machine and condition
    clips: number of clips per recording, of `seconds` each
    base_recordings: recordings per machine in base.csv

    Writes clips/*.flac, and train.csv and val.csv with the columns id, audio, text, coarse, group (machine and condition),
    category (the machine), defect, severity, recording.

    Also writes base.csv (id, audio, text, group, category), a generic corpus. Its captions name the right machine and sometimes
    a random condition, so a base model trained on it can tell apart machines only.

    Deterministic: the same arguments give the same bytes. Raises DataError if `machines` is 0 or more than there are.
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
    """Write the generic corpus: each machine in random conditions, with captions that name other random conditions."""
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
    """Encode samples in -1..1 as 16-bit FLAC."""
    import soundfile

    out = io.BytesIO()
    soundfile.write(out, np.rint(samples * 32767).astype(np.int16), rate, format="FLAC", subtype="PCM_16")
    return out.getvalue()
