"""What lies in S3, a thousand names at a time: pyarrow gives a folder whole, and it may hold millions."""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from rayecg.core.storage import REMOTE_THREADS

#: A name, size and time of modification (ns), -1 where that is not stated; a folder's name ends with
#: a slash.
Entry = tuple[str, int, int]

#: Names that are asked for at a time: the most that S3 gives.
PAGE = 1000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Answers that another attempt may change, though their number says the request is at fault.
_PASSING = (408, 425, 429)
#: Where the profile's name stands; for botocore the second would come first.
_PROFILES = ["AWS_PROFILE", "AWS_DEFAULT_PROFILE"]


class S3Pages:
    """Lists folders of a store as pyarrow opened it: the same server, keys and patience.

    Parameters
    ----------
    files
        A `pyarrow.fs.S3FileSystem`.
    """

    def __init__(self, files: Any) -> None:
        _, (self._options,) = files.__reduce__()
        self._made: Any = None
        self._lock = threading.Lock()

    def page(self, where: str, token: str | None) -> tuple[list[Entry], str | None]:
        """Give some of what lies in a folder, and what to ask for the next with; None after the last.

        Parameters
        ----------
        where
            Bucket and prefix, which ends with a slash if there is one; names are what follows it.
        token
            What came with the page before; None for the first one.

        Raises
        ------
        PermissionError
            If the store refuses, now and for ever.
        """
        bucket, _, prefix = where.partition("/")
        asked = {"Bucket": bucket, "Prefix": prefix, "Delimiter": "/", "MaxKeys": PAGE}
        if token is not None:
            asked["ContinuationToken"] = token
        with _refusals_told():
            answer = self._client().list_objects_v2(**asked)
        is_last, token = not answer.get("IsTruncated", True), answer.get("NextContinuationToken")
        if not is_last and token is None:
            raise OSError("the list breaks off")
        start = len(prefix)
        found = [
            (one["Key"][start:], one["Size"], _ns(one["LastModified"]))
            for one in answer.get("Contents", ())
            if len(one["Key"]) > start  # the folder's own mark is none of what lies in it
        ]
        found += [(one["Prefix"][start:], -1, -1) for one in answer.get("CommonPrefixes", ())]
        return found, None if is_last else token

    def _client(self) -> Any:
        with self._lock:  # several threads may come for the first time
            if self._made is None:
                self._made = _client_of(self._options)
            return self._made


@contextmanager
def _refusals_told() -> Iterator[None]:
    """Raise `PermissionError` for what no other attempt will change."""
    from botocore import exceptions

    passing = (
        exceptions.HTTPClientError,
        exceptions.IncompleteReadError,
        exceptions.CredentialRetrievalError,
    )
    try:
        yield
    except exceptions.ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
        if status < 500 and status not in _PASSING:
            raise PermissionError(str(error)) from None
        raise
    except exceptions.BotoCoreError as error:
        if not isinstance(error, passing):
            raise PermissionError(str(error)) from None
        raise


def _client_of(options: dict[str, Any]) -> Any:
    """Make a client with the settings of pyarrow's; what they leave open is found where it finds it, too."""
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.session import Session

    session = Session(session_vars={"profile": (None, _PROFILES, None, None)})
    parsers = session.get_component("response_parser_factory")
    parsers.set_parser_defaults(timestamp_parser=_time_of)
    signed = not options["anonymous"] and (options["access_key"] or session.get_credentials())
    endpoint = options["endpoint_override"]
    if endpoint and "://" not in endpoint:
        endpoint = f"{options['scheme']}://{endpoint}"
    return session.create_client(
        "s3",
        region_name=options["region"] or os.environ.get("AWS_REGION"),
        endpoint_url=endpoint or None,
        verify=options["tls_ca_file_path"] or ssl.get_default_verify_paths().cafile,
        aws_access_key_id=options["access_key"] or None,
        aws_secret_access_key=options["secret_key"] or None,
        config=Config(
            signature_version=None if signed else UNSIGNED,
            connect_timeout=options["connect_timeout"],
            read_timeout=options["request_timeout"],
            retries={"total_max_attempts": 2},
            max_pool_connections=REMOTE_THREADS,
            proxies={},  # those of the environment are not pyarrow's, either
            s3={"addressing_style": "virtual" if options["force_virtual_addressing"] else "auto"},
        ),
    )


def _time_of(stated: Any) -> datetime:
    """Read a time as S3 states it, or in any other form, which takes botocore longer."""
    from botocore.utils import parse_timestamp

    try:
        time = datetime.fromisoformat(stated)
        if time.tzinfo is not None:
            return time
    except (TypeError, ValueError):
        pass
    return parse_timestamp(stated)


def _ns(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1) * 1000
