"""A server from its socket to its end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn

from questtrain.config.serve import KEY_VARIABLE, ServeConfig
from questtrain.errors import UserError, counted
from questtrain.inference.engine.messages import Load
from questtrain.inference.engine.process import EngineProcess
from questtrain.inference.serve.app import make_app
from questtrain.inference.serve.errors import ApiError
from questtrain.inference.serve.guard import Hosts
from questtrain.inference.serve.service import Service
from questtrain.process.signals import StopSignal, on_stop_signals

log = logging.getLogger(__name__)

SECONDS_TO_CLOSE = 5
"""What connections may take to end when nothing is being answered any more."""

SECONDS_BETWEEN_LOOKS = 0.05


def serve(config: ServeConfig, load: Load) -> None:
    """Serve the engine that ``load`` makes until a stop signal comes. UserError for an address that
    cannot be listened on, a key that cannot be read, a run that cannot be loaded; EngineDied where
    the engine ended by itself; StopSignal at the second signal, or before it served."""
    key = api_key(config.api_key_file)
    with _bound(config.host, config.port) as listener:
        address = listener.getsockname()[0]
        hosts = Hosts(address, config.host, config.allowed_hosts)
        if not hosts.is_loopback and key is None:
            raise UserError(
                f"host={config.host} lets other machines ask: give a key, by {KEY_VARIABLE} in the"
                " environment or api_key_file=FILE, or leave host=127.0.0.1."
            )
        asyncio.run(_serve(config, load, listener, hosts, key))


def api_key(file: str | None) -> str | None:
    """The key that clients need: what ``file`` holds, else what the environment says; None where
    there is none. UserError for an empty one, or one that no header can hold."""
    key, where = os.environ.get(KEY_VARIABLE), KEY_VARIABLE
    if file is not None:
        where = f"api_key_file={file}"
        try:
            key = Path(file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise UserError(f"{where} cannot be read: {reason}.") from error
    if key is None:
        return None
    if not key or not all("!" <= character <= "~" for character in key):
        raise UserError(f"{where} must hold a key: letters, digits and signs, without spaces.")
    return key


@contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens: nobody else takes the port while a model is loaded, and who asks
    meanwhile waits."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UserError(f"host={host} is no address of this machine: {error}.") from error
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as listener:
        # A port that the last server's connections still linger on can be taken at once.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(socket.SOMAXCONN)
        except OSError as error:
            advice = " Choose another: port=…, or port=0 for any." if port else ""
            raise UserError(
                f"port {port} of {host} cannot be listened on: {error.strerror}.{advice}"
            ) from error
        yield listener


class _Uvicorn(uvicorn.Server):
    """Leaves signals to us."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(
    config: ServeConfig, load: Load, listener: socket.socket, hosts: Hosts, key: str | None
) -> None:
    async with EngineProcess.started(load) as engine:
        service = Service(engine, config, key_needed=key is not None)
        server = _Uvicorn(_uvicorn_config(make_app(service, hosts, key), config))
        with _asked_to_stop() as (stop, stop_now):
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            print(_greeting(service, listener, key), flush=True)
            await _first(stop, serving, engine.died)
            if stop.done():
                await _drain(service, stop_now)
            server.should_exit = True
            await _first(serving, stop_now)
            if stop_now.done():
                name = signal.Signals(stop_now.result()).name
                raise StopSignal(stop_now.result(), f"{name}; answers were cut off.")
            await serving
        if engine.died.done():
            raise engine.died.result()


async def _first(*futures: asyncio.Future[Any], seconds: float | None = None) -> None:
    """Wait until one of them is done, or so long."""
    await asyncio.wait(futures, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)


async def _drain(service: Service, stop_now: asyncio.Future[int]) -> None:
    """Let what is being answered be finished, in the time that there is for it."""
    service.draining = True
    seconds = service.config.drain
    with suppress(OSError):  # who read what we print may be gone
        print(f"stopping: {under_way(service.engine.open)}", flush=True)
    finished = asyncio.create_task(_until_idle(service))
    await _first(finished, stop_now, seconds=seconds)
    finished.cancel()
    waited = "" if stop_now.done() else f"; it waited {seconds:g} s"
    service.engine.fail_all(ApiError(503, f"the server has ended{waited}.", code="draining"))


def under_way(answers: int) -> str:
    """What is said of so many open answers when the server is asked to stop."""
    if answers == 0:
        return "nothing is being answered"
    return f"{counted(answers, 'answer is', 'answers are')} finished first"


async def _until_idle(service: Service) -> None:
    while service.engine.open:
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)


@contextmanager
def _asked_to_stop() -> Iterator[tuple[asyncio.Future[int], asyncio.Future[int]]]:
    """Done with the first stop signal, and with the second: their numbers. (An exception that a
    signal's handler raises would end in whatever runs then, which may catch it.)"""
    loop = asyncio.get_running_loop()
    first: asyncio.Future[int] = loop.create_future()
    second: asyncio.Future[int] = loop.create_future()

    def note(number: int) -> None:
        later = second if first.done() else first
        if not later.done():
            later.set_result(number)

    def handle(number: int) -> None:
        loop.call_soon_threadsafe(note, number)

    with on_stop_signals(handle):
        yield first, second


def _uvicorn_config(app: object, config: ServeConfig) -> uvicorn.Config:
    if config.access_log:
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_config=None,
        access_log=config.access_log,
        lifespan="off",
        ws="none",
        loop="asyncio",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=SECONDS_TO_CLOSE,
    )


def _greeting(service: Service, listener: socket.socket, key: str | None) -> str:
    address, port = listener.getsockname()[:2]
    where = f"[{address}]" if ":" in address else address
    served, ready = service.engine.ready.served, service.engine.ready
    return (
        f"serving {service.model} ({served.precision}, step {served.step}, context"
        f" {ready.context}) at http://{where}:{port}{'' if key is None else ', with a key'}"
    )
