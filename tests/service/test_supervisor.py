"""The whole service as its users start it, and what becomes of it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil
import pytest

from service.settings import Settings, private_dir
from service.supervisor import Part, Supervisor, SupervisorError, server_command
from tests.service.support import SMALL, form


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Service:
    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._environment = os.environ | {
            "XDG_RUNTIME_DIR": str(folder),
            "SCENELIFT_DATA_DIR": str(folder / "data"),
            "SCENELIFT_PORT": str(self.port),
            "SCENELIFT_WORKER_METRICS_PORT": "0",
            "SCENELIFT_LEASE_SECONDS": "1",
            "SCENELIFT_DRAIN_SECONDS": "5",
        }
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)

    def start(self) -> None:
        script = str(Path(__file__).with_name("fake_serve.py"))
        self.process = psutil.Popen((sys.executable, script), env=self._environment, stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == b"started\n"
        self.await_ready()

    def await_ready(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                if self.client.get("/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def part(self, word: str) -> psutil.Process:
        (found,) = [child for child in self.process.children() if word in " ".join(child.cmdline())]
        return found

    def reconstruct(self) -> dict:
        answer = self.client.post("/reconstruct", files=form(), data=SMALL, headers={"Prefer": "wait=20"})
        assert answer.status_code == 200, answer.text
        assert answer.json()["status"] == "succeeded"
        return answer.json()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.client.close()


@pytest.fixture
def service():
    folder = Path(tempfile.mkdtemp(prefix="sl"))  # short: sockets' paths are
    service = Service(folder)
    service.start()
    yield service
    service.end()
    shutil.rmtree(folder, ignore_errors=True)


def test_what_dies_is_started_again_and_nothing_is_lost(service):
    first = service.reconstruct()
    worker = service.part("fake_model")
    worker.kill()
    deadline = time.monotonic() + 10
    while worker.is_running():
        assert service.client.get("/livez").status_code == 200, "the API goes on"
        assert time.monotonic() < deadline
    assert service.reconstruct()["id"] != first["id"]

    time.sleep(1.2)  # what the queue's server syncs every second
    service.part("valkey-server").kill()
    time.sleep(0.2)
    service.await_ready()
    assert service.client.get(first["links"]["self"]).json() == first

    service.part("api").kill()
    time.sleep(0.2)
    service.await_ready()
    assert service.client.get(first["files"][0]["url"]).status_code == 200

    # SIGTERM ends everything in order, also while someone listens; a new start knows the old jobs.
    children = service.process.children(recursive=True)
    slow = service.client.post("/reconstruct", files=form("slow.jpg", "b.jpg"), data=SMALL).json()
    with service.client.stream("GET", slow["links"]["events"]) as events:
        lines = events.iter_lines()
        next(lines)
        service.process.terminate()
        for _ in lines:
            pass
    assert service.process.wait(15) == 0
    assert not any(child.is_running() for child in children)
    service.process.stdout.close()
    service.start()
    assert service.client.get(first["links"]["self"]).json() == first
    assert service.client.get(slow["links"]["self"]).json()["status"] == "succeeded", "it was let end"


def test_nothing_outlives_a_killed_supervisor(service):
    children = service.process.children(recursive=True)
    assert len(children) == 3
    service.process.kill()
    _, alive = psutil.wait_procs(children, timeout=15)
    assert not alive


def test_a_server_that_runs_is_used_not_started_twice(service, tmp_path):
    port = free_port()
    second = subprocess.Popen(
        (sys.executable, str(Path(__file__).with_name("fake_serve.py"))),
        env=service._environment | {"SCENELIFT_PORT": str(port)},
        stdout=subprocess.PIPE,
    )
    try:
        assert second.stdout.readline() == b"started\n"
        names = [" ".join(child.cmdline()) for child in psutil.Process(second.pid).children()]
        assert len(names) == 2
        assert not any("valkey" in name for name in names)
    finally:
        second.terminate()
        second.communicate(timeout=20)
    assert service.reconstruct(), "the first one's queue is still there"


def test_a_port_in_use_is_said_at_once(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = Settings(_env_file=None, data_dir=tmp_path, port=taken.getsockname()[1])
        with pytest.raises(SupervisorError, match=f"cannot listen on 127.0.0.1:{settings.port}"):
            Supervisor(settings).run(lambda: pytest.fail("it started"))


def test_a_socket_path_that_is_too_long_is_said(tmp_path, monkeypatch):
    deep = tmp_path / ("x" * 60) / ("y" * 60)
    deep.mkdir(parents=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    with pytest.raises(SupervisorError, match="too long"):
        server_command(Settings(_env_file=None, data_dir=tmp_path))


def test_the_queues_folder_is_this_users_alone(tmp_path):
    made = private_dir(tmp_path / "a" / "b")
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert private_dir(made) == made
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(PermissionError):
        private_dir(tmp_path / "open")
    (tmp_path / "link").symlink_to(made)
    with pytest.raises(PermissionError):
        private_dir(tmp_path / "link")


def test_a_part_that_keeps_ending_is_started_ever_more_rarely():
    part = Part("brief", (sys.executable, "-c", "raise SystemExit(3)"))
    starts = []
    began = time.monotonic()
    while time.monotonic() - began < 2.5:
        before = part._process
        part.keep()
        if part._process is not before and part._process is not None:
            starts.append(time.monotonic() - began)
        time.sleep(0.01)
    part.stop(1)
    assert 2 <= len(starts) <= 3
    assert starts[1] - starts[0] >= 0.9


def test_a_part_that_does_not_end_is_killed():
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    part = Part("stubborn", (sys.executable, "-c", code))
    part.keep()
    time.sleep(0.3)
    part.stop(0.2)
    assert not part.running
    assert part._process.returncode == -signal.SIGKILL
