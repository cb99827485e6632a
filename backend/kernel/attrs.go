package kernel

import (
	"encoding/binary"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// attrs is the body of a message about a row of which there are thousands. The netlink package's own attributes take several
// allocations each, and copy byte by byte.
type attrs []byte

// usualBody holds most bodies.
const usualBody = 128

func newAttrs() attrs { return make(attrs, 0, usualBody) }

// add appends an attribute.
func (b attrs) add(kind int, data []byte) attrs {
	b, at := b.begin(kind)
	return append(b, data...).end(at)
}

// text appends a name that ends with a zero.
func (b attrs) text(kind int, s string) attrs {
	b, at := b.begin(kind)
	return append(append(b, s...), 0).end(at)
}

// host appends a number in the machine's order.
func (b attrs) host(kind int, v uint32) attrs {
	b, at := b.begin(kind)
	return attrs(binary.NativeEndian.AppendUint32(b, v)).end(at)
}

// network appends a number in the network's order.
func (b attrs) network(kind int, v uint32) attrs {
	b, at := b.begin(kind)
	return attrs(binary.BigEndian.AppendUint32(b, v)).end(at)
}

// begin opens an attribute, into which others can be nested, and returns what ends it.
func (b attrs) begin(kind int) (attrs, int) {
	b = binary.NativeEndian.AppendUint16(b, 0)
	return binary.NativeEndian.AppendUint16(b, uint16(kind)), len(b) - 2
}

// nest is [attrs.begin] for an attribute that holds others.
func (b attrs) nest(kind int) (attrs, int) { return b.begin(kind | unix.NLA_F_NESTED) }

// end closes the attribute that began there.
func (b attrs) end(at int) attrs {
	binary.NativeEndian.PutUint16(b[at:], uint16(len(b)-at))
	return b.pad()
}

// pad rounds the length up.
func (b attrs) pad() attrs {
	for len(b)%unix.NLA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

// request makes the message.
func (b attrs) request(kind, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, flags)
	req.RawData = b
	return req
}
