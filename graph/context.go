package graph

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

const contextAllowed = "a JSON object of at most 64 KiB, nested at most 32 deep, each key once"

// CanonicalContext turns a caveat's context into the one form in which it is
// compared and stored: keys sorted by their bytes, no insignificant blanks, only
// what must be escaped is, and numbers as short as can be. A whole number up to
// 64 bits keeps every digit; any other becomes the nearest float64. It returns
// nil for an empty object. The error is an *InvalidError.
func CanonicalContext[C []byte | map[string]any](context C) ([]byte, error) {
	var text []byte
	switch c := any(context).(type) {
	case []byte:
		text = c
	case map[string]any:
		// Without the escapes that HTML asks for, which are six times as long.
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(c); err != nil {
			return nil, invalid("context", "", "cannot be written as JSON: "+err.Error(), contextAllowed)
		}
		text = bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	}
	// What is much longer than its canonical form is refused before it is read.
	if len(text) > 4*MaxContextLength {
		return nil, invalid("context", string(cut(text)), fmt.Sprintf("has %d bytes", len(text)), contextAllowed)
	}
	if !utf8.Valid(text) {
		return nil, invalid("context", strings.ToValidUTF8(string(cut(text)), "?"), "is not UTF-8", contextAllowed)
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	first, err := dec.Token()
	if err != nil || first != json.Delim('{') {
		return nil, invalid("context", string(cut(text)), "is not a JSON object", contextAllowed)
	}
	canonical, err := appendObject(nil, dec, 1)
	if err == nil {
		if _, end := dec.Token(); !errors.Is(end, io.EOF) {
			err = errors.New("has something behind the object")
		}
	}
	if err == nil && len(canonical) > MaxContextLength {
		err = fmt.Errorf("has %d bytes in canonical form", len(canonical))
	}
	if err != nil {
		return nil, invalid("context", strings.ToValidUTF8(string(cut(text)), "?"), err.Error(), contextAllowed)
	}
	if len(canonical) == len("{}") {
		return nil, nil
	}
	return canonical, nil
}

// appendObject appends the object whose brace was just read.
func appendObject(dst []byte, dec *json.Decoder, depth int) ([]byte, error) {
	type member struct{ key, value []byte }
	var members []member
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return nil, badJSON(err)
		}
		name, ok := token.(string)
		if !ok {
			return nil, errors.New("has a key that is no string")
		}
		key, err := appendJSONString(nil, name)
		if err != nil {
			return nil, err
		}
		value, err := appendValueOf(nil, dec, depth)
		if err != nil {
			return nil, err
		}
		members = append(members, member{key, value})
	}
	if _, err := dec.Token(); err != nil {
		return nil, badJSON(err)
	}
	slices.SortFunc(members, func(a, b member) int { return bytes.Compare(a.key, b.key) })
	dst = append(dst, '{')
	for i, m := range members {
		if i > 0 {
			if bytes.Equal(members[i-1].key, m.key) {
				return nil, fmt.Errorf("has the key %s twice", m.key)
			}
			dst = append(dst, ',')
		}
		dst = append(append(append(dst, m.key...), ':'), m.value...)
	}
	return append(dst, '}'), nil
}

// appendValueOf appends the value that comes next.
func appendValueOf(dst []byte, dec *json.Decoder, depth int) ([]byte, error) {
	token, err := dec.Token()
	if err != nil {
		return nil, badJSON(err)
	}
	switch v := token.(type) {
	case json.Delim:
		if depth == MaxContextDepth {
			return nil, fmt.Errorf("nests deeper than %d", MaxContextDepth)
		}
		if v == '{' {
			return appendObject(dst, dec, depth+1)
		}
		dst = append(dst, '[')
		for first := true; dec.More(); first = false {
			if !first {
				dst = append(dst, ',')
			}
			if dst, err = appendValueOf(dst, dec, depth+1); err != nil {
				return nil, err
			}
		}
		if _, err := dec.Token(); err != nil {
			return nil, badJSON(err)
		}
		return append(dst, ']'), nil
	case string:
		return appendJSONString(dst, v)
	case json.Number:
		return appendJSONNumber(dst, string(v))
	case bool:
		return strconv.AppendBool(dst, v), nil
	default:
		return append(dst, "null"...), nil
	}
}

func badJSON(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("ends too early")
	}
	return fmt.Errorf("is not JSON: %w", err)
}

func appendJSONString(dst []byte, s string) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		return nil, fmt.Errorf("has a string that cannot be written: %w", err)
	}
	return append(dst, bytes.TrimSuffix(b.Bytes(), []byte("\n"))...), nil
}

func appendJSONNumber(dst []byte, text string) ([]byte, error) {
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		return strconv.AppendInt(dst, n, 10), nil
	}
	if n, err := strconv.ParseUint(text, 10, 64); err == nil {
		return strconv.AppendUint(dst, n, 10), nil
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsInf(f, 0) {
		return nil, fmt.Errorf("has the number %s, which is too large", invalid("", text, "", "").Value)
	}
	// Whole numbers that a float64 holds exactly are written as such, so that
	// 1, 1.0 and 1e0 are the same.
	if f == math.Trunc(f) && math.Abs(f) < 1<<53 {
		return strconv.AppendInt(dst, int64(f), 10), nil
	}
	if f == math.Trunc(f) && math.Abs(f) < 1e21 {
		whole, _ := big.NewFloat(f).Int(nil)
		if whole.IsInt64() || whole.IsUint64() {
			return whole.Append(dst, 10), nil
		}
	}
	return strconv.AppendFloat(dst, f, 'g', -1, 64), nil
}
