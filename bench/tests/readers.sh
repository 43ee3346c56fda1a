#!/usr/bin/env bash
# The benchmark's outputs, read by HdrHistogram's own log processor, by its and jsonschema's Python packages, and drawn by
# Chromium.
# Installs what is missing; without a network it says SKIPPED and why.
set -uo pipefail
cd "$(dirname "$0")/../.."

skip() {
    echo "SKIPPED: $*"
    exit 0
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
exec cargo test -p pollvisor-bench output::readers -- --nocapture
