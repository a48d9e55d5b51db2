package authzed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/pembadb/pemba/api"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/graph"
)

// counters calls the methods of counters in the context of one store.
type counters struct {
	ctx    context.Context
	client v1.ExperimentalServiceClient
}

func newCounters(t testing.TB, conn *grpc.ClientConn) counters {
	t.Helper()
	return counters{testContext(t), v1.NewExperimentalServiceClient(conn)}
}

func (c counters) register(name string, f *v1.RelationshipFilter) error {
	_, err := c.client.ExperimentalRegisterRelationshipCounter(c.ctx, &v1.ExperimentalRegisterRelationshipCounterRequest{Name: name, RelationshipFilter: f})
	return err
}

func (c counters) unregister(name string) error {
	_, err := c.client.ExperimentalUnregisterRelationshipCounter(c.ctx, &v1.ExperimentalUnregisterRelationshipCounterRequest{Name: name})
	return err
}

func (c counters) count(name string) (*v1.ReadCounterValue, error) {
	r, err := c.client.ExperimentalCountRelationships(c.ctx, &v1.ExperimentalCountRelationshipsRequest{Name: name})
	if err == nil && r.GetReadCounterValue().GetReadAt().GetToken() == "" {
		err = fmt.Errorf("the answer is %v", r)
	}
	return r.GetReadCounterValue(), err
}

// wants fails unless a counter counts so many.
func (c counters) wants(t testing.TB, name string, want uint64) *v1.ZedToken {
	t.Helper()
	value, err := c.count(name)
	if err != nil || value.GetRelationshipCount() != want {
		t.Fatalf("the counter %s counts %v (%v), not %d", name, value, err, want)
	}
	return value.GetReadAt()
}

// TestRelationshipCounters: a counter counts what a read of its filter gives, at
// the newest state, which is that of its token.
func TestRelationshipCounters(t *testing.T) {
	conn := newServer(t)
	writeSchema(t, conn, documents)
	c := newCounters(t, conn)
	none := ""
	filters := map[string]*v1.RelationshipFilter{
		"documents": {ResourceType: "document"},
		"viewers":   {ResourceType: "document", OptionalRelation: "viewer"},
		"of_a":      {ResourceType: "document", OptionalResourceId: "a"},
		"from_d":    {OptionalResourceIdPrefix: "d"},
		"anne":      {OptionalSubjectFilter: subjectFilter("user", "anne", nil)},
		"members":   {OptionalSubjectFilter: subjectFilter("group", "", new("member"))},
		"users":     {ResourceType: "document", OptionalSubjectFilter: subjectFilter("user", "", &none)},
		"everybody": {OptionalSubjectFilter: subjectFilter("user", "*", nil)},
	}
	for name, f := range filters {
		if err := c.register(name, f); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		c.wants(t, name, 0)
	}
	steps := []struct {
		write []*v1.RelationshipUpdate
		want  map[string]uint64
	}{
		{
			[]*v1.RelationshipUpdate{
				update(t, v1.RelationshipUpdate_OPERATION_CREATE, "document:a#viewer@user:anne"),
				update(t, v1.RelationshipUpdate_OPERATION_CREATE, "document:a#viewer@user:*"),
				update(t, v1.RelationshipUpdate_OPERATION_CREATE, "document:d1#viewer@group:eng#member"),
				update(t, v1.RelationshipUpdate_OPERATION_CREATE, `document:d2#viewer@user:carl[soon:{"limit":3}]`),
				update(t, v1.RelationshipUpdate_OPERATION_CREATE, "document:d3#owner@user:anne"),
				update(t, v1.RelationshipUpdate_OPERATION_CREATE, "group:eng#member@user:anne"),
			},
			map[string]uint64{"documents": 5, "viewers": 4, "of_a": 2, "from_d": 3, "anne": 3, "members": 1, "users": 4, "everybody": 1},
		},
		{
			// What has expired does not count, and what will still does.
			[]*v1.RelationshipUpdate{
				update(t, v1.RelationshipUpdate_OPERATION_TOUCH, "document:a#viewer@user:anne[expiration:2001-01-01T00:00:00Z]"),
				update(t, v1.RelationshipUpdate_OPERATION_TOUCH, "document:a#viewer@user:dora[expiration:2999-01-01T00:00:00Z]"),
				update(t, v1.RelationshipUpdate_OPERATION_TOUCH, "document:d4#viewer@user:dora[expiration:2001-01-01T00:00:00Z]"),
				update(t, v1.RelationshipUpdate_OPERATION_DELETE, "document:d2#viewer@user:carl"),
			},
			map[string]uint64{"documents": 4, "viewers": 3, "of_a": 2, "from_d": 2, "anne": 2, "members": 1, "users": 3, "everybody": 1},
		},
	}
	type reading struct {
		name string
		at   *v1.ZedToken
		want uint64
	}
	var readings []reading
	for _, step := range steps {
		write(t, conn, nil, step.write...)
		for name, want := range step.want {
			readings = append(readings, reading{name, c.wants(t, name, want), want})
		}
	}
	write(t, conn, nil, update(t, v1.RelationshipUpdate_OPERATION_TOUCH, "document:d9#owner@user:zoe"))
	for _, r := range readings {
		at := &v1.Consistency{Requirement: &v1.Consistency_AtExactSnapshot{AtExactSnapshot: r.at}}
		found, _, err := readAll(t, conn, &v1.ReadRelationshipsRequest{Consistency: at, RelationshipFilter: filters[r.name]})
		if err != nil || uint64(len(found)) != r.want {
			t.Errorf("%s counted %d; at its token are %v (%v)", r.name, r.want, found, err)
		}
	}

	// A counter is free again once it is unregistered, and holds up no schema.
	if err := c.unregister("anne"); err != nil {
		t.Fatal(err)
	}
	_, err := c.count("anne")
	wantRefusal(t, err, codes.FailedPrecondition, "ERROR_REASON_COUNTER_NOT_REGISTERED")
	if err := c.register("anne", &v1.RelationshipFilter{OptionalSubjectFilter: subjectFilter("user", "zoe", nil)}); err != nil {
		t.Fatal(err)
	}
	c.wants(t, "anne", 1)
	if _, err := v1.NewPermissionsServiceClient(conn).DeleteRelationships(c.ctx, &v1.DeleteRelationshipsRequest{RelationshipFilter: filters["documents"]}); err != nil {
		t.Fatal(err)
	}
	writeSchema(t, conn, "definition user {}\ndefinition group { relation member: user }")
	c.wants(t, "documents", 0)
	c.wants(t, "anne", 0)
}

func TestRelationshipCounterRefusals(t *testing.T) {
	conn := newServer(t)
	c := newCounters(t, conn)
	viewers := &v1.RelationshipFilter{ResourceType: "document", OptionalRelation: "viewer", OptionalSubjectFilter: subjectFilter("user", "anne", nil)}
	wantRefusal(t, c.register("viewers", viewers), codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_DEFINITION")
	writeSchema(t, conn, documents)
	for name, test := range map[string]struct {
		name   string
		filter *v1.RelationshipFilter
		code   codes.Code
		reason string
	}{
		"no name":       {"", viewers, codes.InvalidArgument, "ERROR_REASON_UNSPECIFIED"},
		"short name":    {"ab", viewers, codes.InvalidArgument, ""},
		"long name":     {"a" + strings.Repeat("b", 64), viewers, codes.InvalidArgument, ""},
		"capitals":      {"Viewers", viewers, codes.InvalidArgument, ""},
		"no filter":     {"viewers", nil, codes.InvalidArgument, ""},
		"empty filter":  {"viewers", &v1.RelationshipFilter{}, codes.InvalidArgument, "ERROR_REASON_INVALID_FILTER"},
		"id and prefix": {"viewers", &v1.RelationshipFilter{OptionalResourceId: "a", OptionalResourceIdPrefix: "a"}, codes.InvalidArgument, "ERROR_REASON_INVALID_FILTER"},
		"form":          {"viewers", &v1.RelationshipFilter{ResourceType: "a b"}, codes.InvalidArgument, ""},
		"long id":       {"viewers", &v1.RelationshipFilter{ResourceType: "document", OptionalResourceId: strings.Repeat("i", 1025)}, codes.InvalidArgument, ""},
		"type":          {"viewers", &v1.RelationshipFilter{ResourceType: "folder"}, codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_DEFINITION"},
		"relation":      {"viewers", &v1.RelationshipFilter{ResourceType: "document", OptionalRelation: "reader"}, codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_RELATION_OR_PERMISSION"},
		"subject type":  {"viewers", &v1.RelationshipFilter{OptionalSubjectFilter: subjectFilter("robot", "", nil)}, codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_DEFINITION"},
		"subject relation": {
			"viewers", &v1.RelationshipFilter{OptionalSubjectFilter: subjectFilter("group", "", new("owner"))},
			codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_RELATION_OR_PERMISSION",
		},
	} {
		err := c.register(test.name, test.filter)
		wantRefusal(t, err, test.code, test.reason)
		// A filter is refused as a read of it is.
		if test.filter == nil || test.name != "viewers" {
			continue
		}
		_, _, readErr := readAll(t, conn, &v1.ReadRelationshipsRequest{Consistency: fullyConsistent, RelationshipFilter: test.filter})
		readCode, readReason, _ := reasonOf(readErr)
		if readCode != test.code || readReason != test.reason {
			t.Errorf("%s: a read is refused with %v", name, readErr)
		}
	}
	for _, name := range []string{"", "ab", "Viewers"} {
		_, err := c.count(name)
		for _, err := range []error{err, c.unregister(name)} {
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("%q: %v", name, err)
			}
		}
	}
	_, err := c.count("viewers")
	for _, err := range []error{err, c.unregister("viewers")} {
		m := wantRefusal(t, err, codes.FailedPrecondition, "ERROR_REASON_COUNTER_NOT_REGISTERED")
		if len(m) != 1 || m["counter_name"] != "viewers" || status.Convert(err).Message() != "counter with name `viewers` not found" {
			t.Errorf("%v with %v", err, m)
		}
	}
	if err := c.register("viewers", &v1.RelationshipFilter{ResourceType: "document"}); err != nil {
		t.Fatal(err)
	}
	err = c.register("viewers", viewers)
	m := wantRefusal(t, err, codes.FailedPrecondition, "ERROR_REASON_COUNTER_ALREADY_REGISTERED")
	if m["counter_name"] != "viewers" || m["new_filter_resource_type"] != "document" || m["new_filter_relation"] != "viewer" ||
		m["new_filter_subject_type"] != "user" || m["new_filter_subject_id"] != "anne" ||
		status.Convert(err).Message() != "counter with name `viewers` already registered" {
		t.Errorf("%v with %v", err, m)
	}
	c.wants(t, "viewers", 0)
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() != errorDomain {
			t.Errorf("the domain is %s", info.GetDomain())
		}
	}
}

// TestRelationshipCountersBound: one counter more than a store may have is refused in a
// way that no client takes for something that passes.
func TestRelationshipCountersBound(t *testing.T) {
	conn, _ := newServerWith(t, api.Config{Node: newMemoryNode(t)})
	writeSchema(t, conn, documents)
	c := newCounters(t, conn)
	for i := range graph.NamedCountersMax {
		if err := c.register(fmt.Sprintf("counter%04d", i), &v1.RelationshipFilter{ResourceType: "document"}); err != nil {
			t.Fatalf("counter %d: %v", i, err)
		}
	}
	err := c.register("onemore", &v1.RelationshipFilter{ResourceType: "document"})
	if code, reason, _ := reasonOf(err); code != codes.FailedPrecondition || reason != "TOO_MANY_COUNTERS" || !strings.Contains(err.Error(), fmt.Sprint(graph.NamedCountersMax)) {
		t.Errorf("one counter too many: %v", err)
	}
}

// TestRelationshipCountersAreListed: GetStore of pemba.v1 lists the counters of its
// store, so that one whose name is lost can be unregistered.
func TestRelationshipCountersAreListed(t *testing.T) {
	conn := newServer(t)
	writeSchema(t, conn, documents)
	c := newCounters(t, conn)
	stores := pembav1.NewStoreServiceClient(conn)
	if _, err := stores.CreateStore(c.ctx, &pembav1.CreateStoreRequest{Name: "other"}); err != nil {
		t.Fatal(err)
	}
	lists := func(want ...string) {
		t.Helper()
		for store, want := range map[string][]string{"": want, "other": nil} {
			r, err := stores.GetStore(c.ctx, &pembav1.GetStoreRequest{Store: store})
			if err != nil || !slices.Equal(r.GetCounters(), want) {
				t.Errorf("the store %q lists %q (%v), not %q", store, r.GetCounters(), err, want)
			}
		}
	}
	lists()
	for _, name := range []string{"viewers", "anne", "zoe_1"} {
		if err := c.register(name, &v1.RelationshipFilter{ResourceType: "document"}); err != nil {
			t.Fatal(err)
		}
	}
	lists("anne", "viewers", "zoe_1")
	if err := c.unregister("viewers"); err != nil {
		t.Fatal(err)
	}
	lists("anne", "zoe_1")
}

// TestRelationshipCountersInNoLog: no watch and no reading of the change log tells
// of a counter, and the numbers of changes have no gap for it.
func TestRelationshipCountersInNoLog(t *testing.T) {
	conn := newServer(t)
	begin := writeSchema(t, conn, documents)
	kinds := []v1.WatchKind{v1.WatchKind_WATCH_KIND_INCLUDE_RELATIONSHIP_UPDATES, v1.WatchKind_WATCH_KIND_INCLUDE_SCHEMA_UPDATES}
	live := watch(t, testContext(t), conn, &v1.WatchRequest{OptionalUpdateKinds: kinds})
	c := newCounters(t, conn)
	change := func(text string) string {
		t.Helper()
		if err := c.register("viewers", &v1.RelationshipFilter{ResourceType: "document"}); err != nil {
			t.Fatal(err)
		}
		token := touch(t, conn, text)
		if err := c.unregister("viewers"); err != nil {
			t.Fatal(err)
		}
		return token.GetToken() + " TOUCH " + text
	}
	want := []string{change("document:a#viewer@user:anne"), change("document:b#viewer@user:anne")}
	for _, stream := range []v1.WatchService_WatchClient{
		live, watch(t, testContext(t), conn, &v1.WatchRequest{OptionalStartCursor: begin, OptionalUpdateKinds: kinds}),
	} {
		var got []string
		for range want {
			m, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, m.GetChangesThrough().GetToken()+" "+messageOf(m))
		}
		if !slices.Equal(got, want) {
			t.Errorf("a watch tells %q, not %q", got, want)
		}
	}
	stream, err := pembav1.NewWatchServiceClient(conn).ReadChanges(testContext(t), &pembav1.ReadChangesRequest{SchemaChanges: true})
	if err != nil {
		t.Fatal(err)
	}
	var numbers []uint64
	schemas := 0
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if r.GetChanges().GetSchema() != nil {
			schemas++
		}
		for _, change := range r.GetChanges().GetChanges() {
			numbers = append(numbers, change.GetSequence())
		}
	}
	if !slices.Equal(numbers, []uint64{1, 2}) || schemas != 1 {
		t.Errorf("the change log has the changes %v and %d schemas", numbers, schemas)
	}
}

// TestRelationshipCountersOfStores: a store's counters are seen, changed and
// limited in no other, and go with it.
func TestRelationshipCountersOfStores(t *testing.T) {
	conn, s := newServerWith(t, api.Config{HTTPAddr: "127.0.0.1:0"})
	stores := pembav1.NewStoreServiceClient(conn)
	in := func(store string) counters {
		c := newCounters(t, conn)
		c.ctx = metadata.AppendToOutgoingContext(c.ctx, api.StoreHeader, store)
		return c
	}
	make := func(store string) counters {
		t.Helper()
		c := in(store)
		if store != "default" {
			if _, err := stores.CreateStore(c.ctx, &pembav1.CreateStoreRequest{Name: store}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := v1.NewSchemaServiceClient(conn).WriteSchema(c.ctx, &v1.WriteSchemaRequest{Schema: documents}); err != nil {
			t.Fatal(err)
		}
		return c
	}
	home, tenant := make("default"), make("tenant")
	touch(t, conn, "document:a#viewer@user:anne")
	filter := &v1.RelationshipFilter{ResourceType: "document"}
	if err := home.register("viewers", filter); err != nil {
		t.Fatal(err)
	}
	_, err := tenant.count("viewers")
	wantRefusal(t, err, codes.FailedPrecondition, "ERROR_REASON_COUNTER_NOT_REGISTERED")
	wantRefusal(t, tenant.unregister("viewers"), codes.FailedPrecondition, "ERROR_REASON_COUNTER_NOT_REGISTERED")
	if err := tenant.register("viewers", filter); err != nil {
		t.Fatal(err)
	}
	home.wants(t, "viewers", 1)
	tenant.wants(t, "viewers", 0)
	if _, err := stores.DeleteStore(tenant.ctx, &pembav1.DeleteStoreRequest{Store: "tenant"}); err != nil {
		t.Fatal(err)
	}
	if _, err := tenant.count("viewers"); status.Code(err) != codes.NotFound {
		t.Errorf("a counter of a store that is gone: %v", err)
	}
	tenant = make("tenant")
	_, err = tenant.count("viewers")
	wantRefusal(t, err, codes.FailedPrecondition, "ERROR_REASON_COUNTER_NOT_REGISTERED")
	if err := home.unregister("viewers"); err != nil {
		t.Fatal(err)
	}

	// Over HTTP.
	call := func(method, body string) answer {
		return post(t, s, "/v1/experimental/"+method, body)
	}
	if a := call("registerrelationshipcounter", `{"name":"viewers","relationshipFilter":{"resourceType":"document"}}`); a.status != http.StatusOK {
		t.Fatalf("%+v", a)
	}
	var counted struct {
		ReadCounterValue struct {
			RelationshipCount string
			ReadAt            struct{ Token string }
		}
	}
	a := call("countrelationships", `{"name":"viewers"}`)
	if err := json.Unmarshal([]byte(a.body), &counted); err != nil || a.status != http.StatusOK || counted.ReadCounterValue.RelationshipCount != "1" || counted.ReadCounterValue.ReadAt.Token == "" {
		t.Fatalf("%+v (%v)", a, err)
	}
	for _, want := range []int{http.StatusOK, http.StatusBadRequest} {
		if a := call("unregisterrelationshipcounter", `{"name":"viewers"}`); a.status != want {
			t.Errorf("%+v, not %d", a, want)
		}
	}
}

// TestRelationshipCountersStay: counters are there after a restart.
func TestRelationshipCountersStay(t *testing.T) {
	dir := t.TempDir()
	t.Run("before", func(t *testing.T) {
		conn, _ := newServerWith(t, api.Config{Node: newNodeIn(t, dir)})
		writeSchema(t, conn, documents)
		touch(t, conn, "document:a#viewer@user:anne", "document:b#viewer@user:bob")
		c := newCounters(t, conn)
		for _, name := range []string{"anne", "gone"} {
			if err := c.register(name, &v1.RelationshipFilter{OptionalSubjectFilter: subjectFilter("user", "anne", nil)}); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.unregister("gone"); err != nil {
			t.Fatal(err)
		}
		c.wants(t, "anne", 1)
	})
	conn, _ := newServerWith(t, api.Config{Node: newNodeIn(t, dir)})
	c := newCounters(t, conn)
	c.wants(t, "anne", 1)
	_, err := c.count("gone")
	wantRefusal(t, err, codes.FailedPrecondition, "ERROR_REASON_COUNTER_NOT_REGISTERED")
	touch(t, conn, "document:c#viewer@user:anne")
	c.wants(t, "anne", 2)
}
