"""python -m dualtoken_jax.evaluate --workdir=DIR
python -m dualtoken_jax.evaluate --workdir=PATH --protocol=official|adm --images=DIR --inception=FILE …

Without a protocol: evaluates the newest checkpoint of a run again, tokenizer or teacher; prints the table, rewrites
evaluation.json and the report.

With one: measures whatever `dualtoken_jax.load(PATH)` opens as published figures are (evaluation/protocols.py),
on a folder of pictures or the run's own evaluation split. Figures whose weights are not given are left out, with a line
that says which file is missing and where it comes from. Nothing is ever fetched.
"""

import argparse
import sys
from pathlib import Path

from dualtoken_jax import job
from dualtoken_jax.evaluation.protocols import PROTOCOLS
from dualtoken_jax.flags import positive
from dualtoken_jax.protocol_run import run_protocol
from dualtoken_jax.workdir import load_config


def main(arguments: list[str] | None = None) -> None:
    """Flags → the job's last part, or a protocol."""
    parser = _parser()
    flags = parser.parse_args(arguments)
    _check(parser, flags)
    try:
        if flags.protocol:
            complete = run_protocol(flags)
        else:
            config = load_config(flags.workdir)
            job.conclude(config, flags.workdir, job.load_state(config, flags.workdir))
            complete = True
    except job.EXPECTED_ERRORS as error:
        sys.exit(f"error: {error}")
    if not complete:
        sys.exit("error: something that was asked for is left out, see above; the rest is computed")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dualtoken_jax.evaluate", description="Evaluates a model again.")
    add = parser.add_argument
    add("--workdir", type=Path, required=True, help="folder of the run; with --protocol, anything that load opens")
    add("--protocol", choices=tuple(PROTOCOLS), help="measure as published figures are measured")
    add("--model_config", type=Path, help="config.json of a released checkpoint")
    add("--text_tokenizer", type=Path, metavar="FILE", help="spiece.model or tokenizer.json, where PATH has none")
    add("--images", type=Path, help="folder of pictures, sub-folders are labels; default: the run's evaluation split")
    add("--inception", type=Path, metavar="FILE", help="weights of FID's Inception, .pth or .safetensors")
    add("--lpips", type=Path, nargs="+", metavar="FILE", help="weights of VGG16 and of LPIPS's linear layers")
    add("--classes", type=Path, metavar="FILE", help='{"classes": […], "templates": […]} for zero-shot classification')
    add("--retrieval", type=Path, metavar="FILE", help="Flickr8k.token.txt")
    add("--retrieval_images", type=Path, metavar="DIR", help="the pictures that it describes")
    add("--retrieval_split", type=Path, metavar="FILE", help="names to take, as Flickr_8k.testImages.txt; else all")
    add("--limit", type=positive, help="measure N pictures only, spread over all")
    add("--batch_size", type=positive, default=16, help="pictures computed at a time")
    add("--output", type=Path, metavar="FILE", help="JSON; default: evaluation_PROTOCOL.json in the folder --workdir")
    return parser


def _check(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> None:
    given = [name for name, value in vars(flags).items() if value != parser.get_default(name)]
    if not flags.protocol and (extra := [name for name in given if name != "workdir"]):
        parser.error(f"--{extra[0]} needs --protocol={'|'.join(PROTOCOLS)}")
    if bool(flags.retrieval) != bool(flags.retrieval_images):
        parser.error("--retrieval=Flickr8k.token.txt and --retrieval_images=DIR go together")
    if flags.retrieval_split and not flags.retrieval:
        parser.error("--retrieval_split needs --retrieval")


if __name__ == "__main__":
    main()
