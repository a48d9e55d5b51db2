package main

import (
	"iter"
	"math/rand/v2"
	"slices"
	"strconv"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

// A model is a schema and a way to make data for it.
type model struct {
	name   string
	schema string
	// generate makes data of about size tuples; the same size and seed always
	// give the same.
	generate func(size int, seed uint64) *dataset
}

// models are all models, by name.
var models = map[string]*model{
	"business": {name: "business", schema: businessSchema, generate: generateBusiness},
	"depth":    {name: "depth", schema: depthSchema, generate: generateDepth},
	"width":    {name: "width", schema: widthSchema, generate: generateWidth},
}

// A dataset is the tuples of a model with questions about them, whose answers
// are known by how the tuples were made: Pemba is not asked.
type dataset struct {
	// tuples yields every tuple, none of them twice.
	tuples iter.Seq[*pembav1.Tuple]
	// checks are generators of questions, by name; about half of what each
	// makes is denied.
	checks map[string]*checks
	// resources and subjects are lookups, by name.
	resources, subjects map[string][]lookup
	// fresh returns a tuple that tuples does not yield, that no question depends
	// on, and that is another one for every i. It gives its subject what written
	// asks for. Nil where the model is not written to.
	fresh func(i uint64) *pembav1.Tuple
	// written asks, of a tuple of fresh, what is denied without it and allowed
	// with it.
	written func(t *pembav1.Tuple) *pembav1.CheckRequest
}

// checks make questions of one kind.
type checks struct {
	objectType, permission, subjectType string
	// next makes a random question that is to be allowed or denied. It may give
	// another one than was wanted, or one that it gave before.
	next func(r *rand.Rand, allowed bool) question
}

// A question asks about an object and a subject.
type question struct {
	object, subject string
	allowed         bool
}

// request returns the question as it is asked.
func (c *checks) request(q question) *pembav1.CheckRequest {
	return &pembav1.CheckRequest{
		Object: objectOf(c.objectType, q.object), Permission: c.permission,
		Subject: &pembav1.Subject{Object: objectOf(c.subjectType, q.subject)},
	}
}

// A lookup asks for all objects, or all subjects, of one question.
type lookup struct {
	// of is the object whose subjects, or the subject whose objects are asked
	// for; typed is the type of what is found.
	of         *pembav1.Object
	permission string
	typed      string
	// found are the ids of all results, in any order.
	found []string
}

func objectOf(typed, id string) *pembav1.Object { return &pembav1.Object{Type: typed, Id: id} }

// edge returns a tuple; subjectRelation is empty for a plain subject.
func edge(objectType, object, relation, subjectType, subject, subjectRelation string) *pembav1.Tuple {
	return &pembav1.Tuple{
		Object: objectOf(objectType, object), Relation: relation,
		Subject: &pembav1.Subject{Object: objectOf(subjectType, subject), Relation: subjectRelation},
	}
}

// id returns an id such as d17, or g3-0-12.
func id(prefix string, numbers ...int) string {
	text := make([]byte, 0, 24)
	text = append(text, prefix...)
	for i, n := range numbers {
		if i > 0 {
			text = append(text, '-')
		}
		text = strconv.AppendInt(text, int64(n), 10)
	}
	return string(text)
}

const businessSchema = `
definition person {}

definition group {
	relation member: person | group#member
}

definition org {
	relation parent: org
	relation admin: person | group#member
	relation member: person
	permission manage = admin + parent->manage
}

definition document {
	relation org: org
	relation owner: person
	relation viewer: person | group#member
	relation blocked: person
	permission edit = owner + org->manage
	permission view = (viewer + edit) - blocked
}
`

// The nested business model has trees of organisations, each with a tree of
// groups; the root of the groups administers the root of the organisations. A
// group of support staff administers all of them.
const (
	treeTuples     = 2500 // of a tree with its documents
	treeOrgs       = 63   // a binary tree of six levels
	treeGroups     = 15   // a binary tree of four levels
	groupPeople    = 8    // direct members of each group
	supportPeople  = 20
	supportGroup   = "support"
	freshGuests    = 1000 // with whom new documents are shared
	questionsTried = 64   // how often a question with the wanted answer is sought
)

// business is the data in numbers, from which answers follow. Organisation and
// group k of a tree, counted from 1, have the children 2k and 2k+1.
type business struct {
	people    int
	support   []int
	groups    [][]int // [tree*treeGroups + k-1], the direct members
	orgs      []businessOrg
	documents []businessDocument
}

// businessOrg is at [tree*treeOrgs + k-1].
type businessOrg struct {
	admin   int
	members []int
}

type businessDocument struct {
	org, owner, viewer int
	group, blocked     int // -1 for none
}

// distinct returns n different numbers below limit.
func distinct(r *rand.Rand, n, limit int) []int {
	chosen := make([]int, 0, n)
	for len(chosen) < n {
		if c := r.IntN(limit); !slices.Contains(chosen, c) {
			chosen = append(chosen, c)
		}
	}
	return chosen
}

func newBusiness(size int, seed uint64) *business {
	r := rand.New(rand.NewPCG(seed, 1))
	b := &business{people: max(size/10, 200)}
	b.support = distinct(r, supportPeople, b.people)
	trees := max(size/treeTuples, 1)
	tuples := supportPeople
	for range trees {
		for range treeGroups {
			b.groups = append(b.groups, distinct(r, groupPeople, b.people))
		}
		for range treeOrgs {
			b.orgs = append(b.orgs, businessOrg{admin: r.IntN(b.people), members: distinct(r, 2, b.people)})
		}
		tuples += treeGroups*groupPeople + treeGroups - 1 + treeOrgs*3 + treeOrgs - 1 + 2
	}
	for tuples+5 <= size { // Never more than were asked for.
		d := businessDocument{
			org: r.IntN(len(b.orgs)), owner: r.IntN(b.people), viewer: r.IntN(b.people), group: -1, blocked: -1,
		}
		tuples += 3
		if r.IntN(2) == 0 {
			d.group = r.IntN(len(b.groups))
			tuples++
		}
		if r.IntN(4) == 0 {
			d.blocked = r.IntN(b.people)
			tuples++
		}
		b.documents = append(b.documents, d)
	}
	return b
}

// inGroup says whether a person is in a group or one below it.
func (b *business) inGroup(group, person int) bool {
	if slices.Contains(b.groups[group], person) {
		return true
	}
	base, k := group/treeGroups*treeGroups, group%treeGroups+1
	return 2*k <= treeGroups && (b.inGroup(base+2*k-1, person) || b.inGroup(base+2*k, person))
}

// manages says whether a person administers an organisation or one above it.
func (b *business) manages(org, person int) bool {
	tree := org / treeOrgs
	for k := org%treeOrgs + 1; k > 0; k /= 2 {
		if b.orgs[tree*treeOrgs+k-1].admin == person {
			return true
		}
	}
	return b.inGroup(tree*treeGroups, person) || slices.Contains(b.support, person)
}

// views is the permission view of the schema.
func (b *business) views(document, person int) bool {
	d := &b.documents[document]
	return d.blocked != person &&
		(d.owner == person || d.viewer == person || d.group >= 0 && b.inGroup(d.group, person) || b.manages(d.org, person))
}

// someViewer returns a person who most likely views the document, each way of
// doing so as likely as the others.
func (b *business) someViewer(r *rand.Rand, document int) int {
	d := &b.documents[document]
	tree := d.org / treeOrgs
	below := func(group int) int {
		base, k := group/treeGroups*treeGroups, group%treeGroups+1
		for 2*k <= treeGroups && r.IntN(3) > 0 {
			k = 2*k + r.IntN(2)
		}
		members := b.groups[base+k-1]
		return members[r.IntN(len(members))]
	}
	switch way := r.IntN(6); {
	case way == 0:
		return d.owner
	case way == 1:
		return d.viewer
	case way == 2 && d.group >= 0:
		return below(d.group)
	case way == 3:
		return b.support[r.IntN(len(b.support))]
	case way == 4:
		k := d.org%treeOrgs + 1
		for k > 1 && r.IntN(3) > 0 {
			k /= 2
		}
		return b.orgs[tree*treeOrgs+k-1].admin
	}
	return below(tree * treeGroups)
}

func (b *business) tuples(yield func(*pembav1.Tuple) bool) {
	person := func(objectType, object, relation string, number int) bool {
		return yield(edge(objectType, object, relation, "person", id("p", number), ""))
	}
	group := func(tree, k int) string { return id("g", tree, k) }
	org := func(tree, k int) string { return id("o", tree, k) }
	for _, p := range b.support {
		if !person("group", supportGroup, "member", p) {
			return
		}
	}
	for i, members := range b.groups {
		tree, k := i/treeGroups, i%treeGroups+1
		if k > 1 && !yield(edge("group", group(tree, k/2), "member", "group", group(tree, k), "member")) {
			return
		}
		for _, p := range members {
			if !person("group", group(tree, k), "member", p) {
				return
			}
		}
	}
	for i, o := range b.orgs {
		tree, k := i/treeOrgs, i%treeOrgs+1
		if k > 1 {
			if !yield(edge("org", org(tree, k), "parent", "org", org(tree, k/2), "")) {
				return
			}
		} else if !yield(edge("org", org(tree, 1), "admin", "group", group(tree, 1), "member")) ||
			!yield(edge("org", org(tree, 1), "admin", "group", supportGroup, "member")) {
			return
		}
		if !person("org", org(tree, k), "admin", o.admin) {
			return
		}
		for _, p := range o.members {
			if !person("org", org(tree, k), "member", p) {
				return
			}
		}
	}
	for i, d := range b.documents {
		name := id("d", i)
		if !yield(edge("document", name, "org", "org", org(d.org/treeOrgs, d.org%treeOrgs+1), "")) ||
			!person("document", name, "owner", d.owner) || !person("document", name, "viewer", d.viewer) ||
			d.group >= 0 && !yield(edge("document", name, "viewer", "group", group(d.group/treeGroups, d.group%treeGroups+1), "member")) ||
			d.blocked >= 0 && !person("document", name, "blocked", d.blocked) {
			return
		}
	}
}

func generateBusiness(size int, seed uint64) *dataset {
	b := newBusiness(size, seed)
	view := &checks{objectType: "document", permission: "view", subjectType: "person"}
	view.next = func(r *rand.Rand, allowed bool) (q question) {
		for range questionsTried {
			document, person := r.IntN(len(b.documents)), r.IntN(b.people)
			if allowed {
				person = b.someViewer(r, document)
			}
			q = question{id("d", document), id("p", person), b.views(document, person)}
			if q.allowed == allowed {
				break
			}
		}
		return q
	}
	viewedBy := func(person int) lookup {
		l := lookup{of: objectOf("person", id("p", person)), permission: "view", typed: "document"}
		for d := range b.documents {
			if b.views(d, person) {
				l.found = append(l.found, id("d", d))
			}
		}
		return l
	}
	viewersOf := func(document int) lookup {
		l := lookup{of: objectOf("document", id("d", document)), permission: "view", typed: "person"}
		for p := range b.people {
			if b.views(document, p) {
				l.found = append(l.found, id("p", p))
			}
		}
		return l
	}
	r := rand.New(rand.NewPCG(seed, 2))
	resources, subjects := map[string][]lookup{}, map[string][]lookup{}
	for _, p := range b.support[:2] {
		resources["all"] = append(resources["all"], viewedBy(p))
	}
	// Administrators of a leaf see its documents, and what is shared with them.
	for range 8 {
		leaf := r.IntN(len(b.orgs)/treeOrgs)*treeOrgs + treeOrgs/2 + r.IntN(treeOrgs/2)
		if l := viewedBy(b.orgs[leaf].admin); len(l.found) > 0 {
			resources["few"] = append(resources["few"], l)
		}
		if l := viewersOf(r.IntN(len(b.documents))); len(l.found) > 0 {
			subjects["document"] = append(subjects["document"], l)
		}
	}
	return &dataset{
		tuples: b.tuples, checks: map[string]*checks{"view": view}, resources: resources, subjects: subjects,
		// Every fourth nests a group of a tree in a new one, and the others share a new
		// document with somebody of whom no lookup asks: there are as many writes as a
		// machine makes, and what is found must not depend on it.
		fresh: func(i uint64) *pembav1.Tuple {
			name := "w" + strconv.FormatUint(i, 10)
			if i%4 == 3 {
				g := int(i / 4 % uint64(len(b.groups)))
				return edge("group", name, "member", "group", id("g", g/treeGroups, g%treeGroups+1), "member")
			}
			return edge("document", name, "viewer", "person", id("guest", int(i%freshGuests)), "")
		},
		written: func(t *pembav1.Tuple) *pembav1.CheckRequest {
			permission := "view"
			if t.GetObject().GetType() == "group" {
				permission = "member"
			}
			return &pembav1.CheckRequest{Object: t.GetObject(), Permission: permission, Subject: t.GetSubject()}
		},
	}
}

const depthSchema = `
definition person {}

definition group {
	relation member: person | group#member
}

definition folder {
	relation parent: folder
	relation viewer: person
	permission view = viewer + parent->view
}

definition document {
	relation viewer: person | group#member
	permission view = viewer
}
`

// depths are the lengths of the chains in the depth model: the number of groups
// between a document and a person, or of folders above one.
var depths = []int{1, 2, 4, 8, 16, 32}

// chainPeople are the people at the end of each chain.
const chainPeople = 4

// generateDepth makes chains of groups and of folders, of each depth as many.
// A question asks about the person at the end of the chain, or at the end of
// another chain.
func generateDepth(size int, _ uint64) *dataset {
	perChain := 0
	for _, depth := range depths {
		perChain += depth + chainPeople // groups; the document is one more, the last group one less
		perChain += depth + chainPeople // folders
	}
	chains := max(size/perChain, 2)
	data := &dataset{checks: map[string]*checks{}}
	data.tuples = func(yield func(*pembav1.Tuple) bool) {
		for _, depth := range depths {
			for c := range chains {
				ok := yield(edge("document", id("d", depth, c), "viewer", "group", id("g", depth, c, 1), "member"))
				for level := 2; ok && level <= depth; level++ {
					ok = yield(edge("group", id("g", depth, c, level-1), "member", "group", id("g", depth, c, level), "member"))
				}
				for level := 1; ok && level <= depth; level++ {
					ok = yield(edge("folder", id("f", depth, c, level-1), "parent", "folder", id("f", depth, c, level), ""))
				}
				for p := 0; ok && p < chainPeople; p++ {
					ok = yield(edge("group", id("g", depth, c, depth), "member", "person", id("p", depth, c, p), "")) &&
						yield(edge("folder", id("f", depth, c, depth), "viewer", "person", id("p", depth, c, p), ""))
				}
				if !ok {
					return
				}
			}
		}
	}
	for _, depth := range depths {
		next := func(object func(chain int) string) func(*rand.Rand, bool) question {
			return func(r *rand.Rand, allowed bool) question {
				chain := r.IntN(chains)
				end := chain
				if !allowed {
					end = (chain + 1 + r.IntN(chains-1)) % chains
				}
				return question{object(chain), id("p", depth, end, r.IntN(chainPeople)), allowed}
			}
		}
		data.checks[id("groups=", depth)] = &checks{
			objectType: "document", permission: "view", subjectType: "person",
			next: next(func(chain int) string { return id("d", depth, chain) }),
		}
		data.checks[id("folders=", depth)] = &checks{
			objectType: "folder", permission: "view", subjectType: "person",
			next: next(func(chain int) string { return id("f", depth, chain, 0) }),
		}
	}
	return data
}

const widthSchema = `
definition person {}

definition group {
	relation member: person | group#member
}

definition document {
	relation viewer: person | group#member
	permission view = viewer
}
`

// widths are the sizes of the groups in the width model, and fans the numbers of
// groups that one document is shared with. What is larger than the size asked
// for is left out.
var (
	widths = []int{10, 100, 1000, 10_000, 100_000, 1_000_000}
	fans   = []int{10, 100, 1000}
)

// generateWidth makes a document that is shared with one group of each width,
// and one that is shared with many groups of one person each. Who is denied is
// in a group of another document.
func generateWidth(size int, _ uint64) *dataset {
	const strangers = 1000
	data := &dataset{checks: map[string]*checks{}, subjects: map[string][]lookup{}}
	used := func(all []int) []int { return all[:max(len(all)-countAbove(all, size), 1)] }
	data.tuples = func(yield func(*pembav1.Tuple) bool) {
		for s := range strangers {
			if !yield(edge("group", "strangers", "member", "person", id("s", s), "")) {
				return
			}
		}
		for _, width := range used(widths) {
			if !yield(edge("document", id("w", width), "viewer", "group", id("w", width), "member")) {
				return
			}
			for p := range width {
				if !yield(edge("group", id("w", width), "member", "person", id("p", p), "")) {
					return
				}
			}
		}
		for _, fan := range used(fans) {
			for g := range fan {
				if !yield(edge("document", id("f", fan), "viewer", "group", id("f", fan, g), "member")) ||
					!yield(edge("group", id("f", fan, g), "member", "person", id("p", g), "")) {
					return
				}
			}
		}
	}
	next := func(object string, people int) *checks {
		return &checks{
			objectType: "document", permission: "view", subjectType: "person",
			next: func(r *rand.Rand, allowed bool) question {
				if allowed {
					return question{object, id("p", r.IntN(people)), true}
				}
				return question{object, id("s", r.IntN(strangers)), false}
			},
		}
	}
	for _, width := range used(widths) {
		data.checks[id("width=", width)] = next(id("w", width), width)
		l := lookup{of: objectOf("document", id("w", width)), permission: "view", typed: "person"}
		for p := range width {
			l.found = append(l.found, id("p", p))
		}
		data.subjects[id("width=", width)] = []lookup{l}
	}
	for _, fan := range used(fans) {
		data.checks[id("fan=", fan)] = next(id("f", fan), fan)
	}
	return data
}

// countAbove says how many numbers are larger than limit.
func countAbove(numbers []int, limit int) (n int) {
	for _, number := range numbers {
		if number > limit {
			n++
		}
	}
	return n
}
