#!/usr/bin/env bash
# The benchmark's outputs, read by HdrHistogram's own log processor, by its and jsonschema's Python packages, and drawn by
# Chromium; further, whether documents of real runs are as their schema says:
#
#   bench/tests/readers.sh [FOLDER OF JSON FILES]
#
# Installs what is missing. Where that cannot be had the status is 77, and the last line says why.
set -uo pipefail
[ $# -eq 0 ] || set -- "$(realpath "$1")"
cd "$(dirname "$0")/../.."

skip() {
    echo "$*"
    exit 77
}
apt_get() {
    local sudo=""
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || return 1
        sudo="sudo -n"
    fi
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -q update &&
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends "$@"
}

missing=()
command -v chromium >/dev/null || missing+=(chromium)
python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3 python3-venv)
jar=/usr/share/java/hdrhistogram.jar
{ command -v java >/dev/null && [ -r $jar ]; } || missing+=(default-jre-headless libhdrhistogram-java)
if [ ${#missing[@]} -gt 0 ]; then
    apt_get "${missing[@]}" || skip "${missing[*]} cannot be installed"
fi

venv=${CARGO_TARGET_DIR:-target}/readers
if ! "$venv/bin/python" -c 'import hdrh, jsonschema' 2>/dev/null; then
    python3 -m venv "$venv" && "$venv/bin/pip" install -q hdrhistogram jsonschema ||
        skip "PyPI's hdrhistogram and jsonschema cannot be installed"
fi

export READERS_PYTHON=$venv/bin/python READERS_CHROMIUM=chromium READERS_JAR=$jar
[[ $READERS_PYTHON = /* ]] || READERS_PYTHON=$PWD/$READERS_PYTHON
# Of the whole workspace, as the other tests have built it.
cargo test --workspace --lib output::readers -- --ignored --nocapture || exit 1
if [ $# -gt 0 ]; then
    shopt -s nullglob
    documents=("$1"/*.json)
    [ ${#documents[@]} -gt 0 ] || { echo "$1 has no document, though a run of the benchmark leaves one" && exit 1; }
    "$READERS_PYTHON" bench/tests/schema.py bench/schema.json "${documents[@]}"
fi
