package peer

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// magic begins every hello and every answer. Its first byte begins neither a
	// record of TLS nor a line of a text protocol, its last ones show a transfer
	// that changes line ends.
	magic = "\xf5pemba\r\n"

	// version is of the hello and of all that follows it.
	version = 1

	headBytes     = len(magic) + 1 + 2
	bodyBytesMax  = 1024 // of any version; version 1 needs 1+16+2*(1+IDBytesMax) = 275
	bodyBytesMin  = 1 + 16 + 2*(1+1)
	answerBytes   = len(magic) + 1 + 1 + 2 // before the sentence
	sentenceBytes = 1024

	// IDBytesMax is the most bytes that the id of a node may have.
	IDBytesMax = 128
)

// kind says what is spoken on a connection after the hello.
type kind uint8

const (
	kindRaft  kind = 1
	kindCalls kind = 2
)

// String returns the name of the kind.
func (k kind) String() string {
	switch k {
	case kindRaft:
		return "raft"
	case kindCalls:
		return "calls"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Code says why a node refuses a connection. The numbers are on the wire and
// never change.
type Code uint8

// The reasons for which a connection is refused.
const (
	// CodeVersion: the hello has a version that the node does not speak.
	CodeVersion Code = 1
	// CodeMalformed: the hello cannot be read.
	CodeMalformed Code = 2
	// CodeNoCluster: the node is not part of a cluster yet.
	CodeNoCluster Code = 3
	// CodeCluster: the hello is for another cluster.
	CodeCluster Code = 4
	// CodeRecipient: the hello is for another node, which is not at this address.
	CodeRecipient Code = 5
	// CodeSelf: the node was dialed by itself.
	CodeSelf Code = 6
	// CodeKind: the node does not know the kind of connection.
	CodeKind Code = 7
	// CodeNotServing: the node does not serve this kind at the moment; its Raft
	// is being started, or it stops.
	CodeNotServing Code = 8
	// CodeBusy: the node has as many connections as it accepts.
	CodeBusy Code = 9
)

// String returns the code in one or two words.
func (c Code) String() string {
	switch c {
	case CodeVersion:
		return "other version"
	case CodeMalformed:
		return "malformed hello"
	case CodeNoCluster:
		return "no cluster"
	case CodeCluster:
		return "other cluster"
	case CodeRecipient:
		return "other recipient"
	case CodeSelf:
		return "self"
	case CodeKind:
		return "unknown kind"
	case CodeNotServing:
		return "not serving"
	case CodeBusy:
		return "busy"
	}
	return fmt.Sprintf("code %d", uint8(c))
}

// RefusedError says that the node that listens at an address answered and does
// not want the connection. It is found with errors.As in the errors of Raft's
// RPCs and in those of calls, when a call failed because its connection was
// refused.
type RefusedError struct {
	// Code is the reason. A newer node may have reasons that this one has no
	// name for.
	Code Code
	// Peer is the node that was meant, Addr where it was looked for.
	Peer, Addr string
	// Message is the sentence of the node that answered; what cannot be printed
	// in it is replaced.
	Message string
}

// Error implements error.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("node %s at %s refuses the connection (%s): %s", e.Peer, e.Addr, e.Code, e.Message)
}

// refusal is why this node does not accept a hello.
type refusal struct {
	code     Code
	sentence string
}

// hello is what a dialer says first.
type hello struct {
	kind      kind
	cluster   [16]byte
	sender    string
	recipient string
}

// checkID says what is wrong with the id of a node, if anything is.
func checkID(id string) error {
	switch {
	case id == "":
		return errors.New("an id of a node is empty")
	case len(id) > IDBytesMax:
		return fmt.Errorf("an id of a node has %d bytes, and %d are allowed", len(id), IDBytesMax)
	case !utf8.ValidString(id):
		return fmt.Errorf("id %q of a node is not UTF-8", id)
	}
	for _, r := range id {
		if !unicode.IsPrint(r) || r == ' ' {
			return fmt.Errorf("id %q of a node holds %q; printable characters are allowed, without blanks", id, r)
		}
	}
	return nil
}

// append returns b with the hello after it. Both ids have passed checkID.
func (h hello) append(b []byte) []byte {
	b = append(b, magic...)
	b = append(b, version)
	b = binary.BigEndian.AppendUint16(b, uint16(1+len(h.cluster)+1+len(h.sender)+1+len(h.recipient)))
	b = append(b, byte(h.kind))
	b = append(b, h.cluster[:]...)
	b = append(b, byte(len(h.sender)))
	b = append(b, h.sender...)
	b = append(b, byte(len(h.recipient)))
	return append(b, h.recipient...)
}

// errNoHello is what a dialer gets no answer to: it does not speak this protocol.
var errNoHello = errors.New("the first bytes are not of a hello")

// readHello reads a hello and not one byte more. A refusal is to be answered. An
// error is not: there is nothing to answer to, or nobody.
func readHello(r io.Reader) (hello, *refusal, error) {
	var head [headBytes]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return hello{}, nil, fmt.Errorf("read the beginning of a hello: %w", err)
	}
	if string(head[:len(magic)]) != magic {
		return hello{}, nil, fmt.Errorf("%w: %q", errNoHello, head[:])
	}
	length := int(binary.BigEndian.Uint16(head[len(magic)+1:]))
	if length > bodyBytesMax {
		return hello{}, &refusal{CodeMalformed, fmt.Sprintf(
			"the hello has %d bytes after its beginning, and at most %d are allowed", length, bodyBytesMax)}, nil
	}
	// All is read before anything is answered, whatever the version: what is
	// unread when a connection is closed makes TCP throw the answer away.
	var buffer [bodyBytesMax]byte
	body := buffer[:length]
	if _, err := io.ReadFull(r, body); err != nil {
		return hello{}, nil, fmt.Errorf("read a hello of %d bytes: %w", length, err)
	}
	if v := head[len(magic)]; v != version {
		return hello{}, &refusal{CodeVersion, fmt.Sprintf(
			"the hello has version %d, and this node speaks version %d", v, version)}, nil
	}
	h, err := parseBody(body)
	if err != nil {
		return hello{}, &refusal{CodeMalformed, err.Error()}, nil
	}
	return h, nil, nil
}

// parseBody reads what follows the beginning of a hello of version 1.
func parseBody(b []byte) (hello, error) {
	var h hello
	if len(b) < bodyBytesMin {
		return h, fmt.Errorf("the hello has %d bytes after its beginning, and at least %d are needed", len(b), bodyBytesMin)
	}
	h.kind = kind(b[0])
	b = b[1+copy(h.cluster[:], b[1:]):]
	var err error
	if h.sender, b, err = parseID(b); err != nil {
		return hello{}, fmt.Errorf("the sender of the hello: %w", err)
	}
	if h.recipient, b, err = parseID(b); err != nil {
		return hello{}, fmt.Errorf("the recipient of the hello: %w", err)
	}
	if len(b) > 0 {
		return hello{}, fmt.Errorf("the hello has %d bytes after its end", len(b))
	}
	return h, nil
}

func parseID(b []byte) (id string, rest []byte, err error) {
	if len(b) == 0 || len(b) < 1+int(b[0]) {
		return "", nil, errors.New("the id is cut off")
	}
	id, rest = string(b[1:1+b[0]]), b[1+b[0]:]
	return id, rest, checkID(id)
}

// judge says whether the node with this id, in this cluster, accepts the hello.
// Nil is yes.
func judge(h hello, self string, cluster [16]byte) *refusal {
	switch {
	case cluster == [16]byte{}:
		return &refusal{CodeNoCluster, fmt.Sprintf("this node, %s, is not part of a cluster yet", self)}
	case h.cluster != cluster:
		return &refusal{CodeCluster, fmt.Sprintf("the hello is for cluster %s, and this node, %s, is part of cluster %s",
			hex.EncodeToString(h.cluster[:]), self, hex.EncodeToString(cluster[:]))}
	case h.recipient != self:
		return &refusal{CodeRecipient, fmt.Sprintf("the hello is for node %s, and this is node %s", h.recipient, self)}
	case h.sender == self:
		return &refusal{CodeSelf, fmt.Sprintf("the hello comes from node %s, which is this node itself", self)}
	case h.kind != kindRaft && h.kind != kindCalls:
		return &refusal{CodeKind, fmt.Sprintf("the hello is for %s, and this node knows %d (%s) and %d (%s)",
			h.kind, uint8(kindRaft), kindRaft, uint8(kindCalls), kindCalls)}
	}
	return nil
}

// appendAnswer returns b with an answer after it; nil is "accepted".
func appendAnswer(b []byte, r *refusal) []byte {
	if r == nil {
		r = &refusal{}
	}
	sentence := r.sentence
	if len(sentence) > sentenceBytes {
		sentence = sentence[:sentenceBytes]
	}
	b = append(b, magic...)
	b = append(b, version, byte(r.code))
	b = binary.BigEndian.AppendUint16(b, uint16(len(sentence)))
	return append(b, sentence...)
}

// readAnswer reads an answer and not one byte more.
func readAnswer(r io.Reader) (*refusal, error) {
	var head [answerBytes]byte
	n, err := io.ReadFull(r, head[:])
	// What is not an answer may be shorter than one.
	if seen := min(n, len(magic)); n > 0 && string(head[:seen]) != magic[:seen] {
		return nil, fmt.Errorf("something else than a node of Pemba answers, beginning with %q", head[:n])
	}
	if err != nil {
		return nil, err
	}
	length := int(binary.BigEndian.Uint16(head[len(magic)+2:]))
	code := Code(head[len(magic)+1])
	if length > sentenceBytes || code == 0 && length > 0 {
		return nil, fmt.Errorf("the answer to the hello has code %d and a sentence of %d bytes; at most %d are allowed, none for code 0",
			uint8(code), length, sentenceBytes)
	}
	if code == 0 {
		return nil, nil
	}
	sentence := make([]byte, length)
	if _, err := io.ReadFull(r, sentence); err != nil {
		return nil, fmt.Errorf("read the sentence of a refusal (%s): %w", code, err)
	}
	return &refusal{code, printable(sentence)}, nil
}

// printable returns what another said in a form that can stand in a log.
func printable(b []byte) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return utf8.RuneError
	}, strings.ToValidUTF8(string(b), string(utf8.RuneError)))
}
