"""sparsegan: compress a trained GAN's generator and run and train it on its compressed weights."""

import torch  # noqa: F401  (before the native module, which uses torch's library)

from sparsegan import ops, plan  # noqa: F401
