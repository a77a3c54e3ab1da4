"""What happened at each step: RUN/metrics.jsonl and TensorBoard events."""

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Any

from mmtune.runtime.files import append_jsonl, read_jsonl_log, write_jsonl


class Log:
    """Lines {"step", "epoch", ...}. Opened for a resumed run it first drops the lines behind the checkpoint's step. With `on`
    False it writes nothing: another process does."""

    def __init__(self, directory: Path, step: int, on: bool = True):
        self.path, self.directory, self.step, self.on = directory / "metrics.jsonl", directory, step, on
        self.board: Any = None

    def __enter__(self) -> "Log":
        if not self.on:
            return self
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            write_jsonl(self.path, [r for r in read_jsonl_log(self.path) if r["step"] <= self.step])
        with contextlib.suppress(ImportError):
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(self.directory / "tensorboard"), purge_step=self.step + 1)
        return self

    def write(self, step: int, epoch: int, values: dict[str, float]) -> None:
        """One line and one TensorBoard point a value."""
        if self.on:
            append_jsonl(self.path, {"step": step, "epoch": epoch, **values})
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name.replace(" ", "/"), value, step)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.board is not None:
            self.board.close()
