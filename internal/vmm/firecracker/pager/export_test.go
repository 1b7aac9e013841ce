package pager

// NewUffd and Register are what the VMM of the tests needs.
func NewUffd() (int, error) { u, err := newUffd(); return int(u), err }

func Register(fd int, mem []byte) error { return uffd(fd).register(mem) }
