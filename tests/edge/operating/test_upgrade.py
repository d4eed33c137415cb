"""Which model an agent starts with, and what a trial and a probation are told of real streams. Real store, real bundles."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import bad_models
import pytest
from bad_models import BAD, packed

from edge.errors import BundleError, NoInputError
from edge.operating.upgrade import open_serving
from edge.scoring import backends
from edge.updating.store import Model, Models


@pytest.fixture
def models(tmp_path: Path) -> Iterator[Models]:
    factory = packed(tmp_path / "factory.amiss", *bad_models.good(0))
    found = Models(tmp_path / "models", factory, free_bytes=lambda folder: 1 << 40)
    yield found
    found.close()


def put(models: Models, number: int, made: tuple[bad_models.Manifest, bad_models.Members] | None = None) -> str:
    """On trial from now on."""
    path = packed(models.folder.parent / f"{number}.amiss", *(made or bad_models.good(number)))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    models.put(path, digest)
    models.stage(Model(digest, number))
    models.switch()
    return digest


def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "installed", lambda runtime: False)


def test_a_model_that_does_not_open_is_bad_and_the_one_before_runs(models: Models) -> None:
    good = put(models, 1)
    models.commit()
    bad = put(models, 2, BAD["wrong golden outputs"].build())
    assert open_serving(models).digest == good
    assert list(models.bad) == [bad]


def test_where_no_model_opens_none_is_to_blame(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    first = put(models, 1)
    models.commit()
    second = put(models, 2)
    with monkeypatch.context() as patch:
        missing(patch)
        for _ in range(5):
            with pytest.raises(BundleError, match="pip install onnxruntime"):
                open_serving(models)
        models.factory.rename(models.factory.with_suffix(".away"))
        with pytest.raises(NoInputError):
            open_serving(models)
    assert models.bad == {}
    assert open_serving(models).digest == second
    assert (models.active and models.active.digest, models.tries) == (first, 1)
