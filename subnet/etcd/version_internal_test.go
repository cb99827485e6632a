package etcd

import "testing"

func TestWhichVersionsAreWeak(t *testing.T) {
	t.Parallel()
	for version, weak := range map[string]bool{
		"3.3.27": true, "3.4.23": true, "3.4.99": true, "3.5.0": true, "3.5.32": true, "3.6.13": true, "3.7.0": true,
		"3.5.33": false, "3.5.100": false, "3.6.14": false, "3.7.1": false, "3.7.3": false, "3.8.0": false, "3.8.0-alpha": false, "3.10.0": false, "4.0.0": false,
		"3.6.13+git": true, "3.6.14+git": false, "3.7.0-rc.0": true,
		"": false, "nonsense": false, "3": false, "3.4": false, "3.x.1": false, "3.4.x": false, "3.4.5.6": false, "-3.4.1": false, "3.-4.1": false,
	} {
		if got := isWeak(version); got != weak {
			t.Errorf("%q: weak %t, want %t", version, got, weak)
		}
	}
}
