"""A store on this machine: moto's S3 server, a front that can misbehave, and what to put there."""

from __future__ import annotations

import http.client
import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import boto3
import numpy as np
import wfdb
from moto.server import ThreadedMotoServer

KEY, SECRET, BUCKET = "AKIATESTKEY", "s3cr3t/of+mine", "archives"
#: What no text may hold.
SECRETS = (KEY, SECRET, "s3cr3t", "of%2Bmine", "of+mine", "hidden")
#: Key and secret as they stand in a URI.
USER = f"{KEY}:s3cr3t%2Fof%2Bmine"


class Store:
    """An S3 server with one bucket, which can be stopped and started again."""

    def __init__(self) -> None:
        self.port = 0
        self.start()
        self.client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )
        self.client.create_bucket(Bucket=BUCKET)

    def start(self) -> None:
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self.server.start()
        self.port = self.server.get_host_and_port()[1]
        self.runs = True

    def stop(self) -> None:
        self.runs = False
        self.server.stop()

    def put(self, folder: Path, to: str) -> str:
        for file in folder.rglob("*"):
            if file.is_file():
                key = f"{to}/{file.relative_to(folder).as_posix()}"
                self.client.put_object(Bucket=BUCKET, Key=key, Body=file.read_bytes())
        return to

    def uri(self, path: str, port: int | None = None) -> str:
        where = f"endpoint_override=127.0.0.1:{port or self.port}"
        return f"s3://{USER}@{BUCKET}/{path}?{where}&scheme=http&region=us-east-1"


class Front(http.server.BaseHTTPRequestHandler):
    """Passes requests on to the store, but for those that a fault is set for.

    A fault is a part of the request's line, the answer (a status, `"short"` for a body that breaks
    off, `"silent"` for none at all, `"expired"` for 403 from then on), and how often.
    """

    protocol_version = "HTTP/1.1"
    faults: ClassVar[list[list]] = []
    store: ClassVar[Store]

    def answer(self) -> None:
        fault = next((f for f in self.faults if f[0] in self.requestline and f[2] > 0), None)
        if fault:
            fault[2] -= 1
            if fault[1] == "expired":
                fault[:] = ["", 403, 10**6]
            if fault[1] == "silent":
                time.sleep(3)
                self.close_connection = True
                return
        if fault and fault[1] != "short":
            self.send_response(fault[1])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        onward = http.client.HTTPConnection("127.0.0.1", self.store.port)
        onward.request(self.command, self.path, headers=dict(self.headers))
        reply = onward.getresponse()
        body = reply.read()
        self.send_response(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", reply.getheader("Content-Length") or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if fault else body)
        self.close_connection = bool(fault)

    do_GET = do_HEAD = answer

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def running_front(store: Store) -> Iterator[int]:
    """Run a `Front` without faults on the port that is given."""
    Front.store = store
    Front.faults.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Front)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def one_line(error: BaseException) -> str:
    """Give an error's text, which is one line and without a part of any secret."""
    text = str(error)
    assert "\n" not in text
    for secret in SECRETS:
        assert secret not in text
    return text


def write_tree(folder: Path) -> None:
    rng = np.random.default_rng(8)
    for name, fmt, n_leads in (("a/r1", "16", 3), ("a/r2", "212", 2), ("b c/ä1", "24", 1)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        wfdb.wrsamp(
            "r", fs=250, units=["mV"] * n_leads, sig_name=["I", "II", "V1"][:n_leads],
            d_signal=rng.integers(-900, 900, (400, n_leads)), fmt=[fmt] * n_leads,
            adc_gain=[200.0] * n_leads, baseline=[3] * n_leads, write_dir=str(folder),
        )  # fmt: skip
        header = (folder / "r.hea").read_text().replace("r.dat", f"{Path(name).name}.dat")
        (folder / f"{name}.hea").write_text(header, encoding="utf-8")
        (folder / "r.dat").rename(folder / f"{name}.dat")
        (folder / "r.hea").unlink()


def write_beats(folder: Path) -> None:
    folder.mkdir()
    d_TL = np.random.default_rng(9).integers(-900, 900, (1000, 2))
    for name in ("100", "101", "102"):
        wfdb.wrsamp(
            name, fs=360, units=["mV"] * 2, sig_name=["MLII", "V1"], fmt=["212"] * 2, d_signal=d_TL,
            adc_gain=[200.0] * 2, baseline=[0] * 2, comments=["69 F 1 2 x"], write_dir=str(folder),
        )  # fmt: skip
        beats, symbols = np.array([20, 400, 800]), ["N", "V", "+"]
        wfdb.wrann(name, "atr", beats, symbol=symbols, write_dir=str(folder))
    (folder / "102.atr").write_bytes(b"\x01")
