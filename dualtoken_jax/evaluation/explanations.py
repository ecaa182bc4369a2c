"""What every figure of evaluation.json means, in plain words."""

_VIEWS = {
    "teacher_quantized_": "the frozen teacher with its hidden state replaced by the semantic codes' features",
    "teacher_": "the frozen teacher, nothing quantized",
    "": "this run's own image embedding",
}
_TASKS = {
    "zero_shot_chance": "what guessing would give: one over the number of classes",
    "zero_shot_top1": "share of labelled pictures whose class name is the nearest of all class names",
    "zero_shot_top5": "share of labelled pictures whose class name is among the five nearest",
    "retrieval_image_to_text_r1": "share of pictures whose nearest caption is one of their own",
    "retrieval_text_to_image_r1": "share of captions whose nearest picture is the one they describe",
}
_PLAIN = {
    "examples": "held-out pictures that were measured",
    "psnr": "reconstruction: peak signal-to-noise ratio in dB, mean over pictures; higher is better",
    "ssim": "reconstruction: structural similarity, 1 is identical",
    "l1": "reconstruction: mean absolute difference of values from 0 to 1; lower is better",
    "cosine_hidden": "cosine similarity of each token's features at the semantic layer with the teacher's",
    "cosine_pooled": "cosine similarity of the image embedding with the teacher's",
    "frechet_teacher": "Fréchet distance of reconstructions to inputs on the teacher's embeddings; lower is better. "
    "It is not an rFID (there is no Inception network in it) and compares only runs with the same teacher",
    "bits_per_pixel": "size of the codes that the decoder reads, divided by the number of pixels",
    "bits_per_pixel_all": "size of the codes of all branches, divided by the number of pixels",
}
_CODEBOOK = {
    "use": "share of the codes met at least once",
    "perplexity": "codes in effective use, exp(entropy): all of them if equally frequent, 1 if one does everything",
    "kl": "divergence of the codes' frequencies from uniform, in nats; lower is more even",
}


def explain(name: str) -> str:
    """One sentence for a name in evaluation.json; '' for an unknown one."""
    if name in _PLAIN:
        return _PLAIN[name]
    for task, meaning in _TASKS.items():
        if name.endswith(task):
            view = _VIEWS.get(name.removesuffix(task), "")
            return meaning if task == "zero_shot_chance" else f"{meaning}; {view}"
    if name.startswith("residual_energy_"):
        return f"{name.removeprefix('residual_energy_')} branch: share of z's energy that its codes do not carry"
    kind, _, branch = name.removeprefix("codebook_").partition("_")
    if kind not in _CODEBOOK:
        return ""
    branch, _, depths = branch.partition("_per_depth")
    scope = "depth by depth" if name.endswith("_per_depth") else "all depths together"
    return f"{branch} codebook, {scope}: {_CODEBOOK[kind]}"
