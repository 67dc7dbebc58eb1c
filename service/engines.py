"""TensorRT engines, built by the worker that finds them missing: one worker for all that share a folder of engines.

A build has a process of its own (`python -m service.engines ARTIFACT FOLDER [TARGET]`): its memory and its crashes are
not the worker's. It tells the worker how far it is as JSON lines, and ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import structlog
from redis.exceptions import RedisError

from export.contract import ArtifactError, Description, words
from export.engine import EngineError, Record, ensure_engine, read_record
from model.types import ModelInfo
from service.jobs import Queue, end_task
from service.schemas import BuildingDocument

log = structlog.get_logger()

BUILD_SECONDS = 3600.0
"""A build that takes longer hangs."""
LONG_PHASE = "Computing profile costs"
"""The builder's phase that takes nearly all of its time (28 of 29 s of a small network's two profiles): its share done
is the build's. All the others together would be three quarters done after the first second."""
IDENTITY_FILE = ".identity"
"""In a folder of engines: says which one it is, whatever paths it has in different containers."""


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine that this machine's GPU asks for."""

    model: str
    name: str
    """Of its file, without the suffix."""
    folder: Path
    present: bool
    """Whether it is there, and whole."""
    command: tuple[str, ...]
    """Builds it, as `main` does."""

    def lock(self) -> str:
        """Of its build, for `Queue.hold`. Raises OSError where the folder cannot be written."""
        return f"engine:{identity(self.folder)}:{self.name}"


def build_command(artifact: Path, folder: Path, target: str | None) -> tuple[str, ...]:
    """Builds an artifact's engine into `folder`; target: see `export.engine.wanted_engine`."""
    return (sys.executable, "-m", "service.engines", str(artifact), str(folder), *([target] if target else []))


def list_records(description: Description, *folders: Path) -> list[Record]:
    """Of the engines in `folders`, for whatever GPU: those of this artifact that are there in full size."""
    records = []
    for path in sorted(path for folder in folders for path in folder.glob("*.engine")):
        with contextlib.suppress(EngineError, OSError):
            record = read_record(path)
            mine = (record.key.weights_sha256, record.key.precision) == (
                description.weights_sha256,
                description.precision,
            )
            if mine and record.size == path.stat().st_size:
                records.append(record)
    return records


def identity(folder: Path) -> str:
    """Which folder of engines this is: the same on every machine that has it. Raises OSError."""
    path = folder / IDENTITY_FILE
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        mine = folder / f"{IDENTITY_FILE}.{secrets.token_hex(4)}"
        mine.write_text(secrets.token_hex(8), encoding="ascii")
        with contextlib.suppress(FileExistsError):  # another was faster: one of all is everyone's
            os.link(mine, path)
        mine.unlink()
    return path.read_text(encoding="ascii")


class Workshop:
    """One worker's builds, one at a time."""

    def __init__(self, queue: Queue, worker: str, lease_seconds: float) -> None:
        self._queue = queue
        self._worker = worker
        self._lease_seconds = lease_seconds
        self._lacking: dict[str, str] = {}
        """Models without their engine, and why."""
        self._failed: dict[str, str] = {}
        """Engines whose build failed, and why: not tried again."""
        self.building: BuildingDocument | None = None

    def lacking(self, model: str) -> str:
        """Why a model has no engine (yet); "" where it has, or needs none."""
        return self._lacking.get(model, "")

    def explain(self, info: ModelInfo) -> ModelInfo:
        """`info`, where its engine was passed over for it is missing: with the reason."""
        why = self.lacking(info.name)
        if not why or info.engine == "tensorrt":
            return info
        others = (reason for reason in info.passed_over if not reason.startswith("tensorrt: "))
        return replace(info, passed_over=(f"tensorrt: {why}", *others))

    async def provide(self, engine: Engine, alone: Callable[[], Awaitable[None]]) -> bool:
        """Whether the engine is there; where it is not, and no other worker builds it, after it has been built.

        `alone` comes back once nothing else computes: what is measured beside other work is measured wrong.
        Raises RedisError where the queue's server does not answer.
        """
        why = "" if engine.present else self._failed.get(engine.name) or await self._build(engine, alone)
        if why:
            self._lacking[engine.model] = why
        else:
            self._lacking.pop(engine.model, None)
        return not why

    async def _build(self, engine: Engine, alone: Callable[[], Awaitable[None]]) -> str:
        """Build it where that is this worker's to do. Answers why it is not there, or ""."""
        try:
            lock = await asyncio.to_thread(engine.lock)
        except OSError as error:
            return f"the folder of engines cannot be written: {words(error)}"
        holder = await self._queue.hold(lock, self._worker)
        if holder != self._worker:
            return _built_by(holder)
        self.building = BuildingDocument(engine=engine.name, phase="waiting for jobs to end", progress=0.0)
        renewing = asyncio.create_task(self._renew(lock))
        building = asyncio.create_task(self._run(engine, alone))
        try:
            await asyncio.wait((renewing, building), return_when=asyncio.FIRST_COMPLETED)
            if renewing.done():
                log.warning("lost the lock of a build", engine=engine.name)
                return _built_by(renewing.result())
            why = building.result()
        finally:
            for task in (renewing, building):
                with contextlib.suppress(Exception):  # it has been raised already
                    await end_task(task)
            self.building = None
            with contextlib.suppress(RedisError, OSError):  # it runs out
                await self._queue.let_go(lock, self._worker)
        if why:
            log.error("an engine could not be built", engine=engine.name, reason=why)
            self._failed[engine.name] = why
        else:
            log.info("built an engine", engine=engine.name)
        return why

    async def _renew(self, lock: str) -> str:
        """Keep the lock. Comes back only where it is another's, and answers whose."""
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            try:
                holder = await self._queue.hold(lock, self._worker)
            except (RedisError, OSError) as error:
                log.warning("could not renew the lock of a build", error=str(error))
                continue
            if holder != self._worker:
                return holder

    async def _run(self, engine: Engine, alone: Callable[[], Awaitable[None]]) -> str:
        """The build, in its process. Answers why it failed, or ""."""
        await alone()
        log.info("builds an engine", engine=engine.name)
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*engine.command, stdin=pipe, stdout=pipe)
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        try:
            async with asyncio.timeout(BUILD_SECONDS):
                async for line in process.stdout:
                    told = json.loads(line)
                    if "error" in told:
                        return f"its engine could not be built: {told['error']}"
                    self.building = BuildingDocument(engine=engine.name, **told)
                code = await process.wait()
        except TimeoutError:
            return f"its engine was not built within {BUILD_SECONDS:g} s"
        finally:
            await _end(process)
            if process.returncode:  # in the middle of writing, perhaps
                for partial in engine.folder.glob(f".{engine.name}.*.partial"):
                    partial.unlink(missing_ok=True)
        if code > 0:
            return f"its engine could not be built: the build ended with exit code {code}, and the log says why"
        if code < 0:
            name = signal.Signals(-code).name
            memory = ", as happens where memory runs out" if -code == signal.SIGKILL else ""
            return f"its engine could not be built: the build was ended by {name}{memory}"
        return ""


def _built_by(worker: str) -> str:
    return f"its engine is being built by worker {worker}"


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a build's process: closing its input is enough, but it may not listen."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    await process.communicate()


# ---------------------------------------------------------------- the process that builds


def main(artifact: str, folder: str, target: str | None = None) -> NoReturn:
    """Build an engine unless it is there: lines `{"phase", "progress"}` to the standard output, and `{"error"}` where
    it fails for a reason that can be told."""
    told = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries may print: not into the pipe
    with contextlib.suppress(OSError):  # where memory runs out, this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    threading.Thread(target=_end_with_parent, daemon=True).start()
    last, share = ("", 0.0), 0.0

    def progress(phase: str, fraction: float) -> None:
        nonlocal last, share
        share = max(share, fraction) if phase == LONG_PHASE else share
        if (phase, share) != last:
            last = (phase, share)
            print(json.dumps({"phase": phase, "progress": round(share, 3)}), file=told)

    try:
        ensure_engine(Path(artifact), target, Path(folder), progress)
    except (ArtifactError, OSError) as error:
        why = words(error)
    except MemoryError:
        why = "it takes more memory than there is"
    else:
        os._exit(0)
    print(json.dumps({"error": why}), file=told)
    os._exit(1)


def _end_with_parent() -> None:
    """The worker holds the other end of the standard input: it closes when the worker ends, however that ends."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
