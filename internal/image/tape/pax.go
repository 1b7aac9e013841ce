package tape

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// record is one key and value of a PAX header. Order matters: sparse maps of the oldest form repeat their keys.
type record struct {
	key, value string
}

type paxRecords []record

const xattrPrefix = "SCHILY.xattr."

// parsePAX splits the content of a PAX header into its records, each of the form "LENGTH KEY=VALUE\n".
func parsePAX(data []byte) (paxRecords, error) {
	records := paxRecords{}
	for len(data) > 0 {
		sp := bytes.IndexByte(data, ' ')
		if sp < 1 || sp > 10 {
			return nil, fmt.Errorf("%w: a PAX record has no length", ErrFormat)
		}
		n, err := strconv.ParseUint(string(data[:sp]), 10, 31)
		if err != nil || int(n) > len(data) || int(n) < sp+3 || data[n-1] != '\n' {
			return nil, fmt.Errorf("%w: a PAX record has a wrong length", ErrFormat)
		}
		body := data[sp+1 : n-1]
		data = data[n:]
		key, value, ok := bytes.Cut(body, []byte("="))
		if !ok || len(key) == 0 || bytes.IndexByte(key, 0) >= 0 {
			return nil, fmt.Errorf("%w: a PAX record has no key", ErrFormat)
		}
		r := record{string(key), string(value)}
		switch r.key {
		case "path", "linkpath", "GNU.sparse.name":
			if strings.IndexByte(r.value, 0) >= 0 {
				return nil, fmt.Errorf("%w: a name holds a NUL byte", ErrFormat)
			}
		}
		records = append(records, r)
	}
	return records, nil
}

// get returns the last value of key. An empty value means that the record is withdrawn.
func (rs paxRecords) get(key string) (string, bool) {
	for i := len(rs) - 1; i >= 0; i-- {
		if rs[i].key == key {
			return rs[i].value, rs[i].value != ""
		}
	}
	return "", false
}

func (rs paxRecords) number(key string) (int64, bool, error) {
	s, ok := rs.get(key)
	if !ok {
		return 0, false, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, false, fmt.Errorf("%w: PAX record %s=%q is not a number", ErrFormat, key, s)
	}
	return n, true, nil
}

// apply overrides the fields of h with those of the records.
func (rs paxRecords) apply(h *Header) error {
	if len(rs) == 0 {
		return nil
	}
	if s, ok := rs.get("path"); ok {
		h.Name = s
	}
	if s, ok := rs.get("GNU.sparse.name"); ok {
		h.Name = s
	}
	if s, ok := rs.get("linkpath"); ok {
		h.Linkname = s
	}
	for _, f := range []struct {
		key string
		to  *int64
	}{{"uid", &h.UID}, {"gid", &h.GID}} {
		if n, ok, err := rs.number(f.key); err != nil {
			return err
		} else if ok {
			*f.to = n
		}
	}
	if s, ok := rs.get("mtime"); ok {
		t, err := parseTime(s)
		if err != nil {
			return err
		}
		h.ModTime, h.AccTime = t, t
	}
	if s, ok := rs.get("atime"); ok {
		t, err := parseTime(s)
		if err != nil {
			return err
		}
		h.AccTime = t
	}
	for _, r := range rs {
		if name, ok := strings.CutPrefix(r.key, xattrPrefix); ok && name != "" {
			if h.Xattrs == nil {
				h.Xattrs = map[string]string{}
			}
			h.Xattrs[name] = r.value
		}
	}
	return nil
}

// parseTime reads a decimal number of seconds, with digits beyond the nanosecond cut off.
func parseTime(s string) (Time, error) {
	whole, frac, _ := strings.Cut(s, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return Time{}, fmt.Errorf("%w: %q is not a time", ErrFormat, s)
	}
	var nsec uint32
	for i := range 9 {
		nsec *= 10
		if i < len(frac) {
			c := frac[i]
			if c < '0' || c > '9' {
				return Time{}, fmt.Errorf("%w: %q is not a time", ErrFormat, s)
			}
			nsec += uint32(c - '0')
		}
	}
	if strings.HasPrefix(whole, "-") && nsec > 0 {
		sec, nsec = sec-1, 1_000_000_000-nsec
	}
	return Time{sec, nsec}, nil
}
