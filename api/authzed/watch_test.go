package authzed

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/graph"
)

const watchSchema = `
use expiration

definition user {}

definition folder {
	relation owner: user
}

definition document {
	relation viewer: user | user with expiration
	relation editor: user
}
`

var allKinds = []v1.WatchKind{
	v1.WatchKind_WATCH_KIND_INCLUDE_RELATIONSHIP_UPDATES, v1.WatchKind_WATCH_KIND_INCLUDE_SCHEMA_UPDATES, v1.WatchKind_WATCH_KIND_INCLUDE_CHECKPOINTS,
}

// watch begins a watch and waits until the server has begun it.
func watch(t testing.TB, ctx context.Context, conn *grpc.ClientConn, r *v1.WatchRequest) v1.WatchService_WatchClient {
	t.Helper()
	stream, err := v1.NewWatchServiceClient(conn).Watch(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil {
		t.Fatal(err)
	}
	return stream
}

// after is a request to watch everything behind a token.
func after(token *v1.ZedToken) *v1.WatchRequest {
	return &v1.WatchRequest{OptionalStartCursor: token, OptionalUpdateKinds: allKinds}
}

// eventOf writes an update as one line.
func eventOf(u *v1.RelationshipUpdate) string {
	r := u.GetRelationship()
	text := fmt.Sprintf("%s %s:%s#%s@%s:%s", strings.TrimPrefix(u.GetOperation().String(), "OPERATION_"),
		r.GetResource().GetObjectType(), r.GetResource().GetObjectId(), r.GetRelation(), r.GetSubject().GetObject().GetObjectType(), r.GetSubject().GetObject().GetObjectId())
	if r.GetOptionalExpiresAt() != nil {
		text += "[expiration]"
	}
	return text
}

// messageOf writes a message as one line.
func messageOf(m *v1.WatchResponse) string {
	var parts []string
	for _, u := range m.GetUpdates() {
		parts = append(parts, eventOf(u))
	}
	if m.GetSchemaUpdated() {
		parts = append(parts, "schema")
	}
	if m.GetIsCheckpoint() {
		parts = append(parts, "checkpoint")
	}
	if f := m.GetFullRevisionMetadata(); len(f) > 0 {
		text := f[0].GetFields()["by"].GetStringValue()
		if len(f) != 1 || !proto.Equal(f[0], m.GetOptionalTransactionMetadata()) {
			text = "differing metadata"
		}
		parts = append(parts, "by "+text)
	}
	return strings.Join(parts, ", ")
}

func write(t testing.TB, conn *grpc.ClientConn, metadata map[string]any, updates ...*v1.RelationshipUpdate) *v1.ZedToken {
	t.Helper()
	r := &v1.WriteRelationshipsRequest{Updates: updates}
	if metadata != nil {
		var err error
		if r.OptionalTransactionMetadata, err = structpb.NewStruct(metadata); err != nil {
			t.Fatal(err)
		}
	}
	response, err := v1.NewPermissionsServiceClient(conn).WriteRelationships(testContext(t), r)
	if err != nil {
		t.Fatal(err)
	}
	return response.GetWrittenAt()
}

// TestWatchMessages: the messages of each revision, with the token that the write
// returned, in order; nothing of what changes nothing or expires.
func TestWatchMessages(t *testing.T) {
	t.Parallel() // It mostly waits.
	conn := newServer(t)
	begin := writeSchema(t, conn, watchSchema)
	const (
		create = v1.RelationshipUpdate_OPERATION_CREATE
		touch  = v1.RelationshipUpdate_OPERATION_TOUCH
		remove = v1.RelationshipUpdate_OPERATION_DELETE
	)
	var want []string
	expect := func(token *v1.ZedToken, messages ...string) {
		for _, m := range append(messages, "checkpoint") {
			want = append(want, token.GetToken()+" "+m)
		}
	}
	live := watch(t, testContext(t), conn, &v1.WatchRequest{OptionalUpdateKinds: allKinds})
	expect(write(t, conn, map[string]any{"by": "carl"},
		update(t, create, "document:d1#viewer@user:anne"), update(t, touch, "document:d1#viewer@user:bob")),
		"TOUCH document:d1#viewer@user:anne, TOUCH document:d1#viewer@user:bob, by carl")
	write(t, conn, nil, update(t, touch, "document:d1#viewer@user:bob"), update(t, remove, "document:d1#viewer@user:none"))
	// The write has so long.
	expiry := time.Now().Add(6 * time.Second)
	soon := expiry.UTC().Format(time.RFC3339Nano)
	expect(write(t, conn, nil, update(t, touch, "document:d1#viewer@user:anne[expiration:"+soon+"]")),
		"TOUCH document:d1#viewer@user:anne[expiration]")
	expect(writeSchema(t, conn, watchSchema+"\ndefinition robot {}\n"), "schema")
	expect(write(t, conn, nil, update(t, remove, "document:d1#viewer@user:bob"), update(t, touch, "folder:f1#owner@user:anne")),
		"DELETE document:d1#viewer@user:bob, TOUCH folder:f1#owner@user:anne")

	// The expiry is no event; it shows as a checkpoint later than the last change.
	// Checkpoints that the clock made stand between those of revisions.
	read := func(stream v1.WatchService_WatchClient, until string) (got []string) {
		t.Helper()
		for len(got) == 0 || got[len(got)-1] != until {
			m, err := stream.Recv()
			if err != nil {
				t.Fatalf("%v, behind %q", err, got)
			}
			line := m.GetChangesThrough().GetToken() + " " + messageOf(m)
			if !m.GetIsCheckpoint() || slices.Contains(want, line) && !slices.Contains(got, line) {
				got = append(got, line)
			}
		}
		return got
	}
	last := want[len(want)-1]
	for what, stream := range map[string]v1.WatchService_WatchClient{"live": live, "later": watch(t, testContext(t), conn, after(begin))} {
		if got := read(stream, last); !slices.Equal(got, want) {
			t.Errorf("%s: got\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	for token := ""; time.Now().Before(expiry.Add(500*time.Millisecond)) || token+" checkpoint" == last; {
		m, err := live.Recv()
		if err != nil || !m.GetIsCheckpoint() || len(m.GetUpdates()) > 0 {
			t.Fatalf("%v, %v; want nothing but checkpoints", m, err)
		}
		token = m.GetChangesThrough().GetToken()
	}
	// A write that changes nothing has a token as well, which the clock comes to.
	idle := write(t, conn, nil, update(t, remove, "document:d1#viewer@user:none")).GetToken()
	for token := ""; token != idle; {
		m, err := live.Recv()
		if err != nil || !m.GetIsCheckpoint() {
			t.Fatalf("%v, %v; want nothing but checkpoints", m, err)
		}
		token = m.GetChangesThrough().GetToken()
	}
	// Only what is asked for is told, but updates always.
	kinds := after(begin)
	kinds.OptionalUpdateKinds = []v1.WatchKind{v1.WatchKind_WATCH_KIND_INCLUDE_SCHEMA_UPDATES}
	want = slices.DeleteFunc(want, func(s string) bool { return strings.HasSuffix(s, " checkpoint") })
	if got := read(watch(t, testContext(t), conn, kinds), want[len(want)-1]); !slices.Equal(got, want) {
		t.Errorf("without checkpoints: %q", got)
	}
	kinds.OptionalUpdateKinds = nil
	want = slices.DeleteFunc(want, func(s string) bool { return strings.HasSuffix(s, " schema") })
	if got := read(watch(t, testContext(t), conn, kinds), want[len(want)-1]); !slices.Equal(got, want) {
		t.Errorf("without schemas: %q", got)
	}
}

// TestWatchFilters: by types, and by filters of which one is enough.
func TestWatchFilters(t *testing.T) {
	conn := newServer(t)
	begin := writeSchema(t, conn, watchSchema)
	touch(t, conn, "document:d1#viewer@user:anne", "document:d1#editor@user:bob", "document:e2#viewer@user:bob", "folder:f1#owner@user:anne")
	end := touch(t, conn, "folder:f2#owner@user:bob").GetToken()
	for name, c := range map[string]struct {
		request *v1.WatchRequest
		want    string
	}{
		"a type":    {&v1.WatchRequest{OptionalObjectTypes: []string{"folder"}}, "f1#owner@anne f2#owner@bob"},
		"two types": {&v1.WatchRequest{OptionalObjectTypes: []string{"folder", "document"}}, "d1#viewer@anne d1#editor@bob e2#viewer@bob f1#owner@anne f2#owner@bob"},
		"a prefix and a subject": {&v1.WatchRequest{OptionalRelationshipFilters: []*v1.RelationshipFilter{
			{ResourceType: "document", OptionalResourceIdPrefix: "e"},
			{OptionalSubjectFilter: &v1.SubjectFilter{SubjectType: "user", OptionalSubjectId: "anne"}},
		}}, "d1#viewer@anne e2#viewer@bob f1#owner@anne"},
		"a relation": {&v1.WatchRequest{OptionalRelationshipFilters: []*v1.RelationshipFilter{{OptionalRelation: "editor"}}}, "d1#editor@bob"},
		"nothing":    {&v1.WatchRequest{OptionalObjectTypes: []string{"user"}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c.request.OptionalStartCursor, c.request.OptionalUpdateKinds = begin, allKinds
			stream := watch(t, testContext(t), conn, c.request)
			var got []string
			for {
				m, err := stream.Recv()
				if err != nil {
					t.Fatal(err)
				}
				for _, u := range m.GetUpdates() {
					r := u.GetRelationship()
					got = append(got, r.GetResource().GetObjectId()+"#"+r.GetRelation()+"@"+r.GetSubject().GetObject().GetObjectId())
				}
				// Also what no filter lets pass moves the checkpoints on.
				if m.GetIsCheckpoint() && m.GetChangesThrough().GetToken() == end {
					break
				}
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// wide is a write of many relationships with long names: more than fits a message.
func wide(t testing.TB, name string, count int) []*v1.RelationshipUpdate {
	updates := make([]*v1.RelationshipUpdate, count)
	for i := range updates {
		updates[i] = update(t, v1.RelationshipUpdate_OPERATION_TOUCH,
			fmt.Sprintf("document:%s-%04d-%s#viewer@user:anne", name, i, strings.Repeat("x", 800)))
	}
	return updates
}

// TestWatchFromEveryMessage: from the token of any message on, what is told is
// exactly what came behind that message, also in the midst of a revision that is
// larger than a message; and such a token is good for reads.
func TestWatchFromEveryMessage(t *testing.T) {
	conn := newServer(t)
	begin := writeSchema(t, conn, watchSchema)
	touch(t, conn, "document:d1#viewer@user:anne")
	write(t, conn, map[string]any{"by": "carl"}, wide(t, "wide", 1000)...)
	writeSchema(t, conn, watchSchema+"\ndefinition robot {}\n")
	end := touch(t, conn, "document:d2#viewer@user:anne").GetToken()

	tell := func(from *v1.ZedToken) (lines []string, tokens []*v1.ZedToken) {
		t.Helper()
		r := after(from)
		r.OptionalUpdateKinds = allKinds[:2]
		ctx, cancel := context.WithCancel(testContext(t))
		defer cancel()
		stream := watch(t, ctx, conn, r)
		for len(tokens) == 0 || tokens[len(tokens)-1].GetToken() != end {
			m, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			lines = append(lines, messageOf(m))
			tokens = append(tokens, m.GetChangesThrough())
		}
		return lines, tokens
	}
	whole, tokens := tell(begin)
	if len(whole) < 6 || !strings.HasSuffix(whole[2], "by carl") {
		t.Fatalf("the wide revision came in %d messages", len(whole)-3)
	}
	events := func(lines []string) string {
		return strings.ReplaceAll(strings.Join(lines, ", "), ", by carl", "")
	}
	for i := range len(whole) - 1 {
		// Where a message ends within a revision may differ, but not what is told.
		if rest, _ := tell(tokens[i]); events(rest) != events(whole[i+1:]) {
			t.Errorf("behind message %d of %d other things are told than before", i+1, len(whole))
		}
		_, err := v1.NewPermissionsServiceClient(conn).CheckPermission(testContext(t), &v1.CheckPermissionRequest{
			Consistency: &v1.Consistency{Requirement: &v1.Consistency_AtExactSnapshot{AtExactSnapshot: tokens[i]}},
			Resource:    &v1.ObjectReference{ObjectType: "document", ObjectId: "d1"}, Permission: "viewer", Subject: subjectOf("user", "anne", ""),
		})
		if err != nil {
			t.Errorf("the token of message %d is not good for a check: %v", i+1, err)
		}
	}
}

// TestWatchAgain: whoever watches under load, is cut off at random and comes back
// with the last token, is told every change once and in order.
func TestWatchAgain(t *testing.T) {
	const writers, watchers, writes = 3, 3, 50
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	conn, server := newServerWith(t, api.Config{Limits: api.Limits{StreamStall: 200 * time.Millisecond}})
	begin := writeSchema(t, conn, watchSchema)
	ctx, cancel := context.WithTimeout(context.Background(), 5*patience)
	defer cancel()

	finished := make(chan struct{})
	var last string // The token behind everything, once finished.
	got := make([][]string, watchers)
	cuts := make([]int, watchers)
	var watching sync.WaitGroup
	for i := range watchers {
		// One that is slow may lose its connection.
		own := dial(t, server, testKey)
		watching.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(i)))
			r := after(begin)
			enough := func() bool {
				select {
				case <-finished:
					return r.GetOptionalStartCursor().GetToken() == last
				default:
					return false
				}
			}
			for !enough() && ctx.Err() == nil {
				here, cut := context.WithCancel(ctx)
				left := 1 << 30
				if random.IntN(2) == 0 {
					left = random.IntN(40)
				} else {
					time.AfterFunc(time.Duration(random.IntN(40))*time.Millisecond, cut)
				}
				stream, err := v1.NewWatchServiceClient(own).Watch(here, r)
				for ; err == nil && left > 0 && !enough(); left-- {
					var m *v1.WatchResponse
					if m, err = stream.Recv(); err != nil {
						break
					}
					for _, u := range m.GetUpdates() {
						got[i] = append(got[i], eventOf(u))
					}
					r.OptionalStartCursor = m.GetChangesThrough()
					if random.IntN(200) == 0 {
						time.Sleep(250 * time.Millisecond)
					}
				}
				cut()
				cuts[i]++
				switch status.Code(err) {
				case codes.OK, codes.Canceled, codes.ResourceExhausted, codes.Unavailable:
				default:
					t.Errorf("watcher %d: %v", i, err)
					return
				}
			}
		})
	}
	// Each writer makes and ends relationships of its own, now and then a lot.
	var writing sync.WaitGroup
	want := make([][]string, writers)
	client := v1.NewPermissionsServiceClient(conn)
	for w := range writers {
		writing.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(1000+w)))
			for n := range writes {
				var updates []*v1.RelationshipUpdate
				switch {
				case n%20 == 10:
					updates = wide(t, fmt.Sprintf("w%d-%d", w, n), 350)
				case n%2 == 1:
					updates = []*v1.RelationshipUpdate{update(t, v1.RelationshipUpdate_OPERATION_DELETE, fmt.Sprintf("document:w%d-%d-0#viewer@user:anne", w, n-1))}
				default:
					for k := range 1 + random.IntN(5) {
						updates = append(updates, update(t, v1.RelationshipUpdate_OPERATION_CREATE, fmt.Sprintf("document:w%d-%d-%d#viewer@user:anne", w, n, k)))
					}
				}
				if n%20 == 11 {
					continue // What it would end was part of a lot.
				}
				if _, err := client.WriteRelationships(ctx, &v1.WriteRelationshipsRequest{Updates: updates}); err != nil {
					t.Errorf("writer %d: %v", w, err)
					return
				}
				for _, u := range updates {
					want[w] = append(want[w], strings.Replace(eventOf(u), "CREATE", "TOUCH", 1))
				}
			}
		})
	}
	writing.Wait()
	last = touch(t, conn, "document:end#viewer@user:anne").GetToken()
	close(finished)
	watching.Wait()
	t.Logf("the watchers came %v times", cuts)

	for i := range got {
		if !slices.Equal(got[i], got[0]) {
			t.Errorf("watchers %d and 0 were told different things", i)
		}
		for w := range want {
			own := slices.DeleteFunc(slices.Clone(got[i]), func(event string) bool { return !strings.Contains(event, fmt.Sprintf(" document:w%d-", w)) })
			// Within one write the server may choose the order; names that sort show
			// that nothing is missing or comes twice.
			if len(own) != len(want[w]) {
				t.Errorf("watcher %d was told %d changes of writer %d, which made %d", i, len(own), w, len(want[w]))
			} else if !slices.Equal(own, want[w]) {
				t.Errorf("watcher %d was told the changes of writer %d in another order", i, w)
			}
		}
	}
}

// TestWatchRefusals: places to begin and filters that are refused.
func TestWatchRefusals(t *testing.T) {
	t.Parallel() // It mostly waits.
	node := newNode(t)
	conn, _ := newServerWith(t, api.Config{Node: node})
	other := newServer(t)
	old := writeSchema(t, conn, watchSchema)
	touch(t, conn, "document:d0#viewer@user:anne")
	newest := touch(t, conn, "document:d1#viewer@user:anne")
	foreign := writeSchema(t, other, watchSchema)

	// The log of the default store is cut behind its first revisions, which must be
	// older than what is kept at least.
	const kept = time.Second
	store, ok := node.StoreNamed(api.DefaultStoreName)
	if !ok {
		t.Fatal("there is no default store")
	}
	retention := graph.Retention(kept.Microseconds())
	time.Sleep(kept + 100*time.Millisecond)
	for _, m := range []*graph.Mutation{
		{Store: store.ID, StoreChange: &graph.StoreChange{Operation: graph.SetStore, Log: &retention, History: &retention}},
		{Store: store.ID, Prune: &graph.Prune{}},
	} {
		if result, err := node.Write(testContext(t), m); err != nil || result.Refusal != nil {
			t.Fatalf("%v, %v", err, result.Refusal)
		}
	}
	_, found, err := resources(t, conn, &v1.LookupResourcesRequest{
		Consistency: fullyConsistent, ResourceObjectType: "document", Permission: "viewer", Subject: subjectOf("user", "anne", ""),
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		request *v1.WatchRequest
		code    codes.Code
		reason  string
	}{
		"types and filters": {&v1.WatchRequest{OptionalObjectTypes: []string{"document"}, OptionalRelationshipFilters: []*v1.RelationshipFilter{{ResourceType: "document"}}}, codes.InvalidArgument, ""},
		"a malformed type":  {&v1.WatchRequest{OptionalObjectTypes: []string{"Document!"}}, codes.InvalidArgument, ""},
		"an empty filter":   {&v1.WatchRequest{OptionalRelationshipFilters: []*v1.RelationshipFilter{{}}}, codes.InvalidArgument, "ERROR_REASON_INVALID_FILTER"},
		"an id and a prefix": {
			&v1.WatchRequest{OptionalRelationshipFilters: []*v1.RelationshipFilter{{OptionalResourceId: "d1", OptionalResourceIdPrefix: "d"}}}, codes.InvalidArgument, "ERROR_REASON_INVALID_FILTER",
		},
		"an empty token":   {after(&v1.ZedToken{}), codes.InvalidArgument, ""},
		"a garbled token":  {after(&v1.ZedToken{Token: "???"}), codes.InvalidArgument, ""},
		"a broken token":   {after(&v1.ZedToken{Token: newest.GetToken()[1:]}), codes.InvalidArgument, ""},
		"a foreign token":  {after(foreign), codes.InvalidArgument, ""},
		"too old a token":  {after(old), codes.OutOfRange, ""},
		"a cursor instead": {after(&v1.ZedToken{Token: found.GetAfterResultCursor().GetToken()}), codes.InvalidArgument, ""},
	} {
		t.Run(name, func(t *testing.T) {
			stream, err := v1.NewWatchServiceClient(conn).Watch(testContext(t), c.request)
			if err != nil {
				t.Fatal(err)
			}
			_, err = stream.Recv()
			if code, reason, _ := reasonOf(err); code != c.code || c.code != codes.OutOfRange && reason != c.reason {
				t.Errorf("got %v %q (%v), want %v %q", code, reason, err, c.code, c.reason)
			}
		})
	}
}

// TestWatchEnds: one who takes nothing is told so, and can go on; and a server that
// closes says that another may be asked.
func TestWatchEnds(t *testing.T) {
	const revisions, changes = 5, 400 // More than is on the way to a client at most.
	conn, server := newServerWith(t, api.Config{Limits: api.Limits{StreamStall: 20 * time.Millisecond}})
	begin := writeSchema(t, conn, watchSchema)
	var end string
	for i := range revisions {
		end = write(t, conn, nil, wide(t, fmt.Sprintf("w%d", i), changes)...).GetToken()
	}
	slow, err := grpc.NewClient("passthrough:///"+server.GRPCAddr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithPerRPCCredentials(bearer(testKey)), grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(64<<10))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := slow.Close(); err != nil {
			t.Error(err)
		}
	}()
	stalled, told := false, 0
	for r, pause := after(begin), 50*time.Millisecond; r.GetOptionalStartCursor().GetToken() != end; {
		ctx, cancel := context.WithCancel(testContext(t))
		stream := watch(t, ctx, slow, r)
		if !stalled {
			time.Sleep(pause) // How long it takes to fill what is on the way depends on the machine.
		}
		for r.GetOptionalStartCursor().GetToken() != end {
			m, err := stream.Recv()
			if err != nil {
				// On a busy machine several stall, and with the last of them the connection ends.
				if code := status.Code(err); code != codes.ResourceExhausted && (!stalled || code != codes.Unavailable) {
					t.Fatal(err)
				}
				stalled = true
				break
			}
			told += len(m.GetUpdates())
			r.OptionalStartCursor = m.GetChangesThrough()
		}
		cancel()
		if !stalled {
			r, pause, told = after(begin), 2*pause, 0
		}
	}
	if told != revisions*changes {
		t.Errorf("%d changes were told, of %d", told, revisions*changes)
	}

	stream := watch(t, testContext(t), conn, &v1.WatchRequest{})
	closing, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	closed := make(chan error, 1)
	go func() { closed <- server.Close(closing) }()
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("a watch of a server that closes: %v", err)
	}
	if err := errors.Join(<-closed, closing.Err()); err != nil {
		t.Error(err)
	}
}
