package main

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

func TestTheNodeFileIsTheDaemonsUnlessTold(t *testing.T) {
	for text, want := range map[string]string{
		`{}`:                             "/run/overlayd/node.json",
		`{"nodeFile":""}`:                "/run/overlayd/node.json",
		`{"nodeFile":"/x/y","more":[1]}`: "/x/y",
	} {
		c, err := parseConf(request{input: []byte(text)})
		if err != nil || c.NodeFile != want {
			t.Errorf("%s: node file %q, %v; want %q", text, c.NodeFile, err, want)
		}
	}
}

func FuzzConf(f *testing.F) {
	for _, seed := range []string{
		"", "{", "null", "[]", "7", `"text"`, "{}", `{"nodeFile":"relative"}`, `{"nodeFile":"/run/overlayd/node.json"}`, `{"nodeFile":7}`,
		`{"cniVersion":"1.0.0","name":"net","type":"overlay","capabilities":{"portMappings":true},"dns":{"nameservers":["10.5.1.1"]}}`,
		`{"name":"net","prevResult":{"cniVersion":"1.0.0","ips":[{"address":"10.5.1.2/24"}]}}`, `{"prevResult":null}`, `{"prevResult":[]}`,
		`{"ipam":{"type":"host-local"},"cni.dev/valid-attachments":[{"containerID":"c1","ifname":"eth0"}]}`, "\xff\xfe", `{"name":"\ud800"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := parseConf(request{input: text})
		if err == nil {
			err = c.check()
		}
		var coded *types.Error
		switch {
		case err == nil && !filepath.IsAbs(c.NodeFile):
			t.Errorf("%q: node file %q is not absolute", text, c.NodeFile)
		case err != nil && (!errors.As(err, &coded) || coded.Code == 0 || coded.Msg == ""):
			t.Errorf("%q: %v: want a *types.Error with a code and words", text, err)
		}
	})
}
