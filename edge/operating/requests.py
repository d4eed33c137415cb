"""What others may ask of a device, and who may: bytes in, an answer out.

    MQTT request/<verb> ─┐
    the device's page ───┼─▶ Requests.answer ─▶ an action of the agent ─▶ Response
    `amiss ask` ─────────┘

Rules, in order; the first that does not hold is the answer, and nothing has changed:

1. a request has at most `MAX_BYTES`;
2. its verb is one of `BODIES`, and one that `requests.allow` names when it came over MQTT;
3. it is a JSON object that fits the verb's body: no unknown field, nothing out of range;
4. where `requests.token` is set, whoever wants something changed over MQTT says it;
5. a `transaction` that was answered a moment ago is answered the same again, and not done twice: MQTT delivers at least once.
"""

import difflib
import hmac
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edge.config import Name, RequestsConfig
from edge.delivery.topics import Response
from edge.errors import AmissError

log = logging.getLogger(__name__)

MAX_BYTES = 16 * 1024
REMEMBERED = 64
"""Transactions whose answers are kept for those who ask twice."""
LONGEST_MINUTES = 30 * 24 * 60.0

Minutes = Annotated[float, Meta(gt=0, le=LONGEST_MINUTES)]
Verdict = Literal["false_alarm", "confirmed", "new_normal", "undo"]


class _Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    transaction: Annotated[str, Meta(max_length=128)] | int | None = None
    """Whatever the asker wants to know its answer by."""
    token: Annotated[str, Meta(max_length=512)] | None = None


class Ping(_Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Config(_Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    set: dict[str, Any] | None = None
    """Keys of `[alarm]` and their values, such as {"alarm.false_alarms": "2/week"}; null takes a key back to the file's."""


class Maintenance(_Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    stream: Name | None = None
    """None: all of them."""
    minutes: Minutes | None = None
    off: bool = False


class Feedback(_Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    id: Annotated[str, Meta(max_length=256)] | None = None
    """Of an episode,"""
    stream: Name | None = None
    """or the stream whose newest one is meant."""
    verdict: Verdict


class Commission(_Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    stream: Name
    minutes: Minutes | None = None
    trusted: bool = False
    """All of it is normal: leave no strange window out."""
    cancel: bool = False
    rollback: bool = False
    """Back to what counted as ordinary before."""


class Snapshot(_Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    stream: Name
    seconds: Annotated[float, Meta(gt=0, le=3600)] = 10.0


class Update(_Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """There may be something in the repository: look now."""

    number: Annotated[int, Meta(ge=0, lt=2**53)] | None = None
    """Take this one, though its offer is held until somebody asks. 0: none of those any more, and do not look either."""


class Rollback(_Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Back to the model before this one, and never to this one again. Needs no network."""

    reason: Annotated[str, Meta(max_length=200)] = "asked for"


Body = Update | Rollback | Ping | Config | Maintenance | Feedback | Commission | Snapshot

BODIES: dict[str, type[Body]] = {
    "ping": Ping,
    "config": Config,
    "maintenance": Maintenance,
    "feedback": Feedback,
    "commission": Commission,
    "snapshot": Snapshot,
    "update": Update,
    "rollback": Rollback,
}
Action = Callable[[Any], Any]
"""A body in; data for the answer out. Raises `AmissError` for what cannot be done, and then nothing has changed."""


class RefusedError(AmissError):
    """A request that cannot be done as it is."""

    exit_code = 65


class Requests:
    """Answers requests by `actions`, one for each of `BODIES`. One thread at a time."""

    def __init__(self, config: RequestsConfig, actions: Mapping[str, Action]) -> None:
        if missing := BODIES.keys() - actions.keys():
            raise ValueError(f"no action for {missing}")
        self._config, self._actions = config, actions
        self._answered: OrderedDict[tuple[str, str | int], tuple[bytes, Response]] = OrderedDict()

    def answer(self, verb: str, payload: bytes, *, local: bool = False) -> Response:
        """Never raises what a request can cause. `local`: the asker is known, by the page's token or the socket's file mode."""
        transaction: str | int | None = None
        try:
            if len(payload) > MAX_BYTES:
                raise RefusedError(f"a request has at most {MAX_BYTES} bytes")
            transaction = _transaction(payload)
            body = _decode(self._verb(verb, local), payload)
            if _changes(body) and not local:
                self._authorise(body)
            # Only of those who may ask: an answer is not to be had by guessing transactions.
            if transaction is not None and (known := self._answered.get((verb, transaction))) and known[0] == payload:
                return known[1]
            answer = Response(status="ok", data=self._actions[verb](body), transaction=transaction)
        except AmissError as error:
            return Response(status="error", error=str(error), transaction=transaction)  # nothing has changed: ask again
        if transaction is not None:
            self._answered[verb, transaction] = payload, answer
            if len(self._answered) > REMEMBERED:
                self._answered.popitem(last=False)
        return answer

    def _verb(self, verb: str, local: bool) -> type[Body]:
        if verb not in BODIES:
            near = difflib.get_close_matches(verb[:64], BODIES, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(BODIES)}"
            raise RefusedError(f"unknown verb `{verb[:64]}`; {hint}")
        if not local and self._config.allow is not None and verb not in self._config.allow:
            raise RefusedError(f"`{verb}` is not allowed over MQTT on this device; requests.allow in device.toml names what is")
        return BODIES[verb]

    def _authorise(self, body: Body) -> None:
        wanted, given = self._config.token, body.token or ""
        if wanted is not None and not hmac.compare_digest(given.encode(), wanted.encode()):
            raise RefusedError("`token` is missing or wrong; this device wants the one of requests.token in its device.toml")


class _Asked(msgspec.Struct, frozen=True):
    transaction: Annotated[str, Meta(max_length=128)] | int | None = None


def _transaction(payload: bytes) -> str | int | None:
    """Whoever asks for something that makes no sense is to know which of his requests it was."""
    try:
        return msgspec.json.decode(payload, type=_Asked).transaction
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _changes(body: Body) -> bool:
    return not isinstance(body, Ping | Snapshot) and not (isinstance(body, Config) and body.set is None)


def _decode(kind: type[Body], payload: bytes) -> Body:
    # What many a tool sends when nothing is to be said.
    text = payload.strip() or b"{}"
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        known = ", ".join(kind.__struct_fields__)
        raise RefusedError(f"not a request that makes sense: {str(error) or 'nested too deeply'}; fields: {known}") from None
