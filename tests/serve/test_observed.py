"""What operators see: logs with request ids and without secrets, and traces in OpenTelemetry's in-memory exporter."""

import io
import json
import logging

import pytest

from mmtune.serve.app import create_app
from mmtune.serve.request_log import JsonFormatter, PlainFormatter
from tests.serve.test_rest import refused, wait_ready
from tests.support.serve_helpers import BEARER, LOCAL, TOKEN, client, collection, copy_of, picture, settings


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return collection(tmp_path_factory)


@pytest.fixture
def lines():
    """The log of the server as JSON lines."""
    out, loggers = io.StringIO(), [logging.getLogger(n) for n in ("mmtune.serve", "mmtune.serve.access")]
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonFormatter())
    levels = [logger.level for logger in loggers]
    loggers[0].addHandler(handler)
    for logger in loggers:
        logger.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in out.getvalue().splitlines()]
    loggers[0].removeHandler(handler)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def test_every_request_is_one_json_line_with_its_id(shelf, lines):
    with client(shelf, token=TOKEN, access_log=True) as web:
        web.headers.update(BEARER)
        wait_ready(web)
        before = len(lines())
        own = web.post("/search?secret=1", json={"text": "red"}, headers={"X-Request-Id": "trace-7"})
        assert own.headers["x-request-id"] == "trace-7"
        made = web.get("/items/customer-4711", headers={"X-Request-Id": "two words\t"})
        assert len(made.headers["x-request-id"]) == 32
        refused(web.put("/items/x", json={}), 422)
        logged = [x for x in lines()[before:] if "route" in x]
    assert [(x["method"], x["route"], x["status"], x["code"]) for x in logged] == [
        ("POST", "/search", 200, None),
        ("GET", "/items/{id:path}", 404, "no_item"),
        ("PUT", "/items/{id:path}", 422, "invalid"),
    ]
    assert [x["request"] for x in logged[:2]] == ["trace-7", made.headers["x-request-id"]]
    first = logged[0]
    assert first["token"] == "token" and first["client"] == "testclient" and first["level"] == "info"
    assert first["bytes_in"] == len(b'{"text":"red"}') and first["bytes_out"] == len(own.content) and first["seconds"] > 0
    everything = json.dumps(logged)
    assert (
        TOKEN not in everything
        and "4711" not in everything
        and "secret" not in everything
        and "red" not in everything.replace("refused", "")
    )


def test_an_error_is_logged_with_the_id_that_the_client_has(shelf, lines, monkeypatch):
    with client(shelf) as web:
        wait_ready(web)
        monkeypatch.setattr(type(web.service), "item", lambda self, id: 1 / 0)
        found = web.get("/items/0-000")
        assert found.status_code == 500 and "division" not in found.text
        (line,) = [x for x in lines() if "ZeroDivisionError" in x["message"]]
        assert found.headers["x-request-id"] in line["message"] and "0-000" not in line["message"]
        assert "Traceback" in line["traceback"]


def test_a_line_break_forges_no_line():
    record = logging.LogRecord("x", logging.INFO, "", 0, "a\nERROR forged\r\x1b[2J", (), None)
    assert "\n" not in PlainFormatter().format(record) and "\n" not in JsonFormatter().format(record)
    assert "\x1b" not in PlainFormatter().format(record)


def test_traces_of_requests_searches_and_batches(shelf, tmp_path):
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.trace import SpanKind, StatusCode
    from starlette.testclient import TestClient

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = create_app(copy_of(shelf, tmp_path), settings(token=TOKEN), provider)
    with TestClient(app, base_url=LOCAL, headers=BEARER, raise_server_exceptions=False) as web:
        wait_ready(web)
        exporter.clear()
        parent = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
        assert web.post("/search", json={"text": "a red square", "k": 3}, headers=parent).status_code == 200
        spans = {s.name: s for s in exporter.get_finished_spans()}
        assert set(spans) == {"POST /search", "search", "batch"}
        request, search, batch = spans["POST /search"], spans["search"], spans["batch"]
        assert request.kind is SpanKind.SERVER and f"{request.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
        assert request.attributes["http.route"] == "/search" and request.attributes["http.response.status_code"] == 200
        assert search.parent.span_id == request.context.span_id and search.attributes["mmtune.results"] == 3
        assert [link.context.span_id for link in batch.links] == [search.context.span_id]
        assert batch.attributes["mmtune.queries"] == 1 and batch.attributes["mmtune.version"] == "v1"
        exporter.clear()
        web.put("/items/new", json={"text": "x"})
        web.get("/items/nothing")
        app.state.service.stopping = True
        web.get("/ready")
        spans = {s.name: s for s in exporter.get_finished_spans()}
        assert spans["upsert"].parent.span_id == spans["PUT /items/{id:path}"].context.span_id
        assert spans["GET /items/{id:path}"].attributes["error.type"] == "no_item"
        assert spans["GET /items/{id:path}"].status.status_code is StatusCode.UNSET
        assert spans["GET /ready"].status.status_code is StatusCode.ERROR
        assert "a red square" not in str([s.attributes for s in spans.values()])


def test_a_large_query_has_its_span(shelf):
    """A value that is decoded in a thread keeps its place in the trace."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from starlette.testclient import TestClient

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with TestClient(create_app(shelf, settings(), provider), base_url=LOCAL) as web:
        wait_ready(web)
        exporter.clear()
        big = {"image": ("x.png", picture(size=(1000, 900)))}
        assert web.post("/search", files=big, data={"hybrid": "false", "group_by": "group"}).status_code == 200
        spans = {s.name: s for s in exporter.get_finished_spans()}
        assert spans["search"].parent.span_id == spans["POST /search"].context.span_id


def test_a_missing_library_is_named(monkeypatch):
    import builtins

    from mmtune.errors import MissingExtra
    from mmtune.serve.tracing import trace_provider

    real = builtins.__import__

    def refuse(name, *rest):
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtra, match=r'pip install "mmtune\[otel\]"'):
        trace_provider()
