"""`[update]` in device.toml."""

from pathlib import Path

import pytest

from edge import config
from edge.errors import ConfigError


def loaded(place: Path, lines: str, environ: dict[str, str] | None = None) -> config.UpdateConfig:
    (place / "device.toml").write_text(f"{config.EXAMPLE}\n[update]\n{lines}\n")
    found = config.load(place / "device.toml", environ=environ or {}).update
    assert found is not None
    return found


@pytest.mark.parametrize(
    "repository",
    ["https://models.example.org/pumps", "http://10.0.0.1:8000", "/media/usb/models", "file:///srv/models", "mqtt:pumps"],
)
def test_where_models_may_come_from(tmp_path: Path, repository: str) -> None:
    assert loaded(tmp_path, f'repository = "{repository}"').repository == repository


@pytest.mark.parametrize("repository", ["", "ftp://models", "mqtt:", "mqtt:a/b", "mqtt:+", "mqtt:Pumps"])
def test_where_they_may_not(tmp_path: Path, repository: str) -> None:
    with pytest.raises(ConfigError, match=r"update"):
        loaded(tmp_path, f'repository = "{repository}"')


def test_a_root_lies_beside_the_file_or_where_it_says(tmp_path: Path) -> None:
    assert loaded(tmp_path, 'repository = "/m"').root == "/etc/amiss/root.json"
    assert loaded(tmp_path, 'repository = "/m"\nroot = "root.json"').root == str(tmp_path / "root.json")
    assert loaded(tmp_path, "", {"AMISS_UPDATE__REPOSITORY": "/m", "AMISS_UPDATE__DEADLINE_S": "60"}).deadline_s == 60
