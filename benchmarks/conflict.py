"""The paper's conflict, small: one vocabulary or two, shallow or deep, from one teacher at equal steps.

    python benchmarks/conflict.py --teacher=runs/demo/teacher --output=benchmarks/results/conflict.json

Every run is the main command in a process of its own; runs that are already in --workdir are not repeated.
"""

import ablation

VARIANTS = ("demo", "demo_single", "demo_dual_deep", "demo_pixel_only", "demo_semantic_only")
METRICS = ("psnr", "ssim", "frechet_teacher", "zero_shot_top1", "teacher_zero_shot_top1", "cosine_pooled")

if __name__ == "__main__":
    ablation.main("conflict", __doc__, VARIANTS, METRICS)
