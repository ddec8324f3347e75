"""Folding: layers of K replicas as one layer, where stock vmap is slower than need be.

- A convolution: vmap keeps replicas apart, which on a CPU makes narrow ones slow. Here the
  activations (K, B, C, H, W) are kept as (B, K C, H, W) in `channels_last`, where torch's grouped
  convolution is some five times faster, and a pooling is one on more channels.
- A linear layer: the gradients of vmap's lie transposed, and an update with those takes four times
  as long.
- A cross entropy: vmap takes it apart into some thirty operations.
- Such layers one after another: vmap looks at each operation, which takes as long as a small one.
  A ReLU before a pooling comes after it, which gives the same, on a quarter of the activations.

Only torch's very own modules are replaced, and only on tensors that are stacked once. Everything
else goes through stock vmap, and so do these where torch hides what a stacked tensor is made of,
which it does not promise to show.
"""

from __future__ import annotations

from lrfinder.engines.folding.chains import folded
from lrfinder.engines.folding.entropies import folded_loss

__all__ = ["folded", "folded_loss"]
