package client

import (
	"bytes"
	"encoding"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/structpb"
)

// contextAllowed lists, for errors, what Context takes.
const contextAllowed = "nil, bool, numbers, string, []byte, time.Time, time.Duration, netip.Addr, net.IP, json.Number, json.RawMessage, and pointers to these, slices and maps of these with text keys"

// contextDepthMax bounds how deep values stand in each other, which also ends one
// that holds itself. No caveat reads any that are nearly as deep.
const contextDepthMax = 32

// Context makes the context of a question out of Go values, in the forms that
// caveat parameters read:
//
//   - nil, bool, string, slices, and maps with text keys, as they are in JSON;
//   - numbers; integers beyond 2^53 go as text, since a float64 does not hold them
//     all: int, uint and double parameters read it;
//   - []byte as base64, for bytes;
//   - time.Time as RFC 3339, for timestamp, and time.Duration as its text, for
//     duration;
//   - netip.Addr and net.IP as their text, for ipaddress;
//   - json.Number as a number, and json.RawMessage as what it holds.
//
// A pointer counts as what it points to, and a type as what it is made of in the
// end: one that is made of string as text, one of time.Time as a time. A type that
// is made of time.Duration is an int64 to Go and so goes as a number, and one of
// net.IP or json.RawMessage as []byte: convert these first. Types that bring their
// own JSON or text are refused, for the one they are made of is another. The error
// names the parameter of any other value too, and what is allowed. nil gives nil.
func Context(values map[string]any) (*structpb.Struct, error) {
	if values == nil {
		return nil, nil
	}
	s := &structpb.Struct{Fields: make(map[string]*structpb.Value, len(values))}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if !utf8.ValidString(name) {
			return nil, fmt.Errorf("client: the context: the name %q is not UTF-8", name)
		}
		v, err := contextValue(values[name], 1)
		if err != nil {
			return nil, fmt.Errorf("client: the context: parameter %q: %w", name, err)
		}
		s.Fields[name] = v
	}
	return s, nil
}

func contextValue(value any, depth int) (*structpb.Value, error) {
	if depth > contextDepthMax {
		return nil, fmt.Errorf("its values stand more than %d deep in each other", contextDepthMax)
	}
	switch v := value.(type) {
	case nil:
		return structpb.NewNullValue(), nil
	case time.Time:
		if y := v.UTC().Year(); y < 1 || y > 9999 {
			return nil, fmt.Errorf("the time %v has a year of %d; 1 to 9999 are allowed", v, y)
		}
		return structpb.NewStringValue(v.UTC().Format(time.RFC3339Nano)), nil
	case time.Duration:
		return structpb.NewStringValue(v.String()), nil
	case netip.Addr:
		if !v.IsValid() {
			return nil, fmt.Errorf("the zero netip.Addr is no address")
		}
		return structpb.NewStringValue(v.String()), nil
	case net.IP:
		a, ok := netip.AddrFromSlice(v)
		if !ok {
			return nil, fmt.Errorf("a net.IP of %d bytes is no address; 4 and 16 are allowed", len(v))
		}
		return structpb.NewStringValue(a.Unmap().String()), nil
	case json.Number:
		return contextNumber(v)
	case json.RawMessage:
		return contextRaw(v, depth)
	}
	r := reflect.ValueOf(value)
	if r.Kind() == reflect.Struct {
		// The types of structs tell what they are made of.
		for _, t := range [...]reflect.Type{reflect.TypeFor[time.Time](), reflect.TypeFor[netip.Addr]()} {
			if r.CanConvert(t) {
				return contextValue(r.Convert(t).Interface(), depth)
			}
		}
	}
	if t := r.Type(); hasOwnForm(t) && (t.Kind() != reflect.Pointer || !hasOwnForm(t.Elem())) {
		return nil, fmt.Errorf("a value of type %T brings a form of its own and is not allowed; allowed are %s", value, contextAllowed)
	}
	switch r.Kind() {
	case reflect.Bool:
		return structpb.NewBoolValue(r.Bool()), nil
	case reflect.String:
		if !utf8.ValidString(r.String()) {
			return nil, fmt.Errorf("the text %q is not UTF-8; give it as []byte", r.String())
		}
		return structpb.NewStringValue(r.String()), nil
	case reflect.Float32, reflect.Float64:
		f := r.Float()
		if math.IsNaN(f) || math.IsInf(f, 0) {
			return nil, fmt.Errorf("%v is no number of JSON; finite ones are allowed", f)
		}
		return structpb.NewNumberValue(f), nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		if n := r.Int(); n < -floatIntegerMax || n > floatIntegerMax {
			return structpb.NewStringValue(strconv.FormatInt(n, 10)), nil
		}
		return structpb.NewNumberValue(float64(r.Int())), nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if n := r.Uint(); n > floatIntegerMax {
			return structpb.NewStringValue(strconv.FormatUint(n, 10)), nil
		}
		return structpb.NewNumberValue(float64(r.Uint())), nil
	case reflect.Pointer:
		if r.IsNil() {
			return structpb.NewNullValue(), nil
		}
		return contextValue(r.Elem().Interface(), depth+1)
	case reflect.Slice, reflect.Array:
		return contextList(r, depth)
	case reflect.Map:
		return contextMap(r, depth)
	default:
		return nil, fmt.Errorf("a value of type %T is not allowed; allowed are %s", value, contextAllowed)
	}
}

// hasOwnForm reports whether a type says itself what it is as JSON or text.
func hasOwnForm(t reflect.Type) bool {
	return t.Implements(reflect.TypeFor[json.Marshaler]()) || t.Implements(reflect.TypeFor[encoding.TextMarshaler]())
}

// floatIntegerMax is up to where a float64 holds every integer.
const floatIntegerMax = 1 << 53

// contextNumber keeps integers as they are, also those that no parameter but a
// double holds.
func contextNumber(n json.Number) (*structpb.Value, error) {
	text := n.String()
	if !numberForm.MatchString(text) {
		return nil, fmt.Errorf("%q is no number of JSON", text)
	}
	if !strings.ContainsAny(text, ".eE") {
		if i, err := n.Int64(); err == nil {
			return contextValue(i, 1)
		}
		return structpb.NewStringValue(text), nil
	}
	f, err := n.Float64()
	if err != nil {
		return nil, fmt.Errorf("%q is beyond what a float64 holds", text)
	}
	return structpb.NewNumberValue(f), nil
}

// numberForm is that of the numbers of JSON.
var numberForm = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$`)

// contextRaw makes a value of JSON.
func contextRaw(raw json.RawMessage, depth int) (*structpb.Value, error) {
	if raw == nil {
		return structpb.NewNullValue(), nil
	}
	if !json.Valid(raw) || !utf8.Valid(raw) {
		return nil, errors.New("the json.RawMessage is no JSON in UTF-8")
	}
	var value any
	from := json.NewDecoder(bytes.NewReader(raw))
	from.UseNumber() // A float64 does not hold all integers.
	if err := from.Decode(&value); err != nil {
		return nil, fmt.Errorf("the json.RawMessage cannot be read: %w", err)
	}
	return contextValue(value, depth)
}

func contextList(r reflect.Value, depth int) (*structpb.Value, error) {
	if r.Kind() == reflect.Slice && r.Type().Elem().Kind() == reflect.Uint8 {
		return structpb.NewStringValue(base64.StdEncoding.EncodeToString(r.Bytes())), nil
	}
	list := &structpb.ListValue{Values: make([]*structpb.Value, r.Len())}
	for i := range list.Values {
		var err error
		if list.Values[i], err = contextValue(r.Index(i).Interface(), depth+1); err != nil {
			return nil, fmt.Errorf("[%d]: %w", i, err)
		}
	}
	return structpb.NewListValue(list), nil
}

func contextMap(r reflect.Value, depth int) (*structpb.Value, error) {
	if r.Type().Key().Kind() != reflect.String {
		return nil, fmt.Errorf("a map of type %v is not allowed; its keys must be text", r.Type())
	}
	s := &structpb.Struct{Fields: make(map[string]*structpb.Value, r.Len())}
	for key, value := range r.Seq2() {
		if !utf8.ValidString(key.String()) {
			return nil, fmt.Errorf("the key %q is not UTF-8", key.String())
		}
		v, err := contextValue(value.Interface(), depth+1)
		if err != nil {
			return nil, fmt.Errorf("[%q]: %w", key.String(), err)
		}
		s.Fields[key.String()] = v
	}
	return structpb.NewStructValue(s), nil
}
