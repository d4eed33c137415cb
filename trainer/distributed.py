"""One training in several processes: `torchrun --nproc-per-node 2 -m trainer.distributed recipe.toml --out RUN`.

It is the loop of `trainer.train`; here is only what starts it, and what makes several processes compute what one would.

Every process draws the same batch, hides the same samples and knows all of the loss; what is divided is the encoder, which is
where the time goes:

    batch (B, C, N) ──▶ mine (B / P, C, N) ──▶ encoder ──▶ all gathered (B, D, T) ──▶ heads and loss, the same everywhere

So tasks that compare windows with each other see the whole batch, and no task has to know of any of this. Two things reach
beyond a process. Normalisation layers in the encoder take their statistics from all of the batch (`SharedBatchNorm`; torch's
own SyncBatchNorm is for CUDA only). And a process knows the encoder's gradient from its own windows alone, so they are added.
Losses and weights are those of one process with the same recipe but for the order in which floats are added.

All processes read the recordings, so all need to see them; only the first writes.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edge.errors import AmissError, ConfigError, UsageError

if TYPE_CHECKING:
    from trainer.encoders import Encoder
    from trainer.model import Detector
    from trainer.train import RunInfo


def processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return processes() == 1 or dist.get_rank() == 0


def shared(detector: "Detector") -> "Encoder":
    """Its encoder, which of each batch computes the share of this process and gathers the rest; itself in one process."""
    if processes() == 1:
        return detector.encoder
    for tensor in detector.state_dict().values():
        dist.broadcast(tensor, 0)
    _share_statistics(cast(nn.Module, detector.encoder))
    return Shared(detector.encoder)


def add_gradients(detector: "Detector") -> None:
    """Of the encoder the sum over the processes; of the heads, where all have computed the same, that same."""
    if processes() == 1:
        return
    gradients = [p.grad for p in cast(nn.Module, detector.encoder).parameters() if p.grad is not None]
    heads = cast(nn.Module, detector.pretext).parameters()
    gradients += [p.grad.div_(processes()) for p in heads if p.grad is not None]
    # One message, since each costs more than what it carries.
    together = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(together)
    for gradient, total in zip(gradients, torch.split(together, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))


def agreed(value: float) -> float:
    """What the first process says: one that stopped while the others go on would leave them waiting for ever."""
    if processes() == 1:
        return value
    said = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(said, 0)
    return float(said)


def require_agreement(detector: nn.Module) -> None:
    """Raises `ConfigError` unless all processes have the same weights to the bit."""
    if processes() == 1:
        return
    digest = hashlib.sha256(b"".join(value.cpu().numpy().tobytes() for value in detector.state_dict().values())).digest()
    mine = torch.tensor(list(digest), dtype=torch.int64)
    theirs = mine.clone()
    dist.broadcast(theirs, 0)
    differ = torch.tensor([int(not torch.equal(mine, theirs))])
    dist.all_reduce(differ)
    if int(differ):
        raise ConfigError("the processes have learned different weights; let all of them run on machines of one kind")


class Shared(nn.Module):
    """(B, C, N) → (B, D, T), of which this process computes B / P windows."""

    def __init__(self, encoder: "Encoder") -> None:
        super().__init__()
        self.encoder, self.dimension, self.stride = encoder, encoder.dimension, encoder.stride
        self.causal = encoder.causal

    def forward(self, x: Tensor) -> Tensor:
        count, rank = processes(), dist.get_rank()
        each = -(-len(x) // count)
        sizes = [max(0, min(each, len(x) - i * each)) for i in range(count)]
        mine = self.encoder(x[rank * each : rank * each + sizes[rank]])
        # In float32, since not every engine that sends knows bfloat16.
        return cast(Tensor, _Gather.apply(mine.float(), sizes, rank))  # type: ignore[no-untyped-call]


class _Gather(torch.autograd.Function):
    """Parts of all processes → the whole. Back: all know the gradient of the whole, so each takes its part; nothing is sent."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, sizes: list[int], rank: int) -> Tensor:
        ctx.part = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        padded = mine.new_zeros(max(sizes), *mine.shape[1:])
        padded[: len(mine)] = mine
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.part], None, None


class _Sum(torch.autograd.Function):
    """Sum over the processes. Back: what follows in each of them depends on it, so their gradients are added as well."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        total = mine.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


class SharedBatchNorm(_BatchNorm):
    """Batch normalisation (Ioffe & Szegedy, 2015) over the windows of all processes; outside of training the plain one."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input.float()
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = x.new_tensor([x.numel() // x.shape[1]])
        sums = _add(torch.cat([x.sum(axes), count]))  # (C + 1,)
        mean, n = sums[:-1] / sums[-1], sums[-1].detach()
        centred = x - mean.view(shape)
        variance = _add(centred.square().sum(axes)) / n  # (C,)
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1).clamp(min=1), self.momentum)
        y = centred * (variance + self.eps).rsqrt().view(shape)
        return (y * self.weight.view(shape) + self.bias.view(shape)).to(input.dtype)


def _add(mine: Tensor) -> Tensor:
    return cast(Tensor, _Sum.apply(mine))  # type: ignore[no-untyped-call]


def _share_statistics(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            twin = SharedBatchNorm(child.num_features, child.eps, child.momentum)
            # The very same tensors under the same names: state and optimizer notice nothing.
            twin._parameters, twin._buffers = child._parameters, child._buffers
            setattr(module, name, twin)
        else:
            _share_statistics(child)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m trainer.distributed", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path, nargs="?", help="recipe.toml; without one the defaults serve")
    parser.add_argument("--data", type=Path, action="append", default=[], help="recordings of normal running")
    parser.add_argument("--out", type=Path, default=Path("run"), help="folder for the run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the recipe")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that is in the folder")
    parser.add_argument("--ray", type=int, metavar="N", help="start N workers with Ray Train instead of torchrun")
    options = parser.parse_args(arguments)
    try:
        info = on_ray(options) if options.ray is not None else on_torchrun(options)
    except AmissError as error:
        print(f"amiss: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("ray", "pandas", "pyarrow"):
            raise
        print(f"amiss: this needs {error.name}: pip install 'amiss[ray]'", file=sys.stderr)
        sys.exit(69)
    if info is not None:
        print("\n".join(info.lines()))


def on_torchrun(options: argparse.Namespace) -> "RunInfo | None":
    """What the run says; `None` in all processes but the first."""
    if "RANK" not in os.environ:
        raise UsageError("nothing started several processes; use `torchrun --nproc-per-node 2 -m trainer.distributed …`")
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        info = work(options)
        dist.barrier()  # or gloo's threads in one process may still be talking to another one's, and abort it as it ends
        return info
    finally:
        dist.destroy_process_group()


def on_ray(options: argparse.Namespace) -> "RunInfo":
    """The same on N workers of Ray Train, on this machine or, with RAY_ADDRESS set, on that cluster."""
    # Read when ray is imported. It would report to its makers; and its second train API wants what is not installed with it.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
    import tempfile

    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.base_trainer import TrainingFailedError
    from ray.train.torch import TorchTrainer

    from trainer.checkpoint import load_info

    # Workers have another working directory.
    options.data, options.out = [path.resolve() for path in options.data], options.out.resolve()
    options.recipe = options.recipe and options.recipe.resolve()
    root = str(Path(__file__).parents[1])
    ray.init(
        # One more than there are workers, for what watches over them; workers take turns where there are fewer processors.
        num_cpus=None if "RAY_ADDRESS" in os.environ else options.ray + 1,
        include_dashboard=False,
        runtime_env={"env_vars": {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": root}},
    )
    with tempfile.TemporaryDirectory(prefix="amiss-ray-") as folder:
        try:
            TorchTrainer(
                lambda _: _on_worker(options),
                train_loop_config={},
                scaling_config=ScalingConfig(num_workers=options.ray, use_gpu=torch.cuda.is_available()),
                run_config=RunConfig(storage_path=folder),
            ).fit()
        except TrainingFailedError as failure:
            cause: BaseException | None = failure
            while cause is not None and not isinstance(cause, AmissError):
                cause = cause.__cause__
            if cause is None:
                raise
            # Ray wraps it in a class of its own, which it still is, and adds where it came from.
            raise getattr(cause, "cause", cause) from None
        finally:
            ray.shutdown()
    return load_info(options.out)


def _on_worker(options: argparse.Namespace) -> None:
    work(options)


def work(options: argparse.Namespace) -> "RunInfo | None":
    """In every process, when they know of each other."""
    from trainer import recipe as recipes
    from trainer.progress import progress
    from trainer.train import train

    plan = recipes.load(options.recipe) if options.recipe else recipes.Recipe()
    plan = recipes.apply_overrides(plan, options.set)
    paths = options.data or [Path(name) for name in plan.data]
    if not paths:
        raise UsageError("nothing to learn from: say --data FILE-or-DIR, or name `data` in the recipe")
    if not first():
        train(plan, paths, options.out, overwrite=options.overwrite)
        return None
    with progress("train") as report:
        return train(plan, paths, options.out, report, overwrite=options.overwrite)


if __name__ == "__main__":
    main()
