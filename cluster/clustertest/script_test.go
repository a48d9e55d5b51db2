package clustertest

import (
	"flag"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// TestMain lets more scripts run at once than there are processors.
func TestMain(m *testing.M) {
	flag.Parse()
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if !chosen {
		if err := flag.Set("test.parallel", "8"); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// knownFailures are scripts that say what should be and is not yet, each with what is
// in the way. One that passes fails the test: its line here must go.
var knownFailures = map[string]string{}

// TestScripts runs the scripts in testdata, the manual of the cluster.
func TestScripts(t *testing.T) {
	t.Parallel()
	paths, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("%d scripts, error %v", len(paths), err)
	}
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".txt")
		t.Run(name, func(t *testing.T) {
			t.Parallel() // They mostly wait, each for its own cluster.
			why := knownFailures[name]
			if why == "" {
				Run(t, path)
				return
			}
			if f := flag.Lookup("rewrite"); f != nil && f.Value.String() == "true" {
				t.Skip("it says what should be, and is not rewritten to say what is")
			}
			r := &recorder{TB: t}
			r.run(func() { Run(r, path) })
			if !r.Failed() {
				t.Errorf("it passes now, though it is known to fail: %s", why)
			}
			t.Logf("fails as is known: %s", why)
		})
	}
	for name := range knownFailures {
		if !strings.Contains(strings.Join(paths, " "), "/"+name+".txt") {
			t.Errorf("there is no script %s, which is known to fail", name)
		}
	}
}

// A recorder is a test that may fail.
type recorder struct {
	testing.TB

	mu       sync.Mutex
	failed   bool
	cleanups []func()
}

// run calls f, and what f has left to be done behind it.
func (r *recorder) run(f func()) {
	done := make(chan struct{})
	go func() { // FailNow ends the goroutine.
		defer close(done)
		defer func() {
			for i := len(r.cleanups) - 1; i >= 0; i-- {
				r.cleanups[i]()
			}
		}()
		f()
	}()
	<-done
}

func (r *recorder) Fail() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = true
}

func (r *recorder) FailNow() {
	r.Fail()
	runtime.Goexit()
}

func (r *recorder) Failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }

func (r *recorder) Error(args ...any) {
	r.Log(args...)
	r.Fail()
}

func (r *recorder) Errorf(format string, args ...any) {
	r.Logf(format, args...)
	r.Fail()
}

func (r *recorder) Fatal(args ...any) {
	r.Log(args...)
	r.FailNow()
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Logf(format, args...)
	r.FailNow()
}
