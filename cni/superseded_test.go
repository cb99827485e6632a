package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/e2e/lab"
)

// scripted is an IPAM plugin that does what a shell script says, in a directory of its own, D.
func scripted(t *testing.T, h *host, c call, script string) (call, string) {
	t.Helper()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "scripted"), []byte("#!/bin/sh\nD="+dir+"\n"+script), 0o755))
	c.conf = h.conf("1.0.0", "net", `,"ipam":{"type":"scripted"}`)
	c.env = map[string]string{"CNI_PATH": dir, "PATH": os.Getenv("PATH")}
	return c, dir
}

// TestAnADDThatAnotherTookThePlaceOfTouchesNothing of the other's: its own link is gone, whatever has the name now.
func TestAnADDThatAnotherTookThePlaceOfTouchesNothing(t *testing.T) {
	for _, second := range []string{"10.5.1.40", "10.5.1.41"} { // the first one's address, or another
		t.Run(second, func(t *testing.T) {
			h, pod := newHost(t, "10.5.1.0/24"), newSpace(t)
			slow, dir := scripted(t, h, h.add("c1", pod), `[ "$CNI_COMMAND" = ADD ] || exit 0
if mkdir $D/first 2>/dev/null; then
	while [ ! -e $D/go ]; do sleep 0.01; done
	echo '{"cniVersion":"1.0.0","ips":[{"address":"10.5.1.40/24"}]}'
else
	echo '{"cniVersion":"1.0.0","ips":[{"address":"`+second+`/24"}]}'
fi
`)
			first := make(chan answer, 1)
			go func() {
				a, err := h.run(slow)
				first <- answer{err: a.err, text: fmt.Sprint(a.text, err)}
			}()
			must(t, lab.Eventually("the first ADD asks for an address", func() error {
				_, err := os.Stat(filepath.Join(dir, "first"))
				return err
			}))
			h.do(t, slow)
			before, podBefore := text(t, h.Netns), text(t, pod)
			must(t, os.WriteFile(filepath.Join(dir, "go"), nil, 0o600))
			if a := <-first; a.err == nil {
				t.Errorf("the first ADD succeeded: %s", a.text)
			}
			same(t, "the host", text(t, h.Netns), before)
			same(t, "the pod", text(t, pod), podBefore)
		})
	}
}

// TestIPAMIsCalledFromTheHostsNamespace even when the way back from the pod's has failed.
func TestIPAMIsCalledFromTheHostsNamespace(t *testing.T) {
	strace := needed(t, "strace")
	h, pod := newHost(t, "10.5.1.0/24"), newSpace(t)
	before := text(t, h.Netns)
	c, dir := scripted(t, h, h.add("c1", pod), `echo "$CNI_COMMAND $(readlink /proc/self/ns/net)" >> $D/log
[ "$CNI_COMMAND" != ADD ] || echo '{"cniVersion":"1.0.0","ips":[{"address":"10.5.1.40/24"}]}'
`)
	cmd := exec.Command(strace, "-f", "-o", "/dev/null", "-e", "trace=setns", "-e", "inject=setns:error=EPERM:when=2", filepath.Join(lab.Binaries(), "overlay"))
	cmd.Env = []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=c1", "CNI_NETNS=" + c.netns, "CNI_IFNAME=eth0", "CNI_PATH=" + dir, "PATH=" + os.Getenv("PATH")}
	cmd.Stdin = strings.NewReader(c.conf)
	var out []byte
	must(t, h.Do(func() (err error) {
		if out, err = cmd.Output(); err == nil {
			return fmt.Errorf("it succeeds: %s", out)
		}
		return nil
	}))
	if !strings.Contains(string(out), "leave ") {
		t.Errorf("it says %s", out)
	}
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	must(t, err)
	var added, deleted string
	if n, err := fmt.Sscanf(string(log), "ADD %s\nDEL %s\n", &added, &deleted); n != 2 || added != deleted {
		t.Errorf("called were (%v)\n%s", err, log)
	}
	same(t, "the host", text(t, h.Netns), before)
}
