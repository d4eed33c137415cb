"""The front door: `amiss VERB`.

Each verb imports its code when it is called, so a device never loads torch and `amiss --help` answers at once. stdout carries
data, stderr log and progress. Exit codes: 0 ok, 1 a gate did not pass, 2 usage, then sysexits (see `edge.errors`).
"""

import contextlib
import itertools
import json
import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from edge.errors import AmissError, GateError

app = typer.Typer(
    name="amiss",
    help="amiss tells you when a machine does something it has never done before.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Look at, check and explain device.toml.", no_args_is_help=True, rich_markup_mode=None)
datasets_app = typer.Typer(help="Public recordings to try amiss on.", no_args_is_help=True, rich_markup_mode=None)
keys_app = typer.Typer(help="The keys that sign models: make, replace, revoke.", no_args_is_help=True, rich_markup_mode=None)
fleet_app = typer.Typer(help="A new model for many devices, stage by stage.", no_args_is_help=True, rich_markup_mode=None)
device_app = typer.Typer(help="Cards for new devices.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(config_app, name="config")
app.add_typer(device_app, name="device")
app.add_typer(keys_app, name="keys")
app.add_typer(fleet_app, name="fleet")
app.add_typer(datasets_app, name="datasets")

EXTRAS = {
    "torch": "train",
    "torch_pruning": "train",
    "litert_torch": "tflite",
    "ai_edge_quantizer": "tflite",
    "ai_edge_litert": "tflite",
    "onnx": "train",
    "onnxscript": "train",
    "rich": "train",
    "pyarrow": "train",
    "iotcore": "demo",
    "matplotlib": "demo",
    "tensorboard": "tensorboard",
    "optuna": "search",
    "tuf": "publish",
    "securesystemslib": "publish",
    "cryptography": "publish",
    "sqlalchemy": "fleet",
}
"""Modules that a device does not have, and the extra that brings them."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ConfigFile = Annotated[Path, typer.Option("--config", help="device.toml.")]
DEVICE = Path("/etc/amiss/device.toml")
RepositoryFolder = Annotated[Path, typer.Option("--repo", help="Folder of the repository.", show_default=False)]
DEFAULT_KEYS = [Path("keys")]
KeyFolders = Annotated[
    list[Path], typer.Option("--keys", help="Folder or file of keys; may be said several times.", show_default="keys")
]
Days = Annotated[
    list[str] | None,
    typer.Option("--expires-days", metavar="ROLE=DAYS", help="How long signatures of a role last.", show_default=False),
]
Unencrypted = Annotated[
    bool,
    typer.Option(
        "--unencrypted-online",
        help="Write the new keys of snapshot and timestamp WITHOUT a passphrase, so that a timer can sign: whoever reads these "
        "files can renew signatures and keep devices from hearing of new models, but cannot offer one.",
    ),
]
BrokerFile = Annotated[
    Path | None, typer.Option("--config", help="A file with a table [mqtt], as in device.toml.", show_default=False)
]
Broker = Annotated[str | None, typer.Option(metavar="HOST[:PORT]", help="Instead of what the file says.", show_default=False)]
FleetState = Annotated[
    str | None,
    typer.Option(
        "--state", metavar="FILE|URL", help="Where roll-outs are kept: a file, or postgresql+psycopg://…",
        show_default="~/.local/state/amiss/fleet.db", envvar="AMISS_FLEET_STATE",
    ),
]  # fmt: skip
Model = Annotated[
    str | None, typer.Argument(metavar="NAME-VERSION", help="The newest roll-out, if not said.", show_default=False)
]
BundleFile = Annotated[Path, typer.Argument(help="A .amiss file.", show_default=False)]


class Format(StrEnum):
    frames = "frames"
    csv = "csv"
    json = "json"
    nmea = "nmea"


class Written(StrEnum):
    onnx = "onnx"
    tflite = "tflite"
    both = "both"


class Precision(StrEnum):
    auto = "auto"
    int8 = "int8"
    float32 = "float32"


class Cost(StrEnum):
    latency = "latency"
    bytes = "bytes"


def _say_version(said: bool) -> None:
    if said:
        from importlib.metadata import version

        print(f"amiss {version('amiss')}")
        raise typer.Exit


@app.callback()
def front(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version, and end.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    recording: Annotated[
        Path | None, typer.Option(help="Play this recording instead of the simulated machine.", show_default=False)
    ] = None,
    normal: Annotated[
        list[Path] | None, typer.Option(help="With --recording: recordings (or folders) of normal running to learn from.")
    ] = None,
    own: Annotated[
        list[Path] | None,
        typer.Option(help="With --recording: normal running of the very machine that is played, to commission the model on."),
    ] = None,
    speed: Annotated[
        float | None, typer.Option(help="With --recording: times real time; found from its length if not given.")
    ] = None,
    fault: Annotated[str, typer.Option(help="Fault to inject: see `amiss simulate --help`.")] = "bearing",
    seed: Annotated[int, typer.Option(help="Decides everything that is random.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for recordings, run, bundle and picture.")] = Path("demo-out"),
    chaos: Annotated[
        bool,
        typer.Option("--chaos", help="Pull the plug, kill broker and agent, disagree with an alert; nothing may be lost."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Do the whole job once: learn, compress, run on a serial port, and raise an alert over MQTT."""
    from deploy import demo as demos

    if chaos:
        from deploy import chaos as unrest
        from edge.errors import UsageError

        if recording is not None:
            raise UsageError("--chaos breaks a sensor while it runs, and a recording is over: leave out --recording")
        result = unrest.on_simulation(out=out, fault=fault, seed=seed)
    elif recording is not None:
        result = demos.on_recording(recording, normal or [], own or [], out=out, speed=speed, seed=seed)
    else:
        result = demos.on_simulation(out=out, fault=fault, seed=seed)
    _print(result.data, result.lines(), as_json)
    if result.failure:
        raise GateError(result.failure)


@app.command()
def simulate(
    out: Annotated[Path | None, typer.Option(help="Recording to write (.csv or .csv.gz).", show_default=False)] = None,
    serial: Annotated[
        Path | None,
        typer.Option(help="Instead: create a serial port with this name and send frames in real time.", show_default=False),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Length.", min=0.1)] = 600.0,
    rate: Annotated[float, typer.Option(help="Samples per second.", min=1)] = 400.0,
    fault: Annotated[
        str | None,
        typer.Option(
            help="bearing, imbalance, misalignment, overload, overheating; or of the sensor: stuck, dropout.",
            show_default=False,
        ),
    ] = None,
    fault_at: Annotated[
        float | None, typer.Option(help="When it begins, in seconds; half-way if not given.", show_default=False)
    ] = None,
    severity: Annotated[float, typer.Option(help="1 is clear, 0.3 is early.", min=0)] = 1.0,
    seed: Annotated[int, typer.Option(help="Decides everything that is random.")] = 0,
) -> None:
    """A rotating machine to play with, as a recording or live on a serial port."""
    from edge.errors import UsageError
    from edge.sensing import simulate as machine
    from edge.sensing.recordings import write_recording

    if (out is None) == (serial is None):
        raise UsageError("say either --out FILE for a recording or --serial NAME for a live port")
    if fault is not None and fault not in machine.FAULTS:
        raise UsageError(f"unknown fault {fault!r}; known: {', '.join(machine.FAULTS)}")
    at = seconds / 2 if fault_at is None else fault_at
    if out is not None:
        recording = machine.simulate(seconds, seed=seed, rate_hz=rate, fault=fault, fault_at_s=at, severity=severity)
        write_recording(out, recording)
        _say(f"{out}: {len(recording.time_ns)} samples of {', '.join(recording.channels)} at {rate:g} Hz")
        return
    assert serial is not None
    from deploy.machine import serve

    serve(serial, seconds=seconds, rate_hz=rate, fault=fault, fault_at_s=at, severity=severity, seed=seed, say=_say)


@app.command()
def record(
    out: Annotated[Path, typer.Option(help="Recording to write (.csv or .csv.gz).", show_default=False)],
    rate: Annotated[
        float | None,
        typer.Option(help="Samples per second. [default: the sensor's]", show_default=False, min=0.001),
    ] = None,
    port: Annotated[
        str | None,
        typer.Option(help="Serial port: usb:VID:PID, or a file, best below /dev/serial/by-id/.", show_default=False),
    ] = None,
    sensor: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="What is on the port: one of `amiss sensors`, or a sensor.toml of your own. It says rate, columns, baud and "
            "format.",
            show_default=False,
        ),
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Names of the values as they come, separated by commas.", show_default=False)
    ] = None,
    seconds: Annotated[float, typer.Option(help="How long.", min=0.1)] = 600.0,
    baud: Annotated[
        int | None, typer.Option(help="Speed of the port. [default: the sensor's, or 115200]", show_default=False)
    ] = None,
    format: Annotated[
        Format | None, typer.Option(help="What comes over the wire. [default: the sensor's, or frames]", show_default=False)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Instead of port, sensor, baud and format: a device.toml with the sensor.", show_default=False),
    ] = None,
    stream: Annotated[
        str | None, typer.Option(help="With --config: which of its streams, if there are several.", show_default=False)
    ] = None,
) -> None:
    """Record a sensor, to learn from later. What was read is kept when you stop it early or the sensor is lost.

    amiss record --sensor adxl345 --port usb:2e8a:000a --seconds 3600 --out fan.csv
    """
    from edge import config as configs
    from edge import profiles
    from edge.config import StreamConfig
    from edge.errors import ConfigError, UsageError
    from edge.operating.record import record as run
    from edge.tables import converted

    names = tuple(name.strip() for name in columns.split(",")) if columns else None
    profile = profiles.load(sensor) if sensor else None
    here = port or (profile.port if profile else None)
    if (here is None) == (config is None) or (config and sensor):
        raise UsageError("say either --port for a sensor that sends by itself or --config FILE with a stream")
    if config is not None:
        streams = configs.load(config).streams
        if stream not in streams and (stream is not None or len(streams) > 1):
            raise UsageError(f"say --stream with one of: {', '.join(streams)}")
        found = streams[stream or next(iter(streams))]
        profile = profiles.load(found.sensor, config.parent) if found.sensor else None
        if found.modbus is not None:
            names = names or tuple(register.channel for register in found.modbus.registers)
        elif profile is None:
            names = names or found.columns
    else:
        clock = "sensor" if names and "time" in names else None
        said = {
            "port": here,
            "sensor": sensor,
            "baud": baud,
            "format": format and format.value,
            "columns": names,
            "clock": clock,
        }
        said = {key: value for key, value in said.items() if value is not None}
        try:
            found = converted(profiles.fill(said, profile) if profile else said, StreamConfig, "--port")
        except ConfigError as error:
            raise UsageError(str(error)) from None
    names = names or (tuple(channel.name for channel in profile.channels) if profile else None)
    rate = rate or (profile.rate_hz if profile else None)
    if names is None:
        raise UsageError("say --columns with the names of the values, in the order in which they come; or --sensor NAME")
    if rate is None:
        raise UsageError("say --rate with how many samples come in a second; or --sensor NAME")
    count = run(found, names, rate, seconds, out, _say)
    _say(f"{out}: {count} samples")


@app.command()
def starter(
    sensor: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="One of `amiss sensors`, or a sensor.toml of your own.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Bundle to write (.amiss).", show_default=False)],
    minutes: Annotated[
        float | None,
        typer.Option(
            help="How long it learns its machine. [default: 60, or more for a slow sensor]", show_default=False, min=1
        ),
    ] = None,
) -> None:
    """A model for a machine that nobody has recorded yet: it learns it on the device, and raises nothing before."""
    from deploy import starter as starters
    from edge import profiles
    from edge.bundle import Bundle
    from edge.channel import ChannelSpec

    known = profiles.load(sensor)
    channels = [ChannelSpec(channel.name, channel.unit) for channel in known.channels]
    starters.build(channels, known.rate_hz, out, name=known.name, window=known.window, hop=known.hop, minutes=minutes)
    learns = Bundle.open(out).manifest.learn_minutes
    _say(f"{out}: a starter for {known.name}; it learns its machine for {learns:g} min before it raises anything")


@app.command()
def sensors(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME|FILE]", help="All about one: its settings, and how it is wired.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Sensors that are known: what they measure, how fast, over what line. `sensor = "NAME"` in device.toml takes it all."""
    import msgspec

    from edge import profiles

    if name is not None:
        sensor = profiles.load(name)
        text = profiles.wiring(name)
        lines = [*sensor.lines(), "", text.strip() if text else f"Wiring and sketch: firmware-configs/sensors/{sensor.name}/"]
        _print(msgspec.to_builtins(sensor), lines, as_json)
        return
    known = profiles.sensors()
    width = max(map(len, known))
    lines = [
        f"{one.name:{width}}  {one.rate_hz:>8g} Hz  {one.baud:>7} baud  {one.title}\n{'':{width}}  {one.measures()}"
        for one in known.values()
    ]
    _print(list(map(msgspec.to_builtins, known.values())), lines, as_json)


@app.command()
def train(
    recipe: Annotated[
        Path | None, typer.Argument(help="recipe.toml; without one the defaults serve.", show_default=False)
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="Recordings of normal running: files or folders.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the run.", show_default=False)] = Path("run"),
    window: Annotated[int | None, typer.Option(help="Samples per window.", show_default=False)] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run that is in the folder, or what an interrupted one left.")
    ] = False,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Write curves for TensorBoard to this folder.", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only look at the recordings: what is wrong with them?"),
    ] = False,
    as_json: Json = False,
) -> None:
    """Learn what normal looks like from recordings without labels. Killed half-way, the same command goes on."""
    import msgspec

    from edge.errors import DataError, UsageError
    from trainer import data as recordings
    from trainer import progress
    from trainer import recipe as recipes

    if not dry_run:  # before anything is read: without torch there is nothing to read it for
        from trainer.train import train as run

    plan = recipes.load(recipe) if recipe else recipes.Recipe()
    overrides = list(set_ or []) + ([f"window={window}"] if window else [])
    plan = recipes.apply_overrides(plan, overrides)
    paths = data or [Path(name) for name in plan.data]
    if not paths:
        raise UsageError("nothing to learn from: say --data FILE-or-DIR, or name `data` in the recipe")
    if recipe is None and not any(pair.partition("=")[0].strip() == "window" for pair in overrides):
        from trainer.rhythm import suggest_window

        found, why = suggest_window(paths, plan)
        plan = recipes.apply_overrides(plan, [f"window={found}"])
        _say(f"window = {found}: {why}; --window or `window` in a recipe says otherwise")
    if dry_run:
        material = recordings.load(paths, plan, forgiving=True)
        data_ = {"channels": material.channels, "units": material.units, "rate_hz": material.rate_hz, "window": plan.window}
        data_ |= {"hop": plan.hop_samples, "fit_windows": len(material.fit), "calibration_windows": len(material.calibration)}
        data_ |= {"notes": material.notes, "quality": msgspec.to_builtins(material.quality)}
        _print(data_, recordings.lines(material, plan), as_json)
        if material.trouble:
            raise DataError(material.trouble)
        return
    with contextlib.ExitStack() as reports:
        report = reports.enter_context(progress.progress("train"))
        if tensorboard is not None:
            report = reports.enter_context(progress.tensorboard(tensorboard, report))
        info = run(plan, paths, out, progress=report, overwrite=overwrite)
    _print(msgspec.to_builtins(info), info.lines(), as_json)


@app.command()
def quantize(
    run: Annotated[Path, typer.Argument(help="Folder that `amiss train` wrote.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Bundle to write (.amiss).", show_default=False)],
    prune: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT=SHARE",
            help="Take channels away until this share is left of macs, parameters or latency, as in macs=0.5; also KEY=VALUE "
            "of the recipe's table [prune], or none. [default: the recipe's]",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Board that it is for: pi4, jetson-orin-nano, generic-x86-64 …", show_default=False)
    ] = None,
    runtime: Annotated[
        Written | None, typer.Option(help="What is to run it. [default: as the recipe says, else onnx]", show_default=False)
    ] = None,
    precision: Annotated[Precision, typer.Option(help="auto: int8, unless it is over budget.")] = Precision.auto,
    report: Annotated[
        Path | None,
        typer.Option(help="Folder for quantize.html and quantize.json: what was gained, what it cost.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the report that is in the folder.")] = False,
    as_json: Json = False,
) -> None:
    """Compress a run to int8, prove that its verdicts stay the same, and pack it into a bundle."""
    import msgspec

    from edge.errors import UsageError
    from quantize import Made
    from quantize import quantize as compress
    from quantize import report as reports
    from quantize.target import board
    from trainer import recipe as recipes
    from trainer.progress import progress

    if overwrite and report is None:
        raise UsageError("--overwrite belongs to --report DIR")
    if report is not None:
        reports.refuse(report, out, overwrite)
    made_for = board(target) if target is not None else None
    less = None
    if prune:
        from trainer.checkpoint import load_info

        less = recipes.pruning(prune, load_info(run).recipe.prune)
    made: list[Made] = []
    with progress("quantize") as tell:
        result = compress(
            run,
            out,
            progress=tell,
            prune=less,
            target=made_for,
            precision=precision.value,
            runtime=runtime.value if runtime else None,
            keep=made.append,
        )
        lines = result.lines()
        if report is not None:
            reports.write(report, *reports.examine(result, made[0], tell), overwrite=overwrite)
            lines.append(f"  {'report':18} {report / reports.PAGE}")
    _print(msgspec.to_builtins(result), lines, as_json)


@app.command()
def search(
    recipe: Annotated[
        Path | None, typer.Argument(help="recipe.toml; its table [search] says what to try.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for recipes, figures and picture.", show_default=False)] = Path("search"),
    data: Annotated[
        list[Path] | None, typer.Option(help="Recordings of normal running: files or folders.", show_default=False)
    ] = None,
    trials: Annotated[int, typer.Option(help="Go on until so many recipes were tried.", min=1)] = 30,
    minutes: Annotated[float | None, typer.Option(help="Begin no new one after this.", show_default=False, min=0)] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Shared with others: sqlite:///FILE, postgresql://…, journal:///FILE (network folders). [default: in OUT]",
            show_default=False,
        ),
    ] = None,
    cost: Annotated[Cost, typer.Option(help="What a recipe costs: time for a window, or size of the bundle.")] = Cost.latency,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe.")] = None,
    as_json: Json = False,
) -> None:
    """Try many recipes without labels: which finds most injected faults for what it costs? The same command goes on."""
    import msgspec

    from edge.errors import UsageError
    from quantize import search as searches
    from quantize import space as spaces
    from trainer import recipe as recipes
    from trainer.progress import progress

    plan = recipes.apply_overrides(recipes.load(recipe) if recipe else recipes.Recipe(), set_ or [])
    paths = data or [Path(name) for name in plan.data]
    if not paths:
        raise UsageError("nothing to learn from: say --data FILE-or-DIR, or name `data` in the recipe")
    space = spaces.load_space(recipe, plan) if recipe else spaces.default_space(plan)
    with progress("search") as report:
        found = searches.search(
            plan, space, paths, out, storage=storage, trials=trials, minutes=minutes, cost=cost.value, progress=report
        )
    _print(msgspec.to_builtins(found), found.lines(out), as_json)
    if found.interrupted:
        raise typer.Exit(130)


@app.command()
def commission(
    bundle: BundleFile,
    normal: Annotated[
        list[Path], typer.Option(help="Recordings (or folders) of this very machine, running normally.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Bundle to write (.amiss).", show_default=False)],
    trusted: Annotated[bool, typer.Option("--trusted", help="All of it is normal: leave no strange window out.")] = False,
) -> None:
    """Make a bundle this machine's own: keep the encoder, fit what counts as ordinary to its recordings. Runs on the device."""
    from edge.operating.commission import commission as fit

    _say(fit(bundle, normal, out, trusted=trusted))


@app.command()
def inspect(
    bundle: Annotated[
        str,
        typer.Argument(
            metavar="BUNDLE|DIGEST", help="A file; with --repo also a digest, as events name it.", show_default=False
        ),
    ],
    repo: Annotated[
        Path | None, typer.Option(help="The repository that offers it: who signed it, for whom.", show_default=False)
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Replay the golden windows on this machine.")] = False,
    as_json: Json = False,
) -> None:
    """What is in a bundle, where it comes from, and does this machine compute what the build machine did?

    amiss inspect pump.amiss · amiss inspect 0d6d1c2d --repo models (from the `model` of an event to recipe, data, signatures)
    """
    import hashlib

    import msgspec

    from edge.bundle import MODELS, Bundle, self_tests
    from edge.config import AlarmConfig

    path = Path(bundle)
    signed: dict[str, Any] = {}
    if repo is not None:
        from deploy import publish as publishing

        by_digest = not path.exists() and set(bundle) <= set("0123456789abcdef")
        digest = bundle if by_digest else hashlib.sha256(_bytes(path)).hexdigest()
        there, signed = publishing.provenance(repo, digest)
        path = (there or path) if by_digest else path
    found = Bundle.open(path)
    # As set by default, and what could be asked for.
    budget = AlarmConfig(false_alarms="1/week") if found.head.tail else None
    policies = {"default": found.policy()} | ({"1/week": found.policy(budget)} if budget else {})
    data = {
        "digest": found.digest,
        "bytes": found.size,
        **msgspec.to_builtins(found.manifest),
        "false_alarms": {title: msgspec.to_builtins(policy.allowance) for title, policy in policies.items()},
        **({"repository": signed} if signed else {}),
    }
    m = found.manifest
    models = ", ".join(f"{name} {m.files[name].size} bytes" for name in sorted(MODELS & m.files.keys()))
    lines = [
        f"{m.name} {m.version}, made {m.created}",
        f"  digest       {found.digest}",
        f"  size         {found.size} bytes, {models}, {m.precision} ({m.precision_reason})",
        *([f"  made for     {m.target}"] if m.target else []),
        *([f"  a starter    learns for {m.learn_minutes:g} min before it raises anything"] if m.learn_minutes else []),
        f"  channels     {', '.join(c.name + (f' [{c.unit}]' if c.unit else '') for c in m.channels)}",
        f"  window       {m.window} samples every {m.hop} at {m.rate_hz:g} Hz",
        f"  runtimes     {', '.join(m.runtimes)}; here {found.backend.name}",
        f"  scorer       {m.scorer}, calibrated on {m.calibration_windows} windows, p ≥ {m.calibration_floor:.3g}",
        *(f"  false alarms {title}: {policy.sentence()}" for title, policy in policies.items()),
        *(f"  {name:12} {value}" for name, value in m.lineage.items()),
        *([f"  offered      to {signed['audience']}, as number {signed['number']}"] if signed else []),
        *(
            f"  signed       {role} {by['version']} by {', '.join(by['keys'])}"
            for role, by in (signed["signatures"] if signed else {}).items()
        ),
    ]
    if verify:
        proofs = self_tests(path)
        by_runtime = {p.runtime: {"worst": p.worst, "tolerance": p.tolerance} for p in proofs}
        data["self_test"] = by_runtime[found.backend.name] | {"runtimes": by_runtime}
        lines += [
            f"  self-test    golden scores within {p.worst:.2g} (allowed {p.tolerance:.2g}) with {p.runtime}" for p in proofs
        ]
    _print(data, lines, as_json)


@app.command()
def score(
    bundle: BundleFile,
    file: Annotated[Path, typer.Argument(help="A recording.", show_default=False)],
    out: Annotated[Path, typer.Option(help="CSV to write: one row per row of the recording.", show_default=False)],
    hop: Annotated[int | None, typer.Option(help="Score every so many samples; as in the bundle if not given.", min=1)] = None,
    newest: Annotated[
        bool, typer.Option("--newest", help="Give each row the score known at its time, not that of the window around it.")
    ] = False,
) -> None:
    """Score a recording: time, score, p_value, alarm and the blame of each channel, one row per input row."""
    from edge.operating.score import score_file

    summary = score_file(bundle, file, out, hop=hop, newest=newest)
    _say(summary)


@app.command()
def evaluate(
    bundle: BundleFile,
    data: Annotated[list[Path], typer.Argument(help="Labelled recordings: files or folders.", show_default=False)],
    report: Annotated[
        Path | None,
        typer.Option(
            help="Folder for report.html and report.json: stress tests, calibration, simple methods.", show_default=False
        ),
    ] = None,
    normal: Annotated[
        list[Path] | None,
        typer.Option(
            help="With --report: recordings of normal running, best some it has not learned from.", show_default=False
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            help="With --report: the run it was made from, for its twins, attacks and what faulty recordings would cost.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the report that is in the folder.")] = False,
    as_json: Json = False,
) -> None:
    """Judge a bundle on labelled recordings, through the same pipeline that the device runs."""
    import msgspec

    from trainer.progress import progress

    if report is None:
        from edge.errors import UsageError
        from trainer.evaluate import evaluate as judge

        if normal or run or overwrite:
            raise UsageError("--normal, --run and --overwrite belong to --report DIR")
        with progress("evaluate") as tell:
            result = judge(bundle, data, tell)
        _print(msgspec.to_builtins(result), result.lines(), as_json)
        return
    import tempfile

    from trainer import report as reports

    reports.refuse_existing(report, overwrite)
    with progress("evaluate") as tell, tempfile.TemporaryDirectory(prefix="amiss-evaluate-") as folder:
        twins = None
        if run is not None:
            from quantize.twins import make_twins

            twins = make_twins(bundle, run, normal or [], Path(folder), tell)
        found, drawn = reports.examine(bundle, data, normal or [], twins, tell)
    reports.write(report, found, drawn, overwrite=overwrite)
    _print(msgspec.to_builtins(found), [*found.lines(), f"{report / 'report.html'}"], as_json)


@app.command()
def run(
    config: ConfigFile = DEVICE,
    replay: Annotated[
        list[Path] | None, typer.Option(help="Play recordings as though they came from the sensor.", show_default=False)
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(help="With --replay: times real time, 0 for as fast as possible. [default: 1, with --once 0]", min=0),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Stop at the end of the recording, or after the first score of a live sensor.")
    ] = False,
) -> None:
    """The agent: read the sensors, score, and send alerts over MQTT, until it is stopped."""
    from edge import config as configs
    from edge.agent import Replay, run_until_told

    _log_to_stderr()
    pace = (0.0 if once else 1.0) if speed is None else speed
    run_until_told(lambda: configs.load(config), Replay(tuple(replay), pace or None) if replay else None, once=once)


@app.command()
def ask(
    verb: Annotated[
        str,
        typer.Argument(help="ping, config, maintenance, feedback, commission, snapshot, update, rollback.", show_default=False),
    ],
    fields: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="stream=pump minutes=60 …", show_default=False)
    ] = None,
    config: ConfigFile = DEVICE,
) -> None:
    """Ask the agent that runs on this device for something: the same requests as over MQTT, without a broker.

    amiss ask maintenance minutes=60 · amiss ask commission stream=pump minutes=60 · amiss ask feedback stream=pump
    verdict=false_alarm · amiss ask config 'set={"alarm.p_value": 0.0005}'
    """
    from edge import config as configs
    from edge.errors import UsageError
    from edge.operating.control import ask as put
    from edge.operating.requests import RefusedError

    body: dict[str, Any] = {}
    for pair in fields or []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"{pair}: expected KEY=VALUE, as in minutes=60")
        try:
            body[key] = json.loads(value)
        except ValueError:
            body[key] = value
    answer = put(configs.load(config).service_path(), verb, json.dumps(body).encode())
    if answer.status == "error":
        raise RefusedError(answer.error)
    print(json.dumps(answer.data, indent=2))


@app.command()
def rollback(
    config: ConfigFile = DEVICE,
    reason: Annotated[str, typer.Option(help="For whoever asks later.")] = "asked for",
    as_json: Json = False,
) -> None:
    """Back to the model before this one, and never to this one again. On the device; needs no network and no running agent."""
    from edge import config as configs
    from edge.operating.upgrade import roll_back

    done = roll_back(configs.load(config), reason)
    _print(done, [f"model {done['from']} is taken back: {done['reason']}"], as_json)


@app.command()
def check(config: ConfigFile = DEVICE, as_json: Json = False) -> None:
    """Try what `amiss run` needs to start: configuration, model, state folder, ports and broker."""
    _examine(config, as_json, quick=True)


@app.command()
def doctor(config: ConfigFile = DEVICE, as_json: Json = False) -> None:
    """Look at everything that goes wrong on a device, and name the command that mends it. Disturbs no agent that runs."""
    _examine(config, as_json, quick=False)


def _examine(config: Path, as_json: bool, *, quick: bool) -> None:
    import os
    import shutil

    from edge.operating import finding
    from edge.operating.doctor import examine

    findings = examine(config, quick=quick)
    terminal = sys.stdout.isatty()
    colour = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    width = shutil.get_terminal_size().columns if terminal else 100
    _print(finding.as_data(findings), finding.table(findings, colour=colour, width=width), as_json)
    if code := finding.exit_code(findings):
        raise typer.Exit(code)


@app.command()
def publish(
    repo: RepositoryFolder,
    bundle: Annotated[Path | None, typer.Argument(help="A .amiss file to offer.", show_default=False)] = None,
    keys: KeyFolders = DEFAULT_KEYS,
    group: Annotated[list[str] | None, typer.Option(help="For devices of this group.", show_default=False)] = None,
    device: Annotated[list[str] | None, typer.Option(help="For the device of this name.", show_default=False)] = None,
    note: Annotated[str, typer.Option(help="What whoever gets it should know.")] = "",
    expires_days: Days = None,
    number: Annotated[int, typer.Option(help="Give it at least this number.", min=0)] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Go on offering earlier versions for the same devices.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Offer what is offered already under a new number: devices that left it come back.")
    ] = False,
    hold: Annotated[
        bool,
        typer.Option(
            "--hold", help="Only for devices that `amiss fleet rollout` asks to take it, until it is offered without."
        ),
    ] = False,
    hand_over: Annotated[
        bool, typer.Option("--hand-over", help="Sign with the targets key only; --refresh puts it in force elsewhere.")
    ] = False,
    refresh: Annotated[bool, typer.Option("--refresh", help="Renew signatures that expire; for a timer.")] = False,
    withdraw: Annotated[
        str | None, typer.Option(metavar="NAME-VERSION", help="Offer it no more, and delete it.", show_default=False)
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="What is offered to whom, and what expires when.")] = False,
    mqtt: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Put the repository on a broker too, under amiss-models/NAME.", show_default=False),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="With --mqtt: a file with a table [mqtt], as in device.toml.", show_default=False)
    ] = None,
    broker: Annotated[
        str | None, typer.Option(metavar="HOST[:PORT]", help="With --mqtt: instead of what the file says.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Offer a model to devices: sign it into a repository, a folder that any web server, stick or broker can hold.

    amiss publish pump.amiss --repo models --group pumps · amiss publish --repo models --withdraw pump-2 · --refresh · --list
    """
    from edge import config as configs
    from edge.errors import UsageError

    asked = sum(map(bool, (bundle, refresh, withdraw, list_)))
    if asked > 1 or not (asked or mqtt):
        raise UsageError("say one of: a bundle, --refresh, --withdraw NAME-VERSION, --list; and --mqtt NAME with it or alone")
    if bundle is None and (group or device or note or number or keep or again or hold):
        raise UsageError(
            "--group, --device, --note, --number, --keep, --again and --hold say how a bundle is offered; name the bundle"
        )
    if hand_over and ((bundle is None and withdraw is None) or mqtt):
        raise UsageError("--hand-over goes with a bundle or --withdraw, and without --mqtt")
    if mqtt is None and (config or broker):
        raise UsageError("--config and --broker say where --mqtt NAME puts it")
    settings = configs.load_mqtt(config, broker) if mqtt else None
    if mqtt and not configs.REPOSITORY_NAME.fullmatch(mqtt):
        raise UsageError(f"--mqtt {mqtt}: a name of lower case letters, digits and dashes")
    from deploy import publish as publishing
    from deploy.keyfiles import KeyRing, Passphrases

    if list_:
        found = publishing.listing(repo)
        _print(found, publishing.listing_lines(found), as_json)
        return
    data: dict[str, Any] = {}
    lines: list[str] = []
    if asked:
        ring, days = KeyRing(keys, Passphrases()), _days(expires_days)
        if bundle is not None:
            done = publishing.publish(
                bundle, repo, ring, groups=group or (), devices=device or (), note=note, days=days, number=number, keep=keep,
                again=again, hold=hold, hand_over=hand_over,
            )  # fmt: skip
        elif withdraw is not None:
            done = publishing.withdraw(withdraw, repo, ring, days=days, hand_over=hand_over)
        else:
            done = publishing.refresh(repo, ring, days=days)
        data, lines = done.data, done.lines
    if mqtt and settings is not None:
        import dataclasses

        from deploy.repository import Repository, locked
        from deploy.shelf import shelve

        if not as_json and lines:  # the folder is done, whatever the broker says
            print("\n".join(lines), flush=True)
        with locked(repo):
            shelved = shelve(Repository(repo), mqtt, settings)
        data, lines = data | {"mqtt": dataclasses.asdict(shelved)}, [shelved.line(f"amiss-models/{mqtt} on {settings.host}")]
    _print(data, lines, as_json)


@app.command()
def push(
    group: Annotated[list[str] | None, typer.Option(help="Devices of this group.", show_default=False)] = None,
    device: Annotated[list[str] | None, typer.Option(help="The device of this name.", show_default=False)] = None,
    config: BrokerFile = None,
    broker: Broker = None,
    version: Annotated[
        str | None,
        typer.Option(metavar="NAME-VERSION", help="One that is held: take this. Needs --repo.", show_default=False),
    ] = None,
    repo: Annotated[Path | None, typer.Option(help="Folder of the repository that holds it.", show_default=False)] = None,
    watch: Annotated[
        float, typer.Option(metavar="MINUTES", help="Stay until every device has decided, at most so long.", min=0)
    ] = 0.0,
    as_json: Json = False,
) -> None:
    """Tell devices to look for a new model now, and show what each makes of it. Without --group and --device: all of them.

    The model itself was signed by `amiss publish`; each device tries it on its own data, and decides by itself.
    Exit code 1: one did not answer, or did not keep what it was offered.
    """
    from deploy import push as pushing
    from edge import config as configs
    from edge.errors import UsageError

    if (version is None) != (repo is None):
        raise UsageError("--version NAME-VERSION and --repo DIR go together: the number of a held model is in its repository")
    number = None
    if version is not None and repo is not None:
        from deploy import publish as publishing

        number = publishing.held(repo, version).number

    def tell(row: pushing.Row) -> None:
        if watch and not as_json:
            _say(pushing.line(row))

    rows = pushing.push(
        _mqtt(config, broker), groups=group or (), devices=device or (), token=configs.load_token(config),
        number=number, watch_s=60 * watch, said=tell,
    )  # fmt: skip
    _print(pushing.as_data(rows), pushing.table(rows), as_json)
    if any(row.failed for row in rows):
        raise typer.Exit(1)


@fleet_app.command()
def rollout(
    model: Annotated[
        str, typer.Argument(metavar="NAME-VERSION", help="As `amiss publish --hold` offered it.", show_default=False)
    ],
    repo: RepositoryFolder,
    config: BrokerFile = None,
    broker: Broker = None,
    group: Annotated[list[str] | None, typer.Option(help="Devices of this group.", show_default=False)] = None,
    device: Annotated[list[str] | None, typer.Option(help="The device of this name.", show_default=False)] = None,
    state: FleetState = None,
    stages: Annotated[str, typer.Option(metavar="SHARES", help="Of every group, growing.")] = "5%,25%,100%",
    most_failed: Annotated[
        str, typer.Option(metavar="SHARE", help="Of those asked; with more that do not keep the model, it is taken back.")
    ] = "10%",
    alarm_times: Annotated[
        float, typer.Option(help="So many times the alarms of before are too many; more devices tell smaller ones.", min=1.1)
    ] = 3.0,
    slower: Annotated[float, typer.Option(help="So many times the time for a window is too long.", min=1.1)] = 2.0,
    patience: Annotated[float, typer.Option(metavar="HOURS", help="For a device to decide.", min=0.001)] = 72.0,
    no_revert: Annotated[bool, typer.Option("--no-revert", help="When a gate does not hold, only halt.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with one that was halted, with these gates.")] = False,
    as_json: Json = False,
) -> None:
    """Bring a model to the fleet, stage by stage, and take it back when it is worse. Stays until that is over.

    Each stage waits until its devices have tried and kept the model, and is held against what they did before. Stop it at any
    time: the same command goes on. Exit code 1: it was halted or taken back.
    """
    from deploy import fleet
    from deploy import publish as publishing
    from deploy.plant import Plant
    from deploy.rollout import Plan
    from edge import config as configs

    offer = publishing.held(repo, model)
    plan = Plan(
        model=offer.path.removesuffix(".amiss"), number=offer.number, digest=offer.digest, stages=_shares(stages),
        most_failed=_share("--most-failed", most_failed), times=alarm_times, slower=slower, patience_h=patience,
        revert=not no_revert,
    )  # fmt: skip

    def meant(node: str, of: str) -> bool:
        offered = not (offer.groups or offer.devices) or node in offer.devices or of in offer.groups
        return offered and (not (group or device) or node in (device or ()) or of in (group or ()))

    with (
        _ledger(state) as ledger,
        Plant(_mqtt(config, broker), token=configs.load_token(config), watch=True) as plant,
    ):
        names = [name for name in plant.chosen(group or (), device or ()) if meant(name, plant.devices[name].progress.group)]
        done = _drive(ledger, plant, fleet.begin(ledger, plant, plan, names, resume=resume), meant)
        members = ledger.members(done.id)
    _print(fleet.as_data(done, members), fleet.table(done, members), as_json)
    if done.state != "done":
        raise typer.Exit(1)
    _say(f"devices that come later: amiss publish {done.plan.model}.amiss, without --hold, offers it to all")


@fleet_app.command()
def status(
    model: Model = None,
    state: FleetState = None,
    devices: Annotated[bool, typer.Option("--devices", help="Every device that was asked, not only those in trouble.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew every second until it is over.")] = False,
    as_json: Json = False,
) -> None:
    """How a roll-out stands: its stages, its gates, and the devices that need somebody."""
    import time

    from deploy import fleet

    with _ledger(state, there=True) as ledger:
        before: list[str] = []
        while True:
            found = ledger.find(model)
            members = ledger.members(found.id)
            lines = fleet.table(found, members, every=devices)
            over = not watch or found.state in ("done", "halted", "reverted")
            if as_json and (over or lines != before):
                print(json.dumps(fleet.as_data(found, members), indent=None if watch else 2), flush=True)
            elif not as_json and lines != before:
                # On a terminal in place of what was there; anywhere else one after the other.
                clear = "\x1b[2J\x1b[H" if watch and sys.stdout.isatty() else ""
                print(clear + "\n".join([*lines, ""] if watch and not clear else lines), flush=True)
            if over:
                return
            before = lines
            time.sleep(1.0)


@fleet_app.command()
def halt(
    model: Model = None,
    state: FleetState = None,
    reason: Annotated[str, typer.Option(help="For whoever asks later.")] = "somebody said so",
    as_json: Json = False,
) -> None:
    """Ask no more devices. Those that have the model keep it; `rollout --resume` goes on, `revert` takes it back."""
    from deploy import fleet

    with _ledger(state, there=True) as ledger:
        done = fleet.halt(ledger, ledger.find(model), reason)
        members = ledger.members(done.id)
        _print(fleet.as_data(done, members), fleet.table(done, members), as_json)


@fleet_app.command()
def revert(
    model: Model = None,
    config: BrokerFile = None,
    broker: Broker = None,
    state: FleetState = None,
    reason: Annotated[str, typer.Option(help="For whoever asks later.")] = "somebody said so",
    as_json: Json = False,
) -> None:
    """Take a model back from every device that a roll-out brought it to. They never try it again.

    Exit code 1: a device was not heard, and may run it.
    """
    import time

    from deploy import fleet
    from deploy.plant import Plant
    from edge import config as configs
    from edge.errors import BusyError

    with (
        _ledger(state, there=True) as ledger,
        Plant(_mqtt(config, broker), token=configs.load_token(config), watch=True) as plant,
    ):
        back = fleet.revert(ledger, ledger.find(model), reason)
        waits = False
        while back.state == "reverting":
            try:
                back = _drive(ledger, plant, back)
            except BusyError:  # whoever drives it takes it back; if it has died, that shows before long
                if not waits:
                    _say(f"{back.plan.model}: another process drives the roll-out, and takes it back")
                waits = True
                time.sleep(1.0)
                back = ledger.get(back.id)
        members = ledger.members(back.id)
    _print(fleet.as_data(back, members), fleet.table(back, members), as_json)
    if any(member.place == "absent" for member in members):
        raise typer.Exit(1)


def _drive(ledger: Any, plant: Any, rollout: Any, meant: Any = None) -> Any:
    from deploy import fleet

    return fleet.Controller(ledger, plant, rollout, said=_say, **({"audience": meant} if meant else {})).drive()


def _ledger(place: str | None, *, there: bool = False) -> Any:
    """`there`: it has to be."""
    import os

    from deploy.ledger import Ledger
    from edge.errors import CannotCreateError, NoInputError

    if place is None:
        file = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "amiss" / "fleet.db"
        if not there:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise CannotCreateError(f"{file.parent}: {error.strerror}; --state says another place") from None
        place = str(file)
    if there and "://" not in place and not Path(place).exists():
        raise NoInputError(f"{place}: no such file; `amiss fleet rollout` makes it, and --state says another place")
    return contextlib.closing(Ledger(place))


def _mqtt(config: Path | None, broker: str | None) -> Any:
    from edge import config as configs
    from edge.errors import UsageError

    if config is None and broker is None:
        raise UsageError("--config FILE with a table [mqtt], or --broker HOST: where the devices are heard")
    return configs.load_mqtt(config, broker)


def _share(option: str, text: str) -> float:
    from edge.errors import UsageError

    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UsageError(f"{option} {text}: a share, such as 5% or 0.05")
    return share


def _shares(text: str) -> tuple[float, ...]:
    from edge.errors import UsageError

    shares = [_share("--stages", part.strip()) for part in text.split(",")]
    if shares[-1] != 1.0 or shares[0] == 0.0 or any(a >= b for a, b in itertools.pairwise(shares)):
        raise UsageError(f"--stages {text}: shares that grow, and end with 100%, such as 5%,25%,100%")
    return tuple(shares)


def _days(given: list[str] | None) -> dict[str, float]:
    from deploy.keyfiles import ROLES
    from edge.errors import UsageError

    days = {}
    for pair in given or []:
        role, _, value = pair.partition("=")
        try:
            days[role] = float(value)
        except ValueError:
            days[role] = 0.0
        if role not in ROLES or not 0 < days[role] <= 36500:
            raise UsageError(f"--expires-days {pair}: expected ROLE=DAYS, as in targets=365; roles are {', '.join(ROLES)}")
    return days


@keys_app.command("init")
def keys_init(
    repo: RepositoryFolder,
    keys: Annotated[Path, typer.Option(help="Folder for the new keys.")] = Path("keys"),
    expires_days: Days = None,
    unencrypted_online: Unencrypted = False,
    as_json: Json = False,
) -> None:
    """Make all keys and an empty repository. Passphrases are asked for, or come from AMISS_KEY_PASSPHRASE_FILE."""
    from deploy import keys as ceremony
    from deploy.keyfiles import Passphrases

    done = ceremony.init(repo, keys, Passphrases(), days=_days(expires_days), unencrypted_online=unencrypted_online)
    _print(done.data, done.lines, as_json)


@keys_app.command("list")
def keys_list(repo: RepositoryFolder, keys: KeyFolders = DEFAULT_KEYS, as_json: Json = False) -> None:
    """Which key may sign what, which of them are here, and what expires when."""
    from deploy import keys as ceremony

    rows = ceremony.overview(repo, keys)
    _print(rows, ceremony.overview_lines(rows), as_json)


@keys_app.command("rotate")
def keys_rotate(
    repo: RepositoryFolder,
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Keys to replace, see `amiss keys list`; none: renew the root.", show_default=False),
    ] = None,
    keys: KeyFolders = DEFAULT_KEYS,
    new_keys: Annotated[Path | None, typer.Option(help="Folder for new keys; the first of --keys if not given.")] = None,
    expires_days: Days = None,
    unencrypted_online: Unencrypted = False,
    as_json: Json = False,
) -> None:
    """Other keys in place of some, or the same ones for longer. Needs two of the three root keys, not all in one place."""
    _replace(repo, names or [], keys, new_keys, expires_days, unencrypted_online, as_json, revoked=False)


@keys_app.command("revoke")
def keys_revoke(
    repo: RepositoryFolder,
    names: Annotated[list[str], typer.Argument(help="Keys that somebody else may have.", show_default=False)],
    keys: KeyFolders = DEFAULT_KEYS,
    new_keys: Annotated[Path | None, typer.Option(help="Folder for new keys; the first of --keys if not given.")] = None,
    expires_days: Days = None,
    unencrypted_online: Unencrypted = False,
    as_json: Json = False,
) -> None:
    """Keys that were stolen or lost sign nothing more; new ones take their place. Needs two of the other root keys."""
    _replace(repo, names, keys, new_keys, expires_days, unencrypted_online, as_json, revoked=True)


def _replace(
    repo: Path,
    names: list[str],
    keys: list[Path],
    new_keys: Path | None,
    expires_days: list[str] | None,
    unencrypted_online: bool,
    as_json: bool,
    *,
    revoked: bool,
) -> None:
    from deploy import keys as ceremony
    from deploy.keyfiles import KeyRing, Passphrases

    passphrases = Passphrases()
    done = ceremony.rotate(
        repo,
        KeyRing(keys, passphrases),
        names,
        new_keys or keys[0],
        passphrases,
        revoked=revoked,
        days=_days(expires_days),
        unencrypted_online=unencrypted_online,
    )
    _print(done.data, done.lines, as_json)


@keys_app.command("sign")
def keys_sign(
    draft: Annotated[
        Path | None, typer.Argument(help="A root.draft.json; that of --repo if not given.", show_default=False)
    ] = None,
    repo: Annotated[Path | None, typer.Option(help="Repository to put it in force in.", show_default=False)] = None,
    keys: KeyFolders = DEFAULT_KEYS,
    as_json: Json = False,
) -> None:
    """Add the signature of a root key to a change of keys; with --repo, and once there are enough, put it in force."""
    from deploy import keys as ceremony
    from deploy.keyfiles import KeyRing, Passphrases
    from edge.errors import UsageError

    if draft is None:
        if repo is None:
            raise UsageError("say which draft: amiss keys sign root.draft.json, or --repo DIR for the one in there")
        draft = repo / ceremony.DRAFT
    done = ceremony.sign(draft, KeyRing(keys, Passphrases()), repo)
    _print(done.data, done.lines, as_json)


@config_app.command("schema")
def config_schema() -> None:
    """JSON Schema 2020-12 of device.toml."""
    from edge import config as configs

    print(json.dumps(configs.schema(), indent=2))


@config_app.command("check")
def config_check(config: ConfigFile = DEVICE) -> None:
    """Is device.toml valid? Opens nothing but the file itself."""
    from edge import config as configs

    configs.load(config)
    _say(f"{config}: ok")


@config_app.command("show")
def config_show(
    config: Annotated[Path | None, typer.Option("--config", help="device.toml.", show_default=False)] = None,
    effective: Annotated[bool, typer.Option("--effective", help="With environment and every default worked in.")] = False,
    example: Annotated[bool, typer.Option("--example", help="Instead: the smallest file that works.")] = False,
) -> None:
    """Print device.toml: as it is, or (--effective) as the agent sees it, secrets hidden; JSON in that case."""
    from edge import config as configs
    from edge.errors import UsageError

    if example:
        print(configs.EXAMPLE, end="")
    elif config is None:
        raise UsageError("say --config FILE, or --example for a file to start from")
    elif effective:
        print(json.dumps(configs.redacted(configs.load(config)), indent=2))
    else:
        configs.load(config)
        print(config.read_text("utf-8"), end="")


@device_app.command("new")
def device_new(
    board: Annotated[str, typer.Option(help="raspberry-pi-4, pi5, zero2w …", show_default=False)],
    sensor: Annotated[
        str, typer.Option(help="adxl345 …, or the sensor.toml of one's own (a path with / in it).", show_default=False)
    ],
    node: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="Of the device: lower case letters, digits, dashes. [default: the sensor's, and four digits]",
            show_default=False,
        ),
    ] = None,
    broker: Broker = None,
    config: BrokerFile = None,
    ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TLS, and who signed the broker's certificate.", show_default=False)
    ] = None,
    port: Annotated[
        str | None,
        typer.Option(
            help="usb:VID:PID, a device file, gpio (the pins 8 and 10), or auto: the only adapter that is plugged in. "
            "[default: the sensor's usual one, else auto]",
            show_default=False,
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The model. [default: a starter, which learns its machine on the device]", show_default=False
        ),
    ] = None,
    package: Annotated[
        Path | None, typer.Option(metavar="FILE", help="amiss_…_arm64.deb. [default: the newest in dist/]", show_default=False)
    ] = None,
    no_package: Annotated[bool, typer.Option("--no-package", help="You put the package onto the card yourself.")] = False,
    repository: Annotated[
        str | None, typer.Option(metavar="URL", help="Where new models come from, with --root.", show_default=False)
    ] = None,
    root: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Root of trust: root.json of `amiss keys init`.", show_default=False)
    ] = None,
    wifi: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Network; its passphrase comes from AMISS_WIFI_PASSPHRASE(_FILE) or is asked for.",
            show_default=False,
        ),
    ] = None,
    country: Annotated[
        str | None,
        typer.Option(metavar="XX", help="Of the Wi-Fi, as in DE. [default: that of your language]", show_default=False),
    ] = None,
    hidden: Annotated[bool, typer.Option("--hidden", help="The Wi-Fi network does not tell its name.")] = False,
    user: Annotated[str, typer.Option(help="Who may log in by SSH.")] = "admin",
    ssh_key: Annotated[
        Path | None, typer.Option(metavar="FILE.pub", help="Public key for that. [default: your own]", show_default=False)
    ] = None,
    timezone: Annotated[str | None, typer.Option(help="As in Europe/Berlin.", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write. [default: NAME]", show_default=False)
    ] = None,
    boot: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Instead: the mounted boot partition of a card with Raspberry Pi OS.", show_default=False
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Also where something is set already.")] = False,
    as_json: Json = False,
) -> None:
    """Prepare a card: stock Raspberry Pi OS Lite (64-bit) that starts as a device of yours.

    The broker's password comes from AMISS_MQTT__PASSWORD_FILE, its user from AMISS_MQTT__USERNAME.
    """
    from deploy.flash import card, new
    from edge.errors import UsageError

    if broker is None and config is None:
        raise UsageError("--broker HOST: where the device sends its alerts")
    if out is not None and boot is not None:
        raise UsageError("--out and --boot: a folder or a card, not both")
    prepared = new.prepare(
        new.Wish(
            node=node, board=board, sensor=sensor, broker=broker, mqtt=config, ca=ca, port=port, bundle=bundle, package=package,
            no_package=no_package, repository=repository, root=root, wifi=wifi, country=country, hidden=hidden, user=user,
            ssh_key=ssh_key, timezone=timezone,
        )
    )  # fmt: skip
    place = boot or out or Path(prepared.device.node)
    written = (card.write_card if boot else card.write_folder)(place, prepared.files, force=force)
    _print(new.as_data(prepared, written), new.lines(prepared, place, on_card=boot is not None), as_json)


@device_app.command("imager-json")
def device_imager_json(
    image: Annotated[Path, typer.Argument(help="amiss-…-arm64.img, .img.xz or .img.zst.", show_default=False)],
    url: Annotated[
        str | None, typer.Option(help="Where it is served from; if not given, it is taken from this disk.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; stdout if not given.", show_default=False)] = None,
) -> None:
    """Describe our own image to Raspberry Pi Imager (App Options → Content Repository)."""
    from deploy.flash import imager
    from edge.files import at_once

    text = json.dumps(imager.describe(image, url=url), indent=2)
    if out is None:
        print(text)
        return
    with at_once(out) as draft:
        draft.write_text(text + "\n", "utf-8")
    _say(f"{out}: in Raspberry Pi Imager, App Options → Content Repository → Use custom file")


@datasets_app.command("list")
def datasets_list(
    out: Annotated[Path, typer.Option(help="Folder that `fetch` puts them in.")] = Path("data"), as_json: Json = False
) -> None:
    """What can be fetched, under which license, and what is there already."""
    from trainer import datasets

    keys = ("name", "what", "channels", "rate", "rows", "download_mb", "license", "source")
    rows = []
    for name, dataset in datasets.DATASETS.items():
        there = datasets.fetched(name, out)
        state = {"fetched": there is not None, "proven": there is not None and there.proven}
        rows.append({key: getattr(dataset, key) for key in keys} | state)
    lines = [
        f"{d['name']:6} {d['channels']:2} channels  {d['rate']:13} {d['rows']:10,} rows  about {d['download_mb']:3.0f} MB  "
        f"{'fetched' if d['proven'] else 'fetched from a mirror' if d['fetched'] else 'not fetched'}\n"
        f"       {d['what']}\n       license: {d['license']}"
        for d in rows
    ]
    _print(rows, lines, as_json)


@datasets_app.command("fetch")
def datasets_fetch(
    name: Annotated[str, typer.Argument(help="See `amiss datasets list`.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to put it in.")] = Path("data"),
    accept_license: Annotated[bool, typer.Option("--accept-license", help="You have read the license and accept it.")] = False,
) -> None:
    """Fetch a data set from its source, prove every byte, and turn it into recordings. Continues where it stopped."""
    from trainer import datasets
    from trainer.progress import progress

    _say(datasets.terms(name))
    if not accept_license and sys.stdin.isatty():  # before the bar, which would swallow the question
        print("Accept this license? [y/N] ", end="", file=sys.stderr, flush=True)
        accept_license = sys.stdin.readline().strip().lower() in ("y", "yes")
    with progress("fetch") as report:
        found = datasets.fetch(name, out, accept_license=accept_license, say=_say, report=report)
    _say(f"{out / name}: {len(found.files)} recordings, {found.rows} rows")


def main() -> None:
    """Entry point: errors that a user can act on are one line and an exit code; anything else is a bug, with its traceback."""
    try:
        app()
    except AmissError as error:
        print(f"amiss: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(74)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        absent = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        if extra := EXTRAS.get(absent):
            print(f"amiss: this needs {absent}, which a device does not have: pip install 'amiss[{extra}]'", file=sys.stderr)
            sys.exit(69)
        import traceback

        traceback.print_exc()
        print("amiss: this is a bug; please report the lines above", file=sys.stderr)
        sys.exit(70)


def _print(data: Any, lines: list[str], as_json: bool) -> None:
    print(json.dumps(data, indent=2) if as_json else "\n".join(lines))


def _bytes(file: Path) -> bytes:
    from edge.errors import NoInputError

    try:
        return file.read_bytes()
    except OSError as error:
        raise NoInputError(f"{file}: {error.strerror}") from None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _log_to_stderr() -> None:
    # Under systemd the journal adds the time itself; SD cards wear, so there is no log file.
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")


if __name__ == "__main__":
    main()
