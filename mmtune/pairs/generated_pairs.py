"""Generate captions or queries for items with a language model, and keep those whose item a base model finds."""

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import pyarrow as pa

from mmtune import modalities
from mmtune.contracts import JsonObject
from mmtune.data.pack.columns import PackRow
from mmtune.data.shards import shard_cache
from mmtune.errors import DataError, Rejected
from mmtune.evaluation.model_and_data import as_model
from mmtune.pairs.answer_cache import AnswerCache
from mmtune.pairs.caption_template import CaptionTemplate
from mmtune.pairs.carried_columns import attribute_strings
from mmtune.pairs.chat_endpoint import ChatEndpoint
from mmtune.pairs.drop_counts import DropCounts
from mmtune.pairs.generation_run import GenerationRun, Prices, Request, estimate
from mmtune.pairs.pairs_result import PairsResult
from mmtune.pairs.pairs_writer import PairsWriter, source_identity
from mmtune.pairs.source_rows import SourceRows
from mmtune.runtime.plugins import nearest
from mmtune.runtime.progress import Progress

TASKS = {
    "captions": "Write {count} different captions for this item, each of one short sentence. Describe only what is certain.",
    "queries": "Write {count} different search queries that somebody types who looks for exactly this item and does not know its name or "
    "number. Use 2 to 8 words each.",
}
FORM = "Answer with a JSON list of {count} strings and nothing else."
JOINT = "There are several items; do this for each of them."
JOINT_FORM = "Answer with a JSON object and nothing else: its keys are the numbers of the items, its values are lists of {count} strings."


@dataclass(frozen=True)
class GenerateOptions:
    """What is generated, by what, and what is kept.

    endpoint: base URL of an OpenAI-compatible endpoint
    model: name of the model there
    task: "captions" or "queries"; see TASKS
    prompt: instruction in place of that of the task; {count} is the number of texts
    about: caption template over the columns, for what the model is told about an item; default: its caption
    see: modalities whose values are sent, for models that take them
    per_item: texts of an item
    items_per_request: items that one request asks about, which costs fewer prompt tokens; items that its answer does not have are asked
        about one by one
    base: MODEL that ranks the items for each text; None keeps all texts
    top: the rank of a text's item, up to which the text is kept
    temperature, max_tokens: of the endpoint
    key_variable: environment variable with the key
    per_minute, timeout, retries, concurrency: see `ChatEndpoint` and `GenerationRun`
    price_prompt, price_completion: price of a million tokens
    budget: a run whose estimate is higher does not start, and one that reaches it stops
    cache: directory of answers; default: in $MMTUNE_CACHE
    """

    endpoint: str
    model: str
    task: str = "queries"
    prompt: str | None = None
    about: str | None = None
    see: tuple[str, ...] = ()
    per_item: int = 3
    items_per_request: int = 1
    base: str | None = None
    top: int = 10
    temperature: float = 0.7
    max_tokens: int = 300
    key_variable: str = "OPENAI_API_KEY"
    per_minute: float = 0.0
    timeout: float = 60.0
    retries: int = 5
    concurrency: int = 4
    price_prompt: float | None = None
    price_completion: float | None = None
    budget: float | None = None
    cache: str | None = None

    @classmethod
    def of(cls, options: Mapping[str, object]) -> "GenerateOptions":
        """Make options of a mapping. Raises DataError, which names the nearest, for an unknown one, or if one is missing."""
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                raise DataError(f"options: unknown {name!r}{nearest(name, known)}")
        if missing := {"endpoint", "model"} - options.keys():
            raise DataError(f"options: {' and '.join(sorted(missing))} missing")
        see = options.get("see", ())
        of_strings = {**options, "see": (see,) if isinstance(see, str) else tuple(see)}  # type: ignore[arg-type]
        return cls(**of_strings)  # type: ignore[arg-type]

    def check(self) -> None:
        """Raise DataError for a value that cannot be meant."""
        if self.task not in TASKS:
            raise DataError(f"--task {self.task}: one of {', '.join(TASKS)}")
        counts = (("per-item", self.per_item), ("items-per-request", self.items_per_request), ("concurrency", self.concurrency))
        for option, value in (*counts, ("timeout", self.timeout)):
            if value <= 0:
                raise DataError(f"--{option} {value}: give a number above 0")
        if self.budget is not None and None in (self.price_prompt, self.price_completion):
            raise DataError("--budget needs --price-prompt and --price-completion, the prices of a million tokens")
        if self.task == "queries" and self.base is None and self.top:
            raise DataError("--base MODEL is missing: queries whose item it does not rank high are dropped (--top 0 keeps all)")

    def identity(self) -> JsonObject:
        """What the result depends on, for pairs.json; nothing of how the endpoint is reached."""
        names = ("model", "task", "prompt", "about", "see", "per_item", "base", "top", "temperature", "max_tokens")
        return {name: getattr(self, name) for name in names}


@dataclass
class _Items:
    """The items of a source: their cells in pairs.parquet, their values for the base model, and what the language model is told."""

    cells: list[dict[str, object]] = field(default_factory=list)
    values: list[object] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    rows: list[PackRow] = field(default_factory=list)
    told: list[str] = field(default_factory=list)


class _Prompter:
    """Makes the requests about items."""

    def __init__(self, options: GenerateOptions, endpoint: ChatEndpoint):
        self.options, self.endpoint = options, endpoint
        self._language = next(n for n in modalities.names() if modalities.get(n).language)

    def request(self, items: _Items, number: int) -> Request:
        """The request about one item."""
        return Request(number, lambda: self._body(items.rows[number], items.told[number]))

    def _body(self, row: PackRow, told: str) -> JsonObject:
        parts = [self._text(*self._instruction(FORM), f"The item: {told}" if told else ""), *self._seen(row)]
        return self.endpoint.body(parts, self.options.max_tokens, self.options.temperature)

    def joint(self, items: _Items, numbers: Sequence[int]) -> JsonObject:
        """The body of a request about several items, which it counts from 1."""
        parts = [self._text(*self._instruction(JOINT, JOINT_FORM))]
        for position, number in enumerate(numbers, start=1):
            told, seen = items.told[number], self._seen(items.rows[number])
            parts += [self._text(f"Item {position}: {told}".rstrip()), *seen]
        return self.endpoint.body(parts, self.options.max_tokens * len(numbers), self.options.temperature)

    def _instruction(self, *form: str) -> list[str]:
        """What is asked for, and in which form. "{count}" is the number of texts."""
        lines = (self.options.prompt or TASKS[self.options.task], *form)
        return [line.replace("{count}", str(self.options.per_item)) for line in lines]

    def _text(self, *lines: str) -> JsonObject:
        text = "\n".join(filter(None, lines))
        return modalities.get(self._language).chat_part(text.encode("utf-8", "replace"))

    def _seen(self, row: PackRow) -> list[JsonObject]:
        """The parts with the values of an item that the model gets to see."""
        values = ((name, row.values.get(name)) for name in self.options.see)
        return [modalities.get(name).chat_part(_bytes(value)) for name, value in values if value is not None]


def _bytes(value: bytes | str) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return Path(value).read_bytes()
    except OSError as e:
        raise Rejected(e.strerror or "cannot be read") from None


def _modality_of_items(rows: SourceRows) -> str:
    """The modality of the items: the first that is no language, else the language of the captions."""
    return modalities.non_language(list(rows.roles.modalities))[0]


def _read(rows: SourceRows, options: GenerateOptions, writer: PairsWriter, drops: DropCounts) -> _Items:
    """Read the items. Rows without what is needed are counted as dropped."""
    language = next(n for n in modalities.names() if modalities.get(n).language)
    template = CaptionTemplate(options.about) if options.about else None
    if template is not None:
        template.check([*rows.source.columns], str(rows.source.path))
    modality = _modality_of_items(rows)
    media, items = rows.media(writer.out, writer.files, drops), _Items()
    for row in rows.rows(drops):
        own = row.values.get(language, b"")
        caption = own.decode("utf-8", "replace") if isinstance(own, bytes) else ""
        columns = {**row.meta, **{rows.roles.modalities.get(language, language): caption, language: caption}}
        told = (template.fill(attribute_strings(columns)) if template else caption) or ""
        if modality not in row.values:
            drops.add(f"no value of {modality}", row.id)
        elif not told and not any(name in row.values for name in options.see):
            drops.add("nothing to tell the language model about it (--about, --see)", row.id)
        elif (cells := rows.cells(row, media)) is not None:
            value = row.values[modality]
            inline = modalities.get(modality).inline
            items.values.append(value.decode("utf-8", "replace") if inline and isinstance(value, bytes) else value)
            items.cells.append(cells)
            items.labels.append(row.group or row.id)
            items.rows.append(row)
            items.told.append(told)
    if not items.rows:
        raise DataError(f"{rows.source.path}: no item to generate texts for ({drops.reasons()})")
    return items


def _keep_consistent(
    texts: list[tuple[int, str]], items: _Items, modality: str, options: GenerateOptions, drops: DropCounts
) -> list[int]:
    """The rank of the item of each text by the base model; texts whose item is below `top` are taken out of `texts`."""
    from mmtune.pairs.consistency import consistency_ranks

    model = as_model(str(options.base))
    ranks = consistency_ranks(
        model, [t for _, t in texts], [n for n, _ in texts], items.values, items.labels, modality
    ).tolist()
    kept: list[tuple[int, str]] = []
    of_kept: list[int] = []
    for (number, text), rank in zip(texts, ranks, strict=True):
        if rank <= options.top:
            kept.append((number, text))
            of_kept.append(rank)
        else:
            drops.add(
                f"the base model ranks its item below {options.top}",
                f"{items.rows[number].id}: {text} (rank {rank})",
                unit="texts",
            )
    texts[:] = kept
    return of_kept


def _without_shared(texts: list[tuple[int, str]], items: _Items, drops: DropCounts) -> list[tuple[int, str]]:
    """The texts without those that were generated for items of different groups, which say nothing about either."""
    owners: dict[str, set[str]] = defaultdict(set)
    for number, text in texts:
        owners[text.casefold()].add(items.labels[number])
    for number, text in texts:
        if len(owners[text.casefold()]) > 1:
            drops.add("generated for items of different groups", f"{items.rows[number].id}: {text}", unit="texts")
    return [(number, text) for number, text in texts if len(owners[text.casefold()]) == 1]


def generate_pairs(
    source: str | Path,
    out: str | Path,
    options: GenerateOptions | Mapping[str, object],
    *,
    columns: Mapping[str, str] | None = None,
    id: str | None = None,
    group: str | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    quiet: bool = True,
) -> PairsResult:
    """Generate captions or queries for the items of a source; see `mmtune.generate_pairs`."""
    if not isinstance(options, GenerateOptions):
        options = GenerateOptions.of(options)
    options.check()
    rows = SourceRows(source, columns, id, group)
    language = next(n for n in modalities.names() if modalities.get(n).language)
    for name in options.see:
        if name not in rows.roles.modalities:
            raise DataError(f"{source}: no values of {name} (--see); it has {', '.join(rows.roles.modalities)}")
    types = {**rows.types, language: pa.string(), "generated_by": pa.string(), "rank": pa.int32()}
    identity = {**options.identity(), "columns": rows.roles.by_role()}
    with PairsWriter(
        out, "generate", identity, [source_identity(source)], columns=types, base=False, overwrite=overwrite
    ) as writer:
        if writer.finished is not None:
            return writer.finished
        endpoint = ChatEndpoint(
            options.endpoint, options.model, options.key_variable, options.per_minute, options.timeout, options.retries
        )
        cache = AnswerCache(Path(options.cache) if options.cache else shard_cache.root() / "generated", endpoint.address)
        prices = Prices(options.price_prompt, options.price_completion)
        items = _read(rows, options, writer, writer.drops)
        prompter = _Prompter(options, endpoint)
        requests = [prompter.request(items, n) for n in range(len(items.rows))]
        before = estimate(requests, cache, options.per_item, options.items_per_request)
        if not quiet:
            print(f"generate: {before.line(prices)} ({options.model} at {endpoint.address})", file=sys.stderr, flush=True)
        expected = prices.cost(before.prompt_tokens, before.completion_tokens)
        if options.budget is not None and expected is not None and expected > options.budget and not dry_run:
            raise DataError(f"the estimate of {expected:g} is above --budget {options.budget:g}; nothing was sent")
        if dry_run:
            writer.discard()
            estimated: JsonObject = {"items": len(items.rows), "estimate": before.to_dict(prices)}
            return PairsResult(str(out), "generate", rows.read, 0, 0, writer.drops.to_list(), [], estimated)
        together = options.items_per_request
        run = GenerationRun(
            endpoint,
            cache,
            prices,
            options.concurrency,
            options.budget,
            together,
            lambda numbers: prompter.joint(items, numbers),
        )
        with endpoint, Progress("generate", len(requests), unit="items", quiet=quiet) as progress:
            texts = _ask(run, requests, items, options.per_item, writer.drops, progress)
        texts = _without_shared(texts, items, writer.drops)
        generated = len(texts)
        ranks: Sequence[int | None] = [None] * generated
        if options.base and options.top and texts:
            ranks = _keep_consistent(texts, items, _modality_of_items(rows), options, writer.drops)
        if not texts:
            raise DataError(f"{source}: no generated text was kept ({writer.drops.reasons()}); answers are in the cache")
        counts: dict[int, int] = defaultdict(int)
        for (number, text), rank in zip(texts, ranks, strict=True):
            counts[number] += 1
            own = items.cells[number]
            cells = {**own, "id": f"{own['id']}~generated{counts[number]}", "group": items.labels[number], language: text}
            writer.add_row(**cells, generated_by=options.model, rank=rank)
        if not quiet:
            print(f"generate: used {run.used.line(prices)}", file=sys.stderr, flush=True)
        measures = {
            "items": len(counts),
            "generated": generated,
            "estimate": before.to_dict(prices),
            "used": run.used.to_dict(prices),
        }
        return writer.publish(rows.read, measures)


def _ask(
    run: GenerationRun, requests: Sequence[Request], items: _Items, per_item: int, drops: DropCounts, progress: Progress
) -> list[tuple[int, str]]:
    """Ask about all items: (number of the item, text) of each answer."""
    found: list[tuple[int, str]] = []
    for number, texts in run.answers(requests, progress):
        if isinstance(texts, str):
            drops.add(texts, items.rows[number].id, unit="items")
            continue
        found += [(number, text) for text in texts[:per_item]]
    return found
