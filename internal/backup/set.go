package backup

// Set remembers contents. A backup may hold more of them than fit into memory.
type Set interface {
	Add(h Hash) error
	Has(h Hash) (bool, error)
}

// inMemory is a Set for few contents: about 60 bytes each.
type inMemory map[Hash]struct{}

func (m inMemory) Add(h Hash) error {
	m[h] = struct{}{}
	return nil
}

func (m inMemory) Has(h Hash) (bool, error) {
	_, ok := m[h]
	return ok, nil
}

// forgetful is the Set of who keeps the same in another one.
type forgetful struct{}

func (forgetful) Add(Hash) error         { return nil }
func (forgetful) Has(Hash) (bool, error) { return false, nil }

func setOr(s Set) Set {
	if s == nil {
		return inMemory{}
	}
	return s
}
