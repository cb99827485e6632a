package lab

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// Cgroup is the parent of the cgroups that container runtimes make for one machine of the lab, below each hierarchy's root.
// Cgroups are the only thing that outlives the lab's namespaces: [RemoveCgroups] removes them, and so does the lab's end.
func Cgroup(machine string) string { return cgroupsOf(Pid()) + machine }

// cgroupsOf begins the names of all parents of a lab.
func cgroupsOf(pid string) string { return "/overlayd-lab-" + pid + "-" }

// Cgroups are the directories of all cgroups below parents that match the pattern, in all hierarchies, outer ones first.
func Cgroups(pattern string) (dirs []string, err error) {
	for _, hierarchy := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} { // of version 2, and of 1 or both
		parents, err := filepath.Glob(hierarchy + pattern)
		if err != nil {
			return nil, err
		}
		for _, parent := range parents {
			err := filepath.WalkDir(parent, func(path string, d fs.DirEntry, err error) error {
				switch {
				case errors.Is(err, fs.ErrNotExist): // its runtime is removing it
				case err != nil:
					return err
				case d.IsDir():
					dirs = append(dirs, path)
				}
				return nil
			})
			if err != nil {
				return nil, err
			}
		}
	}
	return dirs, nil
}

// RemoveCgroups waits until no process is in the cgroups that [Cgroups] finds any more, and removes them.
func RemoveCgroups(pattern string) error {
	return Eventually("the cgroups are gone", func() error {
		dirs, err := Cgroups(pattern)
		for _, dir := range slices.Backward(dirs) { // inner ones first
			err = errors.Join(err, unix.Rmdir(dir))
		}
		return err
	})
}

// sweep removes what is left of the cgroups of a lab that has ended, however that was.
func sweep(lab *os.Process) error { return RemoveCgroups(cgroupsOf(strconv.Itoa(lab.Pid)) + "*") }
