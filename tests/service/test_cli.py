from __future__ import annotations

import asyncio
import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from export.contract import GRAPH_FILE, Description
from export.engine import Key, Profile, Record, write_engine
from service import app, cli, doctor, local, logs, supervisor
from service.models import GEOMETRY, Registry
from service.settings import Settings
from service.worker import Worker
from tests.service.fake_model import FakeCatalogue, FakeEngines, FakeModel
from tests.service.support import jpeg

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"SCENELIFT_{name.upper()}", raising=False)
    monkeypatch.setenv("SCENELIFT_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def photos(tmp_path):
    for index, name in enumerate(("a.jpg", "b.jpg", "nan.jpg", "refuse.jpg")):
        (tmp_path / name).write_bytes(jpeg(index))
    (tmp_path / "text.jpg").write_text("dear diary")
    return ["a.jpg", "b.jpg"]


@pytest.fixture
def fake(monkeypatch):
    catalogue = FakeCatalogue()
    monkeypatch.setattr(local, "Registry", lambda *_: catalogue)
    monkeypatch.setattr(doctor, "Registry", lambda *_: catalogue)
    return catalogue


def run(*arguments: str):
    result = CliRunner().invoke(cli.app, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_photos_in_files_out(photos, fake, tmp_path):
    result = run("reconstruct", *photos, "-o", "out", "--outputs", "cameras.json,scene.ply", "--reference", "1")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cameras.json", "scene.ply"]
    assert "2 files in out" in result.stdout
    assert "A warning." in result.stderr
    assert json.loads((tmp_path / "out" / "cameras.json").read_text())


def test_the_reference_is_chosen_on_request(photos, fake, tmp_path):
    result = run("reconstruct", *photos, "-o", "out", "--outputs", "cameras.json", "--reference", "auto")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "cameras.json").read_text())["reference"] in (0, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a.jpg"], "1 photo: fake takes 2 to 8."),
        (["a.jpg", "missing.jpg"], "missing.jpg cannot be read"),
        (["a.jpg", "."], "cannot be read"),
        (["a.jpg", "text.jpg"], "text.jpg is not an image"),
        (["a.jpg", "b.jpg", "--model", "gpt"], "There is no model 'gpt'. The models are fake."),
        (["a.jpg", "b.jpg", "--outputs", "scene.obj"], "There is no output 'scene.obj'."),
        (["a.jpg", "b.jpg", "--reference", "5"], "reference: the 2 photos are numbered from 0"),
        (["a.jpg", "b.jpg", "--reference", "middle"], "reference: Input should be"),
        (["a.jpg", "b.jpg", "--focal", "both"], "focal"),
        (["a.jpg", "b.jpg", "--max-points", "3"], "max_points"),
        (["a.jpg", "nan.jpg"], "not numbers"),
        (["a.jpg", "refuse.jpg"], "different places. Photograph one place."),
    ],
)
def test_bad_input_is_one_clear_line_and_code_2(photos, fake, tmp_path, arguments, words):
    result = run("reconstruct", *arguments, "-o", "out")
    assert result.exit_code == 2
    lines = result.stderr.strip().splitlines()
    assert words in lines[-1]
    assert len(lines) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_said(photos, fake, tmp_path):
    (tmp_path / "out").write_text("a file")
    result = run("reconstruct", *photos, "-o", "out", "--outputs", "cameras.json")
    assert result.exit_code == 2
    assert "Cannot write to out" in result.stderr


def test_models_are_listed_and_one_is_the_default(data_dir):
    assert "geometry (default)" in run("models").stdout
    assert run("models", "default", "geometry").exit_code == 0
    assert (data_dir / "models" / "default").read_text() == "geometry\n"
    missing = run("models", "default", "gpt")
    assert missing.exit_code == 2
    assert "There is no model 'gpt'; there are geometry." in missing.stderr


def test_the_doctor_says_what_works(fake):
    result = run("doctor")
    assert result.exit_code == 0, result.output
    for word in ("Python", "CPU", "GPU", "queue", "data", "fake: a tiny one in"):
        assert word in result.stdout


KEY = Key("mvdust3r-plus", "a" * 64, "b" * 64, "fp16", "tensorrt", "11.4", "sm90", (Profile((1, 8), (2, 2), (2, 2)),))


def test_models_and_doctor_list_engines(data_dir):
    """Those built here and those that came with the model, for whatever GPU; no broken ones, nor another model's."""
    description = Description(
        name="m", network="mvdust3r-plus", licence="none", square=224, paths=4, parameters=1,
        weights_sha256="a" * 64, files={GRAPH_FILE: "b" * 64}, precision="fp16",
    )  # fmt: skip
    artifact = data_dir / "models" / "m"
    artifact.mkdir(parents=True)
    (artifact / GRAPH_FILE).write_bytes(b"graph")
    description.write(artifact)

    def write(folder: Path, **change: str) -> Path:
        folder.mkdir(exist_ok=True)
        return write_engine(folder, b"engine", Record(replace(KEY, **change), "", 6, {}, {}, {}, 1, 1, {}, 1.0, 1))

    ours = data_dir / "engines"
    write(ours)
    write(artifact / "engines", builder="tensorrt_rtx", target="sm120")
    write(ours, target="sm75", weights_sha256="c" * 64)
    write(ours, target="sm80", precision="bf16")
    write(ours, target="sm86").write_bytes(b"eng")
    (ours / "no.engine").touch()
    listed = run("models").stdout
    assert [target for target in ("sm120", "sm90", "sm75", "sm80", "sm86") if target in listed] == ["sm120", "sm90"]
    lines = [line for line in run("doctor").stdout.splitlines() if " engine " in line]
    assert [line.split("m: ")[1] for line in lines] == [
        "for sm90 in fp16 by tensorrt 11.4, 0 MB",
        "for sm120 in fp16 by tensorrt_rtx 11.4, 0 MB",
    ]


async def test_the_doctor_says_of_missing_engines_who_builds_them(settings, monkeypatch):
    """By builders that are none, for no GPU."""
    catalogue = FakeEngines(settings.engines_dir, "slow")
    monkeypatch.setattr(doctor, "Registry", lambda *_: catalogue)

    async def told():
        return [(found.ok, found.detail) for found in await doctor.examine(settings) if found.what == "engine"]

    assert await told() == [(None, "fake: missing; a worker builds it when it starts")]
    worker = Worker(settings, catalogue)
    running = asyncio.create_task(worker.run())
    while not (worker._workshop.building and worker._workshop.building.progress):
        await asyncio.sleep(0.02)
    await worker._beat()
    assert await told() == [(None, f"fake: being built by worker {worker.id}, 40 %")]
    worker.stop()
    assert await running == 0
    elsewhere = settings.model_copy(update={"redis_url": "unix:///nowhere.sock"})
    assert [found.detail for found in await doctor.examine(elsewhere) if found.what == "engine"] == [
        "fake: missing; a worker builds it when it starts"
    ]


def test_the_doctor_says_what_does_not(monkeypatch):
    class Broken(FakeModel):
        def warm_up(self) -> None:
            raise RuntimeError("no kernels")

    monkeypatch.setattr(doctor, "Registry", lambda *_: FakeCatalogue(Broken()))
    monkeypatch.setenv("SCENELIFT_REDIS_URL", "unix:///nowhere.sock")
    result = run("doctor")
    assert result.exit_code == 1
    assert "no kernels" in result.stdout
    assert "SCENELIFT_REDIS_URL does not answer" in result.stdout


def test_help_prints_every_setting_with_its_default():
    text = " ".join(run("serve", "--help").stdout.split())
    for name in Settings.model_fields:
        assert f"SCENELIFT_{name.upper()}" in text
    assert "SCENELIFT_LEASE_SECONDS = 15.0" in text


def test_export_is_passed_on(monkeypatch):
    commands = []

    def record(command, check):
        commands.append(command)
        return subprocess.CompletedProcess(command, 7)

    monkeypatch.setattr(subprocess, "run", record)
    assert run("export", "weights.pth", "-o", "model", "--name", "mine").exit_code == 7
    assert commands == [(sys.executable, "-m", "export", "weights.pth", "-o", "model", "--name", "mine")]


def test_keys_are_shown_once_and_kept_as_digests(data_dir):
    created = run("keys", "create", "the [bold]web[/bold] team")
    text = created.stdout.strip()
    assert re.fullmatch(r"sk_[0-9a-f]{12}_[0-9a-f]{64}", text), "alone, for scripts"
    assert "not shown again" in created.stderr
    assert text not in created.stderr
    other = run("keys", "create", "b").stdout.strip()
    assert other != text
    identity = text[3:15]
    listed = run("keys", "list").stdout
    assert identity in listed
    assert "the [bold]web[/bold] team" in listed
    assert text[16:] not in listed
    (kept,) = data_dir.glob(f"keys/{identity}.json")
    assert hashlib.sha256(text.encode()).hexdigest() in kept.read_text()
    assert text[16:] not in kept.read_text()
    for _ in range(2):
        assert run("keys", "revoke", identity).exit_code == 0
    assert [line.rstrip().endswith("-") for line in run("keys", "list").stdout.splitlines()[1:]] == [False, True]
    for unknown in ("0" * 12, "../models/default", ""):
        missing = run("keys", "revoke", unknown)
        assert missing.exit_code == 2
        assert "`scenelift keys list` has their ids" in missing.stderr


@pytest.mark.parametrize("command", [("api",), ("serve",), ("serve", "--host", "0.0.0.0")])
def test_a_public_address_without_keys_is_refused_in_one_line(monkeypatch, command):
    monkeypatch.setenv("SCENELIFT_HOST", "192.168.0.1" if command == ("serve",) else "0.0.0.0")
    served = []
    monkeypatch.setattr(app, "serve", served.append)
    monkeypatch.setattr(supervisor.Supervisor, "run", lambda self, started: served.append(started))
    monkeypatch.setattr(logs, "configure", lambda json: None)
    monkeypatch.setattr(supervisor, "environment", lambda settings: None)
    result = run(*command)
    assert (result.exit_code, served) == (2, [])
    (line,) = result.stderr.strip().splitlines()
    assert "scenelift keys create NAME" in line
    assert "SCENELIFT_OPEN=1" in line
    monkeypatch.setenv("SCENELIFT_OPEN", "1")
    assert run(*command).exit_code == 0
    monkeypatch.delenv("SCENELIFT_OPEN")
    run("keys", "create", "a")
    assert run(*command).exit_code == 0
    assert len(served) == 2


def test_the_command_to_try_works():
    assert "Bearer" not in cli.example("http://127.0.0.1:8000", keyed=False)
    assert cli.example("http://a", keyed=True).endswith("-H 'Authorization: Bearer sk_...' http://a/reconstruct")


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        (["download", "mvdust3r"], ["download", "mvdust3r"]),
        (["download", "mvdust3r", "--accept-licence"], ["download", "mvdust3r", "--accept-licence"]),
        (["add", "a.pth", "--name", "a"], ["add", "a.pth", "--name", "a", "--licence", "that of its checkpoint"]),
        (["add", "a.pth", "--licence", "MIT"], ["add", "a.pth", "--name", "", "--licence", "MIT"]),
    ],
)
def test_making_models_is_passed_on(monkeypatch, data_dir, given, passed):
    commands = []

    def record(command, check):
        commands.append(command)
        return subprocess.CompletedProcess(command, 7)

    monkeypatch.setattr(subprocess, "run", record)
    assert run("models", *given).exit_code == 7
    assert commands == [(sys.executable, "-m", "export.weights", *passed, "--models", str(data_dir / "models"))]


def test_settings_come_from_the_environment_and_a_file(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("SCENELIFT_PORT=1234\nSCENELIFT_HOST=0.0.0.0\nOTHER=1\n")
    monkeypatch.setenv("SCENELIFT_HOST", "::1")
    settings = Settings()
    assert (settings.port, settings.host) == (1234, "::1")
    assert settings.queue_url == f"unix://{settings.socket_path}"
    assert len(str(settings.socket_path)) < 108


def test_the_registry_without_artifacts(tmp_path):
    registry = Registry(tmp_path / "models")
    assert registry.infos() == [GEOMETRY]
    assert registry.default() == "geometry"
    with pytest.raises(KeyError):
        registry.open("gpt")
    with pytest.raises(KeyError):
        registry.set_default("gpt")


@pytest.mark.slow
def test_artifacts_are_served_beside_geometry(data_dir, monkeypatch):
    from tests.tiny import make_tiny_artifact

    folder = data_dir / "models"
    make_tiny_artifact(folder, "tiny").rename(folder / "a folder of any name")
    (folder / "broken").mkdir()
    registry = Registry(folder)
    assert [info.name for info in registry.infos()] == ["geometry", "tiny"]
    assert registry.default() == "tiny"
    for name in ("mvdust3r", "mvdust3r-plus"):
        copy = shutil.copytree(folder / "a folder of any name", folder / name)
        description = json.loads((copy / "model.json").read_text())
        (copy / "model.json").write_text(json.dumps(description | {"name": name}))
        assert registry.default() == name
    assert run("models", "default", "tiny").exit_code == 0
    assert registry.default() == "tiny"
    assert "tiny (default)" in run("models").stdout
    model = registry.open("tiny")
    model.warm_up()
    assert model.info.square == 32
    with pytest.raises(KeyError):
        registry.open("broken")


def test_it_runs_as_a_module():
    result = subprocess.run(
        (sys.executable, "-m", "service", "--help"), capture_output=True, text=True, check=True, cwd=ROOT
    )
    names = ("serve", "api", "worker", "reconstruct", "models", "doctor", "healthcheck", "export", "openapi", "keys")
    for name in names:
        assert name in result.stdout
