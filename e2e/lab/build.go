package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
)

const binariesVariable = "OVERLAYD_LAB_BINARIES"

// Test runs a package's tests inside a lab. It builds overlayd and overlay first, outside: inside there is no way to fetch
// modules. [Binaries] is where they are.
func Test(tests func() int) int {
	if os.Getenv(roleVariable) == "" && Binaries() == "" && Available() == nil {
		dir, err := build()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir) //nolint:errcheck // a temporary directory
		if err := os.Setenv(binariesVariable, dir); err != nil {
			return 1
		}
	}
	return Run(tests)
}

// Binaries is the directory of the programs that [Test] built.
func Binaries() string { return os.Getenv(binariesVariable) }

// build makes overlayd and overlay in a new directory.
func build() (string, error) {
	root, err := ModuleRoot()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "overlayd-lab-")
	if err != nil {
		return "", err
	}
	for name, pkg := range map[string]string{"overlayd": "./cmd/overlayd", "overlay": "./cni"} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, name), pkg)
		cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			return "", errors.Join(fmt.Errorf("build %s: %w: %s", name, err, text), os.RemoveAll(dir))
		}
	}
	return dir, nil
}

// depend looks at the files of which the programs are made, so that go test does not take a cached result for that of programs
// that have changed: it notes which files a test looks at (go help test).
func depend() error {
	root, err := ModuleRoot()
	if err != nil {
		return nil //nolint:nilerr // no test of this module's
	}
	var errs []error
	for _, name := range []string{"go.mod", "backend", "cmd", "cni", "subnet"} {
		errs = append(errs, filepath.WalkDir(filepath.Join(root, name), func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				_, err = os.Stat(path)
			}
			return err
		}))
	}
	return errors.Join(errs...)
}
