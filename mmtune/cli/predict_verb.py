"""Predict the class or the anomaly score of files or rows that nobody has labelled.

  mmtune predict MODEL new/*.jpg --task knn --reference packed/train --label sku --json
  mmtune predict MODEL new/ --task anomaly --reference packed/normal --threshold 0.01fpr --out page.html
  mmtune predict MODEL new/ --task zero_shot --classes apple,pear --prompt "a photo of {}"
  mmtune predict ARTIFACT new/ --task knn --reference packed/train --label sku --save     stores the references in the artifact
  mmtune predict ARTIFACT inbox --task knn --watch --out answers.jsonl                    each new file once, until Ctrl-C

Tasks:
  knn        class by the nearest labelled references (--label COLUMN); score: its share of their votes, weighted by exp(cosine / 0.07)
  zero_shot  class by the nearest class name; score: its probability by the model's logit scale
  anomaly    score: how unlike the normal references (--normal COLUMN=VALUE, or all of them) an input is, by the scorer (--scorer)
             nearest (default: distance, 1 - cosine), mahalanobis or gmm; --domain, --balance and --known-anomalies as in eval

With --threshold, knn and anomaly also say which inputs are unlike the references (alarm), with the expected false-alarm rate and
its interval. A file that cannot be decoded costs one line on standard error and is counted; the exit status is 2 only if none
can be decoded.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.cli.dispatch import Result, add_quiet
from mmtune.cli.eval_verb import SCORER_OPTIONS, add_scorer
from mmtune.errors import DataError, RecipeError, first_line

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model
    from mmtune.prediction.fit_predictors import PredictorOptions
    from mmtune.prediction.prediction_result import Predictions


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the model")
    parser.add_argument("inputs", metavar="FILES|DATA", nargs="+", help="files, folders of files, or packed data")
    parser.add_argument("--task", default="knn", help="knn (default), zero_shot or anomaly")
    parser.add_argument("--reference", metavar="DATA", help="labelled (knn) or normal (anomaly) reference rows")
    parser.add_argument("--label", default="group", metavar="COLUMN", help='metadata column of the class (default "group")')
    parser.add_argument(
        "--classes",
        metavar="A,B,...|@FILE",
        help="class names for zero_shot; @FILE: one a line, which may hold commas (default: the labels of --reference)",
    )
    parser.add_argument(
        "--prompt", action="append", default=[], metavar="TEMPLATE", help="prompt template for class names (may be repeated)"
    )
    parser.add_argument("--normal", metavar="COLUMN=VALUE", help="which references are normal (default: all)")
    parser.add_argument("--neighbours", type=int, metavar="N", help="number of nearest references (default: knn 5, anomaly 1)")
    parser.add_argument(
        "--exclude-same",
        metavar="COLUMN",
        help="metadata column, e.g. the recording: references with equal values do not vouch for each other when the threshold "
        "is chosen",
    )
    parser.add_argument(
        "--threshold",
        metavar="auto|RATEfpr",
        help='alarm threshold by its expected false-alarm rate, e.g. 0.01fpr; "auto": 0.01, or the lowest that the references allow',
    )
    parser.add_argument("--machine", metavar="COLUMN=VALUE", help="use only the references of this machine")
    add_scorer(parser)
    parser.add_argument(
        "--locate",
        type=float,
        metavar="SECONDS",
        help="also predict windows of this length of longer recordings, to say where in them something is",
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="predict only this modality (may be repeated)")
    parser.add_argument("--save", action="store_true", help="store references and threshold in the artifact MODEL")
    parser.add_argument(
        "--out", metavar="FILE", help="write FILE.html, a page with pictures and players, or FILE.json; with --watch FILE.jsonl"
    )
    parser.add_argument(
        "--watch", action="store_true", help="predict new files of the folder as they arrive, into --out FILE.jsonl"
    )
    parser.add_argument(
        "--interval", type=float, default=2.0, help="with --watch: seconds between two looks (default %(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="values per forward pass (default %(default)s)")
    add_quiet(parser)


def run(args: argparse.Namespace) -> Result:
    from mmtune.evaluation.model_and_data import as_model
    from mmtune.prediction.fit_predictors import PredictorOptions
    from mmtune.prediction.predict import predict
    from mmtune.prediction.stored_predictors import check_saved

    given = {
        "label": args.label,
        "neighbours": args.neighbours,
        "threshold": args.threshold,
        "exclude_same": args.exclude_same,
        "normal": args.normal,
        "classes": _class_names(args.classes or ""),
        "prompts": args.prompt,
        "batch_size": args.batch_size,
        "quiet": args.quiet,
        "machine": args.machine,
        **{name: getattr(args, name) for name in SCORER_OPTIONS},
    }
    if args.watch:
        return _watch(args, PredictorOptions(**given))
    if args.out and Path(args.out).suffix.lower() not in (".html", ".htm", ".json"):
        raise RecipeError(f"--out {args.out}: write a name that ends in .html or .json (.jsonl with --watch)")
    model = as_model(args.model)
    if args.save:
        check_saved(model)
    result = predict(
        model,
        args.inputs,
        task=args.task,
        reference=args.reference,
        modalities=args.only,
        locate=args.locate,
        save=args.save,
        **given,
    )
    for e in result.errors:
        print(f"mmtune predict: {e.file}: {e.error}", file=sys.stderr)
    if not result.predictions:
        raise DataError(f"none of the {len(result.errors)} inputs can be decoded")
    if args.out:
        _write(args, result, model)
    return Result(result.to_dict(), str(result))


def _write(args: argparse.Namespace, result: "Predictions", model: "Model") -> None:
    from mmtune.reporting.prediction_page import write_prediction_page
    from mmtune.runtime.files import write_json

    if Path(args.out).suffix.lower() == ".json":
        write_json(Path(args.out), result.to_dict())
    else:
        write_prediction_page(result, args.inputs, args.reference, model, args.only, Path(args.out))


def _watch(args: argparse.Namespace, options: "PredictorOptions") -> Result:
    """Watch a folder until Ctrl-C or SIGTERM; print each answer as a line of JSON, or in words."""
    from mmtune.evaluation.model_and_data import as_model
    from mmtune.prediction.located_windows import check_locate
    from mmtune.prediction.predict import prepare
    from mmtune.prediction.predict_inputs import predicted_modalities
    from mmtune.prediction.stored_predictors import check_saved
    from mmtune.prediction.watch_folder import watch
    from mmtune.training.stop_signals import StopSignals

    if len(args.inputs) != 1 or not args.out or Path(args.out).suffix.lower() != ".jsonl":
        raise RecipeError("--watch: give one folder, and --out FILE.jsonl for the answers")
    check_locate(args.locate)
    model = as_model(args.model)
    if args.save:
        check_saved(model)
    predictors = prepare(model, args.task, args.reference, predicted_modalities(model, args.only), options, args.save)
    counts = {"predicted": 0, "errors": 0}
    with StopSignals(True) as signals:
        for answer in watch(
            model,
            predictors,
            args.inputs[0],
            args.out,
            interval=args.interval,
            batch_size=args.batch_size,
            locate=args.locate,
            stop=lambda: signals.requested,
        ):
            counts["errors" if "error" in answer else "predicted"] += 1
            line = json.dumps(answer, ensure_ascii=False) if args.json else _in_words(answer)
            print(line, file=sys.stderr if args.json else sys.stdout, flush=True)
    return Result(
        {"out": args.out, "counts": counts},
        f"{args.out}: {counts['predicted']} predicted, {counts['errors']} cannot be decoded",
    )


def _in_words(answer: dict[str, object]) -> str:
    if "error" in answer:
        return f"{answer['file']}: cannot be decoded: {answer['error']}"
    what = f"anomaly score {answer['score']:.4f}" if answer["class"] is None else f"{answer['class']} ({answer['score']:.2f})"
    return f"{answer['file']}: {what}{' ALARM' if answer.get('alarm') else ''}"


def _class_names(text: str) -> list[str]:
    """The names in "A,B,..." or in the lines of "@FILE". Raises RecipeError if the file cannot be read."""
    if text.startswith("@"):
        try:
            names = Path(text[1:]).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as e:
            raise RecipeError(f"--classes {text}: {first_line(e)}; write a text file with one class name a line") from None
    else:
        names = text.split(",")
    return [n.strip() for n in names if n.strip()]
