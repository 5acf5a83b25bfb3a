"""The HTTP service: `POST /predict`, `GET /health`, `GET /metrics`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from haq.edges.documents import finite
from haq.serve.engine import Answer, Engine, FullError
from haq.serve.metrics import Metrics
from haq.serve.requests import read_request
from haq.values.errors import InputError, shortened


@dataclass(frozen=True)
class Limits:
    """What one request may ask.

    Attributes:
        bytes: of a body.
        samples: in a batch.
        open: requests that are read, wait or run at a time.
        seconds: for a body to come.
        retry_after: seconds that a refused client is asked to wait.
    """

    bytes: int = 16 << 20
    samples: int = 1024
    open: int = 256
    seconds: float = 30.0
    retry_after: int = 1


class _TooLargeError(Exception):
    pass


def make_app(
    engine: Engine,
    metrics: Metrics,
    limits: Limits | None = None,
    background: Sequence[Callable[[], Awaitable[None]]] = (),
) -> Starlette:
    """The service as an ASGI application.

    Args:
        engine: answers.
        metrics: what it counts in.
        limits: of requests.
        background: run beside it until it stops.
    """
    bound = limits or Limits()

    @asynccontextmanager
    async def running(_: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for work in (engine.run, *background):
                await stack.enter_async_context(_task(work))
            yield

    opened = asyncio.BoundedSemaphore(bound.open)

    async def predict(request: Request) -> Response:
        began = perf_counter()
        if opened.locked() or engine.full:  # before its body is read
            response = _full(bound)
        else:
            async with opened:
                response = await _predict(request, engine, bound)
        metrics.seconds.observe(perf_counter() - began)
        metrics.requests.labels(str(response.status_code)).inc()
        for member in response.members:
            metrics.answers.labels(str(member)).inc()
        return response

    async def health(_: Request) -> Response:
        names = [member.name for member in engine.version.family.members]
        return JSONResponse({"status": "ok", "members": names, "version": engine.version.number})

    async def shown(_: Request) -> Response:
        metrics.queue.set(engine.waiting)
        metrics.version.set(engine.version.number)
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    routes = [Route("/predict", predict, methods=["POST"]), Route("/health", health), Route("/metrics", shown)]
    return Starlette(routes=routes, lifespan=running, exception_handlers={HTTPException: _no_such})


@asynccontextmanager
async def _task(work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    running = asyncio.ensure_future(work())
    try:
        yield
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


class _Reply(Response):
    media_type = "application/json"

    def __init__(
        self, document: Any, status: int = 200, headers: dict[str, str] | None = None, members: Sequence[int] = ()
    ) -> None:
        super().__init__(json.dumps(document), status, headers)
        self.members = members


async def _predict(request: Request, engine: Engine, limits: Limits) -> _Reply:
    try:
        body = await asyncio.wait_for(_body(request, limits.bytes), limits.seconds)
        wanted = engine.version.family.inputs
        asked = await asyncio.to_thread(read_request, body, wanted, most=limits.samples)
        answer = await engine.ask(asked)
    except _TooLargeError:
        return _Reply({"error": f"the body has more than {limits.bytes} bytes; send fewer samples"}, 413)
    except TimeoutError:
        return _Reply({"error": f"the body took more than {limits.seconds:g} s to come"}, 408)
    except FullError:
        return _full(limits)
    except InputError as error:
        return _Reply({"error": " ".join(str(error).split())}, 400)
    except ClientDisconnect:
        return _Reply({"error": "the client has gone"}, 400)
    return _Reply(await asyncio.to_thread(_document, answer), members=answer.members)


def _full(limits: Limits) -> _Reply:
    wait = {"Retry-After": str(limits.retry_after)}
    return _Reply({"error": f"too many requests wait; try again in {limits.retry_after} s"}, 503, wait)


async def _body(request: Request, most: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise _TooLargeError
        parts.append(part)
    return b"".join(parts)


def _document(answer: Answer) -> dict[str, Any]:
    outputs = [_plain(output) for output in answer.outputs]
    members = list(answer.members)
    return {
        "outputs": outputs[0] if len(outputs) == 1 else outputs,
        "member": members[0] if len(set(members)) == 1 else members,
        "version": answer.version,
    }


def _plain(output: torch.Tensor) -> Any:
    """Nested lists; what is no number in JSON becomes null."""
    safe = not output.is_floating_point() or bool(torch.isfinite(output).all())
    return output.tolist() if safe else finite(output.tolist())


async def _no_such(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = "POST /predict, GET /health, GET /metrics"
    line = f"{shortened(str(error.detail))}; known: {known}"
    return JSONResponse({"error": line}, error.status_code, headers=dict(error.headers or {}))
