"""Upload a model with its card to a repository on the Hugging Face hub, as an artifact or in an export format."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.errors import ModelError
from mmtune.exporting.export_model import export
from mmtune.exporting.hub_card import CardFields, CardSubject, model_card
from mmtune.model.artifact import load, save
from mmtune.model.artifact.trained_rows import TRAINED
from mmtune.model.dual_encoder import Model
from mmtune.runtime.files import read_json, write_text
from mmtune.runtime.results import ResultFields

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ARTIFACT = "mmtune"
LIBRARIES = {"hf": "transformers", "sentence-transformers": "sentence-transformers", "open_clip": "open_clip", "peft": "peft"}


@dataclass
class UploadResult(ResultFields):
    """An upload.

    repo: "ORG/NAME"
    commit: hash of the commit on the hub
    url: address of the commit
    fingerprint: fingerprint of the model
    model: the MODEL string that loads it; "" if mmtune does not read the format
    """

    repo: str
    commit: str
    url: str
    fingerprint: str
    model: str

    def __str__(self) -> str:
        return f"{self.url}\n  {self.fingerprint}" + (f"\n  load it as {self.model}" if self.model else "")


def push_to_hub(
    model: "Model | str | Path",
    repo: str,
    *,
    to: str = ARTIFACT,
    private: bool = False,
    license: str | None = None,
    language: Sequence[str] = (),
    datasets: Sequence[str] = (),
    training_data: str = "",
    message: str = "Upload with mmtune",
    token: str | None = None,
) -> UploadResult:
    """Upload a model; the arguments are explained in `mmtune.push_to_hub`."""
    from huggingface_hub import HfApi

    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ModelError(f"--repo {repo}: write ORG/NAME or USER/NAME")
    run = Path(model) / "artifact" if isinstance(model, str | Path) else None
    source = run if run is not None and run.is_dir() else model
    loaded = source if isinstance(source, Model) else load(source, "cpu")
    fields = CardFields(license, language, datasets, training_data)
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp) / "upload"
        subject = _write(loaded, source, folder, repo, to)
        write_text(folder / "README.md", model_card(loaded, subject, fields))
        commit, url = _upload(HfApi(token=token), repo, folder, private, message)
    known = {
        ARTIFACT: f"hub:{repo}",
        "hf": f"hf:{repo}",
        "open_clip": f"open_clip:hf-hub:{repo}",
        "sentence-transformers": f"st:{repo}",
    }
    return UploadResult(repo, commit, url, loaded.fingerprint, known.get(to, ""))


def _write(model: Model, source: "Model | str | Path", folder: Path, repo: str, to: str) -> CardSubject:
    place = model.info.get("source", "")
    metrics_file = Path(str(place)) / "metrics.json"
    metrics = read_json(metrics_file) if metrics_file.is_file() else {}
    info = {k: v for k, v in model.info.items() if k != "source"}
    if to == ARTIFACT:
        save(model, folder, metrics=metrics)
        (folder / TRAINED).unlink(missing_ok=True)  # hashes of the training rows are nobody's but the author's
        usage = f'import mmtune\n\nmodel = mmtune.load("hub:{repo}")\n' + "\n".join(
            f"vectors = model.encode({m}=[...])" for m in model.towers
        )
        return CardSubject(repo, ARTIFACT, usage, model.fingerprint, metrics, info)
    done = export(source, folder, to=to)
    return CardSubject(repo, LIBRARIES.get(to, to), done.usage.replace("DIR", repo), model.fingerprint, metrics, info)


def _upload(api: "HfApi", repo: str, folder: Path, private: bool, message: str) -> tuple[str, str]:
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    except Exception as e:  # the hub's client raises many unrelated exception types
        first = (str(e).strip() or type(e).__name__).split("\n", 1)[0]
        raise ModelError(
            f"--repo {repo}: the upload failed ({first}); log in with `hf auth login`, or set HF_TOKEN to a token that may write"
        ) from None
    return str(done.oid), str(done.commit_url)
