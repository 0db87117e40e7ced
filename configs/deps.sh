#!/usr/bin/env bash
# Installs what a Debian 12 machine lacks to build, run and test Rookery: Debian
# packages, and Go in the version given, by Debian's own older Go. It changes
# nothing that is there. With a second argument "test" it installs what only tests
# have a use for, too.
set -euo pipefail
version=$1
export PATH=$PATH:/usr/local/go/bin

packages=(podman runc conmon catatonit nftables iproute2 busybox-static dnsutils zstd gcc libc6-dev make git ca-certificates curl procps util-linux dbus-daemon)
installed() { dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null | grep -q '^ii'; }
missing=()
for p in "${packages[@]}"; do
  installed "$p" || missing+=("$p")
done
enough() { command -v go >/dev/null && [ "$(printf '%s\n' "go${version%.*}" "$(go env GOVERSION)" | sort -V | head -1)" = "go${version%.*}" ]; }
enough || command -v go >/dev/null || missing+=(golang-go)
if [ ${#missing[@]} -gt 0 ]; then
  [ "$(id -u)" = 0 ] || { echo "these packages are missing: ${missing[*]}; install them, or run this as root" >&2; exit 1; }
  echo "installing ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
# Of use to one test, which is left out without. As it comes it is off; firewalld, which has
# such a test too, is not installed here, since it starts at once and closes the machine.
if [ "${2:-}" = test ] && ! installed ufw && [ "$(id -u)" = 0 ]; then
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ufw >/dev/null; } ||
    echo "ufw cannot be installed: the test beside it will be left out" >&2
fi

enough && exit 0
[ "$(id -u)" = 0 ] || { echo "Go $version is missing: run this as root" >&2; exit 1; }
echo "installing Go $version in /usr/local/go"
[ ! -e /usr/local/go ] || { echo "/usr/local/go is an older Go; move it away" >&2; exit 1; }
scratch=$(mktemp -d)
trap 'chmod -R u+w "$scratch"; rm -rf "$scratch"' EXIT
# The toolchain is a module, checked against the checksum database as any other.
module=golang.org/toolchain@v0.0.1-go$version.linux-$(dpkg --print-architecture)
(cd "$scratch" && GOFLAGS=-mod=mod GOPATH="$scratch/go" go mod download "$module")
cp -r "$scratch/go/pkg/mod/$module" /usr/local/go
chmod -R u+w /usr/local/go
chmod +x /usr/local/go/bin/* /usr/local/go/pkg/tool/*/*  # an older Go drops the mode
