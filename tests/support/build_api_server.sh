#!/usr/bin/env bash
# Build a real Kubernetes API server for custom resources, and take an etcd, into the cache that tests use.
#
#   tests/support/build_api_server.sh
#
# Debian packages the sources of kube-apiextensions-apiserver (the part of the API server that serves custom resources)
# with all that they need, and a Go that compiles them. Both are unpacked into a scratch folder and never installed, so
# this needs no root and changes nothing outside the cache: about 370 MB of download, 4 GB of disk while it runs, 100 MB
# afterwards and some minutes of processor time. The packages' signatures are checked against this system's keyring.
#
# It needs apt-get and dpkg-deb, a Debian archive in apt's configuration (or in MIDSTREAM_DEBIAN_MIRROR) and Debian's
# keyring. Exit codes: 0 both programs are in the cache; 3 this machine cannot build them, the last line says why.
set -euo pipefail

cache="${MIDSTREAM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/midstream}/api-server"
suite=sid # the only one with these sources
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

cannot() {
    echo "cannot build the API server: $*" >&2
    exit 3
}

for program in apt-get dpkg-deb flock; do
    command -v "$program" >/dev/null || cannot "there is no $program here"
done
[[ -r $keyring ]] || cannot "there is no $keyring"
mirror="${MIDSTREAM_DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' | head -n 1)}"
[[ -n $mirror ]] || cannot "apt knows no Debian archive; run apt-get update, or set MIDSTREAM_DEBIAN_MIRROR"

mkdir -p "$cache"
exec 9>"$cache/.lock"
flock 9
if [[ -x $cache/kube-apiextensions-apiserver && -x $cache/etcd ]]; then
    echo "$cache has: $(<"$cache/versions")"
    exit 0
fi
find "$cache" -maxdepth 1 -name 'scratch.*' -exec rm -rf {} + # of builds that were killed
scratch="$(mktemp -d "$cache/scratch.XXXXXX")"
trap 'chmod -R u+w "$scratch"; rm -rf "$scratch"' EXIT

# A second apt beside the system's: own sources, own lists, nothing installed.
apt="$scratch/apt"
mkdir -p "$apt/state/lists/partial" "$apt/cache/archives/partial"
touch "$apt/status"
echo "deb [signed-by=$keyring] $mirror $suite main" >"$apt/sources.list"
apt_options=(
    -o "Dir::Etc::SourceList=$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o "Dir::State=$apt/state" -o "Dir::State::status=$apt/status" -o "Dir::Cache=$apt/cache"
    -o Debug::NoLocking=1 -o APT::Sandbox::User= -o Acquire::Languages=none -o Acquire::Retries=3
)
apt-get "${apt_options[@]}" --quiet=2 update || cannot "the Debian archive cannot be reached"
apt-get "${apt_options[@]}" --quiet=2 install --yes --download-only --no-install-recommends \
    golang-go golang-k8s-apiextensions-apiserver-dev etcd-server || cannot "the packages cannot be fetched"

root="$scratch/root"
mkdir "$root"
for package in "$apt"/cache/archives/{golang-*,etcd-server_*}.deb; do
    dpkg-deb --extract "$package" "$root"
done
rm -rf "$apt/cache"
version="$(apt-cache "${apt_options[@]}" policy golang-k8s-apiextensions-apiserver-dev | sed -n 's/ *Candidate: //p')"

GOROOT="$(echo "$root"/usr/lib/go-[0-9]*)"
export GOROOT GOPATH="$root/usr/share/gocode" GO111MODULE=off GOTOOLCHAIN=local GOENV=off GOFLAGS=-trimpath CGO_ENABLED=0
export GOCACHE="$scratch/go-cache" GOTMPDIR="$scratch"
nice "$GOROOT/bin/go" build -ldflags '-s -w' -o "$scratch/kube-apiextensions-apiserver" k8s.io/apiextensions-apiserver

"$root/usr/bin/etcd" --version >/dev/null || cannot "Debian's etcd does not start on this system"
echo "apiextensions-apiserver $version, $("$root/usr/bin/etcd" --version | head -n 1)" >"$cache/versions"
mv "$root/usr/bin/etcd" "$cache/etcd"
mv "$scratch/kube-apiextensions-apiserver" "$cache/kube-apiextensions-apiserver"
echo "built in $SECONDS s: $(<"$cache/versions")"
