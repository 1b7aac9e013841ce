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
type suite struct{ flood flood }

func newSuite(g *guest) *suite {
	s := &suite{flood{done: make(chan error, 1)}}
	for _, n := range g.m.nics {
		go g.answerFrames(n)
	}
	if k, err := g.disk("disk"); err == nil {
		go k.goOn(&s.flood) // waits until the VM runs
	}
	return s
}

func (s *suite) serve(g *guest, port string, conn net.Conn) {
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
		answer, err := s.obey(g, words)
		if err != nil {
			answer = "error: " + err.Error()
		}
		if _, err := io.WriteString(conn, answer+"\n"); err != nil {
			return
		}
	}
}

func (s *suite) obey(g *guest, words []string) (string, error) {
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
		k, err := g.disk("disk")
		if err != nil {
			return "", err
		}
		_, err = k.WriteAt(noise(n<<10, seed), 0)
		return "ok", err
	case "disk-sum": // disk-sum KIB 0
		k, err := g.disk("disk")
		if err != nil {
			return "", err
		}
		text := make([]byte, n<<10)
		_, err = k.ReadAt(text, 0)
		return fmt.Sprintf("%08x", crc32.ChecksumIEEE(text)), err
	case "disk-rate": // disk-rate MILLISECONDS KIB: operations of so much each, for so long
		k, err := g.disk("disk")
		if err != nil {
			return "", err
		}
		return k.rate(time.Duration(n)*time.Millisecond, int(seed)<<10)
	case "disk-flood": // disk-flood KIB COUNT: so many writes of so much each, at once, in the background
		k, err := g.disk("disk")
		if err != nil {
			return "", err
		}
		return "ok", k.flood(&s.flood, n<<10, int(seed))
	case "disk-flooded": // waits for the end of a flood
		return "ok", <-s.flood.done
	case "frame": // frame 0 SEED: one from here, with SEED in it
		return "ok", g.sendFrame(seed)
	case "nic":
		return g.nicAddress(), nil
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
