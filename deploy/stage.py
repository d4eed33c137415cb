"""What every demo stands on: the agent as its own process, somebody who listens to what it says over MQTT, and a voice."""

import queue
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

NODE, STREAM = "demo", "machine"

ONLINE_S = 20.0
"""How long the agent may take to come up."""
SESSION_S = 3600
"""How long the broker keeps what a named listener misses."""


@dataclass(frozen=True, slots=True)
class DemoResult:
    data: dict[str, Any]
    """What the table says, and what it is too long for: a list of objects."""
    failure: str | None
    """Why the demo did not show what it is there to show."""

    def lines(self) -> list[str]:
        rows = {key: value for key, value in self.data.items() if not isinstance(value, list)}
        width = max(map(len, rows))
        return [f"{key.replace('_', ' '):{width}}  {_plain(value)}" for key, value in rows.items()]


def folder(out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    return out


def configure(
    path: Path,
    *,
    bundle: Path,
    state: Path,
    port: Path,
    broker_port: int,
    alarm: str = "",
    mqtt: str = "",
    more: str = "",
) -> Path:
    """Write the device.toml of a demo; `alarm` and `mqtt` are more lines of these sections, `more` is more sections."""
    path.write_text(
        f"""\
node = "{NODE}"
bundle = "{bundle.name}"
state_dir = "{state}"

[streams.{STREAM}]
port = "{port}"
clock = "sensor"

[mqtt]
host = "127.0.0.1"
port = {broker_port}
{mqtt}"""
        + (f"\n[alarm]\n{alarm}" if alarm else "")
        + more,
        "utf-8",
    )
    return path


def start_agent(config: Path, *, anew: bool = True) -> "subprocess.Popen[bytes]":
    """Its words go to agent.log beside the configuration, which begins `anew` or goes on."""
    with agent_log(config).open("wb" if anew else "ab") as log:
        return subprocess.Popen([sys.executable, "-m", "amiss", "run", "--config", str(config)], stderr=log, stdout=log)


def agent_log(config: Path) -> Path:
    return config.parent / "agent.log"


class Listener:
    """Somebody who hears everything on the bus. With `lasting` the broker keeps for him what he misses."""

    def __init__(self, port: int, *, lasting: bool = False) -> None:
        self.inbox: queue.Queue[tuple[float, str, bytes]] = queue.Queue()
        """When (monotonic), topic, payload."""
        client = self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="amiss-demo-watcher", protocol=mqtt.MQTTv5)
        client.on_message = lambda _client, _data, message: self.inbox.put(
            (time.monotonic(), message.topic, bytes(message.payload))
        )
        client.on_connect = lambda client, *_: client.subscribe("amiss/#", qos=1)
        client.reconnect_delay_set(1, 1)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = SESSION_S if lasting else 0
        client.connect("127.0.0.1", port, clean_start=not lasting, properties=properties)
        client.loop_start()

    def say(self, topic: str, payload: bytes) -> None:
        self._client.publish(topic, payload, qos=1)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@contextmanager
def step(what: str) -> Iterator[None]:
    started = time.monotonic()
    say(f"• {what} …")
    yield
    say(f"  done in {time.monotonic() - started:.1f} s")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def blame(event: dict[str, Any], most: int = 3) -> str:
    """The channels of an event, for a person."""
    return ", ".join(f"{c['channel']} {c['share']:.0%}" for c in event.get("channels", [])[:most])


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
