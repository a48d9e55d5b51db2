package schema

import (
	"cmp"
	"slices"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/interpreter"
)

// An orderedMap is a map that is walked over in the order of its keys. CEL's own order
// is Go's, another each time: then it would be chance whether an expression finds what
// decides before it meets what fails or costs too much.
type orderedMap struct {
	traits.Mapper
	keys traits.Lister
}

// Iterator walks over the keys.
func (m orderedMap) Iterator() traits.Iterator { return m.keys.Iterator() }

// IsZeroValue reports whether the map is empty, for optional.ofNonZeroValue.
func (m orderedMap) IsZeroValue() bool { return m.Size() == types.IntZero }

// newOrderedMap returns a map with these keys, sorted, and the values of an object.
func newOrderedMap(keys []string, values map[string]any) ref.Val {
	return orderedMap{
		types.NewStringInterfaceMap(types.DefaultTypeAdapter, values),
		types.NewStringList(types.DefaultTypeAdapter, keys),
	}
}

// jsonValue converts a JSON value of any kind, and reports false for a value that is
// none.
func jsonValue(v any) (ref.Val, any, bool) {
	switch v := v.(type) {
	case nil, bool, float64, string:
		return types.DefaultTypeAdapter.NativeToValue(v), nil, true
	case []any:
		vals := make([]ref.Val, len(v))
		for i, e := range v {
			val, wrong, ok := jsonValue(e)
			if !ok {
				return nil, wrong, false
			}
			vals[i] = val
		}
		return types.NewRefValList(types.DefaultTypeAdapter, vals), nil, true
	case map[string]any:
		vals, keys := make(map[string]any, len(v)), sortedKeys(v)
		for _, k := range keys {
			val, wrong, ok := jsonValue(v[k])
			if !ok {
				return nil, wrong, false
			}
			vals[k] = val
		}
		return newOrderedMap(keys, vals), nil, true
	}
	return nil, v, false
}

// ready is a decorator. It makes the lists and maps of constants that an expression
// spells out once, and each map that it spells out an orderedMap.
func ready(i interpreter.InterpretableV2) (interpreter.InterpretableV2, error) {
	step, ok := i.(interpreter.InterpretableConstructor)
	if !ok || step.Type() != types.MapType && step.Type() != types.ListType {
		return i, nil
	}
	if step.Type() == types.MapType {
		step = ordered{step}
	}
	for _, v := range step.InitVals() {
		if !isConst(v) {
			return step, nil
		}
	}
	if len(step.InitVals()) == 0 {
		return step, nil // What a macro gathers begins so.
	}
	v := step.Eval(interpreter.EmptyActivation())
	if types.IsUnknownOrError(v) {
		return step, nil // Such as a key that is there twice: it fails when it is asked for.
	}
	return interpreter.NewConstValue(i.ID(), v), nil
}

// ordered makes a map.
type ordered struct {
	interpreter.InterpretableConstructor
}

// Exec evaluates the map and sorts its keys, by their types and then by their values.
func (o ordered) Exec(frame *interpreter.ExecutionFrame) ref.Val {
	v := o.InterpretableConstructor.Exec(frame)
	m, ok := v.(traits.Mapper)
	if _, gathering := v.(traits.MutableMapper); !ok || gathering {
		return v
	}
	var keys []ref.Val
	for it := m.Iterator(); it.HasNext() == types.True; {
		keys = append(keys, it.Next())
	}
	slices.SortFunc(keys, compareKeys)
	return orderedMap{m, types.NewRefValList(types.DefaultTypeAdapter, keys)}
}

// Eval is Exec, for who has no frame.
func (o ordered) Eval(vars interpreter.Activation) ref.Val {
	return interpreter.EvalActivation(vars, o.Exec)
}

// compareKeys orders keys by their types, then by their values, and those that are not
// in any order, such as addresses, by their texts.
func compareKeys(a, b ref.Val) int {
	if c := cmp.Compare(a.Type().TypeName(), b.Type().TypeName()); c != 0 {
		return c
	}
	if comparer, ok := a.(traits.Comparer); ok {
		if c, ok := comparer.Compare(b).(types.Int); ok && c != 0 {
			return int(c)
		}
	}
	text, _ := a.ConvertToType(types.StringType).(types.String)
	other, _ := b.ConvertToType(types.StringType).(types.String)
	return cmp.Compare(text, other)
}
