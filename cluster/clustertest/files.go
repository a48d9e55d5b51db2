package clustertest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// digestTree returns a digest of all files below a directory, with their names.
func digestTree(dir string) ([]byte, error) {
	digest := sha256.New()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		fmt.Fprintf(digest, "%q\n", path)
		return readBlocks(path, func(at int64, block []byte) error {
			fmt.Fprintf(digest, "%d %d\n", at, len(block))
			_, err := digest.Write(block)
			return err
		})
	})
	return digest.Sum(nil), err
}

// copyTree copies a directory with all below it.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := filepath.Join(to, path[len(from):])
		if entry.IsDir() {
			return os.MkdirAll(target, 0o700)
		}
		return copyFile(path, target)
	})
}

// copyFile copies a file and leaves out its empty blocks.
func copyFile(from, to string) error {
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	if err = out.Truncate(info.Size()); err == nil {
		err = readBlocks(from, func(at int64, block []byte) error {
			_, err := out.WriteAt(block, at)
			return err
		})
	}
	return errors.Join(err, out.Close())
}

// emptyBlock is what the files of the log mostly hold.
var emptyBlock [64 << 10]byte

// readBlocks calls each with the blocks of a file that are not empty.
func readBlocks(path string, each func(at int64, block []byte) error) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	block := make([]byte, len(emptyBlock))
	for at := int64(0); err == nil; {
		var n int
		n, err = io.ReadFull(in, block)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = io.EOF
		}
		if n > 0 && !bytes.Equal(block[:n], emptyBlock[:n]) {
			if failed := each(at, block[:n]); failed != nil {
				err = failed
			}
		}
		at += int64(n)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return errors.Join(err, in.Close())
}
