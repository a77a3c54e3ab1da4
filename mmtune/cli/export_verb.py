"""Export a model to the format of another library or runtime, with tokenizer and preprocessing, and compare the vectors.

  mmtune export runs/a/artifact --to sentence-transformers --out exports/st
  mmtune export runs/a/artifact --to onnx --out exports/onnx --quantize int8 --data packed/val
  mmtune export runs/a/artifact --to hub --repo ORG/NAME --license apache-2.0

formats:
  hf                     a folder of transformers (AutoModel.from_pretrained)
  open_clip              a folder of open_clip (local-dir:DIR)
  sentence-transformers  a folder of sentence-transformers; several encoders become a Router
  peft                   the adapters of a run that was tuned by lora or qlora; all other formats have them merged
  onnx, openvino, torchscript   one graph for each tower, with any batch size
  hub                    the artifact, or the format --as, with a model card, to a repository of the Hugging Face hub
The output says which towers and settings the format cannot hold.

Exit status 1: recall@10 on DATA falls by more than --max-drop in a direction; nothing is written.
"""

import argparse

from mmtune.cli.dispatch import Result, add_quiet


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="an artifact, a run directory, adapters, or a checkpoint")
    parser.add_argument("--to", required=True, metavar="FORMAT", help="one of the formats above, or package.module:Class")
    parser.add_argument("--out", metavar="DIR", help="directory to write; new, empty, or an earlier export")
    parser.add_argument("--dim", type=int, metavar="N", help="truncate the embeddings to N dimensions (Matryoshka)")
    parser.add_argument(
        "--mel",
        choices=("outside", "inside"),
        default="outside",
        help="for sounds in onnx, openvino and torchscript: the graph takes spectrograms (outside, default) or samples (inside)",
    )
    parser.add_argument("--quantize", choices=("int8",), help="store weights as 8-bit integers (onnx, openvino); needs --data")
    parser.add_argument("--data", metavar="DATA", help="packed rows on which recall@10 of model and export are compared")
    parser.add_argument(
        "--max-drop",
        type=float,
        default=0.01,
        metavar="X",
        help="refuse the export if recall@10 on --data falls by more than this (default %(default)s)",
    )
    parser.add_argument("--no-check", action="store_true", help="do not refuse an export whose vectors differ from the model's")
    parser.add_argument("--speed", action="store_true", help="measure items a second of model and export on this machine")
    hub = parser.add_argument_group("--to hub")
    hub.add_argument("--repo", metavar="ORG/NAME", help="repository of the hub; created if it does not exist")
    hub.add_argument(
        "--as", dest="as_format", default="mmtune", metavar="FORMAT", help="what to upload (default: the artifact)"
    )
    hub.add_argument("--private", action="store_true", help="a new repository is private")
    hub.add_argument("--license", metavar="ID", help="licence of the weights, as the hub names it, e.g. apache-2.0")
    hub.add_argument(
        "--language", action="append", default=[], metavar="CODE", help="language of the captions (may be repeated)"
    )
    hub.add_argument("--training-data", default="", metavar="TEXT", help="about the training data, for the model card")
    add_quiet(parser)


def run(args: argparse.Namespace) -> Result:
    from mmtune.errors import RecipeError
    from mmtune.exporting.export_model import export

    if args.to == "hub":
        return _upload(args)
    if not args.out:
        raise RecipeError("--out DIR is missing: where to write the export")
    done = export(
        args.model,
        args.out,
        to=args.to,
        dim=args.dim,
        mel=args.mel,
        quantize=args.quantize,
        data=args.data,
        max_drop=args.max_drop,
        check=not args.no_check,
        speed=args.speed,
        quiet=args.quiet,
    )
    return Result(done.to_dict(), str(done), 0 if done.accepted else 1)


def _upload(args: argparse.Namespace) -> Result:
    from mmtune.errors import RecipeError
    from mmtune.exporting.hub_upload import push_to_hub

    if not args.repo:
        raise RecipeError("--to hub needs --repo ORG/NAME")
    done = push_to_hub(
        args.model,
        args.repo,
        to=args.as_format,
        private=args.private,
        license=args.license,
        language=args.language,
        training_data=args.training_data,
    )
    return Result(done.to_dict(), str(done))
