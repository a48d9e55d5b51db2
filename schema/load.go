package schema

import (
	"errors"
	"io"
	"io/fs"
	"path"
	"strings"
)

// importFilesMax bounds the files that one schema may consist of.
const importFilesMax = 1000

// Load reads the named file of fsys and all that it imports, and returns the
// file with its imports resolved. A path in an import is relative to the file
// that contains it, uses slashes, and may not leave the root of fsys. A file
// that is imported twice is taken once; files that import one another in a
// circle are refused.
//
// The error is of type Errors, as Parse's is, and holds the mistakes of all
// files: if there are syntax errors, also the type errors. To keep a schema from reaching files it should not through symbolic
// links, take fsys from an os.Root.
func Load(fsys fs.FS, name string) (*File, error) {
	l := loader{fsys: fsys, files: map[string]*File{}, order: map[string]int{}}
	root := path.Clean(name)
	if !fs.ValidPath(root) {
		l.errs.add(nil, SyntaxError, Position{}, Position{}, "`%s` is not a path within the root", name)
		return nil, l.errs.err(nil)
	}
	file, err := l.load(root)
	switch {
	case err != nil:
		l.errs.add(nil, SyntaxError, Position{}, Position{}, "cannot read `%s`: %v", root, err)
	case len(l.errs.errs) > 0:
		typeErrors(file, &l.errs)
	}
	if err := l.errs.err(l.order); err != nil {
		return nil, err
	}
	return file, nil
}

// loader follows imports.
type loader struct {
	fsys  fs.FS
	errs  errorList
	files map[string]*File
	order map[string]int
	// open holds the paths from the root to the file being read.
	open []string
}

func (l *loader) load(name string) (*File, error) {
	if file := l.files[name]; file != nil {
		return file, nil
	}
	if len(l.files) >= importFilesMax {
		return nil, errors.New("the schema has too many files")
	}
	source, err := l.read(name)
	if err != nil {
		return nil, err
	}
	file := parse(name, source, &l.errs)
	l.files[name] = file
	l.order[name] = len(l.order)
	l.open = append(l.open, name)
	for _, item := range file.Items {
		if imp, ok := item.(*Import); ok {
			l.resolve(file, imp)
		}
	}
	l.open = l.open[:len(l.open)-1]
	return file, nil
}

// read returns the text of a file, of one too large only the beginning: Parse
// then refuses it.
func (l *loader) read(name string) (source string, err error) {
	f, err := l.fsys.Open(name)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	data, err := io.ReadAll(io.LimitReader(f, SourceBytesMax+1))
	return string(data), err
}

func (l *loader) resolve(file *File, imp *Import) {
	target := path.Join(path.Dir(file.Name), imp.Path.Text)
	fail := func(format string, args ...any) {
		l.errs.add(file, SyntaxError, imp.Path.Pos, imp.Path.End, format, args...)
	}
	if path.IsAbs(imp.Path.Text) || strings.Contains(imp.Path.Text, `\`) || !fs.ValidPath(target) {
		fail("the import `%s` leaves the root", imp.Path.Text)
		return
	}
	for i, name := range l.open {
		if name == target {
			fail("files import one another in a circle: %s", strings.Join(append(l.open[i:len(l.open):len(l.open)], target), " -> "))
			imp.circular = true
			return
		}
	}
	imported, err := l.load(target)
	if err != nil {
		fail("cannot import `%s`: %v", imp.Path.Text, err)
		return
	}
	imp.File = imported
}
