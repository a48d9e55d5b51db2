package schema

import (
	"errors"
	"fmt"
	"regexp/syntax"
	"strings"
	"testing"
)

// TestPatternWork holds what is known of the work of reading a pattern before it is
// read.
func TestPatternWork(t *testing.T) {
	const wide = "B-𞥂"
	for text, want := range map[string]uint64{
		"^[a-z]+$":                  16,
		"(?i)^[a-z]+$":              24 + 25 + shortEscapeMax,
		"(?i:^[a-z]+)$":             26 + 25 + shortEscapeMax,
		"(?sm-i)[" + wide + "]":     2*15 + foldedMax + shortEscapeMax, // Flags are not looked at closely.
		"(?P<i>[" + wide + "])":     2 * 15,
		"(?i)[" + wide + "]":        2*12 + foldedMax,
		`(?i)[\x{42}-\x{1E942}]`:    2*22 + foldedMax,
		`(?i)[\x{42}-\x{FFFFFFFF}]`: 2*25 + foldedMax,
		`(?i)[\x41-\x5A]`:           2*15 + shortEscapeMax + 40,
		`(?i)[~-\777]`:              2*12 + shortEscapeMax,
		`(?i)[~-\777~-\777]`:        2*18 + 2*shortEscapeMax,
		`\pL\PL`:                    12 + 2*unicodeClassWork,
		"(?i)[" + wide + wide + "]": 2*18 + 2*foldedMax,
		"-":                         2,
		"(?i)-":                     10,
		"(?i)[a-":                   14,
		"(?i)a-z-":                  16 + 25 + shortEscapeMax,
	} {
		got, err := patternWork(text)
		if want > patternWorkMax {
			if err == nil {
				t.Errorf("%s is taken", text)
			}
			continue
		}
		if err != nil || got > want+50 || got+150 < want {
			t.Errorf("%s is %d units, %v; want %d", text, got, err, want)
		}
	}
}

// TestPatternInstructions holds that the size of a pattern is told without compiling
// it, and never too small.
func TestPatternInstructions(t *testing.T) {
	for _, text := range []string{
		"", "a", "abc", "a|b|cd", "[a-z]*", "(a+)(b?)", "a{3}", "a{3,}", "a{3,7}", "a{0,5}", "(ab|c){2,4}?", ".{990}.{990}x", "^(?i:x)$", `\bfoo\b`,
		"((a{10}){10}){10}", "(?:a*){4}", `(?i)k{20}`, "[^x]{0}", "(a|b*){3,}",
	} {
		tree, err := syntax.Parse(text, syntax.Perl)
		if err != nil {
			t.Fatal(err)
		}
		got := 3 + instructionsOf(tree)
		program, err := syntax.Compile(tree.Simplify())
		if err != nil {
			t.Fatal(err)
		}
		if real := uint64(len(program.Inst)); got < real || got > 2*real+5 {
			t.Errorf("%s has %d instructions; told are %d", text, real, got)
		}
	}
}

// TestPatternsOfSchemas holds that a schema whose patterns take long to read is refused
// before they are read, and that one that is stored is not.
func TestPatternsOfSchemas(t *testing.T) {
	caveat := func(name, pattern string) string {
		return fmt.Sprintf("caveat %s(s string) {\n\ts.matches('%s')\n}\n", name, pattern)
	}
	wide, class := "(?i)[B-𞥂]", strings.ReplaceAll(strings.Repeat(`\pL`, 30), `\`, `\\`)
	var classes, wides strings.Builder
	for i := range 4 {
		wides.WriteString(caveat(fmt.Sprint("w", i), wide))
		classes.WriteString(caveat(fmt.Sprint("c", i), class))
	}
	for _, test := range []struct{ text, want string }{
		{caveat("c", "^[a-z]+@(?i)[a-z]+$") + caveat("w", wide), ""},
		{caveat("c", strings.Repeat("a", patternBytesMax+1)), "the pattern has 4097 bytes; at most 4096 are allowed"},
		{caveat("c", "(?i)["+strings.Repeat("B-𞥂", 100)+"]"), "too many classes of Unicode, or too wide ranges"},
		{caveat("c", ".{990}.{990}x"), ""},
		{caveat("c", ".{990}.{990}.{990}"), "the pattern has a size of 2973; at most 2000 is allowed"},
		{wides.String(), "the patterns of the schema are too much work together"},
		{classes.String(), "the patterns of the schema are too much work together"},
		{caveat("c", "("), "invalid matches argument"},
	} {
		file, err := Parse("patterns.zed", test.text)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Check(file)
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%.80s: %v", test.text, err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%.80s: %v; want %s", test.text, err, test.want)
		}
		var errs Errors
		if errors.As(err, &errs) && len(errs) > 1 {
			t.Errorf("%.80s is told %d times", test.text, len(errs))
		}
		if strings.Contains(test.want, "together") {
			stored, err := Compile(file)
			if err != nil {
				t.Errorf("a stored schema is refused: %v", err)
				continue
			}
			for _, c := range stored.Caveats {
				if r, err := c.Eval(Context{"s": "1"}, nil); err != nil || r.Truth != False {
					t.Errorf("a stored pattern gives %v, %v", r, err)
				}
			}
		}
	}
}
