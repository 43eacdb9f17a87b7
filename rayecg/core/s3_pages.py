"""What lies in S3, a thousand names at a time: pyarrow gives a folder whole, and it may hold millions."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

#: A name, size and time of modification (ns), -1 where that is not stated; a folder's name ends with
#: a slash.
Entry = tuple[str, int, int]

#: Names that are asked for at a time: the most that S3 gives.
PAGE = 1000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Answers that another attempt may change, though their number says the request is at fault.
_PASSING = (408, 425, 429)
_PASSING_CODES = ("RequestTimeout", "SlowDown")


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
        from botocore.exceptions import ClientError

        bucket, _, prefix = where.partition("/")
        asked = {"Bucket": bucket, "Prefix": prefix, "Delimiter": "/", "MaxKeys": PAGE}
        if token is not None:
            asked["ContinuationToken"] = token
        try:
            answer = self._client().list_objects_v2(**asked)
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
            passes = error.response.get("Error", {}).get("Code") in _PASSING_CODES
            if status < 500 and status not in _PASSING and not passes:
                raise PermissionError(str(error)) from None
            raise
        start = len(prefix)
        found = [
            (one["Key"][start:], one["Size"], _ns(one["LastModified"]))
            for one in answer.get("Contents", ())
            if len(one["Key"]) > start  # the folder's own mark is none of what lies in it
        ]
        found += [(one["Prefix"][start:], -1, -1) for one in answer.get("CommonPrefixes", ())]
        return found, answer.get("NextContinuationToken")

    def _client(self) -> Any:
        with self._lock:  # to make one takes a second, and several threads would each
            if self._made is None:
                self._made = _client_of(self._options)
            return self._made


def _client_of(options: dict[str, Any]) -> Any:
    """Make a client with the settings of pyarrow's; what these leave open both find in the same places."""
    import boto3
    import botocore.session
    from botocore import UNSIGNED
    from botocore.config import Config

    keys = {
        "aws_access_key_id": options["access_key"] or None,
        "aws_secret_access_key": options["secret_key"] or None,
        "aws_session_token": options["session_token"] or None,
    }
    session = botocore.session.Session()
    parsers = session.get_component("response_parser_factory")
    parsers.set_parser_defaults(timestamp_parser=_time_of)
    signed = not options["anonymous"] and (options["access_key"] or session.get_credentials())
    endpoint = options["endpoint_override"]
    if endpoint and "://" not in endpoint:
        endpoint = f"{options['scheme']}://{endpoint}"
    return boto3.Session(botocore_session=session).client(
        "s3",
        region_name=options["region"] or None,
        endpoint_url=endpoint or None,
        verify=options.get("tls_ca_file_path") or None,
        config=Config(
            signature_version=None if signed else UNSIGNED,
            connect_timeout=options["connect_timeout"],
            read_timeout=options["request_timeout"],
            retries={"total_max_attempts": 2},
            proxies={},  # those of the environment are not pyarrow's, either
            s3={"addressing_style": "virtual" if options["force_virtual_addressing"] else "auto"},
        ),
        **(keys if signed else {}),
    )


def _time_of(stated: Any) -> datetime:
    """Read a time as S3 states it; botocore's own way takes more than all else of a page."""
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
