#!/usr/bin/env bash
# Install what the tests with real packets need: Open vSwitch, Mininet and a few tools, from Debian's packages.
#
#   tests/support/install_network_tools.sh
#
# Nothing is started: the tests run their own daemons in namespaces of their own. It needs root and an apt that reaches a
# Debian archive. Exit codes: 0 everything is there; 3 it cannot be installed here, the last line says why.
set -euo pipefail

packages=(openvswitch-switch mininet ethtool iproute2 iputils-ping net-tools util-linux)
programs=(ovs-vsctl ovs-vswitchd ovsdb-server ovsdb-tool ovs-ofctl ovs-appctl mnexec ethtool ip ping ifconfig unshare)

cannot() {
    echo "cannot install the network tools: $*" >&2
    exit 3
}

missing() {
    for program in "${programs[@]}"; do
        command -v "$program" >/dev/null || return 0
    done
    ! /usr/bin/python3 -c 'import mininet' 2>/dev/null
}

missing || exit 0
[[ $EUID -eq 0 ]] || cannot "this needs root"
command -v apt-get >/dev/null || cannot "there is no apt-get here"
# With this run level, packages that bring a service do not start it.
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
apt-get --quiet=2 update || cannot "the Debian archive cannot be reached"
apt-get --quiet=2 --yes --no-install-recommends install "${packages[@]}" || cannot "the packages cannot be installed"
! missing || cannot "the packages do not bring all of: ${programs[*]}, and Mininet for /usr/bin/python3"
