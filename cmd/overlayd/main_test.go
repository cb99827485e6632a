package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/e2e/lab"
)

var update = flag.Bool("update", false, "write the golden files in testdata anew")

func TestMain(m *testing.M) { os.Exit(lab.Run(m.Run)) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// golden compares a text with a file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		must(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	must(t, err)
	if got != string(want) {
		t.Errorf("it is\n%s\nwant, as in %s (go test ./cmd/overlayd -update writes it)\n%s", got, path, want)
	}
}

// noEnv is an empty environment.
func noEnv(string) (string, bool) { return "", false }

// says runs a command line that must fail, and wants all the words in the error.
func says(t *testing.T, args []string, env func(string) (string, bool), words ...string) {
	t.Helper()
	var out bytes.Buffer
	err := run(t.Context(), args, env, &out)
	if err == nil {
		t.Fatalf("overlayd %s works: %s", strings.Join(args, " "), out.String())
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("overlayd %s says:\n%v\nwant in it:\n%s", strings.Join(args, " "), err, w)
		}
	}
}

// prints runs a command line that must work and returns what it prints.
func prints(t *testing.T, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if err := run(t.Context(), args, noEnv, &out); err != nil {
		t.Fatalf("overlayd %s: %v", strings.Join(args, " "), err)
	}
	return out.String()
}
