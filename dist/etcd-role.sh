#!/bin/sh
# Gives users of etcd the rights that overlayd needs and no others: etcd-role.sh USER...
#
# A user is the common name of a host's client certificate; there are no passwords. Run it once where etcdctl works as
# etcd's root (ETCDCTL_ENDPOINTS, ETCDCTL_CACERT, ETCDCTL_CERT, ETCDCTL_KEY), and again for more hosts.
# OVERLAYD_ETCD_PREFIX is the network's, as for overlayd.
set -eu
export ETCDCTL_API=3
prefix=${OVERLAYD_ETCD_PREFIX:-/overlayd/network}
role=overlayd

etcdctl role get "$role" >/dev/null 2>&1 || etcdctl role add "$role"
etcdctl role grant-permission "$role" read "$prefix/config"
etcdctl role grant-permission "$role" --prefix readwrite "$prefix/subnets/"
etcdctl role grant-permission "$role" --prefix readwrite "$prefix/overlayd/"
for user; do
	etcdctl user get "$user" >/dev/null 2>&1 || etcdctl user add "$user" --no-password
	etcdctl user grant-role "$user" "$role"
done
