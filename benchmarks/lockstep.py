"""Claim: many replicas in one step are faster than one after the other, give the same, and `auto` never loses.

Each ratio is of wall time, whole: data, optimizer, traces, checks and probes included. The arms
take turns within one run, on one CPU thread and on as many as there are cores; the best of each side
counts, and stepping runs in the memory format that is best for it. Some five minutes, or single
parts, which are printed and not saved:

    python -m benchmarks.lockstep
    python -m benchmarks.lockstep net sweeps
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import lrfinder
from benchmarks.results_file import interleave, paired_ratio, write_result
from lrfinder.engines import LockstepEngine, Plan, SteppingEngine
from lrfinder.engines.randomness import Stream
from lrfinder.engines.stacking import Stack
from lrfinder.engines.updates import make_update
from lrfinder.engines.waves import copied
from lrfinder.shipped import Net
from lrfinder.snapshots import Snapshot
from lrfinder.stepping import Replica

BATCH = 64
cross_entropy = lrfinder.supervised(nn.CrossEntropyLoss())
Batches = list[tuple[Tensor, Tensor]]
THREADS = sorted({1, os.cpu_count() or 1})


def mlp() -> nn.Module:
    """The digits' MLP."""
    sizes = (64, 128, 128, 10)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def head_only() -> nn.Module:
    """`Net`, of which the last layer is trained."""
    model = Net().requires_grad_(False)
    model.classifier[-1].requires_grad_(True)  # type: ignore[index]
    return model


def cnn() -> nn.Module:
    """A CNN with BatchNorm."""
    layers: list[nn.Module] = []
    for a, b in ((3, 16), (16, 32)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 8 * 8, 10))


def norms() -> nn.Module:
    """GroupNorm and LayerNorm."""
    first = [nn.Conv2d(3, 16, 3, stride=2), nn.GroupNorm(4, 16), nn.GELU(), nn.Flatten()]
    return nn.Sequential(*first, nn.LayerNorm(3600), nn.Linear(3600, 10))


class Encoder(nn.Module):
    """A Transformer encoder over tokens; the embedding is the head's weight too if it is `tied`."""

    def __init__(self, layers: int, *, tied: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = (
            nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
            if layers
            else nn.Linear(32, 32)
        )
        self.head = nn.Linear(32, 32, bias=not tied)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores of the classes."""
        scores: Tensor = self.head(self.encoder(self.embed(tokens)).mean(1))
        return scores


def resnet18() -> nn.Module:
    """The one of torchvision."""
    from torchvision.models import resnet18 as make

    return make(num_classes=10)  # type: ignore[no-any-return]


def images(count: int = BATCH) -> Tensor:
    """Random images of CIFAR-10's shape."""
    return torch.randn(count, 3, 32, 32)


def tokens() -> Tensor:
    """Random tokens."""
    return torch.randint(32, (16, 16))


# name -> model, inputs of a batch, replicas, steps
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], int, int]] = {
    "MLP": (mlp, lambda: torch.randn(BATCH, 64), 8, 150),
    "Net": (Net, images, 8, 40),
    "CNN with BatchNorm": (cnn, lambda: images(8), 4, 120),
    "GroupNorm, LayerNorm": (norms, lambda: images(8), 4, 200),
    "Transformer": (lambda: Encoder(2, tied=False), tokens, 8, 60),
    "tied embeddings": (lambda: Encoder(0, tied=True), tokens, 8, 150),
    "frozen trunk": (head_only, images, 8, 60),
    "resnet18": (resnet18, lambda: images(4), 2, 60),
}


def data(make_inputs: Callable[[], Tensor], count: int = 8) -> Batches:
    """Some batches."""
    torch.manual_seed(1)
    made = [make_inputs() for _ in range(count)]
    return [(inputs, torch.randint(10, (len(inputs),))) for inputs in made]


def run(
    engine: str, make: Callable[[], nn.Module], batches: Batches, *, replicas: int, steps: int,
    channels_last: bool = False, dtype: torch.dtype = torch.float32,
) -> tuple[float, list[Plan], Any]:  # fmt: skip
    """Seconds of some plans of one batch order, what came of them, and the engine."""
    torch.manual_seed(0)
    model = make().to(dtype)
    batches = [(x.to(dtype) if x.is_floating_point() else x, y) for x, y in batches]
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        batches = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in batches]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01, momentum=0.9)
    replica = Replica(model, optimizer, cross_entropy)
    start = Snapshot(model, optimizer)
    made: Any
    if engine == "stepping":
        made = SteppingEngine(replica, start, batches)
    else:
        made = LockstepEngine(replica, start, batches, engine=engine)
    # So low that no network learns its batches by heart: a loss of 1e-9 is mostly rounding.
    lrs = np.geomspace(1e-4, 1e-3, replicas)
    plans = [Plan.constant({"group_0": lr}, steps) for lr in lrs]
    began = time.perf_counter()
    made.advance(plans, steps)
    return time.perf_counter() - began, plans, made


def gap(make: Callable[[], nn.Module], batches: Batches, replicas: int, steps: int) -> float:
    """Largest relative difference of a loss between the engines, in float64."""
    losses = [
        np.array([plan.trace.losses for plan in run(
            engine, make, batches, replicas=replicas, steps=steps, dtype=torch.float64)[1]])
        for engine in ("stepping", "lockstep")
    ]  # fmt: skip
    return float(np.max(np.abs(losses[1] / losses[0] - 1)))


def on_threads(threads: int, arm: Callable[[], float]) -> Callable[[], float]:
    """The arm on so many CPU threads."""

    def run() -> float:
        torch.set_num_threads(threads)
        return arm()

    return run


def compared(
    arms: Mapping[str, Callable[[], float]], name: str, *, rounds: int, warmup: int = 1
) -> tuple[dict[str, Any], float]:
    """How much faster one arm is than the others, each at the number of threads that is best for it.

    Returns:
        Of a row: the best of the others, the threads of both, and the ratio of their seconds; and
        the median seconds of the arm.
    """
    labels = {f"{key}, {count} threads": (key, count) for key in arms for count in THREADS}
    seconds = interleave(
        {label: on_threads(count, arms[key]) for label, (key, count) in labels.items()},
        rounds=rounds,
        warmup=warmup,
    )

    def best(*, own: bool) -> str:
        mine = [label for label, (key, _) in labels.items() if (key == name) == own]
        return min(mine, key=lambda label: float(np.median(seconds[label])))

    first, second = best(own=False), best(own=True)
    (base, base_threads), (_, threads) = labels[first], labels[second]
    torch.set_num_threads(threads)  # for what is measured next of this row
    row = {"against": base, "against_threads": base_threads, "threads": threads}
    return row | paired_ratio(seconds, first, second), float(np.median(seconds[second]))


def speed(name: str, make: Callable[[], nn.Module], make_inputs: Callable[[], Tensor], *,
          replicas: int, steps: int, rounds: int, bar: float, engine: str = "lockstep") -> dict[str, Any]:  # fmt: skip
    """One row: stepping / lockstep."""
    batches = data(make_inputs)
    options: dict[str, Any] = {"replicas": replicas, "steps": steps}
    arms = {
        "stepping": lambda: run("stepping", make, batches, **options)[0],
        engine: lambda: run(engine, make, batches, **options)[0],
    }
    if (
        batches[0][0].dim() == 4 and engine == "lockstep"
    ):  # auto steps in the format that it is given
        arms["stepping, channels_last"] = lambda: run(
            "stepping", make, batches, channels_last=True, **options
        )[0]
    row: dict[str, Any] = {"what": name, "replicas": replicas, "steps": steps, "bar": bar}
    found, seconds = compared(arms, engine, rounds=rounds, warmup=int(make is not resnet18))
    row |= found
    row["ms_per_replica_step"] = 1e3 * seconds / replicas / steps
    if engine == "auto":
        row["reason"] = run("auto", make, batches, **options)[2].chooser.reason
    row["largest_gap"] = gap(make, batches, min(replicas, 4), 2 if make is resnet18 else 10)
    return row


def study(rounds: int) -> dict[str, Any]:
    """64 trials on the digits with pruning, one after the other and together."""
    task = lrfinder.load_task("digits")
    started = task.start(0, device="cpu")
    result = lrfinder.range_test(
        started.model, started.optimizer, task.loss_fn, started.train_loader, effort="quick"
    )
    steps: dict[str, int] = {}

    def searched(engine: str) -> float:
        began = time.perf_counter()
        made = lrfinder.search(
            task, 64, warm_start=result, engine=engine, device="cpu", at_once=16,
            pruner="SuccessiveHalvingPruner",
        )  # fmt: skip
        steps[engine] = sum(trial.user_attrs.get("steps", 0) for trial in made.trials)
        return time.perf_counter() - began

    arms = {engine: (lambda engine=engine: searched(engine)) for engine in ("stepping", "auto")}
    row: dict[str, Any] = {"what": "study of 64 trials on the digits, 16 at once", "bar": 2.5}
    row |= compared(arms, "auto", rounds=rounds, warmup=0)[0]
    return row | {"steps_stepping": steps["stepping"], "steps_auto": steps["auto"]}


def sweeps(rounds: int) -> dict[str, Any]:
    """Ramps of 2 groups over 3 batch orders, against one plain sweep."""
    from lrfinder.sweeping import ramp_groups, ramp_lrs

    task = lrfinder.load_task("digits")
    lrs = ramp_lrs(1e-5, 0.5, 100)

    def ramps(engine: str, groups: list[str], replicas: int) -> float:
        started = task.start(0, device="cpu")
        replica = Replica(started.model, started.optimizer, task.loss_fn)
        start = Snapshot(started.model, started.optimizer)
        made = LockstepEngine(replica, start, started.train_loader, engine=engine)
        held = {g: {name: 1e-3 for name in replica.group_names if name != g} for g in groups}
        began = time.perf_counter()
        ramp_groups(made, held, lrs, replicas=replicas)
        return time.perf_counter() - began

    arms = {
        "one": lambda: ramps("stepping", ["head"], 1),
        "six": lambda: ramps("auto", ["body", "head"], 3),
    }
    row = {"what": "ramps of 2 groups x 3 batch orders / one plain ramp, digits", "bar": 3.0}
    found, _ = compared(arms, "six", rounds=rounds)
    low, high = 1 / found["quartile_3"], 1 / found["quartile_1"]
    return row | found | {"ratio": 1 / found["ratio"], "quartile_1": low, "quartile_3": high}


class Count(TorchDispatchMode):
    """Operations that are dispatched: on a GPU, about as many launches."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count it."""
        self.total += 1
        return func(*args, **(kwargs or {}))


def operations(replicas: int) -> dict[str, Any]:
    """Operations of one step of `Net`: gradients, and with the update."""
    torch.manual_seed(0)
    model = Net()
    start = Replica(
        model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), cross_entropy
    )
    stack = Stack(start, replicas)
    update = make_update(stack, start)
    for _ in range(replicas):
        member = copied(start)
        stack.add(member)
        update.add(member)
    (batch,) = data(images, 1)
    streams = [Stream(torch.device("cpu")) for _ in range(replicas)]
    for _ in range(2):  # the second is like all that follow
        with Count() as counted:
            _, gradients = stack.gradients([[batch]] * replicas, streams)
            update.step(gradients)
    return {
        "what": "operations of a step of Net",
        "replicas": replicas,
        "operations": counted.total,
    }


def main() -> None:
    """Measure, print and write `results/lockstep.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help="what to measure; all by default, which is saved")
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    rounds = options.rounds
    timed = functools.partial(speed, rounds=rounds)
    parts: dict[str, list[Callable[[], dict[str, Any]]]] = {
        "operations": [functools.partial(operations, replicas) for replicas in (1, 8, 32)],
        "mlp": [functools.partial(timed, "MLP 64-128-128-10", *MODELS["MLP"][:2], replicas=32, steps=100, bar=2.5)],
        "net": [functools.partial(timed, "Net on 32 x 32 images", Net, images, replicas=8, steps=20, bar=1.5)],
        "trunk": [functools.partial(timed, "head of Net, frozen trunk", head_only, images,
                                    replicas=8, steps=40, bar=4.0)],
        "sweeps": [functools.partial(sweeps, rounds)],
        "study": [functools.partial(study, rounds)],
        "auto": [
            functools.partial(speed, f"auto: {name}", make, inputs, replicas=replicas, steps=steps,
                              rounds=2 if name == "resnet18" else rounds, bar=0.97, engine="auto")
            for name, (make, inputs, replicas, steps) in MODELS.items()
        ],
    }  # fmt: skip
    chosen = options.parts or list(parts)
    unknown = [name for name in chosen if name not in parts]
    if unknown:
        parser.error(f"a part must be one of {', '.join(parts)}, but got {', '.join(unknown)}")
    rows = [measure() for name in parts if name in chosen for measure in parts[name]]
    for row in rows:
        if "ratio" in row:
            spread = f"[{row['quartile_1']:.2f}, {row['quartile_3']:.2f}]"
            print(f"{row['what']:60s} x{row['ratio']:.2f} {spread}, bar {row['bar']:g}", end="")
            print(f", threads {row['against_threads']} / {row['threads']}", end="")
            print(f", gap {row['largest_gap']:.1e}" if "largest_gap" in row else "", end="")
            print(f"  {row['reason']}" if "reason" in row else "")
        else:
            print(f"{row['what']:60s} {row['operations']} with {row['replicas']} replicas")
    if not options.parts:
        write_result("lockstep", rows, rounds=rounds)


if __name__ == "__main__":
    main()
