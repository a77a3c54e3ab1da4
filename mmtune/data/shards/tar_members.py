"""Group the members of a tar file (the files in it) into samples by their keys.

As in webdataset, the key of a member is its path up to the first dot in the file name, and the rest is its extension. Members with
the same key form a sample.

File names such as SKU.VIEW.png need another rule, because all views of a product would have the same key. If cutting names at the
first dot would leave members out, and cutting them at the last dot gives every sample the same extensions, the last dot is used.
"""

import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterable
from typing import BinaryIO, TypeAlias

from mmtune import modalities
from mmtune.data.identity_labels import decode_name
from mmtune.errors import DataError

CUT = -1
"""Size of a member whose bytes are not all in the file."""
USTAR, USTAR_AT = b"ustar", 257
"""A header of the usual formats of tar files has these bytes at this offset."""
MAX_LINKS = 8
"""Maximum number of links that are followed from one link to the next."""
Span: TypeAlias = tuple[int, int]
"""(offset, size) of a member's bytes in the tar file."""
Members: TypeAlias = dict[str, Span]
"""The members of a sample: extension -> position in the tar file."""
DOCUMENTS = {"json", "cls"}
"""Extensions of members that contain metadata instead of a value of a modality."""
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}


class TarMembers:
    """The samples of a tar file and the positions of their members.

    samples: key -> members, in the order in which the keys first occur
    notes: description of what was skipped -> number of members
    cuts: offsets at which the archive is truncated or damaged; empty unless it is salvaged
    cut_samples: keys of the samples of which a member is cut; they are not in `samples`

    Concatenated archives (`cat a.tar b.tar`) are all read. Hard and symbolic links are resolved to the members they point to.
    """

    def __init__(self, path: str, salvage: bool = False):
        """Read the headers of the tar file `path`.

        salvage: read what is whole of a truncated or damaged file, instead of raising DataError; reading continues at the next
            valid header

        Raises DataError, which names the file, if it is compressed, not a tar file, truncated or damaged, or contains a member twice.
        """
        self.path, self.size, self.salvage = path, os.path.getsize(path), salvage
        self.cuts: list[int] = []
        self.notes: Counter[str] = Counter()
        self._spans: dict[str, Span] = {}
        self._links: list[tuple[str, str]] = []  # (name, name of its target)
        with open(path, "rb") as f:
            head = f.read(8)
            for magic, kind in _COMPRESSED.items():
                if head.startswith(magic):
                    raise DataError(
                        f"{path}: {kind}-compressed, which does not allow random access; decompress it to a plain .tar first"
                    )
            start: int | None = 0
            while start is not None:
                end = self._read_archive(f, start)
                start = self._next_header(f, end) if self.cuts and self.cuts[-1] == end else self._next_archive(f, end)
        self._resolve_links()
        samples = self._group_members()
        self.cut_samples = [key for key, members in samples.items() if CUT in {size for _, size in members.values()}]
        self.samples = {key: members for key, members in samples.items() if key not in set(self.cut_samples)}
        self._spans, self._links = {}, []

    def _read_archive(self, file: BinaryIO, start: int) -> int:
        """Read the headers of the archive that begins at `start`. Returns the offset of the block after its last member."""
        end = start
        file.seek(start)
        try:
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
                while (member := tar.next()) is not None:
                    end = tar.offset
                    tar.members = []  # type: ignore[attr-defined]  # tarfile would keep the headers of all members in memory
                    self._add(member)
        except (tarfile.TarError, EOFError, OverflowError, ValueError) as e:
            what = "not a tar file" if not end else f"truncated or damaged after byte {end}"
            return self._cut(end, f"{what} ({e})")
        # tarfile treats a damaged header as the end of the archive; without this check the rows after it would be lost silently
        file.seek(end)
        last = file.read(tarfile.BLOCKSIZE)
        if len(last) < tarfile.BLOCKSIZE or any(last):
            what = "truncated" if len(last) < tarfile.BLOCKSIZE else "damaged"
            return self._cut(end, f"{what} at byte {end}, where the end mark should be")
        return end

    def _cut(self, offset: int, problem: str) -> int:
        """Record that the archive is damaged at `offset` and return the offset. Without `salvage` raises DataError instead."""
        if not self.salvage or self.size < tarfile.BLOCKSIZE:
            fix = "copy or write it again" + (f"; what is whole: mmtune pack {self.path} --out DIR" if offset else "")
            raise DataError(f"{self.path}: {problem}; {fix}")
        self.cuts.append(min(offset, self.size))
        return self.cuts[-1]

    def _next_header(self, file: BinaryIO, damaged: int) -> int | None:
        """The offset of the next valid header after a damaged one; None if there is none."""
        for offset in range(damaged // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE + tarfile.BLOCKSIZE, self.size, tarfile.BLOCKSIZE):
            file.seek(offset)
            block = file.read(tarfile.BLOCKSIZE)
            if block[USTAR_AT : USTAR_AT + len(USTAR)] != USTAR:
                continue
            try:
                tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                continue
            return offset
        return None

    def _next_archive(self, file: BinaryIO, end: int) -> int | None:
        """The offset of another archive after the end mark at `end`; None if only zeros follow."""
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
        elif member.issparse():  # its bytes are not contiguous in the tar file
            self.notes["sparse members, left out"] += 1
        elif member.isreg():
            if member.offset_data + member.size > self.size:
                self._cut(self.size, f"truncated inside {name}")
                self._add_span(name, (member.offset_data, CUT))
            else:
                self._add_span(name, (member.offset_data, member.size))

    def _add_span(self, name: str, span: Span) -> None:
        if key_to_first_dot(name)[1]:
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
            elif key_to_first_dot(name)[1]:
                self.notes["links to something that is not in the tar, left out"] += 1

    def _group_members(self) -> dict[str, Members]:
        if any(has_two_dots(name) for name in self._spans):
            suffixes, is_needed = suffixes_at_last_dot(self._spans)
            if suffixes and is_needed:
                by_key: dict[str, Members] = {}
                for name, span in self._spans.items():
                    key, extension = key_to_last_dot(name)
                    by_key.setdefault(key, {})[extension] = span
                return by_key
        samples: dict[str, Members] = {}
        for name, span in self._spans.items():
            key, extension = key_to_first_dot(name)
            members = samples.setdefault(key, {})
            if extension in members:
                self._refuse_twice(name)
            members[extension] = span
        return samples

    def _refuse_twice(self, name: str) -> None:
        raise DataError(f"{self.path}: contains the member {name} twice; give every sample a key of its own")


def key_to_first_dot(name: str) -> tuple[str, str]:
    """Split the name of a member at the first dot into (key, extension); ("", "") if it belongs to no sample."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot or base.startswith("__"):
        return "", ""
    return folder + slash + stem, extension.lower()


def key_to_last_dot(name: str) -> tuple[str, str]:
    """Split the name of a member at the last dot into (key, extension)."""
    key, _, suffix = name.removeprefix("./").rpartition(".")
    return key, suffix.lower()


def has_two_dots(name: str) -> bool:
    """Whether the first and the last dot of the file name differ, in the name of a member that belongs to a sample."""
    return "." in key_to_first_dot(name)[1]


def suffixes_at_last_dot(names: Iterable[str]) -> tuple[frozenset[str] | None, bool]:
    """Whether the names of all members of samples should be cut at the last dot.

    Returns (the extensions that every sample then has, one of them of a modality; None if samples would have different ones, or one twice,
    whether cutting at the first dot would leave members out).
    """
    samples: dict[str, list[str]] = {}
    shorter = set()
    for name in names:
        key, suffix = key_to_last_dot(name)
        samples.setdefault(key, []).append(suffix)
        shorter.add(key_to_first_dot(name)[0])
    suffixes = {frozenset(of_sample) for of_sample in samples.values()}
    first = next(iter(suffixes)) if len(suffixes) == 1 else frozenset()
    if not first & set(modalities.by_extension()) or any(len(of_sample) > len(first) for of_sample in samples.values()):
        return None, False
    return first, len(samples) > len(shorter) or bool(first & DOCUMENTS)


def find_value(members: Members, owner: dict[str, str], name: str, extensions: tuple[str, ...]) -> Span | None:
    """Find the member with the value of modality `name` in a sample. Returns its position, or None if there is none.

    owner: extension -> modality
    extensions: extensions of the modality, in order of preference
    """
    for extension in extensions:
        if extension in members and owner[extension] == name:
            return members[extension]
    compound = [e for e in members if e not in owner and "." in e and owner.get(e.rpartition(".")[2]) == name]
    return members[min(compound, key=lambda e: (extensions.index(e.rpartition(".")[2]), e))] if compound else None
