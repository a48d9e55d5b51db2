package badgerlog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// testConfig is small and quiet, and takes no ballast from the test's disk.
func testConfig(dir string) Config {
	return Config{
		Dir:          dir,
		Logger:       slog.New(slog.DiscardHandler),
		MemTableSize: minMemTableSize,
		BallastBytes: -1,
		// A disk that is busy with other things may stand still for seconds.
		StoreDeadline: time.Minute,
	}
}

func mustOpen(t testing.TB, cfg Config) *Log {
	t.Helper()
	l, err := Open(cfg)
	// A process that another test starts holds all locks of this one until it has
	// become another program.
	for end := time.Now().Add(time.Minute); errors.Is(err, ErrLocked) && time.Now().Before(end); l, err = Open(cfg) {
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() {
		// A test that closed the log itself looked at the error there.
		_ = l.Close()
	})
	return l
}

func mustClose(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}

// entry makes an entry whose content follows from index and term.
func entry(index, term uint64, size int) *raft.Log {
	data := bytes.Repeat(fmt.Appendf(nil, "%d/%d ", index, term), size/4+1)[:size]
	e := &raft.Log{Index: index, Term: term, Type: raft.LogCommand, Data: data, AppendedAt: time.Unix(1e9, int64(index)).UTC()}
	if index%3 == 0 {
		e.Type, e.Extensions = raft.LogConfiguration, fmt.Appendf(nil, "x%d", index)
	}
	return e
}

func entries(first, last, term uint64, size int) []*raft.Log {
	var list []*raft.Log
	for i := first; i <= last; i++ {
		list = append(list, entry(i, term, size))
	}
	return list
}

func mustStore(t testing.TB, l *Log, list []*raft.Log) {
	t.Helper()
	if err := l.StoreLogs(list); err != nil {
		t.Fatalf("store %d to %d: %v", list[0].Index, list[len(list)-1].Index, err)
	}
}

func sameEntry(a, b *raft.Log) bool {
	return a.Index == b.Index && a.Term == b.Term && a.Type == b.Type && bytes.Equal(a.Data, b.Data) &&
		bytes.Equal(a.Extensions, b.Extensions) && a.AppendedAt.Equal(b.AppendedAt)
}

// wantLog checks that the log is exactly first..last, and that entries are those
// that entry makes with the term that termOf tells.
func wantLog(t testing.TB, l *Log, first, last uint64, termOf func(uint64) uint64, size int) {
	t.Helper()
	f, err1 := l.FirstIndex()
	g, err2 := l.LastIndex()
	if err := errors.Join(err1, err2); err != nil || f != first || g != last {
		t.Fatalf("log is %d..%d (%v), want %d..%d", f, g, err, first, last)
	}
	var got raft.Log
	if first > 0 {
		for i := first; i <= last; i++ {
			if err := l.GetLog(i, &got); err != nil {
				t.Fatalf("get %d: %v", i, err)
			}
			if want := entry(i, termOf(i), size); !sameEntry(&got, want) {
				t.Fatalf("entry %d is %+v, want %+v", i, got, want)
			}
		}
	}
	for _, i := range []uint64{0, first - 1, last + 1, last + 1000} {
		if i >= first && i <= last && first > 0 {
			continue
		}
		//nolint:errorlint // Raft compares the value itself.
		if err := l.GetLog(i, &got); err != raft.ErrLogNotFound {
			t.Fatalf("get %d beside %d..%d: %v, want ErrLogNotFound itself", i, first, last, err)
		}
	}
}

func term(n uint64) func(uint64) uint64 { return func(uint64) uint64 { return n } }

// termFrom is term a before index at, and b from there on.
func termFrom(a, at, b uint64) func(uint64) uint64 {
	return func(i uint64) uint64 {
		if i < at {
			return a
		}
		return b
	}
}

// physicalKeys counts the entry keys that Badger holds, whatever the record says.
func physicalKeys(t testing.TB, l *Log) int {
	t.Helper()
	n := 0
	st := l.state.Load()
	txn := l.db.NewTransactionAt(st.seq, false)
	defer txn.Discard()
	for i := uint64(1); i < st.last+5000; i++ {
		if _, err := txn.Get(appendEntryKey(nil, i)); err == nil {
			n++
			if i < st.low || i > st.high {
				t.Fatalf("key of entry %d exists outside low..high %d..%d", i, st.low, st.high)
			}
		}
	}
	return n
}

// TestContract walks a log through what Raft does with one. After each step the
// log is looked at, closed or left as a crash would, and looked at again.
func TestContract(t *testing.T) {
	t.Parallel()
	const size = 40
	steps := []struct {
		name        string
		do          func(*Log) error
		first, last uint64
		termOf      func(uint64) uint64
	}{
		{"empty", func(*Log) error { return nil }, 0, 0, nil},
		{"delete from an empty log", func(l *Log) error { return l.DeleteRange(1, 100) }, 0, 0, nil},
		{"no entries", func(l *Log) error { return l.StoreLogs(nil) }, 0, 0, nil},
		{"append", func(l *Log) error { return l.StoreLogs(entries(1, 10, 1, size)) }, 1, 10, term(1)},
		{"append one", func(l *Log) error { return l.StoreLog(entry(11, 1, size)) }, 1, 11, term(1)},
		{"delete beside the log", func(l *Log) error { return l.DeleteRange(12, 40) }, 1, 11, term(1)},
		{"suffix", func(l *Log) error { return l.DeleteRange(9, 11) }, 1, 8, term(1)},
		{"append a new term", func(l *Log) error { return l.StoreLogs(entries(9, 20, 3, size)) }, 1, 20, termFrom(1, 9, 3)},
		{"overlap", func(l *Log) error { return l.StoreLogs(entries(15, 17, 4, size)) }, 1, 17, func(i uint64) uint64 {
			return termFrom(1, 9, termFrom(3, 15, 4)(i))(i)
		}},
		{"prefix", func(l *Log) error { return l.DeleteRange(1, 12) }, 13, 17, termFrom(3, 15, 4)},
		{"prefix again, from before the first", func(l *Log) error { return l.DeleteRange(1, 13) }, 14, 17, termFrom(3, 15, 4)},
		{"replace everything", func(l *Log) error { return l.StoreLogs(entries(14, 14, 5, size)) }, 14, 14, term(5)},
		{"append many", func(l *Log) error { return l.StoreLogs(entries(15, 4000, 5, size)) }, 14, 4000, term(5)},
		{"cut many", func(l *Log) error { return l.DeleteRange(100, 4000) }, 14, 99, term(5)},
		{"append many again", func(l *Log) error { return l.StoreLogs(entries(100, 4000, 6, size)) }, 14, 4000, termFrom(5, 100, 6)},
		{"overlap many with one", func(l *Log) error { return l.StoreLogs(entries(200, 200, 7, size)) }, 14, 200, func(i uint64) uint64 {
			return termFrom(5, 100, termFrom(6, 200, 7)(i))(i)
		}},
		{"delete all, as raft does after a restore", func(l *Log) error { return l.DeleteRange(14, 200) }, 0, 0, nil},
		{"begin anywhere after that", func(l *Log) error { return l.StoreLogs(entries(500, 510, 7, size)) }, 500, 510, term(7)},
		{"wipe to begin at 600", func(l *Log) error { return l.Wipe(600) }, 0, 0, nil},
		{"begin at 600", func(l *Log) error { return l.StoreLogs(entries(600, 610, 7, size)) }, 600, 610, term(7)},
		{"wipe to begin anywhere", func(l *Log) error { return l.Wipe(0) }, 0, 0, nil},
		{"begin lower", func(l *Log) error { return l.StoreLogs(entries(3, 30, 7, size)) }, 3, 30, term(7)},
	}
	for _, crash := range []bool{false, true} {
		t.Run(fmt.Sprintf("crash=%v", crash), func(t *testing.T) {
			l := mustOpen(t, testConfig(t.TempDir()))
			if !l.IsMonotonic() {
				t.Fatal("a log must be monotonic")
			}
			if err := l.SetUint64([]byte("CurrentTerm"), 7); err != nil {
				t.Fatal(err)
			}
			for _, step := range steps {
				t.Logf("step: %s", step.name)
				if err := step.do(l); err != nil {
					t.Fatalf("%s: %v", step.name, err)
				}
				wantLog(t, l, step.first, step.last, step.termOf, size)
				cfg := testConfig(l.cfg.Dir)
				if crash {
					cfg.Dir = crashImage(t, l.cfg.Dir)
				}
				mustClose(t, l)
				l = mustOpen(t, cfg)
				wantLog(t, l, step.first, step.last, step.termOf, size)
				want := 0
				if step.first > 0 {
					want = int(step.last - step.first + 1)
				}
				if n := physicalKeys(t, l); n != want {
					t.Fatalf("%s: badger holds %d entries, want %d", step.name, n, want)
				}
			}
			if n, err := l.GetUint64([]byte("CurrentTerm")); err != nil || n != 7 {
				t.Fatalf("after all this the term is %d (%v), want 7", n, err)
			}
		})
	}
}

func TestStable(t *testing.T) {
	l := mustOpen(t, testConfig(t.TempDir()))
	if _, err := l.Get([]byte("LastVoteCand")); err == nil || err.Error() != "not found" {
		t.Fatalf("get of a missing key: %v, and raft knows only the text %q", err, "not found")
	}
	if n, err := l.GetUint64([]byte("CurrentTerm")); n != 0 || err != nil {
		t.Fatalf("missing number: %d, %v", n, err)
	}
	value := []byte("n1")
	if err := errors.Join(l.Set([]byte("LastVoteCand"), value), l.Set([]byte("empty"), nil),
		l.SetUint64([]byte("CurrentTerm"), 1<<63)); err != nil {
		t.Fatal(err)
	}
	value[0] = 'X' // The log took a copy.
	if err := l.Set([]byte("big"), make([]byte, stableBytesMax)); err == nil {
		t.Fatal("a value beyond the limit was taken")
	}
	if _, err := l.GetUint64([]byte("LastVoteCand")); err == nil {
		t.Fatal("two bytes passed for a number")
	}
	mustClose(t, l)
	l = mustOpen(t, testConfig(l.cfg.Dir))
	got, err := l.Get([]byte("LastVoteCand"))
	if err != nil || string(got) != "n1" {
		t.Fatalf("vote is %q, %v", got, err)
	}
	got[0] = 'X' // The caller got a copy.
	if again, err := l.Get([]byte("LastVoteCand")); err != nil || string(again) != "n1" {
		t.Fatalf("vote is %q, %v", again, err)
	}
	if got, err := l.Get([]byte("empty")); err != nil || len(got) != 0 {
		t.Fatalf("empty value is %q, %v", got, err)
	}
	if n, err := l.GetUint64([]byte("CurrentTerm")); n != 1<<63 || err != nil {
		t.Fatalf("term is %d, %v", n, err)
	}
}

// TestRaftAccepts runs raft itself on a log, restarts it, and lets it truncate.
func TestRaftAccepts(t *testing.T) {
	dir := t.TempDir()
	for round := range 2 {
		l := mustOpen(t, testConfig(dir))
		cfg := raft.DefaultConfig()
		cfg.LocalID = "n1"
		cfg.HeartbeatTimeout, cfg.ElectionTimeout, cfg.LeaderLeaseTimeout = 20*time.Millisecond, 20*time.Millisecond, 20*time.Millisecond
		cfg.LogOutput = io.Discard
		cfg.TrailingLogs = 10
		addr, transport := raft.NewInmemTransport("")
		snapshots := raft.NewInmemSnapshotStore()
		if round == 0 {
			err := raft.BootstrapCluster(cfg, l, l, snapshots, transport, raft.Configuration{
				Servers: []raft.Server{{ID: "n1", Address: addr}},
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		r, err := raft.NewRaft(cfg, &raft.MockFSM{}, l, l, snapshots, transport)
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-r.LeaderCh():
		case <-time.After(time.Minute):
			t.Fatal("no leader")
		}
		for range 100 {
			if err := r.Apply([]byte("hello"), time.Minute).Error(); err != nil {
				t.Fatal(err)
			}
		}
		if round == 1 {
			if err := r.Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
			if first, err := l.FirstIndex(); err != nil || first < 100 {
				t.Fatalf("the log begins at %d (%v), raft was to truncate it", first, err)
			}
		}
		if err := r.Shutdown().Error(); err != nil {
			t.Fatal(err)
		}
		mustClose(t, l)
	}
}

// TestRefusals says which mistakes of a caller poison the log. All do that could
// mean that Raft and the log disagree.
func TestRefusals(t *testing.T) {
	t.Parallel()
	at := func(index, term uint64) *raft.Log { return entry(index, term, 10) }
	large := func(l *Log) *raft.Log { return entry(11, 3, l.EntryBytesMax()+1) }
	tests := []struct {
		name   string
		do     func(*Log) error
		want   string
		poison bool
	}{
		{"gap", func(l *Log) error { return l.StoreLogs([]*raft.Log{at(12, 3)}) }, "which ends at 10: there would be a gap", true},
		{"gap in the batch", func(l *Log) error { return l.StoreLogs([]*raft.Log{at(11, 3), at(13, 3)}) }, "consecutive", true},
		{"zero", func(l *Log) error { return l.StoreLogs([]*raft.Log{at(0, 3)}) }, "begin at 1", true},
		{"nil", func(l *Log) error { return l.StoreLogs([]*raft.Log{nil}) }, "nil entry", true},
		{"before the first", func(l *Log) error { return l.StoreLogs([]*raft.Log{at(2, 3)}) }, "which begins at 3", true},
		{"falling term", func(l *Log) error { return l.StoreLogs([]*raft.Log{at(11, 1)}) }, "terms never fall", true},
		{"falling term in the batch", func(l *Log) error { return l.StoreLogs([]*raft.Log{at(11, 4), at(12, 3)}) }, "terms never fall", true},
		{"replace what was agreed", func(l *Log) error { return l.StoreLogs([]*raft.Log{at(4, 3)}) }, "all up to 5 was agreed", true},
		{"cut what was agreed", func(l *Log) error { return l.DeleteRange(4, 10) }, "all up to 5 was agreed", true},
		{"gap after a wipe", func(l *Log) error { return errors.Join(l.Wipe(100), l.StoreLogs([]*raft.Log{at(101, 3)})) }, "wiped to begin at 100", true},
		{"hole", func(l *Log) error { return l.DeleteRange(5, 8) }, "leave a hole", false},
		{"reversed", func(l *Log) error { return l.DeleteRange(8, 5) }, "must not be above", false},
		{"too large", func(l *Log) error { return l.StoreLogs([]*raft.Log{large(l)}) }, "too large", false},
		{"too large after a cut", func(l *Log) error {
			return errors.Join(l.DeleteRange(8, 10), l.StoreLogs(entriesWith(entries(8, 10, 3, 10), large(l))))
		}, "too large", true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			fatal := make(chan error, 10)
			cfg := testConfig(t.TempDir())
			cfg.OnFatal = func(err error) { fatal <- err }
			cfg.CommitIndex = func() uint64 { return 5 }
			l := mustOpen(t, cfg)
			mustStore(t, l, entries(1, 10, 2, 10))
			if err := l.DeleteRange(1, 2); err != nil {
				t.Fatal(err)
			}
			err := test.do(l)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error is %v, want one with %q", err, test.want)
			}
			if got := errors.Is(err, ErrPoisoned); got != test.poison {
				t.Fatalf("poisoned is %v, want %v: %v", got, test.poison, err)
			}
			if test.poison {
				wantPoisoned(t, l, fatal)
			} else {
				wantLog(t, l, 3, 10, term(2), 10)
				mustStore(t, l, entries(11, 12, 2, 10))
			}
			// What was there before is there after, and nothing of the batch.
			mustClose(t, l)
			l = mustOpen(t, testConfig(cfg.Dir))
			switch test.name {
			case "gap after a wipe":
				wantLog(t, l, 0, 0, nil, 10)
			case "too large after a cut":
				wantLog(t, l, 3, 7, term(2), 10)
			default:
				last, err := l.LastIndex()
				if err != nil {
					t.Fatal(err)
				}
				wantLog(t, l, 3, last, term(2), 10)
			}
		})
	}
}

func entriesWith(list []*raft.Log, more ...*raft.Log) []*raft.Log { return append(list, more...) }

// wantPoisoned checks that everything fails and OnFatal was called once.
func wantPoisoned(t testing.TB, l *Log, fatal <-chan error) {
	t.Helper()
	_, first := l.FirstIndex()
	_, last := l.LastIndex()
	_, commit := l.CommitIndex()
	_, value := l.Get([]byte("k"))
	_, number := l.GetUint64([]byte("k"))
	_, stats := l.Stats()
	for i, err := range []error{
		first, last, commit, value, number, stats,
		l.GetLog(1, &raft.Log{}), l.GetLog(99, &raft.Log{}), l.StoreLogs(entries(11, 12, 9, 1)), l.StoreLog(entry(11, 9, 1)),
		l.DeleteRange(1, 3), l.Wipe(0), l.Set([]byte("k"), nil), l.SetUint64([]byte("k"), 1),
	} {
		if !errors.Is(err, ErrPoisoned) {
			t.Errorf("call %d on a poisoned log answered %v", i, err)
		}
	}
	select {
	case err := <-fatal:
		if !errors.Is(err, ErrPoisoned) {
			t.Errorf("OnFatal got %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("OnFatal was not called")
	}
	select {
	case err := <-fatal:
		t.Errorf("OnFatal was called again with %v", err)
	case <-time.After(10 * time.Millisecond):
	}
}

// TestPoison fails, panics and hangs where Badger commits.
func TestPoison(t *testing.T) {
	t.Parallel()
	writes := map[string]func(*Log) error{
		"StoreLogs": func(l *Log) error { return l.StoreLogs(entries(11, 12, 2, 10)) },
		"prefix":    func(l *Log) error { return l.DeleteRange(1, 5) },
		"suffix":    func(l *Log) error { return l.DeleteRange(5, 10) },
		"Wipe":      func(l *Log) error { return l.Wipe(1) },
		"Set":       func(l *Log) error { return l.Set([]byte("k"), []byte("v")) },
	}
	for name, write := range writes {
		for _, how := range []string{"error", "panic", "hang"} {
			t.Run(name+"/"+how, func(t *testing.T) {
				fatal := make(chan error, 10)
				release := make(chan struct{})
				var armed atomic.Bool
				cfg := testConfig(t.TempDir())
				cfg.StoreDeadline = time.Minute
				cfg.OnFatal = func(err error) { fatal <- err }
				cfg.beforeCommit = func() error {
					if !armed.Load() {
						return nil
					}
					switch how {
					case "panic":
						panic("badger is out of its mind")
					case "hang":
						<-release
						return nil
					}
					return errors.New("the disk says no")
				}
				l := mustOpen(t, cfg)
				mustStore(t, l, entries(1, 10, 2, 10))
				if how == "hang" { // What is to succeed may take its time.
					l.cfg.StoreDeadline = 50 * time.Millisecond
				}
				armed.Store(true)
				err := write(l)
				want := map[string]string{"error": "the disk says no", "panic": "out of its mind", "hang": "did not answer in time"}[how]
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Fatalf("error is %v, want one with %q", err, want)
				}
				armed.Store(false)
				wantPoisoned(t, l, fatal)
				if how == "hang" {
					// Closing does not hang, and does not pretend.
					if err := l.Close(); !errors.Is(err, errDeadline) {
						t.Fatalf("close of a hung log: %v", err)
					}
					if _, err := Open(testConfig(cfg.Dir)); !errors.Is(err, ErrLocked) {
						t.Fatalf("a hung log was opened again: %v", err)
					}
					close(release)
					for end := time.Now().Add(time.Minute); time.Now().Before(end); {
						if again, err := Open(testConfig(cfg.Dir)); err == nil {
							mustClose(t, again)
							return
						}
						time.Sleep(10 * time.Millisecond)
					}
					t.Fatal("the log stayed locked after the disk came back")
				}
				mustClose(t, l)
				l = mustOpen(t, testConfig(cfg.Dir))
				wantLog(t, l, 1, 10, term(2), 10)
			})
		}
	}
}

func TestCommitIndex(t *testing.T) {
	var reached atomic.Uint64
	cfg := testConfig(t.TempDir())
	cfg.CommitIndex = reached.Load
	l := mustOpen(t, cfg)
	want := func(n uint64) {
		t.Helper()
		if got, err := l.CommitIndex(); err != nil || got != n {
			t.Fatalf("commit index is %d (%v), want %d", got, err, n)
		}
	}
	want(0)
	mustStore(t, l, entries(1, 10, 1, 10))
	reached.Store(7)
	want(0) // It is recorded with entries only.
	mustStore(t, l, entries(11, 12, 1, 10))
	want(7)
	mustClose(t, l)
	reached.Store(3) // A state machine that has just started.
	l = mustOpen(t, cfg)
	want(7)
	mustStore(t, l, entries(13, 13, 1, 10))
	want(7)
	reached.Store(100) // A state that was installed.
	mustStore(t, l, entries(14, 14, 1, 10))
	want(14)
	if err := l.Wipe(0); err != nil {
		t.Fatal(err)
	}
	want(0)
}

func TestHold(t *testing.T) {
	l := mustOpen(t, testConfig(t.TempDir()))
	mustStore(t, l, entries(1, 100, 1, 10))
	release5, release40 := l.Hold(5), l.Hold(40)
	steps := []struct {
		do    func()
		upTo  uint64
		first uint64
	}{
		{func() {}, 50, 5},
		{func() {}, 3, 5},
		{release5, 30, 31},
		{release5, 60, 40},
		{release40, 60, 61},
	}
	for i, step := range steps {
		step.do()
		if err := l.DeleteRange(1, step.upTo); err != nil {
			t.Fatal(err)
		}
		if first, err := l.FirstIndex(); err != nil || first != step.first {
			t.Fatalf("step %d: the log begins at %d (%v), want %d", i, first, err, step.first)
		}
	}
	// A suffix goes whatever is held.
	defer l.Hold(1)()
	if err := l.DeleteRange(90, 100); err != nil {
		t.Fatal(err)
	}
	wantLog(t, l, 61, 89, term(1), 10)
}

func TestLocked(t *testing.T) {
	l := mustOpen(t, testConfig(t.TempDir()))
	_, err := Open(testConfig(l.cfg.Dir))
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Fatalf("second open: %v", err)
	}
	mustClose(t, l)
	if err := l.StoreLog(entry(1, 1, 1)); !errors.Is(err, ErrClosed) {
		t.Fatalf("store after close: %v", err)
	}
	if err := l.GetLog(1, &raft.Log{}); !errors.Is(err, ErrClosed) {
		t.Fatalf("get after close: %v", err)
	}
	mustClose(t, l)
	mustClose(t, mustOpen(t, testConfig(l.cfg.Dir)))
}

func TestConfigValidate(t *testing.T) {
	tests := []struct {
		cfg  Config
		want string
	}{
		{Config{}, "Config.Dir is empty"},
		{Config{Dir: "d"}, ""},
		{Config{Dir: "d", MemTableSize: 1}, "Config.MemTableSize is 1 bytes"},
		{Config{Dir: "d", MemTableSize: -1}, "Config.MemTableSize is -1 bytes"},
		{Config{Dir: "d", MemTableSize: 1 << 40}, "Config.MemTableSize"},
		{Config{Dir: "d", StoreDeadline: -time.Second}, "Config.StoreDeadline is -1s"},
		{Config{Dir: "d", FreeBytesMin: 1000}, "Config.FreeBytesMin is 1000 bytes: at least 36071014"},
		{Config{Dir: "d", FreeBytesMin: 10 << 20, MemTableSize: 1 << 20, StoreDeadline: time.Second}, ""},
	}
	for _, test := range tests {
		err := test.cfg.Validate()
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v, want %q", test.cfg, err, test.want)
		}
	}
	if _, err := Open(Config{}); err == nil {
		t.Error("Open took an empty config")
	}
}

// TestLargeBatches stores batches far beyond one transaction of Badger, and an
// entry of the largest size.
func TestLargeBatches(t *testing.T) {
	l := mustOpen(t, testConfig(t.TempDir()))
	size := l.EntryBytesMax()
	largest := &raft.Log{Index: 1, Term: 1, Data: bytes.Repeat([]byte("x"), size-1), Extensions: []byte("y")}
	mustStore(t, l, []*raft.Log{largest})
	const many = 100
	list := entries(2, many, 1, 20_000)
	mustStore(t, l, list)
	tiny := entries(many+1, many+5000, 2, 0)
	mustStore(t, l, tiny)
	mustClose(t, l)
	l = mustOpen(t, testConfig(l.cfg.Dir))
	var got raft.Log
	for _, want := range append(append([]*raft.Log{largest}, list...), tiny...) {
		if err := l.GetLog(want.Index, &got); err != nil || !sameEntry(&got, want) {
			t.Fatalf("entry %d came back otherwise (%v)", want.Index, err)
		}
	}
	// Nothing may ever go to the value log.
	files, err := filepath.Glob(filepath.Join(l.cfg.Dir, "*.vlog"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no value log: %v", err)
	}
	for _, name := range files {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if n := blockBytes(info); n > 8192 {
			t.Errorf("%s occupies %d bytes", name, n)
		}
	}
}

// TestConcurrentReads reads beside appends, overwrites, truncation and Close.
// Run it under the race detector.
func TestConcurrentReads(t *testing.T) {
	l := mustOpen(t, testConfig(t.TempDir()))
	mustStore(t, l, entries(1, 50, 1, 100))
	var readers sync.WaitGroup
	stop := make(chan struct{})
	for range 3 {
		readers.Go(func() {
			var got raft.Log
			for {
				select {
				case <-stop:
					return
				default:
				}
				first, err1 := l.FirstIndex()
				last, err2 := l.LastIndex()
				if err := errors.Join(err1, err2); err != nil {
					if !errors.Is(err, ErrClosed) {
						t.Error(err)
					}
					return
				}
				for i := first; i <= last; i += 7 {
					err := l.GetLog(i, &got)
					switch {
					case err == nil:
						if !sameEntry(&got, entry(i, got.Term, 100)) {
							t.Errorf("entry %d is %+v", i, got)
							return
						}
					case errors.Is(err, raft.ErrLogNotFound):
					case errors.Is(err, ErrClosed):
						return
					default:
						t.Error(err)
						return
					}
				}
			}
		})
	}
	last := uint64(50)
	for round := uint64(2); round < 60; round++ {
		from := last - round%5
		mustStore(t, l, entries(from, from+60, round, 100))
		last = from + 60
		if round%10 == 0 {
			if err := l.DeleteRange(1, last-100); err != nil {
				t.Fatal(err)
			}
		}
		if round%16 == 0 {
			if err := l.DeleteRange(last-10, last); err != nil {
				t.Fatal(err)
			}
			last -= 11
		}
	}
	mustClose(t, l)
	close(stop)
	readers.Wait()
}

// TestSweepLeavesTurns checks that a long truncation does not keep appends out,
// and that what it leaves when the log is closed goes with the next one.
func TestSweepLeavesTurns(t *testing.T) {
	var sweeping atomic.Bool
	cfg := testConfig(t.TempDir())
	cfg.beforeCommit = func() error {
		if sweeping.Load() {
			time.Sleep(time.Millisecond)
		}
		return nil
	}
	l := mustOpen(t, cfg)
	mustStore(t, l, entries(1, 15000, 1, 0))
	sweeping.Store(true)
	done := make(chan error, 1)
	go func() { done <- l.DeleteRange(1, 14000) }()
	first := uint64(1)
	for end := time.Now().Add(time.Minute); first == 1; time.Sleep(100 * time.Microsecond) {
		var err error
		if first, err = l.FirstIndex(); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(end) {
			t.Fatal("the log was not cut")
		}
	}
	mustStore(t, l, entries(15001, 15001, 1, 0))
	wantLog(t, l, 14001, 15001, term(1), 0)
	if l.state.Load().low >= 14001 {
		t.Log("the sweep was over before the append; nothing was shown")
	}
	mustClose(t, l)
	if err := <-done; err != nil {
		t.Fatalf("a truncation that Close cut short: %v", err)
	}
	l = mustOpen(t, testConfig(cfg.Dir))
	wantLog(t, l, 14001, 15001, term(1), 0)
	if err := l.DeleteRange(1, 14001); err != nil {
		t.Fatal(err)
	}
	if n := physicalKeys(t, l); n != 1000 {
		t.Fatalf("badger holds %d entries, want 1000", n)
	}
}
