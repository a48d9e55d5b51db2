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
// message and metadata. The messages of a request that is a stream stand between
// lines "==="; with take=N no more than so many messages of an answer that has
// no end are taken.
//
// Zookies, cursors and moments differ from run to run, so they are shown as
// "...". With
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
			var requests []proto.Message
			for text := range strings.SplitSeq(input, "===\n") {
				request := dynamicpb.NewMessage(method.Input())
				if err := prototext.Unmarshal([]byte(text), request); err != nil {
					d.Fatalf(t, "the request: %v", err)
				}
				requests = append(requests, request)
			}
			take := -1
			d.MaybeScanArgs(t, "take", &take)
			messages, err := invoke(testContext(t), client.conn, method, take, requests...)
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

func findMethod(t testing.TB, name string) protoreflect.MethodDescriptor {
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

// invoke makes a call and returns the messages of the answer: all of them, or
// with take not negative so many at most. Only a call whose request is a stream
// takes several requests.
func invoke(ctx context.Context, conn *grpc.ClientConn, m protoreflect.MethodDescriptor, take int, requests ...proto.Message) ([]protoreflect.Message, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	name := fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name())
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: m.IsStreamingServer(), ClientStreams: m.IsStreamingClient()}, name)
	if err != nil {
		return nil, err
	}
	for _, request := range requests {
		// An early end of the call is told by RecvMsg.
		if err := stream.SendMsg(request); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	var messages []protoreflect.Message
	for len(messages) != take {
		answer := dynamicpb.NewMessage(m.Output())
		err := stream.RecvMsg(answer)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return messages, err
		}
		messages = append(messages, answer)
		if !m.IsStreamingServer() {
			break
		}
	}
	return messages, nil
}

// tokenPattern matches the fields whose values differ from run to run.
var tokenPattern = regexp.MustCompile(`"(token|cursor|instant|created_at|oldest_history|oldest_change)":"[^"]+"`)

// soonPattern matches the moment at which an import is forgotten.
var soonPattern = regexp.MustCompile(`^(\{"next_chunk".*"expires_at"):"[^"]+"`)

func printMessage(t testing.TB, m protoreflect.Message) string {
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
	text := tokenPattern.ReplaceAllString(compact.String(), `"$1":"..."`)
	return soonPattern.ReplaceAllString(text, `$1:"..."`)
}

// findToken returns the cursor of a message or the token of its zookie.
func findToken(m protoreflect.Message) string {
	token := ""
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Name() == "changes" && !f.IsList():
			token = findToken(v.Message())
			return false
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

// timeOfCreation is what a message says of when a store was made, by the clock.
var timeOfCreation = regexp.MustCompile(`created at [-:.TZ0-9]+`)

func printError(t testing.TB, err error) string {
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
	text := fmt.Sprintf("%s %s\n%s", st.Code(), info.GetReason(), timeOfCreation.ReplaceAllString(st.Message(), "created at ..."))
	if len(metadata) > 0 {
		text += "\n" + strings.Join(metadata, ", ")
	}
	return text
}
