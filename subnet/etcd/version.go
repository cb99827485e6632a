package etcd

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// sound are the first releases, by minor version, without the holes that are known in etcd's access control:
// CVE-2026-33413 and CVE-2026-33343 (requests that need no right), CVE-2026-44283 and CVE-2026-73499 (reading what the role
// does not allow). Later minor versions have none of them.
var sound = map[int]int{5: 33, 6: 14, 7: 1}

const (
	oldestSound = 5 // no release of earlier minor versions is without
	holes       = "CVE-2026-33413, CVE-2026-33343, CVE-2026-44283 and CVE-2026-73499: whoever reaches it may do what no role allows"
)

// Weakness names the servers among the endpoints that have known holes in their access control, "" when none that answers
// has. It blocks for at most the time of a request for each endpoint.
func (s *Store) Weakness(ctx context.Context) (string, error) {
	var weak []string
	var failed error
	for _, e := range s.client.Endpoints() {
		answer, err := request(ctx, func(ctx context.Context) (*clientv3.StatusResponse, error) { return s.client.Status(ctx, e) })
		if err != nil {
			failed = fmt.Errorf("ask etcd %s for its version: %w", e, s.explain(ctx, err))
			continue
		}
		if isWeak(answer.Version) {
			weak = append(weak, fmt.Sprintf("%s runs etcd %s", e, answer.Version))
		}
	}
	if len(weak) == 0 {
		return "", failed
	}
	return fmt.Sprintf("%s, which has %s; fixed in 3.5.33, 3.6.14 and 3.7.1", strings.Join(weak, ", "), holes), nil
}

// isWeak says whether a version such as 3.4.23 is one before the fixes. One that cannot be read is not.
func isWeak(version string) bool {
	if extra := strings.IndexAny(version, "-+"); extra >= 0 {
		version = version[:extra]
	}
	parts := strings.Split(version, ".")
	if len(parts) != 3 || parts[0] != "3" {
		return false
	}
	minor, err := strconv.Atoi(parts[1])
	if err != nil {
		return false
	}
	patch, err := strconv.Atoi(parts[2])
	if err != nil {
		return false
	}
	first, ok := sound[minor]
	return minor < oldestSound || ok && patch < first
}
