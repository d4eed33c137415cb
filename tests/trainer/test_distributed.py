"""Several processes learn what one learns; real processes, over gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mosquitto import free_port

from edge.sensing.recordings import write_recording
from edge.sensing.simulate import simulate
from trainer import recipe as recipes
from trainer.checkpoint import load_detector, load_info
from trainer.distributed import SharedBatchNorm
from trainer.train import train

RECIPE = """
[encoder]
width = 16
embedding = 8
[training]
steps = 20
batch = 15
patience = 50
look_every = 5
trim = 0.1
[pretext.weights]
contrast = 0.1
forecast = 0.1
"""
"""A batch that two cannot share alike, and tasks that compare the windows of all of it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("distributed")
    write_recording(path / "normal.csv", simulate(30, seed=1, rate_hz=50))
    (path / "recipe.toml").write_text(RECIPE)
    return path


def start(*arguments: str | Path, by: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, *by, "-m", "trainer.distributed", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def torchrun(processes: int) -> tuple[str, ...]:
    return ("-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(free_port()))


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    train(recipes.load(folder / "recipe.toml"), [folder / "normal.csv"], folder / "alone")
    return folder / "alone"


def close(a: Path, b: Path) -> None:
    ours, theirs = load_info(a), load_info(b)
    np.testing.assert_allclose(theirs.losses, ours.losses, rtol=2e-4)
    assert theirs.calibration_loss == pytest.approx(ours.calibration_loss, rel=1e-3)
    weights = [load_detector(run)[0].state_dict() for run in (a, b)]
    assert list(weights[0]) == list(weights[1])
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-2, atol=1e-3, msg=name)


def test_two_processes_learn_what_one_learns(folder: Path, alone: Path) -> None:
    """That all end with equal weights is checked by the program itself; see below."""
    done = start(folder / "recipe.toml", "--data", folder / "normal.csv", "--out", folder / "two", by=torchrun(2))
    assert done.returncode == 0, done.stderr
    assert "computed on cpu in float32 by 2 processes" in done.stdout
    assert done.stdout.count("windows of 32 samples") == 1  # one of them speaks
    close(alone, folder / "two")
    assert not (folder / "two.part").exists()


@pytest.mark.slow
def test_ray_starts_the_same(folder: Path, alone: Path) -> None:
    pytest.importorskip("ray", reason="NOT TESTED with Ray, an extra of 260 MB: pip install -e '.[ray]'")
    done = start(folder / "recipe.toml", "--data", folder / "normal.csv", "--out", folder / "ray", "--ray", "2")
    assert done.returncode == 0, done.stderr
    assert "by 2 processes" in done.stdout
    close(alone, folder / "ray")


def test_started_alone_it_says_how_to_start_it(folder: Path) -> None:
    done = start(folder / "recipe.toml", "--out", folder / "none")
    assert done.returncode == 2
    assert "torchrun --nproc-per-node 2 -m trainer.distributed" in done.stderr
    assert done.stderr.count("\n") == 1


WORKER = """
import json, sys
import torch
import torch.distributed as dist
from edge.errors import ConfigError
from trainer import distributed
from trainer.model import Detector
from trainer.recipe import Recipe
from trainer.testing import rhythm

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(rank)  # other weights in each; sharing makes them the same
detector = Detector(3, Recipe())
encoder = distributed.shared(detector)
distributed.require_agreement(detector)
x = rhythm(7)
detector.pretext.loss(encoder, x, torch.Generator().manual_seed(0)).backward()
distributed.add_gradients(detector)
said = [float(p.grad.double().square().sum()) for p in detector.parameters()]
if rank == 1:
    next(detector.parameters()).data[0] += 1e-7
try:
    distributed.require_agreement(detector)
except ConfigError:
    said.append("noticed")
with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
    json.dump(said, file)
dist.barrier()
dist.destroy_process_group()
"""


def test_gradients_are_those_of_the_whole_batch_and_other_weights_are_noticed(tmp_path: Path) -> None:
    from trainer.model import Detector
    from trainer.testing import rhythm

    (tmp_path / "worker.py").write_text(WORKER)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, *torchrun(3), str(tmp_path / "worker.py"), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert told[0] == told[1] == told[2]
    assert told[0].pop() == "noticed"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = Detector(3, recipes.Recipe())
    detector.pretext.loss(detector.encoder, rhythm(7), torch.Generator().manual_seed(0)).backward()
    wanted = [float(p.grad.double().square().sum()) for p in detector.parameters() if p.grad is not None]
    np.testing.assert_allclose(told[0], wanted, rtol=1e-3)


def test_normalisation_in_one_process_is_that_of_torch() -> None:
    """Its arithmetic, without others to share with."""
    import torch.distributed as dist

    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        ours, theirs = SharedBatchNorm(5), torch.nn.BatchNorm2d(5)
        x = torch.randn(6, 5, 1, 8, generator=torch.Generator().manual_seed(0)) * 3 + 10
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        for layer, value in ((ours, a), (theirs, b)):
            (layer(value) ** 3).sum().backward()
        torch.testing.assert_close(ours(x), theirs(x))
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3)
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value)
        theirs.load_state_dict(ours.state_dict())
        assert torch.equal(ours.eval()(x), theirs.eval()(x))
    finally:
        dist.destroy_process_group()
