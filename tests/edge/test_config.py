import json
import os
import tomllib
from pathlib import Path

import jsonschema
import msgspec
import pytest

from edge import config as configs
from edge.errors import ConfigError, NoInputError

SMALLEST = configs.EXAMPLE


def load(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> configs.DeviceConfig:
    path = tmp_path / "device.toml"
    path.write_text(text, "utf-8")
    return configs.load(path, environ=environ or {})


def test_the_smallest_file_has_at_most_ten_lines_and_works(tmp_path: Path) -> None:
    assert len(SMALLEST.splitlines()) <= 10
    config = load(tmp_path, SMALLEST)
    assert config.bundle == str(tmp_path / "pump.amiss"), "relative to the file, not to where the agent was started"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('nod = "x"\n' + SMALLEST, r"unknown key `nod`; did you mean `node`\?"),
        (SMALLEST + "[alarm]\npvalue = 0.1\n", r"unknown key `alarm.pvalue`; did you mean `p_value`\?"),
        (SMALLEST.replace("port =", "prot ="), r"unknown key `streams.pump.prot`; did you mean `port`\?"),
        (SMALLEST.replace('"pump-7"', '"Pump 7"'), "node: expected `str` matching"),
        (SMALLEST + "[alarm]\np_value = 1.5\n", "alarm.p_value: expected `float` < 1"),
        (SMALLEST.replace('bundle = "pump.amiss"\n', ""), "missing required field `bundle`"),
        ("node = ", "not valid TOML"),
        (
            SMALLEST.replace('"localhost"', '"${BROKER:?say where the broker is}"'),
            "BROKER} is not set: say where the broker is",
        ),
    ],
)
def test_a_mistake_is_one_line_with_file_key_and_cure(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load(tmp_path, text)
    assert str(tmp_path / "device.toml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_environment_goes_before_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2\n")
    environ = {
        "AMISS_MQTT__HOST": "elsewhere",
        "AMISS_MQTT__PORT": "1884",
        "AMISS_MQTT__PASSWORD_FILE": str(tmp_path / "secret"),
        "AMISS_STREAMS__PUMP__BAUD": "9600",
        "AMISS_ALARM__P_VALUE": "0.01",
        "AMISS_DATASETS": "not a key of the configuration",
    }
    config = load(tmp_path, SMALLEST, environ)
    assert (config.mqtt.host, config.mqtt.port, config.mqtt.password) == ("elsewhere", 1884, "hunter2")
    assert config.streams["pump"].baud == 9600
    assert config.alarm.p_value == 0.01


def test_a_mistake_in_the_environment_is_a_line_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mqtt\.port: expected `int"):
        load(tmp_path, SMALLEST, {"AMISS_MQTT__PORT": "many"})
    with pytest.raises(ConfigError, match=r"AMISS_MQTT__PASSWORD_FILE=.*cannot be read"):
        load(tmp_path, SMALLEST, {"AMISS_MQTT__PASSWORD_FILE": str(tmp_path / "none")})


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match="--example"):
        configs.load(tmp_path / "device.toml")


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    config = load(tmp_path, SMALLEST, {"AMISS_MQTT__PASSWORD": "hunter2"})
    assert "hunter2" not in json.dumps(configs.redacted(config))
    assert "hunter2" in json.dumps(msgspec.to_builtins(config)), "the control"


def test_the_schema_is_valid_and_accepts_and_refuses_as_the_program_does(tmp_path: Path) -> None:
    import tomllib

    schema = configs.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid(tomllib.loads(SMALLEST))
    assert not validator.is_valid(tomllib.loads('nod = "x"\n' + SMALLEST))
    assert not validator.is_valid(tomllib.loads(SMALLEST.replace('"pump-7"', '"Pump 7"')))


def test_state_goes_where_systemd_says_then_where_xdg_says(tmp_path: Path) -> None:
    config = load(tmp_path, SMALLEST)
    assert config.state_path({"STATE_DIRECTORY": "/var/lib/amiss"}) == Path("/var/lib/amiss")
    assert config.state_path({"XDG_STATE_HOME": "/x"}) == Path("/x/amiss")
    assert load(tmp_path, 'state_dir = "/y"\n' + SMALLEST).state_path({"STATE_DIRECTORY": "/z"}) == Path("/y")


@pytest.mark.skipif(os.geteuid() != 0, reason="root has a home beside the service's folder")
def test_root_by_hand_means_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configs.parse(tomllib.loads(configs.EXAMPLE))
    monkeypatch.setattr(configs, "SERVICE", tmp_path / "none")
    assert config.service_path({"HOME": "/root"}) == config.state_path({"HOME": "/root"}), "no service was ever here"
    monkeypatch.setattr(configs, "SERVICE", tmp_path)
    assert config.service_path({}) == tmp_path
    assert config.service_path({"STATE_DIRECTORY": "/srv/amiss"}) == Path("/srv/amiss")
    own = msgspec.structs.replace(config, state_dir="/srv/own")
    assert own.service_path({}) == Path("/srv/own")
    os.seteuid(65534)
    try:
        assert config.service_path({"XDG_STATE_HOME": "/home/me"}) == Path("/home/me/amiss")
    finally:
        os.seteuid(0)
