package main

import (
	"context"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/overlayd/overlayd/subnet/etcd"
)

const (
	inspectEvery = 5 * time.Second  // certificates on disk
	versionEvery = 10 * time.Minute // etcd's version: servers are replaced one by one
	versionAgain = time.Minute      // when a server did not answer: to ask makes a connection to each
	expirySoon   = 7 * 24 * time.Hour
)

// inspect looks at what is going to be a problem: certificates and the servers' version. It blocks until the context ends.
func (w *witness) inspect(ctx context.Context, store *etcd.Store) error {
	var next time.Time // when to ask for versions
	for {
		w.secured(store.Security())
		if time.Now().After(next) && !w.options.allowOldEtcd {
			pause := versionAgain
			if weak, err := store.Weakness(ctx); err == nil {
				pause = versionEvery
				w.weakened(weak)
			}
			next = time.Now().Add(pause)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(inspectEvery):
		}
	}
}

func (w *witness) opened(s *etcd.Store) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.security = s.Security()
}

// secured is told how the certificates stand.
func (w *witness) secured(s etcd.Security) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.security = s
	if w.tls.set(s.Trouble) {
		if s.Trouble != nil {
			klog.Warningf("certificates: %v: going on with the former ones", s.Trouble)
		} else {
			klog.Info("certificates: in use as they are on disk")
		}
	}
	var soon error
	switch left := time.Until(s.Expires); {
	case s.Expires.IsZero() || left > expirySoon:
	case left > 0:
		soon = fmt.Errorf("this host's certificate ends at %s", s.Expires.Format(time.DateTime))
	default:
		soon = fmt.Errorf("this host's certificate ended at %s: etcd takes no new connection with it", s.Expires.Format(time.DateTime))
	}
	if w.expiry.set(soon) && soon != nil {
		klog.Warningf("certificates: %v", soon)
	}
}

// weakened is told what is known against the servers.
func (w *witness) weakened(weak string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if weak != "" && weak != w.weak {
		klog.Warningf("store: %s (--allow-old-etcd if you know)", weak)
	}
	w.weak = weak
}
