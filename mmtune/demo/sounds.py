"""Synthesise the sound of a machine: shaft, blades or gear mesh, a noise floor, and the sound of a fault.

Bearing faults follow the usual kinematics (Randall & Antoni, Rolling element bearing diagnostics, MSSP 25, 2011). The impulses
of an outer race fault are all equally strong. Those of an inner race fault are amplitude-modulated once per turn, as the load
changes. Shafts turn slowly (8 to 13 Hz), so that single impulses can be heard and seen. Levels are relative to the healthy
machine, whose RMS is 1.
"""

from collections.abc import Callable

import numpy as np

SEVERITIES = {"light": 1.0, "medium": 2.2, "severe": 5.0}  # amplitude factor of the fault
MACHINES = {"fan": 8.0, "gearbox": 11.0, "pump": 9.0, "motor": 13.0}
"""{machine: nominal shaft speed in Hz}"""
FAULTS = {
    "outer": "{a} outer race fault",
    "inner": "{a} inner race fault",
    "crack": "{a} hairline crack",
    "scratch": "{a} scratch",
    "imbalance": "{an} imbalance",
}
"""{fault: caption template}; {a} becomes "a SEVERITY", {an} becomes SEVERITY alone."""


def describe_condition(fault: str | None, severity: str) -> str:
    """Describe the condition as in captions, e.g. "a severe hairline crack"."""
    return FAULTS[fault].format(a=f"a {severity}", an=severity) if fault else "no fault"


def machine_sound(
    machine: str, fault: str | None, severity: float, rng: np.random.Generator, seconds: float, rate: int
) -> np.ndarray:
    """Synthesise a recording, float32 [seconds * rate], within -1..1. Speed, noise floor and loudness are random."""
    n = round(seconds * rate)
    t = np.arange(n) / rate
    speed = MACHINES[machine] * rng.uniform(0.93, 1.07)
    wander = 0.004 * np.sin(2 * np.pi * rng.uniform(0.2, 0.6) * t + rng.uniform(0, 6.28))
    turns = rng.uniform() + np.cumsum(speed * (1 + wander)) / rate  # shaft angle in turns
    voice = _VOICES[machine](turns, t, rng, rate)
    voice /= _rms(voice)
    voice += _noise(n, rate, 60, rate / 2, rng) * 10 ** (rng.uniform(-16, -10) / 20)
    if fault:
        voice = _FAULTS[fault](voice, turns, severity, rng, rate)
    level = 0.085 * 10 ** (rng.uniform(-3, 3) / 20)
    return np.tanh(voice * level).astype(np.float32)


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x * x))) + 1e-12


def _noise(n: int, rate: int, low: float, high: float, rng: np.random.Generator, slope: float = 0.5) -> np.ndarray:
    """Return noise with RMS 1 between `low` and `high` Hz, whose amplitude is proportional to frequency ** -slope."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    f = np.fft.rfftfreq(n, 1 / rate)
    gain = np.maximum(f, 20.0) ** -slope / (1 + (low / np.maximum(f, 1.0)) ** 8) / (1 + (f / high) ** 8)
    x = np.fft.irfft(spectrum * gain, n)
    return x / _rms(x)


def _tone(turns: np.ndarray, order: float, rng: np.random.Generator) -> np.ndarray:
    return np.sin(2 * np.pi * (order * turns + rng.uniform()))


def _fan(turns: np.ndarray, t: np.ndarray, rng: np.random.Generator, rate: int) -> np.ndarray:
    """Broadband noise modulated by five blades, and a low blade tone."""
    air = _noise(len(t), rate, 120, 1600, rng, 0.9)
    return air * (1 + 0.35 * _tone(turns, 5, rng)) + 0.5 * _tone(turns, 15, rng) + 0.25 * _tone(turns, 30, rng)


def _gearbox(turns: np.ndarray, t: np.ndarray, rng: np.random.Generator, rate: int) -> np.ndarray:
    """The gear mesh of 37 teeth with harmonics, each with sidebands at a distance of one shaft order."""
    mesh = sum(a * _tone(turns, 37 * k, rng) * (1 + 0.3 * _tone(turns, 1, rng)) for k, a in ((1, 1.0), (2, 0.6), (3, 0.3)))
    return mesh + 0.45 * _noise(len(t), rate, 100, 1200, rng, 0.7)


def _pump(turns: np.ndarray, t: np.ndarray, rng: np.random.Generator, rate: int) -> np.ndarray:
    """A low pulse of seven vanes, and flow noise at higher frequencies."""
    pulse = sum(a * _tone(turns, 7 * k, rng) for k, a in ((1, 1.0), (2, 0.8), (3, 0.4)))
    return pulse + 0.5 * _noise(len(t), rate, 900, 3000, rng, 0.2)


def _motor(turns: np.ndarray, t: np.ndarray, rng: np.random.Generator, rate: int) -> np.ndarray:
    """Mains hum at 100 Hz with harmonics, and a tone of 97 rotor slots."""
    hum = sum(np.sin(2 * np.pi * (100 * k * t + rng.uniform())) / k for k in (1, 2, 3))
    return hum + 0.55 * _tone(turns, 97, rng) + 0.3 * _noise(len(t), rate, 80, 900, rng, 0.8)


def _hits(
    turns: np.ndarray, order: float, ring: float, decay: float, rng: np.random.Generator, rate: int, load: float = 0.0
) -> np.ndarray:
    """Return impulses, `order` per turn. Each is a resonance at `ring` Hz that decays within `decay` seconds.

    load: depth of their modulation over the turn, 0..1
    """
    n = len(turns)
    start = rng.uniform()
    index = np.flatnonzero(np.diff(np.floor(order * turns + start), prepend=np.floor(order * turns[0] + start)))
    index = np.clip(index + np.rint(rng.normal(0, 0.012 / order, len(index)) * rate / 10).astype(int), 0, n - 1)
    around = 0.5 + 0.5 * np.cos(2 * np.pi * turns[index])
    strength = (1 - load + load * around**2) * rng.uniform(0.85, 1.15, len(index))
    tail = np.arange(round(6 * decay * rate)) / rate
    shape = np.exp(-tail / decay) * np.sin(2 * np.pi * ring * tail)
    out = np.zeros(n + len(shape))
    for i, a in zip(index, strength, strict=True):  # there are few impulses, so this is cheaper than a convolution
        out[i : i + len(shape)] += a * shape
    return out[:n]


def _outer(x: np.ndarray, turns: np.ndarray, s: float, rng: np.random.Generator, rate: int) -> np.ndarray:
    return x + 1.6 * s * _hits(turns, 3.58, 1350, 0.006, rng, rate)


def _inner(x: np.ndarray, turns: np.ndarray, s: float, rng: np.random.Generator, rate: int) -> np.ndarray:
    return x + 1.8 * s * _hits(turns, 5.42, 2050, 0.005, rng, rate, load=0.95)


def _crack(x: np.ndarray, turns: np.ndarray, s: float, rng: np.random.Generator, rate: int) -> np.ndarray:
    """Add one short high-frequency impulse per turn."""
    return x + 2.6 * s * _hits(turns, 1, 3300, 0.0022, rng, rate)


def _scratch(x: np.ndarray, turns: np.ndarray, s: float, rng: np.random.Generator, rate: int) -> np.ndarray:
    """Add grinding noise over a third of every turn."""
    angle = (turns + rng.uniform()) % 1
    gate = np.clip(np.minimum(angle, 0.36 - angle) / 0.03, 0, 1)
    return x + 0.55 * s * gate * _noise(len(x), rate, 1500, 3400, rng, 0.0)


def _imbalance(x: np.ndarray, turns: np.ndarray, s: float, rng: np.random.Generator, rate: int) -> np.ndarray:
    """Add a low boom once per turn, and modulate all other sound with it."""
    around = 0.5 + 0.5 * np.cos(2 * np.pi * (turns + rng.uniform()))
    depth = min(0.95, 0.22 + 0.17 * s)
    t = np.arange(len(x)) / rate
    boom = np.sin(2 * np.pi * 62 * t + rng.uniform(0, 6.28)) * around**3
    return x * (1 - depth + 1.6 * depth * around) + 0.8 * s * boom


Voice = Callable[[np.ndarray, np.ndarray, np.random.Generator, int], np.ndarray]
Fault = Callable[[np.ndarray, np.ndarray, float, np.random.Generator, int], np.ndarray]
_VOICES: dict[str, Voice] = {"fan": _fan, "gearbox": _gearbox, "pump": _pump, "motor": _motor}
_FAULTS: dict[str, Fault] = {"outer": _outer, "inner": _inner, "crack": _crack, "scratch": _scratch, "imbalance": _imbalance}
