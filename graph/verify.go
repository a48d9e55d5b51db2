package graph

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Verify reads every table that there is when it begins, whole and once, and
// compares each block with its checksum: what holds tuples, names, history and
// log, and the indexes and filters that lead there. Tables that are written
// meanwhile are made of blocks whose checksums were compared when they were
// read. It reads bytesPerSecond at most, past the block cache, so that what is
// hot stays there; progress, unless nil, is told how many bytes more were read.
//
// It fails with an error that IsCorruptionError knows and that names the file of the
// table, with the disk's own, with ErrClosed, or with ctx's.
func (db *DB) Verify(ctx context.Context, bytesPerSecond int64, progress func(bytes int64)) error {
	if bytesPerSecond < 1 {
		return fmt.Errorf("verify the graph: %w", invalid("bytes per second", fmt.Sprint(bytesPerSecond), "is too small", "at least 1"))
	}
	tables, err := db.tables()
	if err != nil {
		return fmt.Errorf("verify the graph: %w", err)
	}
	options := db.config.options(db.listener)
	options.EnsureDefaults()
	v := &verifier{
		ctx: ctx, options: options.MakeReaderOptions(), fs: db.config.FS,
		bytesPerSecond: bytesPerSecond, begin: time.Now(), progress: progress,
		buffer: make([]byte, min(verifyReadBytes, max(verifyReadBytesMin, bytesPerSecond/100))),
	}
	var missing []string
	for name := range tables {
		switch err := v.verify(db.config.FS.PathJoin(db.config.Dir, name)); {
		case errors.Is(err, fs.ErrNotExist):
			missing = append(missing, name)
		case IsCorruptionError(err):
			return fmt.Errorf("verify the graph: %w", err)
		case err != nil:
			return fmt.Errorf("verify the graph: table %s: %w", name, err)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	// A compaction may have made them superfluous.
	if tables, err = db.tables(); err != nil {
		return fmt.Errorf("verify the graph: %w", err)
	}
	for _, name := range missing {
		if tables[name] {
			return fmt.Errorf("verify the graph: %w", corruptf("table %s is missing in %s", name, db.config.Dir))
		}
	}
	return nil
}

// tables returns the names of the tables that hold the newest state.
func (db *DB) tables() (map[string]bool, error) {
	db.life.RLock()
	defer db.life.RUnlock()
	if db.isClosed() {
		return nil, ErrClosed
	}
	levels, err := db.pebble.SSTables()
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for _, level := range levels {
		for i := range level {
			// Tables that are a part of another one share its file.
			names[fmt.Sprintf("%s.sst", level[i].BackingSSTNum)] = true
		}
	}
	return names, nil
}

// How much Verify reads at once: little when it is to be slow, so that it goes
// on evenly.
const (
	verifyReadBytes    = 256 << 10
	verifyReadBytesMin = 4 << 10
)

// A verifier reads tables one after the other, at its pace.
type verifier struct {
	ctx            context.Context
	options        sstable.ReaderOptions
	fs             vfs.FS
	bytesPerSecond int64
	begin          time.Time
	read           int64 // Bytes since begin.
	progress       func(bytes int64)
	buffer         []byte
}

func (v *verifier) verify(path string) error {
	file, err := v.fs.Open(path, vfs.SequentialReadsOption)
	if err != nil {
		return err
	}
	paced := &pacedFile{File: file, v: v}
	err = validateBlocks(paced, v.options)
	switch {
	case err == nil:
		return nil
	case paced.failure != nil:
		return paced.failure // Of the disk or the context, whatever came of it.
	}
	// The reader was given a file and no number, and takes it for the number 0.
	number := strings.TrimSuffix(v.fs.PathBase(path), ".sst")
	return corruptf("%s: %s", path, strings.ReplaceAll(err.Error(), " 000000", " "+number))
}

// validateBlocks reads every block, and closes the file.
func validateBlocks(file *pacedFile, options sstable.ReaderOptions) error {
	readable, err := sstable.NewSimpleReadable(file)
	if err != nil {
		return errors.Join(err, file.Close())
	}
	reader, err := sstable.NewReader(file.v.ctx, readable, options)
	if err != nil {
		return errors.Join(err, file.close())
	}
	return errors.Join(reader.ValidateBlockChecksums(), reader.Close())
}

// A pacedFile reads ahead, since blocks are small and are asked for in order.
type pacedFile struct {
	vfs.File
	v *verifier
	// ahead is what was read at offset.
	ahead  []byte
	offset int64
	// failure is the first error that was not of the content.
	failure error
	closed  bool
}

// Close implements io.Closer.
func (f *pacedFile) Close() error {
	f.closed = true
	return f.File.Close()
}

// close closes the file unless that was done.
func (f *pacedFile) close() error {
	if f.closed {
		return nil
	}
	return f.Close()
}

// ReadAt implements io.ReaderAt.
func (f *pacedFile) ReadAt(p []byte, offset int64) (n int, err error) {
	for n < len(p) {
		at := offset + int64(n)
		if at < f.offset || at >= f.offset+int64(len(f.ahead)) {
			if err := f.fill(at); err != nil {
				return n, err
			}
		}
		n += copy(p[n:], f.ahead[at-f.offset:])
	}
	return n, nil
}

// fill reads at offset, and waits until as much as was read may have been.
func (f *pacedFile) fill(offset int64) error {
	v := f.v
	n, err := f.File.ReadAt(v.buffer, offset)
	f.ahead, f.offset = v.buffer[:n], offset
	if err != nil && !errors.Is(err, io.EOF) {
		f.failure = err
		return err
	}
	if n == 0 {
		return io.ErrUnexpectedEOF
	}
	v.read += int64(n)
	if v.progress != nil {
		v.progress(int64(n))
	}
	due := v.begin.Add(time.Duration(float64(v.read) / float64(v.bytesPerSecond) * float64(time.Second)))
	if wait := time.Until(due); wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-v.ctx.Done():
		}
	}
	if v.ctx.Err() != nil {
		f.failure = context.Cause(v.ctx)
		return f.failure
	}
	return nil
}
