from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from service import intake, video
from service.errors import Problem
from tests.service.filmed import film, shot, turned, walk
from tests.service.support import SMALL, ended, form, jpeg, settled, stored, zipped

LIMITS = video.Limits(frames=5, seconds=60, pixels=10**6, cpu_seconds=20)


def frames(data: bytes, limits: video.Limits = LIMITS) -> dict[str, np.ndarray]:
    """What is taken of a film: pictures by name."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        with video.frames(file, limits) as answer, zipfile.ZipFile(answer) as archive:
            return {name: np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in archive.namelist()}


def refused(data: bytes, limits: video.Limits = LIMITS) -> Problem:
    with pytest.raises(Problem) as caught:
        frames(data, limits)
    assert caught.value.detail.endswith(".")
    assert caught.value.suggestion
    return caught.value


@pytest.mark.parametrize(
    ("container", "codec"), [("mp4", "libx264"), ("mov", "libx265"), ("webm", "libvpx-vp9"), ("matroska", "mpeg4")]
)
def test_frames_are_taken_along_the_way(container, codec):
    taken = frames(film(walk(), container, codec))
    assert 3 <= len(taken) <= 5
    seconds = [float(name.removesuffix("s.jpg").replace("00m", "")) for name in taken]
    assert seconds == sorted(seconds)
    assert seconds[-1] - seconds[0] > 1.2
    for second, picture in zip(seconds, taken.values(), strict=True):
        truth = shot(4 * round(10 * second)).astype(int)
        assert np.abs(picture - truth).mean() < 12, "the frame of that time, at full size"


def test_frames_are_upright():
    data = film(walk())
    for name, picture in frames(turned(data)).items():
        truth = shot(4 * round(10 * float(name[3:9]))).astype(int)
        assert picture.shape == (320, 240, 3)
        assert np.abs(picture - np.rot90(truth, -1)).mean() < 12


def test_no_more_frames_than_asked_for():
    assert len(frames(film(walk(40)), video.Limits(2, 60, 10**6, 20))) == 2


def test_high_dynamic_range_is_shown_as_usual():
    grey = np.arange(0, 65536, 16, dtype=np.uint16)
    picture = np.stack([grey] * 3, -1)[None]
    for transfer, paper in ((video.PQ, 0.58), (video.HLG, 0.75)):
        mapped = video.tone_mapped(picture, transfer)
        assert (np.diff(mapped[0, :, 1].astype(int)) >= 0).all()
        assert mapped[0, 0, 0] < 3
        np.testing.assert_allclose(mapped[0, :, 0], mapped[0, :, 2], atol=2)
        white = mapped[0, round(paper * len(grey)), 1]
        assert 170 < white < 210, "white paper is neither grey nor glaring"
    taken = frames(film(walk(), "mp4", "libx265", "yuv420p10le", transfer=video.HLG))
    assert all(abs(picture.mean() - shot(0).mean()) > 5 for picture in taken.values())


@pytest.mark.parametrize(
    ("data", "status", "kind"),
    [
        (lambda: film([shot(0)] * 15), 422, "camera-does-not-move"),
        (lambda: film([shot(0)]), 422, "camera-does-not-move"),
        (lambda: film(walk(4, size=(1280, 360)), rate=2), 413, "too-many-pixels"),
        (lambda: film(walk(5, size=(64, 48)), rate=1), 413, "video-too-long"),
        (lambda: film(walk(3), "avi"), 415, "not-a-video"),
        (lambda: film(walk(3), "matroska", "ffv1"), 415, "unknown-codec"),
        (lambda: film(walk())[:3000], 422, "damaged-video"),
        (lambda: b"\0\0\0\x18ftypmp42" + bytes(4000), 422, "damaged-video"),
        (lambda: b"#EXTM3U\nhttp://127.0.0.1/a.ts\n", 415, "not-a-video"),
        (lambda: b"", 415, "not-a-video"),
        (lambda: jpeg(), 415, "not-a-video"),
    ],
)
def test_what_cannot_be_used_is_refused(data, status, kind):
    problem = refused(data(), video.Limits(5, 4, 400_000, 20))
    assert (problem.status, problem.kind) == (status, kind)


def test_a_film_that_takes_too_long_is_given_up():
    long = film(walk(60, 2, size=(960, 480)))
    assert refused(long, video.Limits(5, 60, 10**6, cpu_seconds=0)).kind == "damaged-video"


def test_the_process_can_open_nothing_and_take_little():
    script = (
        "import os, socket; from service import video; video._confine(video.Limits(2, 1, 1, 9))\n"
        "for attempt in (lambda: socket.socket(), lambda: open('/etc/passwd'), lambda: bytearray(4 << 30)):\n"
        "    try: attempt()\n"
        "    except (OSError, MemoryError) as error: print(type(error).__name__)\n"
    )
    answer = subprocess.run((sys.executable, "-c", script), capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["OSError", "OSError", "MemoryError"]


def test_without_the_extra_it_is_said(monkeypatch):
    monkeypatch.setattr(video.importlib.util, "find_spec", lambda name: None)
    problem = refused(film(walk(3)))
    assert (problem.status, problem.kind) == (415, "no-video-here")
    assert "scenelift[video]" in problem.suggestion


def test_an_answer_that_makes_no_sense_is_not_passed_on():
    for answer in (b"", b"{}", b"[1]", b'[200, "a", "b", "c"]', b"\xff", json.dumps([500, 1, 2, 3]).encode()):
        assert video._refusal(answer).status == 422


async def test_a_job_from_a_video(api, settings):
    answer = await api.post("/reconstruct", files={"video": ("walk.mp4", film(walk()))}, data=SMALL | {"frames": "3"})
    assert answer.status_code == 202, answer.text
    views = answer.json()["views"]
    assert [(view["width"], view["height"]) for view in views] == [(320, 240)] * 3
    assert [view["name"] for view in views] == sorted(view["name"] for view in views)
    assert (await ended(api, answer.json()["id"]))["status"] == "succeeded"
    assert all(path.startswith("jobs/") for path in await settled(settings))


@pytest.mark.parametrize(
    ("files", "fields", "kind", "words"),
    [
        ({"video": b"RIFF....AVI "}, {}, "not-a-video", "MP4"),
        ({"video": b"\0\0\0\x18ftypmp42"}, {"frames": "9"}, "invalid-field", "At most 8"),
        ({"video": b"\0\0\0\x18ftypmp42"}, {"frames": "1"}, "invalid-field", "at least 2"),
        ({"video": b"\0\0\0\x18ftypmp42"}, {"frames": "٣"}, "invalid-field", "at least 2"),
        ({"video": b"\0\0\0\x18ftypmp42", "archive": zipped({})}, {}, "mixed-photos", "archive"),
        ({"archive": zipped({})}, {"frames": "3"}, "invalid-field", "Only a video"),
    ],
)
async def test_videos_are_refused_clearly(api, settings, files, fields, kind, words):
    sent = [(name, ("a", data)) for name, data in files.items()]
    answer = await api.post("/reconstruct", files=sent, data=SMALL | fields)
    assert answer.json()["type"] == kind, answer.text
    assert words in answer.text
    assert stored(settings) == []


async def test_a_video_does_not_wait_for_others_for_ever(api, monkeypatch):
    monkeypatch.setattr(intake, "TURN_SECONDS", 0.1)
    async with api.app.state.backend.intake.films:
        answer = await api.post("/reconstruct", files={"video": ("a.mp4", b"\0\0\0\x18ftypmp42")})
        assert (answer.status_code, answer.json()["type"]) == (429, "too-many-videos")
        assert answer.headers["retry-after"] == "30"
        assert (await api.post("/reconstruct", files=form(), data=SMALL)).status_code == 202
    assert (await api.post("/reconstruct", files={"video": ("a.mp4", b"x")})).status_code == 415
