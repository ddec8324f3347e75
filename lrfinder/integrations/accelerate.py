"""Accelerate: a range test of what `accelerator.prepare` returned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import SeedableRandomSampler
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

import lrfinder

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def range_test(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_fn: Callable[[nn.Module, Any], Tensor],
    loader: Any,
    *,
    clip_norm: float | None = None,
    **settings: Any,
) -> lrfinder.RangeTest:
    """A range test of a loop that Accelerate runs, at its precision and accumulation.

    Args:
        accelerator: Of one process.
        model: This, the optimizer and the loader as `accelerator.prepare` returned them, or as they
            were before. They are left bit for bit as they are.
        optimizer: Its groups are tested.
        loss_fn: `loss_fn(model, batch)` -> scalar tensor; no `accelerator.backward`.
        loader: Of the training batches.
        clip_norm: What the loop gives to `accelerator.clip_grad_norm_`; None for no clipping.
        **settings: The others of `lrfinder.range_test`.

    Returns:
        As `lrfinder.range_test`. `result.suggestion.apply(optimizer)` sets the LRs.

    Raises:
        ValueError: If there are several processes; and as `lrfinder.range_test`.
    """
    check_single(accelerator)
    return lrfinder.range_test(
        accelerator.unwrap_model(model),
        getattr(optimizer, "optimizer", optimizer),
        loss_fn,
        plain_loader(loader),
        options=step_options(
            accelerator, accumulation=accelerator.gradient_accumulation_steps, clip_norm=clip_norm
        ),
        **settings,
    )


def check_single(accelerator: Accelerator) -> None:
    """Raise a ValueError where a training is spread over several processes or devices."""
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    if accelerator.num_processes != 1 or kind in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
        raise ValueError(
            "A range test must run in one process on one device, but the accelerator has "
            f"{accelerator.num_processes} process(es), {kind}. Run it once without `accelerate "
            "launch`, and train with the LRs that it suggests."
        )


def step_options(
    accelerator: Accelerator, *, accumulation: int, clip_norm: float | None
) -> lrfinder.StepOptions:
    """How one optimizer step is taken, as the accelerator would."""
    return lrfinder.StepOptions(
        accumulation=accumulation,
        clip_norm=clip_norm,
        autocast=DTYPES.get(accelerator.mixed_precision),
        scaler=accelerator.scaler,
    )


def plain_loader(loader: Any) -> Any:
    """The loader without what Accelerate adds: devices, and an order that counts its own epochs.

    A range test draws each batch order from random states that it seeds, again and again;
    Accelerate's sampler has a seed and a count of its own, and would give other batches each time.
    """
    plain = getattr(loader, "base_dataloader", loader)
    sampler = getattr(getattr(plain, "batch_sampler", None), "sampler", None)
    if not isinstance(sampler, SeedableRandomSampler):
        return plain
    return DataLoader(
        plain.dataset,
        batch_size=plain.batch_sampler.batch_size,
        drop_last=plain.batch_sampler.drop_last,
        sampler=RandomSampler(
            sampler.data_source, replacement=sampler.replacement, num_samples=len(sampler)
        ),
        collate_fn=plain.collate_fn,
        num_workers=plain.num_workers,
        worker_init_fn=plain.worker_init_fn,
        pin_memory=plain.pin_memory,
    )
