#!/bin/sh
# Installs from Debian or Ubuntu what the tests need and this machine lacks; elsewhere, or without root, names it.
set -eu

missing=
need() { # command package...
	command -v "$1" >/dev/null 2>&1 || { shift; missing="$missing $*"; }
}
need ip iproute2
need bridge iproute2
need gcc gcc libc6-dev # the race detector is linked by it
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
