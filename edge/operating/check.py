"""`amiss check`: try everything that the agent needs, one after the other, and say what to do about what fails."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np

from edge import config as configs
from edge.bundle import Bundle
from edge.config import DeviceConfig
from edge.delivery.mqtt import connect_once
from edge.delivery.outbox import Outbox
from edge.errors import AmissError
from edge.sensing.sources import port_source

LOOKS = 10
"""Times that something came until a channel without a value is one that has none."""
LISTEN_S = 3.0
"""How long to listen to a port, or for three samples of a slow sensor."""


@dataclass(frozen=True, slots=True)
class Finding:
    what: str
    ok: bool
    message: str
    exit_code: int = 0


def check(path: Path) -> list[Finding]:
    """Findings in the order of a start. Raises only what is wrong with the configuration: without it nothing can be tried."""
    config = configs.load(path)
    findings = [Finding("configuration", True, f"{path}: {config.node}, {len(config.streams)} stream(s)")]
    bundles: list[Bundle] = []
    findings.append(_try("model", lambda: _model(config, bundles)))
    findings.append(_try("state folder", lambda: _state(config)))
    if bundles:
        findings += [_try(f"port of {name}", partial(_port, config, name, bundles[0])) for name in config.streams]
    findings.append(_try("broker", lambda: _broker(config)))
    return findings


def _try(what: str, attempt: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, attempt())
    except AmissError as error:
        return Finding(what, False, str(error), error.exit_code)


def _model(config: DeviceConfig, bundles: list[Bundle]) -> str:
    bundle = Bundle.open(Path(config.bundle))
    proof = bundle.self_test()
    bundle.pipeline(config.alarm)  # is the threshold one that this model can reach?
    bundles.append(bundle)
    return f"{bundle.manifest.name} {bundle.manifest.version} {bundle.digest[:16]}…, golden scores within {proof.worst:.1g}"


def _state(config: DeviceConfig) -> str:
    path = config.state_path() / "outbox.db"
    with closing(Outbox(path, device=config.node, boot="check", max_bytes=config.outbox_max_bytes, ack=config.mqtt.ack)):
        return f"{config.state_path()} can be written"


def _port(config: DeviceConfig, name: str, bundle: Bundle) -> str:
    stream = config.streams[name]
    listening = msgspec.structs.replace(stream, silence_s=max(LISTEN_S, 3 / bundle.manifest.rate_hz))
    with closing(port_source(listening, bundle.channels, bundle.manifest.rate_hz)) as source:
        # Silence and garbage end this loop as SourceLostError, which says what to do about it.
        seen = np.zeros(len(bundle.channels), bool)
        for samples in islice((samples for samples in source.samples() if len(samples)), LOOKS):
            seen |= np.isfinite(samples.x).any(axis=1)
            if seen.all():
                break
    damaged = f", {source.corrupt} damaged: {source.trouble}" if source.corrupt else ""
    without = [channel for channel, there in zip(bundle.channels, seen, strict=True) if not there]
    absent = f", but no value of {', '.join(without)}" if without else ""
    return f"{stream.port} delivers {stream.format} of {len(seen)} channels{absent}{damaged}"


def _broker(config: DeviceConfig) -> str:
    connect_once(config.mqtt, config.node)
    return f"{config.mqtt.host} accepts us"
