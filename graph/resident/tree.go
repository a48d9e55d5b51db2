package resident

import (
	"slices"
	"sync/atomic"
	"unsafe"
)

// A tree is a list too long for a block: a B+ tree of Elements, whose published nodes
// never change. A batch of changes copies each node that it touches once, then writes
// to its copy, and publishes the new root when it is done (grower.publish); readers keep
// the root that they found. What nobody reads any more is the garbage collector's.
type tree struct {
	// root is what readers see.
	root atomic.Pointer[node]
	// next is the root to be, which only the batch that is under way sees; nil when
	// the batch has not touched the tree.
	next *node
	// bytes is what the tree takes.
	bytes int64
}

// move returns a tree that takes the place of this one, which stays as it is for those who
// still look at it.
func (t *tree) move(g *grower) *tree {
	to := &tree{next: t.next, bytes: t.bytes}
	to.root.Store(t.root.Load())
	if t.next != nil {
		t.next = nil
		g.touch(to)
	}
	return to
}

// nodeMax is how many elements a leaf holds at most, and how many children a node: as
// many as make a leaf 1 KiB.
const nodeMax = 246

// A node is a leaf if it has no children. The pointers come first: the collector need
// not look at what follows them.
type node struct {
	children []*node
	// batch is the batch that made the node, and alone may write to it.
	batch uint64
	count int
	// elements are, in a leaf, the elements; else elements[i] has the number of the
	// first element below children[i], or a lower one.
	elements [nodeMax]Element
}

const (
	leafBytes  = int64(unsafe.Sizeof(node{}))
	innerBytes = leafBytes + nodeMax*int64(unsafe.Sizeof((*node)(nil)))
)

func (n *node) isLeaf() bool { return n.children == nil }

// search finds the first element of at least the number.
func (n *node) search(number uint32) int {
	lo, hi := 0, n.count
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if n.elements[mid].Number() < number {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// child finds the child below which a number is, or would be.
func (n *node) child(number uint32) int {
	i := n.search(number)
	if i < n.count && n.elements[i].Number() == number {
		return i
	}
	return max(i-1, 0)
}

// find returns the element of a number.
func (n *node) find(number uint32) (Element, bool) {
	for !n.isLeaf() {
		n = n.children[n.child(number)]
	}
	if i := n.search(number); i < n.count && n.elements[i].Number() == number {
		return n.elements[i], true
	}
	return 0, false
}

// appendFrom appends up to limit elements from a number on.
func (n *node) appendFrom(dst []Element, from uint32, limit int) []Element {
	if n.isLeaf() {
		i := n.search(from)
		return append(dst, n.elements[i:min(i+limit, n.count)]...)
	}
	end := len(dst) + limit
	for i := n.child(from); i < n.count && len(dst) < end; i++ {
		dst = n.children[i].appendFrom(dst, from, end-len(dst))
	}
	return dst
}

// A grower changes trees within one batch, and counts their bytes.
type grower struct {
	batch uint64
	bytes int64
	// room is for the elements of a block.
	room []Element
	// touched are the trees of which the batch has another root to publish.
	touched []*tree
}

func (g *grower) touch(t *tree) { g.touched = append(g.touched, t) }

// publish ends the batch.
func (g *grower) publish() {
	for i, t := range g.touched {
		if t.next != nil { // else it was emptied and dropped
			t.root.Store(t.next)
			t.next = nil
		}
		g.touched[i] = nil
	}
	g.touched = g.touched[:0]
	g.batch++
}

func (g *grower) leaf() *node {
	g.bytes += leafBytes
	return &node{batch: g.batch}
}

func (g *grower) inner() *node {
	g.bytes += innerBytes
	return &node{batch: g.batch, children: make([]*node, 0, nodeMax)}
}

// free counts a node that is no longer part of the tree.
func (g *grower) free(n *node) {
	if n.isLeaf() {
		g.bytes -= leafBytes
	} else {
		g.bytes -= innerBytes
	}
}

// own returns the node, or a copy of it that the batch may write to.
func (g *grower) own(n *node) *node {
	if n.batch == g.batch {
		return n
	}
	c := *n
	c.batch = g.batch
	if !n.isLeaf() {
		c.children = append(make([]*node, 0, nodeMax), n.children...)
	}
	return &c
}

// build makes a tree of elements, which are ascending and at least one.
func (g *grower) build(elements []Element) *node {
	const fill = nodeMax * 3 / 4 // so that a few more do not split all leaves
	var level []*node
	for chunk := range slices.Chunk(elements, fill) {
		n := g.leaf()
		n.count = copy(n.elements[:], chunk)
		level = append(level, n)
	}
	for len(level) > 1 {
		var above []*node
		for chunk := range slices.Chunk(level, fill) {
			n := g.inner()
			for _, c := range chunk {
				n.children = append(n.children, c)
				n.elements[n.count] = c.elements[0]
				n.count++
			}
			above = append(above, n)
		}
		level = above
	}
	return level[0]
}

// insert puts an element into the tree below root, in place of one of the same number,
// and returns the new root.
func (g *grower) insert(root *node, e Element) *node {
	root, right := g.insertBelow(root, e)
	if right == nil {
		return root
	}
	above := g.inner()
	above.children = append(above.children, root, right)
	above.elements[0], above.elements[1] = root.elements[0], right.elements[0]
	above.count = 2
	return above
}

// insertBelow is insert for any node; right is the second half of a node that was split.
func (g *grower) insertBelow(n *node, e Element) (same, right *node) {
	n = g.own(n)
	if n.isLeaf() {
		i := n.search(e.Number())
		if i < n.count && n.elements[i].Number() == e.Number() {
			n.elements[i] = e
			return n, nil
		}
		if n.count == nodeMax {
			right = g.split(n)
			if i > n.count {
				right.insertAt(i-n.count, e, nil)
				return n, right
			}
		}
		n.insertAt(i, e, nil)
		return n, right
	}
	i := n.child(e.Number())
	child, added := g.insertBelow(n.children[i], e)
	n.children[i] = child
	n.elements[i] = min(n.elements[i], child.elements[0])
	if added == nil {
		return n, nil
	}
	i++
	if n.count == nodeMax {
		right = g.split(n)
		if i > n.count {
			right.insertAt(i-n.count, added.elements[0], added)
			return n, right
		}
	}
	n.insertAt(i, added.elements[0], added)
	return n, right
}

// split moves the second half of a full node into a new one.
func (g *grower) split(n *node) *node {
	half := n.count / 2
	var right *node
	if n.isLeaf() {
		right = g.leaf()
	} else {
		right = g.inner()
		right.children = append(right.children, n.children[half:]...)
		clear(n.children[half:])
		n.children = n.children[:half]
	}
	right.count = copy(right.elements[:], n.elements[half:n.count])
	n.count = half
	return right
}

func (n *node) insertAt(i int, e Element, child *node) {
	copy(n.elements[i+1:n.count+1], n.elements[i:n.count])
	n.elements[i] = e
	if child != nil {
		n.children = slices.Insert(n.children, i, child)
	}
	n.count++
}

// remove takes the element of a number out of the tree below root; nil is an empty tree.
// Nodes that have become small are not joined: lists seldom shrink, and what is left of
// one that does is found as fast.
func (g *grower) remove(root *node, number uint32) *node {
	if _, found := root.find(number); !found {
		return root
	}
	root = g.removeBelow(root, number)
	for root != nil && !root.isLeaf() && root.count == 1 {
		g.free(root)
		root = root.children[0]
	}
	return root
}

// removeBelow is remove for any node below which the number is.
func (g *grower) removeBelow(n *node, number uint32) *node {
	n = g.own(n)
	var i int
	if n.isLeaf() {
		i = n.search(number)
	} else {
		i = n.child(number)
		if child := g.removeBelow(n.children[i], number); child != nil {
			n.children[i] = child
			return n
		}
		n.children = slices.Delete(n.children, i, i+1)
	}
	copy(n.elements[i:], n.elements[i+1:n.count])
	n.count--
	if n.count == 0 {
		g.free(n)
		return nil
	}
	return n
}
