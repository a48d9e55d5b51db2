package pemba_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/pembadb/pemba"

// layers is the order of the tree: a folder may import itself and what stands
// before it. Below a layer the same holds for its folders, unless named here.
var layers = []string{"schema", "graph", "engine", "cluster", "api", "examples", "cmd", "bench"}

// exceptions are imports that go the other way or aside, each with its reason.
var exceptions = map[string]string{}

// TestLayers holds that imports point one way: words, facts, answers,
// agreement, wire, process. What is wrong here is not mended by an exception
// but by moving the thing that both sides need to the left.
func TestLayers(t *testing.T) {
	rank := map[string]int{}
	for i, l := range layers {
		rank[l] = i
	}
	imports := 0
	err := filepath.WalkDir(".", func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && (strings.HasPrefix(entry.Name(), ".") && file != "." || entry.Name() == "testdata") {
			return filepath.SkipDir
		}
		if entry.IsDir() || !strings.HasSuffix(file, ".go") {
			return nil
		}
		layer, _, inside := strings.Cut(filepath.ToSlash(file), "/")
		if !inside {
			return nil // the root is the library above all layers
		}
		if _, known := rank[layer]; !known {
			t.Errorf("%s: folder %s is no layer; the layers are %s", file, layer, strings.Join(layers, ", "))
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range parsed.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			inner, ours := strings.CutPrefix(name, module+"/")
			if !ours {
				continue
			}
			imports++
			imported, _, _ := strings.Cut(inner, "/")
			if rank[imported] <= rank[layer] || exceptions[path.Dir(filepath.ToSlash(file))+" "+inner] != "" {
				continue
			}
			t.Errorf("%s imports %s: %s stands left of %s (%s), and imports go left only",
				file, inner, layer, imported, strings.Join(layers, " < "))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if imports == 0 {
		t.Error("no import of the module's own packages was seen; the test reads the wrong tree")
	}
}
