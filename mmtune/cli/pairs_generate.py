"""`mmtune pairs generate`: captions and queries from an OpenAI-compatible endpoint."""

import argparse

from mmtune import modalities
from mmtune.cli.dispatch import Result

TEXT = "Generate captions or search queries for items with a language model behind any OpenAI-compatible endpoint."
EXAMPLE = "mmtune pairs generate products.csv --endpoint http://127.0.0.1:8000/v1 --llm qwen3-vl --see image --base runs/a/artifact --out DIR"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SOURCE", help="a table, a folder, tar files or a dataset on disk, as for `mmtune pack`"
    )
    parser.add_argument("--endpoint", required=True, metavar="URL", help="base URL, such as https://api.openai.com/v1")
    parser.add_argument("--llm", required=True, metavar="NAME", help="name of the language model at the endpoint")
    parser.add_argument(
        "--task",
        choices=("queries", "captions"),
        default="queries",
        help="queries (default): kept only if --base ranks their item among the first --top; captions",
    )
    parser.add_argument(
        "--prompt", metavar="TEXT", help="instruction in place of that of the task; {count} is the number of texts"
    )
    parser.add_argument(
        "--about",
        metavar="TEMPLATE",
        help='what the model is told about an item, such as "{title}. {description}" (default: its caption)',
    )
    parser.add_argument(
        "--see",
        action="append",
        default=[],
        choices=modalities.non_language(modalities.names()),
        help="send the values of this modality, for a model that takes them; may be repeated",
    )
    parser.add_argument("--per-item", type=int, default=3, metavar="N", help="texts of each item (default 3)")
    parser.add_argument(
        "--items-per-request",
        type=int,
        default=1,
        metavar="N",
        help="items in one request, which saves prompt tokens (default 1); items that an answer leaves out are asked about one by one",
    )
    parser.add_argument("--base", metavar="MODEL", help="model that ranks all items for each text")
    parser.add_argument(
        "--top", type=int, default=10, metavar="N", help="keep a text if its item has this rank or better (default 10; 0: all)"
    )
    parser.add_argument("--temperature", type=float, default=0.7, metavar="T", help="of the language model (default 0.7)")
    parser.add_argument("--max-tokens", type=int, default=300, metavar="N", help="longest answer, in tokens (default 300)")
    parser.add_argument(
        "--key-variable",
        default="OPENAI_API_KEY",
        metavar="NAME",
        help="environment variable with the API key, which is never written (default OPENAI_API_KEY; not set: no key)",
    )
    parser.add_argument("--per-minute", type=float, default=0.0, metavar="N", help="requests a minute (default: no limit)")
    parser.add_argument("--concurrency", type=int, default=4, metavar="N", help="requests at once (default 4)")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="seconds to wait for an answer (default 60)")
    parser.add_argument(
        "--retries",
        type=int,
        default=5,
        metavar="N",
        help="further attempts, with growing pauses, after faults that may pass (default 5)",
    )
    parser.add_argument("--price-prompt", type=float, metavar="P", help="price of a million prompt tokens, for the costs")
    parser.add_argument("--price-completion", type=float, metavar="P", help="price of a million completion tokens")
    parser.add_argument("--budget", type=float, metavar="P", help="do not start above, and stop at, this cost")
    parser.add_argument("--cache", metavar="DIR", help="directory of answers (default: in $MMTUNE_CACHE or ~/.cache/mmtune)")
    parser.add_argument(
        "--dry-run", action="store_true", help="say the number of requests, tokens and the cost, and send nothing"
    )
    for name in modalities.names():
        parser.add_argument(
            f"--{name}", dest=f"column_{name}", metavar="COL", help=f"{name} column (usual names are recognised)"
        )
    parser.add_argument("--id", metavar="COL", help="column of the row ids (recognised: id; else the path or the row number)")
    parser.add_argument("--group", metavar="COL", help="column of the groups (recognised: group; default: a row is a group)")


def run(args: argparse.Namespace) -> Result:
    from mmtune.pairs.generated_pairs import GenerateOptions, generate_pairs

    options = GenerateOptions(
        endpoint=args.endpoint,
        model=args.llm,
        task=args.task,
        prompt=args.prompt,
        about=args.about,
        see=tuple(args.see),
        per_item=args.per_item,
        items_per_request=args.items_per_request,
        base=args.base,
        top=args.top,
        temperature=args.temperature,
        max_tokens=args.max_tokens,
        key_variable=args.key_variable,
        per_minute=args.per_minute,
        timeout=args.timeout,
        retries=args.retries,
        concurrency=args.concurrency,
        price_prompt=args.price_prompt,
        price_completion=args.price_completion,
        budget=args.budget,
        cache=args.cache,
    )
    result = generate_pairs(
        args.source,
        args.out,
        options,
        columns={n: c for n in modalities.names() if (c := getattr(args, f"column_{n}")) is not None},
        id=args.id,
        group=args.group,
        dry_run=args.dry_run,
        overwrite=args.overwrite,
        quiet=args.quiet,
    )
    text = f"nothing was sent; {result.measures['items']:,} items" if args.dry_run else str(result)
    return Result(result.to_dict(), text)
