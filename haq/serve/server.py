"""The service on a socket, until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from haq.values.errors import InputError

_LAST_ANSWERS = 10
"""Seconds for requests that run when it is told to stop."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0: any that is free.

    Raises:
        InputError: it cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise InputError(
            f"--host {host} --port {port}: cannot be used: {error.strerror or error}; choose another"
        ) from error
    listening.set_inheritable(True)
    return listening


def serve(app: Starlette, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Run until SIGTERM or SIGINT: what was asked until then is answered.

    Args:
        app: the service.
        listening: made by `bind`.
        ready: is called when requests are taken.
    """
    config = uvicorn.Config(
        app, log_level="error", access_log=False, lifespan="on", timeout_graceful_shutdown=_LAST_ANSWERS
    )
    server = _Server(config, ready)
    asyncio.run(server.serve(sockets=[listening]))


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT stop the service, and that is all they do: a graceful stop is no failure."""
        signals = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
        before = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
