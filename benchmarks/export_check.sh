#!/usr/bin/env bash
# Both exports of a run, opened by plain PyTorch in a fresh virtual environment that has no JAX.
#
#   bash benchmarks/export_check.sh [--without-released] WORKDIR [OUTPUT.json]
#
# --without-released is for models that the released code does not have. A run of a minute that both formats hold:
#
#   python -m dualtoken_jax.main --config=configs/tokenizer.py:demo --workdir=WORKDIR --config.train.steps=20 \
#     --config.teacher.train.steps=20 --config.train.batch_size=16 --config.teacher.train.batch_size=16 \
#     --config.model.decoder.kind=convolutional --config.model.decoder.channels=32 --config.model.decoder.latent_grid=4 \
#     --config.model.decoder.multipliers='(1,1,1,1)' --config.model.decoder.attention_grids='(4,)' \
#     --config.model.shortcut_layer=1 --config.model.pixel_layer=2 --config.model.post_attention=causal \
#     --config.model.pixel.codebook_update=per_depth --config.data.eval_examples=64
#
# PYTHON (default python) is the interpreter that has dualtoken_jax; PIP_ARGUMENTS go to pip, for PyTorch's CPU wheels say.
set -euo pipefail
cd "$(dirname "$0")/.."
files="pt safetensors"
if [ "${1:-}" = --without-released ]; then
  files=""
  shift
fi
workdir=$1
output=${2:-}
python=${PYTHON:-python}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"$python" -m dualtoken_jax.export --workdir="$workdir" --output="$folder/huggingface" --format=huggingface
for file in $files; do
  "$python" -m dualtoken_jax.export --workdir="$workdir" --output="$folder/released_$file" --format=released --file=$file
done
PYTHONPATH=$PWD "$python" benchmarks/export_outputs.py --workdir="$workdir" --output="$folder/outputs.npz"

"$python" -m venv "$folder/fresh"
# shellcheck disable=SC2086
"$folder/fresh/bin/pip" install --quiet --disable-pip-version-check ${PIP_ARGUMENTS:-} torch transformers safetensors pillow numpy
# From another folder, so that nothing of this one can be imported.
script=$PWD/benchmarks/export_check.py
(cd "$folder" && env -u PYTHONPATH HF_HUB_OFFLINE=1 HF_HOME="$folder/home" fresh/bin/python "$script" "$folder" "$folder/report.json")
[ -z "$output" ] || cp "$folder/report.json" "$output"
