from __future__ import annotations

from tests.service.support import SMALL, ended, form


async def test_a_job_from_photos_to_files(api):
    answer = await api.post("/reconstruct", files=form("one.jpg", "two.jpg"), data=SMALL)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"/jobs/{job['id']}"
    done = await ended(api, job["id"])
    print(done)
    assert done["status"] == "succeeded"
