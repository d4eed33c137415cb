"""`amiss doctor`: look at everything that goes wrong on a device, and name the command that mends it.

Findings come in the order of a start, so what comes first is to be mended first. `quick` (`amiss check`) tries only what a
start needs: configuration, model, state folder, ports, broker. Nothing is changed: an agent that runs is not disturbed, and
when root looks, no file of root's is left behind for the agent to stumble over.
"""

import difflib
import importlib.metadata
import os
import stat
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np

from edge import config as configs
from edge.bundle import Bundle
from edge.config import DeviceConfig, StreamConfig
from edge.delivery import rights
from edge.delivery.mqtt import connect_once
from edge.delivery.outbox import look
from edge.errors import AccessError, AmissError, SourceLostError, StorageError
from edge.operating import host as machine
from edge.operating import settings as kept
from edge.operating import system
from edge.operating.finding import Finding, fault, ok, warning
from edge.operating.host import Holder, Host
from edge.scoring.backends import CPU, RUNTIMES, Backend, installed
from edge.sensing.ports import Ports
from edge.sensing.sources import SerialSource, port_source, what_decodes
from edge.signal import Float32
from edge.updating.store import glance

LOOKS = 10
"""Times that something came until a channel without a value is one that has none."""
LISTEN_S = 3.0
"""How long to listen to a port, or for three samples of a slow sensor."""
EXPIRY_DAYS = 30
SLOWER = 1.2
"""Times as long as on the CPU: what is not worth it for certain."""
OLD_S = 24 * 3600.0
"""Records that wait longer have had their chance."""

Probe = Callable[[], list[Finding]]


def examine(
    path: Path,
    *,
    quick: bool = False,
    host: Host | None = None,
    environ: Mapping[str, str] = os.environ,
    wall: Callable[[], float] = time.time,
) -> list[Finding]:
    """Everything that is found; raises nothing that a user can cause. `host` is the computer, `environ` its variables."""
    host = host or Host()
    try:
        config = configs.load(path, environ=environ)
    except AmissError as error:
        found = [fault("configuration", error)]
        return found if quick else [*found, *machine.examine(host)]
    streams = f"{len(config.streams)} stream{'' if len(config.streams) == 1 else 's'}"
    found = [ok("configuration", f"{path}: {config.node}, {streams}")]
    folder = config.service_path(environ)
    agent = next(iter(host.holders(folder / "outbox.db")), None)
    bundles: list[Bundle] = []

    def attempt(what: str, probe: Probe) -> None:
        try:
            found.extend(probe())
        except AmissError as error:
            found.append(fault(what, error))
        except PermissionError as error:
            found.append(fault(what, AccessError(f"{error.filename}: may not be looked at; run this with sudo")))
        except OSError as error:  # gone, or broken, while we looked
            found.append(
                fault(what, StorageError(f"{error.filename or what}: {error.strerror or error}; try again, see dmesg"))
            )

    if not quick:
        attempt("environment", lambda: _environment(environ))
        attempt("secrets", lambda: _secrets(config, path, environ))
        attempt("wheels", lambda: _wheels(host))
    # What ends the process that loads it would end this one, too.
    if not any("ends the process" in one.message for one in found):
        attempt("model", lambda: _model(config, folder, bundles, quick))
    if not quick:
        attempt("software", lambda: _software(bundles, host))
    attempt("state folder", lambda: _state(config, folder, host, agent, quick, wall))
    for name, stream in config.streams.items():
        if not quick:
            attempt(f"port of {name}", partial(_around, stream, f"port of {name}", host))
        attempt(f"port of {name}", partial(_port, config, name, bundles, host, agent, quick))
    if not quick:
        attempt("ports", lambda: machine.grabbers(host))
    attempt("broker", lambda: _login(config) if quick else _broker(config, agent, wall))
    return found if quick else [*found, *machine.examine(host)]


def _environment(environ: Mapping[str, str]) -> list[Finding]:
    """A variable that names no key is no error, for it may be somebody else's; but it is often a slip."""
    found = []
    known = configs.DeviceConfig.__struct_fields__
    for name in sorted(environ):
        first = name.removeprefix("AMISS_").lower().removesuffix("_file").split("__")[0]
        if not name.startswith("AMISS_") or first in known or name == "AMISS_DATA":
            continue
        section = next((key for key in known if first.startswith(f"{key}_")), None)
        near = (
            f"{section}__{first[len(section) + 1 :]}" if section else next(iter(difflib.get_close_matches(first, known)), None)
        )
        hint = f"unset {name}; did you mean AMISS_{near.upper()}?" if near else f"unset {name}"
        found.append(warning("environment", f"{name} is no key of the configuration and does nothing", hint))
    if environ.get("ORT_DISABLE_TELEMETRY", "1") != "1":
        found.append(
            warning(
                "environment", "onnxruntime may send telemetry: ORT_DISABLE_TELEMETRY is not 1", "unset ORT_DISABLE_TELEMETRY"
            )
        )
    return found


def _secrets(config: DeviceConfig, path: Path, environ: Mapping[str, str]) -> list[Finding]:
    """Who else may read them?"""
    files: dict[Path, str] = {}
    for key, secret in (
        ("mqtt.password", config.mqtt.password),
        ("requests.token", config.requests.token),
        ("web.token", config.web.token if config.web else None),
    ):
        name = f"AMISS_{key.upper().replace('.', '__')}"
        if secret is None or name in environ:
            continue
        files[Path(environ.get(f"{name}_FILE", path))] = key
    if config.mqtt.tls and config.mqtt.tls.key:
        files[Path(config.mqtt.tls.key)] = "mqtt.tls.key"
    found = []
    for file, key in files.items():
        try:
            mode = file.stat().st_mode
        except OSError:
            continue  # who needs it says so
        if mode & (stat.S_IRGRP | stat.S_IROTH):
            who = "everybody on this computer" if mode & stat.S_IROTH else "its group"
            found.append(warning("secrets", f"{key} in {file} can be read by {who}", f"chmod 600 {file}"))
    return found or ([ok("secrets", "readable by their owner only")] if files else [])


def _model(config: DeviceConfig, folder: Path, bundles: list[Bundle], quick: bool) -> list[Finding]:
    path, provider = Path(config.bundle), config.runtime.provider
    bundle = Bundle.open(path, provider=provider)
    proof = bundle.self_test()
    found = []
    if config.update is not None and (serving := glance(folder / "models")) is not None:
        # The one that is pushed is what counts from here on; that of the configuration is what is left when all others fail.
        spare = f"{bundle.manifest.name} {bundle.manifest.version}, golden scores within {proof.worst:.1g}"
        try:
            pushed = Bundle.open(serving.path, provider=provider)
            proof, bundle, path = pushed.self_test(), pushed, serving.path
            on = ", on probation" if serving.role == "trial" else ""
            found = [ok("model of last resort", spare), ok("models", f"number {serving.number} of the repository runs{on}")]
        except AmissError as error:
            repair = "start the agent: it goes back to the model before, and fetches this one again where it is still offered"
            found = [warning("models", f"number {serving.number} cannot be used: {error}", repair)]
    changed = kept.load(folder).alarm
    policy = bundle.policy(configs.changed_alarm(config.alarm, changed))
    bundles.append(bundle)
    name = f"{bundle.manifest.name} {bundle.manifest.version} {bundle.digest[:16]}…"
    found += [ok("model", f"{name}, golden scores within {proof.worst:.1g}"), ok("false alarms", policy.sentence())]
    if changed:
        keys = ", ".join(f"alarm.{key}" for key in sorted(changed))
        found.append(ok("settings", f"{keys}: set while the agent ran, and stronger than device.toml"))
    if provider != CPU and not quick:
        found.append(_provider(provider, bundle, path))
    return found


def _provider(wanted: str, bundle: Bundle, path: Path) -> Finding:
    """Does it compute, and is that worth it? A small model is done before a GPU has begun."""
    if bundle.declined:
        what = f"runtime.provider = {wanted!r} is not used, the CPU computes: {bundle.declined}"
        if wanted == "auto":
            return ok("provider", what)
        return warning("provider", what, 'docs/howto/jetson.md says what it takes; or runtime.provider = "cpu"')
    theirs, ours, ratio = _window_ms(bundle.backend, Bundle.open(path).backend, bundle.golden.x[:1])
    shares = ", ".join(f"{name} {count}" for name, count in getattr(bundle.backend, "operations", {}).items())
    told = f"{bundle.backend.provider} takes {theirs:.2g} ms a window, the CPU {ours:.2g} ms"
    told += f" (operations: {shares})" if shares else ""
    if ratio > SLOWER:
        return warning("provider", told, 'runtime.provider = "cpu" in device.toml')
    return ok("provider", told)


def _window_ms(theirs: Backend, ours: Backend, x: Float32) -> tuple[float, float, float]:
    """What a window takes each, in milliseconds, and how many times as long the first takes: medians of 32 pairs.

    In turn, so that whatever else the device does meets both. The first eight make room, and are not counted.
    """
    took = np.empty((40, 2))
    for pair in took:
        for which, backend in enumerate((theirs, ours)):
            began = time.perf_counter()
            backend.run(x)
            pair[which] = time.perf_counter() - began
    took = took[8:]
    return *(1000 * np.median(took, axis=0)).tolist(), float(np.median(took[:, 0] / took[:, 1]))


def _wheels(host: Host) -> list[Finding]:
    return [
        *machine.python(host),
        *machine.libraries(host, [one.module for one in RUNTIMES.values() if find_spec(one.module)], sys.executable),
    ]


def _software(bundles: list[Bundle], host: Host) -> list[Finding]:
    found = []
    # Both come as a folder `onnxruntime`: who was installed last has overwritten some of the other's files.
    twins = [name for name in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino") if _distributed(name)]
    if len(twins) > 1:
        found.append(
            warning(
                "software",
                f"{' and '.join(twins)} are both installed, in the same folder",
                f"{sys.executable} -m pip uninstall {' '.join(twins)}; then install the one that is wanted",
            )
        )
    target, here = bundles[0].manifest.target if bundles else "", machine.board(host)
    if here is not None and target and target not in (here, "generic-arm64"):
        found.append(
            warning(
                "board",
                f"{machine.model_name(host)} ({here}); the model was made for {target}: what was measured there does not hold",
                f"amiss quantize … --target {here}",
            )
        )
    elif called := machine.model_name(host):
        found.append(ok("board", called + (f" ({here})" if here else "")))
    return [*found, *_versions(bundles)]


def _distributed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _versions(bundles: list[Bundle]) -> list[Finding]:
    versions = system.versions() | (bundles[0].backend.versions() if bundles else {})
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    usable = [name for name in RUNTIMES if installed(name)]
    if idle := [name for name, runtime in RUNTIMES.items() if name not in usable and find_spec(runtime.module) is not None]:
        return [
            warning(
                "software",
                f"{', '.join(idle)} is installed, but cannot run with numpy {versions['numpy']}",
                "pip install 'numpy<2', or leave it if the model above is well",
            )
        ]
    return [ok("software", f"{told}; runtimes: {', '.join(usable) or 'none'}")]


def _state(
    config: DeviceConfig, folder: Path, host: Host, agent: Holder | None, quick: bool, wall: Callable[[], float]
) -> list[Finding]:
    place = next(above for above in (folder, *folder.parents) if above.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        readonly = any(one.severity == "fault" for one in machine.disk(host, place, 0))
        if not readonly:
            raise AccessError(f"{place}: not writable; sudo chown -R USER {place}, with the user that runs the agent")
    outbox = folder / "outbox.db"
    size = outbox.stat().st_size if outbox.exists() else 0
    found = machine.disk(host, place, max(0, config.outbox_max_bytes - size))
    if any(finding.severity == "fault" for finding in found):
        return found
    machine.writable(place)
    if folder == place and outbox.exists() and outbox.stat().st_uid != folder.stat().st_uid:
        raise AccessError(
            f"{outbox}: belongs to another user than its folder, so the agent cannot write it; "
            f"sudo chown --reference={folder} {outbox}*"
        )
    if not quick:
        found += _outbox(outbox, size, agent, wall)
        found += machine.kept(host, place)
        found += machine.wear(host, place, agent)
    held = f"; {agent} uses it" if agent else ""
    return [ok("state folder", f"{folder} {'can be written' if folder == place else 'can be made'}{held}"), *found]


def _outbox(path: Path, size: int, agent: Holder | None, wall: Callable[[], float]) -> list[Finding]:
    found = []
    aside = path.with_name(path.name + ".damaged")
    if aside.exists():
        when = datetime.fromtimestamp(aside.stat().st_mtime, UTC)
        found.append(
            warning(
                "outbox",
                f"a damaged one was moved aside ({aside}, {when:%Y-%m-%d}); what was not delivered from it is lost",
                f"sqlite3 {aside} .recover to look into it, then rm {aside}*; power cuts and dying cards do this",
            )
        )
    if agent is not None:
        return [*found, ok("outbox", f"{size / 1e6:.1f} MB; the agent has it open, `health` says what waits")]
    if not path.exists():
        return found
    backlog = look(path)
    if backlog.parked:
        found.append(
            warning(
                "outbox",
                f"the broker has refused {backlog.parked} record{'' if backlog.parked == 1 else 's'}: {backlog.reason}",
                "let the broker's ACL allow this node to write amiss/NODE/#, then start the agent again",
            )
        )
    age_s = 0.0 if backlog.oldest_ns is None else wall() - backlog.oldest_ns / 1e9
    if backlog.waiting and age_s > OLD_S:
        found.append(
            warning(
                "outbox",
                f"{backlog.waiting} records wait, the oldest for {age_s / 86400:.0f} days",
                "see `broker` below; they are delivered as soon as it lets us",
            )
        )
    elif not backlog.parked:
        found.append(ok("outbox", f"{backlog.waiting} records wait, {size / 1e6:.1f} MB"))
    return found


def _port(
    config: DeviceConfig, name: str, bundles: list[Bundle], host: Host, agent: Holder | None, quick: bool
) -> list[Finding]:
    stream, what = config.streams[name], f"port of {name}"
    ports = Ports(host.root / "sys", host.root / "dev")
    device = ports.resolve(stream.port)
    others = host.holders(Path(device)) if Path(device).exists() else []
    if agent is not None and any(other.pid == agent.pid for other in others):
        return [ok(what, f"{device} is read by {agent}")]
    if others:
        first = others[0]
        raise SourceLostError(
            f"{device}: {', '.join(map(str, others))} has it open and takes bytes away; {machine.letting_go(first, device)}"
        )
    if not bundles:
        if not Path(device).exists():
            raise SourceLostError(f"{stream.port}: no such port; {ports.hint()}")
        return [ok(what, f"{device} is there; what it sends cannot be read without a model")]
    bundle = bundles[0]
    listening = msgspec.structs.replace(stream, silence_s=max(LISTEN_S, 3 / bundle.manifest.rate_hz))
    with closing(port_source(listening, bundle.channels, bundle.manifest.rate_hz)) as source:
        # Silence and garbage end this loop as SourceLostError, which says what to do about it.
        seen = np.zeros(len(bundle.channels), bool)
        try:
            for samples in islice((samples for samples in source.samples() if len(samples)), LOOKS):
                seen |= np.isfinite(samples.x).any(axis=1)
                if seen.all():
                    break
        except SourceLostError as error:
            if quick or not isinstance(source, SerialSource) or not source.received:
                raise
            return [_garbage(what, stream, bundle, error)]
    damaged = f", {source.corrupt} damaged: {source.trouble}" if source.corrupt else ""
    without = [channel for channel, there in zip(bundle.channels, seen, strict=True) if not there]
    absent = f", but no value of {', '.join(without)}" if without else ""
    return [ok(what, f"{stream.port} delivers {stream.format} of {len(seen)} channels{absent}{damaged}")]


def _around(stream: StreamConfig, what: str, host: Host) -> list[Finding]:
    """What is wrong with a port apart from what comes over it."""
    ports, parity = Ports(host.root / "sys", host.root / "dev"), stream.modbus.parity if stream.modbus else "none"
    found = machine.pins(host, stream.port, stream.baud, parity)
    try:
        device = ports.resolve(stream.port)
    except SourceLostError:  # to be told when it is opened
        return found
    found += [*_lasting(what, stream.port, device, ports), *machine.console(host, device)]
    if Path(device).exists() and not Path(device).resolve().is_relative_to("/dev/pts"):
        found += machine.rights(Path(device))
    return found


def _garbage(what: str, stream: StreamConfig, bundle: Bundle, error: SourceLostError) -> Finding:
    """Something is sent and nothing of it makes sense: at which rate would it?"""
    found = what_decodes(stream, bundle.channels, bundle.manifest.rate_hz)
    if found is None:
        return fault(
            what, SourceLostError(f"{error}; nor does any usual rate or another format help: is the wiring right (GND)?")
        )
    baud, name = found
    wrong = [
        f"{key} = {right}"
        for key, right, is_so in (
            ("baud", str(baud), baud == stream.baud),
            ("format", f'"{name}"', name == stream.format),
        )
        if not is_so
    ]
    cause = str(error).partition("; check")[0]
    if not wrong:
        return fault(what, SourceLostError(f"{cause}; it came and made sense a moment later: a loose contact? Look again"))
    return fault(what, SourceLostError(cause), f"{' and '.join(wrong)} in device.toml: tried, and the sensor makes sense so")


def _lasting(what: str, port: str, device: str, ports: Ports) -> list[Finding]:
    """ttyUSB0 is ttyUSB1 when two adapters are plugged in the other way round."""
    if not Path(port).name.startswith(("ttyUSB", "ttyACM")):
        return []
    known = next((one for one in ports.there() if one.device == device), None)
    better = (known.usb or known.link) if known else None
    return [
        warning(
            what,
            f"{port} may have another name after the next start",
            f'port = "{better}" in device.toml' if better else "name it usb:VID:PID, as lsusb prints them",
        )
    ]


def _login(config: DeviceConfig) -> list[Finding]:
    connect_once(config.mqtt, config.node)
    return [ok("broker", f"{config.mqtt.host} accepts us")]


def _broker(config: DeviceConfig, agent: Holder | None, wall: Callable[[], float]) -> list[Finding]:
    found = rights.ask(config.mqtt, config.node)
    where, topics = config.mqtt.host, f"amiss/{config.node}/#"
    findings = [ok("broker", f"{where} accepts us")]
    for whose, until in found.certificates.items():
        days = (until.timestamp() - wall()) / 86400
        told = f"the {whose} is valid until {until:%Y-%m-%d}"
        findings.append(
            ok("certificate", told)
            if days >= EXPIRY_DAYS
            else warning(
                "certificate", f"{told}: {days:.0f} days", "renew it; the agent reads its files anew at every connection"
            )
        )
    rule = f"in the broker's ACL: user {config.mqtt.username or 'anonymous'}, topic readwrite {topics}"
    if found.publish:
        denied = AccessError(f"{where} does not let us publish under {topics} ({found.publish})")
        findings.append(fault("rights", denied, rule))
    elif found.subscribe:
        findings.append(warning("rights", f"{where} does not let us hear requests ({found.subscribe})", rule))
    elif found.echoed:
        findings.append(ok("rights", f"publishing and subscribing under {topics} both work"))
    elif config.mqtt.version == "5":
        findings.append(warning("rights", f"{where} takes what we publish, but lets us hear nothing", rule))
    else:
        findings.append(
            warning(
                "rights",
                f"nothing published under {topics} comes back; MQTT 3.1.1 cannot say if writing or reading is denied",
                f'{rule}; or mqtt.version = "5", which can tell',
            )
        )
    if found.availability == b"online" and agent is None:
        findings.append(
            warning(
                "node name",
                f"`{config.node}` is online, and no agent runs here with this state folder: another device has the same name, "
                "or an agent was cut off less than a minute ago",
                "give this device a `node` of its own; amiss/NODE/info says what the other one is",
            )
        )
    return findings
