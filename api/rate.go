package api

import (
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"

	"github.com/pembadb/pemba/graph"
)

// rates bound how many calls a second keys and stores have on this node. A
// bucket holds what one second allows, so that a burst of so many passes; with
// it empty, a call is refused and told when to come again. One key or store that
// is over its rate takes nothing from another.
type rates struct {
	// perKey bounds each key; zero means any number.
	perKey int
	// limited counts the refusals of keys and of stores.
	limited *prometheus.CounterVec

	mu     sync.RWMutex
	keys   map[keyDigest]*rate.Limiter
	stores map[graph.StoreID]*rate.Limiter
}

// bucketsMax bounds the buckets of each of the two maps. Beyond, those that are
// full are let go: a new one is full too, so that nobody notices. Should so many
// be in use at once, all are, and each gets at most one second's calls more.
const bucketsMax = 20_000

func newRates(perKey int, limited *prometheus.CounterVec) *rates {
	return &rates{perKey: perKey, limited: limited, keys: make(map[keyDigest]*rate.Limiter), stores: make(map[graph.StoreID]*rate.Limiter)}
}

// allow counts a call of the caller on the store, or refuses it with
// ResourceExhausted, RATE_LIMITED and the time after which to try again. A call
// that the store refuses has been counted for the key.
func (r *rates) allow(c caller, store graph.StoreInfo) error {
	now := time.Now()
	if r.perKey > 0 {
		if wait := take(r, r.keys, c.digest, r.perKey, now); wait > 0 {
			r.limited.WithLabelValues("key").Inc()
			return rateLimited("the key", map[string]string{"limited": "key"}, r.perKey, wait)
		}
	}
	if perStore := int(store.Settings.CallsPerSecond); perStore > 0 {
		if wait := take(r, r.stores, store.ID, perStore, now); wait > 0 {
			r.limited.WithLabelValues("store").Inc()
			return rateLimited(fmt.Sprintf("the store %q", store.Name), map[string]string{"limited": "store", "store": store.Name}, perStore, wait)
		}
	}
	return nil
}

// take takes one call out of a bucket of so many a second, and returns how long
// to wait when there is none.
func take[K comparable](r *rates, buckets map[K]*rate.Limiter, key K, perSecond int, now time.Time) time.Duration {
	r.mu.RLock()
	bucket := buckets[key]
	r.mu.RUnlock()
	if bucket == nil {
		r.mu.Lock()
		if bucket = buckets[key]; bucket == nil {
			if len(buckets) >= bucketsMax {
				for k, b := range buckets {
					if b.TokensAt(now) >= float64(b.Burst()) {
						delete(buckets, k)
					}
				}
				if len(buckets) >= bucketsMax {
					clear(buckets)
				}
			}
			bucket = rate.NewLimiter(rate.Limit(perSecond), perSecond)
			buckets[key] = bucket
		}
		r.mu.Unlock()
	}
	if bucket.Burst() != perSecond { // The setting has changed.
		bucket.SetLimitAt(now, rate.Limit(perSecond))
		bucket.SetBurstAt(now, perSecond)
	}
	if bucket.AllowN(now, 1) {
		return 0
	}
	missing := 1 - bucket.TokensAt(now)
	return max(time.Duration(missing/float64(perSecond)*float64(time.Second)), time.Millisecond)
}

func rateLimited(what string, metadata map[string]string, perSecond int, wait time.Duration) error {
	wait = (wait + time.Millisecond - 1).Truncate(time.Millisecond)
	metadata["limit"] = strconv.Itoa(perSecond)
	return &requestError{
		code: codes.ResourceExhausted, reason: "RATE_LIMITED", metadata: metadata, retry: wait,
		message: fmt.Sprintf("%s has %d calls a second on this node and has used them; try again in %v", what, perSecond, wait),
	}
}
