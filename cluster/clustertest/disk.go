package clustertest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// A disk is that of a host, as far as it can be slow.
type disk struct {
	mu sync.Mutex
	// answers is closed once the disk is healthy again, and nil while it is.
	answers chan struct{}
}

// setSlow makes the disk slow, or healthy.
func (d *disk) setSlow(slow bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case slow && d.answers == nil:
		d.answers = make(chan struct{})
	case !slow && d.answers != nil:
		close(d.answers)
		d.answers = nil
	}
}

// await returns when the disk is healthy.
func (d *disk) await() {
	d.mu.Lock()
	answers := d.answers
	d.mu.Unlock()
	if answers != nil {
		<-answers
	}
}

// SetDiskSlow has all that the log of the host's node stores from now on take until the
// disk is healthy again: nothing stands for seconds, so that a test is done as soon as it
// has seen enough.
func (h *Host) SetDiskSlow(slow bool) { h.disk.setSlow(slow) }

// Damage inverts a text wherever it stands in the files of the log, or in the tables of
// the graph, of a node that is stopped: a disk that does not give back what it was given.
// The parts are "log" and "table". It returns the files that had the text.
func (h *Host) Damage(part, text string) (damaged []string, err error) {
	inverted := []byte(text)
	for i := range inverted {
		inverted[i] = ^inverted[i]
	}
	for _, pattern := range map[string][]string{"log": {"log/*.mem", "log/*.sst"}, "table": {"state*/*.sst"}}[part] {
		paths, err := filepath.Glob(filepath.Join(h.dir, pattern))
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			content, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			if !bytes.Contains(content, []byte(text)) {
				continue
			}
			if err := os.WriteFile(path, bytes.ReplaceAll(content, []byte(text), inverted), 0o600); err != nil {
				return nil, err
			}
			damaged = append(damaged, strings.TrimPrefix(path, h.dir+"/"))
		}
	}
	return damaged, nil
}

func (c *console) damage(args *call) (string, error) {
	h, err := c.host(args)
	if err != nil {
		return "", err
	}
	if h.Running() {
		return "", usageError(h.Name + " runs")
	}
	part, text := args.next(), args.next()
	if text == "" {
		return "", usageError("which text is to be damaged?")
	}
	files, err := h.Damage(part, text)
	if err != nil {
		return "", err
	}
	if len(files) == 0 {
		return "", usageError(fmt.Sprintf("no file of the %s of %s has the text %q", part, h.Name, text))
	}
	var b strings.Builder
	for _, path := range files {
		file := filepath.Base(path)
		c.damaged[file] = true
		fmt.Fprintf(&b, "%sN%s is damaged\n", strings.TrimSuffix(path, file), filepath.Ext(file))
	}
	return b.String(), nil
}

func (c *console) disk(args *call) (string, error) {
	h, err := c.host(args)
	if err != nil {
		return "", err
	}
	switch how := args.next(); how {
	case "slow", "healthy":
		h.SetDiskSlow(how == "slow")
		return "", nil
	default:
		return "", usageError("a disk is slow or healthy, and not " + how)
	}
}
