"""Notices: each target is told of each decision, in order, at least once, and a broken one holds up itself alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from homeostat.control.deliveries import Deliveries
from homeostat.control.store import ControlStore
from homeostat.gateway.config import Event
from homeostat.gateway.notices import (
    PREFECTS,
    AppriseSender,
    Follower,
    NoticeRefused,
    Notifier,
    PrefectSender,
    WebhookSender,
    event_of,
    title,
)
from homeostat.gateway.signatures import check_signature
from homeostat.records import LedgerEntry
from tests.unit.gateway.conftest import AskedPrefect

KEY = b"a key that has 24 bytes."


class Inbox:
    """Sends nothing, and remembers; fails while `failing` is set."""

    def __init__(self) -> None:
        self.got: list[tuple[Event, int]] = []
        self.failing = False

    def __call__(self, event: Event, entry: LedgerEntry) -> None:
        if self.failing:
            raise NoticeRefused("answers 500")
        self.got.append((event, entry.sequence))


class Ticks:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ticks() -> Ticks:
    return Ticks()


@pytest.fixture
def record(store: ControlStore) -> Callable[..., LedgerEntry]:
    def write(action: str = "retrain", model: str = "digits", **evidence: Any) -> LedgerEntry:
        return store.record(model, action, actor="test", reason="because", evidence=evidence, version=3)

    return write


@pytest.fixture
def follow(store: ControlStore, deliveries: Deliveries, ticks: Ticks) -> Callable[..., Notifier]:
    def begin(*followers: Follower) -> Notifier:
        notifier = Notifier(store, deliveries, followers, 100.0, ticks)
        notifier.tell()  # they begin at the ledger's end
        return notifier

    return begin


@pytest.mark.parametrize(
    ("action", "evidence", "event"),
    [
        ("retrain", {}, "retraining"),
        ("hold", {}, "held"),
        ("drift", {"conclusion": "harm"}, "harm"),
        ("drift", {"conclusion": "drift"}, "drift"),
        ("drift", {"conclusion": "healthy"}, None),
        ("drift", {}, None),
        ("verdict", {}, None),
    ],
)
def test_what_happened(record, action: str, evidence: dict[str, str], event: str | None):
    assert event_of(record(action, **evidence)) == event


def test_a_target_is_told_of_what_it_asked_for(follow, record):
    record()
    all_of_it, harm = Inbox(), Inbox()
    notifier = follow(
        Follower("all", ("retraining", "harm"), (), all_of_it),
        Follower("harm", ("harm",), ("digits",), harm),
    )
    record()
    record("drift", conclusion="harm")
    record("drift", model="diabetes", conclusion="harm")
    for _ in range(3):
        notifier.tell()
    assert all_of_it.got == [("retraining", 2), ("harm", 3), ("harm", 4)]
    assert harm.got == [("harm", 3)]


def test_a_gateway_that_starts_again_goes_on_where_it_was(follow, record):
    inbox = Inbox()
    notifier = follow(Follower("team", ("retraining",), (), inbox))
    record()
    notifier.tell()
    record()
    follow(Follower("team", ("retraining",), (), inbox))
    assert inbox.got == [("retraining", 1), ("retraining", 2)]


def test_a_broken_target_holds_up_itself_alone(follow, record, ticks: Ticks):
    broken, good = Inbox(), Inbox()
    broken.failing = True
    notifier = follow(Follower("broken", ("retraining",), (), broken), Follower("good", ("retraining",), (), good))
    record()
    record()
    notifier.tell()
    assert good.got == [("retraining", 1), ("retraining", 2)]
    assert broken.got == []
    broken.failing = False
    notifier.tell()
    assert broken.got == [], "it is left alone for two seconds"
    ticks.now = 3.0
    notifier.tell()
    assert broken.got == [("retraining", 1), ("retraining", 2)]


def test_what_cannot_be_told_is_left_out_in_the_end(follow, record, ticks: Ticks, caplog: pytest.LogCaptureFixture):
    inbox = Inbox()
    inbox.failing = True
    notifier = follow(Follower("team", ("retraining",), (), inbox))
    record()
    while "is left out" not in caplog.text:
        notifier.tell()
        ticks.now += 10.0
        assert ticks.now < 1000
    inbox.failing = False
    record()
    ticks.now += 1000.0
    notifier.tell()
    assert inbox.got == [("retraining", 2)]
    assert "ledger entry 1 (retraining of digits) is left out: answers 500" in caplog.text


def test_prefect_is_told_of_each_decision_once(follow, record, prefect: AskedPrefect):
    follow(Follower("prefect", PREFECTS, (), PrefectSender(prefect)))  # type: ignore[arg-type]
    entry = record()
    record("drift", conclusion="harm")  # the flow has told of that
    for _ in range(2):
        follow(Follower("prefect", PREFECTS, (), PrefectSender(prefect)))  # type: ignore[arg-type]
    (event,) = prefect.events
    assert event["event"] == "homeostat.retraining"
    assert event["resource"]["prefect.resource.id"] == "homeostat.model.digits"
    assert event["payload"]["sequence"] == entry.sequence


class Post(BaseHTTPRequestHandler):
    """Keeps what is posted, and answers what the server says."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append(({k.lower(): v for k, v in self.headers.items()}, body))  # type: ignore[attr-defined]
        self.send_response(self.server.answer)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Post)
    server.got, server.answer = [], 200  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_signed_webhook_goes_out(receiver: Any, record):
    entry = record()
    send = WebhookSender(f"http://127.0.0.1:{receiver.server_port}/in?token=secret", KEY)
    send("retraining", entry)
    ((headers, body),) = receiver.got
    now = float(headers["webhook-timestamp"])
    assert check_signature("standard", headers, body, (KEY,), now) == entry.hash
    told = json.loads(body)
    assert (told["type"], told["data"]["model"], told["data"]["version"]) == ("homeostat.retraining", "digits", 3)
    receiver.answer = 500
    with pytest.raises(NoticeRefused, match="answers 500"):
        send("retraining", entry)


def test_nobody_listens(record):
    with pytest.raises(NoticeRefused, match="no answer") as raised:
        WebhookSender("http://127.0.0.1:9/in?token=secret", KEY)("retraining", record())
    assert "secret" not in str(raised.value)


def test_chat_through_apprise(receiver: Any, record):
    entry = record()
    AppriseSender(f"mmost://127.0.0.1:{receiver.server_port}/a-token-of-the-team")("promoted", entry)
    ((_, body),) = receiver.got
    text = json.loads(body)["text"]
    assert title("promoted", entry) in text
    assert "homeostat explain 1" in text
    receiver.answer = 500
    with pytest.raises(NoticeRefused):
        AppriseSender(f"mmost://127.0.0.1:{receiver.server_port}/a-token-of-the-team")("promoted", entry)


def test_a_url_that_apprise_does_not_know():
    with pytest.raises(NoticeRefused, match="knows no such URL"):
        AppriseSender("nonsense://x")


def test_mail_through_apprise(record):
    with Smtp() as server:
        AppriseSender(f"mailto://127.0.0.1:{server.port}?from=ops@example.org&to=ml@example.org")("harm", record())
    assert "Subject: digits v3: harm" in server.mail
    assert "because" in server.mail


class Smtp:
    """As much of a mail server as one mail needs (RFC 5321)."""

    def __enter__(self) -> Smtp:
        import socketserver

        outer = self
        self.mail = ""

        class Session(socketserver.StreamRequestHandler):
            def say(self, text: str) -> None:
                self.wfile.write(f"{text}\r\n".encode())

            def handle(self) -> None:
                self.say("220 test")
                for line in self.rfile:
                    word = line.split()[0].upper() if line.split() else b""
                    if word == b"DATA":
                        self.say("354 go on")
                        lines = list(iter(self.rfile.readline, b".\r\n"))
                        outer.mail = _decoded(b"".join(lines))
                    if word == b"QUIT":
                        self.say("221 bye")
                        return
                    self.say("250 ok")

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Session)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def _decoded(raw: bytes) -> str:
    import email
    from email.header import decode_header, make_header

    message = email.message_from_bytes(raw)
    parts = [part.get_payload(decode=True) for part in message.walk() if not part.is_multipart()]
    subject = make_header(decode_header(message["Subject"]))
    text = b"".join(part for part in parts if isinstance(part, bytes)).decode()
    return f"Subject: {subject}\n{text}"
