package engine

import (
	"testing"

	"github.com/pembadb/pemba/graph"
)

// TestFilterString: a refusal shows a filter as it is written, and nothing that it
// does not say.
func TestFilterString(t *testing.T) {
	none, member := "", "member"
	for want, filter := range map[string]graph.Filter{
		"the empty filter":             {},
		"doc":                          {ObjectType: "doc"},
		"doc:a#viewer":                 {ObjectType: "doc", ObjectID: "a", Relation: "viewer"},
		"doc:a%":                       {ObjectType: "doc", ObjectIDPrefix: "a"},
		`doc:"a b"%#viewer`:            {ObjectType: "doc", ObjectIDPrefix: "a b", Relation: "viewer"},
		"any#viewer":                   {Relation: "viewer"},
		"@user":                        {SubjectType: "user"},
		`@user:"*"`:                    {SubjectType: "user", SubjectID: graph.Wildcard},
		"@any:anne":                    {SubjectID: "anne"},
		"@user#":                       {SubjectType: "user", SubjectRelation: &none},
		`doc:a@group:"e@x.org"#member`: {ObjectType: "doc", ObjectID: "a", SubjectType: "group", SubjectID: "e@x.org", SubjectRelation: &member},
		"doc@any#member":               {ObjectType: "doc", SubjectRelation: &member},
	} {
		if got := filterString(filter); got != want {
			t.Errorf("%+v: %s, and not %s", filter, got, want)
		}
	}
}
