"""python launch/gke/submit.py run|queue [options] [-- --config=... flags of main]

run    submits the training as a JobSet; same --name = resume. One that runs or is finished is left alone, one that
       failed is deleted and submitted again
queue  makes the Kueue queue that `run` names, once per cluster

Needs kubectl with the cluster's credentials, and nothing else than Python.
Exit codes: 0 submitted, running or finished; 1 kubectl failed; 2 wrong usage.
"""

import argparse
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from string import Template

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")  # a pod's name, with what JobSet adds, must fit 63 characters


def main(argv: list[str]) -> None:
    ours, flags = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    options = parse(ours)
    if options.command == "run" and any(flag.startswith("--workdir") for flag in flags):
        print(f"error: the workdir is /shared/{options.name}; leave --workdir out", file=sys.stderr)
        sys.exit(2)
    text = jobset(options, flags) if options.command == "run" else queue(options)
    if options.dry_run:
        print(text, end="")
    elif options.command == "queue" or may_submit(options):
        print(kubectl("apply", "--filename=-", text=text), end="")


def parse(argv: list[str]) -> argparse.Namespace:
    """The options; exits with code 2 for wrong ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run, queue = commands.add_parser("run"), commands.add_parser("queue")
    for command in (run, queue):
        command.add_argument("--accelerator", required=True, help="node label, such as tpu-v5-lite-podslice")
        command.add_argument("--topology", required=True, type=topology, help="of one slice, such as 16x16")
        command.add_argument("--queue", default="tpu", type=name, help="Kueue's LocalQueue")
        command.add_argument("--namespace", default="default", type=name)
        command.add_argument("--dry-run", action="store_true", help="print the YAML and do nothing")
    queue.add_argument("--quota", required=True, type=int, help="chips that all runs together may use")
    run.add_argument("--name", required=True, type=name)
    run.add_argument("--image", required=True)
    storage = run.add_mutually_exclusive_group(required=True)
    storage.add_argument("--bucket", help="with a hierarchical namespace, mounted by Cloud Storage FUSE")
    storage.add_argument("--claim", type=name, help="PersistentVolumeClaim that many pods may write, such as Filestore")
    run.add_argument("--service-account", default="default", type=name, help="Kubernetes', with access to the bucket")
    run.add_argument("--slices", default=1, type=int)
    run.add_argument("--chips-per-host", default=4, type=int, help="4 for all slices of several hosts")
    run.add_argument("--max-restarts", default=100, type=int)
    options = parser.parse_args(argv)
    if options.command == "run" and math.prod(map(int, options.topology.split("x"))) % options.chips_per_host:
        run.error(f"--topology={options.topology} is not a multiple of --chips-per-host={options.chips_per_host}")
    return options


def name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r}: small letters, digits and -, 40 at most, a letter first")
    return text


def topology(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no topology such as 16x16 or 4x4x8")
    return text


def jobset(options: argparse.Namespace, flags: list[str]) -> str:
    """The JobSet's YAML. What may hold any character goes in as JSON, which YAML reads."""
    annotations, volume = {}, {"persistentVolumeClaim": {"claimName": options.claim}}
    if options.bucket:
        annotations = {"gke-gcsfuse/volumes": "true"}
        # No cached metadata: every host must see at once what another has written.
        mount = "implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0"
        attributes = {"bucketName": options.bucket, "mountOptions": mount}
        volume = {"csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}}
    (kind, source), chips = *volume.items(), math.prod(map(int, options.topology.split("x")))
    return fill(
        "jobset.yaml",
        name=options.name,
        namespace=options.namespace,
        queue=options.queue,
        max_restarts=options.max_restarts,
        slices=options.slices,
        hosts=chips // options.chips_per_host,
        chips=options.chips_per_host,
        accelerator=json.dumps(options.accelerator),
        topology=options.topology,
        image=json.dumps(options.image),
        service_account=options.service_account,
        arguments=json.dumps([f"--workdir=/shared/{options.name}", *flags]),
        pod_annotations=json.dumps(annotations),
        volume=f"{kind}: {json.dumps(source)}",
    )


def queue(options: argparse.Namespace) -> str:
    """The queue's YAML: flavor, cluster queue and local queue."""
    return fill(
        "kueue.yaml",
        queue=options.queue,
        namespace=options.namespace,
        accelerator=json.dumps(options.accelerator),
        topology=options.topology,
        quota=options.quota,
    )


def fill(file: str, **values) -> str:
    return Template(Path(__file__).with_name(file).read_text()).substitute(values)


def may_submit(options: argparse.Namespace) -> bool:
    """Whether no run of that name is going on or finished; a failed one is deleted to make place."""
    where = ("jobset", options.name, f"--namespace={options.namespace}")
    asked = "--output=jsonpath={.metadata.name}/{.status.terminalState}"
    found, _, state = kubectl("get", *where, "--ignore-not-found", asked).strip().partition("/")
    if not found:
        return True
    if state == "Failed":
        print(kubectl("delete", *where, "--wait"), end="")
        return True
    print(f"{options.name} is {'finished' if state == 'Completed' else 'submitted'} already")
    return False


def kubectl(*arguments: str, text: str | None = None) -> str:
    """kubectl's output; exits with code 1 when it fails."""
    done = subprocess.run(["kubectl", *arguments], input=text, text=True, stdout=subprocess.PIPE)
    if done.returncode:
        sys.exit(1)
    return done.stdout


if __name__ == "__main__":
    main(sys.argv[1:])
