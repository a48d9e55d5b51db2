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

// orderMaps is a decorator. It makes a map that an expression spells out an
// orderedMap.
func orderMaps(i interpreter.InterpretableV2) (interpreter.InterpretableV2, error) {
	if step, ok := i.(interpreter.InterpretableConstructor); ok && step.Type() == types.MapType {
		return ordered{step}, nil
	}
	return i, nil
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
	slices.SortFunc(keys, func(a, b ref.Val) int {
		if c := cmp.Compare(a.Type().TypeName(), b.Type().TypeName()); c != 0 {
			return c
		}
		if a, ok := a.(traits.Comparer); ok {
			if c, ok := a.Compare(b).(types.Int); ok {
				return int(c)
			}
		}
		return 0
	})
	return orderedMap{m, types.NewRefValList(types.DefaultTypeAdapter, keys)}
}

// Eval is Exec, for who has no frame.
func (o ordered) Eval(vars interpreter.Activation) ref.Val {
	return interpreter.EvalActivation(vars, o.Exec)
}
