"""The outsider's walk: what nobody may see without a key, with another's, with a forged, expired or revoked one."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import re
from pathlib import Path

import httpx
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import HTMLResponse

from service import access, keys
from service.access import PUBLIC, ExposedError, make_token, refuse_exposure, token_holds
from service.headers import Hardened
from service.jobs import Queue
from service.keys import Keys
from service.schemas import Options
from service.storage import Storage
from tests.service.support import SMALL, ended, form, serving, stored, working

QUEUED = {"model": "geometry"}
NOBODY = "A" * 22
PHOTOS = [{"name": "a.jpg", "width": 4, "height": 3}] * 2


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


@pytest.fixture
def ring(settings, monkeypatch):
    """The keys of the service, believed for no time."""
    monkeypatch.setattr(keys, "FRESH_SECONDS", 0.0)
    return Keys(Storage(settings.data_dir))


@pytest.fixture
async def alice(ring):
    return (await ring.create("alice"))[1]


@pytest.fixture
async def bob(ring):
    return (await ring.create("bob"))[1]


@pytest.fixture
def alone(settings):
    """Settings of an API without a worker: jobs stay queued."""
    return settings.model_copy(update={"require_worker": False})


@pytest.fixture
def patient(monkeypatch):
    """Wrong keys are answered 401 however many there are."""
    monkeypatch.setattr(access, "WRONG_PER_MINUTE", 10_000)


async def post(client: httpx.AsyncClient, key: str = "", **fields: str) -> dict:
    answer = await client.post("/reconstruct", files=form(), data=fields or SMALL, headers=bearer(key) if key else {})
    assert answer.status_code == 202, answer.text
    return answer.json()


def refused(answer: httpx.Response, status: int, kind: str) -> bool:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    assert answer.json()["type"] == kind
    return True


def operations(client: httpx.AsyncClient, job: str) -> list[tuple[str, str]]:
    """Every method and address of the API, of `job` where a job's; the hidden HEAD routes too."""
    paths = client.app.openapi()["paths"]
    found = [(method.upper(), path) for path, methods in paths.items() for method in methods if path not in PUBLIC]
    found += [("HEAD", path) for method, path in found if "/files/" in path]
    return [(method, path.replace("{id}", job).replace("{name}", "scene.splat")) for method, path in found]


async def test_without_a_right_key_every_route_is_closed(settings, ring, alice, patient):
    revoked, old = await ring.create("old")
    await ring.revoke(revoked.id)
    sent = {
        "no key": {},
        "an empty one": {"X-API-Key": ""},
        "a made-up one": bearer("sk_" + "0" * 12 + "_" + "0" * 64),
        "a wrong secret": bearer(alice[:-1] + ("0" if alice[-1] != "0" else "1")),
        "no form of a key": bearer("../../keys/" + alice[3:15]),
        "another scheme": {"Authorization": "Basic " + base64.b64encode(f":{alice}".encode()).decode()},
        "a revoked one": bearer(old),
        "a revoked one, otherwise": {"X-API-Key": old},
    }
    async with working(settings), serving(settings) as client:
        job = (await post(client, alice))["id"]
        async with httpx.AsyncClient(base_url=client.base_url, headers=bearer(alice)) as hers:
            await ended(hers, job)
        routes = operations(client, job)
        assert len(routes) >= 13
        for method, address in routes:
            for what, headers in sent.items():
                answer = await client.request(method, address, headers=headers)
                challenge = answer.headers["www-authenticate"]
                assert answer.status_code == 401, (method, address, what)
                assert challenge.startswith('Bearer realm="scenelift"')
                assert ("invalid_token" in challenge) == (what not in ("no key", "another scheme")), what
                assert method == "HEAD" or answer.json()["type"] == "unauthorized"
        for address in ("/livez", "/readyz", "/health", "/docs", "/openapi.json"):
            assert (await client.get(address)).status_code == 200
        assert (await client.get(f"/jobs/{job}", headers={"X-API-Key": alice})).status_code == 200
        assert (await client.get(f"/jobs/{job}", headers={"authorization": f"bearer  {alice}"})).status_code == 200
    assert stored(settings) == [f"jobs/{job}/1/{name}" for name in ("cameras.json", "scene.splat")]


async def test_a_stranger_is_refused_before_a_byte_of_the_body_is_read(alone, ring, alice):
    async with serving(alone) as client:
        for method, address in operations(client, NOBODY):
            reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
            head = f"{method} {address} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
            writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode())
            assert b" 401 " in await asyncio.wait_for(reader.readline(), 10), (method, address)
            writer.close()


async def test_anothers_job_is_as_unknown_as_one_that_never_was(settings, ring, alice, bob):
    async with working(settings), serving(settings) as client:
        client.headers.update(bearer(alice))
        job = (await post(client))["id"]
        document = await ended(client, job)
        for (method, address), (_, nowhere) in zip(operations(client, job), operations(client, NOBODY)):
            if "/jobs/" not in address:
                continue
            theirs = await client.request(method, address, headers=bearer(bob))
            none = await client.request(method, nowhere, headers=bearer(bob))
            assert (theirs.status_code, theirs.content) == (404, none.content), (method, address)
        assert (await client.get(f"/jobs/{job}")).json() == document, "and nothing has happened to it"
        assert (await client.get(document["files"][0]["url"])).status_code == 200


async def test_names_lead_nowhere(settings, ring, alice, bob):
    (mine,) = [key for key in await ring.all() if key.name == "alice"]
    async with working(settings), serving(settings) as client:
        client.headers.update(bearer(alice))
        job = (await post(client))["id"]
        theirs = (await post(client, bob))["id"]
        await ended(client, job)
        for target in (f"keys/{mine.id}.json", f"jobs/{theirs}/1/scene.splat", f"uploads/{theirs}/0", "models/default"):
            for up in (
                "../../../",
                "..%2f..%2f..%2f",
                "%2e%2e/%2e%2e/%2e%2e/",
                "..%5c..%5c..%5c",
                "/",
                "%2f",
                "....//",
            ):
                for start in (f"/jobs/{job}/files/", f"/jobs/{job}/", "/jobs/", "/"):
                    raw = f"{start}{up}{target}".encode()
                    answer = await client.get(client.base_url.copy_with(raw_path=raw))
                    assert answer.status_code == 404, raw
                    assert mine.sha256 not in answer.text


async def test_idempotency_keys_are_each_owners_own(alone, ring, alice, bob):
    async with serving(alone) as client:
        made = {}
        for key in (alice, bob, alice):
            answer = await client.post(
                "/reconstruct", files=form(), data=QUEUED, headers=bearer(key) | {"Idempotency-Key": "1"}
            )
            assert answer.status_code == 202
            assert made.setdefault(key, answer.json()["id"]) == answer.json()["id"]
        assert made[alice] != made[bob]


async def test_a_link_opens_one_job_for_reading(settings, ring, alice, patient):
    async with working(settings), serving(settings) as client:
        job, other = [(await post(client, alice))["id"] for _ in range(2)]
        early = (await client.post(f"/jobs/{job}/links", headers=bearer(alice))).json()
        first = (await client.get(early["links"]["self"])).json()
        assert f"?token={early['token']}" in first["links"]["events"]
        async with asyncio.timeout(20), client.stream("GET", early["links"]["events"]) as events:
            lines = [line async for line in events.aiter_lines() if line.startswith("data:")]
        done = json.loads(lines[-1].removeprefix("data:"))
        assert done["status"] == "succeeded"

        answer = await client.post(f"/jobs/{job}/links", params={"seconds": 60}, headers=bearer(alice))
        assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
        link = answer.json()
        assert [file["name"] for file in link["files"]] == ["cameras.json", "scene.splat"]
        assert [file["url"] for file in done["files"]] == [
            f"/jobs/{job}/files/{file['name']}?token={early['token']}" for file in link["files"]
        ]
        for file in done["files"] + link["files"]:
            assert hashlib.sha256((await client.get(file["url"])).content).hexdigest() == file["sha256"]
            assert (await client.head(file["url"])).status_code == 200
        assert (await client.get(link["links"]["files"])).headers["content-type"] == "application/zip"

        token = {"token": link["token"]}
        open_to_all = {
            ("GET", f"/jobs/{job}{part}") for part in ("", "/events", "/files/all.zip", "/files/scene.splat")
        }
        open_to_all |= {("HEAD", address) for _, address in open_to_all if "/files/" in address}
        for method, address in operations(client, job) + operations(client, other):
            answer = await client.request(method, address, params=token)
            assert (answer.status_code != 401) == ((method, address) in open_to_all), (method, address)
        assert refused(
            await client.post(f"/jobs/{job}/links", params={"seconds": 0}, headers=bearer(alice)),
            422,
            "invalid-request",
        )


async def test_forged_expired_and_taken_back_links_open_nothing(settings, ring, alice, patient):
    queue = Queue(settings)
    async with working(settings), serving(settings) as client:
        jobs = [(await post(client, alice))["id"] for _ in range(3)]
        links = [(await client.post(f"/jobs/{job}/links", headers=bearer(alice))).json() for job in jobs]

        async def opens(job: str, token: str) -> bool:
            answer = await client.get(f"/jobs/{job}", params={"token": token})
            return answer.status_code == 200 or not refused(answer, 401, "unauthorized")

        job, token = jobs[0], links[0]["token"]
        expiry, _, signature = token.partition(".")
        assert await opens(job, token)
        _, secret = await queue.linked(job)
        for bad in (
            make_token(job, secret, -1)[0],
            make_token(job, "", 60)[0],
            make_token(jobs[1], secret, 60)[0],
            links[1]["token"],
            f"{int(expiry) + 1}.{signature}",
            f"0{expiry}.{signature}",
            f"{expiry}.{signature[:-1]}",
            f"{expiry}.{'A' * 43}",
            f"{expiry}.é{signature[1:]}",
            expiry,
            "",
        ):
            assert not await opens(job, bad), bad
        assert not await opens(NOBODY, token)
        assert not await opens(job + "*", token)

        assert (await client.delete(f"/jobs/{job}/links", headers=bearer(alice))).status_code == 204
        assert not await opens(job, token)
        anew = (await client.post(f"/jobs/{job}/links", headers=bearer(alice))).json()["token"]
        assert await opens(job, anew)
        assert not await opens(job, token), "what was taken back stays so"

        await client.delete(f"/jobs/{jobs[1]}", headers=bearer(alice))
        assert not await opens(jobs[1], links[1]["token"])

        assert await opens(jobs[2], links[2]["token"])
        await ring.revoke(alice[3:15])
        assert not await opens(jobs[2], links[2]["token"]), "a revoked key takes its links with it"
    await queue.close()


async def test_events_end_with_what_opened_them(alone, ring, alice):
    queue = Queue(alone)
    async with serving(alone) as client:
        job = (await post(client, alice, **QUEUED))["id"]
        link = (await client.post(f"/jobs/{job}/links", headers=bearer(alice))).json()["links"]["events"]

        async def heard(address: str, headers: dict[str, str], first: asyncio.Event) -> int:
            count = 0
            async with client.stream("GET", address, headers=headers) as answer:
                async for line in answer.aiter_lines():
                    count += line.startswith("data:")
                    first.set()
            return count

        opened = [asyncio.Event(), asyncio.Event()]
        by_link = asyncio.create_task(heard(link, {}, opened[0]))
        by_key = asyncio.create_task(heard(f"/jobs/{job}/events", bearer(alice), opened[1]))
        await asyncio.gather(*(event.wait() for event in opened))
        await queue.unlink(job)
        await ring.revoke(alice[3:15])
        await queue.cancel(job)
        assert await asyncio.wait_for(asyncio.gather(by_link, by_key), 10) == [1, 1], "the end is not told to them"
    await queue.close()


def test_a_token_is_of_its_job_and_its_time():
    token, expiry = make_token("job", "secret", 100)
    assert token_holds(token, "job", "secret")
    assert not token_holds(token, "jobs", "secret")
    assert not token_holds(token, "job", "secrets")
    assert not token_holds(token.replace(str(expiry), str(expiry + 1)), "job", "secret")
    assert not token_holds(make_token("job", "secret", 0)[0], "job", "secret")


@given(st.text() | st.from_regex(access._TOKEN, fullmatch=True))
def test_no_other_text_is_a_token(text):
    assert not token_holds(text, "job", "secret")


@given(st.integers(0, 53), st.characters())
def test_a_token_with_a_letter_changed_is_none(at, letter):
    token, _ = make_token("job", "secret", 100)
    forged = token[:at] + letter + token[at + 1 :]
    assert token_holds(forged, "job", "secret") == (forged == token)


async def test_secrets_are_compared_in_constant_time(ring, alice, monkeypatch):
    compared = []

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    wrong = alice[:16] + "0" * 64
    assert await ring.find(alice)
    assert not await ring.find(wrong)
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in (alice, wrong)]
    assert compared == [(digests[0], digests[0]), (digests[1], digests[0])]
    compared.clear()
    assert token_holds(make_token("job", "secret", 60)[0], "job", "secret")
    assert len(compared) == 1


async def test_a_key_that_asks_too_often_is_told_when_to_come_back(alone, ring, alice, bob):
    few = alone.model_copy(update={"requests_burst": 3, "requests_per_second": 0.01})
    async with serving(few) as client, serving(few.model_copy(update={"requests_per_second": 1000.0})) as faster:
        job = (await post(client, bob, **QUEUED))["id"]
        link = (await client.post(f"/jobs/{job}/links", headers=bearer(bob))).json()["links"]["self"]
        answers = [await client.get("/models", headers=bearer(alice)) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert refused(answers[-1], 429, "too-many-requests")
        assert 60 < int(answers[-1].headers["retry-after"]) <= 100
        assert {answer.headers["ratelimit-policy"] for answer in answers} == {'"requests";q=3;w=300'}
        left = [re.fullmatch(r'"requests";r=(\d);t=(\d+)', answer.headers["ratelimit"]) for answer in answers]
        assert [int(found[1]) for found in left] == [2, 1, 0, 0]
        for found, full in zip(left, (100, 200, 300, 300), strict=True):
            assert full - 40 < int(found[2]) <= full
        assert (await client.get("/models", headers=bearer(bob))).status_code == 200, "others are not held up"
        assert [(await client.get(link)).status_code for _ in range(4)] == [200, 200, 200, 429]
        assert (await client.get("/health")).status_code == 200, "public routes have no limit, and no headers of one"
        assert "ratelimit" not in (await client.get("/livez", headers=bearer(alice))).headers
        assert (await client.get("/models", headers=bearer(alice))).status_code == 429
        assert (await faster.get("/models", headers=bearer(alice))).status_code == 200, "time gives requests back"


async def test_slow_uploads_of_one_key_hold_up_no_other(alone, ring, alice, bob):
    go_on = asyncio.Event()

    async def slow():
        yield b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n'
        await go_on.wait()
        yield b"geometry\r\n--b--\r\n"

    headers = bearer(alice) | {"Content-Type": "multipart/form-data; boundary=b"}
    async with serving(alone.model_copy(update={"max_uploads": 2})) as client:
        held = asyncio.create_task(client.post("/reconstruct", content=slow(), headers=headers))
        while not client.app.state.backend.bodies.total():
            await asyncio.sleep(0.01)
        second = await client.post("/reconstruct", files=form(), data=QUEUED, headers=bearer(alice))
        assert refused(second, 429, "too-many-uploads")
        await post(client, bob, **QUEUED)
        go_on.set()
        assert (await held).status_code == 422
        await post(client, alice, **QUEUED)


async def test_wrong_keys_of_one_address_are_bounded_and_lock_nobody_out(alone, ring, alice):
    async with serving(alone) as client:
        wrong = bearer(alice[:16] + "0" * 64)
        answers = [await client.get("/models", headers=wrong) for _ in range(access.WRONG_PER_MINUTE + 2)]
        assert [answer.status_code for answer in answers] == [401] * access.WRONG_PER_MINUTE + [429] * 2
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 6
        elsewhere = await client.get("/models", headers=wrong | {"X-Forwarded-For": "203.0.113.9"})
        assert elsewhere.status_code == 401
        subnet = [
            await client.get("/models", headers=wrong | {"X-Forwarded-For": f"2001:db8::{i}"})
            for i in range(access.WRONG_PER_MINUTE + 1)
        ]
        assert subnet[-1].status_code == 429, "whoever has one IPv6 address has 2^64 of them"
        for far in ("2001:db8:0:1::1", "::ffff:203.0.113.1", "::ffff:203.0.113.2", "fe80::1%eth0"):
            for _ in range(access.WRONG_PER_MINUTE // 2):
                neighbour = await client.get("/models", headers=wrong | {"X-Forwarded-For": far})
                assert neighbour.status_code == 401, far
        assert (await client.get("/models", headers=bearer(alice))).status_code == 200


async def test_a_key_has_so_many_jobs_at_once(alone, ring, alice, bob):
    two = alone.model_copy(update={"jobs_per_key": 2})
    async with serving(two) as client:
        headers = bearer(alice) | {"Idempotency-Key": "again"}
        first = await client.post("/reconstruct", files=form(), data=QUEUED, headers=headers)
        together = await asyncio.gather(
            *(client.post("/reconstruct", files=form(), data=QUEUED, headers=bearer(alice)) for _ in range(5))
        )
        assert sorted(answer.status_code for answer in together) == [202] + [429] * 4
        refusal = next(answer for answer in together if answer.status_code == 429)
        assert refused(refusal, 429, "too-many-jobs")
        assert refusal.headers["retry-after"]
        assert '"jobs";q=2' in refusal.headers.get_list("ratelimit-policy")
        assert '"jobs";r=0' in refusal.headers.get_list("ratelimit")
        again = await client.post("/reconstruct", files=form(), data=QUEUED, headers=headers)
        assert again.json()["id"] == first.json()["id"], "a repeated request makes no job"
        await post(client, bob, **QUEUED)
        assert len({path.split("/")[1] for path in stored(two)}) == 3, "what was refused left nothing"
        await client.post(f"/jobs/{again.json()['id']}/cancel", headers=bearer(alice))
        job = (await post(client, alice, **QUEUED))["id"]
        await client.delete(f"/jobs/{job}", headers=bearer(alice))
        await post(client, alice, **QUEUED)


async def test_the_quota_is_held_by_the_queue_itself(settings):
    """Whatever several API processes have checked before, and wherever a job's end came from."""
    queue = Queue(settings.model_copy(update={"jobs_per_key": 3}))
    await queue.join()
    verdicts = await asyncio.gather(*(queue.enqueue(f"job{i}", "fake", Options(), PHOTOS, key="k") for i in range(8)))
    assert sorted(verdict for verdict, _ in verdicts) == ["held"] * 5 + ["new"] * 3
    assert await queue.held("k") == 3
    assert await queue.depth() == (3, 3)
    mine = [job for verdict, job in verdicts if verdict == "new"]
    client = redis.Redis.from_url(settings.queue_url)
    client.delete(f"{{scenelift}}:job:{mine[0]}")  # as when it expires
    assert await queue.held("k") == 2
    assert (await queue.enqueue("next", "fake", Options(), PHOTOS, key="k"))[0] == "new"
    assert (await queue.enqueue("free", "fake", Options(), PHOTOS))[0] == "new", "without a key there is no quota"
    assert await queue.document(mine[1], "k") is not None
    assert await queue.document(mine[1], "l") is None
    assert await queue.document(mine[1], "") is None
    assert await queue.document("free", "k") is None
    client.close()
    await queue.close()


async def test_without_keys_only_this_machine_is_served(alone):
    async with serving(alone) as client:
        job = (await post(client, **QUEUED))["id"]
        own = f"{client.base_url.host}:{client.base_url.port}"
        for headers in (
            {"Host": "scenes.example.org"},  # a proxy, or a page whose name was made to lead here
            {"Host": "127.0.0.1.example.org"},
            {"Host": "[::1"},
            {"Host": ""},
            {"X-Forwarded-For": "203.0.113.9"},
        ):
            assert refused(await client.get(f"/jobs/{job}", headers=headers), 403, "local-only"), headers
        for origin in (
            "https://evil.example",
            "null",
            "http://[",
            "",
            "http://127.0.0.1:1",
            f"http://{own}.evil.example",
        ):
            assert refused(await client.post(f"/jobs/{job}/cancel", headers={"Origin": origin}), 403, "foreign-page")
        for host in ("localhost", "localhost:8000", "[::1]:8000", "127.0.0.2", own):
            assert (await client.get(f"/jobs/{job}", headers={"Host": host})).status_code == 200, host
        assert (await client.get(f"/jobs/{job}", headers={"Origin": f"http://{own}"})).status_code == 200
        link = (await client.post(f"/jobs/{job}/links")).json()["links"]["self"]
        assert (await client.get(link, headers={"Host": "scenes.example.org"})).status_code == 200
        assert refused(await client.get("/models", headers=bearer("sk_wrong")), 401, "unauthorized")


async def test_an_open_service_serves_whoever_reaches_it(alone, ring):
    everyone = alone.model_copy(update={"open": True, "cors_origins": "https://a.example"})
    async with serving(everyone) as client:
        job = (await post(client, **QUEUED))["id"]
        far = {"Host": "scenes.example.org", "X-Forwarded-For": "203.0.113.9"}
        assert (await client.get(f"/jobs/{job}", headers=far)).status_code == 200
        assert (await client.get(f"/jobs/{job}", headers=far | {"Origin": "https://a.example"})).status_code == 200
        foreign = await client.get(f"/jobs/{job}", headers=far | {"Origin": "https://b.example"})
        assert refused(foreign, 403, "foreign-page")
        await ring.create("alice")
        assert refused(await client.get(f"/jobs/{job}", headers=far), 401, "unauthorized"), "the first key closes it"


async def test_a_lost_queue_and_a_revoked_last_key_open_nothing(alone, ring, alice, server):
    async with serving(alone) as client:
        job = (await post(client, alice, **QUEUED))["id"]
        client_ = redis.Redis.from_url(server.url)
        client_.flushall()
        client_.close()
        assert (await client.get("/models")).status_code == 401
        assert (await client.get("/models", headers=bearer(alice))).status_code == 200
        assert (await client.get(f"/jobs/{job}", headers=bearer(alice))).status_code == 404
        await ring.revoke(alice[3:15])
        assert (await client.get("/models", headers=bearer(alice))).status_code == 401
    async with serving(alone) as client:
        assert (await client.get("/models")).status_code == 401


async def test_what_was_made_without_keys_is_nobodys_once_there_are_some(alone, ring):
    async with serving(alone) as client:
        job = (await post(client, **QUEUED))["id"]
        _, text = await ring.create("alice")
        for _ in range(2):
            assert (await client.get(f"/jobs/{job}", headers=bearer(text))).status_code == 404
        assert (await client.get(f"/jobs/{job}")).status_code == 401


async def test_workers_are_shown_to_who_has_a_key(settings, ring, alice, patient):
    async with working(settings), serving(settings) as client:
        for headers in ({}, bearer("sk_wrong")):
            health = (await client.get("/health", headers=headers)).json()
            assert (health["queue"]["depth"], health["workers"]) == (0, None)
        assert len((await client.get("/health", headers=bearer(alice))).json()["workers"]) == 1
        assert "scenelift_workers" in (await client.get("/metrics", headers=bearer(alice))).text


async def test_keys_hold_while_the_queue_is_away(alone, ring, alice):
    """Whoever watches is told of it, a wrong key stays wrong, and nothing is open."""
    away = alone.model_copy(update={"redis_url": "unix:///nowhere.sock", "metrics_open": True})
    async with serving(away) as client:
        assert (await client.get("/health")).json()["workers"] is None
        assert (await client.get("/health", headers=bearer(alice))).json()["workers"] == []
        assert refused(await client.get("/models"), 401, "unauthorized")
        assert refused(await client.get("/models", headers=bearer("sk_wrong")), 401, "unauthorized")
        assert refused(await client.get("/models", headers=bearer(alice)), 503, "queue-unreachable")
        assert (await client.get("/metrics")).status_code != 401


async def test_keys_and_tokens_are_nowhere_to_be_read(settings, ring, alice, server, monkeypatch, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    wrong = alice[:16] + "f" * 64
    async with working(settings), serving(settings) as client:
        job = (await post(client, alice))["id"]
        token = (await client.post(f"/jobs/{job}/links", headers=bearer(alice))).json()["token"]
        for text in (alice, wrong):
            await client.get("/models", headers=bearer(text))
            await client.get("/models", headers={"X-API-Key": text})
        await client.get(f"/jobs/{job}", params={"token": token})

        async def broken(*_: object) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(Queue, "document", broken)
        for answer in (
            await client.get(f"/jobs/{job}", headers=bearer(alice)),
            await client.get(f"/jobs/{job}", params={"token": token}),
        ):
            assert refused(answer, 500, "internal-error")
            assert answer.headers["x-content-type-options"] == "nosniff"
        metrics = (await client.get("/metrics", headers=bearer(alice))).text
    ours = [f"{record.getMessage()} {record.exc_text}" for record in caplog.records if "http" not in record.name]
    logged = "\n".join([*capfd.readouterr(), *ours])  # the test's own client is no part of the service
    assert "a bug" in logged, "the logs are here"
    raw = redis.Redis.from_url(server.url)
    read = {b"hash": raw.hgetall, b"set": raw.smembers, b"stream": raw.xrange, b"string": raw.get}
    kept = b"".join(key + repr(read[raw.type(key)](key)).encode() for key in raw.scan_iter())
    raw.close()
    kept += b"".join(path.read_bytes() for path in settings.data_dir.rglob("*") if path.is_file())
    assert alice[3:15].encode() in kept, "its id and its digest are"
    assert hashlib.sha256(alice.encode()).hexdigest().encode() in kept
    for secret in (alice[16:], wrong[16:], token.partition(".")[2]):
        assert secret not in logged + metrics
        assert secret.encode() not in kept


async def test_answers_tell_browsers_to_be_careful(alone):
    listed = alone.model_copy(update={"cors_origins": "https://a.example, https://b.example/"})
    async with serving(listed) as client:
        for answer in (await client.get("/models"), await client.get("/nowhere"), await client.get("/livez")):
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert "default-src 'none'; frame-ancestors 'none'" in answer.headers["content-security-policy"]
        docs = await client.get("/docs")
        policy = docs.headers["content-security-policy"]
        (script,) = re.findall(r"<script>(.*?)</script>", docs.text, re.DOTALL)
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
        assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]
        assert "frame-ancestors 'none'" in policy

        for origin, allowed in (("https://a.example", True), ("https://b.example", True), ("https://c.example", False)):
            asked = {
                "Origin": origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization, idempotency-key",
            }
            preflight = await client.options("/reconstruct", headers=asked)
            assert (preflight.headers.get("access-control-allow-origin") == origin) == allowed
            answer = await client.get("/models", headers={"Origin": origin})
            assert (answer.status_code == 200) == allowed
            assert (answer.headers.get("access-control-allow-origin") == origin) == allowed
            assert "access-control-allow-credentials" not in answer.headers


async def test_pages_run_what_comes_from_here_and_nothing_else():
    page = Hardened(HTMLResponse("<p>a scene</p>"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(page), base_url="http://here") as client:
        policy = dict(
            part.strip().split(" ", 1) for part in (await client.get("/")).headers["content-security-policy"].split(";")
        )
    assert policy["default-src"] == "'self'"
    assert policy["script-src"] == "'self' 'wasm-unsafe-eval'"
    assert policy["object-src"] == policy["frame-ancestors"] == "'none'"


@pytest.mark.parametrize(
    ("host", "is_open", "keyed", "refused"),
    [
        ("127.0.0.1", False, False, False),
        ("127.8.0.1", False, False, False),
        ("::1", False, False, False),
        ("::ffff:127.0.0.1", False, False, False),
        ("::ffff:10.0.0.1", False, False, True),
        ("localhost.example.org", False, False, True),
        ("localhost", False, False, False),
        ("0.0.0.0", False, False, True),
        ("::", False, False, True),
        ("192.168.1.5", False, False, True),
        ("scenes.example.org", False, False, True),
        ("", False, False, True),
        ("0.0.0.0", True, False, False),
        ("0.0.0.0", False, True, False),
    ],
)
async def test_a_public_address_needs_a_key_or_a_word(settings, ring, host, is_open, keyed, refused):
    if keyed:
        await ring.create("alice")
    wished = settings.model_copy(update={"host": host, "open": is_open})
    if refused:
        with pytest.raises(ExposedError, match="scenelift keys create"):
            await refuse_exposure(wished, ring)
    else:
        assert await refuse_exposure(wished, ring) == keyed


def test_the_description_says_who_may_call_what():
    description = json.loads((Path(__file__).parents[2] / "openapi.json").read_text())
    assert set(description["components"]["securitySchemes"]) == {"key", "keyHeader", "link"}
    by_link = set()
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            named = {name for choice in operation.get("security", []) for name in choice}
            assert ({"key", "keyHeader"} <= named) == (path not in PUBLIC), (method, path)
            by_link |= {(method, path)} if "link" in named else set()
    assert by_link == {("get", f"/jobs/{{id}}{part}") for part in ("", "/events", "/files/all.zip", "/files/{name}")}
