package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcd"
)

// withStore runs f with a connection to etcd.
func withStore(o *options, f func(*etcd.Store) error) error {
	store, err := etcd.Open(o.store)
	if err != nil {
		return err
	}
	return errors.Join(f(store), store.Close())
}

// runConfig shows or sets the network's configuration.
func runConfig(ctx context.Context, o *options, operands []string, out io.Writer) error {
	switch {
	case slices.Equal(operands, []string{"get"}):
		return withStore(o, func(s *etcd.Store) error {
			text, err := s.Config(ctx)
			if err == nil {
				_, err = fmt.Fprintln(out, strings.TrimSuffix(text, "\n"))
			}
			return err
		})
	case len(operands) == 2 && operands[0] == "set":
		text, err := readInput(operands[1])
		if err != nil {
			return err
		}
		return withStore(o, func(s *etcd.Store) error {
			set := s.Configure
			if o.force {
				set = s.ConfigureAnyway
			}
			empty, err := s.Empty(ctx)
			if err != nil {
				return err
			}
			if err := set(ctx, strings.TrimSpace(text)); err != nil {
				return err
			}
			if _, known := loadNetwork(o.stateDir, o.store.Prefix); empty && !known { // else hosts of a wiped store may be about to come back
				if err := s.Found(ctx); err != nil {
					return err
				}
			}
			_, err = fmt.Fprintf(out, "set at %s/config\n", o.store.Prefix)
			return err
		})
	}
	return fmt.Errorf("%q: want: overlayd config get, or: overlayd config set FILE", strings.Join(append([]string{"config"}, operands...), " "))
}

func readInput(name string) (string, error) {
	if name == "-" {
		text, err := io.ReadAll(os.Stdin)
		return string(text), err
	}
	text, err := os.ReadFile(name)
	return string(text), err
}

func printJSON(out io.Writer, v any) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// runPlan prints what this host's kernel should hold: as the running daemon has it, else as the store and the flags say.
func runPlan(ctx context.Context, o *options, _ []string, out io.Writer) error {
	if text, err := ask(ctx, filepath.Join(o.runDir, socketName), "/plan"); err == nil {
		_, err = out.Write(text)
		return err
	}
	return withStore(o, func(store *etcd.Store) error {
		s, err := store.List(ctx)
		if err != nil {
			return err
		}
		if _, ok := s.Lease(o.node); !ok {
			return fmt.Errorf("node %s has no lease: start overlayd here, or give the --node-name it runs with", o.node)
		}
		host, err := look(o.kernel(s.Config.Backend.VNI))
		if err != nil {
			return err
		}
		_, err = fmt.Fprint(out, backend.Plan(host, s))
		return err
	})
}

// podRow is one pod for people and programs.
type podRow struct {
	Addrs      []netip.Addr `json:"addresses"`
	Link       string       `json:"link"`
	Attachment string       `json:"attachment"` // network/container/interface; empty while the pod is being attached
}

// runPods lists the pods of this host.
func runPods(_ context.Context, o *options, _ []string, out io.Writer) error {
	options := o.kernel(0)
	options.NoUplink = true
	host, err := look(options)
	if err != nil {
		return err
	}
	rows := make([]podRow, len(host.Pods))
	for i, p := range host.Pods {
		rows[i] = podRow{Addrs: p.Addrs, Link: p.Link, Attachment: p.Alias}
	}
	slices.SortFunc(rows, func(a, b podRow) int { return a.Addrs[0].Compare(b.Addrs[0]) })
	if o.json {
		return printJSON(out, rows)
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ADDRESS\tHOST LINK\tCONTAINER")
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%s\t%s\n", words(r.Addrs), r.Link, r.Attachment)
	}
	return t.Flush()
}

// runUninstall takes everything of ours off this host and gives the lease back. It can be run again.
func runUninstall(ctx context.Context, o *options, _ []string, out io.Writer) error {
	if _, err := os.Stat(o.runDir); err == nil {
		held, err := takeLock(o.runDir)
		if errors.Is(err, errRunning) && o.force {
			held, err = stopHolder(ctx, o.runDir)
		}
		if err != nil {
			return fmt.Errorf("uninstall: %w, or give --force and uninstall stops it", err)
		}
		defer held.release()
	}
	o.asMade()
	if err := clearKernel(o, out); err != nil {
		return fmt.Errorf("uninstall: %w", err)
	}
	for _, dir := range []string{o.runDir, o.stateDir} {
		if err := clearFiles(dir); err != nil {
			return fmt.Errorf("uninstall: %w", err)
		}
	}
	return withStore(o, func(store *etcd.Store) error {
		lease, err := store.Release(ctx, o.node, bootID())
		if err != nil {
			return fmt.Errorf("uninstall: this host is clean, but its lease stays until it expires: %w", err)
		}
		if lease.Node != "" {
			_, err = fmt.Fprintln(out, "released", lease)
		}
		return err
	})
}

// asMade takes over what the daemon ran with, from the file that it left: whoever uninstalls need not know its flags.
func (o *options) asMade() {
	text, err := os.ReadFile(filepath.Join(o.runDir, nodeFileName))
	if err != nil {
		return
	}
	if f, err := subnet.ParseNodeFile(text); err == nil {
		o.node, o.bridge, o.vxlanName = f.Node, f.Bridge, f.VXLAN
	}
}

func clearKernel(o *options, out io.Writer) error {
	options := o.kernel(0)
	options.NoUplink = true
	k, err := kernel.Open(options)
	if err != nil {
		return err
	}
	defer k.Close() //nolint:errcheck // sockets that were only asked
	host, _, err := k.Read()
	if err != nil {
		return err
	}
	if len(host.Pods) > 0 {
		if !o.force {
			return fmt.Errorf("%d pods are attached to %s (overlayd pods lists them): stop them first, or give --force and they lose their network", len(host.Pods), o.bridge)
		}
		if err := k.Detach(host.Pods); err != nil {
			return err
		}
		for _, p := range host.Pods {
			fmt.Fprintln(out, "-", p.Link, "of", p.Alias, words(p.Addrs))
		}
	}
	removed, err := backend.Remove(k)
	for _, c := range removed {
		fmt.Fprintln(out, c)
	}
	return err
}

// clearFiles removes the files that overlayd makes, and the directory if nothing else is in it.
func clearFiles(dir string) error {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // a directory
	for _, name := range []string{nodeFileName, subnetEnvName, socketName, "lock", networkName, badName} {
		if err := root.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	_ = os.Remove(dir) // fails if somebody else put something there
	return nil
}
