"""Engines built by workers: by one of them, in a process of its own, told about, and never in the way.

Control flow is shown with a builder that is none (`fake_builder.py`); at the end TensorRT for RTX builds, which needs
no GPU. That a built engine is right and fast, only a GPU can show.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from export.contract import GRAPH_FILE, ArtifactError, read_description
from export.engine import read_record
from export.onnx_graph import export_onnx
from service import engines
from service.engines import Engine, Workshop, build_command, identity
from service.jobs import Queue
from service.models import Registry
from service.worker import Worker
from tests.service.fake_model import FakeCatalogue, FakeEngines, FakeModel
from tests.service.support import SMALL, as_environment, ended, form, serving
from tests.tiny import TINY_SQUARE, make_tiny_artifact, tiny_network

SECONDS = 20


async def until(condition, seconds=SECONDS):
    """What `condition` answers, once that is something."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if asyncio.iscoroutine(answer):
            answer = await answer
        if answer:
            return answer
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def runs(folder: Path) -> list[int]:
    """Processes that began a build in this folder."""
    path = folder / "runs"
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


@asynccontextmanager
async def worker_of(settings, catalogue):
    """A worker, which may not be ready for long."""
    worker = Worker(settings, catalogue)
    task = asyncio.create_task(worker.run())
    yield worker
    worker.stop()
    assert await asyncio.wait_for(task, SECONDS) == 0


@pytest.fixture
def folder(settings):
    return settings.engines_dir


def catalogue(folder, behaviour="build"):
    return FakeEngines(folder, behaviour, FakeModel("fake"))


# ---------------------------------------------------------------- the lock


async def test_a_lock_has_one_holder_who_alone_can_free_it(queue, settings):
    other = Queue(settings)
    assert await queue.hold("x", "a") == "a"
    assert await other.hold("x", "b") == "a"
    assert await other.hold("y", "b") == "b"
    assert not await other.let_go("x", "b")
    assert await queue.holder("x") == "a"
    assert await queue.let_go("x", "a")
    assert not await queue.let_go("x", "a")
    assert await queue.holder("x") is None
    assert await other.hold("x", "b") == "b"
    await other.close()


async def test_a_lock_runs_out_a_lease_after_its_last_renewal(queue, settings):
    for _ in range(3):
        assert await queue.hold("x", "a") == "a"
        await asyncio.sleep(0.6 * settings.lease_seconds)
        assert await queue.hold("x", "b") == "a"
    await asyncio.sleep(0.6 * settings.lease_seconds)
    assert await queue.hold("x", "b") == "b"
    assert await queue.hold("x", "a") == "b"


def test_a_folder_is_known_by_what_is_in_it(tmp_path):
    (tmp_path / "mounted").symlink_to(tmp_path / "engines")
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(identity(tmp_path / "engines"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {*found, identity(tmp_path / "mounted")} == {found[0]}
    assert len(found[0]) == 16
    assert identity(tmp_path / "others") != found[0]
    assert [path.name for path in (tmp_path / "engines").iterdir()] == [engines.IDENTITY_FILE]


# ---------------------------------------------------------------- a worker, with a builder that is none


async def test_a_worker_builds_before_it_takes_jobs_and_says_how_far_it_is(queue, settings, folder):
    async with serving(settings) as client, worker_of(settings, catalogue(folder, "slow")) as worker:

        async def building():
            (found,) = (await client.get("/workers")).json()["workers"] or [{"building": None}]
            return found["building"] and found["building"]["progress"] and found

        found = await until(building)
        assert found["state"] == "starting"
        assert found["building"] == {"engine": "fake", "phase": "Timing", "progress": 0.4}
        ready = await client.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["reasons"] == ["No worker is ready: starting (its engine is being built, 40 %)."]
        answer = await client.post("/reconstruct", files=form(), data=SMALL)
        assert answer.status_code == 202, "the API is never in the way of a build, nor a build in its"
        await asyncio.sleep(0.5)
        assert (await client.get(answer.headers["Location"])).json()["status"] == "queued"
        (folder / "go").touch()
        assert (await ended(client, answer.json()["id"]))["status"] == "succeeded"
        await worker._beat()
        (found,) = (await client.get("/workers")).json()["workers"]
        assert (found["building"], found["engine"]) == (None, "tensorrt")
    assert len(runs(folder)) == 1
    assert sorted(path.name for path in folder.iterdir()) == [engines.IDENTITY_FILE, "fake.engine", "go", "runs"]


async def test_one_worker_builds_and_another_serves_on_and_takes_it_then(queue, settings, folder):
    often = settings.model_copy(update={"check_interval_seconds": 0.3})
    other = catalogue(folder, "slow")
    async with worker_of(settings, catalogue(folder, "slow")) as first:
        await until(lambda: runs(folder))
        async with worker_of(often, other) as second:
            await until(second._healthy)
            await second._beat()
            entry = {found.id: found for found in await queue.workers()}[second.id].models[0]
            assert entry.engine == "torch"
            assert entry.passed_over == [f"tensorrt: its engine is being built by worker {first.id}", "other: x"]
            assert not first._healthy()
            (folder / "go").touch()
            await until(lambda: other.opened == ["torch", "tensorrt"])
            await until(first._healthy)
            await asyncio.sleep(0.5)
            assert other.opened == ["torch", "tensorrt"], "once"
    assert len(runs(folder)) == 1


async def test_workers_with_folders_of_their_own_build_each_for_itself(queue, settings, tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    async with worker_of(settings, catalogue(folders[0], "slow")), worker_of(settings, catalogue(folders[1], "slow")):
        await until(lambda: all(runs(folder) for folder in folders))
        for folder in folders:
            (folder / "go").touch()


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_a_worker_that_ends_takes_its_build_along_and_another_builds(settings, folder, queue, end):
    program = str(Path(__file__).with_name("fake_model.py"))
    environment = os.environ | as_environment(settings)
    process = subprocess.Popen((sys.executable, program, "slow"), env=environment)
    try:
        (build,) = await until(lambda: runs(folder))
        process.send_signal(signal.SIGKILL if end == "kill" else signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, SECONDS) == (-signal.SIGKILL if end == "kill" else 0)
        await until(lambda: not alive(build), 5)
    finally:
        process.kill()
        process.wait()
    lock = catalogue(folder).engines()[0].lock()
    assert (await queue.holder(lock) is None) == (end == "stop"), "a killed worker's lock runs out"
    following = catalogue(folder)
    often = settings.model_copy(update={"check_interval_seconds": 0.3})
    async with worker_of(often, following):
        await until(lambda: following.opened and following.opened[-1] == "tensorrt")
    assert len(runs(folder)) == 2


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        ("refuse", "its engine could not be built: the builder does not take the node the_odd_one"),
        ("raise", "its engine could not be built: the build ended with exit code 3, and the log says why"),
        (
            "crash",
            "its engine could not be built: the build was ended by SIGKILL, as happens where memory runs out",
        ),
        ("hang", "its engine was not built within 1 s"),
    ],
)
async def test_a_failed_build_is_told_and_not_tried_again(queue, settings, folder, monkeypatch, behaviour, why):
    if behaviour == "hang":
        monkeypatch.setattr(engines, "BUILD_SECONDS", 1.0)
    often = settings.model_copy(update={"check_interval_seconds": 0.1})
    async with worker_of(often, catalogue(folder, behaviour)) as worker:
        await until(worker._healthy)
        first = worker._check.at
        await until(lambda: worker._check.at > first)
        await worker._beat()
        (found,) = await queue.workers()
        assert (found.state, found.engine) == ("ready", "torch")
        assert found.models[0].passed_over == [f"tensorrt: {why}", "other: x"]
        (build,) = runs(folder)
        assert not alive(build)
        assert sorted(path.name for path in folder.iterdir()) == [engines.IDENTITY_FILE, "runs"]


async def test_a_model_that_comes_later_gets_its_engine_while_no_job_runs(queue, settings, folder):
    often = settings.model_copy(update={"check_interval_seconds": 0.2})
    models = catalogue(folder)
    async with worker_of(often, models) as worker:
        await until(worker._healthy)
        models.models["late"] = FakeModel("late")
        await until(lambda: (folder / "late.engine").exists() and worker._healthy())
    assert models.opened == ["tensorrt"]
    assert len(runs(folder)) == 2


async def test_a_folder_that_cannot_be_written_is_told(queue, settings, tmp_path):
    (tmp_path / "file").touch()
    engine = Engine("fake", "fake", tmp_path / "file" / "engines", present=False, command=("false",))
    workshop = Workshop(queue, "me", 1.0)
    assert not await workshop.provide(engine, asyncio.Event().wait)
    assert workshop.lacking("fake") == "the folder of engines cannot be written: Not a directory"


async def test_a_build_whose_lock_is_anothers_is_ended(queue, settings, folder):
    """As after the queue's server was away for longer than a lease."""
    engine = catalogue(folder, "slow").engines()[0]
    workshop = Workshop(queue, "me", 0.3)

    async def nothing():
        pass

    building = asyncio.create_task(workshop.provide(engine, nothing))
    (build,) = await until(lambda: runs(folder))
    await queue.let_go(engine.lock(), "me")
    assert await queue.hold(engine.lock(), "another") == "another"
    assert not await building
    assert workshop.lacking("fake") == "its engine is being built by worker another"
    assert not alive(build)
    assert await queue.holder(engine.lock()) == "another"


async def test_a_check_that_drifts_says_so(queue, settings):
    """What an artifact is refused for is for readers; what else goes wrong is not."""

    class Drifting(FakeModel):
        def warm_up(self) -> None:
            raise ArtifactError("mvdust3r with torch drifts: try fp32")

    async with worker_of(settings, FakeCatalogue(Drifting())):

        async def told():
            return [found.last_check.detail for found in await queue.workers() if found.last_check]

        assert await until(told) == ["fake failed: mvdust3r with torch drifts: try fp32"]


# ---------------------------------------------------------------- a builder that is one


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder of one tiny network, for two views: a profile more takes a build about as long again."""
    folder = tmp_path_factory.mktemp("models")
    artifact = make_tiny_artifact(folder)
    replace(read_description(artifact), max_views=2).write(artifact)
    return folder


@pytest.fixture
def registry(models, folder):
    pytest.importorskip("tensorrt_rtx")
    return Registry(models, engines=folder, target="sm89")


async def nobody():
    """Nothing else computes."""


@pytest.mark.slow
async def test_a_real_engine_is_built_and_known(queue, settings, folder, registry):
    (engine,) = registry.engines()
    assert (engine.model, engine.present, registry.records("tiny")) == ("tiny", False, [])
    workshop = Workshop(queue, "me", settings.lease_seconds)
    building = asyncio.create_task(workshop.provide(engine, nobody))
    seen = []

    def told():
        if workshop.building not in (None, *seen):
            seen.append(workshop.building)
        return building.done()

    await until(told, 120)
    assert building.result()
    assert len({document.phase for document in seen}) > 1
    shares = [document.progress for document in seen]
    assert shares == sorted(shares)
    assert 0 < shares[-1] <= 1
    (engine,) = registry.engines()
    assert engine.present
    (record,) = registry.records("tiny")
    assert record == read_record(folder / f"{engine.name}.engine")
    assert record.key.target == "sm89"
    (folder / f"{engine.name}.engine").write_bytes(b"cut off")
    (engine,) = registry.engines()
    assert (engine.present, registry.records("tiny")) == (False, [])


async def test_a_real_build_ends_with_whoever_wants_it(settings, folder, registry):
    """Its standard input closes: in the middle of a build, which holds no lock of the interpreter then."""
    (engine,) = registry.engines()
    process = subprocess.Popen(engine.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    told = json.loads(await asyncio.to_thread(process.stdout.readline))
    assert 0 <= told["progress"] <= 1
    process.stdin.close()
    assert await asyncio.to_thread(process.wait, 5) == 1
    process.stdout.close()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("end", ["crash", "cancel"])
async def test_a_real_build_that_ends_early_leaves_nothing(queue, settings, folder, registry, end):
    (engine,) = registry.engines()
    workshop = Workshop(queue, "me", settings.lease_seconds)
    building = asyncio.create_task(workshop.provide(engine, nobody))
    await until(lambda: workshop.building and workshop.building.phase != "waiting for jobs to end", 60)
    (process,) = (child for child in psutil.Process().children() if "service.engines" in child.cmdline())
    if end == "cancel":
        building.cancel()
        with pytest.raises(asyncio.CancelledError):
            await building
    else:
        process.send_signal(signal.SIGSEGV)
        assert not await building
        assert workshop.lacking("tiny") == "its engine could not be built: the build was ended by SIGSEGV"
    assert not process.is_running()
    assert workshop.building is None
    assert await queue.holder(engine.lock()) is None
    assert [path.name for path in folder.iterdir()] == [engines.IDENTITY_FILE]


FULL_DISK = """
import resource, sys
from types import SimpleNamespace
from export import engine
from service.engines import main

def build(artifact, key, folder, progress):
    engine.write_engine(folder, bytes(8192), SimpleNamespace(key=key))

resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
engine.build_engine = build
main(*sys.argv[1:])
"""


async def test_a_full_disk_is_told_and_nothing_is_left(queue, settings, folder, registry):
    """As full as a limit on the size of a file makes it. What is written no builder made: that takes long."""
    (engine,) = registry.engines()
    workshop = Workshop(queue, "me", settings.lease_seconds)
    command = (sys.executable, "-c", FULL_DISK, *engine.command[3:])
    assert not await workshop.provide(replace(engine, command=command), nobody)
    assert workshop.lacking("tiny") == "its engine could not be built: File too large"
    assert [path.name for path in folder.iterdir()] == [engines.IDENTITY_FILE]


async def test_a_real_refusal_is_told_without_paths(queue, settings, folder, models, registry, tmp_path):
    (engine,) = registry.engines()
    artifact = Path(shutil.copytree(models / "tiny", tmp_path / "altered"))
    with (artifact / GRAPH_FILE).open("ab") as file:
        file.write(b"\0")
    for broken, why in (
        (artifact, "tiny: the file model.onnx has changed since its export"),
        (tmp_path, f"{tmp_path.name}: its model.json cannot be read: No such file or directory"),
    ):
        workshop = Workshop(queue, "me", settings.lease_seconds)
        assert not await workshop.provide(replace(engine, command=build_command(broken, folder, "sm89")), nobody)
        assert workshop.lacking("tiny") == f"its engine could not be built: {why}"


@pytest.mark.gpu("tensorrt")
async def test_a_worker_on_a_gpu_builds_at_its_start_and_serves_with_it(queue, settings, tmp_path):
    artifact = settings.models_dir / "tiny"
    export_onnx(tiny_network(), artifact, "tiny", "none", square=TINY_SQUARE, max_views=2)
    registry = Registry(settings.models_dir, engines=settings.engines_dir)
    async with worker_of(settings, registry) as worker:
        assert (await until(lambda: worker._workshop.building, 60)).engine == registry.engines()[0].name
        await until(worker._healthy, 240)
        model = worker._models["tiny"]
        assert (model.info.engine, model.info.passed_over) == ("tensorrt", ())
    (record,) = registry.records("tiny")
    assert record.key.builder == "tensorrt"


def test_other_engines_and_no_tensorrt_ask_for_nothing(models, folder, monkeypatch):
    assert Registry(models, "torch", folder, "sm89").engines() == []
    assert Registry(models, target="sm89").engines() == []
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert Registry(models, "auto", folder).engines() == []
