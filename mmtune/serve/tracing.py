"""OpenTelemetry traces: one span a request, with spans of its search, change or forward pass inside (extra `otel`).

The exporter and its address are set by OpenTelemetry's own environment variables, for example OTEL_EXPORTER_OTLP_ENDPOINT. A
`traceparent` header continues the trace of the client. Spans have no contents of queries, ids or tokens.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from mmtune.errors import MissingExtra
from mmtune.serve.prometheus import route_of
from mmtune.serve.request_info import request_info

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext, Tracer, TracerProvider
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

Attributes = Mapping[str, str | int | float | bool]


def trace_provider() -> "TracerProvider":
    """Create a provider that sends spans to the OTLP endpoint of the environment. Raises MissingExtra without the libraries."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise MissingExtra('--traces needs OpenTelemetry: pip install "mmtune[otel]"') from None
    from mmtune.runtime.version import __version__

    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override these attributes
    provider = TracerProvider(resource=Resource.create({"service.name": "mmtune", "service.version": __version__}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Tracing:
    """The spans of one server; without a provider, all methods do nothing.

    provider: where spans go
    """

    def __init__(self, provider: "TracerProvider | None" = None):
        self.provider = provider
        self.tracer: Tracer | None = None if provider is None else provider.get_tracer("mmtune.serve")

    @contextlib.contextmanager
    def span(
        self, name: str, attributes: Attributes | None = None, links: "Sequence[SpanContext]" = ()
    ) -> Iterator[dict[str, str | int | float | bool]]:
        """Context manager for a span inside of the current one. Yields a dict; its items become attributes at the end."""
        more: dict[str, str | int | float | bool] = {}
        if self.tracer is None:
            yield more
            return
        from opentelemetry.trace import Link

        with self.tracer.start_as_current_span(name, attributes=attributes, links=[Link(c) for c in links]) as span:
            try:
                yield more
            finally:
                span.set_attributes(more)

    def current(self) -> "SpanContext | None":
        """Return the context of the current span, for links from the span of a batch; None without one."""
        if self.tracer is None:
            return None
        from opentelemetry.trace import get_current_span

        context = get_current_span().get_span_context()
        return context if context.is_valid else None

    def close(self) -> None:
        """Send the spans that wait."""
        if shutdown := getattr(self.provider, "shutdown", None):
            shutdown()


class TraceMiddleware:
    """ASGI middleware that records a span for each request: method, route, status, and the request's id."""

    def __init__(self, app: "ASGIApp", tracing: Tracing):
        self.app, self.tracing = app, tracing

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Handle one ASGI connection."""
        tracer = self.tracing.tracer
        if scope["type"] != "http" or tracer is None:
            return await self.app(scope, receive, send)
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind, StatusCode

        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        attributes = {"http.request.method": scope["method"], "mmtune.request": request_info(scope).id}
        with tracer.start_as_current_span(
            scope["method"], extract(headers), SpanKind.SERVER, attributes, record_exception=False
        ) as span:

            async def noting_send(message: "Message") -> None:
                if message["type"] == "http.response.start":
                    route, status = route_of(scope), message["status"]
                    span.update_name(f"{scope['method']} {route}")
                    span.set_attributes({"http.route": route, "http.response.status_code": status})
                    if code := request_info(scope).code:
                        span.set_attribute("error.type", code)
                    if status >= 500:
                        span.set_status(StatusCode.ERROR)
                await send(message)

            await self.app(scope, receive, noting_send)
