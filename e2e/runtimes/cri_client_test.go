package runtimes

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/overlayd/overlayd/e2e/lab"
)

// kubelet asks a machine's containerd for pods as Kubernetes does, over the CRI.
type kubelet struct {
	*machine
	pods   cri.RuntimeServiceClient
	images cri.ImageServiceClient
}

// newKubelet gives a host containerd with the one image that all containers are of.
func newKubelet(t *testing.T, h *lab.Host, archive string) *kubelet {
	t.Helper()
	m := newMachine(t, h)
	// Calls wait for a containerd that starts again.
	conn, err := grpc.NewClient("unix://"+m.file("c.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	check(t, err)
	t.Cleanup(func() { check(t, conn.Close()) })
	k := &kubelet{machine: m, pods: cri.NewRuntimeServiceClient(conn), images: cri.NewImageServiceClient(conn)}
	_, err = m.ctr("--namespace", "k8s.io", "images", "import", "--snapshotter", "native", archive)
	check(t, err)
	check(t, lab.Eventually("the CRI knows the image", func() error { // it hears of it from containerd
		answer, err := ask(k.images.ListImages, &cri.ListImagesRequest{})
		if err == nil && !slices.ContainsFunc(answer.Images, func(i *cri.Image) bool { return slices.Contains(i.RepoTags, testImage) }) {
			err = fmt.Errorf("it knows %v", answer.Images)
		}
		return err
	}))
	return k
}

// ask makes one call, which must end in the lab's time.
func ask[Q, A any](call func(context.Context, Q, ...grpc.CallOption) (A, error), question Q) (A, error) {
	ctx, cancel := context.WithTimeout(context.Background(), lab.Patience)
	defer cancel()
	return call(ctx, question)
}

// ready is what the kubelet makes of a node's condition Ready.
func (k *kubelet) ready() error {
	answer, err := ask(k.pods.Status, &cri.StatusRequest{})
	if err != nil {
		return err
	}
	for _, c := range answer.Status.Conditions {
		if c.Type == cri.NetworkReady {
			if c.Status {
				return nil
			}
			return fmt.Errorf("%w: %s: %s", errNetwork, c.Reason, c.Message)
		}
	}
	return fmt.Errorf("there is no condition %s", cri.NetworkReady)
}

var errNetwork = errors.New("the network is not ready")

// sandbox is a pod without containers yet.
type sandbox struct {
	on     *kubelet
	id     string
	config *cri.PodSandboxConfig
	addrs  []netip.Addr
	main   string // its container, "" before there is one
}

// run makes a pod; with tells what is special about it.
func (k *kubelet) run(name string, with ...func(*cri.PodSandboxConfig)) (*sandbox, error) {
	s := &sandbox{on: k, config: &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Hostname: name,
		Linux:    &cri.LinuxPodSandboxConfig{CgroupParent: k.cgroup},
	}}
	for _, f := range with {
		f(s.config)
	}
	made, err := ask(k.pods.RunPodSandbox, &cri.RunPodSandboxRequest{Config: s.config})
	if err != nil {
		return nil, fmt.Errorf("run %s on %s: %w", name, k.ID, err)
	}
	s.id = made.PodSandboxId
	answer, err := ask(k.pods.PodSandboxStatus, &cri.PodSandboxStatusRequest{PodSandboxId: s.id})
	if err != nil {
		return nil, err
	}
	all := []string{answer.Status.GetNetwork().GetIp()}
	for _, more := range answer.Status.GetNetwork().GetAdditionalIps() {
		all = append(all, more.Ip)
	}
	for _, text := range all {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("address of %s: %w", name, err)
		}
		s.addrs = append(s.addrs, a)
	}
	return s, nil
}

// mustRun makes a pod that is removed with the test.
func (k *kubelet) mustRun(t *testing.T, name string, with ...func(*cri.PodSandboxConfig)) *sandbox {
	t.Helper()
	s, err := k.run(name, with...)
	check(t, err)
	s.endWith(t)
	return s
}

// endWith removes the pod with the test.
func (s *sandbox) endWith(t *testing.T) {
	t.Cleanup(func() {
		if err := s.discard(); err != nil {
			t.Error(err)
		}
	})
}

func (s *sandbox) stop() error {
	_, err := ask(s.on.pods.StopPodSandbox, &cri.StopPodSandboxRequest{PodSandboxId: s.id})
	return err
}

func (s *sandbox) remove() error {
	_, err := ask(s.on.pods.RemovePodSandbox, &cri.RemovePodSandboxRequest{PodSandboxId: s.id})
	return err
}

// discard ends the pod. It may be gone.
func (s *sandbox) discard() error {
	err := s.stop()
	if status.Code(err) == codes.NotFound {
		return nil
	}
	return errors.Join(err, s.remove())
}

// sweep ends the pods that containerd knows, so many.
func (k *kubelet) sweep(want int) error {
	answer, err := ask(k.pods.ListPodSandbox, &cri.ListPodSandboxRequest{})
	if err == nil && len(answer.Items) != want {
		err = fmt.Errorf("%s has the pods %v, want %d", k.ID, answer.Items, want)
	}
	for _, pod := range answer.GetItems() {
		err = errors.Join(err, (&sandbox{on: k, id: pod.Id}).discard())
	}
	return err
}

// start runs the pod's container.
func (s *sandbox) start(t *testing.T, command ...string) {
	t.Helper()
	made, err := ask(s.on.pods.CreateContainer, &cri.CreateContainerRequest{PodSandboxId: s.id, SandboxConfig: s.config, Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "main"}, Image: &cri.ImageSpec{Image: testImage}, Command: command,
		Linux: &cri.LinuxContainerConfig{},
	}})
	check(t, err)
	s.main = made.ContainerId
	_, err = ask(s.on.pods.StartContainer, &cri.StartContainerRequest{ContainerId: s.main})
	check(t, err)
}

// exec runs a program in the pod's container and returns what it prints.
func (s *sandbox) exec(command ...string) (string, error) {
	answer, err := ask(s.on.pods.ExecSync, &cri.ExecSyncRequest{ContainerId: s.main, Cmd: command})
	if err == nil && answer.ExitCode != 0 {
		err = fmt.Errorf("it ends with code %d", answer.ExitCode)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s%s", strings.Join(command, " "), err, answer.GetStdout(), answer.GetStderr())
	}
	return string(answer.Stdout), nil
}

// web is the command of a web server that tells whoever asks for [page] by what address it sees them.
func web() []string { return []string{"httpd", "-f", "-p", "80", "-h", "/var/www"} }

const page = "/cgi-bin/who"

// fetch is a command that prints that page. With its own timeout, wget of Debian 12's static busybox dies of a segmentation
// fault.
func fetch(from netip.Addr, port uint16) []string {
	return []string{busybox, "timeout", "10", busybox, "wget", "-q", "-O", "-", fmt.Sprintf("http://%s%s", netip.AddrPortFrom(from, port), page)}
}

// webArchive is the image with the page in it.
func webArchive(t *testing.T) string {
	t.Helper()
	root := rootFS(t)
	script := filepath.Join(root, "var/www", page)
	check(t, os.Mkdir(filepath.Dir(script), 0o755))
	check(t, os.WriteFile(script, []byte("#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n%s' \"$REMOTE_ADDR\"\n"), 0o755)) //nolint:gosec // a program
	return image(t, root, testImage)
}
