// Command churn is a guest program that never stops changing what it holds in memory and, the same, on disk, so that a
// capture whose memory and disk are of two different instants is found out.
//
//	churn             run
//	churn verify [N]  stop the one that runs for a moment and compare every Nth page; exit code 1 when they differ
package main

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"unsafe"
)

const (
	size     = 64 << 20
	pageSize = 4096
	pages    = size / pageSize
	socket   = "/churn.sock"
	file     = "/churn.data"
)

var (
	mu     sync.Mutex // held while one page is changed, in memory and on disk
	memory = aligned(size)
	seq    uint64
)

// aligned is memory that can be handed to the disk as it is.
func aligned(n int) []byte {
	b := make([]byte, n+pageSize)
	off := pageSize - int(uintptr(unsafe.Pointer(&b[0]))%pageSize)
	return b[off : off+n : off+n]
}

// fill makes page i new: number, sequence, noise, and a checksum over all of it.
func fill(p []byte, i int) {
	seq++
	binary.LittleEndian.PutUint64(p, uint64(i))
	binary.LittleEndian.PutUint64(p[8:], seq)
	for o := 16; o < pageSize-8; o += 512 {
		binary.LittleEndian.PutUint64(p[o:], rand.Uint64())
	}
	binary.LittleEndian.PutUint32(p[pageSize-4:], crc32.ChecksumIEEE(p[:pageSize-4]))
}

func check(p []byte, i int) error {
	if got := crc32.ChecksumIEEE(p[:pageSize-4]); got != binary.LittleEndian.Uint32(p[pageSize-4:]) {
		return fmt.Errorf("page %d has a wrong checksum", i)
	}
	if n := binary.LittleEndian.Uint64(p); n != uint64(i) {
		return fmt.Errorf("page %d says that it is page %d", i, n)
	}
	return nil
}

func run() error {
	// Past the page cache: what is written is on the disk.
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|syscall.O_DIRECT, 0o600)
	if err != nil {
		return err
	}
	for i := range pages {
		fill(memory[i*pageSize:(i+1)*pageSize], i)
	}
	if _, err := f.WriteAt(memory, 0); err != nil {
		return err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				continue
			}
			answer(c, f)
		}
	}()
	for {
		mu.Lock()
		i := rand.IntN(pages)
		p := memory[i*pageSize : (i+1)*pageSize]
		fill(p, i)
		_, err := f.WriteAt(p, int64(i)*pageSize)
		mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// answer compares every nth page, starting at a random one, while nothing changes.
func answer(c net.Conn, f *os.File) {
	defer c.Close()
	var n int
	if _, err := fmt.Fscan(c, &n); err != nil || n < 1 {
		fmt.Fprintln(c, "bad request")
		return
	}
	mu.Lock()
	defer mu.Unlock()
	disk := aligned(pageSize)
	for i := rand.IntN(n); i < pages; i += n {
		p := memory[i*pageSize : (i+1)*pageSize]
		_, err := f.ReadAt(disk, int64(i)*pageSize)
		if err == nil {
			err = check(p, i)
		}
		if err == nil && string(p) != string(disk) {
			err = fmt.Errorf("page %d is of change %d in memory and %d on disk", i,
				binary.LittleEndian.Uint64(p[8:]), binary.LittleEndian.Uint64(disk[8:]))
		}
		if err != nil {
			fmt.Fprintln(c, err)
			return
		}
	}
	fmt.Fprintln(c, "consistent", seq)
}

func verify(n string) error {
	if _, err := strconv.Atoi(n); err != nil {
		return err
	}
	c, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	fmt.Fprintln(c, n)
	got, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	var changes uint64
	if _, err := fmt.Sscanf(string(got), "consistent %d", &changes); err != nil {
		return fmt.Errorf("%s", got)
	}
	fmt.Println(changes)
	return nil
}

func main() {
	err := error(nil)
	if len(os.Args) > 1 && os.Args[1] == "verify" {
		n := "1"
		if len(os.Args) > 2 {
			n = os.Args[2]
		}
		err = verify(n)
	} else {
		err = run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "churn:", err)
		os.Exit(1)
	}
}
