"""Faults that must not stop a pack: damaged files, decoders that crash or hang, kills at any point."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmtune import modalities
from mmtune.data.pack.pack import pack
from mmtune.data.shards.dataset import open_data
from mmtune.errors import DataError
from mmtune.runtime.files import read_jsonl
from tests.support.data_helpers import Trace, catalog, mangled, png_bomb, sound, tree, write_csv
from tests.support.signalled import NO_SIGNAL, Signal, mmtune_process


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))


def mangle(tmp_path: Path, count: int) -> None:
    """`count` mangled files as a folder and as a table; everything must be accounted for, and what is packed must decode."""
    rng = random.Random(count)
    files = tmp_path / "files"
    files.mkdir()
    table = []
    for i in range(count):
        suffix, data = mangled(rng, i)
        (files / f"{i:05d}.{suffix}").write_bytes(data)
        column = "audio" if suffix in ("wav", "flac", "ogg", "mp3", "opus", "aiff") else "image"
        table.append(
            {
                "image": "",
                "audio": "",
                "text": data[:40].decode("latin-1") if i % 7 == 0 else f"caption {i}",
                column: f"files/{i:05d}.{suffix}",
            }
        )
    for source, out in ((files, tmp_path / "a"), (write_csv(tmp_path / "rows.csv", table), tmp_path / "b")):
        got = pack(source, out, max_rejected=1.0, workers=2, options={"max_pixels": 10_000_000}, timeout=30)
        assert got.rows == count == got.packed + got.rejected and got.packed > count // 10 < got.rejected
        rejected = read_jsonl(out / "rejected.jsonl")
        assert len(rejected) == got.rejected and len({r["row"] for r in rejected}) == len(rejected)
        assert all(r["reason"] and (r["file"] or source != files) for r in rejected)
        data = open_data(str(out))
        assert len(data) == got.packed
        for i in range(len(data)):
            for name, value in data.row(i).values.items():
                modalities.get(name).decode(value)
        assert not {r["file"] for r in rejected} & set(data.ids)


def test_mangled_files(tmp_path: Path) -> None:
    mangle(tmp_path, 150)


@pytest.mark.slow
def test_a_thousand_mangled_files(tmp_path: Path) -> None:
    mangle(tmp_path, 1000)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_decoder_that_dies_or_hangs_costs_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setattr(modalities, "TABLE", dict(modalities.TABLE))
    modalities.register("trace", f"{Trace.__module__}:Trace")
    content = [b"fine"] * 40
    content[3] = content[4] = content[20] = b"segv"
    content[10] = b"hang"
    content[11] = b"boom"
    content[39] = b"segv"
    for i, data in enumerate(content):
        (tmp_path / f"{i}.f32").write_bytes(data)
    source = write_csv(tmp_path / "rows.csv", [{"trace": f"{i}.f32"} for i in range(40)])
    started = time.monotonic()
    got = pack(source, tmp_path / "out", workers=workers, timeout=1.0, max_rejected=0.5)
    assert got.packed == 34 and time.monotonic() - started < 30
    reasons = {r["row"] - 1: r["reason"] for r in read_jsonl(tmp_path / "out" / "rejected.jsonl")}
    assert reasons == {
        **{i: "trace: crashes its decoder (SIGSEGV)" for i in (3, 4, 20, 39)},
        10: "trace: takes longer than 1 s to decode (--timeout)",
        11: "trace: cannot be decoded: RuntimeError: a bug in a decoder",
    }


def test_a_modality_that_workers_cannot_import_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modalities, "TABLE", dict(modalities.TABLE))
    monkeypatch.setitem(sys.modules, "only_here", sys.modules[Trace.__module__])
    modalities.register("trace", "only_here:Trace")
    (tmp_path / "0.f32").write_bytes(b"fine")
    with pytest.raises(DataError, match="cannot import the modalities .*only_here.*module that can be imported"):
        pack(write_csv(tmp_path / "rows.csv", [{"trace": "0.f32"}]), tmp_path / "out")


ENTRY = "mmtune.data.pack.resume_journal:append_jsonl"
WRITE = "mmtune.data.pack.shard_writer:_HashedStream.write"


def start(source: Path, out: Path, *more: str, at: Signal = NO_SIGNAL) -> subprocess.Popen[str]:
    return mmtune_process("pack", source, "--out", out, "--shard-size", "30KB", "--workers", "1", *more, at=at)


def killed_then_finished(source: Path, out: Path, entries: int, *more: str) -> int:
    """Kill a pack by SIGKILL at its journal's n-th entry, run it again to the end; shards there at the kill."""
    process = start(source, out, *more, at=Signal(ENTRY, entries, signal.SIGKILL))
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    shards = len([p for p in out.rglob("*.tar") if not p.name.startswith(".")])
    with pytest.raises(DataError):
        open_data(str(out))
    process = start(source, out, *more)
    _, error = process.communicate()
    assert process.returncode == 0, error
    return shards


def test_killed_and_run_again_gives_the_same_bytes(tmp_path: Path) -> None:
    source = catalog(tmp_path / "src", 240, size=48)
    lines = source.read_text().splitlines()
    for i in range(10, 240, 40):
        lines[i] = "img/gone.png,none,s,red"
    source.write_text("\n".join(lines))
    pack(source, tmp_path / "whole", shard_size="30KB")
    want = tree(tmp_path / "whole", hidden=True)
    total = len(list((tmp_path / "whole").glob("*.tar")))
    found = [killed_then_finished(source, tmp_path / f"k{entries}", entries) for entries in (2, 11)]
    assert 0 < found[0] < found[1] < total, "the kills came too late to prove anything"
    for entries in (2, 11):
        assert tree(tmp_path / f"k{entries}", hidden=True) == want


def test_killed_with_splits(tmp_path: Path) -> None:
    source = catalog(tmp_path / "src", 160, size=48)
    pack(source, tmp_path / "whole", shard_size="30KB", split="colour")
    found = killed_then_finished(source, tmp_path / "k", 5, "--split", "colour")
    assert 0 < found < len(list((tmp_path / "whole").rglob("*.tar")))
    assert tree(tmp_path / "k", hidden=True) == tree(tmp_path / "whole", hidden=True)


@pytest.mark.slow
def test_killed_at_random_moments_again_and_again(tmp_path: Path) -> None:
    source = catalog(tmp_path / "src", 400, size=48)
    pack(source, tmp_path / "whole", shard_size="30KB", split="colour")
    rng = random.Random(0)
    kills = 0
    for round in range(4):
        out = tmp_path / f"r{round}"
        for turn in range(7):
            at = Signal(WRITE, rng.randint(1, 120), signal.SIGKILL) if turn < 6 else NO_SIGNAL
            process = start(source, out, "--split", "colour", at=at)
            process.communicate()
            if process.returncode != -signal.SIGKILL:
                break
            kills += 1
        assert process.returncode == 0
        assert tree(out, hidden=True) == tree(tmp_path / "whole", hidden=True)
    assert kills > 3


def test_a_second_pack_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    source = catalog(tmp_path / "src", 200, size=48)
    process = start(source, tmp_path / "out", at=Signal(ENTRY, 1, signal.SIGSTOP))
    assert os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT).si_code == os.CLD_STOPPED  # type: ignore
    try:
        with pytest.raises(DataError, match="another `mmtune pack` is writing here"):
            pack(source, tmp_path / "out", shard_size="30KB")
    finally:
        process.send_signal(signal.SIGCONT)
    process.communicate()
    assert process.returncode == 0 and len(open_data(str(tmp_path / "out"))) == 200


@pytest.mark.parametrize("at", [(ENTRY, 2), (WRITE, 1), (WRITE, 30)])
def test_ctrl_c_leaves_no_temporary_file_and_resumes(tmp_path: Path, at: tuple[str, int]) -> None:
    source = catalog(tmp_path / "src", 240, size=48)
    process = start(source, tmp_path / "out", at=Signal(*at, signal.SIGINT))
    _, error = process.communicate()
    assert process.returncode == 130 and "run the same command again" in error and not list((tmp_path / "out").rglob(".tmp-*"))
    assert pack(source, tmp_path / "out", shard_size="30KB").packed == 240


def test_memory_stays_bounded_when_the_first_row_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results may run ahead of a slow row only so far."""
    monkeypatch.setattr("mmtune.data.pack.decode_pool.AHEAD_BYTES", 400_000)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "0.png").write_bytes(png_bomb(7000, 7000, True))
    for i in range(1, 120):
        (tmp_path / "src" / f"{i}.wav").write_bytes(sound(i, seconds=1.0, rate=16000))
    table = [{"image": "0.png", "audio": ""}, *({"image": "", "audio": f"{i}.wav"} for i in range(1, 120))]
    held: list[int] = []
    from mmtune.data.pack.decode_pool import DecodePool

    collect = DecodePool._collect

    def watch(self: DecodePool, *args: object) -> None:
        collect(self, *args)  # type: ignore[arg-type]
        held.append(self.bytes_ahead)

    monkeypatch.setattr(DecodePool, "_collect", watch)
    pack(write_csv(tmp_path / "src" / "rows.csv", table), tmp_path / "out", workers=2)
    assert len(open_data(str(tmp_path / "out"))) == 120
    assert max(held) < 400_000 + 2 * 17 * 33_000


def test_torn_journal_lines_are_ignored(tmp_path: Path) -> None:
    source, out = catalog(tmp_path / "src", 30), tmp_path / "out"
    pack(source, out, shard_size="8KB")
    want = tree(out, hidden=True)
    journal = out / ".pack" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:4]) + lines[4][: len(lines[4]) // 2])
    (out / "index.json").unlink()
    (out / ".tmp-left.tar").write_bytes(b"of a killed run")
    for k in range(4, 8):
        os.unlink(out / f"shard-{k:06d}.tar")
    assert pack(source, out, shard_size="8KB").packed == 30
    assert tree(out, hidden=True) == want
    assert json.loads(want[".pack/journal.jsonl"].splitlines()[0])["schema"] == 1
