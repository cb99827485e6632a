package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"

	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcd"
)

func leasesFlags(f *pflag.FlagSet, o *options) {
	jsonFlag(f, o)
	f.BoolVar(&o.onlyReservation, "only-reservation", false, "release what is reserved for the node, and leave its lease")
	f.BoolVar(&o.onlyLease, "only-lease", false, "release the node's lease, and leave what is reserved for it")
}

// runLeases lists the network, or changes who has what in it.
func runLeases(ctx context.Context, o *options, operands []string, out io.Writer) error {
	switch {
	case len(operands) == 0:
		return withStore(o, func(s *etcd.Store) error { return listLeases(ctx, o, s, out) })
	case len(operands) == 3 && operands[0] == "reserve":
		p, err := netip.ParsePrefix(operands[2])
		if err != nil {
			return fmt.Errorf("reserve %s: want a subnet such as 10.5.34.0/24", operands[2])
		}
		return withStore(o, func(s *etcd.Store) error { return reserve(ctx, s, operands[1], p, out) })
	case len(operands) == 2 && operands[0] == "release":
		return withStore(o, func(s *etcd.Store) error { return giveUp(ctx, o, s, operands[1], out) })
	}
	return fmt.Errorf("%q: want: overlayd leases, overlayd leases reserve NODE SUBNET, or: overlayd leases release NODE",
		strings.Join(append([]string{"leases"}, operands...), " "))
}

func reserve(ctx context.Context, s *etcd.Store, node string, p netip.Prefix, out io.Writer) error {
	former, err := s.Reserve(ctx, node, p)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "reserved %s for %s\n", p, node)
	if former.IsValid() {
		fmt.Fprintf(out, "released its reservation of %s\n", former)
	}
	l, err := s.List(ctx)
	if err != nil {
		return err
	}
	if own, ok := l.Lease(node); ok && !slices.Contains(own.Subnets(), p) {
		fmt.Fprintf(out, "%s has %s now: it gets %s after it was stopped, and: overlayd leases release %s --only-lease\n", node, words(own.Subnets()), p, node)
	}
	return nil
}

// giveUp releases a node's lease and reservation. Its daemon must not run.
func giveUp(ctx context.Context, o *options, s *etcd.Store, node string, out io.Writer) error {
	if err := subnet.CheckNode(node); err != nil {
		return err
	}
	var lease subnet.Lease
	var err error
	if !o.onlyReservation {
		if lease, err = s.Release(ctx, node, ""); err != nil {
			return err
		}
	}
	var freed []netip.Prefix
	if !o.onlyLease {
		if freed, err = s.Unreserve(ctx, node); err != nil {
			return err
		}
	}
	if lease.Node != "" {
		fmt.Fprintln(out, "released", lease)
	}
	for _, p := range freed {
		fmt.Fprintf(out, "released the reservation of %s for %s\n", p, node)
	}
	if lease.Node == "" && len(freed) == 0 {
		fmt.Fprintf(out, "%s has nothing to release\n", node)
	}
	return nil
}

// leaseRow is one line of the list.
type leaseRow struct {
	Node     string         `json:"node"`
	Subnets  []netip.Prefix `json:"subnets"`
	PublicIP netip.Addr     `json:"publicIP"`
	MAC      subnet.MAC     `json:"mac"`
	State    []string       `json:"state"` // of: live, silent, expires-soon, reserved, endless, foreign
	Expires  float64        `json:"expiresSeconds,omitempty"`
}

// soonPart of the lease's duration is when it "expires soon".
const soonPart = 10

func listLeases(ctx context.Context, o *options, store *etcd.Store, out io.Writer) error {
	l, err := store.Standings(ctx)
	if err != nil {
		return err
	}
	rows := leaseRows(l, o.leaseTTL)
	if o.json {
		return printJSON(out, struct {
			Revision int64            `json:"revision"`
			Leases   []leaseRow       `json:"leases"`
			Skipped  []subnet.Skipped `json:"skipped"`
		}{l.Revision, rows, l.Skipped})
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tSUBNET\tPUBLIC IP\tMAC\tSTATE")
	for _, r := range rows {
		public, mac := "-", "-"
		if r.PublicIP.IsValid() {
			public, mac = r.PublicIP.String(), r.MAC.String()
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", r.Node, words(r.Subnets), public, mac, r.describe())
	}
	printSkipped(t, l.Skipped, len(l.Skipped))
	return t.Flush()
}

func (r leaseRow) describe() string {
	text := strings.Join(r.State, ", ")
	if r.Expires > 0 {
		text += fmt.Sprintf(", ends in %s", time.Duration(r.Expires*float64(time.Second)))
	}
	return text
}

// leaseRows are the leases, and the reservations that no lease is for, by subnet.
func leaseRows(l etcd.Listing, ttl time.Duration) []leaseRow {
	rows := make([]leaseRow, 0, len(l.Leases))
	leased := map[subnet.Reservation]bool{}
	for _, lease := range l.Leases {
		for _, p := range lease.Subnets() {
			leased[subnet.Reservation{Node: lease.Node, Subnet: p}] = true
		}
	}
	reserved := map[netip.Prefix]bool{}
	for _, r := range l.Reserved {
		reserved[r.Subnet] = true
		if !leased[r] {
			rows = append(rows, leaseRow{Node: r.Node, Subnets: []netip.Prefix{r.Subnet}, State: []string{"reserved"}})
		}
	}
	for _, lease := range l.Leases {
		r := leaseRow{Node: lease.Node, Subnets: lease.Subnets(), PublicIP: lease.PublicIP, MAC: lease.MAC}
		standing := l.Standing[lease.String()]
		switch {
		case standing.Foreign:
			r.Node = "(flannel)"
			r.State = append(r.State, "foreign")
		case standing.Alive:
			r.State = append(r.State, "live")
		default:
			r.State = append(r.State, "silent")
		}
		if standing.Endless {
			r.State = append(r.State, "endless")
		}
		if r.Expires = standing.Left.Seconds(); standing.Left > 0 && standing.Left < ttl/soonPart {
			r.State = append(r.State, "expires-soon")
		}
		if slices.ContainsFunc(lease.Subnets(), func(p netip.Prefix) bool { return reserved[p] }) {
			r.State = append(r.State, "reserved")
		}
		rows = append(rows, r)
	}
	slices.SortFunc(rows, func(a, b leaseRow) int { return a.Subnets[0].Addr().Compare(b.Subnets[0].Addr()) })
	return rows
}
