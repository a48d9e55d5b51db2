package main

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/api/client"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// The errors of a server name the parts of a request. Here they get the words of
// the command line that the request was made of.

// explainError says what an error means to whoever gave the command, and for an
// error that came from a server its reason.
func explainError(cmd *cobra.Command, err error) string {
	var fromServer interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &fromServer) {
		return withoutPackage(err.Error())
	}
	message := fromServer.GRPCStatus().Message()
	reason, metadata := reasonOf(err)
	if refused, ok := refusedUnread(err); ok {
		message = refused.String()
	}
	if reason == "" {
		if strings.Contains(message, "unexpected HTTP status code") || strings.Contains(message, "unexpected content-type") {
			addr := ""
			if flag := cmd.Flags().Lookup("addr"); flag != nil {
				addr = " at " + flag.Value.String()
			}
			return "what answers" + addr + " speaks HTTP and not gRPC; it looks like the server's HTTP address" + wantsGRPC
		}
		return message
	}
	field := metadata["field"]
	if description, ok := strings.CutPrefix(message, field+": "); ok && field != "" {
		if message = description; place(cmd, err, field) != "" {
			message = place(cmd, err, field) + ": " + description
		}
	}
	if reason == requestTooLarge {
		message = withCure(cmd, err, message, metadata)
	}
	return inCommandWords(cmd, message, reason, metadata) + " (" + reason + ")"
}

// What a server advises when a request is too large for it.
const (
	sendSeveral = "send several, or "
	raiseLimit  = "raise --limit-request-bytes"
)

// withCure says what helps when a request was too large, where a server advises to send
// several: few commands can be given as several ones.
func withCure(cmd *cobra.Command, err error, message string, metadata map[string]string) string {
	before, after, found := strings.Cut(message, sendSeveral)
	limit, limitErr := strconv.Atoi(metadata["limit"])
	if !found || limitErr != nil {
		return message
	}
	if cmd.Flags().Lookup("chunk-bytes") != nil {
		return before + after // Of imports there is more to say: see withSmallerChunks.
	}
	flag, flagBytes := largestFlag(cmd)
	var written *tuplesError
	var largest graph.Tuple
	tuples, tupleBytes := 0, 0
	if errors.As(err, &written) {
		tuples = len(written.tuples)
		for _, t := range written.tuples {
			if m, err := api.TupleMessage(t); err == nil && proto.Size(m) > tupleBytes {
				largest, tupleBytes = t, proto.Size(m)
			}
		}
	}
	whole := 0
	if match := requestBytes.FindStringSubmatch(message); match != nil {
		whole, _ = strconv.Atoi(match[1]) // So many digits are a number.
	}
	switch {
	case tuples > 1 && flagBytes+tupleBytes < limit:
		cure := "; delete them by several commands, or by --filter"
		if cmd.CommandPath() == "pemba tuple write" {
			cure = "; \"" + typed("pemba tuple import") + "\" writes any number"
		}
		return message + cure
	case flagBytes > tupleBytes && 2*flagBytes > whole:
		return before + "make " + flag + " smaller, or " + after
	case strings.HasPrefix(cmd.CommandPath(), "pemba schema "):
		return before + "make the schema shorter, or " + after
	case len(largest.Context) > 0:
		bare := graph.Tuple{Object: largest.Object, Relation: largest.Relation, Subject: largest.Subject}
		return before + "make the context of " + bare.String() + " smaller, or " + after
	}
	return before + after
}

var requestBytes = regexp.MustCompile(`^the request has (\d{1,18}) bytes`)

// largestFlag returns which flag with a JSON object takes the most bytes in a request,
// and how many; zero where none does.
func largestFlag(cmd *cobra.Command) (flag string, size int) {
	if dry := cmd.Flags().Lookup("dry-run"); dry != nil && dry.Value.String() == "true" {
		return "", 0 // It sends nothing but the schema.
	}
	for _, name := range []string{"context", "metadata"} {
		given := cmd.Flags().Lookup(name)
		if given == nil {
			continue
		}
		if s, err := parseJSONObject(name, given.Value.String()); err == nil && proto.Size(s) > size {
			flag, size = "--"+name, proto.Size(s)
		}
	}
	return flag, size
}

// requestTooLarge is the reason for which a server refuses a message of a request
// that is larger than its --limit-request-bytes.
const requestTooLarge = "REQUEST_TOO_LARGE"

// unreadFactor is how many times as large as --limit-request-bytes a message may be
// before gRPC refuses it for the server, unread, in its own words and without a reason.
const unreadFactor = 4

// An unread message is one that gRPC refused: it has size bytes, and so many were
// allowed. size > allowed.
type unread struct{ size, allowed int64 }

var unreadText = regexp.MustCompile(`^grpc: received message larger than max \((\d{1,18}) vs\. (\d{1,18})\)$`)

// refusedUnread reports whether an error is about a message that gRPC did not read. It
// has the same words for what was sent, on the side of the server, and for an answer, on
// this one; they differ by what is allowed alone.
func refusedUnread(err error) (unread, bool) {
	var network interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &network) || network.GRPCStatus().Code() != codes.ResourceExhausted {
		return unread{}, false
	}
	match := unreadText.FindStringSubmatch(network.GRPCStatus().Message())
	if reason, _ := client.Reason(err); match == nil || reason != "" {
		return unread{}, false
	}
	// So many digits are numbers.
	size, _ := strconv.ParseInt(match[1], 10, 64)
	allowed, _ := strconv.ParseInt(match[2], 10, 64)
	return unread{size, allowed}, allowed%unreadFactor == 0
}

// limit returns the --limit-request-bytes of the server that refused the message. It is
// not certain that a server did where as much is allowed as this side takes.
func (u unread) limit() (limit int64, certain bool) {
	return u.allowed / unreadFactor, u.allowed != client.ResponseBytesMax
}

// String says what the server would have said itself, if it is certain that it did.
func (u unread) String() string {
	limit, certain := u.limit()
	if certain {
		return fmt.Sprintf("the request has %d bytes; at most %d are allowed; "+sendSeveral+raiseLimit+" of the server", u.size, limit)
	}
	return fmt.Sprintf("the answer has %d bytes, and this command takes at most %d; or the request has so many, and the server's --limit-request-bytes is %d", u.size, u.allowed, limit)
}

// reasonOf is client.Reason, and knows the reason of a request that gRPC refused for
// the server.
func reasonOf(err error) (reason string, metadata map[string]string) {
	if refused, ok := refusedUnread(err); ok {
		if limit, certain := refused.limit(); certain {
			return requestTooLarge, map[string]string{"limit": strconv.FormatInt(limit, 10)}
		}
	}
	return client.Reason(err)
}

// withoutPackage takes off the name of the package that an error of ours begins with,
// which says nothing to whoever types commands.
func withoutPackage(text string) string {
	const ofSource = "the source: "
	from, text := "", text
	if rest, ok := strings.CutPrefix(text, ofSource); ok {
		from, text = ofSource, rest
	}
	text = strings.TrimPrefix(text, "client: ")
	return from + strings.TrimPrefix(text, "api: ")
}

// wantsGRPC says which address a command needs.
const wantsGRPC = "; --addr and PEMBA_ADDR want the gRPC one"

// A tuplesError is what became of a write of tuples.
type tuplesError struct {
	tuples []graph.Tuple
	err    error
}

func (e *tuplesError) Error() string { return e.err.Error() }
func (e *tuplesError) Unwrap() error { return e.err }

// flagsOfFields names, for parts of requests, the flags that make them; of
// several, the command has one. Those without a flag are arguments.
var flagsOfFields = map[string][]string{
	"after.token":                         {"from"},
	"as_of":                               {"as-of"},
	"consistency.as_of":                   {"as-of"},
	"consistency.at_least_as_fresh.token": {"at-least"},
	"consistency.exactly_at.token":        {"at"},
	"context":                             {"context"},
	"cursor":                              {"cursor"},
	"from_zookie.token":                   {"from"},
	"header.import_id":                    {"import-id"},
	"header.metadata":                     {"metadata"},
	"header.recorded_actor":               {"recorded-actor"},
	"header.store":                        {"store"},
	"import_id":                           {"import-id"},
	"limit":                               {"limit"},
	"id":                                  nil,
	"name":                                nil,
	"metadata":                            {"metadata"},
	"raft_addr":                           nil,
	"recorded_actor":                      {"recorded-actor"},
	"since":                               {"since"},
	"store":                               {"store"},
	"to_zookie.token":                     {"to"},
	"until":                               {"until"},
}

var updateField = regexp.MustCompile(`^updates\[(\d+)\]`)

// place says what on the command line a part of the request comes from. What
// comes from nothing there, and needs no place, gives an empty text.
func place(cmd *cobra.Command, err error, field string) string {
	if match := updateField.FindStringSubmatch(field); match != nil {
		var written *tuplesError
		if n, numberErr := strconv.Atoi(match[1]); numberErr == nil && errors.As(err, &written) && n < len(written.tuples) {
			return written.tuples[n].String()
		}
		return field
	}
	if field == "filter" || strings.HasPrefix(field, "filter.") {
		return "the filter"
	}
	if field == "updates" {
		return "the tuples"
	}
	flags, known := flagsOfFields[field]
	for _, flag := range flags {
		if cmd.Flags().Lookup(flag) == nil {
			continue
		}
		if flag == "store" {
			return "--store or PEMBA_STORE"
		}
		return "--" + flag
	}
	if known {
		return "" // An argument, of which the message speaks.
	}
	return field
}

// inCommandWords rewrites what a server says of a cure that has another name here.
func inCommandWords(cmd *cobra.Command, message, reason string, metadata map[string]string) string {
	switch reason {
	case "KEY_MISSING":
		return "the server wants a key; give it by --key or PEMBA_KEY"
	case "KEY_INVALID":
		from := "PEMBA_KEY"
		if flag := cmd.Flags().Lookup("key"); flag != nil && flag.Changed && flag.Value.String() != "" || os.Getenv(from) == "" {
			from = "--key"
		}
		return message + "; it was given by " + from
	case "NOT_LEADER":
		if strings.HasPrefix(cmd.CommandPath(), "pemba cluster ") {
			return message + "; where more than half of the voters are lost for good, \"" + typed("pemba cluster recover --help") + "\" says what is left to do"
		}
	case engine.AlreadyExists.String():
		if flag := cmd.Flags().Lookup("create"); flag != nil && metadata["tuple"] != "" {
			return metadata["tuple"] + " exists already; leave out --create to replace what is there"
		}
	case engine.NoSchema.String():
		if rest, ok := strings.CutSuffix(message, "; write one first"); ok {
			return rest + "; \"" + typed("pemba schema write FILE") + "\" writes one"
		}
	case engine.StageMismatch.String():
		if cmd.Flags().Lookup("import-id") != nil { // What is left says what to do.
			return strings.TrimSuffix(message, "; use another import_id")
		}
	case engine.UnknownStore.String():
		// The default store cannot be deleted.
		if flag := cmd.Flags().Lookup("store"); flag != nil && flag.Value.String() == "" {
			return "the key may not see the default store, for it is bound to others; name one with --store or PEMBA_STORE"
		}
		if metadata["testing"] != "" {
			return message // Nobody makes a store there.
		}
		return message + "; \"" + typed("pemba store list") + "\" shows those that there are, and an operator makes one by \"" + typed("pemba store create NAME") + "\""
	case engine.SchemaData.String():
		// The server names the first kind of tuples that it finds.
		if cmd.Flags().Lookup("dry-run") != nil {
			return message + "; there may be more: \"" + typed(cmd.CommandPath()) + " --dry-run\" lists all that do not fit"
		}
	case "TOO_MANY_UPDATES":
		if limit := metadata["limit"]; limit != "" {
			message = "there are more than the " + limit + " tuples that one change may have"
		}
		switch cmd.CommandPath() {
		case "pemba tuple write":
			return message + "; \"" + typed("pemba tuple import") + "\" writes any number"
		case "pemba tuple delete":
			return message + "; delete them by several commands, or by --filter"
		}
	case engine.StageTooLarge.String():
		// What a server knows of are the modes of a request.
		limit := metadata["limit"]
		if limit == "" || cmd.Flags().Lookup("batches") == nil {
			break
		}
		if metadata["field"] == "" { // It is not about what is sent.
			return "the store has " + limit + " imports that were not committed, and no more are allowed; go on with one of them by its --import-id, or forget it: \"" +
				typed(cmd.CommandPath()) + " --abort --import-id ID\", or --all"
		}
		return "the file holds more than the " + limit + " tuples that may become visible at once; import it with --batches, or as several files"
	case engine.TooManyMatches.String():
		// The limit may be the server's, and the filter is shown as it was typed.
		if flag := cmd.Flags().Lookup("filter"); flag != nil && metadata["limit"] != "" {
			return "the filter " + shellQuote(flag.Value.String()) + " matches more than the " + metadata["limit"] +
				" tuples that this may delete; --allow-partial deletes so many, and a narrower filter matches fewer"
		}
	case engine.DuplicateUpdate.String():
		if metadata["tuple"] != "" {
			return metadata["tuple"] + " is given twice; one command may name a tuple once"
		}
	}
	return message
}

// tlsHints name the flags that mend what is wrong with TLS.
var tlsHints = map[client.TLSProblem]string{
	client.TLSMissing:               "speak TLS with --tls, or with --ca-cert where its authority is one of your own; or it is the server's HTTP address, or its address for other nodes" + wantsGRPC,
	client.TLSUnwanted:              "leave out --tls, --ca-cert and --client-cert (PEMBA_TLS, PEMBA_CA_CERT, PEMBA_CLIENT_CERT) to speak without TLS",
	client.UnknownAuthority:         "name a file with the certificate of the authority that signed the server's by --ca-cert or PEMBA_CA_CERT",
	client.OtherServer:              "name the server in --addr or PEMBA_ADDR as its certificate does",
	client.ClientCertificateMissing: "show one by --client-cert and --client-key, or PEMBA_CLIENT_CERT and PEMBA_CLIENT_KEY",
	client.ClientCertificateRefused: "the server wants one of an authority of its --client-ca; --client-cert and --client-key name another",
}

// connectionHint says what may help when there is no connection.
func connectionHint(err error) error {
	var failure *client.DialError
	switch {
	case errors.Is(err, client.ErrKeyExposed):
		return fmt.Errorf("%w; speak TLS with --tls or --ca-cert, or allow it with --insecure-key", err)
	case !errors.As(err, &failure):
		return fmt.Errorf("%w; see --addr and PEMBA_ADDR", err)
	case failure.HTTP:
		return fmt.Errorf("%w"+wantsGRPC, err)
	case tlsHints[failure.TLS] != "":
		return fmt.Errorf("%w; %s", err, tlsHints[failure.TLS])
	case failure.Answered:
		return err
	}
	return fmt.Errorf("%w; %q or %q start a server, --addr or PEMBA_ADDR name another", err, typed("pemba serve"), typed("pemba demo"))
}

// printable makes what is to be read by people fit for a terminal, whose state
// bytes of a foreign file or server must not change: each character that controls
// it becomes one that shows, so that a mark below a line stands where it stood.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return r
		case r < ' ':
			return '\u2400' + r // The picture of the character.
		case r == 0x7f:
			return '\u2421'
		case unicode.Is(unicode.Cc, r), unicode.Is(unicode.Bidi_Control, r):
			return utf8.RuneError
		}
		return r // What is no UTF-8 comes as utf8.RuneError, byte by byte.
	}, text)
}
