"""Written by ``python -m sparsegan.benchmark.tune_kernels``: block sizes that were the fastest, by ``tuned.key``."""

#: Where the figures come from.
SOURCE = "not measured yet"
#: (op, channels per block, bytes an element, positions, taps) -> (positions, taps, warps, stages, together)
TABLE: dict[tuple[str, int, int, int, int], tuple[int, int, int, int, int]] = {}
