"""What the client that lists S3 asks, and with what: the same as pyarrow's, which reads there."""

from __future__ import annotations

import http.server
import logging
import threading
from collections.abc import Iterator
from typing import ClassVar

import pytest
from s3_store import BUCKET, one_line

from rayecg.core import remote, s3_pages
from rayecg.core.errors import DataError
from rayecg.core.storage import open_folder

PAGE = (
    '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    "<KeyCount>1</KeyCount>{end}<Contents><Key>p/a.hea</Key><Size>5</Size>"
    "<LastModified>2024-01-02T03:04:05.000Z</LastModified></Contents></ListBucketResult>"
)
LAST = "<IsTruncated>false</IsTruncated>"


class Lists(http.server.BaseHTTPRequestHandler):
    """Answers every list request alike, and remembers how it was asked."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[tuple[str, str | None, str | None]]] = []
    ends: ClassVar[list[str]] = []
    #: In the address of requests whose answers never end.
    endless: ClassVar[str] = ""

    def do_GET(self) -> None:
        signed = self.headers.get("Authorization", "")
        # Who signs, the day, the region and the service.
        scope = signed.partition("Credential=")[2].partition(",")[0]
        place = f"{self.headers['Host']}{self.path.partition('?')[0]}"
        self.asked.append((place, scope, self.headers.get("x-amz-security-token")))
        end = self.ends.pop(0) if self.ends and "max-keys=1&" not in self.path else LAST
        if self.endless and self.endless in self.path:
            end = "<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"
        body = PAGE.format(end=end).encode() if end else b""
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def bare(monkeypatch, tmp_path) -> None:
    """Take away what the environment says of a store."""
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "PROFILE", "REGION"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
        monkeypatch.delenv(f"AWS_DEFAULT_{name}", raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("CONFIG_FILE", "SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(f"AWS_{name}", str(tmp_path / "none"))


@pytest.fixture
def lists(bare) -> Iterator[int]:
    """Run a server of lists, and give its port."""
    Lists.asked.clear()
    Lists.ends.clear()
    Lists.endless = ""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Lists)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def uri(port: int, user: str = "URIKEY:secret@", settings: str = "&region=eu-west-1") -> str:
    return f"s3://{user}bucket/p?endpoint_override=127.0.0.1:{port}&scheme=http{settings}"


ENVIRONMENT_KEYS = {"AWS_ACCESS_KEY_ID": "ENVKEY", "AWS_SECRET_ACCESS_KEY": "envsecret"}


@pytest.mark.parametrize(
    ("user", "settings", "environment", "signs"),
    [
        ("URIKEY:secret@", "&region=eu-west-1", {}, "URIKEY//eu-west-1"),
        ("URIKEY:secret@", "&region=eu-west-1", ENVIRONMENT_KEYS, "URIKEY//eu-west-1"),
        ("", "&region=eu-west-1", ENVIRONMENT_KEYS, "ENVKEY//eu-west-1"),
        ("", "&region=eu-west-1", ENVIRONMENT_KEYS | {"AWS_SESSION_TOKEN": "tok"}, "ENVKEY/tok/eu-west-1"),
        ("", "", ENVIRONMENT_KEYS | {"AWS_REGION": "eu-west-2"}, "ENVKEY//eu-west-2"),
        ("", "", ENVIRONMENT_KEYS | {"AWS_DEFAULT_REGION": "eu-west-3"}, "ENVKEY//eu-west-3"),
        ("", "", ENVIRONMENT_KEYS, "ENVKEY//us-east-1"),
        ("URIKEY:secret@", "", {"http_proxy": "http://127.0.0.1:9"}, "URIKEY//us-east-1"),
        ("", "", {}, ""),
    ],
)  # fmt: skip
def test_it_asks_as_pyarrow_does(lists, monkeypatch, user, settings, environment, signs) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    far = open_folder(uri(lists, user, settings))
    assert list(far.walk(".hea")) == ["a.hea"]
    (by_pyarrow, paged) = Lists.asked
    assert by_pyarrow == paged
    place, scope, token = paged
    assert place.rstrip("/") == f"127.0.0.1:{lists}/bucket"
    if signs:
        key, _, region = scope.split("/")[:3]
        assert f"{key}/{token or ''}/{region}" == signs
    else:
        assert (scope, token) == ("", None)


def test_the_endpoint_may_be_in_the_environment(lists, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{lists}")
    assert list(open_folder("s3://URIKEY:secret@bucket/p").walk(".hea")) == ["a.hea"]
    assert len(Lists.asked) == 2
    assert Lists.asked[0] == Lists.asked[1]


@pytest.mark.usefixtures("bare")
def test_what_the_client_takes_of_the_machine(monkeypatch, tmp_path) -> None:
    keys = "aws_access_key_id=KEY{0}\naws_secret_access_key=s\n"
    profiles = "".join(f"[{name}]\n{keys.format(name)}" for name in "xy")
    (tmp_path / "keys").write_text(profiles)
    certificates = tmp_path / "ca.pem"
    certificates.touch()
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("AWS_DEFAULT_PROFILE", "y")
    monkeypatch.setenv("AWS_PROFILE", "x")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates))
    files, _ = remote._file_system("s3://bucket/p?region=eu-west-1")
    client = s3_pages.S3Pages(files)._client()
    assert client._get_credentials().access_key == "KEYx"
    assert client._endpoint.http_session._verify == str(certificates)
    assert client.meta.config.read_timeout == client.meta.config.connect_timeout == remote.ANSWER_S
    assert client.meta.config.retries["total_max_attempts"] == 2
    assert client.meta.endpoint_url == "https://s3.eu-west-1.amazonaws.com"


@pytest.mark.parametrize(
    ("profile", "config", "said"),
    [
        ("nobody", "", r"profile \(nobody\) could not be found"),
        (None, "[default\n", "Unable to parse config file"),
        (None, "[default]\ns3 =\n  use_accelerate_endpoint = true\n", "Accelerate"),
    ],
)
def test_settings_that_cannot_be_used_are_one_line_at_once(
    lists, monkeypatch, tmp_path, profile, config, said
) -> None:
    (tmp_path / "config").write_text(config)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    if profile:
        monkeypatch.setenv("AWS_PROFILE", profile)
    far = open_folder(uri(lists))
    monkeypatch.setattr(remote, "PATIENCE_S", ())  # what is asked again ends as "does not serve it"
    with pytest.raises(DataError, match=f"p/: cannot be listed .*{said}") as error:
        list(far.levels())
    one_line(error.value)


def test_a_key_that_no_header_can_hold_is_not_said(lists, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ENVKEY\n")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "envsecret")
    monkeypatch.setattr(remote, "PATIENCE_S", (0,))
    far = open_folder(uri(lists, ""))
    with pytest.raises(DataError) as error:
        list(far.levels())
    assert "ENVKEY" not in one_line(error.value)


@pytest.mark.parametrize("end", ["", "<IsTruncated>true</IsTruncated>"])
def test_a_list_that_breaks_off_is_asked_for_again(lists, monkeypatch, end) -> None:
    monkeypatch.setattr(remote, "PATIENCE_S", (0, 0))
    Lists.ends[:] = [end, end]
    far = open_folder(uri(lists))
    assert list(far.walk(".hea")) == ["a.hea"]
    Lists.ends[:] = [end] * 9
    with pytest.raises(DataError, match=r"p: the store does not serve it .* breaks off"):
        list(far.walk(".hea"))


def test_sixteen_folders_side_by_side_share_their_connections(store, front, caplog) -> None:
    for i in range(40):
        store.client.put_object(Bucket=BUCKET, Key=f"side/{i}/r.hea", Body=b"")
    with caplog.at_level(logging.WARNING):
        assert len(list(open_folder(store.uri("side", front)).walk(".hea"))) == 40
    assert not [record for record in caplog.records if record.name.startswith("urllib3")]


def test_who_leaves_asks_for_no_more(lists) -> None:
    folders = "".join(f"<CommonPrefixes><Prefix>p/{one}/</Prefix></CommonPrefixes>" for one in "ab")
    Lists.ends[:] = [f"{LAST}{folders}"]
    Lists.endless = "%2Fb%2F"
    levels = open_folder(uri(lists)).levels()
    before = set(threading.enumerate())  # a pool of another test may be idle still
    next(levels)
    next(levels)  # the first folder; the second is asked for meanwhile
    started = [
        thread
        for thread in set(threading.enumerate()) - before
        if thread.name.startswith("ThreadPoolExecutor")  # the others are the server's
    ]
    assert started
    levels.close()
    for thread in started:
        thread.join(20)
        assert not thread.is_alive()
