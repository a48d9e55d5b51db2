package badgerlog

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
)

// stableBytesMax bounds the stable values altogether, for they are rewritten as
// one. Raft needs less than 200 bytes.
const stableBytesMax = 64 << 10

// Set stores a copy of value under key and returns when it is on the disk. All
// keys and values together may have 64 KiB. ErrDiskFull means that nothing was
// written; any other error but one about the size poisons the log.
func (l *Log) Set(key, value []byte) error {
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	st := *l.state.Load()
	stable := maps.Clone(st.stable)
	if stable == nil {
		stable = map[string][]byte{}
	}
	stable[string(key)] = append([]byte{}, value...)
	encoded, sum := encodeStable(stable)
	if len(encoded) > stableBytesMax {
		return fmt.Errorf("badgerlog: Set of key %.100q to %d bytes would make the stable values %d bytes, at most %d are allowed",
			key, len(value), len(encoded), stableBytesMax)
	}
	st.stable, st.stableSum = stable, sum
	b := l.newBatch(l.upkeepBytes())
	b.set(keyStable, encoded)
	return l.settle(b.commit(&st))
}

// Get returns a copy of the value of key, or ErrKeyNotFound itself.
func (l *Log) Get(key []byte) ([]byte, error) {
	if err := l.usable(); err != nil {
		return nil, err
	}
	value, ok := l.state.Load().stable[string(key)]
	if !ok {
		return nil, ErrKeyNotFound
	}
	return slices.Clone(value), nil
}

// SetUint64 stores value under key as Set does.
func (l *Log) SetUint64(key []byte, value uint64) error {
	return l.Set(key, binary.BigEndian.AppendUint64(nil, value))
}

// GetUint64 returns the value that SetUint64 stored under key, or 0 if there is
// none, as raft.StableStore has it.
func (l *Log) GetUint64(key []byte) (uint64, error) {
	if err := l.usable(); err != nil {
		return 0, err
	}
	value, ok := l.state.Load().stable[string(key)]
	if !ok {
		return 0, nil
	}
	if len(value) != 8 {
		return 0, fmt.Errorf("badgerlog: GetUint64 of key %.100q: its value has %d bytes, and a number has 8", key, len(value))
	}
	return binary.BigEndian.Uint64(value), nil
}
