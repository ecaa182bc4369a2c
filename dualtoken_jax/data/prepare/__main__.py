"""python -m dualtoken_jax.data.prepare COMMAND …, where each COMMAND is the file of that name beside this one."""

import importlib
import sys

COMMANDS = {
    "index": "finds the pictures in tar, Parquet or ArrayRecord shards, which stay as and where they are",
    "convert": "writes ArrayRecord shards, from any of these, from folders and from ImageNet's tar files",
    "filter": "drops examples by their metadata, without touching a shard",
    "verify": "compares shards and indices with their checksums, and decodes all pictures if asked",
    "stats": "tells what a dataset consists of, and draws a sheet of its pictures",
}


def main(arguments: list[str]) -> None:
    """Gives the rest of the arguments to the command that the first one names."""
    listed = "\n".join(f"  {name:<9}{what}" for name, what in COMMANDS.items())
    usage = f"usage: python -m dualtoken_jax.data.prepare COMMAND …\n\n{listed}\n\nCOMMAND --help says more of it"
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage)
    elif arguments[0] not in COMMANDS:
        sys.exit(f"there is no command {arguments[0]!r}\n{usage}")
    else:
        importlib.import_module(f"dualtoken_jax.data.prepare.{arguments[0]}").main(arguments[1:])


if __name__ == "__main__":  # worker processes import this file too
    main(sys.argv[1:])
