"""The job's record and the queue: Redis Streams with leases. Every change of state is one atomic Lua script.

Keys, all in one hash slot:
    {scenelift}:jobs             the stream; an entry holds a job's id alone
    {scenelift}:job:<id>         the record, a hash; it gets its time to live when the job ends
    {scenelift}:idempotency:<h>  an owner's Idempotency-Key's hash -> the job that it made
    {scenelift}:held:<key>       ids of the jobs of an API key that were waiting or running when it last queued one
    {scenelift}:bucket:<who>     what is left to them of a rate limit
    {scenelift}:outbox           jobs whose end is to be told to a webhook, by when
    {scenelift}:worker:<id>      a worker's last heartbeat, gone when it stays away
    {scenelift}:events           channel: ids of jobs whose record changed
    {scenelift}:cancel           channel: ids of running jobs that are to stop
    {scenelift}:lock:<name>      the worker that does what one worker alone is to do, for as long as it renews that

A job belongs to the worker that read it from the stream for as long as that worker renews its lease. Whoever finds an
entry whose lease ran out claims it; `attempts` counts the tries. What a worker that lost its lease still does is
refused by `FINISH`, so a job ends exactly once; the same script that ends it puts it into the outbox, so no end goes
untold. In a record `owner` is that worker, `key` the API key whose job it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.schemas import FINAL, JobDocument, Links, Options, Status, WorkerDocument
from service.settings import Settings

JOB_ID = re.compile(r"[A-Za-z0-9_-]{22}")
PREFIX = "{scenelift}"
STREAM = f"{PREFIX}:jobs"
GROUP = "workers"
EVENTS = f"{PREFIX}:events"
CANCELS = f"{PREFIX}:cancel"
WORKERS = f"{PREFIX}:workers"
OUTBOX = f"{PREFIX}:outbox"


def _job_key(job: str) -> str:
    return f"{PREFIX}:job:{job}"


# What every script may use. Redis allows scripts to build keys as long as they stay in the slot of those named.
_COMMON = """
local STREAM, GROUP, PREFIX = '{scenelift}:jobs', 'workers', '{scenelift}:job:'
local function now()
  local t = redis.call('TIME')
  return string.format('%d.%06d', t[1], t[2])
end
local function changed(id) redis.call('PUBLISH', '{scenelift}:events', id) end
local function acknowledge(entry)
  redis.call('XACK', STREAM, GROUP, entry)
  redis.call('XDEL', STREAM, entry)
end
local function final(status) return status == 'succeeded' or status == 'failed' or status == 'canceled' end
-- Whoever sends webhooks finds the job there.
local function announce(key, id)
  redis.call('HSET', key, 'webhook_state', 'pending', 'webhook_tries', 0)
  redis.call('ZADD', '{scenelift}:outbox', now(), id)
end
local function close(key, id, ttl, fields)
  redis.call('HSET', key, 'finished_at', now(), 'expires_at', now() + ttl, unpack(fields))
  redis.call('HDEL', key, 'cancel')
  redis.call('EXPIRE', key, ttl)
  if redis.call('HEXISTS', key, 'webhook_url') == 1 then announce(key, id) end
  changed(id)
end
-- How many of the ids in a set are of jobs that have not ended; the others leave it. Counting anew each time costs as
-- many reads as a key may have jobs, and cannot drift, whatever crashed in between.
local function held(set)
  local count = 0
  for _, id in ipairs(redis.call('SMEMBERS', set)) do
    local status = redis.call('HGET', PREFIX .. id, 'status')
    if not status or final(status) then redis.call('SREM', set, id) else count = count + 1 end
  end
  return count
end
"""

# KEYS job, held, idempotency (optional). ARGV id, limit, fingerprint, key's ttl, most held (0: any number), fields...
_ENQUEUE = """
if redis.call('EXISTS', KEYS[1]) == 1 then return {'new', ARGV[1]} end
if KEYS[3] then
  local known = redis.call('HMGET', KEYS[3], 'id', 'fingerprint')
  if known[1] and redis.call('EXISTS', PREFIX .. known[1]) == 1 then
    if known[2] == ARGV[3] then return {'same', known[1]} end
    return {'conflict', known[1]}
  end
end
if redis.call('XLEN', STREAM) >= tonumber(ARGV[2]) then return {'full', ''} end
local most = tonumber(ARGV[5])
if most > 0 then
  if held(KEYS[2]) >= most then return {'held', ''} end
  redis.call('SADD', KEYS[2], ARGV[1])
end
local entry = redis.call('XADD', STREAM, '*', 'id', ARGV[1])
redis.call('HSET', KEYS[1], 'status', 'queued', 'stage', 'queued', 'progress', 0, 'attempts', 0,
  'entry', entry, 'created_at', now(), unpack(ARGV, 6))
if KEYS[3] then
  redis.call('HSET', KEYS[3], 'id', ARGV[1], 'fingerprint', ARGV[3])
  redis.call('EXPIRE', KEYS[3], ARGV[4])
end
changed(ARGV[1])
return {'new', ARGV[1]}
"""

# KEYS job. ARGV id, entry, worker, most attempts, ttl, error document.
# Answers the record, or why there is nothing to do: lost (another worker's), gone (ended or deleted), convicted.
# A second entry of a job that has its own is dropped: it would take the job from the worker that does it.
_TAKE = """
local pending = redis.call('XPENDING', STREAM, GROUP, ARGV[2], ARGV[2], 1)
if #pending == 0 or pending[1][2] ~= ARGV[3] then return 'lost' end
local job = redis.call('HMGET', KEYS[1], 'status', 'cancel', 'entry')
if not job[1] or final(job[1]) then acknowledge(ARGV[2]) return 'gone' end
if job[3] ~= ARGV[2] then
  if #redis.call('XRANGE', STREAM, job[3], job[3]) > 0 then acknowledge(ARGV[2]) return 'lost' end
  redis.call('HSET', KEYS[1], 'entry', ARGV[2])
end
if job[2] then
  acknowledge(ARGV[2])
  close(KEYS[1], ARGV[1], ARGV[5], {'status', 'canceled', 'stage', 'canceled'})
  return 'gone'
end
local attempts = redis.call('HINCRBY', KEYS[1], 'attempts', 1)
if attempts > tonumber(ARGV[4]) then
  acknowledge(ARGV[2])
  close(KEYS[1], ARGV[1], ARGV[5], {'status', 'failed', 'stage', 'failed', 'error', ARGV[6]})
  return 'convicted'
end
redis.call('HSET', KEYS[1], 'status', 'running', 'stage', 'loading', 'progress', 0, 'owner', ARGV[3],
  'started_at', now())
changed(ARGV[1])
return redis.call('HGETALL', KEYS[1])
"""

# KEYS job. ARGV id, worker, attempt, ttl, 'status', status, fields... Repeating the call that ended the job is fine.
_FINISH = """
local job = redis.call('HMGET', KEYS[1], 'status', 'owner', 'attempts', 'entry')
if job[2] ~= ARGV[2] or job[3] ~= ARGV[3] then return 0 end
if job[1] ~= 'running' then return job[1] == ARGV[6] and 1 or 0 end
acknowledge(job[4])
close(KEYS[1], ARGV[1], ARGV[4], {unpack(ARGV, 5)})
return 1
"""

# KEYS job. ARGV id, worker, attempt, lease in ms, attempts to give back. The entry is at once free to be claimed.
_RELEASE = """
local job = redis.call('HMGET', KEYS[1], 'status', 'owner', 'attempts', 'entry')
if job[1] ~= 'running' or job[2] ~= ARGV[2] or job[3] ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], 'status', 'queued', 'stage', 'queued', 'progress', 0)
redis.call('HDEL', KEYS[1], 'owner', 'started_at')
redis.call('HINCRBY', KEYS[1], 'attempts', -ARGV[5])
redis.call('XCLAIM', STREAM, GROUP, ARGV[2], 0, job[4], 'IDLE', ARGV[4], 'JUSTID')
changed(ARGV[1])
return 1
"""

# KEYS job. ARGV worker, attempt. Answers 0 not mine any more, 1 renewed, 2 renewed and to be cancelled.
_RENEW = """
local job = redis.call('HMGET', KEYS[1], 'status', 'owner', 'attempts', 'entry', 'cancel')
if job[1] ~= 'running' or job[2] ~= ARGV[1] or job[3] ~= ARGV[2] then return 0 end
redis.call('XCLAIM', STREAM, GROUP, ARGV[1], 0, job[4], 'JUSTID')
return job[5] and 2 or 1
"""

# KEYS job. ARGV id, worker, attempt, stage, progress.
_PROGRESS = """
local job = redis.call('HMGET', KEYS[1], 'status', 'owner', 'attempts')
if job[1] ~= 'running' or job[2] ~= ARGV[2] or job[3] ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], 'stage', ARGV[4], 'progress', ARGV[5])
changed(ARGV[1])
return 1
"""

# KEYS job. ARGV id, ttl. The entry of a queued job stays in the stream until it is taken: deleting an undelivered entry
# would make the group's lag unknown, which autoscalers live on.
_CANCEL = """
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return 'unknown' end
if status == 'queued' then
  close(KEYS[1], ARGV[1], ARGV[2], {'status', 'canceled', 'stage', 'canceled'})
elseif status == 'running' then
  redis.call('HSET', KEYS[1], 'cancel', '1')
  redis.call('PUBLISH', '{scenelift}:cancel', ARGV[1])
end
return status
"""

# KEYS job. Answers the record and how many entries before this job's no worker has read yet.
_SNAPSHOT = """
local record = redis.call('HGETALL', KEYS[1])
if redis.call('HGET', KEYS[1], 'status') ~= 'queued' then return {record, 0} end
local last = '0-0'
for _, group in ipairs(redis.call('XINFO', 'GROUPS', STREAM)) do
  for i = 1, #group, 2 do
    if group[i] == 'last-delivered-id' then last = group[i + 1] end
  end
end
local entry = redis.call('HGET', KEYS[1], 'entry')
return {record, math.max(0, #redis.call('XRANGE', STREAM, '(' .. last, entry) - 1)}
"""

# ARGV idle ms. A consumer with nothing pending that nobody has heard of for so long is a worker that died.
_PRUNE = """
if redis.call('EXISTS', STREAM) == 0 then return 0 end
local removed = 0
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', STREAM, GROUP)) do
  local known = {}
  for i = 1, #consumer, 2 do known[consumer[i]] = consumer[i + 1] end
  if known.pending == 0 and known.idle > tonumber(ARGV[1]) then
    redis.call('XGROUP', 'DELCONSUMER', STREAM, GROUP, known.name)
    removed = removed + 1
  end
end
return removed
"""

# KEYS lock. ARGV worker, ms. Takes a lock that is free, renews one's own; answers whose it is.
_HOLD = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return holder end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
"""

# KEYS lock. ARGV worker. Another's stays.
_LET_GO = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""

# KEYS held.
_HELD = "return held(KEYS[1])"

# KEYS bucket. ARGV tokens a second, most tokens. A token bucket: takes one where there is one; answers whether, and how
# many are left. Untouched for as long as it takes to fill up, it goes.
_SPEND = """
local t = redis.call('TIME')
local at, rate, most = t[1] + t[2] / 1e6, tonumber(ARGV[1]), tonumber(ARGV[2])
local known = redis.call('HMGET', KEYS[1], 'left', 'at')
local left = most
if known[1] then left = math.min(most, known[1] + math.max(0, at - known[2]) * rate) end
local taken = left >= 1 and 1 or 0
left = left - taken
redis.call('HSET', KEYS[1], 'left', left, 'at', string.format('%.6f', at))
redis.call('EXPIRE', KEYS[1], math.ceil(most / rate))
return {taken, tostring(left)}
"""

# KEYS job. ARGV a new secret. Answers the job's secret for links, this one where it had none; nil: there is no job.
_LINK = """
if redis.call('EXISTS', KEYS[1]) == 0 then return nil end
redis.call('HSETNX', KEYS[1], 'link_secret', ARGV[1])
return redis.call('HGET', KEYS[1], 'link_secret')
"""

# KEYS outbox. ARGV lease in seconds. Answers a job whose webhook is due, its address, its tries so far and the turn:
# when somebody else may have it, so that a sender that dies loses none. Jobs that were removed leave the outbox.
_DUE = """
local at = tonumber(now())
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', at, 'LIMIT', 0, 100)) do
  local found = redis.call('HMGET', PREFIX .. id, 'webhook_url', 'webhook_tries')
  if found[1] then
    local turn = string.format('%.6f', at + ARGV[1])
    redis.call('ZADD', KEYS[1], turn, id)
    return {id, found[1], found[2], turn}
  end
  redis.call('ZREM', KEYS[1], id)
end
return nil
"""

# KEYS outbox, job. ARGV id, turn, state, HTTP status or '', seconds until the next try. Whose turn is over is refused.
_SETTLE = """
local turn = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not turn or tonumber(turn) ~= tonumber(ARGV[2]) then return 0 end
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('ZREM', KEYS[1], ARGV[1])
  return 0
end
redis.call('HINCRBY', KEYS[2], 'webhook_tries', 1)
redis.call('HSET', KEYS[2], 'webhook_state', ARGV[3], 'webhook_status', ARGV[4])
if ARGV[3] == 'pending' then
  redis.call('ZADD', KEYS[1], tonumber(now()) + ARGV[5], ARGV[1])
else
  redis.call('ZREM', KEYS[1], ARGV[1])
end
return 1
"""

# KEYS job. ARGV id. Tell the job's end anew, or say why not.
_REPLAY = """
local job = redis.call('HMGET', KEYS[1], 'status', 'webhook_url')
if not job[2] then return 'none' end
if not final(job[1]) then return 'unfinished' end
announce(KEYS[1], ARGV[1])
return 'pending'
"""


@dataclass(frozen=True, slots=True)
class Taken:
    """A job that is this worker's to do."""

    id: str
    attempt: int
    model: str
    options: Options
    photos: list[dict[str, Any]]
    created_at: float
    started_at: float
    request: str = ""
    """Id of the request that made it."""
    traceparent: str = ""
    """Of that request's span; empty: it was not traced."""


@dataclass(frozen=True, slots=True)
class Due:
    """A job's end that is this sender's to tell, for a time."""

    job: str
    url: str
    tries: int
    """Those before."""
    turn: str


class Queue:
    """The queue, as the API and the workers see it. Raises redis.exceptions.RedisError while the server is away."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # redis-py's annotations allow every form of answer at once; ours are lists and strings (RESP 2, decoded).
        self._redis: Any = connect(settings.queue_url)
        script = self._redis.register_script
        self._enqueue = script(_COMMON + _ENQUEUE)
        self._take = script(_COMMON + _TAKE)
        self._finish = script(_COMMON + _FINISH)
        self._release = script(_COMMON + _RELEASE)
        self._renew = script(_COMMON + _RENEW)
        self._progress = script(_COMMON + _PROGRESS)
        self._cancel = script(_COMMON + _CANCEL)
        self._snapshot = script(_COMMON + _SNAPSHOT)
        self._prune = script(_COMMON + _PRUNE)
        self._hold = script(_HOLD)
        self._let_go = script(_LET_GO)
        self._held = script(_COMMON + _HELD)
        self._spend = script(_SPEND)
        self._link = script(_LINK)
        self._due = script(_COMMON + _DUE)
        self._settle = script(_COMMON + _SETTLE)
        self._replay = script(_COMMON + _REPLAY)

    async def close(self) -> None:
        await self._redis.aclose()

    async def ping(self) -> None:
        await self._redis.ping()

    # The API's side

    async def depth(self) -> tuple[int, int]:
        """Jobs in the stream, and those of them that no worker has read yet."""
        depth = await self._redis.xlen(STREAM)
        groups = await self._redis.xinfo_groups(STREAM) if depth else []
        last = groups[0]["last-delivered-id"] if groups else "0-0"
        waiting = len(await self._redis.xrange(STREAM, f"({last}", "+")) if depth else 0
        return depth, waiting

    async def oldest(self) -> float:
        """Seconds for which the job has waited that has waited longest for a worker to read it; 0: none waits."""
        groups = await self._redis.xinfo_groups(STREAM) if await self._redis.exists(STREAM) else []
        last = groups[0]["last-delivered-id"] if groups else "0-0"
        first = await self._redis.xrange(STREAM, f"({last}", "+", count=1)
        if not first:
            return 0.0
        seconds, microseconds = await self._redis.time()  # an entry's id is its milliseconds by that clock
        return max(0.0, float(seconds + microseconds / 1e6 - int(first[0][0].partition("-")[0]) / 1e3))

    async def made(self, idempotency_key: str, key: str = "") -> tuple[str, str] | None:
        """The job that the API key `key` has made under this Idempotency-Key, where it still exists, and the
        fingerprint of its request."""
        job, fingerprint = await self._redis.hmget(_idempotency_key(idempotency_key, key), "id", "fingerprint")
        return (job, fingerprint) if job is not None and await self._redis.exists(_job_key(job)) else None

    async def enqueue(
        self,
        job: str,
        model: str,
        options: Options,
        photos: list[dict[str, Any]],
        *,
        key: str = "",
        idempotency_key: str | None = None,
        fingerprint: str = "",
        request: str = "",
        traceparent: str = "",
        webhook: str = "",
    ) -> tuple[str, str]:
        """Append a job of the API key `key` ("": nobody's), whose end is told to the address `webhook` ("": to nobody).
        Its worker is told `request` and `traceparent`: see Taken.

        Answers (`new`, its id), (`same` or `conflict`, the id that the Idempotency-Key made), or, where there is no
        room, (`full`, "") of the queue and (`held`, "") of what this key may have waiting and running.
        """
        keys = [_job_key(job), f"{PREFIX}:held:{key}"]
        if idempotency_key is not None:
            keys.append(_idempotency_key(idempotency_key, key))
        fields = [
            *("key", key, "model", model, "options", options.model_dump_json(), "photos", json.dumps(photos)),
            *("request", request, "traceparent", traceparent),
        ]
        if webhook:
            fields += ["webhook_url", webhook, "webhook_state", "waiting", "webhook_tries", "0"]
        limit, ttl = self._settings.queue_limit, self._settings.idempotency_seconds
        most = self._settings.jobs_per_key if key else 0
        answer: list[str] = await self._enqueue(keys, (job, limit, fingerprint, ttl, most, *fields))
        return answer[0], answer[1]

    async def held(self, key: str) -> int:
        """Jobs of an API key that wait or run."""
        return int(await self._held([f"{PREFIX}:held:{key}"]))

    async def document(self, job: str, key: str | None = None) -> JobDocument | None:
        """The job's record as users see it, or None; also where it is another's than `key`'s, if that is given."""
        record, ahead = await self._snapshot([_job_key(job)])
        fields = dict(zip(record[::2], record[1::2]))
        if "status" not in fields or key not in (None, fields.get("key", "")):
            return None
        return _document(job, fields, ahead)

    async def attempt(self, job: str) -> int:
        """The attempt whose files are the job's."""
        return int(await self._redis.hget(_job_key(job), "attempts") or 0)

    async def spend(self, who: str, rate: float, most: int) -> tuple[bool, float]:
        """Take one of `who`'s `most` tokens; `rate` a second come back. Whether there was one, and what is left."""
        taken, left = await self._spend([f"{PREFIX}:bucket:{who}"], (rate, most))
        return bool(taken), float(left)

    async def link_secret(self, job: str, fresh: str) -> str | None:
        """What links to this job are signed with, from now on `fresh` where it had none; None where there is no job."""
        found: str | None = await self._link([_job_key(job)], (fresh,))
        return found

    async def linked(self, job: str) -> tuple[str, str] | None:
        """The API key whose job it is, and what links to it are signed with; None where there are no links to it."""
        key, secret = await self._redis.hmget(_job_key(job), "key", "link_secret")
        return (key or "", secret) if secret else None

    async def unlink(self, job: str) -> None:
        """Take every link to the job back."""
        await self._redis.hdel(_job_key(job), "link_secret")

    async def cancel(self, job: str) -> str:
        """Ask for a stop. Answers the status that the job was in, or `unknown`."""
        status: str = await self._cancel([_job_key(job)], (job, self._settings.result_seconds))
        return status

    async def due(self, lease_seconds: float) -> Due | None:
        """A webhook to send; unless it is settled, somebody else sends it when so much time has passed."""
        found = await self._due([OUTBOX], (lease_seconds,))
        return None if found is None else Due(found[0], found[1], int(found[2]), found[3])

    async def settle(
        self, due: Due, state: Literal["delivered", "failed", "pending"], status: int | None, again_in: float = 0.0
    ) -> bool:
        """Write down what became of a try; False where it is not this sender's any more. `pending`: to be tried again
        in so many seconds."""
        arguments = (due.job, due.turn, state, "" if status is None else status, again_in)
        return bool(await self._settle([OUTBOX, _job_key(due.job)], arguments))

    async def replay(self, job: str) -> str:
        """Tell a job's end to its webhook once more: `pending`, or why not: `none` was wished for, `unfinished`."""
        answer: str = await self._replay([_job_key(job)], (job,))
        return answer

    async def forget(self, job: str) -> None:
        """Remove the record. Its entry, where there still is one, is dropped when a worker meets it."""
        await self._redis.delete(_job_key(job))

    async def workers(self) -> list[WorkerDocument]:
        """The workers whose last heartbeat still counts."""
        names = sorted(await self._redis.smembers(WORKERS))
        beats = await self._redis.mget([f"{PREFIX}:worker:{name}" for name in names]) if names else []
        gone = [name for name, beat in zip(names, beats) if beat is None]
        if gone:
            await self._redis.srem(WORKERS, *gone)
        return [WorkerDocument.model_validate_json(beat) for beat in beats if beat is not None]

    # The worker's side

    async def join(self) -> None:
        """Make the group; from the stream's start, so that jobs queued before the first worker came are done too."""
        try:
            await self._redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def read(self, reader: Redis, worker: str, room: int, block_ms: int) -> list[tuple[str, str]]:
        """Wait for up to `room` new entries, as (entry, job). `reader` is a connection of its own: reads block."""
        answer: Any = await reader.xreadgroup(GROUP, worker, {STREAM: ">"}, count=room, block=block_ms)
        return [(entry, fields["id"]) for _, entries in answer for entry, fields in entries]

    async def claim(self, worker: str) -> tuple[str, str] | None:
        """Claim one entry whose lease ran out, as (entry, job)."""
        cursor, lease = "0-0", int(self._settings.lease_seconds * 1000)
        while True:
            cursor, entries, *_ = await self._redis.xautoclaim(STREAM, GROUP, worker, lease, cursor, count=1)
            for entry, fields in entries:
                if fields:  # a deleted entry comes without a body
                    return entry, fields["id"]
            if cursor == "0-0":
                return None

    async def overdue(self) -> bool:
        """Whether any entry's lease has run out."""
        lease = int(self._settings.lease_seconds * 1000)
        return bool(await self._redis.xpending_range(STREAM, GROUP, "-", "+", 1, idle=lease))

    async def take(self, entry: str, job: str, worker: str) -> Taken | str:
        """Begin an attempt at an entry that was read or claimed. Answers `lost`, `gone` or `convicted` otherwise."""
        error = {
            "type": "worker-crashed",
            "detail": f"The worker stopped unexpectedly {self._settings.max_attempts} times while working on this job.",
            "suggestion": "Try fewer or smaller photos.",
        }
        arguments = (job, entry, worker, self._settings.max_attempts, self._settings.result_seconds, json.dumps(error))
        answer: str | list[str] = await self._take([_job_key(job)], arguments)
        if isinstance(answer, str):
            return answer
        record = dict(zip(answer[::2], answer[1::2]))
        return Taken(
            id=job,
            attempt=int(record["attempts"]),
            model=record["model"],
            options=Options.model_validate_json(record["options"]),
            photos=json.loads(record["photos"]),
            created_at=float(record["created_at"]),
            started_at=float(record["started_at"]),
            request=record.get("request", ""),
            traceparent=record.get("traceparent", ""),
        )

    async def hand_back(self, entry: str, worker: str) -> None:
        """Give up an entry that was read but not taken: any worker may claim it at once."""
        lease = int(self._settings.lease_seconds * 1000)
        await self._redis.xclaim(STREAM, GROUP, worker, 0, [entry], idle=lease, justid=True)

    async def progress(self, job: str, worker: str, attempt: int, stage: str, progress: float) -> bool:
        return bool(await self._progress([_job_key(job)], (job, worker, attempt, stage, round(progress, 4))))

    async def finish(self, job: str, worker: str, attempt: int, status: Status, fields: Mapping[str, Any]) -> bool:
        """End the job; False where it is not this worker's any more. `fields` are JSON-able; None leaves one out."""
        flat: list[str] = ["status", status, "stage", status]
        for name, value in fields.items():
            flat += [name, json.dumps(value)]
        arguments: tuple[str | int, ...] = (job, worker, attempt, self._settings.result_seconds, *flat)
        return bool(await self._finish([_job_key(job)], arguments))

    async def release(self, job: str, worker: str, attempt: int, *, refund: bool) -> bool:
        """Put a running job back for another try, at once; `refund` gives the attempt back."""
        lease = int(self._settings.lease_seconds * 1000)
        return bool(await self._release([_job_key(job)], (job, worker, attempt, lease, int(refund))))

    async def renew(self, job: str, worker: str, attempt: int) -> int:
        """Renew the lease: 0 the job is not this worker's any more, 1 it is, 2 it is and is to be cancelled."""
        return int(await self._renew([_job_key(job)], (worker, attempt)))

    async def heartbeat(self, document: WorkerDocument) -> None:
        seconds = max(2, round(3 * self._settings.lease_seconds))
        await self._redis.set(f"{PREFIX}:worker:{document.id}", document.model_dump_json(), ex=seconds)
        await self._redis.sadd(WORKERS, document.id)

    async def leave(self, worker: str) -> None:
        """Say goodbye; the consumer goes unless something is still pending under its name."""
        await self._redis.delete(f"{PREFIX}:worker:{worker}")
        await self._redis.srem(WORKERS, worker)
        if not await self._redis.xpending_range(STREAM, GROUP, "-", "+", 1, consumername=worker):
            await self._redis.xgroup_delconsumer(STREAM, GROUP, worker)

    async def prune(self, idle_seconds: float = 3600.0) -> int:
        """Forget the consumers of workers that died long ago."""
        return int(await self._prune([], (int(idle_seconds * 1000),)))

    async def turn_to_sweep(self) -> bool:
        """Whether the caller is the one worker that sweeps storage in this interval."""
        interval = max(1, int(self._settings.sweep_seconds * 1000))
        return bool(await self._redis.set(f"{PREFIX}:sweep", 1, nx=True, px=interval))

    async def hold(self, lock: str, worker: str) -> str:
        """Take or renew a lock; it is free again a lease after its holder falls silent. Answers who holds it."""
        holder: str = await self._hold([_lock_key(lock)], (worker, int(self._settings.lease_seconds * 1000)))
        return holder

    async def let_go(self, lock: str, worker: str) -> bool:
        """Free a lock; False where it is not this worker's any more."""
        return bool(await self._let_go([_lock_key(lock)], (worker,)))

    async def holder(self, lock: str) -> str | None:
        """The worker that holds a lock."""
        holder: str | None = await self._redis.get(_lock_key(lock))
        return holder

    async def missing(self, ids: list[str], kind: Literal["job", "upload"] = "job") -> list[str]:
        """Those of `ids` that have no record (any more)."""
        return [id for id in ids if not await self._redis.exists(f"{PREFIX}:{kind}:{id}")]

    async def over(self, ids: list[str]) -> list[str]:
        """Those of `ids` whose job has ended or is gone."""
        statuses = [await self._redis.hget(_job_key(id), "status") for id in ids]
        return [id for id, status in zip(ids, statuses) if status is None or status in FINAL]

    async def listen(self, channel: str) -> AsyncIterator[str]:
        """Messages of a channel, for ever. The first is "": the subscription holds from then on."""
        async with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:
            await pubsub.subscribe(channel)
            yield ""
            async for message in _messages(pubsub):
                yield message


async def _messages(pubsub: PubSub) -> AsyncIterator[str]:
    while True:
        message = await pubsub.get_message(timeout=5.0)
        if message is not None:
            yield str(message["data"])


def connect(url: str, *, blocking: bool = False) -> Redis:
    """A client of the queue's server; a `blocking` one has no read timeout of its own shorter than a blocked read."""
    retry = Retry(ExponentialBackoff(cap=0.5, base=0.05), 3)
    client: Redis = Redis.from_url(
        url,
        decode_responses=True,
        protocol=2,
        socket_timeout=30.0 if blocking else 10.0,
        socket_connect_timeout=5.0,
        retry=Retry(ExponentialBackoff(), 0) if blocking else retry,
        retry_on_error=[] if blocking else [RedisConnectionError, RedisTimeoutError],
    )
    return client


async def answers(url: str) -> bool:
    """Whether a server answers PING at `url`."""
    client: Redis = Redis.from_url(url, socket_timeout=2.0, retry=Retry(ExponentialBackoff(), 0), retry_on_error=[])
    try:
        return bool(await client.ping())
    except (RedisError, OSError):
        return False
    finally:
        await client.aclose()


def _idempotency_key(idempotency_key: str, key: str) -> str:
    return f"{PREFIX}:idempotency:{hashlib.sha256(f'{key}:{idempotency_key}'.encode()).hexdigest()}"


def _lock_key(lock: str) -> str:
    return f"{PREFIX}:lock:{lock}"


def _moment(record: Mapping[str, str], name: str) -> datetime | None:
    return datetime.fromtimestamp(float(record[name]), UTC) if name in record else None


def _document(job: str, record: Mapping[str, str], ahead: int) -> JobDocument:
    found = json.loads(record.get("views", "[]"))
    photos = json.loads(record["photos"])
    base = f"/jobs/{job}"
    files = [{**file, "url": f"{base}/files/{file['name']}"} for file in json.loads(record.get("files", "[]"))]
    return JobDocument.model_validate(
        {
            "id": job,
            "status": record["status"],
            "stage": record["stage"],
            "progress": float(record["progress"]) if record["status"] != "succeeded" else 1.0,
            "queue_position": ahead if record["status"] == "queued" else None,
            "model": record["model"],
            "options": json.loads(record["options"]),
            "created_at": _moment(record, "created_at") or datetime.fromtimestamp(time.time(), UTC),
            "started_at": _moment(record, "started_at"),
            "finished_at": _moment(record, "finished_at"),
            "expires_at": _moment(record, "expires_at"),
            "views": [photo | view for photo, view in zip(photos, found or [{}] * len(photos))],
            "files": files,
            "error": json.loads(record.get("error", "null")),
            "warnings": json.loads(record.get("warnings", "[]")),
            "low_confidence": json.loads(record.get("low_confidence", "false")),
            "metrics": json.loads(record.get("metrics", "{}")),
            "webhook": _webhook(record),
            "links": Links(self=base, events=f"{base}/events", cancel=f"{base}/cancel", files=f"{base}/files/all.zip"),
        }
    )


def _webhook(record: Mapping[str, str]) -> dict[str, Any] | None:
    """The state of a delivery. The address comes without its query, which often holds a secret."""
    if "webhook_url" not in record:
        return None
    return {
        "url": record["webhook_url"].partition("?")[0],
        "state": record["webhook_state"],
        "tries": int(record["webhook_tries"]),
        "last_status": int(record.get("webhook_status") or 0) or None,
    }


async def end_task(task: asyncio.Task[Any]) -> None:
    """Cancel a task until it ends: Python 3.11's `wait_for`, which redis-py sends with, drops a cancellation that comes
    together with what it waits for, and a loop would go on for ever."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=1.0)
    with contextlib.suppress(asyncio.CancelledError):
        await task
