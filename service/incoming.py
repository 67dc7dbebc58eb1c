"""Uploads that may be interrupted and go on: their records in the queue's server, their bytes in storage, in parts.

Keys, in the queue's hash slot, all of which expire once nothing has arrived for long:
    {scenelift}:upload:<id>        the record, a hash: key (the API key whose it is), length, offset,
                                   metadata, expires_at
    {scenelift}:upload:<id>:parts  a list of `<object>:<bytes>`, in order
    {scenelift}:upload:<id>:lock   whoever appends now
    {scenelift}:incoming           the ids by when they expire, for the limits

A part is an object of its own under `incoming/<id>/`, and counts once the record names it: whoever lost the lock in
between leaves an object that nobody reads, and that goes with the rest.
"""

from __future__ import annotations

import base64
import contextlib
import re
import secrets
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, cast

from service.errors import Problem
from service.jobs import PREFIX, connect
from service.settings import Settings
from service.storage import Storage, incoming_path

UPLOAD_ID = re.compile(r"[A-Za-z0-9_-]{22}")
LOCK_SECONDS = 30
"""How long a silent appender keeps others out."""
MOST_PARTS = 4096

# KEYS incoming, record. ARGV id, length, metadata, time to live, most uploads, most bytes, API key, most of that key's.
_CREATE = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local ids = redis.call('ZRANGE', KEYS[1], 0, -1)
local bytes, own = tonumber(ARGV[2]), 0
for _, id in ipairs(ids) do
  local upload = redis.call('HMGET', '{scenelift}:upload:' .. id, 'length', 'key')
  bytes = bytes + tonumber(upload[1] or 0)
  if upload[2] == ARGV[7] then own = own + 1 end
end
if #ids >= tonumber(ARGV[5]) or bytes > tonumber(ARGV[6]) then return 0 end
if ARGV[7] ~= '' and own >= tonumber(ARGV[8]) then return 0 end
local expires = now + ARGV[4]
redis.call('HSET', KEYS[2], 'key', ARGV[7], 'length', ARGV[2], 'offset', 0, 'metadata', ARGV[3], 'expires_at', expires)
redis.call('EXPIRE', KEYS[2], ARGV[4])
redis.call('ZADD', KEYS[1], expires, ARGV[1])
return expires
"""

# KEYS lock, record, parts, incoming. ARGV token, lock's ms, time to live, id, most parts, `object:bytes`...
# Answers 1, or 0 where the lock is another's or the upload is gone, or -1 where it has too many parts.
_APPEND = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] or redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if redis.call('LLEN', KEYS[3]) + #ARGV - 5 > tonumber(ARGV[5]) then return -1 end
for i = 6, #ARGV do
  redis.call('RPUSH', KEYS[3], ARGV[i])
  redis.call('HINCRBY', KEYS[2], 'offset', string.match(ARGV[i], ':(%d+)$'))
end
local expires = redis.call('TIME')[1] + ARGV[3]
redis.call('HSET', KEYS[2], 'expires_at', expires)
redis.call('EXPIRE', KEYS[2], ARGV[3])
redis.call('EXPIRE', KEYS[3], ARGV[3])
redis.call('ZADD', KEYS[4], expires, ARGV[4])
return 1
"""

# KEYS lock. ARGV token.
_UNLOCK = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""


@dataclass(frozen=True, slots=True)
class Upload:
    """What has arrived of a file."""

    id: str
    length: int
    """Bytes of the whole file."""
    offset: int
    """Bytes that have arrived."""
    metadata: str
    """What came along, in tus' form: `key base64,key base64`."""
    expires_at: int
    """Seconds since 1970; later with each part that arrives."""

    @property
    def name(self) -> str:
        """The file's name as it was given."""
        given = {key: value for key, _, value in (pair.partition(" ") for pair in self.metadata.split(","))}
        with contextlib.suppress(ValueError):
            return base64.b64decode(given.get("filename") or given.get("name") or "").decode()
        return ""


class Incoming:
    """Every upload that is under way or waits for its job. Raises RedisError while the server is away."""

    def __init__(self, settings: Settings, storage: Storage) -> None:
        self._settings = settings
        self._storage = storage
        self._redis: Any = connect(settings.queue_url)
        self._create = self._redis.register_script(_CREATE)
        self._append = self._redis.register_script(_APPEND)
        self._unlock = self._redis.register_script(_UNLOCK)

    async def close(self) -> None:
        await self._redis.aclose()

    async def create(self, key: str, length: int, metadata: str) -> Upload:
        """Make room for a file of so many bytes, of an API key ("": nobody's). Problem 429 where there is none."""
        upload, settings = secrets.token_urlsafe(16), self._settings
        limits = (settings.resumable_seconds, settings.resumable_limit, settings.resumable_bytes)
        arguments = (upload, length, metadata, *limits, key, settings.uploads_per_key)
        expires = await self._create([f"{PREFIX}:incoming", _key(upload)], arguments)
        if not expires:
            raise Problem(
                429, "too-many-uploads", "Too many uploads wait for their jobs.", "Try again later.", retry_after=60
            )
        return Upload(upload, length, 0, metadata, int(expires))

    async def get(self, upload: str, key: str) -> Upload | None:
        """The upload with this id, whatever text that is; None where there is none, or it is another's than `key`'s."""
        record = await self._redis.hgetall(_key(upload)) if UPLOAD_ID.fullmatch(upload) else None
        if not record or record["key"] != key:
            return None
        length, offset, expires = (int(record[name]) for name in ("length", "offset", "expires_at"))
        return Upload(upload, length, offset, record["metadata"], expires)

    @contextlib.asynccontextmanager
    async def appending(self, upload: str) -> AsyncIterator[Appender]:
        """The right to append, for one at a time. Problem 423 where another has it."""
        token = secrets.token_urlsafe(8)
        lock = f"{_key(upload)}:lock"
        if not await self._redis.set(lock, token, nx=True, px=LOCK_SECONDS * 1000):
            raise Problem(
                423,
                "upload-locked",
                "Another request sends data to this upload.",
                "Ask for its offset and go on in a moment.",
                retry_after=2,
            )
        try:
            yield Appender(self, upload, token)
        finally:
            await self._unlock([lock], (token,))

    async def write(self, upload: str, data: bytes) -> str:
        """Store a part that does not count yet. Answers `<object>:<bytes>`."""
        name = secrets.token_urlsafe(12)
        await self._storage.put(incoming_path(upload, name), data)
        return f"{name}:{len(data)}"

    async def discard(self, upload: str, part: str) -> None:
        """Remove a part that does not count."""
        await self._storage.delete(incoming_path(upload, part.rpartition(":")[0]))

    async def commit(self, upload: str, token: str, parts: Sequence[str]) -> None:
        """Let parts count, in this order; none: keep the lock."""
        key = _key(upload)
        keys = [f"{key}:lock", key, f"{key}:parts", f"{PREFIX}:incoming"]
        seconds = self._settings.resumable_seconds
        answer = await self._append(keys, (token, LOCK_SECONDS * 1000, seconds, upload, MOST_PARTS, *parts))
        if answer == 0:
            raise Problem(
                409, "upload-lost", "The upload was taken over or removed.", "Ask for its offset, or begin again."
            )
        if answer < 0:
            raise Problem(413, "too-many-parts", "The upload comes in too many parts.", "Send larger ones.")

    async def open(self, upload: Upload) -> IO[bytes]:
        """The whole file; the caller closes it. FileNotFoundError where it is removed meanwhile."""
        file = tempfile.SpooledTemporaryFile(max_size=1 << 20)  # noqa: SIM115 - handed to the caller
        try:
            for part in await self._redis.lrange(f"{_key(upload.id)}:parts", 0, -1):
                data = await self._storage.get(incoming_path(upload.id, part.rpartition(":")[0]))
                file.write(data)
            if file.tell() != upload.length:
                raise FileNotFoundError(upload.id)
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return cast(IO[bytes], file)

    async def remove(self, upload: str) -> None:
        """Forget an upload, and remove its bytes."""
        key = _key(upload)
        await self._redis.delete(key, f"{key}:parts")
        await self._redis.zrem(f"{PREFIX}:incoming", upload)
        await self._storage.remove(f"incoming/{upload}")


@dataclass(slots=True)
class Appender:
    """Whoever may append to an upload."""

    _incoming: Incoming
    _upload: str
    _token: str

    async def write(self, data: bytes) -> str:
        """Store a part that does not count yet. Answers its name for `commit`."""
        return await self._incoming.write(self._upload, data)

    async def discard(self, parts: Sequence[str]) -> None:
        """Remove parts that were not committed."""
        for part in parts:
            await self._incoming.discard(self._upload, part)

    async def commit(self, parts: Sequence[str]) -> None:
        """Let stored parts count, in this order, and keep the right to append. Problem 409 where it was lost."""
        await self._incoming.commit(self._upload, self._token, parts)


def _key(upload: str) -> str:
    return f"{PREFIX}:upload:{upload}"
