"""Whatever arrives on a request topic is answered, and nothing that does not fit changes anything."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.config import RequestsConfig
from edge.delivery.topics import Response
from edge.operating.requests import BODIES, MAX_BYTES, REMEMBERED, RefusedError, Requests

CHANGING = {
    "config": {"set": {"alarm.p_value": 0.01}},
    "maintenance": {"minutes": 5},
    "feedback": {"id": "a", "verdict": "undo"},
}


class Acted:
    """Actions that note what they were asked."""

    def __init__(self, config: RequestsConfig | None = None) -> None:
        self.done: list[tuple[str, Any]] = []
        self.requests = Requests(config or RequestsConfig(), {verb: self._action(verb) for verb in BODIES})

    def _action(self, verb: str) -> Any:
        def act(body: Any) -> dict[str, Any]:
            self.done.append((verb, body))
            return {"count": len(self.done)}

        return act

    def ask(self, verb: str, body: Any, *, local: bool = False) -> Response:
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.requests.answer(verb, payload, local=local)


def test_a_request_is_done_and_its_transaction_comes_back() -> None:
    acted = Acted()
    answer = acted.ask("maintenance", {"stream": "pump", "minutes": 15, "transaction": "x"})
    assert (answer.status, answer.data, answer.transaction) == ("ok", {"count": 1}, "x")
    ((verb, body),) = acted.done
    assert (verb, body.stream, body.minutes) == ("maintenance", "pump", 15)


def test_the_number_of_no_model_is_said_too() -> None:
    acted = Acted()
    assert acted.ask("update", {"number": 0}).status == "ok"
    assert acted.done[0][1].number == 0


def test_nothing_at_all_is_an_empty_request() -> None:
    assert Acted().ask("ping", b"").status == "ok"


@pytest.mark.parametrize(
    ("verb", "body", "says"),
    [
        ("pong", {}, "did you mean `ping`?"),
        ("", {}, "unknown verb"),
        ("../ping", {}, "unknown verb"),
        ("ping", b"[]", "fields: transaction, token"),
        ("ping", b"nonsense", "not a request"),
        ("ping", b"\xff\xfe", "not a request"),
        ("ping", b'{"a":' * 3000, "not a request"),
        ("ping", {"extra": 1}, "extra"),
        ("ping", b'{"transaction": "' + b"x" * MAX_BYTES + b'"}', str(MAX_BYTES)),
        ("maintenance", {"minutes": -1}, "minutes"),
        ("maintenance", {"minutes": 1e9}, "minutes"),
        ("maintenance", {"stream": "a/b", "minutes": 1}, "stream"),
        ("feedback", {"id": "a", "verdict": "maybe"}, "verdict"),
        ("feedback", {"id": "a"}, "verdict"),
        ("commission", {"minutes": 5}, "stream"),
        ("snapshot", {"stream": "s", "seconds": 0}, "seconds"),
        ("update", {"number": -1}, "number"),
    ],
)
def test_what_makes_no_sense_is_told_and_changes_nothing(verb: str, body: Any, says: str) -> None:
    acted = Acted()
    answer = acted.ask(verb, body)
    assert answer.status == "error"
    assert says in answer.error
    assert "\n" not in answer.error
    assert not acted.done


@pytest.mark.parametrize("verb", CHANGING)
@pytest.mark.parametrize("token", [None, "", "wrong", "secre"])
def test_what_changes_something_wants_the_token(verb: str, token: str | None) -> None:
    acted = Acted(RequestsConfig(token="secret"))
    body = CHANGING[verb] | ({} if token is None else {"token": token})
    answer = acted.ask(verb, body)
    assert "token" in answer.error
    assert "secret" not in answer.error
    assert not acted.done
    assert acted.ask(verb, body, local=True).status == "ok", "who is on the device has shown who he is"
    assert acted.ask(verb, CHANGING[verb] | {"token": "secret"}).status == "ok"
    control = Acted()
    assert control.ask(verb, body).status == "ok", "the control: without a token of its own the device asks for none"


def test_what_only_looks_wants_no_token() -> None:
    acted = Acted(RequestsConfig(token="secret"))
    for verb, body in (("ping", {}), ("config", {}), ("snapshot", {"stream": "s"})):
        assert acted.ask(verb, body).status == "ok"


def test_only_verbs_that_are_allowed() -> None:
    acted = Acted(RequestsConfig(allow=("ping",)))
    assert acted.ask("ping", {}).status == "ok"
    assert "requests.allow" in acted.ask("snapshot", {"stream": "s"}).error
    assert acted.ask("snapshot", {"stream": "s"}, local=True).status == "ok"


def test_what_comes_twice_is_done_once_and_answered_twice() -> None:
    """MQTT delivers at least once."""
    acted = Acted()
    body = {"minutes": 5, "transaction": 7}
    assert acted.ask("maintenance", body) == acted.ask("maintenance", body)
    assert len(acted.done) == 1
    acted.ask("maintenance", {"minutes": 6, "transaction": 7})
    assert len(acted.done) == 2, "another request is another one, whatever it calls itself"
    acted.ask("maintenance", {"minutes": 5})
    acted.ask("maintenance", {"minutes": 5})
    assert len(acted.done) == 4, "the control: without a transaction nobody can tell"
    for i in range(REMEMBERED + 1):
        acted.ask("ping", {"transaction": f"t{i}"})
    acted.ask("maintenance", {"minutes": 6, "transaction": 7})
    assert len(acted.done) == 4 + REMEMBERED + 2, "what is remembered is bounded"


def test_an_answer_is_not_had_by_guessing_its_transaction() -> None:
    acted = Acted(RequestsConfig(token="secret"))
    acted.ask("maintenance", {"minutes": 5, "transaction": 7, "token": "secret"})
    assert acted.ask("maintenance", {"minutes": 5, "transaction": 7}).status == "error"


def test_what_cannot_be_done_is_an_answer_and_may_be_tried_again() -> None:
    tries: list[int] = []

    def refuse(body: Any) -> None:
        tries.append(1)
        raise RefusedError("not now")

    requests = Requests(RequestsConfig(), dict.fromkeys(BODIES, refuse))
    for _ in range(2):
        assert requests.answer("ping", b'{"transaction": 1}') == Response(status="error", error="not now", transaction=1)
    assert len(tries) == 2


def test_every_verb_needs_its_action() -> None:
    with pytest.raises(ValueError, match="snapshot"):
        Requests(RequestsConfig(), dict.fromkeys(BODIES.keys() - {"snapshot"}, lambda body: None))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
FIELDS = sorted({field for body in BODIES.values() for field in body.__struct_fields__})
OBJECTS = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), JSON, max_size=5).map(
    lambda data: json.dumps(data).encode()
)
VERBS = st.sampled_from(sorted(BODIES)) | st.text(max_size=12)


def check_anything(verb: str, payload: bytes) -> None:
    """An answer that can be sent, always; and an action only for a body that fits its verb and brings the token."""
    acted = Acted(RequestsConfig(token="secret"))
    answer = acted.ask(verb, payload)
    msgspec.json.encode(answer)
    assert (answer.status == "ok") == (len(acted.done) == 1)
    for verb_, body in acted.done:
        assert isinstance(body, BODIES[verb_])
        assert verb_ in ("ping", "snapshot") or (verb_ == "config" and body.set is None)


@given(VERBS, st.binary(max_size=200) | OBJECTS)
@settings(max_examples=300, deadline=None)
def test_anything_at_all(verb: str, payload: bytes) -> None:
    check_anything(verb, payload)


@pytest.mark.soak
@given(VERBS, st.binary(max_size=2000) | OBJECTS)
@settings(max_examples=100_000, deadline=None)
def test_anything_at_all_for_long(verb: str, payload: bytes) -> None:
    check_anything(verb, payload)
