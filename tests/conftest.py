import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from mosquitto import Mosquitto

# Before torch is loaded: with more threads than idle processors, small models take ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says more about what else the machine does than about the code.
hypothesis.settings.register_profile("amiss", deadline=None)
hypothesis.settings.load_profile("amiss")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long goes first: begun last, it would be waited for by everybody."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    """A broker that takes everybody. Fails, and does not skip, where none is installed: without it nothing is shown."""
    with Mosquitto(tmp_path / "broker") as broker:
        yield broker
