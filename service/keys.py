"""API keys: one object each in storage, hashed at rest, made and revoked by `scenelift keys`.

Why in storage and not in Redis. Keys must outlive a lost Redis: an empty one would look like a service without keys,
and such a service is open. Storage is what every API process of every machine has to share anyway for photos and
results, a folder or a bucket alike. With one object a key nobody ever changes a list that another reads: two machines
may create and revoke at the same time without a lock, writes are atomic as every write there is, and a request costs
one small read, remembered for FRESH_SECONDS, which is also how long a revoked key may still be taken.

Why no slow hash. bcrypt and its like make guessing what people think up expensive. A key's secret is 256 random bits:
nobody guesses it at any speed, so SHA-256 keeps what lies in storage useless to whoever reads it, and a request costs
microseconds.

A revoked key's object stays: it says whose jobs those were, and revoking the last key opens nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

from service.storage import Storage

FRESH_SECONDS = 2.0
"""How long what was read of a key is believed."""
FOLDER = "keys"

_FORM = re.compile(r"sk_([0-9a-f]{12})_[0-9a-f]{64}")
_ID = re.compile(r"[0-9a-f]{12}")


class Key(BaseModel):
    """What is known of a key; not the key."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    sha256: str
    """Of the whole key, hexadecimal."""
    created_at: datetime
    revoked_at: datetime | None = None


class Keys:
    """The keys in `storage`."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._read: dict[str, tuple[Key, float]] = {}
        self._exist = False
        self._looked = float("-inf")

    async def create(self, name: str) -> tuple[Key, str]:
        """A new key: what is kept of it, and the key itself (`sk_<id>_<256 random bits>`), which is told only now."""
        identity = secrets.token_hex(6)
        text = f"sk_{identity}_{secrets.token_hex(32)}"
        key = Key(id=identity, name=name, sha256=_sha256(text), created_at=datetime.now(UTC))
        await self._write(key)
        return key, text

    async def revoke(self, identity: str) -> Key:
        """Let a key be taken no more; KeyError where there is none. Revoking it again changes nothing."""
        key = await self.get(identity)
        if key is None:
            raise KeyError(identity)
        if key.revoked_at is None:
            key = key.model_copy(update={"revoked_at": datetime.now(UTC)})
            await self._write(key)
        return key

    async def all(self) -> list[Key]:
        """Every key, the oldest first."""
        names = await self._storage.names(FOLDER)
        keys = [await self.get(name.removesuffix(".json")) for name in names]
        return sorted((key for key in keys if key is not None), key=lambda key: key.created_at)

    async def exist(self) -> bool:
        """Whether keys are configured: one has been made, revoked since or not."""
        if not self._exist and time.monotonic() - self._looked > FRESH_SECONDS:
            self._exist = bool(await self._storage.names(FOLDER))
            self._looked = time.monotonic()
        return self._exist

    async def find(self, text: str) -> Key | None:
        """The key that `text` is; None where it is none, or one that was revoked."""
        found = _FORM.fullmatch(text)
        key = await self.alive(found[1]) if found else None
        # The id is no secret, and whether it exists may show in the time; the digest may not.
        return key if key is not None and hmac.compare_digest(_sha256(text), key.sha256) else None

    async def alive(self, identity: str) -> Key | None:
        """The key of this id, unless it is unknown or revoked."""
        key, read_at = self._read.get(identity, (None, 0.0))
        if key is None or time.monotonic() - read_at > FRESH_SECONDS:
            key = await self.get(identity)
            if key is None:  # not remembered: of ids that somebody makes up there is no end
                self._read.pop(identity, None)
                return None
            self._read[identity] = key, time.monotonic()
        return key if key.revoked_at is None else None

    async def get(self, identity: str) -> Key | None:
        """The key of this id as it is in storage now."""
        if not _ID.fullmatch(identity):
            return None
        try:
            return Key.model_validate_json(await self._storage.get(f"{FOLDER}/{identity}.json"))
        except FileNotFoundError:
            return None

    async def _write(self, key: Key) -> None:
        await self._storage.put(f"{FOLDER}/{key.id}.json", key.model_dump_json().encode())


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
