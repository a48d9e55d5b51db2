package api

import (
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/graph"
)

func testRates(perKey int) *rates {
	return newRates(perKey, prometheus.NewCounterVec(prometheus.CounterOpts{Name: "limited"}, []string{"limited"}))
}

// spend calls until it is refused, at most so many times, and returns how many
// calls passed, how long that took and the refusal.
func spend(r *rates, c caller, store graph.StoreInfo, most int) (passed int, took time.Duration, refusal *requestError) {
	begin := time.Now()
	for ; passed < most; passed++ {
		if err := r.allow(c, store); err != nil {
			if !errors.As(err, &refusal) {
				panic(err)
			}
			break
		}
	}
	return passed, time.Since(begin), refusal
}

// TestRates: keys and stores have buckets of their own, which fill again.
func TestRates(t *testing.T) {
	free := graph.StoreInfo{ID: 1, Name: "free"}
	bound := graph.StoreInfo{ID: 2, Name: "bound", Settings: graph.StoreSettings{CallsPerSecond: 5}}
	first, second := caller{digest: keyDigest{1}}, caller{digest: keyDigest{2}}
	if n, _, refusal := spend(testRates(0), first, free, 1000); refusal != nil {
		t.Errorf("without limits: %d calls, then %v", n, refusal)
	}
	// A bucket fills while it is spent, the more so where that takes long.
	bucket := func(n, perSecond int, took time.Duration) bool {
		return n >= perSecond && float64(n) <= float64(perSecond)*(1+took.Seconds())+1
	}
	r := testRates(100)
	n, took, refusal := spend(r, first, free, 1_000_000)
	if refusal == nil || !bucket(n, 100, took) {
		t.Fatalf("a key: %d calls in %v, then %v", n, took, refusal)
	}
	if refusal.code != codes.ResourceExhausted || refusal.reason != "RATE_LIMITED" || refusal.metadata["limited"] != "key" ||
		refusal.metadata["limit"] != "100" || refusal.retry < time.Millisecond || refusal.retry > 20*time.Millisecond {
		t.Errorf("the refusal: %+v", refusal)
	}
	if n, took, refusal := spend(r, second, bound, 1000); !bucket(n, 5, took) || refusal == nil || refusal.metadata["store"] != "bound" {
		t.Errorf("a store: %d calls in %v, then %v", n, took, refusal)
	}
	if err := r.allow(second, free); err != nil {
		t.Errorf("another key, another store: %v", err)
	}
	// What the refusal says is enough.
	r = testRates(0)
	if _, _, refusal = spend(r, first, bound, 1000); refusal == nil {
		t.Fatal("no refusal")
	}
	time.Sleep(refusal.retry)
	if err := r.allow(first, bound); err != nil {
		t.Errorf("after waiting as told: %v", err)
	}
	// A changed setting is in force at once.
	bound.Settings.CallsPerSecond = 0
	if err := r.allow(first, bound); err != nil {
		t.Errorf("a limit that was lifted: %v", err)
	}
	bound.Settings.CallsPerSecond = 1
	if n, took, refusal := spend(r, first, bound, 1000); refusal == nil || float64(n) > 1+took.Seconds() {
		t.Errorf("a lower limit: %d calls in %v, then %v", n, took, refusal)
	}
}

// TestRatesBounded: however many keys and stores there are, the buckets are
// bounded.
func TestRatesBounded(t *testing.T) {
	r := testRates(0)
	for i := range 3 * bucketsMax {
		store := graph.StoreInfo{ID: graph.StoreID(i), Settings: graph.StoreSettings{CallsPerSecond: 1}}
		if err := r.allow(caller{}, store); err != nil {
			t.Fatal(err)
		}
		if len(r.stores) > bucketsMax {
			t.Fatalf("%d buckets", len(r.stores))
		}
	}
}

// TestRateLimited: over the wire, the refusal says when to come again, and a wrong
// key takes nothing from a good one.
func TestRateLimited(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	writeFile(t, file, []byte("one\ntwo\n"))
	s := testServer(t, Config{KeyFile: file, Limits: Limits{CallsPerSecond: 1}})
	c := dial(t, s)
	ask := func(key string) error {
		_, err := c.CountTuples(metadata.AppendToOutgoingContext(testContext(t), "authorization", "Bearer "+key), &pembav1.CountTuplesRequest{})
		return err
	}
	for range 20 {
		expectStatus(t, "a wrong key", ask("wrong"), codes.Unauthenticated, "KEY_INVALID")
	}
	var err error
	// A call may take longer than the bucket to fill, but not each of them.
	for end := time.Now().Add(patience); status.Code(err) != codes.ResourceExhausted && time.Now().Before(end); {
		err = ask("one")
	}
	expectStatus(t, "the key", err, codes.ResourceExhausted, "RATE_LIMITED")
	found := false
	for _, detail := range status.Convert(err).Details() {
		if retry, ok := detail.(*errdetails.RetryInfo); ok {
			found = retry.GetRetryDelay().AsDuration() > 0
		}
	}
	if !found {
		t.Errorf("no RetryInfo in %v", err)
	}
	if err := ask("two"); status.Code(err) == codes.ResourceExhausted {
		t.Errorf("another key: %v", err)
	}
	var a httpAnswer
	for end := time.Now().Add(patience); a.status != http.StatusTooManyRequests && time.Now().Before(end); {
		a = send(t, "POST", httpURL(s, "/pemba/v1/count-tuples"), "{}", "Authorization", "Bearer one")
	}
	if _, reason := httpError(t, "over HTTP", a.body); reason != "RATE_LIMITED" || a.header.Get("Retry-After") != "1" {
		t.Errorf("over HTTP: %s, Retry-After %q", reason, a.header.Get("Retry-After"))
	}
	limited := 0.0
	for _, sample := range gather(t, s) {
		if sample.name == "pemba_rate_limited_total" && sample.labels["limited"] == "key" {
			limited = sample.value
		}
	}
	if limited < 2 {
		t.Errorf("%s refusals are counted", fmt.Sprint(limited))
	}
}
