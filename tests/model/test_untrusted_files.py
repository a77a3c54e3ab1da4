"""Loading never runs code that a file names, and nothing of an edited artifact is parsed."""

import json
import sys

import pytest

import mmtune
from mmtune import backbones
from mmtune.errors import ModelError
from mmtune.model.artifact import load_adapters, save
from mmtune.model.layout import Layout
from tests.support import checkpoints

CODE = "open('ran.txt', 'w').write('ran')\n"


@pytest.fixture
def folder_with_code(tmp_path, monkeypatch):
    """The working directory holds a module that leaves a trace when it is imported."""
    (tmp_path / "evil_module.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not (tmp_path / "ran.txt").exists() and "evil_module" not in sys.modules


def edit(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_the_family_in_a_manifest_is_never_imported(folder_with_code):
    save(mmtune.load("tiny:clip"), folder_with_code / "a")
    manifest = folder_with_code / "a" / "mmtune.json"
    edit(manifest, lambda d: d["layout"]["parts"][0].update(family="evil_module"))
    with pytest.raises(
        ModelError, match="the fingerprint of its content is mm3-.*, but the manifest has"
    ):  # before the family is looked at
        mmtune.load("a")
    layout = Layout.from_json(json.loads(manifest.read_text())["layout"])
    model = mmtune.load("tiny:clip")
    from mmtune.model.fingerprint import fingerprint

    forged = fingerprint(model.state_dict().items(), model.files(), layout)  # somebody who also renews the fingerprint
    edit(manifest, lambda d: d.update(fingerprint=forged))
    with pytest.raises(ModelError, match="its model family 'evil_module' is not registered"):
        mmtune.load("a")


def test_the_base_in_an_adapters_directory_is_never_imported(folder_with_code):
    (folder_with_code / "adapters").mkdir()
    document = {"format": 1, "base": "evil_module:x", "base_fingerprint": "", "factors": {}, "rounded": [], "heads": []}
    (folder_with_code / "adapters" / "adapters.json").write_text(json.dumps(document | {"own_scales": []}))
    for base in ("evil_module:x", "text=tiny:text,image=evil_module:x", {"image": "evil_module:x"}):
        edit(folder_with_code / "adapters" / "adapters.json", lambda d, base=base: d.update(base=base))
        with pytest.raises(ModelError, match="'evil_module', which is not registered"):
            mmtune.load("adapters")
    with pytest.raises(ModelError, match="not registered"):
        load_adapters("adapters")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "processor_config.json"])
def test_custom_code_in_a_checkpoint_is_refused_in_one_line(file, folder_with_code, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a prompt"))
    directory = checkpoints.clip(folder_with_code / "clip")
    (directory / "evil_module.py").write_text(CODE)
    target = directory / file
    if not target.exists():
        target.write_text("{}")
    edit(target, lambda d: d.update(auto_map={"AutoModel": "evil_module.Model", "AutoConfig": "evil_module.Config"}))
    with pytest.raises(ModelError) as e:
        backbones.load(f"hf:{directory}")
    assert f"{file} refers to Python code of the checkpoint (auto_map" in str(e.value) and "\n" not in str(e.value)


def test_custom_code_in_a_text_encoder_and_in_an_unknown_architecture(folder_with_code, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a prompt"))
    directory = checkpoints.text_encoder(folder_with_code / "text", "mean")
    (directory / "evil_module.py").write_text(CODE)
    edit(directory / "config.json", lambda d: d.update(auto_map={"AutoModel": "evil_module.Model"}, model_type="own"))
    with pytest.raises(ModelError, match="config.json refers to Python code of the checkpoint"):
        backbones.load(f"hf:{directory}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: (d / "parts" / "0" / "notes.txt").write_bytes(b"x"),
            r"parts/0/notes\.txt is not in the manifest: remove it",
        ),
        (lambda d: (d / "parts" / "0" / "tiny.json").unlink(), "parts/0/tiny.json is missing; restore it"),
        (
            lambda d: (d / "parts" / "0" / "tiny.json").write_bytes(
                (d / "parts/0/tiny.json").read_bytes().replace(b"\n", b"\r\n")
            ),
            "parts/0/tiny.json has Windows line ends now",
        ),
        (lambda d: (d / "parts" / "0" / "tiny.json").write_bytes(b"{}"), "parts/0/tiny.json was edited; restore it"),
        (lambda d: edit(d / "mmtune.json", lambda m: m.pop("layout")), "mmtune.json: the key 'layout' is missing"),
        (lambda d: edit(d / "mmtune.json", lambda m: m["layout"].pop("heads")), "mmtune.json: the key 'heads' is missing"),
        (lambda d: (d / "mmtune.json").write_text("[]"), "mmtune.json: not a valid artifact manifest"),
    ],
)
def test_the_file_that_differs_is_named(change, message, tmp_path):
    save(mmtune.load("tiny:clip"), tmp_path / "a")
    change(tmp_path / "a")
    with pytest.raises(ModelError, match=message):
        mmtune.load(tmp_path / "a")


def test_files_that_an_operating_system_leaves_do_no_harm(tmp_path):
    mark = save(mmtune.load("tiny:clip"), tmp_path / "a")
    for name in (".DS_Store", "parts/.DS_Store", "parts/0/.DS_Store", "parts/0/Thumbs.db", "parts/0/._tiny.json"):
        (tmp_path / "a" / name).write_bytes(b"x")
    assert mmtune.load(tmp_path / "a").fingerprint == mark


def test_an_artifact_of_an_earlier_version_loads_with_its_fingerprint(tmp_path):
    """Without hashes of files, with a fingerprint of format 1, and with the key `windows` for today's `window_pooling`."""
    model = mmtune.load("tiny:all")
    model.set_window_pooling({"audio": "max"})
    old = "mm1-acfffa988ca2e90da32fd0cae222d441"  # as that version computed it
    assert model.fingerprint_in_format(1) == old != model.fingerprint
    save(model, tmp_path / "a")
    manifest = tmp_path / "a" / "mmtune.json"
    assert json.loads(manifest.read_text())["layout"]["settings"] == {"window_pooling": {"audio": "max"}}
    edit(manifest, lambda d: (d.pop("files"), d["layout"].update(settings={"windows": {"audio": "max"}})))
    with pytest.raises(ModelError, match="the hashes of the files are missing"):
        mmtune.load(tmp_path / "a")
    edit(manifest, lambda d: d.update(fingerprint=old))
    again = mmtune.load(tmp_path / "a")
    assert again.window_pooling == {"audio": "max"} and again.fingerprint == old
    assert again.truncated(8).fingerprint.startswith("mm1-")  # what was stored beside it stays comparable
    assert save(again, tmp_path / "b") == old == mmtune.load(tmp_path / "b").fingerprint
    edit(manifest, lambda d: d.update(fingerprint="mm9-" + "0" * 32))
    with pytest.raises(ModelError, match="a format that this mmtune does not know; update mmtune"):
        mmtune.load(tmp_path / "a")
