package kv

import (
	"bytes"
	"slices"
)

// Each calls visit once for every one of keys, which may come in any order and repeat, with its value or nil if it
// is not present. The calls are in no particular order; i is the number of the key, and value is valid only during
// the call. It is one Lookup. An error from visit ends it and is returned.
func Each(r Reader, keys [][]byte, visit func(i int, value []byte) error) error {
	order := make([]int, len(keys))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(x, y int) int { return bytes.Compare(keys[x], keys[y]) })
	first := make([]int, 0, len(keys)+1) // where in order each distinct key begins
	distinct := make([][]byte, 0, len(keys))
	for n, i := range order {
		if n == 0 || !bytes.Equal(keys[i], distinct[len(distinct)-1]) {
			first, distinct = append(first, n), append(distinct, keys[i])
		}
	}
	first = append(first, len(keys))
	tell := func(d int, value []byte) error {
		for _, i := range order[first[d]:first[d+1]] {
			if err := visit(i, value); err != nil {
				return err
			}
		}
		return nil
	}
	next := 0
	missing := func(upTo int) error {
		for ; next < upTo; next++ {
			if err := tell(next, nil); err != nil {
				return err
			}
		}
		return nil
	}
	err := r.Lookup(distinct, func(d int, value []byte) error {
		if err := missing(d); err != nil {
			return err
		}
		next = d + 1
		if value == nil {
			value = []byte{}
		}
		return tell(d, value)
	})
	if err != nil {
		return err
	}
	return missing(len(distinct))
}
