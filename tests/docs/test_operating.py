"""The files of deploy/ and the tables of docs/operating.md: what a parser can check without building anything."""

import configparser
import re
import shlex
import tomllib
from pathlib import Path

import crossplane
import dockerfile_parse
import yaml

from mmtune.cli.dispatch import Parser
from mmtune.cli.serve_verb import arguments
from mmtune.serve.config_file import read_config

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PAGE = (ROOT / "docs/operating.md").read_text()


def test_the_configuration_is_read():
    config = read_config(DEPLOY / "serve.yaml", {})
    assert config.host == "0.0.0.0" and config.settings().proxies and config.log == "json"


def test_the_dockerfile_is_one():
    with open(DEPLOY / "Dockerfile", "rb") as f:
        lines = dockerfile_parse.DockerfileParser(fileobj=f).structure
    by_name = {}
    for line in lines:
        by_name.setdefault(line["instruction"], []).append(line["value"])
    known = {
        "FROM",
        "RUN",
        "WORKDIR",
        "COPY",
        "USER",
        "ENV",
        "EXPOSE",
        "STOPSIGNAL",
        "HEALTHCHECK",
        "ENTRYPOINT",
        "CMD",
        "COMMENT",
    }
    assert set(by_name) <= known and by_name["USER"] == ["mmtune"] and ":" in by_name["FROM"][0]
    for copied in by_name["COPY"]:
        for source in copied.split()[:-1]:
            assert (ROOT / source).exists(), source
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (named,) = re.findall(r'"\.\[([a-z,0-9]+)\]"', " ".join(by_name["RUN"]))
    assert set(named.split(",")) <= set(extras)
    probe = yaml.safe_load(by_name["HEALTHCHECK"][0].partition("CMD ")[2])
    compile(probe[2], "HEALTHCHECK", "exec")
    assert yaml.safe_load(by_name["ENTRYPOINT"][0]) == ["mmtune"]
    parser = Parser()
    arguments(parser)
    assert parser.parse_args(yaml.safe_load(by_name["CMD"][0])[1:]).config == "/srv/mmtune/serve.yaml"


def test_the_compose_file_is_consistent():
    document = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services, volumes = document["services"], set(document["volumes"])
    assert set(services) == {"server", "postgres", "qdrant"}
    keys = {
        "build",
        "image",
        "restart",
        "stop_grace_period",
        "ports",
        "environment",
        "volumes",
        "depends_on",
        "read_only",
        "tmpfs",
    }
    keys |= {"cap_drop", "security_opt", "healthcheck", "logging"}
    for name, service in services.items():
        assert set(service) <= keys, name
        assert ("image" in service) != ("build" in service) and ":" in service.get("image", ":")
        for other, how in service.get("depends_on", {}).items():
            assert how["condition"] == "service_healthy" and "healthcheck" in services[other]
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source.startswith(".") or source in volumes
        for value in service.get("environment", {}).values():  # no secret is written into the file
            assert "PASSWORD" not in value or value.count("${") == 1
    build = services["server"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    assert all(p.startswith("127.0.0.1:") for s in services.values() for p in s.get("ports", []))


def test_the_nginx_configuration_is_one(tmp_path):
    whole = tmp_path / "nginx.conf"
    whole.write_text(f"events {{}}\nhttp {{\ninclude {DEPLOY / 'nginx.conf'};\n}}\n")
    parsed = crossplane.parse(str(whole), strict=True, check_ctx=True, check_args=True)
    assert parsed["status"] == "ok", parsed["errors"]
    (server,) = [b for b in parsed["config"][1]["parsed"] if b["directive"] == "server"]
    for location in (b for b in server["block"] if b["directive"] == "location"):
        headers = {b["args"][0] for b in location["block"] if b["directive"] == "proxy_set_header"}
        assert {"Host", "X-Forwarded-For"} <= headers, location["args"]


def test_the_unit_is_one():
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str
    unit.read(DEPLOY / "mmtune.service")
    assert unit.sections() == ["Unit", "Service", "Install"]
    command = shlex.split(unit["Service"]["ExecStart"])
    parser = Parser()
    arguments(parser)
    assert command[1] == "serve" and parser.parse_args(command[2:]).config == "/srv/mmtune/serve.yaml"
    assert unit["Service"]["User"] != "root" and unit["Service"]["NoNewPrivileges"] == "true"
    config = read_config(DEPLOY / "serve.yaml", {})
    assert int(unit["Service"]["TimeoutStopSec"]) > config.drain + config.grace


def test_the_table_of_the_page_names_tests_that_exist():
    tests = (ROOT / "tests/serve/test_owasp.py").read_text()
    rows = re.findall(r"^\| API(\d+) ", PAGE, re.M)
    assert rows == [str(n) for n in range(1, 11)]
    assert [n for n in re.findall(r"^def test_api(\d+)_", tests, re.M)] == rows
    named = set(re.findall(r"`(deploy/[\w.]+)`", PAGE))
    assert len(named) == 5 and all((ROOT / path).is_file() for path in named), named


def test_the_page_names_keys_that_exist():
    from mmtune.serve.config_file import LimitsBlock, RatesBlock, ServeConfig

    table = PAGE[PAGE.index("| key | meaning |") : PAGE.index("## When something is away")]
    keys = [k for row in table.splitlines()[2:] for k in re.findall(r"`([\w.]+)`", row.split("|")[1] if "|" in row else "")]
    assert len(keys) >= 12
    block = None
    for key in keys:
        block, _, name = key.rpartition(".") if "." in key else (block, "", key)
        known = {"limits": LimitsBlock, "rates": RatesBlock}.get(block or "", ServeConfig).model_fields
        assert name in known or name in ServeConfig.model_fields, key
