package main

import (
	"context"
	"fmt"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/overlayd/overlayd/e2e/lab"
)

// engine is a container runtime: it drives the plugin as containerd and podman do: by libcni, with its cache of results.
type engine struct {
	*host
	cni  *libcni.CNIConfig
	list *libcni.NetworkConfigList
}

// newEngine has a list with this plugin first; its object has further keys, and further plugins follow it.
func newEngine(t *testing.T, h *host, version, more, behind string) engine {
	t.Helper()
	list, err := libcni.ConfListFromBytes(fmt.Appendf(nil, `{"cniVersion":%q,"name":"net","plugins":[{"type":"overlay","nodeFile":%q%s}%s]}`, version, h.file, more, behind))
	must(t, err)
	return engine{h, libcni.NewCNIConfigWithCacheDir([]string{lab.Binaries(), debian}, t.TempDir(), nil), list}
}

func runtimeConf(container, netns string, capabilities map[string]any) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: container, NetNS: netns, IfName: "eth0", CapabilityArgs: capabilities}
}

func (r engine) add(rt *libcni.RuntimeConf) (result *current.Result, err error) {
	err = r.Do(func() error {
		answer, err := r.cni.AddNetworkList(context.Background(), r.list, rt)
		if err != nil {
			return err
		}
		result, err = current.NewResultFromResult(answer)
		return err
	})
	return result, err
}

func (r engine) check(rt *libcni.RuntimeConf) error {
	return r.Do(func() error { return r.cni.CheckNetworkList(context.Background(), r.list, rt) })
}

func (r engine) del(rt *libcni.RuntimeConf) error {
	return r.Do(func() error { return r.cni.DelNetworkList(context.Background(), r.list, rt) })
}

func libcniGC(t *testing.T, a act) {
	r := newEngine(t, a.host, a.version, "", "")
	other := newSpace(t)
	_, err := r.add(runtimeConf("c1", a.pod.Path(), nil))
	must(t, err)
	_, err = r.add(runtimeConf("c2", other.Path(), nil))
	must(t, err)
	before := text(t, other)
	must(t, a.Do(func() error {
		return r.cni.GCNetworkList(context.Background(), r.list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "c2", IfName: "eth0"}}})
	}))
	same(t, "the pod that is not valid", text(t, a.pod), "")
	same(t, "the other pod", text(t, other), before)
	must(t, r.check(runtimeConf("c2", other.Path(), nil)))
	must(t, a.Do(func() error { return r.cni.GetStatusNetworkList(context.Background(), r.list) }))
}
