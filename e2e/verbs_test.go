package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/rogpeppe/go-internal/testscript"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/e2e/lab"
)

// withFaults adds the verbs of stories in which somebody meddles: with etcd's content, with processes, with the plugin.
func withFaults(verbs map[string]func(*testscript.TestScript, bool, []string)) map[string]func(*testscript.TestScript, bool, []string) {
	maps.Copy(verbs, map[string]func(*testscript.TestScript, bool, []string){
		"put":     verb(2, (*story).put),
		"del":     verb(-1, (*story).del),
		"flannel": verb(3, (*story).flannel),
		"compact": verb(0, (*story).compact),
		"freeze":  verb(1, func(s *story, _ *testscript.TestScript, a []string) error { return s.signal(a[0], unix.SIGSTOP) }),
		"thaw":    verb(1, func(s *story, _ *testscript.TestScript, a []string) error { return s.signal(a[0], unix.SIGCONT) }),
		"reboot":  verb(1, (*story).reboot),
		"refused": verb(4, (*story).refused),
		"metrics": verb(1, (*story).metrics),
		"flowing": verb(0, (*story).flowing),
	})
	return verbs
}

// below is where the network's keys lie.
const below = "/overlayd/network/"

// raw does something with etcd that no overlayd does.
func (s *story) raw(f func(context.Context, *clientv3.Client) error) error {
	c, err := client(s.lab)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), lab.Patience)
	defer cancel()
	return errors.Join(f(ctx, c), c.Close())
}

// put writes a key below the network's prefix: its value is the text, or the content of the file of that name.
func (s *story) put(ts *testscript.TestScript, args []string) error {
	value := args[1]
	if _, err := os.Stat(ts.MkAbs(value)); err == nil {
		value = ts.ReadFile(value)
	}
	return s.raw(func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Put(ctx, below+args[0], value)
		return err
	})
}

// del deletes keys, all at once.
func (s *story) del(_ *testscript.TestScript, args []string) error {
	return s.raw(func(ctx context.Context, c *clientv3.Client) error {
		var ops []clientv3.Op
		for _, key := range args {
			ops = append(ops, clientv3.OpDelete(below+key))
		}
		answer, err := c.Txn(ctx).Then(ops...).Commit()
		if err != nil {
			return err
		}
		for i, r := range answer.Responses {
			if r.GetResponseDeleteRange().Deleted == 0 {
				return fmt.Errorf("there was no %s", args[i])
			}
		}
		return nil
	})
}

// flannel writes the lease of a host that runs flannel: subnet, public address, MAC.
func (s *story) flannel(ts *testscript.TestScript, args []string) error {
	key := "subnets/" + strings.ReplaceAll(args[0], "/", "-")
	return s.put(ts, []string{key, fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":%q}}`, args[1], args[2])})
}

// compact makes etcd forget all former revisions.
func (s *story) compact(*testscript.TestScript, []string) error {
	return s.raw(func(ctx context.Context, c *clientv3.Client) error {
		answer, err := c.Get(ctx, below+"config")
		if err != nil {
			return err
		}
		_, err = c.Compact(ctx, answer.Header.Revision, clientv3.WithCompactPhysical())
		return err
	})
}

// signal sends a signal to a host's daemon.
func (s *story) signal(host string, signal unix.Signal) error {
	return s.hosts[host].Daemon().Signal(signal)
}

// reboot takes away what a host does not keep through a reboot: its daemon, our devices and routes, its run directory.
func (s *story) reboot(_ *testscript.TestScript, args []string) error {
	h := s.hosts[args[0]]
	errs := []error{h.Kill(), os.RemoveAll(filepath.Join(h.Dir, "run"))}
	for _, args := range []string{"link del overlay.1", "link del ovl0", "route flush proto 142"} {
		_, err := h.Output(nil, "ip", strings.Fields(args)...)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// refused makes sure that the plugin attaches no pod to a host: host, pod, the error's code and text.
func (s *story) refused(_ *testscript.TestScript, args []string) error {
	code, err := strconv.ParseUint(args[2], 10, 32)
	if err != nil {
		return err
	}
	s.pods[args[1]], err = s.hosts[args[0]].Pod(args[1])
	var why *types.Error
	if !errors.As(err, &why) || uint64(why.Code) != code || !regexp.MustCompile(args[3]).MatchString(why.Error()) {
		return fmt.Errorf("want code %d and %s: %w", code, args[3], errors.Join(err, errors.New("not that")))
	}
	return nil
}

// metrics prints what a daemon tells Prometheus.
func (s *story) metrics(ts *testscript.TestScript, args []string) error {
	text, err := overSocket(s.hosts[args[0]], "/metrics")
	fmt.Fprintf(ts.Stdout(), "%s", text)
	return err
}

// overSocket asks a host's daemon.
func overSocket(h *lab.Host, path string) ([]byte, error) {
	c := http.Client{Timeout: lab.Patience, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(h.Dir, "run", "overlayd.sock"))
	}}}
	answer, err := c.Get("http://overlayd" + path)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(answer.Body)
	return text, errors.Join(err, answer.Body.Close())
}

// flowing waits until each flow has had another dozen answers: traffic goes on after what the story did.
func (s *story) flowing(*testscript.TestScript, []string) error {
	const some = 12
	for _, f := range s.flows {
		_, before := f.Counts()
		if err := lab.Eventually("traffic goes on", func() error {
			if _, now := f.Counts(); now < before+some {
				return fmt.Errorf("%d answers", now-before)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}
