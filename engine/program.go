package engine

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

// A program is a schema bound to the numbers of a store: every name of the
// schema is a pointer, every relation knows the shapes it stores. It is made
// once for each version of a schema and then only read.
type program struct {
	schema  *schema.Schema
	version graph.SchemaVersion
	types   map[string]*objectType
	// names holds every relation and permission; names[i].index == i.
	names []*name
	// caveats is the schema's caveats by the number tuples carry.
	caveats map[graph.CaveatNumber]*schema.Caveat
	// direct lists, for the shape of a plain subject, the relations that store
	// it; selves the names of its type whose rewrite holds the object itself.
	// They are where LookupResources starts.
	direct map[graph.Shape][]seed
	selves map[graph.Shape][]seed
	// leading holds, by name, what leadingTo found, for a schema of few names.
	leading sync.Map
	// derived holds a func() any by the key of Snapshot.Derived, which makes the value
	// once, for the first who needs it; only that method writes it.
	derived sync.Map
}

// An objectType is a definition of the schema.
type objectType struct {
	name  string
	shape graph.Shape // of its plain subjects
	names map[string]*name
}

// A name is a relation or permission of a type: with an object it is what the
// evaluator evaluates.
type name struct {
	index   uint32
	typ     *objectType
	name    string
	shape   graph.Shape // of its usersets; zero for hidden names
	rewrite *operation
	// stored lists what tuples of a relation hold; nil for a permission.
	stored []storedShape
	// caveated says that the schema lets a tuple of the relation have a caveat.
	caveated bool
	// relation says that the schema declares a relation, which tuples store.
	relation bool
	// leaf says that its subjects are those that its tuples name, and no others, and that
	// these have no caveats: to look again costs no more than to remember.
	leaf bool
	// operands are what it is a union of, where it is made of tuples, unions and arrows
	// alone, all the way down, and not of its own tuples only; else nil. See climb.
	operands []*operation
	// nests says that a subject has it by tuples and unions alone: see nesting.
	nests bool
	// family is the same for all that nest in each other, and zero where nothing nests:
	// whoever asks for one of these has no need to know of those of another.
	family int32
	// feeds lists where a subject of this name becomes a subject of another:
	// the edges that LookupResources walks.
	feeds []feed
}

// A storedShape is one shape of subject that a relation stores.
type storedShape struct {
	typ   *objectType
	shape graph.Shape
	// userset is the name whose subjects the tuple includes; nil for a plain
	// subject.
	userset *name
	// concrete and wildcard say which of id and "*" the schema allows; both
	// only for plain subjects.
	concrete, wildcard bool
	// expiring says that the schema lets such a tuple have an expiration.
	expiring bool
}

// An operation is a node of a compiled rewrite.
type operation struct {
	kind     TraceKind
	children []*operation
	// written holds the children in the order of the source, which trees show.
	written []*operation
	// name is the relation itself of a tuple operation (This), the target of a
	// name operation (Computed), and the walked relation of an arrow.
	name *name
	// typ is the type whose rewrite this is, for the leaf self.
	typ *objectType
	// all marks an intersection arrow.
	all bool
	// targets holds, for an arrow, what is asked of the objects reached: one
	// entry for each shape the relation stores. Its name is nil where the type
	// has none. Arrows that walk one relation to one target share it.
	targets []arrowTarget
	target  string
	rewrite schema.Rewrite
}

// expressionCharsMax bounds how much of a rewrite is shown.
const expressionCharsMax = 256

// expression is the rewrite in schema text, cut where it is long. It is made
// anew each time: only traces show it.
func (o *operation) expression() string {
	text := schema.RewriteString(o.rewrite)
	if len(text) > expressionCharsMax {
		text = strings.ToValidUTF8(text[:expressionCharsMax], "") + "..."
	}
	return text
}

type arrowTarget struct {
	storedShape
	name *name
}

// A seed is a name in whose rewrite subjects of a type stand. It is exact as a feed is.
type seed struct {
	name  *name
	exact bool
}

// A feed says how holders of one name come to hold another.
type feed struct {
	to *name
	// via is the relation whose tuples lead from the object of the first name,
	// in the subject shape `shape`, to the object of the second; nil when both
	// are names of the same object.
	via   *name
	shape graph.Shape
	// exact says that who has the first name has the second, where no caveat stands
	// between: nothing else is asked, and nothing is taken away.
	exact bool
}

func compileProgram(s *schema.Schema, version graph.SchemaVersion, snapshot *graph.Snapshot) (*program, error) {
	p := &program{
		schema: s, version: version,
		types:   make(map[string]*objectType, len(s.Definitions)),
		caveats: make(map[graph.CaveatNumber]*schema.Caveat, len(s.Caveats)),
		direct:  make(map[graph.Shape][]seed),
		selves:  make(map[graph.Shape][]seed),
	}
	for _, c := range s.Caveats {
		number := snapshot.Caveat(c.Name)
		if number == 0 {
			return nil, fmt.Errorf("engine: caveat %q of schema version %d has no number", c.Name, version.Revision)
		}
		p.caveats[number] = c
	}
	for _, d := range s.Definitions {
		t := &objectType{name: d.Name, shape: snapshot.Shape(d.Name, ""), names: map[string]*name{}}
		if t.shape == 0 {
			return nil, fmt.Errorf("engine: type %q of schema version %d has no number", d.Name, version.Revision)
		}
		p.types[d.Name] = t
		add := func(n string, relation bool) {
			x := &name{
				index: uint32(len(p.names)), typ: t, name: n, relation: relation,
				shape: snapshot.Shape(d.Name, n),
			}
			p.names = append(p.names, x)
			t.names[n] = x
		}
		for _, r := range d.Relations {
			add(r.Name, true)
		}
		for _, m := range d.Permissions {
			add(m.Name, false)
		}
		for _, m := range d.Hidden {
			add(m.Name, false)
		}
	}
	for _, d := range s.Definitions {
		t := p.types[d.Name]
		for _, r := range d.Relations {
			if err := p.store(t.names[r.Name], r.Allowed); err != nil {
				return nil, err
			}
		}
	}
	b := binder{program: p, targets: map[arrow][]arrowTarget{}}
	for _, n := range p.names {
		rewrite := s.Definition(n.typ.name).Rewrite(n.name)
		op, err := b.operation(n, rewrite)
		if err != nil {
			return nil, err
		}
		n.rewrite = op
		n.leaf = op.kind == TraceTuple && n.storedCost() == 1 && !n.caveated
	}
	p.markNesting()
	p.markClimbs()
	f := feeder{program: p, feeds: map[fed]bool{}, selves: map[seed]bool{}, arrows: map[fedArrow]bool{}}
	for _, n := range p.names {
		f.feed(n, n.rewrite, true)
	}
	return p, nil
}

// store fills in what a relation stores, one entry for each shape, plain shapes
// first: those are answered by one look.
func (p *program) store(n *name, allowed []schema.SubjectType) error {
	places := make(map[graph.Shape]int, len(allowed))
	for _, a := range allowed {
		t := p.types[a.Type]
		if t == nil {
			return fmt.Errorf("engine: relation %s#%s allows unknown type %q", n.typ.name, n.name, a.Type)
		}
		shape, userset := t.shape, (*name)(nil)
		if a.Relation != "" {
			if userset = t.names[a.Relation]; userset == nil {
				return fmt.Errorf("engine: relation %s#%s allows unknown userset %s#%s", n.typ.name, n.name, a.Type, a.Relation)
			}
			shape = userset.shape
		}
		i, found := places[shape]
		if !found {
			i = len(n.stored)
			places[shape] = i
			n.stored = append(n.stored, storedShape{typ: t, shape: shape, userset: userset})
		}
		n.stored[i].wildcard = n.stored[i].wildcard || a.Wildcard
		n.stored[i].concrete = n.stored[i].concrete || !a.Wildcard
		n.stored[i].expiring = n.stored[i].expiring || a.Expiration
		n.caveated = n.caveated || a.Caveat != ""
	}
	slices.SortStableFunc(n.stored, func(a, b storedShape) int {
		return cmp.Compare(btoi(a.userset != nil), btoi(b.userset != nil))
	})
	return nil
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// A binder compiles the rewrites of a program.
type binder struct {
	*program
	// targets holds those of the arrows so far, which arrows alike share: a schema may
	// have as many arrows as types.
	targets map[arrow][]arrowTarget
}

// An arrow is a relation with the name that is asked of the objects reached.
type arrow struct {
	relation *name
	target   string
}

// operation compiles one node of a rewrite of n. Children are ordered so that
// what is answered by a look at stored tuples comes before what walks on;
// reordering changes no answer, since all operands are evaluated or the value
// is already certain.
func (p *binder) operation(n *name, rewrite schema.Rewrite) (*operation, error) {
	op := &operation{typ: n.typ, rewrite: rewrite}
	var children []schema.Rewrite
	switch r := rewrite.(type) {
	case schema.This:
		op.kind, op.name = TraceTuple, n
	case schema.Computed:
		op.kind, op.name = TraceName, n.typ.names[r.Name]
		if op.name == nil {
			return nil, fmt.Errorf("engine: %s#%s refers to unknown name %q", n.typ.name, n.name, r.Name)
		}
	case schema.Arrow:
		op.kind, op.name, op.all = TraceArrow, n.typ.names[r.Relation], r.All
		if op.name == nil {
			return nil, fmt.Errorf("engine: %s#%s walks unknown relation %q", n.typ.name, n.name, r.Relation)
		}
		key := arrow{op.name, r.Name}
		targets, known := p.targets[key]
		if !known {
			for _, s := range op.name.stored {
				if s.concrete {
					targets = append(targets, arrowTarget{s, s.typ.names[r.Name]})
				}
			}
			p.targets[key] = targets
		}
		op.target, op.targets = r.Name, targets
	case schema.Union:
		op.kind, children = TraceUnion, r.Children
	case schema.Intersection:
		op.kind, children = TraceIntersection, r.Children
	case schema.Exclusion:
		// A row a - b - c takes several things away from one: as nested as it is
		// written, it would nest the evaluation.
		op.kind = TraceExclusion
		var base schema.Rewrite = r
		for x, row := base.(schema.Exclusion); row; x, row = base.(schema.Exclusion) {
			children = append(children, x.Subtracted)
			base = x.Base
		}
		children = append(children, base)
		slices.Reverse(children)
	case schema.Nil:
		op.kind = TraceNil
	case schema.Self:
		op.kind = TraceSelf
	default:
		return nil, fmt.Errorf("engine: %s#%s has an unknown rewrite %T", n.typ.name, n.name, rewrite)
	}
	for _, c := range children {
		child, err := p.operation(n, c)
		if err != nil {
			return nil, err
		}
		op.children = append(op.children, child)
	}
	op.written = op.children
	if op.kind == TraceUnion || op.kind == TraceIntersection {
		op.children = slices.Clone(op.children)
		slices.SortStableFunc(op.children, func(a, b *operation) int { return cmp.Compare(a.cost(), b.cost()) })
	}
	return op, nil
}

// cost ranks operations by what they may have to look at.
func (o *operation) cost() int {
	switch o.kind {
	case TraceNil, TraceSelf:
		return 0
	case TraceTuple:
		return o.name.storedCost()
	case TraceName:
		if o.name.relation {
			return o.name.storedCost()
		}
		return 3
	}
	return 4
}

func (n *name) storedCost() int {
	for _, s := range n.stored {
		if s.userset != nil {
			return 2
		}
	}
	return 1
}

// A feeder enters, at each name, where its subjects become subjects of others.
type feeder struct {
	*program
	// feeds, selves and arrows hold what is entered already.
	feeds  map[fed]bool
	selves map[seed]bool
	arrows map[fedArrow]bool
}

// A fedArrow is an arrow with the name whose rewrite it is in.
type fedArrow struct {
	to *name
	arrow
	exact bool
}

// A fed is a feed with the name it starts from.
type fed struct {
	from *name
	feed feed
}

// feed enters, at each name that op draws its subjects from, that they come to
// n. It names at least every way in which a subject can come to hold n; a
// subject that arrives may still lack it (the other operands of an
// intersection, what an exclusion takes away), so what LookupResources finds
// this way is checked where the way is not exact. exact is said of op.
func (f *feeder) feed(n *name, op *operation, exact bool) {
	switch op.kind {
	case TraceTuple:
		for _, s := range op.name.stored {
			if s.userset != nil {
				f.add(s.userset, feed{to: n, via: op.name, shape: s.shape, exact: exact})
			} else if direct := (fed{feed: feed{to: n, shape: s.shape, exact: exact}}); !f.feeds[direct] {
				f.feeds[direct] = true
				f.direct[s.shape] = append(f.direct[s.shape], seed{n, exact})
			}
		}
	case TraceName:
		f.add(op.name, feed{to: n, exact: exact})
	case TraceArrow:
		exact = exact && !op.all
		key := fedArrow{n, arrow{op.name, op.target}, exact}
		if f.arrows[key] {
			return
		}
		f.arrows[key] = true
		// Each is another one, as the shapes of a relation are: to look for them in
		// feeds would take most of the time of a schema of many arrows.
		for _, t := range op.targets {
			if t.name != nil {
				t.name.feeds = append(t.name.feeds, feed{to: n, via: op.name, shape: t.shape, exact: exact})
			}
		}
	case TraceUnion:
		for _, c := range op.children {
			f.feed(n, c, exact)
		}
	case TraceIntersection:
		// One operand is enough, since a subject must come through all.
		f.feed(n, op.children[0], false)
	case TraceExclusion:
		f.feed(n, op.children[0], false)
	case TraceSelf:
		if self := (seed{n, exact}); !f.selves[self] {
			f.selves[self] = true
			f.program.selves[n.typ.shape] = append(f.program.selves[n.typ.shape], self)
		}
	}
}

func (f *feeder) add(from *name, x feed) {
	if !f.feeds[fed{from, x}] {
		f.feeds[fed{from, x}] = true
		from.feeds = append(from.feeds, x)
	}
}

// lookup finds a name or says why there is none.
// typeField and field are the places of the two names in the question.
func (p *program) lookup(typeField, field, typ, n string) (*name, error) {
	t := p.types[typ]
	if t == nil {
		return nil, p.unknownType(typeField, typ)
	}
	if x := t.names[n]; x != nil && x.shape != 0 {
		return x, nil
	}
	return nil, p.unknownName(field, typ, n)
}

func (p *program) unknownType(field, typ string) *Refusal {
	r := refuse(UnknownType, field, "the schema has no definition %q", typ).with("type", typ)
	names := make([]string, 0, len(p.types))
	for t := range p.types {
		names = append(names, t)
	}
	return r.suggest(typ, names)
}

func (p *program) unknownName(field, typ, n string) *Refusal {
	d := p.schema.Definition(typ)
	names := relationNames(d)
	for _, x := range d.Permissions {
		names = append(names, x.Name)
	}
	return refuseName(field, typ, n).suggest(n, names)
}

// unknownRelation is unknownName where only a relation can stand: to suggest a
// permission there would lead to the next refusal.
func (p *program) unknownRelation(field, typ, n string) *Refusal {
	return refuseName(field, typ, n).suggest(n, relationNames(p.schema.Definition(typ)))
}

func refuseName(field, typ, n string) *Refusal {
	return refuse(UnknownName, field, "definition %q has no relation or permission %q", typ, n).with("type", typ).with("name", n)
}

func relationNames(d *schema.Definition) []string {
	var names []string
	for _, x := range d.Relations {
		names = append(names, x.Name)
	}
	return names
}

func (p *program) unknownCaveat(field, caveat string) *Refusal {
	var names []string
	for _, c := range p.schema.Caveats {
		names = append(names, c.Name)
	}
	return refuse(UnknownCaveat, field, "the schema has no caveat %q", caveat).with("caveat", caveat).suggest(caveat, names)
}

// suggest adds the name nearest to what was given, if one is near.
func (r *Refusal) suggest(given string, names []string) *Refusal {
	if s := schema.Nearest(given, names); s != "" {
		r.Message += fmt.Sprintf("; did you mean %q?", s)
		r = r.with("suggestion", s)
	}
	return r
}
