package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/e2e/lab"
)

// TestReadiness puts something in the way that cannot be mended, and takes it away again.
func TestReadiness(t *testing.T) {
	lab.Need(t)
	v := newTown(t, "ready", nil)
	host := v.hosts[0]
	far, err := v.hosts[1].Subnets()
	need(t, err)
	turns := func(ready bool) {
		t.Helper()
		need(t, lab.Within(2*second, fmt.Sprintf("ready: %v", ready), func() error {
			code, err := answerCode(host, "/readyz")
			if want := map[bool]int{true: 200, false: 503}[ready]; err != nil || code != want {
				return fmt.Errorf("%d: %w", code, err)
			}
			return nil
		}))
	}
	turns(true)
	_, err = host.Output(nil, "ip", "route", "replace", far[0].String(), "via", "192.0.2.66")
	need(t, err)
	turns(false)
	text, err := host.Overlayd("status")
	for _, want := range []string{"NOT READY", "the kernel differs", "differs  + " + far[0].String(), "since ", "via 192.0.2.66 dev eth0 proto boot has its place"} {
		if !strings.Contains(strings.Join(strings.Fields(text), " "), strings.Join(strings.Fields(want), " ")) || err == nil {
			t.Errorf("status does not say %q, or succeeds:\n%s", want, text)
		}
	}
	_, err = host.Output(nil, "ip", "route", "del", far[0].String(), "via", "192.0.2.66")
	need(t, err)
	turns(true)
	if text, err := host.Overlayd("status"); err != nil || strings.Contains(text, "differs") {
		t.Errorf("status: %v\n%s", err, text)
	}
}

// answerCode is the HTTP status of a daemon's answer.
func answerCode(h *lab.Host, path string) (int, error) {
	c := http.Client{Timeout: lab.Patience, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", h.Path("run/overlayd.sock"))
	}}}
	answer, err := c.Get("http://overlayd" + path)
	if err != nil {
		return 0, err
	}
	return answer.StatusCode, errors.Join(answer.Body.Close())
}
