"""What others found better (METHOD section 10), small: alone and together, from one teacher at equal steps.

    python benchmarks/improvements.py --teacher=runs/demo/teacher --output=benchmarks/results/improvements.json

`demo` is what they are compared with; demo_aliased, demo_causal and demo_released_betas put a habit of the released
code back into it. What each variant changes stands in configs/demo.py. Every run is the main command in a process of
its own; runs that are already in --workdir are not repeated.

`codebook_use` counts the K codes that all depths share, or the D·K of product codes: a share of another total.
`residual_energy` is the share of z's energy that the codes do not carry; with normalised codes, of the unit vectors'.
"""

import ablation

VARIANTS = (
    "demo",
    "demo_aliased",
    "demo_causal",
    "demo_released_betas",
    "demo_gram",
    "demo_product",
    "demo_normalised",
    "demo_ema",
    "demo_slow_encoder",
    "demo_improved",
)
METRICS = (
    "psnr",
    "ssim",
    "frechet_teacher",
    "zero_shot_top1",
    "codebook_use_pixel",
    "codebook_use_semantic",
    "residual_energy_pixel",
    "residual_energy_semantic",
)

if __name__ == "__main__":
    ablation.main("improvements", __doc__, VARIANTS, METRICS)
