#!/usr/bin/env bash
# `make up`: starts a peer on this machine, if none runs, and the sample
# application on it, and shows that it answers by its Service name. Running it
# again changes nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."
PREFIX=${PREFIX:-/usr/local}
say() { printf '\n==> %s\n' "$*"; }

[ "$(id -u)" = 0 ] || { echo "make up starts a system service: run it as root (sudo make up)" >&2; exit 1; }
systemd() { [ -d /run/systemd/system ]; }

if ! cmp -s bin/rookery "$PREFIX/bin/rookery"; then
  say "Installing $PREFIX/bin/rookery"
  install -D -m 0755 bin/rookery "$PREFIX/bin/rookery.new"
  mv "$PREFIX/bin/rookery.new" "$PREFIX/bin/rookery"   # a running peer keeps its old file
  new=1
fi
export PATH=$PREFIX/bin:$PATH

if systemd; then
  systemctl enable -q --now podman.socket
  install -m 0644 configs/rookery.service /etc/systemd/system/rookery.service
  systemctl daemon-reload
  systemctl enable -q rookery
  if ! systemctl is-active -q rookery; then say "Starting the peer (systemctl start rookery)"; systemctl start rookery
  elif [ -n "${new:-}" ]; then say "Restarting the peer with the new program; its pods live on"; systemctl restart rookery; fi
else
  sock=${ROOKERY_PODMAN_SOCKET:-/run/podman/podman.sock}
  if [ -z "${ROOKERY_CONFIG:-}" ] && ! curl -sf --unix-socket "$sock" http://d/_ping >/dev/null; then
    say "Starting Podman's API (there is no systemd here)"
    mkdir -p "$(dirname "$sock")"
    setsid podman system service -t 0 "unix://$sock" >/var/log/podman-service.log 2>&1 </dev/null &
    for _ in $(seq 100); do [ -S "$sock" ] && break; sleep 0.1; done
  fi
  if ! rookery get --raw /readyz >/dev/null 2>&1; then say "Starting the peer (there is no systemd here)"; rookery up --detach; fi
fi

say "Waiting for this peer to be Ready"
for _ in $(seq 300); do rookery get nodes -o name 2>/dev/null | grep -q . && break; sleep 0.1; done
rookery wait --for=condition=Ready node --all --timeout=60s

say "Loading the sample's image and applying configs/samples/hello.yaml"
rookery image load bin/hello.tar
rookery apply -f configs/samples/hello.yaml
rookery -n hello rollout status deployment/hello --timeout=120s

say "Asking it by its Service name, from a pod"
pod=$(rookery -n hello get pod -l app=hello -o jsonpath='{.items[0].metadata.name}')
rookery -n hello exec "$pod" -c hello -- /hello get http://hello.hello.svc.cluster.local

say "Asking it by its NodePort, from this host"
address=$(rookery get nodes -o jsonpath='{.items[0].status.addresses[?(@.type=="InternalIP")].address}')
curl -sf --max-time 5 "http://$address:30080/"

cat <<END

It works. What to try next:
  rookery status                                   what this cluster is and how it feels
  rookery -n hello get pods -o wide
  rookery -n hello scale deployment/hello --replicas 9
  rookery -n hello logs -f deployment/hello
  rookery -n hello set image deployment/hello hello=localhost/hello:2
  rookery token create                             then paste what it prints on another machine
  sudo make down                                   take the sample and the peer away again
END
