"""Generate a small source folder with three modalities: photos, sounds and captions of machines in a hall.

A machine's state can be recognised from its photo (lamp and gauge), from its sound (the fault) and from its caption.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mmtune.demo.catalog import photograph
from mmtune.demo.machines import flac
from mmtune.demo.products import Color, Pen, Pose, arc, shade
from mmtune.demo.sounds import MACHINES, SEVERITIES, describe_condition, machine_sound
from mmtune.demo.source_folder import SourceFolder, rng_of
from mmtune.errors import DataError

LAMPS: dict[str, Color] = {"green": (70, 220, 90), "amber": (255, 190, 40), "red": (245, 50, 50)}
GAUGES = {"low": -140.0, "middle": -90.0, "high": -40.0}
HULLS: dict[str, Color] = {"fan": (90, 130, 170), "gearbox": (120, 124, 104), "pump": (70, 140, 130), "motor": (140, 104, 150)}


@dataclass(frozen=True)
class MachineState:
    """The state of a machine: lamp, gauge, fault (None if healthy) and the fault's severity."""

    lamp: str
    gauge: str
    fault: str | None
    severity: str


STATES = (
    MachineState("green", "low", None, "none"),
    MachineState("green", "high", "imbalance", "medium"),
    MachineState("amber", "middle", "outer", "medium"),
    MachineState("amber", "high", "scratch", "medium"),
    MachineState("red", "low", "crack", "severe"),
    MachineState("red", "high", "inner", "severe"),
)
TEXTS = (
    "{machine} with {condition}: {lamp} lamp, gauge {gauge}",
    "{lamp} lamp and {gauge} gauge on a {machine} with {condition}",
)


def write_machine_hall(
    out: str | Path,
    *,
    seed: int = 0,
    machines: int = 3,
    train_per_state: int = 12,
    val_per_state: int = 4,
    missing: float = 0.0,
    size: int = 64,
    seconds: float = 1.0,
    rate: int = 8000,
) -> Path:
    """Write photos/*.jpg, clips/*.flac, train.csv and val.csv into the folder `out`. Returns `out`.

    machines: number of machines; each has 6 states
    train_per_state, val_per_state: rows per machine and state
    missing: share of rows with an empty cell: image, audio and text in turn
    size: width and height of the photos in pixels
    seconds, rate: length and sample rate of the clips

    Columns: id, image, audio, text, coarse, group (machine and state), category (machine), lamp, gauge, defect.

    Deterministic: the same arguments give the same bytes. Raises DataError if `machines` is 0 or more than there are.
    """
    if not 1 <= machines <= len(MACHINES):
        raise DataError(f"machines={machines}: the demo can synthesise 1 to {len(MACHINES)} machines")
    source, gaps = SourceFolder(out), 0
    for m, machine in enumerate(list(MACHINES)[:machines]):
        for s, state in enumerate(STATES):
            group = f"{machine}-{state.lamp}-{state.gauge}"
            for n in range(train_per_state + val_per_state):
                split = "train" if n < train_per_state else "val"
                rng = rng_of(seed, 7, m, s, n)
                name = f"{group}-{n:03d}"
                fields = {
                    "machine": machine,
                    "lamp": state.lamp,
                    "gauge": state.gauge,
                    "condition": describe_condition(state.fault, state.severity),
                }
                row = {
                    "id": name,
                    "image": f"photos/{split}/{name}.jpg",
                    "audio": f"clips/{split}/{name}.flac",
                    "text": TEXTS[n % len(TEXTS)].format(**fields),
                    "coarse": f"a {machine}",
                    "group": group,
                    "category": machine,
                    "lamp": state.lamp,
                    "gauge": state.gauge,
                    "defect": state.fault or "none",
                }
                photo = io.BytesIO()
                photograph(panel(machine, state, rng, size), rng, size).save(photo, "JPEG", quality=90, subsampling=0)
                source.file(row["image"], photo.getvalue())
                sound = machine_sound(machine, state.fault, SEVERITIES.get(state.severity, 0.0), rng, seconds, rate)
                source.file(row["audio"], flac(sound, rate))
                if rng.uniform() < missing:
                    row[("image", "audio", "text")[gaps % 3]] = ""
                    gaps += 1
                source.add(split, row)
    return source.close()


def panel(machine: str, state: MachineState, rng: np.random.Generator, size: int) -> Image.Image:
    """Draw the machine with its lamp and gauge, RGBA [1.25 size, 1.25 size]. The angle of the needle varies."""
    pen = Pen(round(size * 1.25), Pose(lean=float(rng.uniform(-2, 2)), flare=float(rng.uniform(-0.03, 0.03))))
    hull, dark = HULLS[machine], shade(HULLS[machine], 0.5)
    pen.shape([(10, 88), (90, 88), (90, 94), (10, 94)], (70, 70, 74))
    _BODIES[machine](pen, hull, dark)
    center, needle = (66.0, 34.0), np.deg2rad(GAUGES[state.gauge] + rng.uniform(-8, 8))
    pen.disc(center, 21, (244, 242, 234), dark, 2.4)
    for start, stop, lamp in ((-160, -115, "green"), (-115, -65, "amber"), (-65, -20, "red")):
        pen.line(arc(center, 15.5, 15.5, start, stop), shade(LAMPS[lamp], 0.8), 3)
    tip = (center[0] + 16 * float(np.cos(needle)), center[1] + 16 * float(np.sin(needle)))
    pen.line([center, tip], (25, 25, 30), 3.4)
    pen.disc(center, 3, (25, 25, 30))
    pen.disc((25, 26), 13, LAMPS[state.lamp], (40, 40, 44), 2.4)
    pen.disc((21, 22), 3, shade(LAMPS[state.lamp], 1.5))
    return pen.done()


def _fan(pen: Pen, hull: Color, dark: Color) -> None:
    pen.shape([(12, 8), (88, 8), (88, 88), (12, 88)], hull, dark)
    pen.disc((34, 68), 17, shade(hull, 0.45), dark)
    for i in range(5):
        pen.shape([(34, 68), *arc((34, 68), 15, 15, 72 * i, 72 * i + 36, 6)], shade(hull, 1.5))


def _gearbox(pen: Pen, hull: Color, dark: Color) -> None:
    pen.shape([(8, 18), (18, 8), (92, 8), (92, 78), (80, 88), (8, 88)], hull, dark)
    for x, y, r, teeth in ((26, 66, 14, 12), (50, 72, 10, 9)):
        rim = [
            p
            for i in range(teeth)
            for p in arc((x, y), r, r, 360 / teeth * i, 360 / teeth * (i + 0.5), 2)
            + arc((x, y), r * 0.76, r * 0.76, 360 / teeth * (i + 0.5), 360 / teeth * (i + 1), 2)
        ]
        pen.shape(rim, shade(hull, 1.5), dark)
        pen.disc((x, y), r * 0.3, dark)


def _pump(pen: Pen, hull: Color, dark: Color) -> None:
    pen.shape([(12, 8), (88, 8), (88, 88), (12, 88)], hull, dark)
    pen.line([(4, 72), (26, 72)], shade(hull, 1.4), 9)
    pen.line([(38, 66), (38, 50), (4, 50)], shade(hull, 1.4), 9)
    pen.disc((34, 70), 14, shade(hull, 1.25), dark)
    pen.disc((34, 70), 5, dark)


def _motor(pen: Pen, hull: Color, dark: Color) -> None:
    pen.shape([(6, 8), (94, 8), (94, 88), (6, 88)], hull, dark)
    for x in range(14, 70, 8):
        pen.line([(x, 54), (x, 82)], dark, 2.6)
    pen.line([(80, 70), (98, 70)], (190, 190, 194), 7)


_BODIES = {"fan": _fan, "gearbox": _gearbox, "pump": _pump, "motor": _motor}
