"""Several artifacts as one tar file, made while it is sent.

The format is POSIX's, pax: per file a header of 512 bytes, more for a long name or more than 8 GiB, then the content, filled up
to 512 bytes; at the end 1,024 zeros. So its size is known before a byte of content is read.
"""

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from app.models import Artifact
from app.storage import Storage

END = bytes(2 * tarfile.BLOCKSIZE)
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Member:
    header: bytes
    sha256: str
    bytes: int

    @property
    def padding(self) -> int:
        return -self.bytes % tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Archive:
    members: list[Member]

    @classmethod
    def of(cls, artifacts: list[tuple[Artifact, int]]) -> "Archive":
        """Of artifacts and their sizes, under their names."""
        return cls([Member(header_of(row, size), row.blob_sha256, size) for row, size in artifacts])

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(len(member.header) + member.bytes + member.padding for member in self.members) + len(END)

    @property
    def etag(self) -> str:
        digest = hashlib.sha256()
        for member in self.members:
            digest.update(member.header + member.sha256.encode())
        return f'"{digest.hexdigest()}"'

    def chunks(self, storage: Storage) -> Iterator[bytes]:
        for member in self.members:
            yield member.header
            with storage.blob(member.sha256).open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
            yield bytes(member.padding)
        yield END


def header_of(artifact: Artifact, size: int) -> bytes:
    info = tarfile.TarInfo(artifact.name)
    info.size, info.mtime = size, int(artifact.created_at.timestamp())
    return info.tobuf(tarfile.PAX_FORMAT)
