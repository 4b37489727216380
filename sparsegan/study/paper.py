"""The Fréchet inception distances of the paper (arXiv 2007.01491), for comparison with this study's figures.

Absolute values depend on data, features and sample counts. Only the changes against each study's own dense generator
compare.
"""

from __future__ import annotations

#: Table 2: (task, view) of this study -> (the paper's task, its distance by sparsity).
SPARSITIES: dict[tuple[str, str], tuple[str, dict[float, float]]] = {
    ("dcgan-mnist", "samples"): (
        "DCGAN, MNIST",
        {0.0: 50.391, 0.25: 50.128, 0.5: 50.634, 0.75: 50.805, 0.9: 51.356},
    ),
    ("pix2pix", "output"): (
        "pix2pix, satellite to map",
        {0.0: 17.636, 0.25: 17.897, 0.5: 17.990, 0.75: 20.235, 0.9: 24.892},
    ),
    ("cyclegan", "a_to_b"): (
        "CycleGAN, Monet to photo",
        {0.0: 63.152, 0.25: 63.410, 0.5: 63.662, 0.75: 66.394, 0.9: 70.933},
    ),
    ("cyclegan", "b_to_a"): (
        "CycleGAN, photo to Monet",
        {0.0: 31.987, 0.25: 32.102, 0.5: 32.346, 0.75: 33.913, 0.9: 41.409},
    ),
    ("stargan", "overall"): ("StarGAN, CelebA", {0.0: 6.113, 0.25: 6.307, 0.5: 6.929, 0.75: 6.714, 0.9: 7.144}),
    ("srgan", "output"): ("SRGAN, DIV2K", {0.0: 14.653, 0.25: 15.236, 0.5: 16.609, 0.75: 17.548, 0.9: 18.376}),
}

#: StarGAN: the dense generator's distance, and by the letter of the paper's row the distance at 50 %.
DENSE_STARGAN = 6.113
BASELINES = {
    "b": 6.929,
    "c": 72.821,
    "d": 24.404,
    "e": 35.677,
    "f": 84.941,
    "g": 45.461,
    "h": 38.985,
    "i": 15.182,
    "j": 92.721,
    "k": 103.094,
    "l": 194.026,
    "m": 159.767,
    "n": 46.453,
}

#: CycleGAN, photo to Monet: granularity -> distance by sparsity.
GRANULARITIES = {
    "element": {0.0: 32.0, 0.25: 32.5, 0.5: 33.4, 0.75: 34.5, 0.9: 41.3},
    "filter": {0.0: 32.0, 0.25: 82.3, 0.5: 105.9, 0.75: 182.3, 0.9: 204.8},
}
