#!/usr/bin/env bash
# Collect what run.py needs on a bare machine: Python 3.12 and torch there, no network.
#
#   tests/benchmarks/gpu/prepare.sh FOLDER
#
# makes FOLDER/piece-00, piece-01, ... of at most 64 MiB each. Carry them over, then
#   cat FOLDER/piece-* | tar -xz -C WHEELS
#   python tests/benchmarks/gpu/run.py --wheels WHEELS
# Packages are unpacked, not installed, so neither pip nor rights are needed there.
set -euo pipefail
cd "$(dirname "$0")/../../.."
folder=${1:?usage: prepare.sh FOLDER}
mkdir -p "$folder/packages"
python=${PYTHON:-python}
# DeepSpeed is published as source only and imports no compiled code here.
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$folder" -c constraints.txt deepspeed
"$python" -m pip install --quiet --target "$folder/packages" --no-deps "$folder"/deepspeed-*.whl
"$python" -m pip install --quiet --target "$folder/packages" --no-deps --only-binary=:all: \
    --python-version 3.12 --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
    --platform manylinux_2_17_x86_64 -c constraints.txt \
    pydantic pydantic-core annotated-types typing-extensions typing-inspection omegaconf \
    antlr4-python3-runtime pyyaml numpy pyarrow safetensors pillow simplejpeg psutil rich \
    markdown-it-py mdurl pygments typer click shellingham prometheus-client webdataset braceexpand \
    einops hjson msgpack ninja packaging py-cpuinfo tqdm
tar -cz -C "$folder/packages" . | split -b 64M -d -a 2 - "$folder/piece-"
rm -rf "$folder/packages" "$folder"/deepspeed-*.whl
ls -l "$folder"
