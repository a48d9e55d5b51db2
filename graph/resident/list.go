package resident

import "sync/atomic"

// A list is the far ends of one near end over edges of one kind, ascending, without
// repeats. Most lists are short, so the word itself holds one number, or two that are not
// high; longer ones are a block in the page's arena, and very long ones a tree.
//
//	bits of the word        47 ........ 25 24 ........... 2  1 0
//	none                                                  0  0 0
//	cold                                                  1  0 0
//	tree                    index of the tree, from bit 4 on; 1 0 0 0
//	one element                          32 bits of element  0 1
//	two plain elements      number       number              1 0
//	block                   offset 32, count 9, class 5      1 1
//
// An element is a number and whether its edge is qualified: Element.
type list uint64

// listBits is how many bits a list takes of an entry.
const listBits = 48

const (
	tagOther = 0
	tagOne   = 1
	tagTwo   = 2
	tagBlock = 3

	none list = 0
	// cold: nothing is known of the list.
	cold list = 1 << 2
	// treeBit marks the word of a tree.
	treeBit list = 1 << 3

	// twoBits is how many bits each number of two has.
	twoBits = 23
)

// An Element is a far end: its number shifted left by one, and in the lowest bit
// whether the edge is qualified.
type Element uint32

// NumberMax is the highest number that an Element, or a near end, can hold.
const NumberMax = 1<<31 - 1

// MakeElement makes an Element of a number of at most NumberMax.
func MakeElement(number uint32, qualified bool) Element {
	e := Element(number << 1)
	if qualified {
		e |= 1
	}
	return e
}

// Number is the number of the far end.
func (e Element) Number() uint32 { return uint32(e >> 1) }

// Qualified says that the edge carries more than its ends: a caveat or a lifetime, of
// which the resident graph knows nothing.
func (e Element) Qualified() bool { return e&1 != 0 }

// classes are the sizes of what is given out of an arena, in words. Blocks are of those
// up to 128, two elements in a word; rows may need the others.
var classes = [...]uint32{
	1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048,
	3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152, 65536,
}

// blockMax is the longest list that is kept in a block.
const blockMax = 256

// classOf is the smallest class for so many words.
func classOf(words uint32) uint32 {
	for c, size := range classes {
		if words <= size {
			return uint32(c)
		}
	}
	panic("resident: more words than the largest class has")
}

// blockWords is how many words so many elements take.
func blockWords(elements int) uint32 { return uint32(elements+1) / 2 }

func (l list) tag() list { return l & 3 }

func listOne(e Element) list { return list(e)<<2 | tagOne }

// fitTwo says that two elements can be a list of two.
func fitTwo(a, b Element) bool { return (a|b)>>(twoBits+1) == 0 && (a|b)&1 == 0 }

func listTwo(a, b Element) list { return list(a>>1)<<2 | list(b>>1)<<(2+twoBits) | tagTwo }

func listBlock(class, count, offset uint32) list {
	return list(offset)<<16 | list(count)<<7 | list(class)<<2 | tagBlock
}

func listTree(index int) list { return list(index)<<4 | treeBit }

func (l list) one() Element { return Element(l >> 2) }

func (l list) two() (a, b Element) {
	const mask = 1<<twoBits - 1
	return Element(l>>2&mask) << 1, Element(l>>(2+twoBits)&mask) << 1
}

func (l list) block() (class, count, offset uint32) {
	return uint32(l>>2) & 31, uint32(l>>7) & 511, uint32(l >> 16)
}

func (l list) isTree() bool { return l.tag() == tagOther && l&treeBit != 0 }

func (l list) tree() int { return int(l >> 4) }

// A block is the elements of a list in an arena, two in a word. Readers may look at it
// while it is being changed, or used again for something else: they find out afterwards,
// and until then must only not leave the arena.
type block struct {
	words []uint64
	count int
}

// at reads an element.
func (b block) at(i int) Element {
	return Element(atomic.LoadUint64(&b.words[i>>1]) >> (32 * (i & 1)))
}

// put writes an element. There is one writer.
func (b block) put(i int, e Element) {
	shift := 32 * (i & 1)
	w := b.words[i>>1]&^(0xffffffff<<shift) | uint64(e)<<shift
	atomic.StoreUint64(&b.words[i>>1], w)
}

// search finds the first element whose number is at least that of number.
func (b block) search(number uint32) int {
	lo, hi := 0, b.count
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if b.at(mid).Number() < number {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}
