package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"github.com/sporevm/spore/internal/vmm"
)

// suite is the guest of package vmmtest: it does to memory, disk and console what it is asked for on the control port, and echoes
// what comes on the data port. The length of its region stands at the start of memory, the region itself on the pages after.
type suite struct{}

func (suite) serve(g *guest, port string, conn net.Conn) {
	if port == vmm.PortData {
		io.Copy(conn, conn) // until the host leaves
		return
	}
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) == 0 {
			continue // ends what a conversation that was cut short left behind
		}
		answer, err := g.obey(words)
		if err != nil {
			answer = "error: " + err.Error()
		}
		if _, err := io.WriteString(conn, answer+"\n"); err != nil {
			return
		}
	}
}

func (g *guest) obey(words []string) (string, error) {
	n, seed := 0, uint64(0)
	if len(words) == 3 {
		if _, err := fmt.Sscan(words[1]+" "+words[2], &n, &seed); err != nil {
			return "", err
		}
	}
	switch verb := words[0]; verb {
	case "count":
		return fmt.Sprint(time.Since(g.started).Milliseconds()), nil
	case "fill": // fill KIB SEED
		var size [8]byte
		binary.LittleEndian.PutUint64(size[:], uint64(n)<<10)
		if _, err := g.WriteAt(size[:], 0); err != nil {
			return "", err
		}
		_, err := g.WriteAt(noise(n<<10, seed), vmm.PageSize)
		return "ok", err
	case "sum":
		var size [8]byte
		if _, err := g.ReadAt(size[:], 0); err != nil {
			return "", err
		}
		region := make([]byte, min(binary.LittleEndian.Uint64(size[:]), uint64(g.m.mem.size)))
		_, err := g.ReadAt(region, vmm.PageSize)
		return fmt.Sprintf("%08x", crc32.ChecksumIEEE(region)), err
	case "print": // print KIB SEED: so much text on the console
		g.print(strings.Repeat(strings.Repeat("console ", 8)+"\n", n<<10/65+1) + fmt.Sprintln("printed", seed))
		return "ok", nil
	case "disk-write": // disk-write KIB SEED
		f, err := g.disk("disk")
		if err != nil {
			return "", err
		}
		text := noise(n<<10, seed)
		_, err = g.step(func() (int, error) { return f.WriteAt(text, 0) })
		return "ok", err
	case "disk-sum": // disk-sum KIB 0
		f, err := g.disk("disk")
		if err != nil {
			return "", err
		}
		sum := crc32.NewIEEE()
		_, err = io.CopyBuffer(struct{ io.Writer }{sum}, struct{ io.Reader }{io.NewSectionReader(f, 0, int64(n)<<10)}, make([]byte, request))
		return fmt.Sprintf("%08x", sum.Sum32()), err
	case "poweroff":
		g.PowerOff()
		return "", nil
	case "crash":
		g.crash("sysrq triggered crash")
		return "", nil
	default:
		if strings.HasPrefix(verb, "hello-") {
			return verb, nil
		}
		return "", fmt.Errorf("unknown command %q", words)
	}
}

func noise(n int, seed uint64) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}
