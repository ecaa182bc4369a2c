#!/usr/bin/env bash
# bash tpu_setup.sh CODE.tar.gz gs://BUCKET|SERVER:/SHARE
#
# Makes one TPU VM worker ready: code, Python 3.12 with the pinned versions, and the shared folder. Run again it does
# only what is missing. tpu_vm.sh copies it to every worker and runs it there.
set -euo pipefail

tarball=${1:?the code, as a .tar.gz} storage=${2:?gs://BUCKET or SERVER:/SHARE}
home=$HOME/dualtoken
mkdir -p "$home/code" "$home/shared"

retry() { # a fresh VM's network, and its package manager, are busy for a while
  local attempt
  for attempt in 1 2 3 4 5; do
    "$@" && return
    echo "attempt $attempt failed: $*" >&2
    sleep $((attempt * ${RETRY_SECONDS:-10}))
  done
  return 1
}

apt_install() {
  retry sudo apt-get -q -o DPkg::Lock::Timeout=300 update
  retry sudo apt-get -q -o DPkg::Lock::Timeout=300 install -y "$@"
}

unpack_code() { # no file of an earlier version may stay
  rm -rf "$home/code.new"
  mkdir "$home/code.new"
  tar -xzf "$tarball" -C "$home/code.new"
  rm -rf "$home/code"
  mv "$home/code.new" "$home/code"
}

install_uv() {
  export PATH=$HOME/.local/bin:$PATH
  command -v uv >/dev/null || retry bash -c 'set -o pipefail; curl -LsSf https://astral.sh/uv/install.sh | sh'
}

install_python() { # the images' own Python is older than 3.11
  local made_for
  made_for=$(sha256sum <"$home/code/requirements.txt")
  [[ -e $home/venv/made_for && $(<"$home/venv/made_for") == "$made_for" ]] && return
  install_uv
  rm -rf "$home/venv"
  retry uv venv --quiet --python 3.12 "$home/venv"
  # jax[tpu] takes its version from the requirements.
  retry uv pip install --quiet --python "$home/venv/bin/python" -r "$home/code/requirements.txt" 'jax[tpu]'
  echo "$made_for" >"$home/venv/made_for"
}

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc list=/etc/apt/sources.list.d/gcsfuse.list
  command -v gcsfuse >/dev/null && return
  curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
    sudo tee "$list" >/dev/null
  apt_install gcsfuse
}

mount_storage() {
  mountpoint -q "$home/shared" && return
  if [[ $storage == gs://* ]]; then
    install_gcsfuse
    # No cached metadata: every host must see at once what another has written.
    retry gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
      "${storage#gs://}" "$home/shared"
  else
    command -v mount.nfs >/dev/null || apt_install nfs-common
    retry sudo mount -t nfs -o rw,hard "$storage" "$home/shared"
    sudo chmod 1777 "$home/shared" # user ids differ between hosts
  fi
}

unpack_code
install_python
mount_storage
echo "dualtoken-setup done"
