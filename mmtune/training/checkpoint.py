"""Checkpoints: everything a run needs to go on as if it had never stopped. Weights-only files, published whole."""

import random
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmtune.errors import ModelError
from mmtune.runtime.files import atomic_dir, read_json, write_json


@dataclass
class Place:
    """Where a run is. step: optimizer steps taken; epoch, batch: the next batch to train; seconds in steps, `waited` of them
    for data; best: (metric, checkpoint name)."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    pairs: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    best: list[tuple[float, str]] = field(default_factory=list)
    stale: int = 0
    finished: bool = False

    @property
    def wait(self) -> float:
        """The share of its time that the run waited for data."""
        return self.waited / max(self.seconds, 1e-9)


def random_state() -> dict[str, Any]:
    """Python's, numpy's and torch's generators."""
    version, internal, gauss = random.getstate()
    name, keys, pos, has, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": torch.tensor(internal, dtype=torch.int64),
        "numpy": (torch.from_numpy(np.asarray(keys).astype(np.int64)), int(pos), int(has), float(cached)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Undo `random_state`."""
    random.setstate((3, tuple(state["python"].tolist()), None))
    keys, pos, has, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), pos, has, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


class Checkpoints:
    """The directory RUN/checkpoints: `last`, and the `keep` best by the validation metric. Without `write` it is only read:
    another process writes it."""

    def __init__(self, directory: Path, keep: int, write: bool = True):
        self.directory, self.keep, self.write = directory, keep, write

    def save(self, name: str, tensors: dict[str, Any], place: Place) -> None:
        """Publish one checkpoint."""
        if not self.write:
            return
        with atomic_dir(self.directory / name) as tmp:
            torch.save(tensors, tmp / "state.pt")
            write_json(tmp / "place.json", asdict(place))

    def load(self, name: str) -> tuple[dict[str, Any], Place]:
        """Tensors and place of one checkpoint; nothing is unpickled but tensors and plain values."""
        try:
            tensors = torch.load(self.directory / name / "state.pt", map_location="cpu", weights_only=True)
        except (OSError, RuntimeError) as e:
            raise ModelError(
                f"{self.directory / name}: damaged checkpoint ({str(e).splitlines()[0]}); delete it to start anew"
            ) from None
        document = read_json(self.directory / name / "place.json")
        document["best"] = [(float(m), str(n)) for m, n in document["best"]]
        return tensors, Place(**document)

    def has(self, name: str) -> bool:
        """Whether a checkpoint of that name was published."""
        return (self.directory / name / "place.json").is_file()

    def offer(self, metric: float, tensors: dict[str, Any], place: Place) -> bool:
        """Keep the weights if they are among the best; drop the one that no longer is. True when it is the very best."""
        name = f"step-{place.step:07d}"
        ranked = sorted([*[b for b in place.best if b[1] != name], (metric, name)], key=lambda b: (-b[0], b[1]))[: self.keep]
        gone = [n for _, n in place.best if n not in {m for _, m in ranked}]
        place.best = ranked
        if any(n == name for _, n in ranked):
            self.save(name, {"model": tensors["model"], "objective": tensors["objective"]}, place)
        for old in gone if self.write else ():
            shutil.rmtree(self.directory / old, ignore_errors=True)
        return ranked[0][1] == name
