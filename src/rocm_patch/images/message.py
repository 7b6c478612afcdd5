"""MessagePack tables of ROCm's containers, read without trusting them: https://github.com/msgpack/msgpack/blob/master/spec.md.

A byte can claim a container, and an empty one takes 64 bytes of Python: 16 MiB of them would be a gigabyte. So what is
counted is containers, besides bytes.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack  # type: ignore[import-untyped]

from rocm_patch.errors import FormatError

CONTAINER_LIMIT: Final = 1 << 18
"""Maps and lists in one table."""


def unpack(data: bytes) -> Any:
    """The first value in `data`; what follows it is passed over, as ROCm's own readers do. Raises FormatError."""
    containers = 0

    def counted(value: Any) -> Any:
        nonlocal containers
        containers += 1
        if containers > CONTAINER_LIMIT:
            raise FormatError(f"a table of more than {CONTAINER_LIMIT} parts")
        return value

    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False, object_hook=counted, list_hook=counted)
    except msgpack.ExtraData as error:
        return error.unpacked
    except FormatError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise FormatError(f"not a MessagePack table: {error or type(error).__name__}") from error
