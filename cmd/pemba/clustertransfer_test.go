package main

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// TestAwaitLeader: a transfer is said to be done when the right node leads, and not when
// the old leader has left.
func TestAwaitLeader(t *testing.T) {
	type answer struct {
		leader string
		err    error
	}
	for _, c := range []struct {
		what    string
		answers []answer // After the last one the caller gives up.
		wanted  string   // Empty where none comes.
		refused []string
	}{
		{"at once", []answer{{leader: "n2"}}, "n2", nil},
		{"after a while", []answer{{leader: "n1"}, {}, {err: errors.New("gone")}, {leader: "n2"}}, "n2", nil},
		{"nobody", []answer{{leader: "n1"}, {}}, "", []string{"has handed the leadership on, but no node is known to lead", "enough"}},
		{"another", []answer{{}, {leader: "n3"}}, "", []string{"but n3 leads", "enough"}},
		{"no answer", []answer{{leader: "n1"}, {err: errors.New("gone")}}, "", []string{"does not answer", "gone", "enough"}},
	} {
		t.Run(c.what, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			left := slices.Clone(c.answers)
			leader, err := awaitLeader(ctx, func(context.Context) (string, error) {
				if len(left) == 0 {
					cancel(errors.New("enough"))
					return "", ctx.Err()
				}
				next := left[0]
				left = left[1:]
				return next.leader, next.err
			}, func(leader string) bool { return leader == "n2" })
			if leader != c.wanted || (err == nil) != (c.wanted != "") {
				t.Errorf("%q leads, expected %q: %v", leader, c.wanted, err)
			}
			for _, part := range c.refused {
				if err == nil || !strings.Contains(err.Error(), part) {
					t.Errorf("it does not say %q: %v", part, err)
				}
			}
			if len(left) > 0 {
				t.Errorf("it did not wait for %v", left)
			}
		})
	}
}

// TestTransferNames: whoever is asked, the command names the node that leads when it
// ends, also where the choice was left to the leader.
func TestTransferNames(t *testing.T) {
	members := testMembers(t, 2)
	members[0].start(t, "--bootstrap")
	members[1].start(t, "--join", members[0].grpcAddr)
	members[0].await(t, "a cluster of two", hasVoters("n1", "n2"))
	for i := range 4 {
		asked := members[i/2]
		before := asked.await(t, "a leader", hasVoters("n1", "n2")).LeaderID
		wanted := "n1"
		if before == "n1" {
			wanted = "n2"
		}
		var said memberChangeJSON
		if i%2 == 0 {
			if got := asked.must(t, "", "cluster", "transfer"); got != wanted+" leads now\n" {
				t.Errorf("%s led, and it says %q", before, got)
			}
		} else if err := json.Unmarshal([]byte(asked.must(t, "", "cluster", "transfer", "-o", "json")), &said); err != nil || said.ID != wanted || said.Done != "transferred" {
			t.Errorf("%s led, and it says %+v, %v", before, said, err)
		}
	}
	members[1].end(t, syscall.SIGTERM)
	members[0].end(t, syscall.SIGTERM)
}
