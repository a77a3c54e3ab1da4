"""The members of a tar, grouped into samples: which bytes of the file belong to which key.

A sample is all members with the same key: the path up to the first dot of its last part, as webdataset has it. What follows that
dot is the member's extension. Names such as SKU.VIEW.png would make one sample of all views of a product: where every key that ends
at the last dot instead has the same suffixes, and the first dot would leave members out, the key ends at the last dot.
"""

import os
import posixpath
import tarfile
from collections import Counter
from typing import BinaryIO, TypeAlias

from mmtune import modalities
from mmtune.data.identity_labels import decode_name
from mmtune.errors import DataError

MAX_LINKS = 8
Span: TypeAlias = tuple[int, int]
"""(offset, size) of bytes in the tar."""
Members: TypeAlias = dict[str, Span]
"""Extension -> where the member's bytes lie."""
DOCUMENTS = {"json", "cls"}
"""Extensions of members that describe a sample."""
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}


class TarMembers:
    """Where the members of a tar's samples lie. samples: key -> members, in the order the keys first appear; notes: what was left
    out -> how often.

    Archives written one after the other (`cat a.tar b.tar`) are all read. Hard and symbolic links are the member that they name.
    """

    def __init__(self, path: str):
        """Raises DataError naming the file when it is compressed, no tar, truncated, damaged, or holds a member twice."""
        self.path, self.size = path, os.path.getsize(path)
        self.notes: Counter[str] = Counter()
        self._spans: dict[str, Span] = {}
        self._links: list[tuple[str, str]] = []  # (name, name of its target)
        with open(path, "rb") as f:
            head = f.read(8)
            for magic, kind in _COMPRESSED.items():
                if head.startswith(magic):
                    raise DataError(
                        f"{path}: {kind}-compressed; rows are read at random, so decompress it to a plain .tar first"
                    )
            start: int | None = 0
            while start is not None:
                end = self._read_archive(f, start)
                start = self._next_archive(f, end)
        self._resolve_links()
        self.samples = self._group_members()
        self._spans, self._links = {}, []

    def _read_archive(self, file: BinaryIO, start: int) -> int:
        """Read one archive; the offset of the block after its last member."""
        end = start
        file.seek(start)
        try:
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
                while (member := tar.next()) is not None:
                    end = tar.offset
                    tar.members = []  # type: ignore[attr-defined]  # else a shard of a million members keeps a million headers
                    self._add(member)
        except (tarfile.TarError, EOFError, OverflowError) as e:
            what = "no tar file" if not end else f"truncated or damaged after byte {end}"
            raise DataError(f"{self.path}: {what} ({e}); copy or write it again") from None
        # tarfile takes a broken header for the end of the archive: rows after it would be lost without a word
        file.seek(end)
        last = file.read(tarfile.BLOCKSIZE)
        if len(last) < tarfile.BLOCKSIZE or any(last):
            what = "truncated" if len(last) < tarfile.BLOCKSIZE else "damaged"
            raise DataError(f"{self.path}: {what} at byte {end}, no end mark there; copy or write it again")
        return end

    def _next_archive(self, file: BinaryIO, end: int) -> int | None:
        """Where another archive starts after the end mark at `end`; None when there are only zeros."""
        file.seek(end)
        offset = end
        while block := file.read(1 << 20):
            if block.count(0) < len(block):
                first = next(i for i, byte in enumerate(block) if byte)
                return offset + first // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
            offset += len(block)
        return None

    def _add(self, member: tarfile.TarInfo) -> None:
        name = decode_name(member.name)
        if member.islnk():
            self._links.append((name, decode_name(member.linkname)))
        elif member.issym():
            self._links.append((name, posixpath.join(posixpath.dirname(name), decode_name(member.linkname))))
        elif member.issparse():  # its bytes do not lie in one piece
            self.notes["sparse members, left out"] += 1
        elif member.isreg():
            if member.offset_data + member.size > self.size:
                raise DataError(f"{self.path}: truncated inside {name}; copy or write it again")
            self._add_span(name, (member.offset_data, member.size))

    def _add_span(self, name: str, span: Span) -> None:
        if _key_to_first_dot(name)[1]:
            if name in self._spans:
                self._refuse_twice(name)
            self._spans[name] = span

    def _resolve_links(self) -> None:
        targets = {posixpath.normpath(name): target for name, target in self._links}
        members = {posixpath.normpath(name): span for name, span in self._spans.items()}
        for name, target in self._links:
            for _ in range(MAX_LINKS):  # a link to a link
                target = posixpath.normpath(target)
                target = targets.get(target, target)
            if span := members.get(target):
                self._add_span(name, span)
            elif _key_to_first_dot(name)[1]:
                self.notes["links to something that is not in the tar, left out"] += 1

    def _group_members(self) -> dict[str, Members]:
        if any("." in _key_to_first_dot(name)[1] for name in self._spans):
            samples: dict[str, Members] = {}
            for name, span in self._spans.items():
                key, extension = _key_to_last_dot(name)
                samples.setdefault(key, {})[extension] = span
            suffixes = {frozenset(members) for members in samples.values()}
            known = set(modalities.by_extension())
            if len(suffixes) == 1 and (first := next(iter(suffixes))) & known:
                shorter = {_key_to_first_dot(name)[0] for name in self._spans}
                if sum(map(len, samples.values())) == len(self._spans) and (len(samples) > len(shorter) or first & DOCUMENTS):
                    return samples
        samples = {}
        for name, span in self._spans.items():
            key, extension = _key_to_first_dot(name)
            members = samples.setdefault(key, {})
            if extension in members:
                self._refuse_twice(name)
            members[extension] = span
        return samples

    def _refuse_twice(self, name: str) -> None:
        raise DataError(f"{self.path}: the member {name} is there twice; give every sample its own key")


def _key_to_first_dot(name: str) -> tuple[str, str]:
    """(key, extension) of a member; ("", "") for one that belongs to no sample."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot or base.startswith("__"):
        return "", ""
    return folder + slash + stem, extension.lower()


def _key_to_last_dot(name: str) -> tuple[str, str]:
    """(key, suffix) of a member that belongs to a sample."""
    key, _, suffix = name.removeprefix("./").rpartition(".")
    return key, suffix.lower()


def find_value(members: Members, owner: dict[str, str], name: str, extensions: tuple[str, ...]) -> Span | None:
    """Where the value of modality `name` lies in a sample, or None. owner: extension -> modality."""
    for extension in extensions:
        if extension in members and owner[extension] == name:
            return members[extension]
    compound = [e for e in members if e not in owner and "." in e and owner.get(e.rpartition(".")[2]) == name]
    return members[min(compound, key=lambda e: (extensions.index(e.rpartition(".")[2]), e))] if compound else None
