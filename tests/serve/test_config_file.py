"""serve.yaml: every key, what the command line overrides, and mistakes in one line that name the key."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from mmtune.cli import main
from mmtune.errors import DataError
from mmtune.serve.config_file import ServeConfig, read_config
from mmtune.serve.settings import Limits, Rates, Settings


def write(tmp_path, text):
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    return path


def test_the_defaults_are_those_of_the_settings():
    config = read_config(None, {"collection": "shop"}).settings()
    plain = Settings()
    same = [f.name for f in fields(Settings) if f.name not in ("session_key",)]
    assert {n: getattr(config, n) for n in same} == {n: getattr(plain, n) for n in same}
    limits = set(type(ServeConfig.model_fields["limits"].default).model_fields)
    assert limits == {f.name for f in fields(Limits)} | {"max_uploads"}  # accepted, without effect
    assert set(type(ServeConfig.model_fields["rates"].default).model_fields) == {f.name for f in fields(Rates)}


def test_a_limit_that_is_gone_is_said_to_have_no_effect(tmp_path, caplog):
    path = write(tmp_path, "collection: shop\nlimits: {max_uploads: 5000}\n")
    assert read_config(path, {}).settings().limits == Limits()
    assert "limits.max_uploads has no effect" in caplog.text


def test_a_file_with_options_on_top(tmp_path):
    path = write(
        tmp_path,
        "collection: shop\nhost: 0.0.0.0\nport: 9000\ntokens: secret/tokens.json\nworkers: 3\nwindow: 8\n"
        "trusted_proxies: [10.0.0.0/8]\nlog: json\nlimits: {max_k: 7, values: {max_pixels: 99}}\nrates: {per_token: 5}\n",
    )
    config = read_config(path, {"port": 0, "limits.max_bytes": 4, "limits.values.max_chars": 5, "rates.per_address": None})
    assert (config.port, config.host, config.workers, config.page) == (0, "0.0.0.0", 3, True)
    assert config.collection == str(tmp_path / "shop")  # beside the file, wherever the server is started
    made = config.settings()
    assert made.tokens == tmp_path / "secret/tokens.json" and made.window == 0.008 and made.log == "json"
    assert (made.limits.max_k, made.limits.max_bytes, made.limits.values["max_pixels"], made.limits.values["max_chars"]) == (
        7,
        4,
        99,
        5,
    )
    assert made.limits.values["max_seconds"] == Limits().values["max_seconds"]
    assert (made.rates.per_token, made.rates.per_address) == (5, Rates().per_address)
    assert made.page  # by each of the workers
    assert read_config(path, {"collection": "other"}).collection == "other"


MISTAKES = {
    "colection: shop": "unknown key colection; did you mean collection?",
    "collection: shop\nlimits: {max_kk: 3}": "unknown key limits.max_kk; did you mean limits.max_k?",
    "collection: shop\nlimits: {values: {max_pixel: 3}}": "did you mean 'max_pixels'?",
    "collection: shop\nlimits: {values: {max_pixels: 0}}": "max_pixels: 0 must be greater than 0",
    "collection: shop\nlimits: 3": "limits:",
    "collection: shop\nport: http": "port: ",
    "collection: shop\nport: 99999": "port: ",
    "collection: shop\nworkers: 0": "workers: ",
    "collection: shop\nlog: jsn": "log: 'jsn'; did you mean 'json'?",
    "collection: shop\ntoken: abc": "a secret does not belong into this file",
    "collection: [shop]": "collection: ",
    "port: 3": "collection: is missing",
    "- a": "must be a mapping",
    "a: [": "serve.yaml: ",
    "": "collection: is missing",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_one_line_that_names_the_file_and_the_key(tmp_path, text, capsys):
    path = write(tmp_path, text)
    with pytest.raises(DataError) as e:
        read_config(path, {})
    line = str(e.value)
    assert "\n" not in line and MISTAKES[text] in line and line.startswith(str(path))
    assert main(["serve", "--config", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_line_says_what_is_missing(tmp_path, capsys):
    for argv, words in {
        (): "name the directory of a collection, or --config FILE",
        ("--config", str(tmp_path / "none.yaml")): "no such file",
        (str(tmp_path), "--workers", "0"): "workers",
        (str(tmp_path),): "not a collection",
        (str(tmp_path), "--workers", "2"): "not a collection",
        (str(tmp_path), "--host", "0.0.0.0"): "--tokens FILE",
        (str(tmp_path), "--trusted-proxy", "nginx"): "--trusted-proxy",
    }.items():
        assert main(["serve", *argv]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and words in err, err


def test_tokens_are_made_by_the_command_line(tmp_path, capsys):
    file = str(tmp_path / "tokens.json")
    assert main(["serve", "token", "add", "--file", file, "--name", "shop", "--role", "write", "--days", "3"]) == 0
    token = capsys.readouterr().out.strip()
    assert token.startswith("mmt_") and token not in Path(file).read_text()
    assert main(["serve", "token", "rotate", "--file", file, "--name", "shop"]) == 0
    assert capsys.readouterr().out.strip() != token
    assert main(["serve", "token", "list", "--file", file, "--json"]) == 0
    assert '"role": "write"' in (out := capsys.readouterr().out) and "hash" not in out and "salt" not in out
    assert main(["serve", "token", "remove", "--file", file, "--name", "shop"]) == 0
    assert capsys.readouterr().out == "removed 2 tokens\n"
    assert main(["serve", "token", "remove", "--file", file, "--name", "shop"]) == 2
    assert capsys.readouterr().err == f"mmtune serve token: {file}: no token 'shop'; its tokens: none\n"


def test_the_configuration_needs_no_heavy_import():
    """Mistakes are reported at once."""
    code = "import sys; from mmtune.serve.config_file import read_config; assert 'faiss' not in sys.modules and 'fastapi' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
