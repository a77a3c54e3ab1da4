"""Export adapters to PEFT's format: `peft.PeftModel.from_pretrained(base, DIR)`. The weights of the base are not part of it."""

from pathlib import Path

from mmtune.errors import ModelError
from mmtune.exporting.format_table import ExportRequest, Written
from mmtune.model.artifact import adapters
from mmtune.model.artifact.low_rank import LowRankDelta
from mmtune.model.artifact.peft_format import CONFIG, write_peft_adapter
from mmtune.model.dual_encoder import Model
from mmtune.runtime.files import read_json


class PeftFolder:
    """Writes the adapters of a run that was tuned by lora or qlora."""

    quantizes = False
    tolerance = 1e-5

    def write(self, model: Model, directory: Path, request: ExportRequest) -> Written:
        from safetensors.torch import load_file

        folder = adapters_directory(Path(request.source))
        if folder is None:
            raise ModelError(
                f"export to peft: {request.source or 'this model'} has no adapters (no {adapters.MANIFEST} in it or in RUN/adapters); "
                "give the directory of a run that was tuned by lora or qlora"
            )
        manifest = adapters.read_manifest(folder)
        tensors = load_file(folder / adapters.WEIGHTS)
        deltas = [LowRankDelta(n, tensors[f"{n}::a"], tensors[f"{n}::b"], s) for n, s in manifest.scaling.items()]
        learned = [n for n in tensors if "::" not in n]
        note = write_peft_adapter(directory, model, deltas, manifest.base, learned)
        if not (directory / CONFIG).is_file():
            raise ModelError(f"export to peft: {note.removeprefix('not saved in ')}")
        notes = [f"the base model is {manifest.base}, fingerprint {manifest.base_fingerprint}"]
        if learned:
            notes.append(f"PEFT's files do not contain what was trained as a whole: {', '.join(learned[:5])}")
        if manifest.quantized:
            notes.append("the adapters were trained on a base in 4 bits (NF4): load the base in 4 bits, too")
        usage = f'from peft import PeftModel\nmodel = PeftModel.from_pretrained(base, "DIR")  # base: {manifest.base}'
        return Written(dict.fromkeys(model.towers, "."), notes=notes, usage=usage)

    def reopen(self, model: Model, directory: Path, written: Written) -> Model | None:
        return None


def adapters_directory(source: Path) -> Path | None:
    """Return the adapters directory of a run, of its artifact, or the directory itself; None if there is none."""
    for folder in (source, source / "adapters", source.parent / "adapters"):
        if (folder / adapters.MANIFEST).is_file() and isinstance(read_json(folder / adapters.MANIFEST), dict):
            return folder
    return None
