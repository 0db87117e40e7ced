#!/usr/bin/env bash
# `make down`: takes away the sample application, and stops the peer. The peer's
# state stays in its data directory; `make up` resumes it.
set -euo pipefail
PREFIX=${PREFIX:-/usr/local}
export PATH=$PREFIX/bin:$PATH
if rookery get --raw /readyz >/dev/null 2>&1; then
  rookery delete namespace hello --ignore-not-found --timeout=60s
fi
if [ -d /run/systemd/system ]; then systemctl disable -q --now rookery || true
else rookery down; fi
echo "The peer is stopped. Its state is kept; 'sudo make up' resumes it."
