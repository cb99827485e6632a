package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/subnet/etcd/etcdtest"
)

// A process of the lab is this very program in another role.
const (
	roleVariable = "OVERLAYD_LAB_ROLE"
	dataVariable = "OVERLAYD_LAB_DATA"
	roleEtcd     = "etcd"
	roleNothing  = "nothing" // ends at once: it shows that the namespaces can be made
)

// serveEtcd is the role of the etcd server.
func serveEtcd() int {
	e, err := etcdtest.Serve(os.Getenv(dataVariable), EtcdEndpoint)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	<-stop
	e.Close()
	return 0
}

// Process is a running program of the lab.
type Process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
	err  error         // how, once done is closed
}

// start runs a program inside a namespace; what it prints goes to the end of the log file.
func start(n *Netns, log string, env []string, name string, args ...string) (*Process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close() //nolint:errcheck // the program has it open too
	cmd := exec.Command(name, args...)
	if len(args) == 0 && name == "/proc/self/exe" {
		cmd.Args[0] = "lab: " + n.Name // for ps
	}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // ^C in a terminal is for the lab, which ends it all
	if err := n.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &Process{cmd: cmd, log: log, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// PID is the process's number inside the lab.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends a signal.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// Exited returns nil while the process runs, else how it ended.
func (p *Process) Exited() error {
	select {
	case <-p.done:
		return fmt.Errorf("ended: %w", errors.Join(p.err, errors.New(p.Log())))
	default:
		return nil
	}
}

// End sends a signal and waits for the end. After a SIGTERM an exit code other than 0 is an error.
func (p *Process) End(s unix.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.done:
	case <-time.After(Patience):
		return fmt.Errorf("process %d outlived %s for %s", p.PID(), s, Patience)
	}
	if s == unix.SIGTERM && p.err != nil {
		return fmt.Errorf("process %d: %w\n%s", p.PID(), p.err, p.Log())
	}
	return nil
}

// Log is what the process has printed.
func (p *Process) Log() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Output runs a program inside the namespace and returns what it prints. The error holds what it complains of.
func (n *Netns) Output(env []string, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err := n.Do(cmd.Run)
	if err != nil {
		err = fmt.Errorf("%s on %s: %w: %s", filepath.Base(name), n.Name, err, bytes.TrimSpace(complaint.Bytes()))
	}
	return out.String(), err
}
