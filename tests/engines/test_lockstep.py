"""Tests of lockstep: who is in step, who is kept apart, what is shared, and when it is refused."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import lrfinder
from lrfinder.engines import LockstepEngine, Plan
from lrfinder.engines.checking import differs
from lrfinder.engines.choosing import Chooser
from lrfinder.engines.fitting import Unfit, stacked
from lrfinder.engines.stacking import Stack
from lrfinder.stepping import Replica
from tests.engines.models import batches, frozen_trunk, loss_fn, make, make_engine, plans, sgd
from tests.helpers import Quadratic, quadratic_loss


@contextmanager
def shared_steps() -> Iterator[list[int]]:
    """How many replicas took each shared step."""
    counts: list[int] = []
    real = Stack.gradients

    def gradients(self: Stack, *args: Any, **options: Any) -> Any:
        result = real(self, *args, **options)
        counts.append(len(self.replicas))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stack, "gradients", gradients)
        yield counts


def engine_of(name: str, kind: str = "lockstep", **options: Any) -> LockstepEngine:
    engine = make_engine(kind, make(name), batches(name), **options)
    assert isinstance(engine, LockstepEngine)
    return engine


# -- who is in step -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["mlp", "Net"])
def test_a_replica_that_diverges_does_not_touch_the_others(name: str, dtype: torch.dtype) -> None:
    """Bit for bit, while it is in and after it has left."""

    def losses(lr: float) -> tuple[list[Any], Plan]:
        data = [(x.to(dtype), y) for x, y in batches(name)]
        engine = make_engine("lockstep", make(name).to(dtype), data)
        some = plans(4, num_steps=20, orders=1)
        some[1] = Plan.constant({"body": lr, "head": lr}, 20)
        engine.advance(some, 20)
        return [p.trace.losses for p in some if p is not some[1]], some[1]

    calm, _ = losses(0.01)
    beside, wild = losses(1e30)
    assert wild.trace.status == "diverged"
    assert len(wild.trace) < 10
    np.testing.assert_array_equal(beside, calm)


def test_a_row_that_becomes_free_goes_to_the_next_at_once() -> None:
    engine = engine_of("mlp")
    engine._capacity = 3
    lengths = [5, 9, 2, 7, 4, 6]
    some = [Plan.constant({"body": 0.01, "head": 0.02}, length) for length in lengths]
    some.append(Plan.constant({"body": 1e200, "head": 1e200}, 50))
    with shared_steps() as counts:
        engine.advance(some, 50)
    assert [len(plan.trace) for plan in some[:6]] == lengths
    assert some[6].trace.status == "diverged"
    # The first is checked, and counts. All three rows are in use as long as anyone waits: after nine
    # steps three end at once, and the last two begin.
    assert counts[:9] == [3] * 9
    assert max(counts[9:]) == 2


def test_a_plan_that_is_stopped_makes_room_and_gives_its_reason() -> None:
    engine = engine_of("mlp")
    engine._capacity = 2
    some = plans(4, num_steps=9)
    engine.advance(
        some, 9, should_stop=lambda t: "enough" if len(t) >= 4 and t is some[0].trace else None
    )
    assert [len(plan.trace) for plan in some] == [4, 9, 9, 9]
    assert (some[0].trace.status, some[0].trace.message) == ("stopped", "enough")


def test_states_are_of_the_plan_wherever_it_was_in_step() -> None:
    """Rows are handed on and moved; what a plan has become stays its own."""
    whole, cut = plans(5, num_steps=16), plans(5, num_steps=16)
    engine_of("mlp with dropout").advance(whole, 16)
    engine = engine_of("mlp with dropout")
    engine._capacity = 2
    for some in ([0, 3, 1], [4, 2], [1, 0, 2, 3, 4]):
        engine.advance([cut[number] for number in some], 8)
    for left, right in zip(whole, cut, strict=True):
        np.testing.assert_allclose(right.trace.losses, left.trace.losses, rtol=1e-12)


def test_epochs_that_end_with_a_smaller_batch() -> None:
    data = batches("mlp")
    data[-1] = (data[-1][0][:3], data[-1][1][:3])
    losses = []
    for kind in ("stepping", "lockstep"):
        engine = make_engine(kind, make("mlp"), data, make_optimizer=torch.optim.AdamW)
        some = plans(3, num_steps=14)
        some[0] = Plan.constant({"body": 0.05, "head": 0.05}, 5)
        if isinstance(engine, LockstepEngine):
            engine._capacity = 2  # so that epochs do not end together
        engine.advance(some, 14)
        losses.append(np.concatenate([plan.trace.losses for plan in some]))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-12)


def test_where_memory_does_not_suffice_half_of_them_wait() -> None:
    """A third of all the memory that there is for each: no two fit, and nothing is written to it."""
    with open("/proc/meminfo") as file:
        kib = {line.split(":")[0]: int(line.split()[1]) for line in file}
    share = 1024 * (kib["MemTotal"] + kib["SwapTotal"]) // 8 * 3

    def greedy(model: nn.Module, batch: Any) -> Tensor:
        loss = loss_fn(model, batch)
        return loss + 0 * loss.detach().new_empty(share // 8)[0].nan_to_num(0.0, 0.0, 0.0)

    try:
        torch.empty(4 * share // 8, dtype=torch.float64)
    except RuntimeError:
        pass
    else:
        pytest.skip("this system gives more memory than it has")
    engine = engine_of("mlp", loss=greedy)
    some = plans(4, num_steps=5)
    engine.advance(some, 5)
    plain = plans(4, num_steps=5)
    make_engine("stepping", make("mlp"), batches("mlp")).advance(plain, 5)
    assert engine._capacity in (1, 2)
    for left, right in zip(plain, some, strict=True):
        assert right.trace.status == "completed"
        np.testing.assert_allclose(right.trace.losses, left.trace.losses, rtol=1e-12)


# -- what is shared -------------------------------------------------------------------------------


def stack_of(model: nn.Module, count: int, **options: Any) -> Stack:
    def replica() -> Replica:
        made = copy.deepcopy(model)
        trained = [p for p in made.parameters() if p.requires_grad]
        return Replica(made, sgd(trained), loss_fn)

    stack = Stack(replica(), count, **options)
    for _ in range(count):
        stack.add(replica())
    return stack


def test_a_frozen_trunk_is_not_stacked_and_runs_once() -> None:
    """Whether its layers are taken by themselves, since somebody looks at them, or in one go."""
    model = frozen_trunk().double()
    seen: dict[str, bool] = {}
    for name, module in model.named_children():
        module.register_forward_hook(
            lambda module, inputs, output, name=name: seen.update(
                {name: torch._C._functorch.is_batchedtensor(output)}
            )
        )
    batch = batches("cnn with BatchNorm")[0]
    losses = []
    for one in (model, frozen_trunk().double()):
        one.load_state_dict(model.state_dict())
        stack = stack_of(one, 4)
        assert [p.shape for p in stack.parameters] == [(4, 5, 6), (4, 5)]
        assert stack.buffers == []
        with CountOperations() as counter:
            losses.append(stack.gradients([[batch]] * 4, streams_of(stack))[0])
        assert counter.counts["aten.convolution.default"] == 2
        assert counter.inputs["aten.convolution.default"] == {len(batch[0])}
    assert list(seen.values()) == [False] * 9 + [True]
    assert losses[0].shape == (4,)
    torch.testing.assert_close(losses[0], losses[1])


def streams_of(stack: Stack) -> Any:
    from lrfinder.engines.randomness import Stream

    return [Stream(torch.device("cpu")) for _ in stack.replicas]


def test_rows_lie_in_memory_as_the_models_do() -> None:
    model = make("cnn with BatchNorm").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    stack = stack_of(model, 2)
    weight = stack.replicas[1].model[0].weight  # type: ignore[index, union-attr]
    assert weight.data_ptr() == stack.parameters[0][1].data_ptr()
    assert weight.stride() == model[0].weight.stride() != weight.contiguous().stride()
    stack.remove(stack.replicas[1])
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_a_batch_that_all_see_is_not_copied() -> None:
    one, other = {"x": torch.ones(2), "n": 3}, {"x": torch.ones(2), "n": 3}
    batch, dims = stacked([one, one])
    assert (batch, dims) == (one, None)
    batch, dims = stacked([one, other])
    assert batch["x"] is one["x"]
    assert dims == {"x": None, "n": None}
    batch, dims = stacked([one, {"x": torch.zeros(2), "n": 3}])
    assert batch["x"].shape == (2, 2)
    assert dims == {"x": 0, "n": None}
    with pytest.raises(Unfit, match="different values of type int"):
        stacked([one, {"x": torch.ones(2), "n": 4}])


class CountOperations(TorchDispatchMode):
    """How often each operation is dispatched, which is what a GPU would be given to do."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.inputs: dict[str, set[int]] = {}  # lengths of what comes first

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        if args and isinstance(args[0], torch.Tensor) and args[0].dim():
            self.inputs.setdefault(str(func), set()).add(len(args[0]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["mlp", "Net", "cnn with BatchNorm", "transformer"])
def test_operations_do_not_grow_with_the_number_of_replicas(name: str) -> None:
    counted = []
    for count in (2, 8):
        stack = stack_of(make(name), count, changing=[n for n, _ in make(name).named_buffers()])
        batch = batches(name)[0]
        streams = streams_of(stack)
        stack.gradients([[batch]] * count, streams)  # after which they know that they are alike
        with CountOperations() as counter:
            stack.gradients([[batch]] * count, streams)
        counted.append(counter.counts.total())
    assert counted[0] == counted[1]


def test_replicas_of_another_kind_are_refused() -> None:
    stack = stack_of(make("mlp"), 2)
    stack.remove(stack.replicas[0])
    for other in (make("Net"), frozen_trunk().double(), make("mlp").float()):
        trained = [p for p in other.parameters() if p.requires_grad]
        with pytest.raises(Unfit, match="must have the same"):
            stack.add(Replica(other, sgd(trained), loss_fn))
    model = make("mlp")
    with pytest.raises(Unfit, match="same optimizer"):
        stack.add(Replica(model, torch.optim.Adam(model.parameters()), loss_fn))
    trunk = stack_of(frozen_trunk().double(), 1)
    trunk.capacity = 2
    other = frozen_trunk().double()
    with pytest.raises(Unfit, match="not trained, but differs"):
        trunk.add(Replica(other, sgd(list(other[-1].parameters())), loss_fn))  # type: ignore[index]


# -- when it is refused ---------------------------------------------------------------------------


class Reading(nn.Module):
    """Reads a value of its activations."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = self.linear(inputs)
        return scores / scores.abs().max().item()


class Branching(Reading):
    """Takes a way that its activations decide."""

    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = self.linear(inputs)
        return scores if scores.mean() > 0 else 2 * scores


class Remembering(Reading):
    """Keeps activations for its next call, where no buffer is."""

    memory: Any = 0.0

    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = self.linear(inputs) + self.memory
        self.memory = 0.5 * scores.mean().detach()
        return scores


class Gambling(Reading):
    """Draws from Python's random state."""

    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = self.linear(inputs)
        return scores if random.random() < 0.5 else 2 * scores


class Recurrent(nn.Module):
    """An LSTM, for which vmap has no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 4, batch_first=True)
        self.head = nn.Linear(4, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs, _ = self.lstm(inputs.unsqueeze(1))
        scores: Tensor = self.head(outputs[:, -1])
        return scores


def no_tracking() -> nn.Module:
    """A BatchNorm whose running statistics are a plain mean, for which it reads a counter."""
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, momentum=None), nn.Linear(4, 5))


REFUSED: dict[str, tuple[Any, str]] = {
    "item": (Reading, "torch.func cannot run it"),
    "branch": (Branching, "torch.func cannot run it"),
    "memory": (Remembering, "keeps a tensor of the step in 'memory'"),
    "python's random": (Gambling, "Python's or NumPy's random state"),
    "LSTM": (Recurrent, "atching rule"),
    "counter": (no_tracking, "torch.func cannot run it"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_go_in_lockstep_is_stepped_and_the_reason_told(kind: str) -> None:
    make_model, reason = REFUSED[kind]

    def engine(which: str) -> Any:
        torch.manual_seed(0)
        return make_engine(which, make_model().double(), batches("mlp"))

    plain, auto = plans(3, num_steps=20), plans(3, num_steps=20)
    engine("stepping").advance(plain, 20)
    tried = engine("auto")
    tried.advance(auto, 20)
    assert tried.chooser.name == "stepping"
    assert reason in tried.chooser.reason
    assert "\n" not in tried.chooser.reason
    for left, right in zip(plain, auto, strict=True):
        np.testing.assert_allclose(right.trace.losses, left.trace.losses, rtol=1e-14)
    with pytest.raises(ValueError, match="must fit into lockstep"):
        engine("lockstep").advance(plans(3, num_steps=20), 20)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_loss_that_knows_the_model_itself_is_found(share: float) -> None:
    """As a decay that is written for the model's own parameters: the copies would train without it."""
    losses = []
    for kind in ("stepping", "auto"):
        model = make("mlp")

        def loss(called: nn.Module, batch: Any, model: nn.Module = model) -> Tensor:
            decay = torch.stack([p.square().sum() for p in model.parameters()]).sum()
            return share * loss_fn(called, batch) + 0.01 * decay

        engine = make_engine(kind, model, batches("mlp"), loss=loss)
        some = plans(3, num_steps=20)
        engine.advance(some, 20)
        losses.append([plan.trace.losses for plan in some])
    assert isinstance(engine, LockstepEngine)
    assert engine.chooser.name == "stepping"
    assert "the model itself" in engine.chooser.reason
    np.testing.assert_array_equal(*losses)


@pytest.mark.parametrize(
    ("make_optimizer", "reason"),
    [
        (lambda groups: torch.optim.LBFGS(groups[0]["params"] + groups[1]["params"]), "closure"),
        (lambda groups: hooked(torch.optim.SGD(groups, lr=0.1)), "hooks"),
        (lambda groups: with_stranger(torch.optim.SGD(groups, lr=0.1)), "no parameter of the"),
    ],
)
def test_optimizers_that_are_stepped_alone(make_optimizer: Any, reason: str) -> None:
    engine = make_engine("auto", make("mlp"), batches("mlp"), make_optimizer=make_optimizer)
    assert isinstance(engine, LockstepEngine)
    some = [Plan.constant(dict.fromkeys(engine.group_names, lr), 15) for lr in (0.01, 0.02, 0.03)]
    engine.advance(some, 15)
    assert [plan.trace.status for plan in some] == ["completed"] * 3
    assert reason in engine.chooser.reason


def hooked(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    optimizer.register_step_pre_hook(lambda *args: None)
    return optimizer


def with_stranger(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    stranger = torch.ones(1, requires_grad=True)
    optimizer.param_groups[0]["params"].append(stranger)
    return optimizer


def test_nothing_to_do_and_bad_learning_rates() -> None:
    engine = engine_of("mlp")
    engine.advance([], 5)
    assert engine.steps == 0
    some = plans(2, num_steps=5)
    some[1].lrs["head"][3] = np.nan
    with pytest.raises(ValueError, match="0 <= lr < inf"):
        engine.advance(some, 5)
    with pytest.raises(ValueError, match="in this order"):
        engine.advance([Plan.constant({"head": 0.1, "body": 0.1}, 2)], 1)


def test_an_error_of_the_loss_itself_is_raised_as_it_is() -> None:
    def broken(model: nn.Module, batch: Any) -> Tensor:
        raise KeyError("no such column")

    for kind in ("auto", "stepping"):
        engine = make_engine(kind, make("mlp"), batches("mlp"), loss=broken)
        with pytest.raises(KeyError, match="no such column"):
            engine.advance(plans(3, num_steps=20), 20)


# -- choosing -------------------------------------------------------------------------------------


def test_what_was_measured_holds_for_more_where_faster_and_for_fewer_where_slower() -> None:
    chooser = Chooser("auto", torch.device("cpu"))
    chooser.checked = True
    assert chooser.worth(4, 100)
    chooser._samples = {(4, "stepping"): [1.0] * 3, (4, "lockstep"): [2.0] * 3}
    chooser._judge(4)
    assert [chooser.way(count) for count in (2, 4)] == ["alone", "alone"]
    assert chooser.way(16) == "stepping"  # a sample, for there may be more to gain
    chooser._samples |= {(16, "stepping"): [4.0, 9.0], (16, "lockstep"): [8.0, 3.0]}
    chooser._judge(16)
    assert [chooser.way(count) for count in (4, 16, 64)] == ["alone", "lockstep", "lockstep"]
    assert chooser.worth(64, 1)
    assert not chooser.worth(4, 1000)
    assert "16 replicas took 3e+03 ms together and 4e+03 ms" in chooser.reason


def wide() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3), nn.Flatten(), nn.Linear(512, 5)
    )


def test_what_the_check_timed_may_be_enough() -> None:
    """It knows what the gradients take one after the other, to which their steps only add."""
    for together, chosen in ((2.0, "lockstep"), (3.5, "stepping")):
        chooser = Chooser("auto", torch.device("cpu"))
        chooser.checked = True
        chooser.look(4, [3.0, 1.0], 9.0)
        assert chooser.way(4) == "lockstep"
        chooser._samples = {(4, "lockstep"): [together]}
        chooser._judge(4)
        assert chooser.way(4) == chosen
        assert (chosen == "lockstep") == ("2e+03 ms together and 4e+03 ms" in chooser.reason)


@pytest.mark.parametrize("busy", [0.0, 1e9])
def test_wide_convolutions_are_looked_at_before_a_probe(
    busy: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrfinder.engines.choosing.BUSY", busy)
    torch.manual_seed(0)
    model, results = wide().double(), []
    for kind in ("stepping", "auto"):
        engine = make_engine(kind, copy.deepcopy(model), batches("cnn with BatchNorm"))
        some = plans(3, num_steps=20, lr=0.01)
        with shared_steps() as counts:
            engine.advance(some, 20)
        assert engine.steps == 60
        results.append([plan.trace.losses for plan in some])
    assert isinstance(engine, LockstepEngine)
    assert ("in 1 wide convolutions" in engine.chooser.reason) == (busy == 0.0) == (not counts)
    np.testing.assert_allclose(*results, rtol=1e-12)


def test_wide_convolutions_of_a_loss_that_knows_the_model_itself() -> None:
    model = wide().double()

    def loss(called: nn.Module, batch: Any) -> Tensor:
        return loss_fn(called, batch) + 0.01 * model[0].weight.square().sum()  # type: ignore[index,operator]

    engine = make_engine("auto", model, batches("cnn with BatchNorm"), loss=loss)
    assert isinstance(engine, LockstepEngine)
    engine.advance(plans(3, num_steps=20, lr=0.01), 20)
    assert "the model itself" in engine.chooser.reason
    assert engine.steps == 60


def test_a_probe_does_not_pay_for_a_few_steps() -> None:
    engine = make_engine("auto", make("mlp"), batches("mlp"))
    assert isinstance(engine, LockstepEngine)
    engine.advance(plans(4, num_steps=5), 5)
    assert engine.chooser.name == "stepping"
    assert "5 steps are too few" in engine.chooser.reason


def test_what_differs_is_said() -> None:
    one, nan = torch.tensor(1.0), torch.tensor(float("nan"))
    own = (one, [torch.ones(2), None])
    assert differs(own, (one, [torch.ones(2), None]), 1e-3) is None
    assert differs((nan, []), (nan, []), 1e-3) is None
    assert "loss was 1 alone and nan" in str(differs(own, (nan, [torch.ones(2), None]), 1e-3))
    assert "off by 1" in str(differs(own, (one, [torch.zeros(2), None]), 1e-3))
    assert "in one of the two" in str(differs(own, (one, [torch.ones(2), torch.ones(2)]), 1e-3))


# -- on a GPU -------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_no_step_waits_for_the_device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    data = [(x.cuda().float(), y.cuda()) for x, y in batches("mlp")]
    engine = make_engine("lockstep", make("mlp").cuda().float(), data)
    engine.advance(plans(4, num_steps=4), 4)  # check, and all that is made once
    some = plans(4, num_steps=20)
    real = Stack.gradients

    def watched(self: Stack, *args: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return real(self, *args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stack, "gradients", watched)
        engine.advance(some, 20)
    assert [plan.trace.status for plan in some] == ["completed"] * 4


def test_known_answers() -> None:
    """SGD on a quadratic: x_t = (1 - lr h)^t, for each replica's own LRs."""
    engine = make_engine(
        "lockstep",
        Quadratic(a=1.0, b=4.0).double(),
        [None],
        make_optimizer=lambda groups: torch.optim.SGD(groups, lr=1.0),
        loss=quadratic_loss,
    )
    some = [Plan.constant({"body": a, "head": b}, 8) for a, b in ((0.1, 0.2), (0.5, 0.01))]
    engine.advance(some, 8)
    steps = np.arange(8)
    for plan, (a, b) in zip(some, ((0.1, 0.2), (0.5, 0.01)), strict=True):
        expected = 1.5 * (1 - a) ** (2 * steps) + 6.0 * (1 - 4 * b) ** (2 * steps)
        np.testing.assert_allclose(plan.trace.losses, expected, rtol=1e-12)


def test_train_seeds_is_train_task_on_each_seed() -> None:
    task = lrfinder.load_task("digits")
    ended: list[int] = []
    results = {
        engine: lrfinder.train_seeds(
            task, [3, 4, 5], num_epochs=2, device="cpu", engine=engine,
            on_training=lambda seed, trace: ended.append(seed),
        )
        for engine in ("stepping", "lockstep", "auto")
    }  # fmt: skip
    assert sorted(ended) == [3, 3, 3, 4, 4, 4, 5, 5, 5]
    alone = [lrfinder.train_task(task, seed=s, num_epochs=2, device="cpu") for s in (3, 4, 5)]
    for engine, traces in results.items():
        for trace, other in zip(traces, alone, strict=True):
            np.testing.assert_allclose(trace.losses, other.losses, rtol=1e-4, err_msg=engine)
            assert trace.metrics.keys() == other.metrics.keys()
    with pytest.raises(ValueError, match="all different"):
        lrfinder.train_seeds(task, [1, 1])
