"""The actions of `mmtune index` that maintain a collection: erase, backup, restore, clone, gc, compact, verify, repair."""

import argparse
from collections.abc import Iterable

from mmtune.cli.collection_arguments import open_collection
from mmtune.cli.dispatch import Result, add_quiet


def _lines(*parts: str | Iterable[str]) -> str:
    return "\n".join(line for part in parts for line in ([part] if isinstance(part, str) else part))


def erase_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("item", metavar="ITEM", help="id of the item to erase")
    p.add_argument("--why", required=True, metavar="REASON", help="reason to record in the audit log, without the id")
    add_quiet(p)


def erase_action(args: argparse.Namespace) -> Result:
    with open_collection(args) as collection:
        result = collection.maintenance.erase(args.item, args.why, args.quiet)
    proof = result.proof
    head = "erased" if result.erased else "NOT ERASED everywhere"
    known = "" if result.known else " (the catalog had no item of that id)"
    lines = [f"{head}{known}"]
    if proof:
        searched = "its id and " if proof.id_bytes else ""
        lines.append(
            f"searched {proof.files} files ({proof.bytes:,} bytes) for {searched}{proof.windows} byte sequences of its contents "
            f"and vectors, and looked its id up in: {', '.join(proof.looked_up)}"
        )
        lines += [f"found: {f}" for f in proof.found] or ["found: nothing"]
    lines += [f"left in {where}: {reason}; open the collection again to finish" for where, reason in result.behind.items()]
    lines += [f"outside the collection, pack again without the item: {shards}" for shards in result.outside]
    return Result(result.to_dict(), _lines(lines), 0 if result.erased else 1)


def backup_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--out", required=True, metavar="FILE", help="the backup to write, a tar file")
    add_quiet(p)


def backup_action(args: argparse.Namespace) -> Result:
    with open_collection(args) as collection:
        result = collection.maintenance.backup(args.out, args.quiet)
    text = _lines(
        (f"{path}: removed; a backup that was killed had left it" for path in result.removed),
        f"{result.path}: {result.files} files, {result.bytes:,} bytes; live: {result.live}",
    )
    return Result(result.to_dict(), text)


def restore_action(args: argparse.Namespace) -> Result:
    from pathlib import Path

    from mmtune.index.collection import Collection
    from mmtune.index.maintenance.backup import restore

    result = restore(Path(args.file), Path(args.collection), args.quiet)
    Collection(args.collection, quiet=args.quiet).close()  # fills the tables of its versions
    return Result(result.to_dict(), f"{result.path}: {', '.join(result.versions) or 'no versions'}; live: {result.live}")


def clone_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("target", metavar="TARGET", help="the new directory")
    add_quiet(p)


def clone_action(args: argparse.Namespace) -> Result:
    from mmtune.index.collection import Collection

    with open_collection(args) as collection:
        result = collection.maintenance.clone(args.target, args.quiet)
    Collection(args.target, quiet=args.quiet).close()  # fills the tables of its versions
    return Result(result.to_dict(), f"{result.path}: {', '.join(result.versions) or 'no versions'}; live: {result.live}")


def gc_action(args: argparse.Namespace) -> Result:
    with open_collection(args) as collection:
        r = collection.maintenance.gc(args.quiet)
    text = _lines(
        f"{r.bytes:,} bytes freed: {len(r.stores)} stores, {len(r.models)} models, {len(r.versions)} version directories, "
        f"{r.contents} contents, {r.vectors} cached vectors, {r.tombstones} rows of deleted items, {r.files} temporary files",
        (f"{path}: removed; a backup that was killed had left it" for path in r.backups),
        (f"left: {name}: {reason}" for name, reason in r.left.items()),
    )
    return Result(r.to_dict(), text, 1 if r.left else 0)


def compact_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("version", nargs="?", metavar="VERSION", help="the version to compact (default: all)")
    p.add_argument(
        "--full",
        action="store_true",
        help="rewrite everything, so that no byte of a deleted row is left; searches in PostgreSQL wait meanwhile",
    )
    add_quiet(p)


def compact_action(args: argparse.Namespace) -> Result:
    with open_collection(args) as collection:
        r = collection.maintenance.compact(args.version, full=args.full, quiet=args.quiet)
    text = _lines(
        (f"{name}: {size:,} -> {r.after.get(name, size):,} bytes: {r.notes.get(name, '')}" for name, size in r.before.items()),
        (f"{version} left out: {reason}" for version, reason in r.behind.items()),
    )
    return Result(r.to_dict(), text, 1 if r.behind else 0)


def verify_action(args: argparse.Namespace) -> Result:
    with open_collection(args) as collection:
        r = collection.maintenance.verify(args.quiet)
    text = _lines(
        f"read {r.contents:,} stored contents, {r.vectors:,} cached vectors, {len(r.versions)} versions: {len(r.faults)} faults",
        r.faults,
    )
    return Result(r.to_dict(), text, 1 if r.faults else 0)


def repair_action(args: argparse.Namespace) -> Result:
    with open_collection(args) as collection:
        r = collection.maintenance.repair(args.quiet)
    text = _lines(f"{len(r.faults)} faults, {len(r.left)} left", r.repaired, (f"left: {fault}" for fault in r.left))
    return Result(r.to_dict(), text, 1 if r.left else 0)
