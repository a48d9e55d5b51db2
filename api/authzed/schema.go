package authzed

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

// errNoSchema answers ReadSchema where there is nothing to read. Clients tell by
// its code that a store is new.
var errNoSchema = status.Error(codes.NotFound, "no schema has been defined; please call WriteSchema to start")

// ReadSchema prints the newest schema.
func (s *schemaService) ReadSchema(ctx context.Context, r *v1.ReadSchemaRequest) (*v1.ReadSchemaResponse, error) {
	if err := validate(r); err != nil {
		return nil, err
	}
	snapshot, err := s.newest(ctx)
	if err != nil {
		return nil, err
	}
	defer snapshot.Close()
	text, err := printed(snapshot)
	if err != nil && !isNoSchema(err) {
		return nil, err
	}
	if text == "" {
		return nil, errNoSchema
	}
	return &v1.ReadSchemaResponse{SchemaText: text, ReadAt: s.token(snapshot)}, nil
}

// printedSchema and canonicalCaveats are the keys of what printed and expressionOf
// derive from a schema: a large one takes a third of a second to print.
type (
	printedSchema    struct{}
	canonicalCaveats struct{}
)

// printed returns the text of the schema of a snapshot as the API shows it, empty
// for a schema without declarations.
func printed(snapshot *engine.Snapshot) (string, error) {
	derived, err := snapshot.Derived(printedSchema{}, func(s *schema.Schema) any { return schema.PrintInOrder(s) })
	text, _ := derived.(string)
	return text, err
}

// expressionOf returns the expression of a caveat of the schema of a snapshot as the
// API shows it.
func expressionOf(snapshot *engine.Snapshot, c *schema.Caveat) (string, error) {
	derived, err := snapshot.Derived(canonicalCaveats{}, func(s *schema.Schema) any {
		m := make(map[string]string, len(s.Caveats))
		for _, c := range s.Caveats {
			m[c.Name] = c.CanonicalExpression()
		}
		return m
	})
	expressions, _ := derived.(map[string]string)
	return expressions[c.Name], err
}

func isNoSchema(err error) bool {
	var refusal *engine.Refusal
	return errors.As(err, &refusal) && refusal.Reason == engine.NoSchema
}

// schemaOf returns the schema of a snapshot, an empty one if there is none.
func schemaOf(snapshot *engine.Snapshot) (*schema.Schema, error) {
	compiled, _, err := snapshot.Schema()
	if isNoSchema(err) {
		return schema.New(nil, nil)
	}
	return compiled, err
}

// WriteSchema replaces the schema.
func (s *schemaService) WriteSchema(ctx context.Context, r *v1.WriteSchemaRequest) (*v1.WriteSchemaResponse, error) {
	if err := validate(r); err != nil {
		return nil, err
	}
	store, err := s.host.Store(ctx)
	if err != nil {
		return nil, err
	}
	text := r.GetSchema()
	file, err := s.parse("schema", text)
	if err != nil {
		return nil, err
	}
	if _, err := engine.CompileForgiving("schema", text); err != nil {
		return nil, schemaError(text, err)
	}
	result, err := s.host.WriteSchema(ctx, store, text, func(newest *engine.Snapshot) error {
		old, err := schemaOf(newest)
		if err != nil {
			return err
		}
		return checkParameters(old, file)
	})
	if err != nil {
		return nil, schemaError(text, err)
	}
	return &v1.WriteSchemaResponse{WrittenAt: s.writtenAt(result)}, nil
}

// parse reads the text of a schema that a request gives in a field, and refuses what
// this API does not take, whatever the schema is for.
func (s *schemaService) parse(field, text string) (*schema.File, error) {
	if err := s.checkSize(field, text); err != nil {
		return nil, err
	}
	file, err := schema.Parse(field, text)
	if err != nil {
		_, err := engine.CompileForgiving(field, text)
		return nil, schemaError(text, err)
	}
	return file, checkNames(file)
}

// checkSize refuses a text that is larger than this server allows: a schema is
// one entry of the log, for which the size that the protocol allows is too much.
func (s *schemaService) checkSize(field, text string) error {
	if bytesMax := s.host.Limits().SchemaBytes; len(text) > bytesMax {
		return invalid("%s: it has %d bytes, and this server takes schemas of at most %d (--limit-schema-bytes)", field, len(text), bytesMax)
	}
	if !utf8.ValidString(text) {
		return invalid("%s: it is not valid UTF-8", field)
	}
	return nil
}

// The forms of names that requests of this API can carry. A schema with other
// names could be written and never be asked through it.
var (
	typeName     = regexp.MustCompile(`^([a-z][a-z0-9_]{1,61}[a-z0-9]/)*[a-z][a-z0-9_]{1,62}[a-z0-9]$`)
	relationName = regexp.MustCompile(`^[a-z][a-z0-9_]{1,62}[a-z0-9]$`)
	caveatName   = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9/_|-]{0,127}$`)
)

// typeBytesMax is the most bytes that the name of a type may have in this API.
const typeBytesMax = 128

// checkNames refuses what a schema may hold and this API not.
func checkNames(file *schema.File) error {
	name := func(what string, n schema.Name, form *regexp.Regexp) error {
		allowed := form.String()
		if form == typeName { // The others bound the length by themselves.
			allowed += fmt.Sprintf(" and have at most %d bytes", typeBytesMax)
		}
		if form.MatchString(n.Text) && len(n.Text) <= typeBytesMax {
			return nil
		}
		return parseError(file.Source, n.Pos, n.End, fmt.Sprintf(
			"%s:%s: `%s` cannot be the name of %s in this API: names match %s", file.Name, n.Pos, n.Text, what, allowed))
	}
	for _, item := range file.Items {
		switch item := item.(type) {
		case *schema.Import:
			return parseError(file.Source, item.Pos, item.End, fmt.Sprintf(
				"%s:%s: a server cannot follow the import of `%s`; compile the files to one schema and write that", file.Name, item.Pos, item.Path.Text))
		case *schema.CaveatDecl:
			if err := name("a caveat", item.Name, caveatName); err != nil {
				return err
			}
		case *schema.DefinitionDecl:
			if !item.Partial {
				if err := name("a definition", item.Name, typeName); err != nil {
					return err
				}
			}
			for _, m := range item.Members {
				var err error
				switch m := m.(type) {
				case *schema.RelationDecl:
					err = name("a relation", m.Name, relationName)
				case *schema.PermissionDecl:
					err = name("a permission", m.Name, relationName)
				}
				if err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// checkParameters refuses a schema in which a caveat has lost a parameter of the
// newest one, or has it with another type: in this API that is never allowed,
// whatever is stored. The engine, which judges whether what is stored fits, knows
// no such rule.
func checkParameters(old *schema.Schema, file *schema.File) error {
	for _, item := range file.Items {
		c, ok := item.(*schema.CaveatDecl)
		if !ok || old.Caveat(c.Name.Text) == nil {
			continue
		}
		for _, p := range old.Caveat(c.Name.Text).Parameters {
			i := slices.IndexFunc(c.Parameters, func(q *schema.ParameterDecl) bool { return q.Name.Text == p.Name })
			operation, message := "", ""
			switch {
			case i < 0:
				operation, message = "remove_parameter", "cannot remove parameter `%s` on caveat `%s`"
			case c.Parameters[i].Type.String() != p.Type:
				operation, message = "change_parameter_type", "cannot change the type of parameter `%s` on caveat `%s`"
			default:
				continue
			}
			return withReason(codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_SCHEMA_TYPE_ERROR, fmt.Sprintf(message, p.Name, c.Name.Text),
				map[string]string{"caveat_name": c.Name.Text, "parameter_name": p.Name, "operation": operation})
		}
	}
	return nil
}

// schemaError says in the API's words why the engine refused a schema; another
// error it returns as it is.
func schemaError(text string, err error) error {
	var refusal *engine.Refusal
	if !errors.As(err, &refusal) {
		return err
	}
	if refusal.Reason == engine.SchemaData {
		return dataError(text, refusal)
	}
	cause := refusal.Cause
	if cause == nil && (refusal.Reason == engine.SchemaSyntax || refusal.Reason == engine.SchemaType) {
		// Another node refused it, and of its refusal only the words came over. What it
		// found is found again.
		var again *engine.Refusal
		if _, err := engine.CompileStored(text); errors.As(err, &again) {
			cause = again.Cause
		}
	}
	var mistakes schema.Errors
	if !errors.As(cause, &mistakes) || len(mistakes) == 0 {
		return err
	}
	// One that makes the schema unreadable stands for all.
	mistake, unreadable := mistakes[0], false
	file, parseErr := schema.Parse("schema", text)
	for _, m := range mistakes {
		if m.Kind == schema.SyntaxError || parseErr == nil && !m.Pos.IsZero() && readsAsSyntax(file, m.Pos.Offset) {
			mistake, unreadable = m, true
			break
		}
	}
	if unreadable {
		return parseError(text, mistake.Pos, mistake.End, refusal.Message)
	}
	metadata := make(map[string]string)
	if parseErr == nil && !mistake.Pos.IsZero() {
		maps.Copy(metadata, positionMetadata(text, mistake.Pos, mistake.End))
		maps.Copy(metadata, placeMetadata(file, mistake.Pos.Offset))
	}
	return withReason(codes.FailedPrecondition, v1.ErrorReason_ERROR_REASON_SCHEMA_TYPE_ERROR, refusal.Message, metadata)
}

// readsAsSyntax reports whether a type error at an offset is one of reading the
// schema in this API: in a caveat anywhere but at the name of a parameter, at the
// name of a definition (which is then there twice), in an import.
func readsAsSyntax(file *schema.File, offset int) bool {
	for _, item := range file.Items {
		switch item := item.(type) {
		case *schema.Import:
			if within(&item.Node, offset) {
				return true
			}
		case *schema.DefinitionDecl:
			if item.Name.Pos.Offset == offset {
				return true
			}
		case *schema.CaveatDecl:
			if within(&item.Node, offset) {
				return !slices.ContainsFunc(item.Parameters, func(p *schema.ParameterDecl) bool { return p.Name.Pos.Offset == offset })
			}
		}
	}
	return false
}

func within(n *schema.Node, offset int) bool { return n.Pos.Offset <= offset && offset < n.End.Offset }

// placeMetadata names the declaration around an offset.
func placeMetadata(file *schema.File, offset int) map[string]string {
	metadata := make(map[string]string, 2)
	for _, item := range file.Items {
		switch item := item.(type) {
		case *schema.CaveatDecl:
			if !within(&item.Node, offset) {
				continue
			}
			metadata["caveat_name"] = item.Name.Text
			for _, p := range item.Parameters {
				if p.Name.Pos.Offset == offset {
					metadata["parameter_name"] = p.Name.Text
				}
			}
		case *schema.DefinitionDecl:
			if !within(&item.Node, offset) {
				continue
			}
			metadata["definition_name"] = item.Name.Text
			for _, m := range item.Members {
				switch m := m.(type) {
				case *schema.RelationDecl:
					if within(&m.Node, offset) {
						metadata["relation_name"] = m.Name.Text
					}
				case *schema.PermissionDecl:
					if within(&m.Node, offset) {
						metadata["permission_name"] = m.Name.Text
					}
				}
			}
		}
	}
	return metadata
}

// parseError is the error of a schema that cannot be read.
func parseError(text string, pos, end schema.Position, message string) error {
	return withReason(codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_SCHEMA_PARSE_ERROR, message, positionMetadata(text, pos, end))
}

// positionMetadata says where a mistake is: lines and columns count from 0 here.
// A mistake without a place, such as a text that is too large, is at the
// beginning.
func positionMetadata(text string, pos, end schema.Position) map[string]string {
	if end.Offset < pos.Offset || end.IsZero() {
		end = pos
	}
	from := min(pos.Offset, len(text))
	code := text[from:min(end.Offset, len(text))]
	if code == "" {
		code, _, _ = strings.Cut(text[from:], "\n")
	}
	number := func(n int) string { return strconv.Itoa(max(0, n-1)) }
	return map[string]string{
		"start_line_number": number(pos.Line), "start_column_position": number(pos.Column),
		"end_line_number": number(end.Line), "end_column_position": number(end.Column),
		"source_code": shorten(strings.TrimSpace(code)),
	}
}

// sourceCodeMax bounds the part of a schema that an error quotes: it travels in a
// header.
const sourceCodeMax = 240

func shorten(code string) string {
	return strings.ToValidUTF8(code[:min(len(code), sourceCodeMax)], "")
}

// dataError says which change of the schema the stored relationships forbid.
func dataError(text string, refusal *engine.Refusal) error {
	compiled, err := engine.CompileForgiving("schema", text)
	if err != nil {
		return refusal // It was just compiled by the engine; what that says stands.
	}
	resource, relation, sample := refusal.Metadata["type"], refusal.Metadata["name"], refusal.Metadata["tuple"]
	metadata := map[string]string{"resource_type": resource, "count": refusal.Metadata["count"]}
	if sample != "" {
		metadata["relationship"] = sample
	}
	message := ""
	switch d := compiled.Definition(resource); {
	case d == nil:
		metadata["operation"] = "delete_object_definition"
		message = fmt.Sprintf("cannot delete object definition `%s`, as at least one relationship exists under it", resource)
	case d.Relation(relation) == nil:
		metadata["operation"], metadata["relation"] = "delete_relation", relation
		message = fmt.Sprintf("cannot delete relation `%s` in object definition `%s`, as at least one relationship exists under it", relation, resource)
	default:
		tuple, err := graph.ParseTuple(sample)
		if err != nil {
			return refusal // No sample was near, so it is not known which type it is.
		}
		removed := schema.SubjectType{
			Type: tuple.Subject.Type, Relation: tuple.Subject.Relation, Wildcard: tuple.Subject.ID == graph.Wildcard,
			Caveat: tuple.Caveat, Expiration: tuple.ValidUntil != 0,
		}
		if slices.Contains(d.Relation(relation).Allowed, removed) {
			return refusal // It is a parameter that was lost; the engine says which.
		}
		metadata["operation"], metadata["relation"], metadata["allowed_type"] = "remove_allowed_type", relation, removed.String()
		message = fmt.Sprintf("cannot remove allowed type `%s` from relation `%s` in object definition `%s`, as a relationship exists with it", removed, relation, resource)
	}
	if sample != "" {
		message += ": " + sample
	}
	return withReason(codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_SCHEMA_TYPE_ERROR, message, metadata)
}
