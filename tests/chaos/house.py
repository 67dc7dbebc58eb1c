"""The service as real processes on this machine, each of which can be killed, held and started again."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from service.settings import Settings
from service.supervisor import _tied_to, server_command
from tests.service.support import as_environment

ROOT = Path(__file__).parents[2]


class Process:
    """One process; what it says is appended to a file."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        self._command = command
        self._environment = environment
        self._running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """From the main thread alone: the process ends with the thread that made it."""
        with self.log.open("ab") as log:
            self._running = subprocess.Popen(
                self._command, env=self._environment, cwd=ROOT, stdout=log, stderr=log, preexec_fn=_tied_to(os.getpid())
            )

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def runs(self) -> bool:
        return self._running is not None and self._running.poll() is None

    def kill(self) -> None:
        """As kill -9 does."""
        if self._running is not None:
            self._running.kill()
            self._running.wait()

    def hold(self) -> None:
        self._running.send_signal(signal.SIGSTOP)

    def release(self) -> None:
        self._running.send_signal(signal.SIGCONT)


class House:
    """A queue server with its log on disk, API processes and workers with a model that answers at once."""

    def __init__(self, data: Path | None = None, *, workers: int = 2, **settings: object) -> None:
        """All lies in a folder of its own, but photos, results and the queue's log in `data` where that is given."""
        self.folder = Path(tempfile.mkdtemp(prefix="sl"))  # short: sockets' paths are
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._clock = self.folder / "clock"
        self._clock.write_bytes(bytes(8))
        with patch.dict(os.environ, XDG_RUNTIME_DIR=str(self.folder)):
            alone = Settings(
                _env_file=None,
                data_dir=data or self.folder / "data",
                port=port,
                worker_metrics_port=0,
                log_json=True,
                **settings,
            )
            queue = server_command(alone)
            self.settings = alone.model_copy(update={"redis_url": alone.queue_url})
        own = os.environ | as_environment(self.settings)
        shifted = os.environ | {"CHAOS_CLOCK": str(self._clock)} | self._preload()
        self.can_move_clock = "LD_PRELOAD" in shifted
        self.queue = Process(queue, shifted, self.folder / "queue.log")
        self.api = Process((sys.executable, "-m", "service", "api"), own, self.folder / "api.log")
        worker = (sys.executable, str(ROOT / "tests" / "service" / "fake_model.py"))
        self.workers = [Process(worker, own, self.folder / f"worker{i}.log") for i in range(workers)]
        self.address = f"http://127.0.0.1:{port}"

    @property
    def processes(self) -> list[Process]:
        return [self.queue, self.api, *self.workers]

    def start(self) -> None:
        for process in self.processes:
            process.start()

    def end(self) -> None:
        for process in reversed(self.processes):
            process.kill()
        shutil.rmtree(self.folder)

    def move_clock(self, seconds: int) -> None:
        """Set the clock of the queue's server, and nobody else's, forward or back."""
        (moved,) = struct.unpack("q", self._clock.read_bytes())
        with self._clock.open("r+b") as file:  # in place: the server has it mapped
            file.write(struct.pack("q", moved + seconds))

    def said(self, event: str) -> Counter[str]:
        """How often a worker has logged this, by job."""
        pattern = re.compile(rf'(?=.*"event": "{event}").*"job": "([^"]+)"')
        lines = (line for worker in self.workers for line in worker.log.read_text(errors="replace").splitlines())
        return Counter(found[1] for line in lines if (found := pattern.match(line)))

    def uploads(self) -> list[Path]:
        """Every file of photos on disk, and every file that is still being written."""
        parts = (self.settings.data_dir / part for part in ("uploads", "tmp"))
        return sorted(Path(at) / name for part in parts for at, _, names in os.walk(part) for name in names)

    def _preload(self) -> dict[str, str]:
        """The environment of a process whose clock is ours, where there is a C compiler."""
        compiler = shutil.which("cc")
        if compiler is None or not sys.platform.startswith("linux"):
            return {}
        library = self.folder / "clock.so"
        source = Path(__file__).with_name("clock.c")
        subprocess.run((compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source)), check=True)
        return {"LD_PRELOAD": str(library)}
