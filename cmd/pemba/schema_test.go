package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSchemaFilePlaces: the file that is named is read wherever its name leads, and
// its imports stay in the folder of the name.
func TestSchemaFilePlaces(t *testing.T) {
	folder, other := t.TempDir(), t.TempDir()
	const text = "use import\nimport \"people.pemba\"\ndefinition doc { relation viewer: user }\n"
	for name, content := range map[string]string{
		filepath.Join(folder, "people.pemba"):  "definition user {}\n",
		filepath.Join(other, "real.pemba"):     text,
		filepath.Join(other, "outside.pemba"):  "definition user {}\n",
		filepath.Join(folder, "leaving.pemba"): strings.ReplaceAll(text, "people", "linked"),
		filepath.Join(folder, "again.pemba"):   "use import\nimport \"again.pemba\"\n",
		filepath.Join(folder, "wrong.pemba"):   "definition doc { relation viewer: usr }\n",
	} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{
		"schema.pemba": filepath.Join(other, "real.pemba"), "linked.pemba": filepath.Join(other, "outside.pemba"),
		"dangling.pemba": filepath.Join(other, "missing.pemba"),
	} {
		if err := os.Symlink(target, filepath.Join(folder, link)); err != nil {
			t.Skipf("no symbolic links here: %v", err)
		}
	}
	at := func(name string) string { return filepath.Join(folder, name) }
	if said := must(t, "", "schema", "check", at("schema.pemba")); !strings.Contains(said, at("schema.pemba")) {
		t.Errorf("a link: %s", said)
	}
	for name, want := range map[string]string{
		"leaving.pemba":  at("leaving.pemba") + ":2:8: cannot import `linked.pemba`: openat linked.pemba: path escapes from parent",
		"dangling.pemba": "open " + at("dangling.pemba") + ": no such file or directory",
		"missing.pemba":  "open " + at("missing.pemba") + ": no such file or directory",
		"again.pemba":    "files import one another in a circle: again.pemba -> again.pemba",
		"wrong.pemba":    at("wrong.pemba") + ":1:35: unknown type `usr`",
	} {
		if said := fails(t, "", "schema", "check", at(name)); !strings.Contains(said, want) {
			t.Errorf("%s: %s", name, said)
		}
	}

	// What a shell makes of <(...), and /dev/stdin, are pipes.
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := reader.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := writer.WriteString("definition user {}\n"); err != nil {
		t.Fatal(err)
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	pipe := fmt.Sprintf("/dev/fd/%d", reader.Fd())
	if _, err := os.Stat(pipe); err != nil {
		t.Skipf("no names for open files here: %v", err)
	}
	if said := must(t, "", "schema", "check", pipe); !strings.Contains(said, pipe) {
		t.Errorf("a pipe: %s", said)
	}
}
