package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"sort"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

// TestScripts runs the scripts in testdata/script against a server over gRPC. A
// command is the name of a call, its input the request as prototext, its output
// the answer: one JSON object for each message, or the error's code, reason,
// message and metadata.
//
// Zookies and cursors differ from run to run, so they are shown as "...". With
// as=NAME the zookie of the answer (the cursor of the last message, if there is
// one) is kept, and $NAME in a later request stands for it. Errors are checked
// for what must hold of all of them: a known code, a reason, the domain.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/script", func(t *testing.T, path string) {
		client := dial(t, testServer(t, Config{}))
		tokens := make(map[string]string)
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			input := d.Input
			for name, token := range tokens {
				input = strings.ReplaceAll(input, "$"+name, token)
			}
			method := findMethod(t, d.Cmd)
			request := dynamicpb.NewMessage(method.Input())
			if err := prototext.Unmarshal([]byte(input), request); err != nil {
				d.Fatalf(t, "the request: %v", err)
			}
			messages, err := invoke(testContext(t), client.conn, method, request)
			var b strings.Builder
			for _, m := range messages {
				b.WriteString(printMessage(t, m) + "\n")
			}
			if err != nil {
				b.WriteString(printError(t, err) + "\n")
			}
			var name string
			if d.MaybeScanArgs(t, "as", &name) && len(messages) > 0 {
				tokens[name] = findToken(messages[len(messages)-1])
			}
			return b.String()
		})
	})
}

func findMethod(t *testing.T, name string) protoreflect.MethodDescriptor {
	t.Helper()
	services := pembav1.File_pemba_v1_pemba_proto.Services()
	for i := range services.Len() {
		if m := services.Get(i).Methods().ByName(protoreflect.Name(name)); m != nil {
			return m
		}
	}
	t.Fatalf("there is no call %s", name)
	return nil
}

// invoke makes a call and returns all messages of the answer.
func invoke(ctx context.Context, conn *grpc.ClientConn, m protoreflect.MethodDescriptor, request proto.Message) ([]protoreflect.Message, error) {
	name := fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name())
	if !m.IsStreamingServer() {
		answer := dynamicpb.NewMessage(m.Output())
		if err := conn.Invoke(ctx, name, request, answer); err != nil {
			return nil, err
		}
		return []protoreflect.Message{answer}, nil
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, name)
	if err != nil {
		return nil, err
	}
	if err := stream.SendMsg(request); err != nil {
		return nil, err
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	var messages []protoreflect.Message
	for {
		answer := dynamicpb.NewMessage(m.Output())
		err := stream.RecvMsg(answer)
		if errors.Is(err, io.EOF) {
			return messages, nil
		}
		if err != nil {
			return messages, err
		}
		messages = append(messages, answer)
	}
}

// tokenPattern matches the fields whose values differ from run to run.
var tokenPattern = regexp.MustCompile(`"(token|cursor)":"[^"]+"`)

func printMessage(t *testing.T, m protoreflect.Message) string {
	t.Helper()
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m.Interface())
	if err != nil {
		t.Fatal(err)
	}
	// protojson adds blanks at random.
	var compact bytes.Buffer
	if err := json.Compact(&compact, raw); err != nil {
		t.Fatal(err)
	}
	return tokenPattern.ReplaceAllString(compact.String(), `"$1":"..."`)
}

// findToken returns the cursor of a message or the token of its zookie.
func findToken(m protoreflect.Message) string {
	token := ""
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Name() == "cursor":
			token = v.String()
			return false
		case f.Message() != nil && f.Message().Name() == "Zookie":
			token = v.Message().Get(f.Message().Fields().ByName("token")).String()
		}
		return true
	})
	return token
}

func printError(t *testing.T, err error) string {
	t.Helper()
	st := status.Convert(err)
	var info *errdetails.ErrorInfo
	var violation *errdetails.BadRequest_FieldViolation
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			info = d
		case *errdetails.BadRequest:
			violation = d.GetFieldViolations()[0]
		}
	}
	if info == nil {
		t.Fatalf("an error without ErrorInfo: %v", err)
	}
	if info.GetDomain() != ErrorDomain || info.GetReason() == "" {
		t.Errorf("domain %q, reason %q", info.GetDomain(), info.GetReason())
	}
	var metadata []string
	for k, v := range info.GetMetadata() {
		if k == "field" {
			if violation.GetField() != v || violation.GetReason() != info.GetReason() {
				t.Errorf("field %q in the metadata, violation %v", v, violation)
			}
			continue
		}
		metadata = append(metadata, k+"="+v)
	}
	sort.Strings(metadata)
	text := fmt.Sprintf("%s %s\n%s", st.Code(), info.GetReason(), st.Message())
	if len(metadata) > 0 {
		text += "\n" + strings.Join(metadata, ", ")
	}
	return text
}
