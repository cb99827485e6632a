package main

import (
	"fmt"
	"slices"

	"k8s.io/klog/v2"

	"github.com/overlayd/overlayd/backend"
)

// standsInTheWay says what somebody's chain drops, and how it is opened.
func standsInTheWay(o backend.Obstacle, h backend.Host, port uint16) string {
	return fmt.Sprintf("nft chain %s drops %s; to open it: %s", o.Chain, o.Loss(port), o.Remedy(h, port))
}

// tellObstacles logs those that have come and gone since the pass before.
func tellObstacles(before, now backend.Host, port uint16) {
	without := func(all []backend.Obstacle, o backend.Obstacle) bool {
		return !slices.ContainsFunc(all, func(other backend.Obstacle) bool { return other.Chain == o.Chain && other.Hook == o.Hook })
	}
	for _, o := range now.Obstacles {
		if without(before.Obstacles, o) {
			klog.Warning(standsInTheWay(o, now, port))
		}
	}
	for _, o := range before.Obstacles {
		if without(now.Obstacles, o) {
			klog.Infof("nft chain %s no longer drops %s", o.Chain, o.Loss(port))
		}
	}
}
