#!/bin/sh
# Installs from Debian or Ubuntu what the tests need and this machine lacks; elsewhere, or without root, names it. With
# "bench", what the benchmarks need besides.
set -eu

missing=
need() { # command package...
	command -v "$1" >/dev/null 2>&1 || { shift; missing="$missing $*"; }
}
need ip iproute2
need bridge iproute2
need nft nftables # the judge of our tables
need iptables iptables # what Docker and admins use beside them
need etcd etcd-server # a real cluster, of a version that hosts meet
need etcdctl etcd-client
need /usr/lib/cni/host-local containernetworking-plugins # real neighbours in a chain and for "ipam"
need busybox busybox-static # a container's file system
need podman podman runc # real callers of the plugin
need containerd containerd
need runc runc
need strace strace # kills the plugin at its system calls, and counts them
[ -z "${CI-}" ] || { need firewalld firewalld; need dbus-daemon dbus; } # on a machine in use it would start and shut the door
need gcc gcc libc6-dev # the race detector is linked by it
[ "${1-}" != bench ] || need iperf3 iperf3 # the judge of throughput; tests do without
[ -n "$missing" ] || exit 0

install="apt-get install -y --no-install-recommends$(printf ' %s' $missing | tr ' ' '\n' | sort -u | tr '\n' ' ')"
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
	echo "installing what the tests need:$missing"
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -q
	exec $install
fi
echo "the tests need what this machine lacks; install it: $install" >&2
exit 1
