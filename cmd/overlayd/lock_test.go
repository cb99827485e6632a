package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestASecondDaemonIsRefusedAndToldWhoRuns(t *testing.T) {
	dir := t.TempDir()
	// What a killed daemon left says nothing, however long it is.
	must(t, os.WriteFile(filepath.Join(dir, "lock"), []byte("1234567890123\n"), 0o644))
	first, err := takeLock(dir)
	must(t, err)
	for range 2 { // being refused does not break the lock
		_, err = takeLock(dir)
		if want := fmt.Sprintf("another overlayd runs on this host as process %d (lock %s/lock)", os.Getpid(), dir); !errors.Is(err, errRunning) || !strings.Contains(err.Error(), want) {
			t.Errorf("the second is told:\n%v\nwant in it:\n%s", err, want)
		}
	}
	says(t, []string{"--run-dir", dir, "--state-dir", dir}, noEnv, "another overlayd runs", fmt.Sprintf("process %d ", os.Getpid()))
	says(t, []string{"uninstall", "--run-dir", dir, "--state-dir", dir}, noEnv, "another overlayd runs", fmt.Sprintf("process %d ", os.Getpid()), "--force")
	first.release()
	next, err := takeLock(dir)
	must(t, err)
	next.release()
}

func TestALockWithoutADirectoryNamesIt(t *testing.T) {
	_, err := takeLock("/nonexistent")
	if err == nil || errors.Is(err, errRunning) || !strings.Contains(err.Error(), "/nonexistent/lock") {
		t.Errorf("%v: want that /nonexistent/lock cannot be made", err)
	}
}

func TestOnlyFilesOfOursAreCleared(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	must(t, clearFiles(dir)) // as often as one likes
	must(t, os.Mkdir(dir, 0o755))
	for _, name := range []string{nodeFileName, subnetEnvName, socketName, "lock", "theirs"} {
		must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o644))
	}
	must(t, clearFiles(dir))
	left, err := os.ReadDir(dir)
	must(t, err)
	if len(left) != 1 || left[0].Name() != "theirs" {
		t.Errorf("left are %v, want theirs alone", left)
	}
	must(t, os.Remove(filepath.Join(dir, "theirs")))
	must(t, clearFiles(dir))
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the empty directory is there still: %v", err)
	}
}
