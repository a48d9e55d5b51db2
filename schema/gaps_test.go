package schema

import (
	"errors"
	commandline "flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// whole is a schema of every construct, without errors. Whatever a syntax error
// makes of one place in it, an error of meaning beside it would be made up.
const whole = `use expiration
use partial
use rewrite
use self
use typechecking
use wildcards

caveat office_hours(now timestamp, zone string) {
	now.getHours(zone) >= 8 && now.getHours(zone) < 18
}

// Limits.
caveat below_limit(
	amount int,
	limits map<list<int>>
) { limits.x.all(l, amount <= l) }

definition tenant/person { relation manager: tenant/person permission see = self + manager }

definition group {
	relation member: tenant/person | group#member | tenant/person:*
	relation "can-join": tenant/person with office_hours
	permission all_members: tenant/person | group = member; permission no_one = nil
}

partial owned {
	relation owner: tenant/person with below_limit and expiration
	...named
	permission delete = owner - banned
}
partial named { relation label: group#all_members }

partial idle {
	relation spare: folder
	permission up = spare->view + elsewhere
}

definition folder {
	...owned
	relation banned: tenant/person | group#member
	relation parent: folder
	relation viewer: group#member | group#"can-join" = this + owner + parent->viewer
	permission view = (viewer + delete) & parent->parent->view - banned
}

// Documents.
definition document {
	relation folder: folder
	relation editor: tenant/person with expiration
	permission edit: tenant/person = editor
	permission view = edit + folder->view + folder.all(delete)
	permission share = folder.any(parent)->view - label_of
	permission label_of = folder->label
}
`

// planted is a definition with an error, which a broken statement elsewhere must
// not hide.
const (
	planted      = "definition planted { relation x: planted permission y = absent }\n"
	plantedError = "`planted` has no relation or permission `absent`"
)

// everyConsequence has TestConsequences try all of its texts.
var everyConsequence = commandline.Bool("consequences", false, "try every text of TestConsequences, not one in 24; takes a minute")

// TestConsequences breaks whole at each of its places in several ways. Where that
// makes a syntax error, no error may be reported but such: all others would be
// consequences. The planted error is found unless the broken place swallows it, as
// an open string or comment does: in at least 90 % of the texts with a syntax error.
//
// One text in 24 is tried, others in each run, so that a run sees only what goes
// wrong with many of them; with the flag -consequences it tries all.
func TestConsequences(t *testing.T) {
	if _, err := compileText(whole); err != nil {
		t.Fatal(err)
	}
	var errs errorList
	toks := lex(&File{Source: whole}, &errs)
	stride := 24 // One text in so many is tried.
	if *everyConsequence {
		stride = 1
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	broken, judged, found := 0, 0, 0
	check := func(what string, text string) {
		if r.IntN(stride) != 0 {
			return
		}
		_, err := Parse("s", text+planted)
		if err == nil {
			judged++
			return
		}
		broken++
		var all Errors
		if !errors.As(err, &all) {
			t.Fatalf("%T", err)
		}
		for _, e := range all {
			switch {
			case e.Msg == plantedError:
				found++
			case e.Kind != SyntaxError:
				t.Errorf("%s:\n%v", what, err)
				return
			}
		}
	}
	for i, tok := range toks[:len(toks)-1] {
		start, end := tok.Pos.Offset, tokenEnd(tok).Offset
		what := func(how string) string { return fmt.Sprintf("%s at %v, %.30s", how, tok.Pos, tok.Value) }
		check(what("without the token"), whole[:start]+" "+whole[end:])
		check(what("the token twice"), whole[:end]+" "+whole[start:])
		if i > 0 {
			before := toks[i-1]
			check(what("swapped tokens"), whole[:before.Pos.Offset]+" "+tok.Value+" "+whole[tokenEnd(before).Offset:start]+before.Value+" "+whole[end:])
		}
		for _, more := range []string{
			"?", "é", "\"", "/*", "{", "}", "(", ")", ":", "=", "|", "->", "...", "-", "#", "x", "nil", ";;",
			"relation", "permission", "definition", "caveat", "partial", "use", "import",
		} {
			check(what(more+" inserted"), whole[:start]+more+whole[start:])
			check(what(more+" inserted apart"), whole[:start]+" "+more+" "+whole[start:])
			check(what(more+" in its place"), whole[:start]+" "+more+" "+whole[end:])
		}
		if tok.Type == tokenKeyword || tok.Type == tokenIdent {
			check(what("cut"), whole[:end-1]+whole[end:])
			check(what("split"), whole[:start+1]+" "+whole[start+1:])
			check(what("accented"), whole[:start+1]+"é"+whole[start+1:])
		}
		if line := strings.IndexByte(whole[start:], '\n'); line > 0 {
			check(what("the line cut off"), whole[:start]+whole[start+line:])
		}
	}
	t.Logf("%d broken texts, %d of them with the planted error; %d without syntax errors", broken, found, judged)
	if broken < 5_000/stride {
		t.Errorf("only %d of the texts have syntax errors", broken)
	}
	if found < broken*9/10 {
		t.Errorf("only %d of the %d texts with syntax errors report the planted error", found, broken)
	}
}
