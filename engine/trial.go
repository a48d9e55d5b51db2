package engine

import (
	"context"

	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

// A Trial says what writing a schema would come to.
type Trial struct {
	// Refusal says why the schema itself would be refused; nil when it is good.
	// Then alone the fields below but Stored are known.
	Refusal *Refusal
	// Misfits holds every kind of stored tuples that the schema does not allow.
	// It would be refused, with SchemaData, unless there is none.
	Misfits []Misfit
	// Changes are the differences from the schema that is in force, or from an
	// empty one when there is none.
	Changes []schema.Change
	// Affected holds the permissions of both schemas that change their meaning.
	Affected []schema.AffectedPermission
	// Stored counts the stored tuples by kind, those whose lifetime is over not
	// among them as far as they were found.
	Stored []StoredKind
}

// A StoredKind is how many tuples of one relation and form of subject there are.
type StoredKind struct {
	Type     string
	Relation string
	Subject  schema.SubjectType
	// Count is at least 1.
	Count uint64
}

// A Misfit is a kind of stored tuples that a schema does not allow.
type Misfit struct {
	StoredKind
	// Why says what the schema has against them.
	Why string
	// Sample is one of the tuples; empty when none was found near.
	Sample string
}

// TrySchema says what a WriteSchema of text would come to, and writes nothing. It
// asks the same functions that Apply does, but for a sample of every kind of
// misfits instead of the first, and judges the text as CompileSchema does. The
// snapshot must be of the newest revision: what is stored is known from counters,
// which are not kept for the past. What is written while it works may be counted
// or not. Its errors are faults and ctx's own.
func (s *Snapshot) TrySchema(ctx context.Context, text string) (Trial, error) {
	s.graph.Guard(func(int) error { return ctx.Err() })
	over, err := s.graph.Expired(schemaCollectMax)
	if err != nil {
		return Trial{}, err
	}
	trial := Trial{Stored: s.stored(over)}
	compiled, err := CompileSchema("schema", text)
	if err != nil {
		trial.Refusal, err = asRefusal(err)
		return trial, err
	}
	if err := Storable(compiled); err != nil {
		trial.Refusal, err = asRefusal(err)
		return trial, err
	}
	empty, err := schema.Compile(&schema.File{Name: schemaName})
	if err != nil {
		return Trial{}, err
	}
	old := empty
	if p, err := s.program(); err == nil {
		old = p.schema
	} else if refusal, err := asRefusal(err); err != nil || refusal.Reason != NoSchema {
		return Trial{}, err
	}
	if trial.Misfits, err = s.misfits(old, compiled, trial.Stored, len(trial.Stored)); err != nil {
		return Trial{}, err
	}
	trial.Changes = schema.Diff(old, compiled)
	trial.Affected = schema.Affected(old, compiled)
	return trial, nil
}

// CompileSchema compiles the text of a schema that somebody writes. It refuses more
// than Apply does, which must never refuse what an earlier program stored: also
// mistakes that change no answer, see schema.Strictness. Its error is a *Refusal of
// the field.
func CompileSchema(field, text string) (*schema.Schema, error) {
	return compileText(field, text, schema.Check)
}

// CompileForgiving is CompileSchema without the mistakes that change no answer, of the
// text of a schema that was written for another server or read from a store.
func CompileForgiving(field, text string) (*schema.Schema, error) {
	return compileText(field, text, func(file *schema.File) (*schema.Schema, error) {
		return schema.CheckWith(file, schema.Strictness{})
	})
}

// CompileStored compiles the text of a schema that is stored, as Apply did. Its error
// is a *Refusal, which only a text that was never stored can draw.
func CompileStored(text string) (*schema.Schema, error) {
	return compileText("schema", text, schema.Compile)
}

func compileText(field, text string, compile func(*schema.File) (*schema.Schema, error)) (*schema.Schema, error) {
	file, err := schema.Parse(schemaName, text)
	var compiled *schema.Schema
	if err == nil {
		compiled, err = compile(file)
	}
	if err != nil {
		refusal := refuseSchema(err)
		refusal.Field = field
		return nil, refusal
	}
	return compiled, nil
}

// stored returns the kinds of tuples that the store holds, in an order that is
// the same on every node, without those of over, whose lifetime is over.
func (s *Snapshot) stored(over []graph.Tuple) []StoredKind {
	type kind struct {
		objectType, relation string
		subject              schema.SubjectType
	}
	ended := make(map[kind]uint64)
	for i := range over {
		ended[kind{over[i].Object.Type, over[i].Relation, subjectTypeOf(&over[i])}]++
	}
	var stored []StoredKind
	for _, c := range s.engine.db.Counters(s.graph.Store()) {
		objectType, relation := s.graph.ShapeName(c.Relation)
		subjectType, subjectRelation := s.graph.ShapeName(c.Subject)
		k := StoredKind{Type: objectType, Relation: relation, Subject: schema.SubjectType{
			Type: subjectType, Relation: subjectRelation, Wildcard: c.Wildcard,
			Caveat: s.graph.CaveatName(c.Caveat), Expiration: c.Expiring,
		}}
		// In Apply nothing is written in between, and no more have ended than
		// there are.
		k.Count = c.Count - min(c.Count, ended[kind{objectType, relation, k.Subject}])
		if k.Count > 0 {
			stored = append(stored, k)
		}
	}
	return stored
}

// misfits returns the stored kinds that do not fit a schema, the first of them
// with a sample each, up to samples. Tuples are read for those alone: how many
// there are is known from counters, of which a store has as many as its schemas
// have forms of subjects.
func (s *Snapshot) misfits(old, compiled *schema.Schema, stored []StoredKind, samples int) ([]Misfit, error) {
	var misfits []Misfit
	for _, k := range stored {
		why := misfit(compiled, k.Type, k.Relation, k.Subject)
		if why == "" && k.Subject.Caveat != "" {
			why = changedParameter(old.Caveat(k.Subject.Caveat), compiled.Caveat(k.Subject.Caveat))
		}
		if why == "" {
			continue
		}
		sample := ""
		if len(misfits) < samples {
			var err error
			if sample, err = s.sample(k.Type, k.Relation, k.Subject); err != nil {
				return nil, err
			}
		}
		misfits = append(misfits, Misfit{StoredKind: k, Why: why, Sample: sample})
	}
	return misfits, nil
}

// samplePages bounds how far sample looks; a message is not worth more.
const samplePages = 8

// sample finds one stored tuple of the form, or "" if it is not near.
func (s *Snapshot) sample(objectType, relation string, stored schema.SubjectType) (string, error) {
	f := graph.Filter{
		ObjectType: objectType, Relation: relation,
		SubjectType: stored.Type, SubjectRelation: &stored.Relation,
	}
	if stored.Wildcard {
		f.SubjectID = graph.Wildcard
	}
	position := []byte(nil)
	for range samplePages {
		found, next, err := s.graph.Read(f, position, deletePage)
		if err != nil {
			return "", err
		}
		for i := range found {
			if subjectTypeOf(&found[i]) == stored {
				return found[i].String(), nil
			}
		}
		if next == nil {
			break
		}
		position = next
	}
	return "", nil
}
